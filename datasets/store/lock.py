"""One writer at a time: a lock that the kernel releases, however its holder ends."""

from __future__ import annotations

import fcntl
import warnings
from pathlib import Path
from typing import BinaryIO

from equipoise.datasets.errors import DataError, DataWarning

LOCK_FILE = "writer.lock"


def writer_lock(folder: Path) -> BinaryIO:
    """Take the lock of a store; closing the returned file releases it.

    Raises
    ------
    DataError
        If another process holds it.

    Warns
    -----
    DataWarning
        If the file system knows no locks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / LOCK_FILE).open("ab")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise DataError(
            "another run is writing to this feature store", where=str(folder), fix="wait for it, or stop it"
        ) from None
    except OSError as error:
        warnings.warn(
            f"{folder}: this file system knows no locks ({error}); keep other runs away",
            DataWarning,
            stacklevel=4,
        )
    return lock
