"""The server: rounds, validation of updates, audit log, checkpoints."""
