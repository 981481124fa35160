"""A TIFF writer for slides: tiles are streamed to disk as they are made, directories follow behind them.

Little endian, classic or BigTIFF, tiles are complete JPEG streams (TIFF 6.0; TIFF Technical Note 2 without
shared tables). Independent of vendors: callers pass the tags of a directory.
"""

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

from equipoise.datasets.errors import DataError

#: Largest classic TIFF: offsets are 32 bit, and the directories behind the data need room.
CLASSIC_LIMIT = 2**32 - 2**24

ASCII, SHORT, LONG, RATIONAL, LONG8 = 2, 3, 4, 5, 16
_FORMAT = {SHORT: "H", LONG: "I", LONG8: "Q"}


@dataclass(frozen=True, slots=True)
class Tag:
    """One directory entry; a RATIONAL is a flat sequence of numerators and denominators, ASCII a string."""

    code: int
    type: int
    value: str | Sequence[int]

    def encode(self) -> tuple[int, bytes]:
        """Count and bytes of the value."""
        if self.type == ASCII:
            text = str(self.value).encode("ascii") + b"\0"
            return len(text), text
        numbers = [int(v) for v in self.value]
        if self.type == RATIONAL:
            return len(numbers) // 2, struct.pack(f"<{len(numbers)}I", *numbers)
        return len(numbers), struct.pack(f"<{len(numbers)}{_FORMAT[self.type]}", *numbers)


@dataclass(slots=True)
class TiledImage:
    """Places of the tiles of one pyramid level, row by row."""

    width: int
    height: int
    tile: int
    offsets: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)


class TiffWriter:
    """Writes image data first and directories last; the file stays readable front to back in one pass.

    Parameters
    ----------
    file
        Seekable, opened for writing, at position 0.
    big
        BigTIFF (64-bit offsets).
    """

    def __init__(self, file: BinaryIO, *, big: bool = False) -> None:
        self._file = file
        self._big = big
        self._link = 8 if big else 4  # where the offset of the next directory goes
        file.write(struct.pack("<2sHHHQ", b"II", 43, 8, 0, 0) if big else struct.pack("<2sHI", b"II", 42, 0))

    @property
    def offset_type(self) -> int:
        """Type of offsets and byte counts in this file."""
        return LONG8 if self._big else LONG

    def data(self, payload: bytes) -> int:
        """Append image data; returns its offset.

        Raises
        ------
        DataError
            Before a classic file outgrows 32-bit offsets.
        """
        offset = self._even()
        if not self._big and offset + len(payload) > CLASSIC_LIMIT:
            raise DataError(
                f"the slide passes {CLASSIC_LIMIT} bytes, more than a classic TIFF can address",
                fix="write it as BigTIFF or choose a smaller side",
            )
        self._file.write(payload)
        return offset

    def tile(self, image: TiledImage, jpeg: bytes) -> None:
        """Append the next tile of a level."""
        image.offsets.append(self.data(jpeg))
        image.counts.append(len(jpeg))

    def directory(self, tags: Iterable[Tag]) -> None:
        """Append a directory and link it from the one before."""
        word, count_word, entry_size = ("Q", "Q", 20) if self._big else ("I", "H", 12)
        inline = struct.calcsize(word)
        ordered = sorted(tags, key=lambda tag: tag.code)
        start = self._even()
        header = struct.calcsize(f"<{count_word}")
        outside = start + header + entry_size * len(ordered) + inline
        entries, values = [], b""
        for tag in ordered:
            count, payload = tag.encode()
            entry = struct.pack(f"<HH{word}", tag.code, tag.type, count)
            if len(payload) <= inline:
                entries.append(entry + payload.ljust(inline, b"\0"))
            else:
                entries.append(entry + struct.pack(f"<{word}", outside + len(values)))
                values += payload + b"\0" * (len(payload) % 2)
        body = struct.pack(f"<{count_word}", len(ordered)) + b"".join(entries)
        self._file.write(body + struct.pack(f"<{word}", 0) + values)
        self._file.seek(self._link)
        self._file.write(struct.pack(f"<{word}", start))
        self._file.seek(0, 2)
        self._link = start + len(body)

    def _even(self) -> int:
        offset = self._file.tell()
        if offset % 2:
            self._file.write(b"\0")
            offset += 1
        return offset


def picture_tags(width: int, height: int, *, subfile: int, description: str | None = None) -> list[Tag]:
    """Tags of any JPEG picture in YCbCr 4:2:0."""
    tags = [
        Tag(254, LONG, [subfile]),
        Tag(256, LONG, [width]),
        Tag(257, LONG, [height]),
        Tag(258, SHORT, [8, 8, 8]),
        Tag(259, SHORT, [7]),
        Tag(262, SHORT, [6]),
        Tag(277, SHORT, [3]),
        Tag(284, SHORT, [1]),
        Tag(530, SHORT, [2, 2]),
    ]
    return tags if description is None else [*tags, Tag(270, ASCII, description)]


def tile_tags(writer: TiffWriter, image: TiledImage) -> list[Tag]:
    """Where the tiles of a level are."""
    return [
        Tag(322, LONG, [image.tile]),
        Tag(323, LONG, [image.tile]),
        Tag(324, writer.offset_type, image.offsets),
        Tag(325, writer.offset_type, image.counts),
    ]


def strip_tags(writer: TiffWriter, jpeg: bytes, height: int) -> list[Tag]:
    """Append a whole picture as one strip and say where it is."""
    offset = writer.data(jpeg)
    return [
        Tag(273, writer.offset_type, [offset]),
        Tag(278, LONG, [height]),
        Tag(279, writer.offset_type, [len(jpeg)]),
    ]


def resolution_tags(pixels_per_cm: float) -> list[Tag]:
    """Resolution in pixels per centimetre (in whatever unit a vendor takes that to be)."""
    fraction = [round(pixels_per_cm * 10000), 10000]
    return [Tag(282, RATIONAL, fraction), Tag(283, RATIONAL, fraction), Tag(296, SHORT, [3])]
