"""What slide containers in TIFF form share: tiles stream into one file, directories follow."""

from pathlib import Path
from typing import ClassVar

import numpy as np

from equipoise.datasets.synthetic.containers import SlideInfo
from equipoise.datasets.synthetic.pyramid import TILE, encode_jpeg, level_sizes
from equipoise.datasets.synthetic.tiff import Tag, TiffWriter, TiledImage, picture_tags, strip_tags, tile_tags

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
