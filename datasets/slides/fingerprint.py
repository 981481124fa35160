"""Which file is this? A cheap fingerprint for keys, a full SHA-256 for the record."""

from __future__ import annotations

import hashlib
from pathlib import Path

from equipoise.datasets.slides.problems import SlideProblem

_PART = 64 * 1024


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
    for name, file in _members(Path(path)):
        try:
            size = file.stat().st_size
            with file.open("rb") as stream:
                head = stream.read(_PART)
                stream.seek(max(0, size - _PART))
                tail = stream.read(_PART)
        except OSError as error:
            raise SlideProblem("unreadable", str(error), where=str(file)) from error
        digest.update(f"{name}\0{size}\0".encode())
        digest.update(head)
        digest.update(tail)
    return digest.hexdigest()[:32]


def sha256(path: str | Path) -> str:
    """SHA-256 of the file; of a folder, of the digests of its files in the order of their names.

    Raises
    ------
    SlideProblem
        ``missing`` or ``unreadable``.
    """
    digests = []
    for name, file in _members(Path(path)):
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
        return sum(file.stat().st_size for _, file in _members(Path(path)))
    except (SlideProblem, OSError):
        return 0


def _members(path: Path) -> list[tuple[str, Path]]:
    """(name within the slide, file): one unnamed file, or the files of a DICOM or MRXS companion folder."""
    if path.is_dir():
        return [(file.name, file) for file in sorted(path.iterdir()) if file.is_file()]
    if not path.exists():
        raise SlideProblem("missing", "no such file", where=str(path))
    companions = path.with_suffix("")
    if path.suffix.lower() == ".mrxs" and companions.is_dir():
        return [("", path), *((file.name, file) for file in sorted(companions.iterdir()) if file.is_file())]
    return [("", path)]
