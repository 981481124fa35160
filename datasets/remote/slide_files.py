"""Slides at addresses: the files of a slide, how its versions are told apart, and its copy on this machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from equipoise.datasets.errors import DataError
from equipoise.datasets.remote.addresses import connect
from equipoise.datasets.remote.cache import CacheLease, NodeCache, cache_limit, cache_root
from equipoise.datasets.slides.problems import SlideProblem

_Result = TypeVar("_Result")

#: Fields of file systems that change with the content of a file.
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
    relative_path
        Path of its copy in the slide's folder.
    path
        In its file system.
    size
        Bytes.
    version
        Changes with the content.
    """

    name: str
    relative_path: str
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
            return [_file(entry, f"{name}/{_base(entry)}", _base(entry)) for entry in _list_files(fs, path)]
        files = [_file(info, name, "")]
        if name.lower().endswith(".mrxs"):
            stem = path[: -len(".mrxs")]
            if fs.isdir(stem):
                files += [
                    _file(entry, f"{name[: -len('.mrxs')]}/{_base(entry)}", _base(entry))
                    for entry in _list_files(fs, stem)
                ]
        return files

    return fs, call_file_system(address, look)


def acquire_slide(path: str) -> CacheLease:
    """The copy of a slide at an address on this machine, made if needed; it stays until it is released.

    Raises
    ------
    SlideProblem
        ``missing`` or ``unreadable``.
    DataError
        If the protocol has no driver here.
    """
    fs, files = remote_files(path)
    first = PurePosixPath(files[0].relative_path).parts[0] if files else ""
    if not files:
        raise SlideProblem("not_a_slide", "the folder holds no file", where=path)
    files += _siblings(fs, files, path)

    def fill(folder: Path) -> None:
        for file in files:
            target = folder / file.relative_path
            target.parent.mkdir(parents=True, exist_ok=True)
            call_file_system(path, partial(fs.get_file, file.path, str(target)))
            if target.stat().st_size != file.size:
                what = f"the copy of {file.relative_path} has {target.stat().st_size} bytes instead of {file.size}"
                raise SlideProblem("unreadable", what, where=path, fix="extract again with features.retry")

    key = hashlib.sha256(
        "\0".join([path, *(f"{file.relative_path}\0{file.size}\0{file.version}" for file in files)]).encode()
    ).hexdigest()[:24]
    cache = NodeCache(cache_root() / "slides", cache_limit())
    try:
        lease = cache.acquire(key, sum(file.size for file in files), fill)
    except OSError as error:
        raise SlideProblem(
            "unreadable", f"no copy could be made on this machine: {error}", where=path
        ) from error
    return CacheLease(lease.path / first, lease._lock)


def _siblings(fs: Any, files: list[RemoteFile], address: str) -> list[RemoteFile]:
    """The other levels of a DICOM slide of which one file was named: OpenSlide looks for them beside it."""
    if len(files) > 1 or not files[0].relative_path.lower().endswith(".dcm") or "/" in files[0].relative_path:
        return []
    parent = str(PurePosixPath(files[0].path).parent)
    listed = call_file_system(address, lambda: _list_files(fs, parent))
    return [
        _file(entry, _base(entry), _base(entry))
        for entry in listed
        if _base(entry).lower().endswith(".dcm") and _base(entry) != files[0].relative_path
    ]


def _list_files(fs: Any, path: str) -> list[dict[str, Any]]:
    """Files of a folder in the order of their names."""
    entries: Iterable[dict[str, Any]] = fs.ls(path, detail=True)
    return sorted((entry for entry in entries if entry["type"] == "file" and _base(entry)), key=_base)


def _base(info: dict[str, Any]) -> str:
    return str(info["name"]).rsplit("/", 1)[-1]


def _file(info: dict[str, Any], relative_path: str, name: str) -> RemoteFile:
    version = json.dumps({key: info[key] for key in _VERSION if key in info}, default=str)
    return RemoteFile(name, relative_path, str(info["name"]), int(info["size"] or 0), version)


def call_file_system(address: str, request: Callable[[], _Result]) -> _Result:
    """Call a file system; what goes wrong becomes a status of the slide."""
    try:
        return request()
    except (DataError, KeyboardInterrupt):
        raise
    except FileNotFoundError as error:
        raise SlideProblem("missing", "no such file", where=address) from error
    except Exception as error:  # drivers have exceptions of their own
        raise SlideProblem("unreadable", f"{type(error).__name__}: {error}", where=address) from error
