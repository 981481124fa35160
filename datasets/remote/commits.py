"""Commits: whole states of a folder at an address.

::

    ADDRESS/head.json                     the commit that counts, and the claim of the writer
    ADDRESS/objects/<SHA-256>.<claim>     a file, or the list of the files of a commit; never changed

A commit uploads first and then swaps the head, one small file, on the condition that it is still what it was. A reader
therefore sees whole commits only, and a writer that dies while it uploads has changed nothing. The claim is part of
the head: a writer that has lost it cannot swap the head any more. Names of objects end with the claim that made them,
so that what one writer removes is never what another one has just uploaded.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import TypeVar

from equipoise.datasets.atomic_io import LOCK_FILE, is_temporary
from equipoise.datasets.errors import DataError
from equipoise.datasets.remote.cache import CacheLease, NodeCache, cache_limit, cache_root
from equipoise.datasets.remote.folders import RemoteFolder

HEAD_FILE, _OBJECTS = "head.json", "objects"

_TRIES = 5

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Writer:
    """The claim of a writer.

    Attributes
    ----------
    token
        Of this claim alone.
    owner
        Process and machine, for messages.
    renewed
        Seconds since 1970 by the writer's clock; for messages: nothing is decided by it.
    """

    token: str
    owner: str
    renewed: float


@dataclass(frozen=True)
class Head:
    """The content of ``head.json``.

    Attributes
    ----------
    commit
        Object that lists the files; None before the first commit.
    writer
        Who writes; None if nobody does.
    """

    commit: str | None = None
    writer: Writer | None = None

    def content(self) -> bytes:
        """As it is written."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def parse(cls, content: bytes | None, address: str) -> Head:
        """The head of what was read; that of an empty folder if there was nothing.

        Raises
        ------
        DataError
            If it is no head.
        """
        if content is None:
            return cls()
        try:
            value = json.loads(content)
            return cls(value["commit"], value["writer"] and Writer(**value["writer"]))
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(
                f"{HEAD_FILE} is not one of Equipoise ({type(error).__name__}: {error})",
                where=address,
                fix="choose another address",
            ) from error


@dataclass(frozen=True)
class CommittedFile:
    """A file of a commit: the object that holds it, and its size in bytes."""

    name: str
    size: int


class _SupersededError(Exception):
    """An object is gone: a later commit has replaced the one that it belongs to."""


def read_head(folder: RemoteFolder) -> Head:
    """The head as it is now."""
    return Head.parse(folder.read(HEAD_FILE), folder.address)


def committed_files(folder: RemoteFolder, commit: str | None) -> dict[str, CommittedFile]:
    """Path → file of a commit."""
    if commit is None:
        return {}
    content = folder.read(f"{_OBJECTS}/{commit}")
    if content is None:
        raise _SupersededError
    files = {path: CommittedFile(name, size) for path, (name, size) in json.loads(content).items()}
    if outside := [path for path in files if path.startswith("/") or ".." in path.split("/")]:
        raise DataError(
            f"the commit {commit} names a file outside its folder ({outside[0]})",
            where=folder.address,
            fix="find out who else writes to this address, and choose another one",
        )
    return files


def with_last_commit(folder: RemoteFolder, use: Callable[[Head], _Result]) -> _Result:
    """Read the last commit; again if a later one replaces it meanwhile.

    Raises
    ------
    DataError
        If objects of the commit are missing.
    """
    for _ in range(_TRIES):
        head = read_head(folder)
        try:
            return use(head)
        except _SupersededError:
            continue
    raise DataError(
        f"files of the commit {head.commit} are missing",
        where=folder.address,
        fix="restore the objects from a copy or an earlier version of the bucket, or choose another address",
    )


