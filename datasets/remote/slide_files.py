"""Slides at addresses: which files make one, how it is told from its later versions, and its copy on this machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from equipoise.datasets.errors import DataError
from equipoise.datasets.remote.addresses import connect, is_remote
from equipoise.datasets.remote.cache import Loan, NodeCache, cache_limit, cache_root
from equipoise.datasets.slides.problems import SlideProblem

_Answer = TypeVar("_Answer")

#: What file systems say of a file that changes with its content, under all their names.
_VERSION = (
    *("ETag", "etag", "md5Hash", "crc32c", "CRC", "checksum", "generation"),
    *("LastModified", "last_modified", "updated", "mtime", "modified", "created", "ino"),
)


@dataclass(frozen=True)
class RemoteFile:
    """One file of a slide.

    Attributes
    ----------
    name
        Within the slide, empty for the file that gives it its name.
    place
        Where its copy stands in the slide's folder.
    path
        In its file system.
    size
        Bytes.
    version
        Changes with the content.
    """

    name: str
    place: str
    path: str
    size: int
    version: str

    def read(self, fs: Any, start: int, length: int) -> bytes:
        """Some bytes; fewer at the end of the file."""
        return fs.cat_file(self.path, start=start, end=min(start + length, self.size)) if self.size else b""


def remote_files(address: str) -> tuple[Any, list[RemoteFile]]:
    """The file system of a slide, and its files: one, or those of a DICOM folder, or of MRXS with its folder.

    Raises
    ------
    SlideProblem
        ``missing`` or ``unreadable``.
    DataError
        If the protocol has no driver here.
    """
    fs, path = connect(address)

    def look() -> list[RemoteFile]:
        info = fs.info(path)
        name = PurePosixPath(path).name
        if info["type"] == "directory":
            return [_file(one, f"{name}/{_base(one)}", _base(one)) for one in _listed(fs, path)]
        found = [_file(info, name, "")]
        if name.lower().endswith(".mrxs"):
            stem = path[: -len(".mrxs")]
            if fs.isdir(stem):
                found += [
                    _file(one, f"{name[: -len('.mrxs')]}/{_base(one)}", _base(one))
                    for one in _listed(fs, stem)
                ]
        return found

    return fs, asked(address, look)


def borrow_slide(path: str | Path) -> Loan:
    """The slide itself, or its copy on this machine, made if need be; stays until released.

    Raises
    ------
    SlideProblem
        ``missing`` or ``unreadable``, for addresses.
    DataError
        If the protocol has no driver here.
    """
    if isinstance(path, Path) or not is_remote(path):
        return Loan(Path(path))
    fs, files = remote_files(path)
    named = PurePosixPath(files[0].place).parts[0] if files else ""
    if not files:
        raise SlideProblem("not_a_slide", "the folder holds no file", where=path)
    files += _siblings(fs, files, path)

    def fill(folder: Path) -> None:
        for file in files:
            target = folder / file.place
            target.parent.mkdir(parents=True, exist_ok=True)
            asked(path, partial(fs.get_file, file.path, str(target)))
            if target.stat().st_size != file.size:
                what = f"the copy of {file.place} has {target.stat().st_size} bytes instead of {file.size}"
                raise SlideProblem("unreadable", what, where=path, fix="extract again with features.retry")

    key = hashlib.sha256(
        "\0".join([path, *(f"{file.place}\0{file.size}\0{file.version}" for file in files)]).encode()
    ).hexdigest()[:24]
    cache = NodeCache(cache_root() / "slides", cache_limit())
    try:
        loan = cache.borrow(key, sum(file.size for file in files), fill)
    except OSError as error:
        raise SlideProblem(
            "unreadable", f"no copy could be made on this machine: {error}", where=path
        ) from error
    return Loan(loan.path / named, loan._lock)


def _siblings(fs: Any, files: list[RemoteFile], address: str) -> list[RemoteFile]:
    """The other levels of a DICOM slide of which one file was named: OpenSlide looks for them beside it."""
    if len(files) > 1 or not files[0].place.lower().endswith(".dcm") or "/" in files[0].place:
        return []
    parent = str(PurePosixPath(files[0].path).parent)
    listed = asked(address, lambda: _listed(fs, parent))
    return [
        _file(one, _base(one), _base(one))
        for one in listed
        if _base(one).lower().endswith(".dcm") and _base(one) != files[0].place
    ]


def _listed(fs: Any, path: str) -> list[dict[str, Any]]:
    """Files of a folder in the order of their names."""
    found: Iterable[dict[str, Any]] = fs.ls(path, detail=True)
    return sorted((one for one in found if one["type"] == "file" and _base(one)), key=_base)


def _base(info: dict[str, Any]) -> str:
    return str(info["name"]).rsplit("/", 1)[-1]


def _file(info: dict[str, Any], place: str, name: str) -> RemoteFile:
    version = json.dumps({key: info[key] for key in _VERSION if key in info}, default=str)
    return RemoteFile(name, place, str(info["name"]), int(info["size"] or 0), version)


def asked(address: str, question: Callable[[], _Answer]) -> _Answer:
    """Ask a file system; what it answers badly becomes a status of the slide."""
    try:
        return question()
    except (DataError, KeyboardInterrupt):
        raise
    except FileNotFoundError as error:
        raise SlideProblem("missing", "no such file", where=address) from error
    except Exception as error:  # drivers have exceptions of their own
        raise SlideProblem("unreadable", f"{type(error).__name__}: {error}", where=address) from error
