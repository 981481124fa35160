"""Working copies: the folder of this machine in which the writer of a folder at an address works."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from equipoise.datasets.atomic_io import read_whole_json, write_json
from equipoise.datasets.errors import DataError, InUseError
from equipoise.datasets.remote.cache import cache_root
from equipoise.datasets.remote.claims import Claim
from equipoise.datasets.remote.commits import (
    CommittedFile,
    Head,
    committed_files,
    objects_outside,
    restore,
    upload,
    with_last_commit,
)
from equipoise.datasets.remote.folders import RemoteFolder

log = logging.getLogger("equipoise")

#: Folder of all working copies in the cache of a machine.
_FOLDER = "working-copies"


def is_working_copy(folder: Path) -> bool:
    """Whether a folder is a working copy or in one."""
    return _FOLDER in folder.parts


class WorkingCopy:
    """A folder at an address, and its copy here.

    One process works in it, which holds its kernel lock (:func:`~equipoise.datasets.atomic_io.writer_lock`). What a
    killed process left is kept as long as nobody has committed since: work goes on where it stopped, not at the last
    commit. Losing the copy costs what was not committed.

    Parameters
    ----------
    address
        Of the folder.

    Raises
    ------
    DataError
        If two writers could not be told apart there.
    """

    def __init__(self, address: str) -> None:
        self.folder = RemoteFolder(address.rstrip("/"))
        self.folder.require_single_writer()
        key = hashlib.sha256(self.folder.address.encode()).hexdigest()[:24]
        (cache_root() / _FOLDER).mkdir(mode=0o700, exist_ok=True)  # it names patients
        self.root: Path = cache_root() / _FOLDER / key / self.folder.address.rpartition("/")[2]
        self._state_file = self.root.parent / "state.json"
        self._claim: Claim | None = None
        self._files: dict[str, CommittedFile] = {}

    def fetch(self) -> None:
        """Make the copy equal to the last commit, unless it goes on from that one; the caller holds its lock."""
        with_last_commit(self.folder, self._reset)

    def _reset(self, head: Head) -> None:
        if self._state().get("commit") == head.commit:
            return
        self._record(commit="unfinished copy")
        restore(self.folder, head.commit, self.root)
        self._record(commit=head.commit)

    @contextmanager
    def claimed(self, owner: str, *, wait: bool = True) -> Iterator[None]:
        """Be the only writer for the block; the caller holds the lock of the copy.

        Raises
        ------
        InUseError
            If another machine is writing, or has written since :meth:`fetch`.
        """
        claim = Claim(self.folder, owner, self._state().get("token"), wait=wait)
        self._record(token=claim.token)
        with claim.renewing():
            if self._state().get("commit") != claim.head.commit:
                raise InUseError(
                    "another job has committed while this one was about to begin",
                    where=self.folder.address,
                    fix="run the same command again",
                )
            self._claim = claim
            self._files = with_last_commit(
                self.folder, lambda head: committed_files(self.folder, head.commit)
            )
            try:
                yield
            finally:
                self._claim = None

    def commit(self) -> None:
        """Upload what has changed and let it count, as a whole; nothing happens outside :meth:`claimed`.

        Raises
        ------
        InUseError
            If another writer has taken over.
        """
        if (claim := self._claim) is None:
            return
        uploaded = upload(self.folder, self.root, self._files, claim.token)
        if uploaded is None:
            return
        commit, files = uploaded
        # Listed before the swap: what a later writer uploads cannot be among them.
        removable = objects_outside(self.folder, commit, files)
        claim.swap(commit)
        self._files = files
        self._record(commit=commit)
        try:
            self.folder.remove_all(removable)
        except DataError as error:  # the commit counts; the next one removes them, where it may
            log.warning("objects of earlier commits stay: %s", error)

    def _state(self) -> dict[str, Any]:
        """The commit that the copy goes on from, and the token of its last claim."""
        return read_whole_json(self._state_file) or {}

    def _record(self, **changes: str | None) -> None:
        write_json(self._state_file, self._state() | changes)
