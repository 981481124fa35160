"""Sums whose order does not matter: weighted updates as whole numbers of 64 bit.

Sums of floating-point numbers depend on the order in which replies arrive, so a federation on three workers
would differ from one on one worker in the last bits, and after some rounds in more than that. Every weighted
update is therefore rounded to multiples of 2^-s and summed in int64, which is exact in any order. That is also
the ring Z_2^64 of secure aggregation. A sum that could leave the ring is refused before it is added.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from equipoise.platform.errors import FederationError
from equipoise.platform.federation.vector import Schema

#: Numbers handled at once: what fits the cache several times over.
CHUNK = 1 << 15
_ROUNDER = 1.5 * 2.0**52
_ROUNDER_BITS = int(np.float64(_ROUNDER).view(np.int64))


class SaturationError(FederationError):
    """A value that is not finite, or so large that a sum of such values would leave 64 bit (exit code 1)."""


@dataclass(frozen=True)
class FixedPoint:
    """Numbers as multiples of 2^-bits.

    Parameters
    ----------
    bits
        s, binary digits behind the point.
    summands
        Most vectors that are ever added; their sum stays within 64 bit: ``summands · max|w u| · 2^s < 2^63``.
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
        found = np.empty(len(values), np.int64)
        scale = math.ldexp(weight, self.bits)
        for start in range(0, len(values), CHUNK):
            part = slice(start, start + CHUNK)
            found[part] = np.rint(np.multiply(values[part], scale, dtype=np.float64))
        return found

    def decode(self, total: np.ndarray, weight: float = 1.0, dtype: type = np.float64) -> np.ndarray:
        """``[P]`` of a sum divided by ``weight``."""
        found: np.ndarray = np.empty(len(total), dtype)
        unit = math.ldexp(1.0, -self.bits) / weight
        room = np.empty(min(CHUNK, len(total)))
        for start in range(0, len(total), CHUNK):
            part = total[start : start + CHUNK].view(np.int64)
            scaled = room[: len(part)]
            np.copyto(scaled, part)
            scaled *= unit
            found[start : start + CHUNK] = scaled
        return found


@dataclass
class WeightedMean:
    """The mean of updates, segment group by segment group, one update at a time in memory.

    Parameters
    ----------
    schema
        Layout of the vectors.
    fixed
        How numbers are represented.
    """

    schema: Schema
    fixed: FixedPoint
    total: np.ndarray = field(init=False)
    weights: dict[str, list[float]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self.total = np.zeros(self.schema.size, np.int64)

    def add(
        self, values: np.ndarray, weights: Mapping[str, float], factor: float = 1.0, *, client: str = ""
    ) -> None:
        """Count a vector in: ``factor · weight · values`` above, ``weight`` below the line.

        Parameters
        ----------
        values
            ``[P]``.
        weights
            Group → weight; a group with 0, or without one, is left out.
        factor
            Of the numerator only.
        client
            Whose it is, for the error message.

        Raises
        ------
        SaturationError
            If a weighted value does not fit; nothing was added then.
        FederationError
            If more vectors come than the representation was made for.
        """
        self.schema.require(values)
        spans = [
            (span, weight, _peak(values[span]))
            for group, span in self.schema.spans
            if (weight := weights.get(group, 0.0))
        ]
        for _, weight, peak in spans:
            self.fixed.require(peak * abs(weight * factor), client or "the update")
        for group in {group for group, weight in weights.items() if weight}:
            behind = self.weights.setdefault(group, [])
            if len(behind) >= self.fixed.summands:
                raise FederationError(f"more than {self.fixed.summands} vectors in one sum")
            behind.append(float(weights[group]))
        for span, weight, peak in spans:
            self._add_scaled(values[span], math.ldexp(weight * factor, self.fixed.bits), span, peak)

    def _add_scaled(self, values: np.ndarray, scale: float, span: slice, peak: float) -> None:
        """Round and add, a stretch at a time that stays in the cache."""
        room = np.empty(CHUNK)
        whole = room.view(np.int64)
        # Where numbers are small enough, adding 1.5 · 2^52 rounds them (half to even) and leaves the whole number in
        # the lower bits: no conversion, half of the time.
        small = peak * abs(scale) < 2.0**51
        for start in range(span.start, span.stop, CHUNK):
            part = slice(start, min(start + CHUNK, span.stop))
            count = part.stop - part.start
            own = slice(part.start - span.start, part.stop - span.start)
            scaled, rounded, total = room[:count], whole[:count], self.total[part]
            np.multiply(values[own], scale, out=scaled, dtype=np.float64)
            if small:
                scaled += _ROUNDER
                rounded -= _ROUNDER_BITS
                total += rounded
            else:
                total += np.rint(scaled).astype(np.int64)

    def weight(self, group: str) -> float:
        """Sum of the weights of a group so far; the same in any order."""
        return math.fsum(self.weights.get(group, ()))

    def result(self) -> np.ndarray:
        """``[P]`` float32 mean; 0 where no vector had a weight."""
        found = np.zeros(self.schema.size, np.float32)
        for group, span in self.schema.spans:
            if weight := self.weight(group):
                found[span] = self.fixed.decode(self.total[span], weight, np.float32)
        return found

    def sums(self) -> np.ndarray:
        """``[P]`` float64 weighted sum."""
        return self.fixed.decode(self.total)


def _peak(values: np.ndarray) -> float:
    """Largest magnitude; NaN if there is one."""
    return float(max(values.max(), -values.min())) if len(values) else 0.0
