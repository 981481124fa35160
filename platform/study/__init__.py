"""The study file: its schema, its error messages, and the commented drafts that ``equipoise init`` writes."""
