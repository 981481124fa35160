"""Where bars begin and end: stacked, side by side, or one over the other."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from equipoise.platform.report.charts.ink import known


@dataclass(frozen=True)
class Bar:
    """A bar on the measures of its axes: from ``base`` to ``tip``, ``width`` around ``middle``."""

    index: int
    middle: float
    width: float
    base: float
    tip: float


def place(
    traces: Sequence[Mapping[str, Any]], names: Sequence[str], mode: str, gap: float = 0.2
) -> list[list[Bar]]:
    """The bars of each trace on one pair of axes.

    Parameters
    ----------
    names
        Categories of the axis that the bars stand on; empty if it is numeric.
    mode
        ``stack``, ``relative``, ``group`` or ``overlay``.
    gap
        Share of the room of a bar that stays empty.
    """
    positions = [_positions(trace, names) for trace in traces]
    every = sorted({p for of_trace in positions for p in of_trace if p is not None})
    room = min((b - a for a, b in itertools.pairwise(every)), default=1.0)
    ends: dict[tuple[float, bool], float] = {}
    placed: list[list[Bar]] = []
    for k, (trace, of_trace) in enumerate(zip(traces, positions, strict=True)):
        lengths = trace.get("x" if trace.get("orientation") == "h" else "y") or []
        bars = []
        for index, (position, length) in enumerate(zip(of_trace, lengths, strict=False)):
            if position is None or not known(length):
                continue
            given = trace.get("width")
            own = given[index] if isinstance(given, list) else given
            width, middle = float(own) if known(own) else room * (1 - gap), position
            base = trace.get("base")
            base = base[index] if isinstance(base, list) else base
            start = float(base) if known(base) else 0.0
            if mode in ("stack", "relative"):
                key = (position, length < 0)
                start = ends.get(key, start)
                ends[key] = start + length
            elif mode == "group":
                width /= len(traces)
                middle = position + (k - (len(traces) - 1) / 2) * width
            bars.append(Bar(index, middle, width, start, start + float(length)))
        placed.append(bars)
    return placed


def _positions(trace: Mapping[str, Any], names: Sequence[str]) -> list[float | None]:
    values = trace.get("y" if trace.get("orientation") == "h" else "x")
    if values is None:
        lengths = trace.get("x" if trace.get("orientation") == "h" else "y") or []
        return [float(k) for k in range(len(lengths))]
    if names:
        where = {name: float(k) for k, name in enumerate(names)}
        return [where.get(str(value)) for value in values]
    return [float(value) if known(value) else None for value in values]
