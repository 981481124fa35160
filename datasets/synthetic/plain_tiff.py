"""Two plain pyramids in TIFF form: the generic one (BigTIFF, resolution tags) and Trestle's (MedScan)."""

from typing import ClassVar

import numpy as np

from equipoise.datasets.synthetic.pyramid import LEVELS, STEP
from equipoise.datasets.synthetic.tiff import ASCII, Tag, resolution_tags
from equipoise.datasets.synthetic.tiff_container import TiffContainer


class GenericWriter(TiffContainer):
    """Writes one ``.tiff`` file without vendor: resolution from the tags, no objective power, no pictures.

    Lower levels need NewSubfileType 1; with 0 they are silently no levels (libopenslide 4.0.1).
    """

    BIG: ClassVar[bool] = True

    def finish(self, thumbnail: np.ndarray) -> None:
        """Write directories; the thumbnail has no place here."""
        mpp = self.info.mpp
        text = f"SYNTHETIC: generated tissue of no patient, {self.info.barcode}, {self.info.cohort}"
        for level in range(LEVELS):
            tags = [] if mpp is None else resolution_tags(1e4 / (mpp * STEP**level))
            self._level(level, *tags, subfile=int(level > 0), description=text)


class TrestleWriter(TiffContainer):
    """Writes one ``.tif`` file as Trestle's MedScan does; its resolution tags hold um per pixel."""

    def finish(self, thumbnail: np.ndarray) -> None:
        """Write directories; the thumbnail has no place here."""
        info = self.info
        overlaps = " ".join(["0"] * (2 * LEVELS))
        power = "" if info.objective is None else f"Objective Power={info.objective:g};"
        text = f"{power}Background Color=F0F0F0;OverlapsXY={overlaps};Comment=SYNTHETIC {info.barcode}"
        software = Tag(305, ASCII, "MedScan SYNTHETIC")
        for level in range(LEVELS):
            tags = [] if info.mpp is None else resolution_tags(info.mpp * STEP**level)
            self._level(level, software, *tags, description=text)
