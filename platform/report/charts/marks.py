"""Traces as SVG: lines with fills, markers, error bars, text, bars, boxes and heat maps."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from equipoise.platform.report.charts.heat import cells
from equipoise.platform.report.charts.hover import tooltip
from equipoise.platform.report.charts.ink import fill, known, n, stroke, text, title
from equipoise.platform.report.charts.scale import Scale
from equipoise.platform.report.charts.stacking import Bar
from equipoise.platform.report.charts.text_size import lines_of
from equipoise.platform.report.style import INK, INTERNAL, PAPER, SERIES

Trace = Mapping[str, Any]
_DEFAULT = INTERNAL


@dataclass(frozen=True)
class Panel:
    """The two axes that a trace is drawn on, and the id of their clip path."""

    x: Scale
    y: Scale
    clip: str


def at(values: Any, index: int) -> Any:
    """Element of an array, or the scalar that stands for all."""
    if isinstance(values, list | tuple):
        return values[index] if index < len(values) else None
    return values


def points_of(trace: Trace) -> Iterator[dict[str, Any]]:
    """Every point with what its tooltip may name."""
    xs, ys = list(trace.get("x") or ()), list(trace.get("y") or ())
    for index in range(max(len(xs), len(ys))):
        yield {
            "x": at(xs, index) if xs else index,
            "y": at(ys, index) if ys else index,
            "text": at(trace.get("text"), index),
            "customdata": at(trace.get("customdata"), index),
            "index": index,
        }


def scatter(trace: Trace, panel: Panel, before: Trace | None) -> list[str]:
    """Fill, line, error bars, markers and text of a trace.

    Parameters
    ----------
    before
        The trace before on the same axes, for ``fill: tonexty``.
    """
    mode = str(trace.get("mode") or "lines+markers")
    parts: list[str] = []
    if trace.get("fill") not in (None, "none", ""):
        parts += _area(trace, panel, before)
    if "lines" in mode:
        parts += _line(trace, panel)
    points = [point for point in points_of(trace) if _visible(point, panel)]
    for key in ("error_x", "error_y"):
        if isinstance(trace.get(key), Mapping) and trace[key].get("visible", True):
            parts += _error_bars(trace, panel, points, key)
    if "markers" in mode:
        parts += markers(trace, panel, points)
    if "text" in mode.split("+"):
        parts += _texts(trace, panel, points)
    return parts


def _visible(point: Mapping[str, Any], panel: Panel) -> bool:
    x, y = panel.x.value(point["x"]), panel.y.value(point["y"])
    return x is not None and y is not None and panel.x.inside(x) and panel.y.inside(y)


def _line(trace: Trace, panel: Panel) -> list[str]:
    style = trace.get("line") or {}
    shape, width = str(style.get("shape") or "linear"), float(style.get("width", 2))
    pieces = [_path(piece, shape) for piece in _pieces(trace, panel)]
    path = "".join(piece for piece in pieces if piece)
    if not path or width <= 0:
        return []
    ink = stroke(style.get("color") or _DEFAULT, width, style.get("dash"), float(trace.get("opacity", 1)))
    clip = _clip(trace, panel)
    named = title("\n".join(lines_of(trace.get("name") or ""))) if trace.get("hoverinfo") != "skip" else ""
    return [
        f'<path d="{path}" fill="none" stroke-linejoin="round" {ink}{clip}>{named}</path>'
        if named
        else f'<path d="{path}" fill="none" stroke-linejoin="round" {ink}{clip}/>'
    ]


def _clip(trace: Trace, panel: Panel) -> str:
    """Clipping, where a line leaves the axes."""
    if trace.get("cliponaxis") is False:
        return ""
    for point in points_of(trace):
        x, y = panel.x.value(point["x"]), panel.y.value(point["y"])
        if (x is not None and not panel.x.inside(x)) or (y is not None and not panel.y.inside(y)):
            return f' clip-path="url(#{panel.clip})"'
    return ""


def _pieces(trace: Trace, panel: Panel) -> list[list[tuple[float, float]]]:
    """Runs of neighbouring points without a gap, in pixels."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for point in points_of(trace):
        x, y = panel.x(point["x"]), panel.y(point["y"])
        if x is None or y is None:
            if pieces[-1] and not trace.get("connectgaps"):
                pieces.append([])
        else:
            pieces[-1].append((x, y))
    return [piece for piece in pieces if piece]


