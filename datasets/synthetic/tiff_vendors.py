"""Slide formats in TIFF form: tiles stream into one file, directories follow. Aperio, Philips, generic, Trestle."""

from html import escape
from pathlib import Path
from typing import ClassVar

import numpy as np

from equipoise.datasets.synthetic.containers import SlideInfo
from equipoise.datasets.synthetic.pictures import label_picture, macro_picture
from equipoise.datasets.synthetic.pyramid import LEVELS, STEP, TILE, encode_jpeg, level_sizes
from equipoise.datasets.synthetic.tiff import (
    ASCII,
    Tag,
    TiffWriter,
    TiledImage,
    picture_tags,
    resolution_tags,
    strip_tags,
    tile_tags,
)

_PICTURE_QUALITY = 80


class TiffContainer:
    """Base of the containers; a vendor says in :meth:`finish` which directories there are."""

    BIG: ClassVar[bool] = False

    def __init__(self, path: Path, info: SlideInfo) -> None:
        self.info = info
        self._file = path.open("wb")
        self._tiff = TiffWriter(self._file, big=self.BIG)
        self.levels = [TiledImage(w, h, TILE) for w, h in level_sizes(info.width, info.height)]

    def tile(self, level: int, jpeg: bytes) -> None:
        """Take the next tile of a level."""
        self._tiff.tile(self.levels[level], jpeg)

    def forget_tile(self, index: int) -> None:
        """Make a tile of the base level sparse: offset and size 0, as scanners do where they saw nothing."""
        self.levels[0].offsets[index] = self.levels[0].counts[index] = 0

    def finish(self, thumbnail: np.ndarray) -> None:
        """Write directories and pictures."""
        raise NotImplementedError

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _level(self, level: int, *extra: Tag, subfile: int = 0, description: str | None = None) -> None:
        """Directory of a pyramid level."""
        image = self.levels[level]
        tags = picture_tags(image.width, image.height, subfile=subfile, description=description)
        self._tiff.directory([*tags, *tile_tags(self._tiff, image), *extra])

    def _picture(self, rgbx: np.ndarray, *, subfile: int, description: str) -> None:
        """Directory of a picture in one strip."""
        height, width = rgbx.shape[:2]
        tags = picture_tags(width, height, subfile=subfile, description=description)
        self._tiff.directory([*tags, *strip_tags(self._tiff, encode_jpeg(rgbx, _PICTURE_QUALITY), height)])


_LIBRARY = "Aperio Image Library v12.0.5 SYNTHETIC"


class AperioWriter(TiffContainer):
    """Writes one ``.svs`` file: level 0, thumbnail, lower levels, label, macro, in the order that readers rely on.

    OpenSlide takes every tiled directory for a level and a stripped one at index 1 for the thumbnail; label and
    macro are told apart by NewSubfileType 1 and 9 (libopenslide 4.0.1), by the second line of the description
    elsewhere.
    """

    def finish(self, thumbnail: np.ndarray) -> None:
        """Write directories and pictures."""
        info = self.info
        label = label_picture(info.barcode, info.cohort)
        macro = macro_picture(thumbnail, label)
        base = f"{info.width}x{info.height}"
        small = f"{thumbnail.shape[1]}x{thumbnail.shape[0]}"
        self._describe(0, "")
        self._picture(
            thumbnail, subfile=0, description=f"{_LIBRARY}\n{base} -> {small} - {self._properties()}"
        )
        for level in range(1, LEVELS):
            self._describe(level, f" -> {self.levels[level].width}x{self.levels[level].height}")
        for picture, subfile, name in ((label, 1, "label"), (macro, 9, "macro")):
            size = f"{picture.shape[1]}x{picture.shape[0]}"
            self._picture(picture, subfile=subfile, description=f"{_LIBRARY}\n{name} {size}")

    def _describe(self, level: int, arrow: str) -> None:
        info = self.info
        size = f"{info.width}x{info.height} [0,0 {info.width}x{info.height}] ({TILE}x{TILE}){arrow}"
        text = f"{_LIBRARY}\n{size} JPEG/RGB Q={info.quality}{self._properties()}"
        self._level(level, description=text)

    def _properties(self) -> str:
        info = self.info
        values = {
            "AppMag": None if info.objective is None else f"{info.objective:g}",
            "MPP": None if info.mpp is None else f"{info.mpp:.4f}",
            "ScanScope ID": info.cohort,
            "Filename": info.barcode,
            "Title": "SYNTHETIC: generated tissue of no patient",
        }
        return "".join(f"|{key} = {value}" for key, value in values.items() if value is not None)


