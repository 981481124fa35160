"""Slide containers: the metadata of a slide, and the class that writes each vendor's format."""

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from equipoise.datasets.synthetic.params import ContainerName


@dataclass(frozen=True, slots=True)
class SlideInfo:
    """Metadata in the header of one slide; fields that are None are left out."""

    barcode: str
    cohort: str
    seed: int
    width: int
    height: int
    mpp: float | None
    objective: float | None
    quality: int


class Container(Protocol):
    """A file being written: takes tiles of all levels as they come, then the pictures."""

    def tile(self, level: int, jpeg: bytes) -> None:
        """Take the next tile of a level, row by row."""
        ...

    def finish(self, thumbnail: np.ndarray) -> None:
        """Write pictures and headers, given a thumbnail uint8 ``[h, w, 4]``."""
        ...

    def close(self) -> None:
        """Close the file, finished or not; closing twice is fine."""
        ...


#: Container → file suffix, "module:class" called with (path, info).
_WRITERS: dict[ContainerName, tuple[str, str]] = {
    "aperio": (".svs", "equipoise.datasets.synthetic.tiff_vendors:AperioWriter"),
    "philips": (".tiff", "equipoise.datasets.synthetic.tiff_vendors:PhilipsWriter"),
    "generic": (".tiff", "equipoise.datasets.synthetic.tiff_vendors:GenericWriter"),
    "trestle": (".tif", "equipoise.datasets.synthetic.tiff_vendors:TrestleWriter"),
    "dicom": ("", "equipoise.datasets.synthetic.dicom:DicomWriter"),  # a folder
}


def suffix(name: ContainerName) -> str:
    """File suffix of a container; empty where a slide is a folder."""
    return _WRITERS[name][0]


def open_container(name: ContainerName, path: Path, info: SlideInfo) -> Container:
    """Start a slide of that format at ``path``."""
    module, _, kind = _WRITERS[name][1].partition(":")
    return getattr(importlib.import_module(module), kind)(path, info)
