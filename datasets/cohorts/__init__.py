"""Cohorts: assembly, participant flow, sites, splits, leakage, and the cases that models train on."""