class PhilipsWriter(TiffContainer):
    """Writes one ``.tiff`` file, with an XML description of all levels in the first directory.

    OpenSlide counts the ``PixelDataRepresentation`` entries against the tiled directories and wants
    NewSubfileType 1 on the lower ones; the objective power is the first number after ``levels=`` in the
    derivation description (libopenslide 4.0.1). Group, element and PMSVR are for other readers.
    """

    def finish(self, thumbnail: np.ndarray) -> None:
        """Write directories and pictures."""
        software = Tag(305, ASCII, "Philips DP v1.0")
        self._level(0, software, description=self._xml())
        for level in range(1, LEVELS):
            self._level(level, software, subfile=1, description=f"level={level} SYNTHETIC")
        label = label_picture(self.info.barcode, self.info.cohort)
        self._picture(label, subfile=1, description="Label SYNTHETIC")
        self._picture(macro_picture(thumbnail, label), subfile=1, description="Macro SYNTHETIC")

    def _xml(self) -> str:
        info = self.info
        if info.mpp is None:
            raise ValueError("a Philips slide cannot be without a pixel spacing")
        representations = "".join(
            _object(
                "PixelDataRepresentation",
                _attribute(
                    "DICOM_PIXEL_SPACING", "0x0028", "0x0030", "IDoubleArray", _spacing(info.mpp * STEP**k)
                ),
                _attribute("PIIM_PIXEL_DATA_REPRESENTATION_NUMBER", "0x1001", "0x8B02", "IUInt16", str(k)),
            )
            for k in range(LEVELS)
        )
        # The first of the levels is the objective; the numbers are Philips' own bookkeeping.
        objective = 0 if info.objective is None else info.objective
        derivation = f"tiff-useBigTIFF=0-levels={objective:g},10002,10000-processing=0"
        image = _object(
            "DPScannedImage",
            _attribute("PIM_DP_IMAGE_TYPE", "0x301D", "0x1004", "IString", "WSI"),
            _attribute("DICOM_DERIVATION_DESCRIPTION", "0x0008", "0x2111", "IString", derivation),
            _attribute("DICOM_PIXEL_SPACING", "0x0028", "0x0030", "IDoubleArray", _spacing(info.mpp)),
            _array("PIIM_PIXEL_DATA_REPRESENTATION_SEQUENCE", "0x1001", "0x8B01", representations),
        )
        root = _object(
            "DPUfsImport",
            _attribute("DICOM_MANUFACTURER", "0x0008", "0x0070", "IString", "SYNTHETIC"),
            _attribute("DICOM_DEVICE_SERIAL_NUMBER", "0x0018", "0x1000", "IString", info.cohort),
            _attribute("PIM_DP_UFS_BARCODE", "0x301D", "0x1002", "IString", info.barcode),
            _array("PIM_DP_SCANNED_IMAGES", "0x301D", "0x1003", image),
        )
        return f'<?xml version="1.0" encoding="UTF-8" ?>\n{root}'


def _spacing(mpp: float) -> str:
    return " ".join([f'"{mpp / 1000:.8f}"'] * 2)


def _object(kind: str, *content: str) -> str:
    return f'<DataObject ObjectType="{kind}">{"".join(content)}</DataObject>\n'


def _attribute(name: str, group: str, element: str, kind: str, value: str) -> str:
    return _tagged(name, group, element, kind, escape(value))


def _array(name: str, group: str, element: str, content: str) -> str:
    return _tagged(name, group, element, "IDataObjectArray", f"<Array>{content}</Array>")


def _tagged(name: str, group: str, element: str, kind: str, content: str) -> str:
    return (
        f'<Attribute Name="{name}" Group="{group}" Element="{element}" PMSVR="{kind}">{content}</Attribute>\n'
    )


class GenericWriter(TiffContainer):
    """Writes one ``.tiff`` file without vendor: resolution from the tags, no objective power, no pictures.

    Lower levels need NewSubfileType 1; with 0 they are silently no levels (libopenslide 4.0.1).
    """

    BIG: ClassVar[bool] = True

    def finish(self, thumbnail: np.ndarray) -> None:
        """Write directories; the format has no thumbnail."""
        mpp = self.info.mpp
        text = f"SYNTHETIC: generated tissue of no patient, {self.info.barcode}, {self.info.cohort}"
        for level in range(LEVELS):
            tags = [] if mpp is None else resolution_tags(1e4 / (mpp * STEP**level))
            self._level(level, *tags, subfile=int(level > 0), description=text)


class TrestleWriter(TiffContainer):
    """Writes one ``.tif`` file as Trestle's MedScan does; its resolution tags hold um per pixel."""

    def finish(self, thumbnail: np.ndarray) -> None:
        """Write directories; the format has no thumbnail."""
        info = self.info
        overlaps = " ".join(["0"] * (2 * LEVELS))
        power = "" if info.objective is None else f"Objective Power={info.objective:g};"
        text = f"{power}Background Color=F0F0F0;OverlapsXY={overlaps};Comment=SYNTHETIC {info.barcode}"
        software = Tag(305, ASCII, "MedScan SYNTHETIC")
        for level in range(LEVELS):
            tags = [] if info.mpp is None else resolution_tags(info.mpp * STEP**level)
            self._level(level, software, *tags, description=text)
