"""Philips TIFF: an XML description of all levels in the first directory.

OpenSlide counts the ``PixelDataRepresentation`` entries against the tiled directories and wants
NewSubfileType 1 on the lower ones; the objective power is the first number after ``levels=`` in the
derivation description (libopenslide 4.0.1). Group, element and PMSVR are for other readers.
"""

from html import escape

import numpy as np

from equipoise.datasets.synthetic.pictures import label_picture, macro_picture
from equipoise.datasets.synthetic.pyramid import LEVELS, STEP
from equipoise.datasets.synthetic.tiff import ASCII, Tag
from equipoise.datasets.synthetic.tiff_container import TiffContainer


class PhilipsWriter(TiffContainer):
    """Writes one ``.tiff`` file."""

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
