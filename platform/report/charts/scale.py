"""Axes: from the values of the traces to a range, to ticks with labels, and to pixels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from equipoise.platform.report.charts import ticks
from equipoise.platform.report.charts.ink import known
from equipoise.platform.report.charts.text_size import lines_of

#: Distances between ticks in pixels, along x and along y.
_APART = {"x": 52.0, "y": 30.0}


@dataclass(frozen=True)
class Scale:
    """An axis with its range in pixels.

    Parameters
    ----------
    name
        ``x``, ``y``, ``x2``, …
    kind
        ``linear``, ``log`` or ``category``.
    low, high
        Ends of the range: numbers, decimal logarithms or positions of categories; ``low`` is above ``high`` on a
        reversed axis.
    start, end
        Pixels of the two ends.
    ticks
        Values (of the kind of ``low``) with their labels.
    """

    name: str
    spec: dict[str, Any]
    kind: str
    low: float
    high: float
    categories: tuple[str, ...] = ()
    ticks: tuple[tuple[float, str], ...] = ()
    start: float = 0.0
    end: float = 1.0

    def value(self, value: Any) -> float | None:
        """A datum on the axis' own measure; None for one that has no place on it."""
        if self.kind == "category":
            if isinstance(value, str):
                return float(self.categories.index(value)) if value in self.categories else None
            return float(value) if known(value) else None
        if not known(value):
            return None
        if self.kind == "log":
            return math.log10(value) if value > 0 else None
        return float(value)

    def pixel(self, measure: float) -> float:
        """Pixel of a place on the axis' own measure."""
        span = self.high - self.low
        share = (measure - self.low) / span if span else 0.5
        return self.start + share * (self.end - self.start)

    def __call__(self, value: Any) -> float | None:
        """Pixel of a datum."""
        measure = self.value(value)
        return None if measure is None else self.pixel(measure)

    def inside(self, measure: float) -> bool:
        """Whether a place is in the range."""
        low, high = sorted((self.low, self.high))
        slack = 1e-9 * (high - low or 1)
        return low - slack <= measure <= high + slack

    def shows(self, part: str, default: bool = True) -> bool:
        """A switch of the axis; an invisible axis shows nothing."""
        return bool(self.spec.get("visible", True)) and bool(self.spec.get(part, default))

    def placed(self, start: float, end: float) -> "Scale":
        """The same axis at other pixels."""
        return replace(self, start=start, end=end)


@dataclass
class Values:
    """What the traces of one axis hold."""

    numbers: list[float] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    #: Whether marks have an extent, so that the range needs air at its ends.
    air: bool = False
    #: Whether marks grow from zero.
    from_zero: bool = False

    def add(self, values: Sequence[Any]) -> None:
        """Numbers and categories; gaps are left out."""
        for value in values:
            if isinstance(value, str):
                if value not in self.texts:
                    self.texts.append(value)
            elif known(value):
                self.numbers.append(float(value))


def build_scale(name: str, spec: dict[str, Any], values: Values, length: float) -> Scale:
    """The axis with its range and ticks, for about ``length`` pixels."""
    kind = str(spec.get("type") or ("category" if values.texts else "linear"))
    if kind not in ("linear", "log", "category"):
        raise ValueError(f"axes of type {kind!r} are not supported")
    if kind == "category":
        names = [str(v) for v in spec.get("categoryarray") or values.texts]
        low, high = _given(spec) or (-0.5, max(len(names), 1) - 0.5)
        scale = Scale(name, spec, kind, low, high, tuple(names))
    else:
        low, high = _given(spec) or _range(kind, spec, values)
        scale = Scale(name, spec, kind, low, high)
    if spec.get("autorange") == "reversed" and scale.low < scale.high:
        scale = replace(scale, low=scale.high, high=scale.low)
    return replace(scale, ticks=tuple(_ticks(scale, length)))


def _given(spec: dict[str, Any]) -> tuple[float, float] | None:
    ends = spec.get("range")
    if ends is None or len(ends) != 2 or not all(known(end) for end in ends):
        return None
    return float(ends[0]), float(ends[1])


def _range(kind: str, spec: dict[str, Any], values: Values) -> tuple[float, float]:
    numbers = values.numbers
    if kind == "log":
        numbers = [math.log10(value) for value in numbers if value > 0]
    if not numbers:
        return 0.0, 1.0
    low, high = min(numbers), max(numbers)
    zero = values.from_zero or spec.get("rangemode") == "tozero"
    if zero and kind == "linear":
        low, high = min(low, 0.0), max(high, 0.0)
    if low == high:
        pad = abs(low) * 0.1 or 0.5
        return (low, high + pad) if zero and low == 0 else (low - pad, high + pad)
    pad = (0.05 if values.air else 0.0) * (high - low)
    return (low if zero and low == 0 else low - pad), (high if zero and high == 0 else high + pad)


def _ticks(scale: Scale, length: float) -> list[tuple[float, str]]:
    spec = scale.spec
    if spec.get("visible") is False or spec.get("showticklabels") is False:
        return []
    along = scale.name[0]
    most = max(2, int(length / _APART[along]))
    if spec.get("tickvals") is not None:
        texts = spec.get("ticktext")
        given = list(spec["tickvals"])
        shown = list(texts) if texts is not None else [_label(scale, value) for value in given]
        placed = [(scale.value(v), str(t)) for v, t in zip(given, shown, strict=True)]
        return [(v, t) for v, t in placed if v is not None and scale.inside(v)]
    if scale.kind == "category":
        return [(float(k), name) for k, name in enumerate(scale.categories) if scale.inside(float(k))]
    if scale.kind == "log":
        values = ticks.logarithmic(scale.low, scale.high, most)
        return [(math.log10(value), _label(scale, value)) for value in values]
    size = spec.get("dtick")
    whole = str(spec.get("tickformat") or "").endswith("d")
    if not known(size) or size <= 0 or abs(scale.high - scale.low) / size > 4 * most:
        size = ticks.step(scale.low, scale.high, most)
        size = max(1.0, size) if whole else size
    values = ticks.linear(scale.low, scale.high, float(size))
    if spec.get("tickformat") or spec.get("ticksuffix") or spec.get("tickprefix"):
        return [(value, _label(scale, value)) for value in values]
    return list(zip(values, ticks.labels(values), strict=True))


def _label(scale: Scale, value: Any) -> str:
    form = str(scale.spec.get("tickformat") or "")
    text = ticks.number(value, form) if form else ticks.number(value, ".6g")
    return f"{scale.spec.get('tickprefix', '')}{text}{scale.spec.get('ticksuffix', '')}"


def title_of(spec: dict[str, Any]) -> str:
    """The text of an axis title."""
    title = spec.get("title") or ""
    text = title.get("text") if isinstance(title, dict) else title
    return " ".join(lines_of(text or "")).strip()
