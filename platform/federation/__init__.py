"""Federated training across cohorts and hospitals, simulated on Ray or in one process with identical results.

``vector`` lays a model's state out as one flat vector; ``update`` is the only thing that leaves a client;
``fixed_point`` sums updates so that their order does not matter; ``client`` trains at a site with the pieces of
:mod:`equipoise.platform.training`; ``inline`` and ``on_ray`` are the two places where clients run; ``engine``
runs the rounds; ``strategies`` and ``rules`` say what is made of the updates; ``checkpoint`` keeps every round.
"""
