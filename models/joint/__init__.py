"""Joint multi-task transformer over the tiles of a case (arXiv 2403.03891)."""
