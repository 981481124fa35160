"""Identity of a slide file: a cheap fingerprint for keys and a full SHA-256 for the record.

Both are the same for a file and its copy at an address: a slide that moves to object storage keeps its features.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from equipoise.datasets.remote.addresses import is_remote
from equipoise.datasets.remote.slide_files import RemoteFile, acquire_slide, call_file_system, remote_files
from equipoise.datasets.slides.dicom import is_slide_part
from equipoise.datasets.slides.problems import SlideProblem

_PART = 64 * 1024

#: Bytes that tell a DICOM file.
_HEAD = 512


class _Member(NamedTuple):
    """A file of a slide: name within it (empty for one file), size, and a function of start and length."""

    name: str
    size: int
    read: Callable[[int, int], bytes]


def fingerprint(path: str | Path) -> str:
    """32 hexadecimal digits from size, first and last 64 KiB of every file that belongs to the slide.

    Changes when a slide is replaced, truncated or rescanned and stays when it is moved or renamed; reading it
    costs the same for 1 MB and 10 GB. A corruption in the middle of a file goes unnoticed: that is what
    :func:`sha256` in the store's index is for.

    Raises
    ------
    SlideProblem
        ``missing`` or ``unreadable``.
    """
    digest = hashlib.sha256()
    members = _members(path)
    heads = [member.read(0, _PART) for member in members]
    for at in _of_slide([member.name for member in members], heads):
        member, head = members[at], heads[at]
        digest.update(f"{member.name}\0{member.size}\0".encode())
        digest.update(head)
        digest.update(member.read(max(0, member.size - _PART), _PART))
    return digest.hexdigest()[:32]


def _of_slide(names: list[str], heads: list[bytes]) -> list[int]:
    """Which files belong to a slide: of a DICOM folder its images, as notes and annotations come and go; else all.

    ``names`` are those within the slide, ``heads`` how the files begin.
    """
    everything = list(range(len(names)))
    images = [at for at in everything if is_slide_part(heads[at])] if all(names) else []
    return images or everything


def sha256(path: str | Path) -> str:
    """SHA-256 of the file; of a folder, of the digests of its files in the order of their names.

    Of a slide at an address, the copy on this machine is read.

    Raises
    ------
    SlideProblem
        ``missing`` or ``unreadable``.
    """
    if isinstance(path, Path) or not is_remote(path):
        return _sha256(Path(path))
    copy = acquire_slide(path)
    try:
        return _sha256(copy.path)
    finally:
        copy.release()


def _sha256(path: Path) -> str:
    digests = []
    files = _local_files(path)
    heads = [_local(name, file).read(0, _HEAD) for name, file in files]
    for at in _of_slide([name for name, _ in files], heads):
        name, file = files[at]
        try:
            with file.open("rb") as stream:
                digests.append((name, hashlib.file_digest(stream, "sha256").hexdigest()))
        except OSError as error:
            raise SlideProblem("unreadable", str(error), where=str(file)) from error
    if len(digests) == 1:
        return digests[0][1]
    return hashlib.sha256("".join(f"{name}\0{value}\n" for name, value in digests).encode()).hexdigest()


def slide_bytes(path: str | Path) -> int:
    """Size of the slide in bytes, 0 if it is not there: large slides are started first."""
    try:
        return sum(member.size for member in _members(path))
    except SlideProblem:
        return 0


def _members(path: str | Path) -> list[_Member]:
    if isinstance(path, str) and is_remote(path):
        fs, files = remote_files(path)

        def remote(file: RemoteFile, start: int, length: int) -> bytes:
            return call_file_system(path, partial(file.read, fs, start, length))

        return [_Member(file.name, file.size, partial(remote, file)) for file in files]
    return [_local(name, file) for name, file in _local_files(Path(path))]


def _local(name: str, file: Path) -> _Member:
    def read(start: int, length: int) -> bytes:
        try:
            with file.open("rb") as stream:
                stream.seek(start)
                return stream.read(length)
        except OSError as error:
            raise SlideProblem("unreadable", str(error), where=str(file)) from error

    try:
        return _Member(name, file.stat().st_size, read)
    except OSError as error:
        raise SlideProblem("unreadable", str(error), where=str(file)) from error


def _local_files(path: Path) -> list[tuple[str, Path]]:
    """(name within the slide, file): one unnamed file, or the files of a DICOM or MRXS companion folder."""
    if path.is_dir():
        return [(file.name, file) for file in sorted(path.iterdir()) if file.is_file()]
    if not path.exists():
        raise SlideProblem("missing", "no such file", where=str(path))
    if not path.is_file():
        raise SlideProblem("unreadable", "it is neither a file nor a folder", where=str(path))
    companions = path.with_suffix("")
    if path.suffix.lower() == ".mrxs" and companions.is_dir():
        return [("", path), *((file.name, file) for file in sorted(companions.iterdir()) if file.is_file())]
    return [("", path)]
