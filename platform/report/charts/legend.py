"""The legend: a sample of each trace and its name, in rows that fit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from equipoise.platform.report.charts.ink import fill, n, stroke, text
from equipoise.platform.report.charts.marks import at, symbol
from equipoise.platform.report.charts.text_size import lines_of, width, wrap
from equipoise.platform.report.style import INTERNAL, SOFT

_SIZE, _SWATCH, _GAP, _ROW = 11.5, 24.0, 16.0, 17.0


@dataclass(frozen=True)
class Legend:
    """Entries with their places, relative to the legend's corner, and its size in pixels."""

    entries: tuple[tuple[Mapping[str, Any], tuple[str, ...], float, float], ...]
    height: float
    width: float


def arrange(traces: Sequence[Mapping[str, Any]], layout: Mapping[str, Any], room: float) -> Legend:
    """Rows of the traces that are in the legend; one trace alone needs none."""
    shown = [trace for trace in traces if _listed(trace)]
    wanted = layout.get("showlegend")
    if wanted is False or not shown or (len(traces) == 1 and not wanted and not shown[0].get("showlegend")):
        return Legend((), 0.0, 0.0)
    entries: list[tuple[Mapping[str, Any], tuple[str, ...], float, float]] = []
    x = y = widest = 0.0
    tallest = 1
    for trace in shown:
        lines = tuple(wrap(" ".join(lines_of(trace["name"])), _SIZE, room - _SWATCH - 6))
        needed = _SWATCH + 6 + max(width(line, _SIZE) for line in lines)
        if x and x + needed > room:
            x, y, tallest = 0.0, y + _ROW * tallest, 1
        entries.append((trace, lines, x, y))
        tallest = max(tallest, len(lines))
        widest = max(widest, x + needed)
        x += needed + _GAP
    return Legend(tuple(entries), y + _ROW * tallest, widest)


def _listed(trace: Mapping[str, Any]) -> bool:
    named = bool(str(trace.get("name") or "").strip())
    if trace.get("type") == "heatmap" or not named:
        return False
    return trace.get("showlegend", True) is not False


def draw(legend: Legend, left: float, top: float) -> list[str]:
    """The legend with its corner at a place."""
    parts = [f'<g font-size="{_SIZE:g}" {fill(SOFT)}>'] if legend.entries else []
    for trace, lines, x, y in legend.entries:
        middle = top + y + _ROW / 2
        parts += _sample(trace, left + x, middle)
        for k, line in enumerate(lines):
            parts.append(
                f'<text x="{n(left + x + _SWATCH + 6)}" y="{n(middle + 4 + _ROW * k)}">{text(line)}</text>'
            )
    return [*parts, "</g>"] if parts else []


def _sample(trace: Mapping[str, Any], left: float, middle: float) -> list[str]:
    marker, line = trace.get("marker") or {}, trace.get("line") or {}
    colour = at(marker.get("color"), 0) or line.get("color") or INTERNAL
    kind, mode = str(trace.get("type", "scatter")), str(trace.get("mode") or "lines+markers")
    if kind in ("bar", "box") or trace.get("fill") not in (None, "none", ""):
        shade = trace.get("fillcolor") or colour
        opacity = float(marker.get("opacity", 1)) if kind == "bar" else 1.0
        return [
            f'<rect x="{n(left + 4)}" y="{n(middle - 5)}" width="16" height="10" {fill(shade, opacity)}/>'
        ]
    parts = []
    if "lines" in mode and float(line.get("width", 2)) > 0:
        ink = stroke(line.get("color") or INTERNAL, float(line.get("width", 2)), line.get("dash"))
        parts.append(f'<path d="M{n(left)},{n(middle)}h{_SWATCH:g}" fill="none" {ink}/>')
    if "markers" in mode:
        shape = str(at(marker.get("symbol"), 0) or "circle")
        size = min(float(at(marker.get("size", 7), 0) or 7), 9.0)
        ink = f" {fill(colour)}"
        if shape.endswith("-open"):
            ink = f' fill="none" {stroke(colour, 1.5)}'
        parts.append(symbol(shape, left + _SWATCH / 2, middle, size, ink))
    return parts
