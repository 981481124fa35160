"""Evaluation: the predictions table, metrics with intervals computed from it, and what validation data
decide.

``predictions`` is the contract (schema, reading, writing, STAMP export); ``metrics`` are weighted point
estimates in numpy; ``intervals`` adds DeLong and the patient bootstrap; ``decisions`` holds cut-offs chosen
on validation data; ``evaluate`` turns a predictions table into one tidy metrics table; ``silhouette`` judges
what the heads read. ``comparison`` ranks methods on plain tables, ``paired`` subtracts runs on the same
patients, ``leaderboard`` puts both together.
"""
