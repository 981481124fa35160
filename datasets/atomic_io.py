"""Atomic writes of files and folders, to a temporary sibling that is then renamed; and one writer at a time."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from equipoise.datasets.errors import DataError, DataWarning, InUseError

#: How the name of a temporary sibling begins and ends. One whose writer is dead may be removed by anybody.
TEMPORARY_PREFIX, TEMPORARY_SUFFIX = ".", ".tmp"

#: The lock of a folder that has one writer: a feature store, a run folder.
LOCK_FILE = "writer.lock"


def is_temporary(name: str) -> bool:
    """Whether a file of that name is being written, or was left by a writer that died."""
    return name.startswith(TEMPORARY_PREFIX) and name.endswith(TEMPORARY_SUFFIX)


def remove_leftovers(folder: Path, *, below: bool = False) -> list[Path]:
    """Remove what dead writers left half-written in a folder; only its one writer, who holds its lock, may do it.

    Parameters
    ----------
    below
        Also in the folders below.

    Returns
    -------
    The files and folders that were removed.
    """
    pattern = f"{TEMPORARY_PREFIX}*{TEMPORARY_SUFFIX}"
    found = sorted(folder.rglob(pattern) if below else folder.glob(pattern))
    for path in found:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
    return found


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary sibling of ``path`` to write a file or folder to; it replaces ``path`` on success and is removed
    otherwise.

    Nothing exists under the sibling's name yet. The name ends in ``.tmp``, so a writer that chooses a format by the
    ending must be told the format. Each writer gets a unique name: two that make the same file do not write into
    each other's, and the last one to finish wins. Parent folders are created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(
        f"{TEMPORARY_PREFIX}{path.name}.{os.getpid()}-{secrets.token_hex(4)}{TEMPORARY_SUFFIX}"
    )
    try:
        yield temporary
        if temporary.is_dir() and path.is_dir():
            shutil.rmtree(path)  # a folder does not replace a folder
        temporary.replace(path)
    except OSError as error:
        if error.errno is not None and error.filename is None:  # a full disk says nothing of the file
            error.filename = str(path)
        raise
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text with Unix line ends, atomically."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; values that JSON does not know become text."""
    write_text(path, json.dumps(value, indent=2, default=str) + "\n")


def read_json(path: Path, default: Any = None) -> Any:
    """Read JSON, or return ``default`` where the file is absent.

    Raises
    ------
    DataError
        If the file is damaged.
    """
    if not path.exists():
        return default
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"the file is damaged: {error}", where=str(path), fix="restore it from a copy, or start again"
        ) from error


def read_whole_json(path: Path, kind: type[Any] = dict) -> Any:
    """As :func:`read_json`; ``None`` also where the file is damaged, for what can be made again.

    Parameters
    ----------
    kind
        What the file must hold.
    """
    try:
        value = read_json(path)
    except (DataError, OSError):
        return None
    return value if isinstance(value, kind) else None


def writer_lock(folder: Path, what: str = "feature store") -> BinaryIO:
    """Take the lock of a folder; closing the returned file releases it, and so does the end of the process.

    Parameters
    ----------
    folder
        Where ``writer.lock`` is, or will be.
    what
        What the folder is, for the message.

    Raises
    ------
    InUseError
        If another process holds it.

    Warns
    -----
    DataWarning
        If the file system knows no locks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = (folder / LOCK_FILE).open("ab")
    try:
        _flock(lock, fcntl.LOCK_EX)
    except BlockingIOError:
        lock.close()
        raise InUseError(
            f"another run is writing to this {what}", where=str(folder), fix="wait for it, or stop it"
        ) from None
    except OSError as error:
        warnings.warn(
            f"{folder}: this file system knows no locks ({error}); keep other runs away",
            DataWarning,
            stacklevel=4,
        )
    return lock


def is_locked(file: Path) -> bool:
    """Whether a process holds this lock; False where the file system knows no locks."""
    with file.open("rb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError:
            return False
    return False


def _flock(lock: BinaryIO, kind: int) -> None:
    """Take a lock; one that is only looked at (:func:`is_locked`) is free a moment later."""
    for _ in range(4):
        with contextlib.suppress(BlockingIOError):
            return fcntl.flock(lock, kind | fcntl.LOCK_NB)
        time.sleep(0.05)
    return fcntl.flock(lock, kind | fcntl.LOCK_NB)
