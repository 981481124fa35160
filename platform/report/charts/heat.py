"""Heat maps: colours between the stops of a scale, cells with numbers that stay readable, and the bar of colours.

White is the page: a stop of that colour is drawn as nothing, and colours next to it as their share of opacity, so that
a map fits a dark page as well.
"""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from equipoise.platform.report.charts.hover import tooltip
from equipoise.platform.report.charts.ink import fill, known, n, text, title
from equipoise.platform.report.charts.scale import Scale
from equipoise.platform.report.charts.text_size import lines_of
from equipoise.platform.report.charts.ticks import number
from equipoise.platform.report.style import INK, INTERNAL, PAPER

Stops = Sequence[tuple[float, str]]
_DEFAULT: Stops = ((0.0, PAPER), (1.0, INTERNAL))
_STRIPES = 24


def stops_of(trace: Mapping[str, Any]) -> Stops:
    """The scale of colours as pairs of a share and a colour."""
    scale = trace.get("colorscale")
    if scale is None:
        return _DEFAULT
    if isinstance(scale, str):
        raise ValueError(f"the named scale of colours {scale!r} is not supported: list its stops")
    stops = tuple((float(share), str(colour)) for share, colour in scale)
    return tuple((1 - share, colour) for share, colour in stops[::-1]) if trace.get("reversescale") else stops


def limits_of(trace: Mapping[str, Any]) -> tuple[float, float]:
    """Values at the two ends of the scale."""
    values = [value for row in trace.get("z") or () for value in row or () if known(value)]
    given_low, given_high = trace.get("zmin"), trace.get("zmax")
    low = given_low if known(given_low) else min(values, default=0.0)
    high = given_high if known(given_high) else max(values, default=1.0)
    if known(trace.get("zmid")):
        reach = max(abs(high - trace["zmid"]), abs(trace["zmid"] - low))
        low, high = trace["zmid"] - reach, trace["zmid"] + reach
    return float(low), float(high)


def paint(share: float, stops: Stops) -> tuple[str, float]:
    """Attributes of the colour at a share of the scale, and how dark it is: 0 is the page, 1 a full colour."""
    share = min(max(share, 0.0), 1.0)
    upper = next((k for k, (at, _) in enumerate(stops) if at >= share), len(stops) - 1)
    lower = max(0, upper - 1)
    (a, first), (b, second) = stops[lower], stops[upper]
    part = (share - a) / (b - a) if b > a else 1.0
    first_is_page, second_is_page = (colour.lower() in (PAPER, "#fff", "white") for colour in (first, second))
    if first_is_page and second_is_page:
        return 'fill="none"', 0.0
    if first_is_page:
        return fill(second, part), part
    if second_is_page:
        return fill(first, 1 - part), 1 - part
    if part in (0.0, 1.0):
        return fill(second if part else first), 1.0
    return fill(_mixed(first, second, part)), 1.0


def _mixed(first: str, second: str, part: float) -> str:
    pairs = zip(_channels(first), _channels(second), strict=True)
    return "#" + "".join(f"{round(a + part * (b - a)):02x}" for a, b in pairs)


def _channels(colour: str) -> tuple[int, int, int]:
    bare = colour.removeprefix("#")
    if len(bare) != 6:
        raise ValueError(f"the colour {colour!r} of a scale is not written as #rrggbb")
    return int(bare[0:2], 16), int(bare[2:4], 16), int(bare[4:6], 16)