def _path(points: Sequence[tuple[float, float]], shape: str, begin: str = "M") -> str:
    """A path through points; ``hv`` and ``vh`` are stairs. Points that fall on one pixel are drawn once."""
    if len(points) == 1 and begin == "M":
        return ""
    steps = [f"{begin}{n(points[0][0])},{n(points[0][1])}"]
    last = (n(points[0][0]), n(points[0][1]))
    for x, y in points[1:]:
        here = (n(x), n(y))
        if here == last:
            continue
        if shape == "hv" and here[0] != last[0] and here[1] != last[1]:
            steps.append(f"H{here[0]}V{here[1]}")
        elif shape == "vh" and here[0] != last[0] and here[1] != last[1]:
            steps.append(f"V{here[1]}H{here[0]}")
        elif here[1] == last[1]:
            steps.append(f"H{here[0]}")
        elif here[0] == last[0]:
            steps.append(f"V{here[1]}")
        else:
            steps.append(f"L{here[0]},{here[1]}")
        last = here
    return "".join(steps)


def _area(trace: Trace, panel: Panel, before: Trace | None) -> list[str]:
    """The area between a line and zero, the line before, or itself."""
    how = str(trace["fill"])
    shape = str((trace.get("line") or {}).get("shape") or "linear")
    colour = trace.get("fillcolor") or (trace.get("line") or {}).get("color") or _DEFAULT
    paths = []
    upper = _pieces(trace, panel)
    lower = _pieces(before, panel) if how == "tonexty" and before is not None else []
    for index, piece in enumerate(upper):
        outline = _path(piece, shape) or f"M{n(piece[0][0])},{n(piece[0][1])}"
        if how == "toself":
            paths.append(outline + "Z")
        elif lower and index < len(lower):
            back = str(((before or {}).get("line") or {}).get("shape") or "linear")
            turned = {"hv": "vh", "vh": "hv"}.get(back, back)
            paths.append(outline + _path(lower[index][::-1], turned, "L") + "Z")
        elif how in ("tozeroy", "tonexty"):
            zero = panel.y(0.0)
            ground = panel.y.start if zero is None else zero
            paths.append(f"{outline}V{n(ground)}H{n(piece[0][0])}Z")
        elif how in ("tozerox", "tonextx"):
            zero = panel.x(0.0)
            ground = panel.x.start if zero is None else zero
            paths.append(f"{outline}H{n(ground)}V{n(piece[0][1])}Z")
        else:
            raise ValueError(f"fill {how!r} is not supported")
    if not paths:
        return []
    own = 1.0 if trace.get("fillcolor") else 0.5
    return [f'<path d="{"".join(paths)}" stroke="none" {fill(colour, own)}{_clip(trace, panel)}/>']


def _error_bars(trace: Trace, panel: Panel, points: Sequence[Mapping[str, Any]], key: str) -> Iterator[str]:
    spec = trace[key]
    colour = spec.get("color") or (trace.get("marker") or {}).get("color") or _DEFAULT
    ink = stroke(_one(colour), float(spec.get("thickness", 1.5)))
    axis = panel.x if key == "error_x" else panel.y
    path = []
    for point in points:
        plus = at(spec.get("array"), point["index"])
        minus = at(spec.get("arrayminus"), point["index"]) if spec.get("symmetric") is False else plus
        datum = point["x" if key == "error_x" else "y"]
        ends = [
            datum - minus if known(minus) and known(datum) else datum,
            datum + plus if known(plus) and known(datum) else datum,
        ]
        if ends[0] == ends[1]:
            continue
        a, b = (_limited(axis, end) for end in ends)
        x, y = panel.x(point["x"]), panel.y(point["y"])
        if a is None or b is None or x is None or y is None:
            continue
        path.append(f"M{n(a)},{n(y)}H{n(b)}" if key == "error_x" else f"M{n(x)},{n(a)}V{n(b)}")
    if path:
        yield f'<path d="{"".join(path)}" fill="none" {ink}/>'


def _limited(axis: Scale, value: Any) -> float | None:
    """Pixel of a value, moved to the end of the axis if it is outside."""
    measure = axis.value(value)
    if measure is None:  # below the smallest number of a logarithmic axis
        return axis.start if known(value) else None
    low, high = sorted((axis.low, axis.high))
    return axis.pixel(min(max(measure, low), high))


def markers(trace: Trace, panel: Panel, points: Sequence[Mapping[str, Any]]) -> list[str]:
    """One mark per point, with its tooltip."""
    style = trace.get("marker") or {}
    opacity = float(style.get("opacity", 1)) * float(trace.get("opacity", 1))
    parts = []
    shared = not isinstance(style.get("color"), list)
    if not points:
        return []
    for point in points:
        index = point["index"]
        x, y = panel.x(point["x"]), panel.y(point["y"])
        assert x is not None
        assert y is not None
        size = at(style.get("size", 7), index)
        own = "" if shared else f" {_marker_ink(style, index, opacity)}"
        hint = title(tooltip(trace, point))
        parts.append(
            symbol(str(at(style.get("symbol"), index) or "circle"), x, y, float(size or 7), own, hint)
        )
    group = f" {_marker_ink(style, 0, opacity)}" if shared else ""
    return [f"<g{group}>", *parts, "</g>"]


