"""Joint multi-task transformer over the tiles of a case."""