def cells(trace: Mapping[str, Any], x: Scale, y: Scale) -> list[str]:
    """A rectangle per number, with the number inside."""
    rows = trace.get("z") or []
    columns = max((len(row) for row in rows), default=0)
    stops, (low, high) = stops_of(trace), limits_of(trace)
    lefts, tops = _edges(trace.get("x"), columns, x), _edges(trace.get("y"), len(rows), y)
    gap_x, gap_y = float(trace.get("xgap", 0)), float(trace.get("ygap", 0))
    size = float((trace.get("textfont") or {}).get("size", 11))
    shapes, words = [], []
    for i, row in enumerate(rows):
        for j, value in enumerate(row):
            if not known(value):
                continue
            ink, dark = paint((value - low) / (high - low) if high > low else 0.5, stops)
            left, right = sorted((lefts[j], lefts[j + 1]))
            top, bottom = sorted((tops[i], tops[i + 1]))
            w, h = max(right - left - gap_x, 0.5), max(bottom - top - gap_y, 0.5)
            shown = _cell_of(trace.get("text"), i, j)
            point = {"x": _item(trace.get("x"), j), "y": _item(trace.get("y"), i), "z": value, "text": shown,
                     "customdata": _cell_of(trace.get("customdata"), i, j)}  # fmt: skip
            hint = title(tooltip(trace, point))
            box = f'x="{n(left + gap_x / 2)}" y="{n(top + gap_y / 2)}" width="{n(w)}" height="{n(h)}"'
            shapes.append(f"<rect {box} {ink}>{hint}</rect>" if hint else f"<rect {box} {ink}/>")
            if template := str(trace.get("texttemplate") or ""):
                said = tooltip({"hovertemplate": template}, point)
                colour = fill(PAPER if dark > 0.55 else INK)
                middle = (left + right) / 2, (top + bottom) / 2 + 0.36 * size
                words.append(f'<text x="{n(middle[0])}" y="{n(middle[1])}" font-size="{size:g}" {colour}>'
                             f"{text(said)}</text>")  # fmt: skip
    return ["<g>", *shapes, "</g>", *(['<g text-anchor="middle">', *words, "</g>"] if words else [])]


def _edges(values: Any, size: int, axis: Scale) -> list[float]:
    """Pixels of the borders of rows or columns."""
    if axis.kind == "category" or not values:
        return [axis.pixel(k - 0.5) for k in range(size + 1)]
    numbers = [float(v) for v in values]
    if len(numbers) == size + 1:
        return [axis.pixel(axis.value(v) or 0.0) for v in numbers]
    middles = [(a + b) / 2 for a, b in itertools.pairwise(numbers)]
    half = (numbers[1] - numbers[0]) / 2 if size > 1 else 0.5
    last = (numbers[-1] - numbers[-2]) / 2 if size > 1 else 0.5
    return [axis.pixel(axis.value(v) or 0.0) for v in (numbers[0] - half, *middles, numbers[-1] + last)]


def span(values: Any, size: int) -> list[Any]:
    """Data that the axis of a heat map must cover: its categories, or the borders of its numeric cells."""
    if not values:
        return [-0.5, size - 0.5]
    if any(isinstance(v, str) for v in values):
        return [str(v) for v in values]
    numbers = [float(v) for v in values]
    half = (numbers[1] - numbers[0]) / 2 if len(numbers) > 1 else 0.5
    return [numbers[0] - half, numbers[-1] + half]


def _item(values: Any, index: int) -> Any:
    return values[index] if values and index < len(values) else index


def _cell_of(table: Any, i: int, j: int) -> Any:
    try:
        return table[i][j]
    except (TypeError, IndexError, KeyError):
        return None


def colour_bar(trace: Mapping[str, Any], left: float, top: float, height: float) -> list[str]:
    """The scale beside the map, with its ticks and title."""
    bar = trace.get("colorbar") or {}
    stops, (low, high) = stops_of(trace), limits_of(trace)
    wide, size = float(bar.get("thickness", 10)), float((bar.get("tickfont") or {}).get("size", 11))
    parts = []
    for k in range(_STRIPES):
        ink, _ = paint((k + 0.5) / _STRIPES, stops)
        y = top + height * (1 - (k + 1) / _STRIPES)
        parts.append(
            f'<rect x="{n(left)}" y="{n(y)}" width="{n(wide)}" height="{n(height / _STRIPES + 0.4)}" {ink}/>'
        )
    for value, label in bar_ticks(trace):
        y = top + height * (1 - (value - low) / (high - low or 1))
        parts.append(f'<text x="{n(left + wide + 5)}" y="{n(y + 0.36 * size)}" font-size="{size:g}" {fill(INK)}>'
                     f"{text(label)}</text>")  # fmt: skip
    return parts


def bar_ticks(trace: Mapping[str, Any]) -> list[tuple[float, str]]:
    """Values and labels of the bar of colours."""
    bar, (low, high) = trace.get("colorbar") or {}, limits_of(trace)
    values = bar.get("tickvals") or [low, (low + high) / 2, high]
    texts = bar.get("ticktext") or [number(value, bar.get("tickformat") or ".3g") for value in values]
    return [(float(v), " ".join(lines_of(t))) for v, t in zip(values, texts, strict=True) if low <= v <= high]
