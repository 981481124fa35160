"""Colours of maps: perceptually even scales that colour-blind readers can tell apart.

Scores of both signs get a diverging scale: two arms of equal steps in OKLab (B. Ottosson, 2020, "A perceptual color
space for image processing") from a light grey at zero, to blue below and to orange-red above. Scores of one sign get
the upper arm alone, so that tissue stays visible where a score is low. Lightness falls evenly along each arm: the order
of scores can be read without seeing hues.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from equipoise.platform.explain.tile_scores import TileScores

#: Ends and middle of the diverging scale in OKLab: lightness, green-red, blue-yellow.
_BELOW, _ZERO, _ABOVE = (0.44, -0.035, -0.155), (0.93, 0.0, 0.0), (0.44, 0.135, 0.09)

#: Share of the scores that the ends of the scale hold: a tile beyond all others does not wash out the rest. It is one
#: of the scores, not a value between two of them, which among few tiles would be close to the largest.
_QUANTILE = 0.99

#: A scale ends at the quantile only where the largest score is more than so many times as large.
_TOLERATED = 1.5


@dataclass(frozen=True)
class ColourScale:
    """From a score to a colour.

    Attributes
    ----------
    low, high
        Scores at the ends; scores beyond get the end's colour.
    diverging
        Whether zero is the middle, in a neutral colour.
    clipped_low, clipped_high
        Whether there are scores beyond an end.
    """

    low: float
    high: float
    diverging: bool
    clipped_low: bool = False
    clipped_high: bool = False

    def position(self, scores: NDArray[np.floating]) -> NDArray[np.float64]:
        """Position on the scale, 0 at the low end and 1 at the high end."""
        values = np.asarray(scores, np.float64)
        return np.clip((values - self.low) / (self.high - self.low), 0.0, 1.0)

    def rgb(self, scores: NDArray[np.floating]) -> NDArray[np.uint8]:
        """Colours of scores, uint8 with a last axis of three."""
        steps = np.rint(self.position(scores) * 255).astype(np.intp)
        return self.table[steps]

    @property
    def table(self) -> NDArray[np.uint8]:
        """The 256 colours from low to high, uint8 ``[256, 3]``."""
        return diverging_table() if self.diverging else sequential_table()

    @property
    def ticks(self) -> tuple[float, ...]:
        """Scores to label: the ends, and the middle between them."""
        return (self.low, (self.low + self.high) / 2, self.high)


def scale_of(scores: TileScores) -> ColourScale:
    """The scale of a map: symmetric about zero for scores of both signs, from zero (or the lowest) otherwise."""
    values = scores.score.astype(np.float64)
    if scores.signed:
        limit = _end(np.abs(values))
        return ColourScale(-limit, limit, True, bool(values.min() < -limit), bool(values.max() > limit))
    high = _end(values)
    low = 0.0 if values.min() <= 0.5 * high else float(values.min())
    if high <= low:  # all equal
        low = high - abs(high)
    return ColourScale(low, high, False, bool(values.min() < low), bool(values.max() > high))


def _end(values: NDArray[np.float64]) -> float:
    """Where the scale of values that are not negative ends."""
    most, usual = float(values.max()), float(np.quantile(values, _QUANTILE, method="lower"))
    end = usual if usual > 0 and most > _TOLERATED * usual else most
    return end if end > 0 else 1.0


@cache
def diverging_table() -> NDArray[np.uint8]:
    """Blue, light grey, orange-red: uint8 ``[256, 3]``, even steps in OKLab on each arm."""
    t = np.linspace(-1.0, 1.0, 256)[:, None]
    below, zero, above = (np.array(colour) for colour in (_BELOW, _ZERO, _ABOVE))
    lab = zero + np.where(t < 0, -t * (below - zero), t * (above - zero))
    return _frozen(oklab_to_rgb(lab))


@cache
def sequential_table() -> NDArray[np.uint8]:
    """Light grey to orange-red: uint8 ``[256, 3]``, the upper arm of the diverging scale in 256 steps."""
    t = np.linspace(0.0, 1.0, 256)[:, None]
    zero, above = np.array(_ZERO), np.array(_ABOVE)
    return _frozen(oklab_to_rgb(zero + t * (above - zero)))


def oklab_to_rgb(lab: NDArray[np.float64]) -> NDArray[np.uint8]:
    """OKLab to sRGB in 0..255; colours outside sRGB are cut."""
    to_lms = np.array(
        [
            [1, 0.3963377774, 0.2158037573],
            [1, -0.1055613458, -0.0638541728],
            [1, -0.0894841775, -1.2914855480],
        ]
    )
    to_linear = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = np.clip((lab @ to_lms.T) ** 3 @ to_linear.T, 0.0, 1.0)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(255 * encoded).astype(np.uint8)


def _frozen(table: NDArray[np.uint8]) -> NDArray[np.uint8]:
    table.flags.writeable = False
    return table
