"""Weighted sums of updates in float64, in the order in which they are added: by name of the client.

Sums of floating-point numbers depend on the order of the summands; the server adds updates in the order of names,
whatever the order in which replies arrive, so that the result has the same bits on any backend.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np

from equipoise.platform.federation.vector import Schema

#: Numbers processed at once, so that they fit the cache.
CHUNK = 1 << 15
#: Updates that are held until they are summed in one pass over memory.
HELD = 8


class WeightedMean:
    """The mean of updates, group by group; holds at most :data:`HELD` updates.

    Parameters
    ----------
    schema
        Layout of the vectors.
    """

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.weights: dict[str, list[float]] = {}
        self._held: list[tuple[np.ndarray, dict[str, float]]] = []
        self._total: np.ndarray | None = None

    def add(
        self, values: np.ndarray, weights: Mapping[str, float], factor: float = 1.0, *, client: str = ""
    ) -> None:
        """Add a vector: ``factor · weight · values`` to the numerator, ``weight`` to the denominator.

        Parameters
        ----------
        values
            ``[P]`` finite numbers; must not be changed afterwards.
        weights
            Group → weight; a group with 0, or without one, is left out.
        factor
            Of the numerator only.
        client
            Name of the client; not used here.
        """
        self.schema.require(values)
        if len(self._held) == HELD:
            self._total, self._held = self.sums(), []
        self._held.append((values, {group: weight * factor for group, weight in weights.items() if weight}))
        for group, weight in weights.items():
            if weight:
                self.weights.setdefault(group, []).append(float(weight))

    def weight(self, group: str) -> float:
        """Sum of the weights of a group so far, whatever the order."""
        return math.fsum(self.weights.get(group, ()))

    def result(self) -> np.ndarray:
        """``[P]`` float32 mean; 0 where no vector had a positive weight."""
        mean = np.empty(self.schema.size, np.float32)  # zeros of this size cost a pass over memory
        weights = {group: self.weight(group) for group in self.schema.groups}
        for group, part, sums in self._parts():
            mean[part] = np.divide(sums, weights[group] or 1.0, out=sums)
        return mean

    def withheld(self) -> Mapping[str, str]:
        """None: every group that was trained has its mean."""
        return {}

    def sums(self) -> np.ndarray:
        """``[P]`` float64 weighted sum."""
        total = np.empty(self.schema.size)
        for _, part, sums in self._parts():
            total[part] = sums
        return total

    def _parts(self) -> Iterator[tuple[str, slice, np.ndarray]]:
        """Group, stretch of the vector, and its weighted sum, in a buffer that is used again."""
        sums, product = np.empty((2, min(CHUNK, self.schema.size)))
        for group, span in self.schema.spans:
            scaled = [(values, scales[group]) for values, scales in self._held if group in scales]
            for start in range(span.start, span.stop, CHUNK):
                part = slice(start, min(start + CHUNK, span.stop))
                of_part, weighted = sums[: part.stop - start], product[: part.stop - start]
                first = 0
                if self._total is not None:
                    of_part[:] = self._total[part]
                elif scaled:
                    np.multiply(scaled[0][0][part], scaled[0][1], out=of_part, dtype=np.float64)
                    first = 1
                else:
                    of_part[:] = 0.0
                for values, scale in scaled[first:]:
                    of_part += np.multiply(values[part], scale, out=weighted, dtype=np.float64)
                yield group, part, of_part
