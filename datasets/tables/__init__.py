"""Tables of users: files as text, dialects and keys, prediction targets, labels as numbers, plausibility."""
