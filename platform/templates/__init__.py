"""Commented study files that ``equipoise init`` writes, filled in from the user's own tables."""
