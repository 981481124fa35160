"""Where work runs: the Ray session, its tokens, this machine, cluster files."""