def _marker_ink(style: Mapping[str, Any], index: int, opacity: float) -> str:
    colour = at(style.get("color"), index) or _DEFAULT
    if known(colour):
        colour = SERIES[int(colour) % len(SERIES)]
    kind = str(at(style.get("symbol"), index) or "circle")
    edge = style.get("line") or {}
    width = float(at(edge.get("width", 0), index) or 0)
    if kind.endswith("-open") or kind in ("cross-thin", "x-thin"):
        return f'fill="none" {stroke(colour, width or 1.5, opacity=opacity)}'
    outline = f" {stroke(at(edge.get('color'), index) or PAPER, width)}" if width else ""
    return f"{fill(colour, opacity)}{outline}"


def symbol(kind: str, x: float, y: float, size: float, attributes: str = "", hint: str = "") -> str:
    """A marker of a kind at a place."""
    r = size / 2
    base = kind.removesuffix("-open")
    if base == "circle":
        element = f'<circle cx="{n(x)}" cy="{n(y)}" r="{r:g}"{attributes}'
    elif base == "square":
        element = f'<rect x="{n(x - r)}" y="{n(y - r)}" width="{size:g}" height="{size:g}"{attributes}'
    else:
        element = f'<path d="{_outline(base, x, y, r)}"{attributes}'
    return f"{element}>{hint}</{element[1 : element.index(' ')]}>" if hint else f"{element}/>"


def _outline(kind: str, x: float, y: float, r: float) -> str:
    wide = 1.2 * r
    corners: dict[str, list[tuple[float, float]]] = {
        "diamond": [(0, -wide), (wide, 0), (0, wide), (-wide, 0)],
        "triangle-up": [(0, -wide), (wide, 0.8 * r), (-wide, 0.8 * r)],
        "triangle-down": [(0, wide), (wide, -0.8 * r), (-wide, -0.8 * r)],
        "triangle-left": [(-wide, 0), (0.8 * r, wide), (0.8 * r, -wide)],
        "triangle-right": [(wide, 0), (-0.8 * r, wide), (-0.8 * r, -wide)],
    }
    strokes: dict[str, list[tuple[tuple[float, float], tuple[float, float]]]] = {
        "line-ns": [((0, -r), (0, r))],
        "line-ew": [((-r, 0), (r, 0))],
        "cross": [((0, -r), (0, r)), ((-r, 0), (r, 0))],
        "x": [((-r, -r), (r, r)), ((-r, r), (r, -r))],
    }
    if kind == "star":
        turns = [(k * math.pi / 5, wide if k % 2 == 0 else wide / 2.4) for k in range(10)]
        corners["star"] = [(d * math.sin(a), -d * math.cos(a)) for a, d in turns]
    if kind in corners:
        return "M" + "L".join(f"{n(x + a)},{n(y + b)}" for a, b in corners[kind]) + "Z"
    if kind.removesuffix("-thin") in strokes:
        return "".join(
            f"M{n(x + a)},{n(y + b)}L{n(x + c)},{n(y + d)}"
            for (a, b), (c, d) in strokes[kind.removesuffix("-thin")]
        )
    raise ValueError(f"marker symbol {kind!r} is not supported")


def _texts(trace: Trace, panel: Panel, points: Sequence[Mapping[str, Any]]) -> list[str]:
    font = trace.get("textfont") or {}
    size = float(at(font.get("size", 11.5), 0))
    vertical, _, horizontal = str(trace.get("textposition") or "middle center").partition(" ")
    anchor = {"right": "start", "left": "end"}.get(horizontal, "middle")
    gap = float(at((trace.get("marker") or {}).get("size", 0), 0) or 0) / 2 + 5
    dx = {"right": gap, "left": -gap}.get(horizontal, 0.0)
    dy = {"top": -gap, "bottom": gap + 0.72 * size}.get(vertical, 0.36 * size)
    parts = []
    for point in points:
        x, y = panel.x(point["x"]), panel.y(point["y"])
        assert x is not None
        assert y is not None
        ink = fill(at(font.get("color"), point["index"]) or INK)
        shown = " ".join(lines_of(point["text"] if point["text"] is not None else ""))
        parts.append(
            f'<text x="{n(x + dx)}" y="{n(y + dy)}" text-anchor="{anchor}" font-size="{size:g}" {ink}>'
            f"{text(shown)}</text>"
        )
    return parts


