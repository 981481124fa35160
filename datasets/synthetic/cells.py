"""Positions and classes of cells: jittered hexagonal grids, thinned with probabilities from the layout."""

from dataclasses import dataclass

import numpy as np

from equipoise.datasets.synthetic.fields import hex_grid, smoothstep
from equipoise.datasets.synthetic.layout import Layout
from equipoise.datasets.synthetic.morphology import Morphology
from equipoise.datasets.synthetic.outline import COARSE_UM, FINE_UM
from equipoise.datasets.synthetic.stamps import VARIANTS, Kind, stamp_index


@dataclass(frozen=True, slots=True)
class Cells:
    """Cells of one slide, sorted by y: centres in um (float32 ``[n]``), class and stamp (int32 ``[n]``)."""

    y: np.ndarray
    x: np.ndarray
    kind: np.ndarray
    stamp: np.ndarray


def place_cells(rng: np.random.Generator, layout: Layout, morphology: Morphology) -> Cells:
    """All cells of a slide."""
    groups = (
        _epithelium(rng, layout, morphology),
        _fibroblasts(rng, layout),
        _lymphocytes(rng, layout, morphology),
        _debris(rng, layout),
        _endothelium(layout),
        _red_cells(rng, layout),
    )
    position = np.concatenate([position for position, _, _ in groups])
    kind = np.concatenate([kind for _, kind, _ in groups])
    angle = np.concatenate([angle for _, _, angle in groups])
    n = len(kind)
    step = np.clip(np.rint(1 + 4 * (morphology.hyperchrom - 1) + rng.normal(0, 0.6, n)), 0, 2).astype(
        np.int32
    )
    step[kind == Kind.RED_CELL] = 1
    stamp = stamp_index(kind, angle, rng.integers(0, VARIANTS, n, dtype=np.int32), step)
    order = np.argsort(position[:, 0], kind="stable")
    return Cells(position[order, 0], position[order, 1], kind[order], stamp[order])


_Group = tuple[np.ndarray, np.ndarray, np.ndarray]  # (y, x) in um, Kind, angle


def _epithelium(rng: np.random.Generator, layout: Layout, m: Morphology) -> _Group:
    glands = layout.glands
    position = _candidates(rng, layout, 7.6 / np.sqrt(m.cell), 0.27)
    position = position[_at(glands.epithelium, position) > 0.55]
    depth, g = _at(glands.depth, position), _at(glands.grade, position)
    basal = np.exp(-(((depth - 8.5) / 6.5) ** 2)) + 0.12
    basal = np.where(_at(glands.bridges, position) > 0.3, 0.62, basal)
    keep = np.minimum((1 - g) * basal + g * (0.78 - 0.24 * smoothstep(g, 0.5, 0.9)), 0.97)
    kept = rng.random(len(position), dtype=np.float32) < keep
    position, g = position[kept], g[kept]
    n = len(position)

    normal = np.arctan2(*(_at_coarse(part, position) for part in glands.slope))
    angle = normal + rng.normal(0, 1, n) * (0.18 + 0.9 * g)
    kind = np.digitize(g + rng.normal(0, 0.16, n), (0.36, 0.68)).astype(np.int32)  # Kind.EPI0..2
    draw = rng.random(n)
    regional = np.exp(np.clip(0.8 * _at_coarse(layout.outline.het, position), -1.5, 1.5))
    intruder = np.minimum(m.til_epi * regional, 0.5)
    kind[draw < m.mitosis + m.apoptosis + intruder] = Kind.LYMPHOCYTE
    kind[draw < m.mitosis + m.apoptosis] = Kind.APOPTOSIS
    kind[draw < m.mitosis] = Kind.MITOSIS
    return position, kind, angle


