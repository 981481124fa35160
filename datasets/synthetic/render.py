"""Pixels: the layout enlarged strip by strip, with grain and cells, blurred and coloured.

Every value depends on absolute pixel coordinates only, so that neither the height of a strip nor the width
of its halo changes a bit of the slide.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np

from equipoise.datasets.synthetic.artefacts import INKS, Artefacts
from equipoise.datasets.synthetic.cells import Cells
from equipoise.datasets.synthetic.outline import FINE_UM
from equipoise.datasets.synthetic.stain import Stain
from equipoise.datasets.synthetic.stamps import HALF_MAX_UM, Kind, stamps
from equipoise.datasets.synthetic.textures import SIDE, grain

STRIP_ROWS = 512
#: Rows worked on at a time: a few arrays of them fit into the second-level cache.
_CHUNK = 32


@dataclass(frozen=True, slots=True)
class Scene:
    """A slide ready to be scanned: density maps at 2 um, cells, artefacts, stain."""

    eosin: np.ndarray
    haematoxylin: np.ndarray
    cells: Cells
    artefacts: Artefacts
    stain: Stain


def emptied(scene: Scene) -> Scene:
    """The same glass without tissue, cells and artefacts."""
    nothing = np.zeros_like(scene.eosin)
    no_cells = Cells(
        *(values[:0] for values in (scene.cells.y, scene.cells.x, scene.cells.kind, scene.cells.stamp))
    )
    return Scene(nothing, nothing, no_cells, Artefacts(None, None, None), scene.stain)


@dataclass(frozen=True, slots=True)
class Scan:
    """Pixels of a scan: its sides, resolution and the scanner's blur."""

    width: int
    height: int
    mpp: float
    blur_um: float = 0.0

    def blur_halo(self) -> int:
        """Rows around a strip that affect it through the blur."""
        return int(np.ceil(4 * self.blur_um / self.mpp)) + 1 if self.blur_um else 0


def render(
    scene: Scene, scan: Scan, *, strip_rows: int = STRIP_ROWS, halo: int | None = None
) -> Iterator[np.ndarray]:
    """Strips of RGBX pixels from top to bottom, uint8 ``[rows, width, 4]``.

    Parameters
    ----------
    strip_rows
        Rows per strip, a multiple of the tile side.
    halo
        Extra rows rendered on both sides, at least :meth:`Scan.blur_halo` (the default).
    """
    halo = scan.blur_halo() if halo is None else halo
    layers = _Layers(scene, scan)
    painter = _Painter(scene.cells, scan)
    table = scene.stain.table()
    for top in range(0, scan.height, strip_rows):
        bottom = min(top + strip_rows, scan.height)
        first, last = max(0, top - halo), min(scan.height, bottom + halo)
        nuclei, red = painter.paint(first, last)
        density: np.ndarray = np.empty((last - first, scan.width, 2), np.uint8)
        for start in range(first, last, _CHUNK):
            rows = np.arange(start, min(start + _CHUNK, last))
            here = slice(start - first, rows[-1] + 1 - first)
            layers.compose(rows, nuclei[here], red[here], density[here])
        if scan.blur_um:
            window = 2 * scan.blur_halo() - 1
            density = cv2.GaussianBlur(density, (window, window), scan.blur_um / scan.mpp)
        inner = density[top - first : bottom - first]
        pixels = table.take(inner.view("<u2")[..., 0]).view(np.uint8).reshape(bottom - top, scan.width, 4)
        yield layers.inked(pixels, top)


