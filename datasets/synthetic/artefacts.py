"""Artefacts of the laboratory: tissue folds and pen marks."""

from dataclasses import dataclass

import cv2
import numpy as np
from scipy.interpolate import CubicSpline

from equipoise.datasets.synthetic.fields import enlarge, noise
from equipoise.datasets.synthetic.outline import FINE_UM, RATIO, Outline
from equipoise.datasets.synthetic.params import SiteStyle

#: Optical density of ink in R, G, B.
INKS = {"blue": (1.5, 0.75, 0.12), "green": (1.2, 0.3, 1.3), "black": (1.5, 1.5, 1.4)}


@dataclass(frozen=True, slots=True)
class Artefacts:
    """Fold thickness and ink, uint8 ``[n, n]`` at 2 um (None where absent), and the ink's colour."""

    fold: np.ndarray | None
    pen: np.ndarray | None
    ink: str | None


def draw_artefacts(rng: np.random.Generator, outline: Outline, style: SiteStyle) -> Artefacts:
    """Artefacts of one slide, at the site's rates."""
    has_fold, has_pen = rng.random(2) < (style.fold, style.pen)
    ink = list(INKS)[int(rng.choice(3, p=[0.5, 0.3, 0.2]))]
    fold = _fold(rng, outline) if has_fold else None
    pen = _pen(rng, outline) if has_pen else None
    return Artefacts(fold, pen, ink if has_pen else None)


def _fold(rng: np.random.Generator, outline: Outline) -> np.ndarray:
    """A band of doubled tissue across the slide, wandering and of changing width."""
    side = outline.side
    axis = (np.arange(side, dtype=np.float32) + 0.5) / side - 0.5
    angle = rng.uniform(0, np.pi)
    along = np.float32(np.cos(angle)) * axis[None] + np.float32(np.sin(angle)) * axis[:, None]
    across = np.float32(-np.sin(angle)) * axis[None] + np.float32(np.cos(angle)) * axis[:, None]
    extent = side * FINE_UM
    distance = across * extent - rng.uniform(-0.18, 0.18) * extent
    small = side // RATIO
    distance += enlarge(35 * noise(rng, small, small / 5) + 7 * noise(rng, small, small / 22), RATIO)
    width = rng.uniform(18, 40) * (1 + 0.5 * enlarge(noise(rng, small, small / 4), RATIO))
    taper = np.clip(1.15 - np.abs(along - rng.uniform(-0.15, 0.15)) / 0.42, 0, 1)
    band = np.exp(-((distance / np.maximum(width * np.sqrt(taper), 0.5)) ** 4)) * outline.tissue
    return np.rint(255 * band).astype(np.uint8)


def _pen(rng: np.random.Generator, outline: Outline) -> np.ndarray:
    """A hand-drawn stroke around part of the tissue: uneven speed, width and ink."""
    side = outline.side
    turn = rng.uniform(0, 2 * np.pi)
    arc = rng.uniform(1.5, 5.5)
    t = np.linspace(turn, turn + arc, 400)
    radius = rng.uniform(0.40, 0.46) * (1 + 0.06 * _wander(rng, t.size, 9)) * side
    points = side / 2 + np.stack([radius * np.cos(t), 0.97 * radius * np.sin(t)], axis=1)
    width = rng.uniform(56, 100) / FINE_UM * (1 + 0.14 * _wander(rng, t.size, 14))
    mark = np.zeros((side, side), np.uint8)
    for k in range(len(points) - 1):
        start, end = ((int(x), int(y)) for x, y in np.rint(points[k : k + 2] * 16))
        cv2.line(mark, start, end, 255, max(2, round(width[k])), cv2.LINE_AA, shift=4)
    ink = cv2.GaussianBlur(mark, (0, 0), 1.5).astype(np.float32)
    ink *= np.clip(0.86 + 0.12 * enlarge(noise(rng, side // RATIO, 9), RATIO), 0.4, 1)
    return np.rint(ink).astype(np.uint8)


def _wander(rng: np.random.Generator, count: int, knots: int) -> np.ndarray:
    """Smooth random walk through ``knots`` N(0, 1) values, ``[count]``."""
    return CubicSpline(np.arange(knots), rng.standard_normal(knots))(np.linspace(0, knots - 1, count))
