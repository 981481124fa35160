"""Evaluation: the predictions table, and metrics with intervals computed from it.

``predictions`` defines, reads and writes the predictions table, ``stamp_export`` exports it; ``metrics`` are weighted
point estimates in numpy; ``intervals`` adds DeLong and the patient bootstrap; ``thresholds`` are chosen on validation
data; ``evaluate`` turns a predictions table into one tidy metrics table; ``silhouette`` measures how well the inputs
of the heads separate the classes. ``comparison`` ranks methods on plain tables, ``paired`` subtracts runs on the same
patients, ``leaderboard`` combines both.
"""
