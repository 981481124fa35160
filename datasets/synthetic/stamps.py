"""Small pictures of single cells, drawn once per resolution and painted by the thousand.

A stamp is uint8 with 255 = optical density 2.2. Nuclei go into the haematoxylin layer, red cells into the
eosin layer.
"""

from dataclasses import dataclass
from enum import IntEnum
from functools import cache

import cv2
import numpy as np

from equipoise.datasets.synthetic.fields import smoothstep
from equipoise.datasets.synthetic.seeds import Purpose, stream

OD_FULL = 2.2
ANGLES, VARIANTS = 16, 3
STEPS = (0.78, 1.0, 1.2)


class Kind(IntEnum):
    """Cell classes, in the order of the stamps."""

    EPI0 = 0  # well differentiated: small, dense, elongated
    EPI1 = 1
    EPI2 = 2  # poorly differentiated: large, pale, nucleolus
    FIBROBLAST = 3
    LYMPHOCYTE = 4
    MITOSIS = 5
    APOPTOSIS = 6
    RED_CELL = 7
    SMOOTH_MUSCLE = 8
    PLASMA = 9


@dataclass(frozen=True, slots=True)
class _Shape:
    """Half window and half axes in um; density; membrane, central pallor, chromatin, nucleolus."""

    half: float
    a: float
    b: float
    od: float
    rim: float = 0.0
    pale: float = 0.0
    texture: float = 0.0
    nucleolus: float = 0.0
    rough: float = 1.0


_SHAPES: dict[Kind, _Shape] = {
    Kind.EPI0: _Shape(7.5, 4.5, 2.5, 0.78, 0.20, 0.10, 0.20),
    Kind.EPI1: _Shape(8.0, 4.9, 3.4, 0.70, 0.30, 0.24, 0.26, 0.25),
    Kind.EPI2: _Shape(9.5, 5.8, 4.6, 0.64, 0.42, 0.36, 0.34, 0.55, rough=2),
    Kind.FIBROBLAST: _Shape(8.5, 5.8, 1.35, 0.66, 0.05, 0, 0.15),
    Kind.LYMPHOCYTE: _Shape(4.4, 2.9, 2.7, 1.16, 0.05, 0, 0.26),
    Kind.MITOSIS: _Shape(7.0, 4.2, 1.6, 1.38, texture=0.45, rough=2),
    Kind.APOPTOSIS: _Shape(3.6, 1.3, 1.1, 1.05, texture=0.10),
    Kind.RED_CELL: _Shape(4.6, 3.4, 3.1, 0.98, 0.10, 0.22, 0.03),
    Kind.SMOOTH_MUSCLE: _Shape(10.5, 7.6, 1.25, 0.55, 0.05, 0, 0.15),
    Kind.PLASMA: _Shape(4.9, 3.1, 2.8, 0.98, 0.28, 0.12, 0.40),
}

HALF_MAX_UM = max(shape.half for shape in _SHAPES.values())


@cache
def stamps(mpp: float) -> tuple[np.ndarray, ...]:
    """All stamps at a resolution; index with :func:`stamp_index`."""
    rng = stream(0, 0, 0, Purpose.TEXTURE, 100)
    made: list[np.ndarray] = []
    for kind, shape in _SHAPES.items():
        forms = [_outline(rng, kind) for _ in range(VARIANTS)]
        for angle in range(ANGLES):
            for form in forms:
                density = _draw(shape, form, np.pi * angle / ANGLES, mpp)
                made += [_encode(density * step) for step in STEPS]
    return tuple(made)


def stamp_index(kind: np.ndarray, angle: np.ndarray, variant: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Index of each cell's stamp in :func:`stamps`; angles in radians, any range."""
    turn = np.rint(angle * (ANGLES / np.pi)).astype(np.int32) % ANGLES
    return ((kind.astype(np.int32) * ANGLES + turn) * VARIANTS + variant) * len(STEPS) + step


@dataclass(frozen=True, slots=True)
class _Form:
    """Random shape of one variant, independent of resolution."""

    axes: np.ndarray
    wobble: np.ndarray  # [4, 2]: amplitude and phase of the harmonics 2..5
    chromatin: np.ndarray  # coarse noise, 1.1 um per knot
    nucleolus: np.ndarray  # (y, x) in um


def _outline(rng: np.random.Generator, kind: Kind) -> _Form:
    shape = _SHAPES[kind]
    sd = np.array([0.045, 0.035, 0.015, 0.01]) * shape.rough
    wobble = np.stack([rng.normal(0, sd), rng.uniform(0, 2 * np.pi, 4)], axis=1)
    knots = int(np.ceil(2 * shape.half / 1.1)) + 1
    return _Form(
        1 + rng.normal(0, 0.1, 2),
        wobble,
        rng.standard_normal((knots, knots), dtype=np.float32),
        rng.normal(0, 0.22, 2) * (shape.b, shape.a),
    )


def _draw(shape: _Shape, form: _Form, angle: float, mpp: float) -> np.ndarray:
    half = int(np.ceil(shape.half / mpp))
    axis = np.arange(-half, half + 1, dtype=np.float32) * mpp
    y, x = axis[:, None], axis[None]
    u, v = x * np.cos(angle) + y * np.sin(angle), -x * np.sin(angle) + y * np.cos(angle)
    a, b = shape.a * form.axes[0], shape.b * form.axes[1]
    theta = np.arctan2(v / b, u / a)
    radius = np.hypot(u / a, v / b)
    harmonics = np.arange(2, 6)[:, None, None]
    amplitude, phase = form.wobble[:, 0, None, None], form.wobble[:, 1, None, None]
    radius = radius * (1 + (amplitude * np.cos(harmonics * theta + phase)).sum(axis=0))
    soft = max(0.09, 0.45 * mpp / b)
    chromatin = cv2.resize(form.chromatin, radius.shape, interpolation=cv2.INTER_CUBIC)
    spot = np.exp(-((u - form.nucleolus[1]) ** 2 + (v - form.nucleolus[0]) ** 2) / (2 * 0.75**2))
    inside = (
        1
        - shape.pale * np.exp(-((radius / 0.7) ** 2))
        + shape.rim * np.exp(-(((radius - 0.88) / 0.16) ** 2))
        + 0.5 * shape.texture * chromatin
        + shape.nucleolus * spot
    )
    return smoothstep(radius, 1 + soft, 1 - soft) * shape.od * inside


def _encode(density: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(density * (255 / OD_FULL)), 0, 255).astype(np.uint8)
