"""Entries of another package."""
