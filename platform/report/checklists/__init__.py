"""Reporting checklists, filled from a run as far as a run can know, with what is left to the authors marked open."""
