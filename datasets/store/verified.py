"""Which shards this machine has compared with their digests: an empty file for each, beside this node's copies.

Its name is a hash of the shard's place, size and time of change: a shard that was written to since is compared again.
What is lost is compared once more, and nothing else.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

from equipoise.datasets.remote.cache import cache_root

_FOLDER = "verified"


def is_remembered(shard: Path) -> bool:
    """Whether the file was sound when this machine first mapped it, and has not been written to since."""
    return _mark(shard).exists()


def remember(shard: Path) -> None:
    """Note that a file is sound; a machine without space for an empty file compares again."""
    with contextlib.suppress(OSError):
        mark = _mark(shard)
        mark.parent.mkdir(exist_ok=True)
        mark.touch()


def _mark(shard: Path) -> Path:
    about = shard.stat()
    identity = f"{os.path.realpath(shard)}\0{about.st_size}\0{about.st_mtime_ns}\0{about.st_ino}"
    return cache_root() / _FOLDER / hashlib.sha256(identity.encode()).hexdigest()[:32]
