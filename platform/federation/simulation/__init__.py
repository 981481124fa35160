"""Federations of a study in one process or on Ray: clients, backends, virtual clock, baselines, evaluation."""