class _Layers:
    """Density of a chunk of rows: tissue, grain, cells, fold. Works in place in buffers of one chunk."""

    def __init__(self, scene: Scene, scan: Scan) -> None:
        art = scene.artefacts
        self._eosin = _Enlarged(scene.eosin, scan)
        self._haematoxylin = _Enlarged(scene.haematoxylin, scan)
        self._fold = None if art.fold is None else _Enlarged(art.fold, scan)
        self._pen = None if art.pen is None else _Enlarged(art.pen, scan)
        self._ink = None if art.ink is None else np.asarray(INKS[art.ink], np.float32)
        repeats = -(-scan.width // SIDE)
        self._grain = [np.tile(grain(scan.mpp, k), repeats)[:, : scan.width].astype(np.int16) for k in (0, 1)]
        self._buffers = np.empty((4, _CHUNK, scan.width), np.int16)

    def compose(self, rows: np.ndarray, nuclei: np.ndarray, red: np.ndarray, out: np.ndarray) -> None:
        """Write eosin and haematoxylin of those rows into ``out``, uint8 ``[rows, width, 2]``."""
        density, part, fold, scratch = self._buffers[:, : len(rows)]
        if self._fold is not None:
            self._fold.rows(rows, fold, scratch)
        layers = ((self._eosin, 9, red, 115), (self._haematoxylin, 8, nuclei, 77))
        for k, (field, shift, cells, doubled) in enumerate(layers):
            field.rows(rows, density, scratch)
            np.take(self._grain[k], rows % SIDE, axis=0, out=part, mode="clip")
            part *= density
            part >>= shift
            density += part
            np.maximum(density, cells, out=density)
            if self._fold is not None:  # two layers of tissue: 1.9 x the eosin, 1.6 x the haematoxylin
                np.minimum(density, 255, out=density)  # so that the product stays within 16 bits
                np.multiply(fold >> 1, doubled, out=part)
                part >>= 7
                part *= density
                part >>= 7
                density += part
            np.clip(density, 0, 255, out=density)
            out[..., k] = density

    def inked(self, pixels: np.ndarray, top: int) -> np.ndarray:
        """Lay ink over finished rows, where the slide has pen marks."""
        if self._pen is None or self._ink is None:
            return pixels
        for start in range(0, len(pixels), _CHUNK):
            rows = np.arange(top + start, top + min(start + _CHUNK, len(pixels)))
            alpha, scratch = self._buffers[:2, : len(rows)]
            self._pen.rows(rows, alpha, scratch)
            touched = np.flatnonzero(alpha.any(axis=0))
            if touched.size:
                columns = slice(touched[0], touched[-1] + 1)
                clear = np.exp(alpha[:, columns, None] * (-self._ink / 255))
                window = pixels[start : start + len(rows), columns, :3]
                window[...] = np.rint(window * clear)
        return pixels


class _Enlarged:
    """A 2 um map enlarged bilinearly to the pixels of a scan: columns at once, rows when asked for."""

    def __init__(self, field: np.ndarray, scan: Scan) -> None:
        left, weight = _taps(scan.width, scan.mpp, field.shape[1])
        wide = field.astype(np.int16)
        self._columns = np.take(wide, left, axis=1)
        step = np.take(np.diff(wide, axis=1), left, axis=1)
        step *= weight
        step >>= 7
        self._columns += step
        self._step = np.diff(self._columns, axis=0)
        self._taps = _taps(scan.height, scan.mpp, field.shape[0])

    def rows(self, rows: np.ndarray, out: np.ndarray, scratch: np.ndarray) -> None:
        """Write those pixel rows to ``out``, int16 ``[len(rows), width]``."""
        upper, weight = self._taps[0][rows], self._taps[1][rows]
        np.take(self._columns, upper, axis=0, out=out, mode="clip")
        np.take(self._step, upper, axis=0, out=scratch, mode="clip")
        scratch *= weight[:, None]
        scratch >>= 7
        out += scratch


def _taps(pixels: int, mpp: float, knots: int) -> tuple[np.ndarray, np.ndarray]:
    """Lower knot of each pixel and the weight of the next one, in 1/128."""
    position = np.clip((np.arange(pixels) + 0.5) * (mpp / FINE_UM) - 0.5, 0, knots - 1)
    lower = np.minimum(position.astype(np.intp), knots - 2)
    return lower, np.rint(128 * (position - lower)).astype(np.int16)


class _Painter:
    """Paints the cells that touch a strip into buffers that are wide enough for any stamp on any border."""

    def __init__(self, cells: Cells, scan: Scan) -> None:
        self._stamps = stamps(scan.mpp)
        self._pad = int(np.ceil(HALF_MAX_UM / scan.mpp)) + 1
        self._width = scan.width
        row = np.floor(cells.y / np.float32(scan.mpp)).astype(np.int64)
        column = np.floor(cells.x / np.float32(scan.mpp)).astype(np.int64)
        half = np.array([len(stamp) // 2 for stamp in self._stamps])[cells.stamp]
        inside = column < scan.width
        self._row = row[inside]
        self._top = (row - half)[inside]
        self._left = (column - half)[inside] + self._pad
        self._stamp = cells.stamp[inside]
        self._red = cells.kind[inside] == Kind.RED_CELL

    def paint(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Nuclei and red cells of rows ``first`` to ``last``, uint8 ``[rows, width]`` each."""
        pad = self._pad
        shape = (last - first + 4 * pad, self._width + 2 * pad)
        layers = np.zeros((2, *shape), np.uint8)
        low, high = np.searchsorted(self._row, (first - pad, last + pad))
        shift = 2 * pad - first
        library, maximum = self._stamps, np.maximum
        for red in (0, 1):
            layer = layers[red]
            chosen = np.flatnonzero(self._red[low:high] == red) + low
            # A plain loop beats np.maximum.at on whole windows several times over.
            for top, left, stamp in zip(
                (self._top[chosen] + shift).tolist(),
                self._left[chosen].tolist(),
                self._stamp[chosen].tolist(),
                strict=True,
            ):
                picture = library[stamp]
                side = len(picture)
                window = layer[top : top + side, left : left + side]
                maximum(window, picture, out=window)
        inner = layers[:, 2 * pad : 2 * pad + last - first, pad : pad + self._width]
        return inner[0], inner[1]
