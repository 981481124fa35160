"""Evaluation: the predictions table, and metrics with intervals computed from it.

``predictions`` defines, reads and writes the predictions table, ``stamp_export`` exports it; ``metrics`` are weighted
point estimates in numpy; ``influence`` says how much each patient moves them, and ``intervals`` makes intervals and
paired tests of it; ``thresholds`` are chosen on validation data; ``evaluate`` turns a predictions table into one tidy
metrics table; ``silhouette`` measures how well the inputs of the heads separate the classes. ``paired`` subtracts
runs on the same patients, ``multiple_comparisons`` compares all pairs of many, ``leaderboard`` combines both;
``comparison`` ranks methods over independent data sets.
"""
