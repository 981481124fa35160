"""Strategies: what clients and server do beyond averaging, a class each, in files by family."""
