"""Copies on this machine, within a size limit: the least recently used is removed first, copies in use stay.

Any number of processes and threads share the cache. Each copy has a lock file: held shared while somebody reads the
copy, exclusively while it is made or removed. The kernel releases a lock however its holder ends.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from equipoise.datasets.errors import DataError

log = logging.getLogger(__name__)

#: Where copies are kept, and how much of them: properties of a node, not of a study.
FOLDER_VARIABLE, SIZE_VARIABLE = "EQUIPOISE_CACHE", "EQUIPOISE_CACHE_GB"

_DEFAULT_GB = 100.0
_LOCK, _PART = ".lock", ".part"


def cache_root() -> Path:
    """Folder of this node's copies: ``EQUIPOISE_CACHE``, or one below the folder for temporary files.

    Raises
    ------
    DataError
        If it belongs to another user.
    """
    named = os.environ.get(FOLDER_VARIABLE)
    root = Path(named) if named else Path(tempfile.gettempdir()) / f"equipoise-cache-{os.getuid()}"
    root.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not named and root.stat().st_uid != os.getuid():
        raise DataError(
            "this folder belongs to another user", where=str(root), fix=f"set {FOLDER_VARIABLE} to a folder"
        )
    return root


def cache_limit() -> int:
    """Bytes of slides that are kept: ``EQUIPOISE_CACHE_GB`` (default 100).

    Raises
    ------
    DataError
        If that is no number above 0.
    """
    text = os.environ.get(SIZE_VARIABLE, str(_DEFAULT_GB))
    try:
        size = float(text)
    except ValueError:
        size = 0.0
    if not 0 < size < float("inf"):
        raise DataError(
            f"{SIZE_VARIABLE} is {text!r}, not a number of gigabytes", fix="write for instance 200"
        )
    return int(size * 1e9)


@dataclass(frozen=True)
class CacheLease:
    """A copy that stays until :meth:`release`.

    Attributes
    ----------
    path
        The copy.
    """

    path: Path
    _lock: BinaryIO | None = None

    def inside(self, name: str) -> CacheLease:
        """The same lease, for a folder in the copy."""
        return CacheLease(self.path / name, self._lock)

    def release(self) -> None:
        """Allow the copy to be removed when space is needed."""
        if self._lock is not None:
            self._lock.close()


@dataclass(frozen=True)
class NodeCache:
    """Folders of files by key.

    Attributes
    ----------
    folder
        Where they are.
    limit
        Bytes that are kept. A copy is never refused: more may be in use at the same time.
    """

    folder: Path
    limit: int

    def acquire(self, key: str, size: int, fill: Callable[[Path], None]) -> CacheLease:
        """A folder that ``fill`` has filled, now or earlier.

        Parameters
        ----------
        key
            Name of the folder; whatever changes the content changes it.
        size
            Bytes that ``fill`` will write.
        fill
            Writes into an empty folder; the folder appears when it is done.
        """
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        entry, lock = self.folder / key, (self.folder / f"{key}{_LOCK}").open("ab")
        try:
            while True:
                fcntl.flock(lock, fcntl.LOCK_SH)
                if entry.is_dir():
                    os.utime(entry)
                    return CacheLease(entry, lock)
                # Not an upgrade: the kernel lets go of the shared lock first, so look again afterwards.
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not entry.is_dir():
                    self._fill(entry, size, fill)
        except BaseException:
            lock.close()
            raise

    def _fill(self, entry: Path, size: int, fill: Callable[[Path], None]) -> None:
        """Make an entry; its lock is held exclusively."""
        for leftover in self.folder.glob(f".{entry.name}.*{_PART}"):
            shutil.rmtree(leftover)
        temporary = self.folder / f".{entry.name}.{size}{_PART}"  # the name reserves the space
        with self._cache_lock():
            self._free_space(size)
            temporary.mkdir()
        try:
            fill(temporary)
            temporary.rename(entry)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    @contextmanager
    def _cache_lock(self) -> Iterator[None]:
        with (self.folder / _LOCK).open("ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _free_space(self, size: int) -> None:
        """Remove copies that are not in use, least recently used first, until ``size`` bytes fit."""
        self._remove_leftovers()
        reserved = sum(int(part.name.split(".")[-2]) for part in self.folder.glob(f".*{_PART}"))
        entries = [entry for entry in self.folder.iterdir() if entry.is_dir() and entry.name[0] != "."]
        sizes = {entry: _bytes(entry) for entry in entries}
        excess = reserved + sum(sizes.values()) + size - self.limit
        for entry in sorted(entries, key=lambda entry: entry.stat().st_mtime_ns):
            if excess <= 0:
                return
            if self._remove(entry.name, entry):
                excess -= sizes[entry]
        if excess > 0:
            log.warning(
                "%s: %.1f GB more than %s allows are in use at the same time",
                self.folder,
                excess / 1e9,
                SIZE_VARIABLE,
            )

    def _remove_leftovers(self) -> None:
        """Remove partial copies whose process died."""
        for part in self.folder.glob(f".*{_PART}"):
            self._remove(part.name[1:].rsplit(".", 2)[0], part)

    def _remove(self, key: str, folder: Path) -> bool:
        """Remove a folder unless somebody holds the lock of its key."""
        with (self.folder / f"{key}{_LOCK}").open("ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            if folder.is_dir():  # a partial copy may have been finished since it was listed
                shutil.rmtree(folder)
            return True


def _bytes(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
