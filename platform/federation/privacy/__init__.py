"""Differential privacy of clients and of patients with an accountant of executed steps, secure aggregation, and the
checks of incompatible settings."""
