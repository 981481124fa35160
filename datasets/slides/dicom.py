"""DICOM slides by content: which files of a folder are the slide, whatever they are called.

A folder from an archive holds the levels of a slide as files of any name, and often more: annotations, segmentations,
a label, an index of the medium, notes, a second slide. OpenSlide takes one file and collects the levels of its series
beside it; what has to be found is that one file, and that there is one series only.

Headers are read by pydicom up to the pixels; a header that cannot be read is a damaged file, never an error.
"""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equipoise.datasets.slides.problems import SlideProblem

#: Four letters behind the preamble of 128 bytes (PS3.10, 7.1).
_MAGIC, _MAGIC_AT = b"DICM", 128

_WHOLE_SLIDE = "1.2.840.10008.5.1.4.1.1.77.1.6"
_KINDS = {
    "1.2.840.10008.5.1.4.1.1.91.1": "annotations",
    "1.2.840.10008.5.1.4.1.1.66.4": "segmentation",
    "1.2.840.10008.5.1.4.1.1.66.7": "segmentation",
    "1.2.840.10008.1.3.10": "index of a medium",
}

_DAMAGED = "damaged"
_PICTURES = ("label", "overview", "thumbnail")

#: What helps where pixels have a format that is not read.
PIXEL_FIX = "convert it to 8-bit RGB, or leave it out"

#: Deflated headers are not read: a few bytes can become any number of them.
_DEFLATED = "1.2.840.10008.1.2.1.99"

_TAGS = [
    *("SOPClassUID", "SeriesInstanceUID", "SeriesDescription", "ContainerIdentifier", "ImageType"),
    *("BitsStored", "SamplesPerPixel", "TotalPixelMatrixColumns", "TotalPixelMatrixRows"),
]


@dataclass(frozen=True)
class _Header:
    """What a file says; ``kind`` is empty for a level of a slide, else what the file is."""

    file: Path
    kind: str
    series: str = ""
    name: str = ""
    width: int = 0
    height: int = 0
    bits: int = 8
    samples: int = 3


def is_dicom(head: bytes) -> bool:
    """Whether the first bytes of a file are those of a DICOM file."""
    return head[_MAGIC_AT : _MAGIC_AT + len(_MAGIC)] == _MAGIC


def is_slide_part(head: bytes) -> bool:
    """Whether the first bytes of a file are those of a DICOM file with an image of a whole slide, labels included.

    Read from the first elements of the file's meta information (PS3.10, 7.1: Media Storage SOP Class UID).
    """
    at = head.find(b"\x02\x00\x02\x00UI", _MAGIC_AT, 512)
    if not is_dicom(head) or at < 0:
        return False
    length = int.from_bytes(head[at + 6 : at + 8], "little")
    return head[at + 8 : at + 8 + length].rstrip(b"\0 ") == _WHOLE_SLIDE.encode()


def is_dicom_file(file: Path) -> bool:
    """As :func:`is_dicom`, of a file; ``False`` if it cannot be read."""
    try:
        with file.open("rb") as stream:
            return is_dicom(stream.read(_MAGIC_AT + len(_MAGIC)))
    except OSError:
        return False


def dicom_slide(folder: Path) -> tuple[Path, list[str]]:
    """The file of a folder that OpenSlide opens, the largest level of the only slide, and remarks on damaged files.

    Raises
    ------
    SlideProblem
        ``not_a_slide`` if the folder holds no slide or several, ``unreadable`` if the pixels have a format that is
        not read; says what there is.
    """
    headers = [_header(file) for file in sorted(folder.iterdir()) if file.is_file() and is_dicom_file(file)]
    levels = [header for header in headers if not header.kind]
    if not levels:
        raise _no_slide(folder, headers)
    series: dict[str, _Header] = {}
    for header in levels:
        known = series.setdefault(header.series, header)
        if header.width * header.height > known.width * known.height:
            series[header.series] = header
    if len(series) > 1:
        listed = "; ".join(
            f"{each.file.name}: {each.name or 'without a name'}, {each.width} x {each.height} px"
            for each in list(series.values())[:5]
        )
        raise SlideProblem(
            "not_a_slide",
            f"the folder holds {len(series)} slides (DICOM series): {listed}{' …' if len(series) > 5 else ''}",
            where=str(folder),
            fix="name one of these files in the slides table, or give each series its own folder",
        )
    largest = next(iter(series.values()))
    _require_pixels(largest)
    damaged = [header.file.name for header in headers if header.kind == _DAMAGED]
    return largest.file, [f"a DICOM file of its folder is damaged: {name}" for name in damaged[:3]]


