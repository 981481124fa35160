"""Federated training across cohorts and hospitals, simulated on Ray or in one process with identical results.

``engine`` runs the rounds; ``messages`` holds what the server sends and what a client answers; ``vector`` lays a
model's state out as one flat vector. ``clients`` trains at a site with the parts of :mod:`equipoise.platform.training`;
``server`` validates updates, keeps the audit log and the checkpoints; ``aggregation`` and ``strategies`` turn updates
into new weights; ``privacy`` clips, adds noise and masks; ``simulation`` decides who the clients are, where they run
and how the result is evaluated.
"""
