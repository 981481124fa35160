"""Aperio SVS: level 0, thumbnail, lower levels, label, macro, in the order that readers rely on.

OpenSlide takes every tiled directory for a level and a stripped one at index 1 for the thumbnail; label and
macro are told by NewSubfileType 1 and 9 (libopenslide 4.0.1), by the second line of the description
elsewhere.
"""

import numpy as np

from equipoise.datasets.synthetic.pictures import label_picture, macro_picture
from equipoise.datasets.synthetic.pyramid import LEVELS, TILE
from equipoise.datasets.synthetic.tiff_container import TiffContainer

_LIBRARY = "Aperio Image Library v12.0.5 SYNTHETIC"


class AperioWriter(TiffContainer):
    """Writes one ``.svs`` file."""

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
