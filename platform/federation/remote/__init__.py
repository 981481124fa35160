"""Federations whose clients are elsewhere: the server knows manifests, sites keep their patients and their state."""