def require_dicom_level(file: Path) -> None:
    """Refuse a DICOM file that is no level of a slide, or whose pixels have a format that is not read.

    Raises
    ------
    SlideProblem
        ``not_a_slide`` or ``unreadable``.
    """
    header = _header(file)
    if header.kind == _DAMAGED:
        raise SlideProblem("unreadable", "the DICOM header is damaged", where=str(file))
    if header.kind not in ("", *_PICTURES):  # OpenSlide finds the levels beside a label or thumbnail
        raise SlideProblem(
            "not_a_slide", f"a DICOM file, but no whole-slide image: {header.kind}", where=str(file)
        )
    if not header.kind:
        _require_pixels(header)


def _header(file: Path) -> _Header:
    import pydicom

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about values of other tags
            meta = pydicom.filereader.read_file_meta_info(file)
            if str(meta.get("TransferSyntaxUID", "")) == _DEFLATED:
                return _Header(file, "deflated, which is not read")
            content = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=_TAGS)
            return _described(file, content)
    except Exception:  # whatever pydicom makes of damaged bytes
        return _Header(file, _DAMAGED)


def _described(file: Path, content: Any) -> _Header:
    sop_class = str(content.get("SOPClassUID", ""))
    if not sop_class:
        return _Header(file, _DAMAGED)
    if sop_class != _WHOLE_SLIDE:
        return _Header(file, _KINDS.get(sop_class, "another kind of DICOM object"))
    image_type = [str(value).upper() for value in content.get("ImageType", [])]
    picture = next((name for name in _PICTURES if name.upper() in image_type), "")
    name = content.get("ContainerIdentifier") or content.get("SeriesDescription") or ""
    printable = "".join(letter for letter in str(name) if letter.isprintable())[:80]
    return _Header(
        file,
        picture,
        str(content.get("SeriesInstanceUID", "")),
        printable,
        int(content.get("TotalPixelMatrixColumns") or 0),
        int(content.get("TotalPixelMatrixRows") or 0),
        int(content.get("BitsStored") or 0),
        int(content.get("SamplesPerPixel") or 0),
    )


def _require_pixels(header: _Header) -> None:
    if header.bits == 8 and header.samples == 3:
        return
    channels = "grey levels" if header.samples == 1 else f"{header.samples} samples"
    raise SlideProblem(
        "unreadable",
        f"its pixels have {channels} of {header.bits} bits; slides in colour are read: 3 samples of 8 bits",
        where=str(header.file),
        fix=PIXEL_FIX,
    )


def _no_slide(folder: Path, headers: list[_Header]) -> SlideProblem:
    counts = Counter(header.kind for header in headers)
    held = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
    below = next((each for each in sorted(folder.rglob("*")) if each.is_file() and is_dicom_file(each)), None)
    if not headers and below is not None:
        return SlideProblem(
            "not_a_slide",
            f"the folder holds no DICOM file, one is in {below.parent.relative_to(folder)} below",
            where=str(folder),
            fix="name the folder with the levels of the slide in the slides table",
        )
    return SlideProblem(
        "not_a_slide",
        f"the folder holds no level of a DICOM slide, but {held}"
        if held
        else "the folder holds no DICOM file",
        where=str(folder),
    )
