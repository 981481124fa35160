"""A folder whose every file is listed with its size and SHA-256, so that a copy is taken whole or not at all.

``MANIFEST.json`` is the list. It is written in one way only (sorted keys, one space of indentation), so that a changed
byte in the list itself is noticed, too. Its own SHA-256 identifies the folder: whoever got that number on another way
than the folder knows that nobody changed both.

Nothing is believed before it is checked: names stay inside the folder, links are refused, sizes are bounded and
compared before a byte is read.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equipoise.platform.errors import DataError
from equipoise.platform.training.fold_files import changed_file, file_hashes

MANIFEST = "MANIFEST.json"
#: Version of the list.
LAYOUT = "equipoise-manifest/1"
#: Largest list, most files, largest file by ending and of all others, in bytes.
MAX_MANIFEST, MAX_FILES = 1 << 20, 4096
MAX_BYTES: Mapping[str, int] = {".safetensors": 16 << 30, ".onnx": 2 << 30, ".json": 256 << 20}
MAX_OTHER = 16 << 20
#: Parts of a listed name: nothing that a shell or a file system reads in its own way.
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_FIX = "copy the whole folder again from where it was exported"


@dataclass(frozen=True)
class Sealed:
    """A folder that is what its list says.

    Attributes
    ----------
    path
        The folder.
    sha256
        Of the list, which holds those of all other files.
    files
        Names of the other files, relative, with ``/``.
    """

    path: Path
    sha256: str
    files: tuple[str, ...]


def seal(folder: Path) -> str:
    """Write the list of a finished folder; returns its SHA-256."""
    names = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()} - {MANIFEST}
    listed: dict[str, dict[str, Any]] = {
        name: {"bytes": (folder / name).stat().st_size, "sha256": digest}
        for name, digest in file_hashes(folder, names).items()
    }
    for name, entry in listed.items():
        _require_plain(name, folder)
        _require_size(name, entry["bytes"], folder)
    text = _text(listed)
    (folder / MANIFEST).write_bytes(text)
    return hashlib.sha256(text).hexdigest()


def verify(folder: Path, *, sha256: str | None = None) -> Sealed:
    """Compare a folder with its list.

    Parameters
    ----------
    folder
        As :func:`seal` left it.
    sha256
        What it must be, if it is known from elsewhere.

    Raises
    ------
    DataError
        For the first thing that is not as listed: a file that is missing, is not listed, is a link, leaves the folder,
        or has another size or content; or a list that is damaged or of another version.
    """
    if not folder.is_dir():
        raise DataError("there is no such folder", where=str(folder), fix="name the folder of an export")
    file = folder / MANIFEST
    if file.is_symlink() or not file.is_file():
        raise DataError(
            f"no exported model: {MANIFEST} is missing",
            where=str(folder),
            fix=f"name the folder that `equipoise export` wrote; if it is this one, {_FIX}",
        )
    if file.stat().st_size > MAX_MANIFEST:
        raise DataError(f"{MANIFEST} is larger than {MAX_MANIFEST} bytes", where=str(folder), fix=_FIX)
    text = file.read_bytes()
    listed = _listed(text, folder)
    found = hashlib.sha256(text).hexdigest()
    if sha256 is not None and found != sha256.strip().lower():
        raise DataError(
            f"the SHA-256 of {MANIFEST} is {found}, not the expected {sha256}",
            where=str(folder),
            fix="this is another export, or somebody changed it: ask where it was exported",
        )
    _require_same_names(folder, set(listed))
    for name, entry in listed.items():
        size = (folder / name).stat().st_size
        if size != entry["bytes"]:
            raise DataError(
                f"{name} has {size} bytes, {entry['bytes']} are listed", where=str(folder), fix=_FIX
            )
    if changed := changed_file(folder, {name: entry["sha256"] for name, entry in listed.items()}):
        raise DataError(changed, where=str(folder), fix=_FIX)
    return Sealed(folder, found, tuple(listed))


def _text(files: Mapping[str, Any]) -> bytes:
    return (json.dumps({"format": LAYOUT, "files": files}, indent=1, sort_keys=True) + "\n").encode()


def _listed(text: bytes, folder: Path) -> dict[str, dict[str, Any]]:
    """The entries of a list, each with a name inside the folder, an allowed size and a digest."""
    try:
        content = json.loads(text.decode("utf-8"))
        version, files = content["format"], content["files"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(f"{MANIFEST} is damaged", where=str(folder), fix=_FIX) from error
    if version != LAYOUT:
        raise DataError(
            f"{MANIFEST} has the format {version!r}, this release reads {LAYOUT}",
            where=str(folder),
            fix="import it with the release that exported it",
        )
    if not isinstance(files, dict) or not files or len(files) > MAX_FILES or _text(files) != text:
        raise DataError(f"{MANIFEST} is not what was written", where=str(folder), fix=_FIX)
    for name, entry in files.items():
        _require_plain(name, folder)
        whole = isinstance(entry, dict) and entry.keys() == {"bytes", "sha256"}
        if (
            not whole
            or type(entry["bytes"]) is not int
            or not re.fullmatch("[0-9a-f]{64}", str(entry["sha256"]))
        ):
            raise DataError(f"{MANIFEST} describes {name} in an unknown way", where=str(folder), fix=_FIX)
        _require_size(name, entry["bytes"], folder)
    return files


def _require_plain(name: str, folder: Path) -> None:
    if len(name) > 512 or not all(_PART.fullmatch(part) for part in name.split("/")):
        raise DataError(
            f"{name[:80]!r} cannot be the name of an exported file: it may lie outside the folder",
            where=f"{folder}/{MANIFEST}",
            fix="do not use this folder; ask where it was exported",
        )


def _require_size(name: str, size: int, folder: Path) -> None:
    most = MAX_BYTES.get(Path(name).suffix, MAX_OTHER)
    if not 0 <= size <= most:
        raise DataError(
            f"{name} has {size} bytes, more than the {most} that an exported file of this kind may have",
            where=str(folder),
            fix="do not use this folder; ask where it was exported",
        )


def _require_same_names(folder: Path, listed: set[str]) -> None:
    """Exactly the listed files and the list, all of them regular; folders hold nothing else."""
    found: set[str] = set()
    for root, folders, names in os.walk(folder):
        for name in [*folders, *names]:
            file = Path(root) / name
            relative, mode = file.relative_to(folder).as_posix(), file.lstat().st_mode
            if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
                raise DataError(
                    f"{relative} is a link or no regular file", where=str(folder), fix="copy files, not links"
                )
        found |= {(Path(root) / name).relative_to(folder).as_posix() for name in names}
    found.discard(MANIFEST)
    if missing := sorted(listed - found):
        raise DataError(f"{missing[0]} is missing", where=str(folder), fix=_FIX)
    if extra := sorted(found - listed):
        raise DataError(
            f"{extra[0]} is not part of the export ({len(extra)} such files)"
            if len(extra) > 1
            else f"{extra[0]} is not part of the export",
            where=str(folder),
            fix="remove it: an exported folder holds nothing but what was exported",
        )
