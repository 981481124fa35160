"""The ring of secure aggregation: weighted updates as fixed-point numbers, integers of 64 bit that are summed exactly.

Masks cancel in sums modulo 2^64 only if the summands are integers: every weighted update is rounded to multiples of
2^-s. A value that could overflow the sum is refused before it is added.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from equipoise.platform.errors import FederationError

#: Numbers processed at once, so that several such arrays fit the cache.
CHUNK = 1 << 15


class SaturationError(FederationError):
    """A value that is not finite, or so large that a sum of such values would leave 64 bit (exit code 1)."""


@dataclass(frozen=True)
class FixedPoint:
    """Numbers as multiples of 2^-bits.

    Parameters
    ----------
    bits
        s, number of fractional bits.
    summands
        Largest number of vectors that are added; their sum stays within 64 bit: ``summands · max|w u| · 2^s < 2^63``.
    """

    bits: int = 32
    summands: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 60 or self.summands < 1:
            raise FederationError(f"fixed point with {self.bits} bits for {self.summands} summands")

    @property
    def largest(self) -> float:
        """Largest magnitude of a weighted value that is accepted; about 2.1e9 / summands with 32 bits."""
        return math.ldexp(1.0, 63 - self.bits) / self.summands

    def require(self, peak: float, what: str = "the update") -> None:
        """Refuse a largest weighted magnitude.

        Raises
        ------
        SaturationError
            If it is NaN, infinite, or as large as :attr:`largest`.
        """
        if not math.isfinite(peak):
            raise SaturationError(f"{what} has values that are not finite")
        if peak >= self.largest:
            raise SaturationError(
                f"{what} has weighted values up to {peak:.3g}; sums of {self.summands} stay within 64 bit "
                f"below {self.largest:.3g} at {self.bits} bits"
            )

    def encode(self, values: np.ndarray, weight: float = 1.0) -> np.ndarray:
        """``[P]`` int64 of ``weight · values``, rounded half to even.

        Raises
        ------
        SaturationError
            If a value cannot be represented.
        """
        self.require(_peak(values) * abs(weight))
        result = np.empty(len(values), np.int64)
        scale = math.ldexp(weight, self.bits)
        for start in range(0, len(values), CHUNK):
            part = slice(start, start + CHUNK)
            result[part] = np.rint(np.multiply(values[part], scale, dtype=np.float64))
        return result

    def decode(self, total: np.ndarray, weight: float = 1.0, dtype: type = np.float64) -> np.ndarray:
        """``[P]`` of a sum divided by ``weight``."""
        result: np.ndarray = np.empty(len(total), dtype)
        unit = math.ldexp(1.0, -self.bits) / weight
        buffer = np.empty(min(CHUNK, len(total)))
        for start in range(0, len(total), CHUNK):
            part = total[start : start + CHUNK].view(np.int64)
            scaled = buffer[: len(part)]
            np.copyto(scaled, part)
            scaled *= unit
            result[start : start + CHUNK] = scaled
        return result


def _peak(values: np.ndarray) -> float:
    """Largest magnitude; NaN if there is one."""
    return float(max(values.max(), -values.min())) if len(values) else 0.0