def _fibroblasts(rng: np.random.Generator, layout: Layout) -> _Group:
    position = _candidates(rng, layout, 13.5, 0.45)
    keep = 0.62 * _at(layout.stroma, position) * (1 - _at(layout.aggregate, position))
    position = position[rng.random(len(position), dtype=np.float32) < keep]
    muscle = _at(layout.muscle, position) > rng.random(len(position), dtype=np.float32)
    kind = np.where(muscle, Kind.SMOOTH_MUSCLE, Kind.FIBROBLAST).astype(np.int32)
    spread = np.where(muscle, 0.12, 0.35)
    return position, kind, _direction(layout, position) + rng.normal(0, 1, len(position)) * spread


def _lymphocytes(rng: np.random.Generator, layout: Layout, m: Morphology) -> _Group:
    position = _candidates(rng, layout, 6.3, 0.45)
    stroma = _at(layout.stroma, position)
    position, stroma = position[stroma > 0], stroma[stroma > 0]
    regional = np.exp(np.clip(0.8 * _at_coarse(layout.outline.het, position), -1.5, 1.5))
    far = 1 - 0.5 * smoothstep(_at(layout.outline.bed, position), -2.0, -6.0)
    aggregate = _at(layout.aggregate, position)
    muscle = 1 - 0.7 * _at(layout.muscle, position)
    keep = stroma * np.clip(m.til_str * regional * far * muscle + 0.92 * aggregate, 0, 0.95)
    kept = rng.random(len(position), dtype=np.float32) < keep
    position, aggregate = position[kept], aggregate[kept]
    n = len(position)
    plasma = (rng.random(n) < 0.18) & (aggregate < 0.5)
    kind = np.where(plasma, Kind.PLASMA, Kind.LYMPHOCYTE).astype(np.int32)
    return position, kind, rng.uniform(0, np.pi, n)


def _debris(rng: np.random.Generator, layout: Layout) -> _Group:
    position = _candidates(rng, layout, 6.0, 0.45)
    # Some dead cells also lie free in lumens.
    keep = 0.42 * _at(layout.glands.necrosis, position) + 0.10 * _at(layout.glands.lumen, position) * _at(
        layout.glands.secretion, position
    )
    position = position[rng.random(len(position), dtype=np.float32) < keep]
    return position, np.full(len(position), Kind.APOPTOSIS, np.int32), rng.uniform(0, np.pi, len(position))


def _endothelium(layout: Layout) -> _Group:
    rows = layout.vessels.endothelium
    limit = layout.outline.side * FINE_UM
    rows = rows[(rows[:, :2] >= 0).all(axis=1) & (rows[:, :2] < limit).all(axis=1)]
    return rows[:, :2], np.full(len(rows), Kind.FIBROBLAST, np.int32), rows[:, 2]


def _red_cells(rng: np.random.Generator, layout: Layout) -> _Group:
    position = _candidates(rng, layout, 5.8, 0.30)
    position = position[
        rng.random(len(position), dtype=np.float32) < 0.9 * _at(layout.vessels.blood, position)
    ]
    return position, np.full(len(position), Kind.RED_CELL, np.int32), rng.uniform(0, np.pi, len(position))


def _candidates(rng: np.random.Generator, layout: Layout, spacing: float, jitter: float) -> np.ndarray:
    extent = layout.outline.side * FINE_UM
    position = hex_grid(rng, extent, float(spacing), jitter)
    return position[((position >= 0) & (position < extent)).all(axis=1)]


def _at(field: np.ndarray, position: np.ndarray) -> np.ndarray:
    cell = (position * np.float32(1 / FINE_UM)).astype(np.int32)
    return field[cell[:, 0], cell[:, 1]]


def _at_coarse(field: np.ndarray, position: np.ndarray) -> np.ndarray:
    cell = (position * np.float32(1 / COARSE_UM)).astype(np.int32)
    return field[cell[:, 0], cell[:, 1]]


def _direction(layout: Layout, position: np.ndarray) -> np.ndarray:
    cos2, sin2 = layout.direction
    return 0.5 * np.arctan2(_at_coarse(sin2, position), _at_coarse(cos2, position))
