"""Fixed-point sums, exact in any order: weighted updates as integers of 64 bit.

Sums of floating-point numbers depend on the order in which replies arrive, so that a federation on three workers
would differ from one on one worker in the last bits, and more after some rounds. Every weighted update is
therefore rounded to multiples of 2^-s and summed in int64, which is exact in any order. That is also the ring
Z_2^64 of secure aggregation. A value that could overflow the sum is refused before it is added.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from equipoise.platform.errors import FederationError
from equipoise.platform.federation.vector import Schema

#: Numbers processed at once, so that several such arrays fit the cache.
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


@dataclass
class WeightedMean:
    """The mean of updates, segment group by segment group, one update at a time in memory.

    Parameters
    ----------
    schema
        Layout of the vectors.
    fixed
        The fixed-point representation.
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
        """Add a vector: ``factor · weight · values`` to the numerator, ``weight`` to the denominator.

        Parameters
        ----------
        values
            ``[P]``.
        weights
            Group → weight; a group with 0, or without one, is left out.
        factor
            Of the numerator only.
        client
            Name of the client, for error messages.

        Raises
        ------
        SaturationError
            If a weighted value does not fit; then nothing is added.
        FederationError
            If more vectors are added than the representation allows.
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
            group_weights = self.weights.setdefault(group, [])
            if len(group_weights) >= self.fixed.summands:
                raise FederationError(f"more than {self.fixed.summands} vectors in one sum")
            group_weights.append(float(weights[group]))
        for span, weight, peak in spans:
            self._add_scaled(values[span], math.ldexp(weight * factor, self.fixed.bits), span, peak)

    def _add_scaled(self, values: np.ndarray, scale: float, span: slice, peak: float) -> None:
        """Round and add, in chunks that stay in the cache."""
        buffer = np.empty(CHUNK)
        whole = buffer.view(np.int64)
        # If numbers are small enough, adding 1.5 · 2^52 rounds them (half to even) and leaves the integer in the lower
        # bits: no conversion, half the time.
        small = peak * abs(scale) < 2.0**51
        for start in range(span.start, span.stop, CHUNK):
            part = slice(start, min(start + CHUNK, span.stop))
            count = part.stop - part.start
            source = slice(part.start - span.start, part.stop - span.start)
            scaled, rounded, total = buffer[:count], whole[:count], self.total[part]
            np.multiply(values[source], scale, out=scaled, dtype=np.float64)
            if small:
                scaled += _ROUNDER
                rounded -= _ROUNDER_BITS
                total += rounded
            else:
                total += np.rint(scaled).astype(np.int64)

    def weight(self, group: str) -> float:
        """Sum of the weights of a group so far, whatever the order."""
        return math.fsum(self.weights.get(group, ()))

    def result(self) -> np.ndarray:
        """``[P]`` float32 mean; 0 where no vector had a positive weight."""
        mean = np.zeros(self.schema.size, np.float32)
        for group, span in self.schema.spans:
            if weight := self.weight(group):
                mean[span] = self.fixed.decode(self.total[span], weight, np.float32)
        return mean

    def sums(self) -> np.ndarray:
        """``[P]`` float64 weighted sum."""
        return self.fixed.decode(self.total)


def _peak(values: np.ndarray) -> float:
    """Largest magnitude; NaN if there is one."""
    return float(max(values.max(), -values.min())) if len(values) else 0.0
