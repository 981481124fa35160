"""Opening a file as a slide: which file of a folder, and what is wrong when OpenSlide will not have it."""

from __future__ import annotations

from pathlib import Path

import openslide

from equipoise.datasets.slides.problems import SlideProblem


def slide_file(path: Path) -> Path:
    """The file that OpenSlide opens; the first ``.dcm`` of a DICOM folder."""
    if not path.is_dir():
        return path
    files = sorted(path.glob("*.dcm"))
    if not files:
        raise SlideProblem("not_a_slide", "the folder holds no .dcm file", where=str(path))
    return files[0]


def open_handle(file: Path) -> openslide.OpenSlide:
    """A handle of OpenSlide; raises :class:`SlideProblem` with what is wrong with the file."""
    if not file.exists():
        raise SlideProblem("missing", "no such file", where=str(file))
    try:
        return openslide.OpenSlide(str(file))
    except openslide.OpenSlideUnsupportedFormatError as error:
        status, reason = _why_unsupported(file)
        raise SlideProblem(status, reason, where=str(file)) from error
    except openslide.OpenSlideError as error:
        raise SlideProblem("unreadable", str(error), where=str(file)) from error


def _why_unsupported(file: Path) -> tuple[str, str]:
    """Tell a truncated TIFF from a plain image and from other files: OpenSlide says the same of all three."""
    try:
        size = file.stat().st_size
        with file.open("rb") as stream:
            head = stream.read(16)
    except OSError as error:
        return "unreadable", str(error)
    if size == 0:
        return "unreadable", "the file is empty"
    order = {b"II": "little", b"MM": "big"}.get(head[:2])
    if order is None or len(head) < 16:
        return "not_a_slide", "OpenSlide does not know this format"
    version = int.from_bytes(head[2:4], order)  # type: ignore[arg-type]
    if version not in (42, 43):
        return "not_a_slide", "OpenSlide does not know this format"
    at = head[4:8] if version == 42 else head[8:16]
    directory = int.from_bytes(at, order)  # type: ignore[arg-type]
    if directory >= size:
        return (
            "unreadable",
            f"truncated: the TIFF directory should be at byte {directory}, the file ends at {size}",
        )
    return (
        "not_a_slide",
        "a TIFF, but none of the whole-slide layouts that OpenSlide knows (tiled, with levels)",
    )