def bars(trace: Trace, panel: Panel, placed: Sequence[Bar]) -> list[str]:
    """Rectangles of a bar trace, with error bars at their ends."""
    style = trace.get("marker") or {}
    opacity = float(style.get("opacity", 1)) * float(trace.get("opacity", 1))
    flat = trace.get("orientation") == "h"
    along, across = (panel.x, panel.y) if flat else (panel.y, panel.x)
    shared = not isinstance(style.get("color"), list)
    parts = [f"<g {_marker_ink(style, 0, opacity)}>" if shared else "<g>"]
    for bar in placed:
        a, b = _limited(along, bar.base), _limited(along, bar.tip)
        c, d = across.pixel(bar.middle - bar.width / 2), across.pixel(bar.middle + bar.width / 2)
        if a is None or b is None:
            continue
        x, y, w, h = (a, c, b, d) if flat else (c, a, d, b)
        point = {"x": at(trace.get("x"), bar.index), "y": at(trace.get("y"), bar.index),
                 "text": at(trace.get("text"), bar.index),
                 "customdata": at(trace.get("customdata"), bar.index)}  # fmt: skip
        own = "" if shared else f" {_marker_ink(style, bar.index, opacity)}"
        hint = title(tooltip(trace, point))
        box = f'x="{n(min(x, w))}" y="{n(min(y, h))}" width="{n(abs(w - x))}" height="{n(abs(h - y))}"'
        parts.append(f"<rect {box}{own}>{hint}</rect>" if hint else f"<rect {box}{own}/>")
    parts.append("</g>")
    key = "error_x" if flat else "error_y"
    if isinstance(trace.get(key), Mapping):
        tips = [
            {"x": bar.tip if flat else bar.middle, "y": bar.middle if flat else bar.tip, "index": bar.index}
            for bar in placed
        ]
        parts += _error_bars(trace, panel, tips, key)
    return parts


def boxes(trace: Trace, panel: Panel, place: float, wide: float) -> list[str]:
    """One box of raw values: quartiles, whiskers within 1.5 interquartile ranges, and its points.

    Quartiles interpolate linearly between order statistics (the default of NumPy).
    """
    import numpy as np

    flat = trace.get("orientation") == "h" or (trace.get("x") and not trace.get("y"))
    key = "x" if flat else "y"
    found = [(k, v) for k, v in enumerate(trace.get(key) or ()) if known(v)]
    if not found:
        return []
    values = np.array([v for _, v in found], float)
    low, middle, high = np.percentile(values, [25, 50, 75])
    reach = 1.5 * (high - low)
    inside = values[(values >= low - reach) & (values <= high + reach)]
    along, across = (panel.x, panel.y) if flat else (panel.y, panel.x)
    style = trace.get("line") or {}
    ink = stroke(style.get("color") or _DEFAULT, float(style.get("width", 1.5)))
    p = [along.pixel(along.value(float(v)) or 0.0) for v in (inside.min(), low, middle, high, inside.max())]
    a, m, b = (across.pixel(place + shift * wide / 2) for shift in (-1, 0, 1))
    a, b = min(a, b), max(a, b)
    left, right = sorted((p[1], p[3]))
    if flat:
        box = f'<rect x="{n(left)}" y="{n(a)}" width="{n(right - left)}" height="{n(b - a)}"'
        lines = f"M{n(p[0])},{n(m)}H{n(p[1])}M{n(p[3])},{n(m)}H{n(p[4])}M{n(p[2])},{n(a)}V{n(b)}"
    else:
        box = f'<rect x="{n(a)}" y="{n(left)}" width="{n(b - a)}" height="{n(right - left)}"'
        lines = f"M{n(m)},{n(p[0])}V{n(p[1])}M{n(m)},{n(p[3])}V{n(p[4])}M{n(a)},{n(p[2])}H{n(b)}"
    parts = [
        f"{box} {fill(trace.get('fillcolor') or PAPER)} {ink}/>",
        f'<path d="{lines}" fill="none" {ink}/>',
    ]
    shown = trace.get("boxpoints", "outliers")
    if shown not in (False, None):
        kept = {id_ for (id_, v) in found if shown == "all" or v < inside.min() or v > inside.max()}
        jitter = float(trace.get("jitter", 0)) * wide / 2
        dots = []
        for order, (index, value) in enumerate(found):
            if index in kept:
                # Golden-ratio steps spread the points evenly and need no random numbers.
                shift = jitter * (2 * ((order * 0.6180339887) % 1) - 1)
                dots.append({"x": value if flat else place + shift, "y": place + shift if flat else value,
                             "text": at(trace.get("text"), index), "customdata": at(trace.get("customdata"), index),
                             "index": index})  # fmt: skip
        parts += markers(trace, panel, dots)
    return parts


def heat_map(trace: Trace, panel: Panel) -> list[str]:
    """Cells with their numbers."""
    return cells(trace, panel.x, panel.y)


def _one(colour: Any) -> Any:
    return colour[0] if isinstance(colour, list) and colour else colour