def restore(folder: RemoteFolder, commit: str | None, target: Path) -> None:
    """Make a folder of this machine equal to a commit; files that are equal already are not copied."""
    files, present = committed_files(folder, commit), local_files(target)
    for path in present.keys() - files.keys():
        present[path].unlink()
    for below in sorted(target.rglob("*"), reverse=True):
        if below.is_dir() and not any(below.iterdir()):  # that a folder is there may say that a step has run
            below.rmdir()
    wanted = {
        path: file.name
        for path, file in files.items()
        if path not in present or _sha256(present[path]) != _digest_of(file.name)
    }
    # One object may be several files.
    first = {name: target / path for path, name in wanted.items()}
    try:
        folder.receive_all({f"{_OBJECTS}/{name}": file for name, file in first.items()})
    except FileNotFoundError as error:
        raise _SupersededError from error
    for name, file in first.items():
        if _sha256(file) != _digest_of(name):
            file.unlink()
            raise DataError(
                f"the object {name} does not have the content that its name says",
                where=folder.address,
                fix="restore it from a copy, or choose another address",
            )
    for path, name in wanted.items():
        if target / path != first[name]:
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(first[name], target / path)


def copy_of_last_commit(folder: RemoteFolder) -> tuple[Head, CacheLease | None]:
    """The head, and the copy of its commit in the cache of this machine, to be read and never changed.

    There is no copy where nothing is committed.
    """

    def copy(head: Head) -> CacheLease | None:
        if head.commit is None:
            return None
        size = sum(file.size for file in committed_files(folder, head.commit).values())
        key = hashlib.sha256(f"{folder.address}\0{head.commit}".encode()).hexdigest()[:24]
        inside = folder.address.rpartition("/")[2]

        def fill(entry: Path) -> None:
            (entry / inside).mkdir()
            restore(folder, head.commit, entry / inside)

        return NodeCache(cache_root() / "runs", cache_limit()).acquire(key, size, fill).inside(inside)

    return with_last_commit(folder, lambda head: (head, copy(head)))


def upload(
    folder: RemoteFolder, source: Path, before: Mapping[str, CommittedFile], token: str
) -> tuple[str, dict[str, CommittedFile]] | None:
    """Upload what a folder of this machine holds and the commit before does not.

    Parameters
    ----------
    before
        Path → file of the commit before.
    token
        Of the claim.

    Returns
    -------
    The object that lists the files, and the files; None if they are those of the commit before.
    """
    digests = {path: _sha256(file) for path, file in local_files(source).items()}
    known = {_digest_of(file.name): file.name for file in before.values()}
    new = {digest: source / path for path, digest in digests.items() if digest not in known}
    known |= {digest: f"{digest}.{token}" for digest in new}
    files = {
        path: CommittedFile(known[digest], (source / path).stat().st_size) for path, digest in digests.items()
    }
    if files == before:
        return None
    folder.send_all({f"{_OBJECTS}/{known[digest]}": file for digest, file in new.items()})
    content = json.dumps({path: astuple(file) for path, file in files.items()}).encode()
    commit = f"{hashlib.sha256(content).hexdigest()}.{token}"
    with folder.writing(f"{_OBJECTS}/{commit}") as temporary:
        temporary.write_bytes(content)
    folder.drop_copy(f"{_OBJECTS}/{commit}")
    return commit, files


def objects_outside(folder: RemoteFolder, commit: str, files: Mapping[str, CommittedFile]) -> list[str]:
    """Objects that a commit does not need: of earlier commits, and of writers that died while they uploaded."""
    needed = {commit, *(file.name for file in files.values())}
    return [f"{_OBJECTS}/{name}" for name in folder.names(_OBJECTS) if name not in needed]


def local_files(root: Path) -> dict[str, Path]:
    """Path below a folder → file, in order, without locks and what is being written."""
    return {
        str(below): file
        for file in sorted(root.rglob("*"))
        if file.is_file()
        and (below := file.relative_to(root)).name != LOCK_FILE
        and not any(map(is_temporary, below.parts))
    }


def _digest_of(name: str) -> str:
    return name.partition(".")[0]


def _sha256(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
