"""Measurements against named alternatives in the same run; each file prints a table and a last line of JSON."""
