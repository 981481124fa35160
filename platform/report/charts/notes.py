"""Annotations and shapes: text, lines and areas at places of the data or of the paper."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from equipoise.platform.report.charts.ink import fill, n, stroke, text
from equipoise.platform.report.charts.scale import Scale
from equipoise.platform.report.charts.text_size import lines_of, width
from equipoise.platform.report.style import FAINT, INK, PAPER

_LINE = 1.2


@dataclass(frozen=True)
class Paper:
    """The rectangle of all axes in pixels, the size of the picture, and the axes by name."""

    left: float
    right: float
    top: float
    bottom: float
    width: float
    height: float
    axes: Mapping[str, Scale]

    def place(self, reference: str, value: Any, along: str) -> float | None:
        """Pixel of a coordinate: of an axis, of its ``domain``, or of the ``paper``."""
        name, _, domain = reference.partition(" ")
        if name == "paper":
            low, high = (self.left, self.right) if along == "x" else (self.bottom, self.top)
            return low + float(value) * (high - low)
        scale = self.axes.get(name)
        if scale is None:
            raise ValueError(f"there is no axis {name!r}")
        if domain:
            return scale.start + float(value) * (scale.end - scale.start)
        return scale(value)


def shape(spec: Mapping[str, Any], paper: Paper) -> list[str]:
    """A line, rectangle or ellipse."""
    xref, yref = str(spec.get("xref") or "x"), str(spec.get("yref") or "y")
    places = [paper.place(xref, spec[k], "x") for k in ("x0", "x1")]
    places += [paper.place(yref, spec[k], "y") for k in ("y0", "y1")]
    if any(place is None for place in places):
        return []
    x0, x1, y0, y1 = (float(place) for place in places if place is not None)
    line = spec.get("line") or {}
    ink = stroke(
        line.get("color") or INK, float(line.get("width", 2)), line.get("dash"), float(spec.get("opacity", 1))
    )
    area = fill(spec.get("fillcolor"), float(spec.get("opacity", 1)))
    kind = spec.get("type", "line")
    if kind == "line":
        return [f'<path d="M{n(x0)},{n(y0)}L{n(x1)},{n(y1)}" fill="none" {ink}/>']
    left, top, wide, high = min(x0, x1), min(y0, y1), abs(x1 - x0), abs(y1 - y0)
    if kind == "rect":
        return [f'<rect x="{n(left)}" y="{n(top)}" width="{n(wide)}" height="{n(high)}" {area} {ink}/>']
    if kind == "circle":
        middle = f'cx="{n(left + wide / 2)}" cy="{n(top + high / 2)}" rx="{n(wide / 2)}" ry="{n(high / 2)}"'
        return [f"<ellipse {middle} {area} {ink}/>"]
    raise ValueError(f"shapes of type {kind!r} are not supported")


def annotation(spec: Mapping[str, Any], paper: Paper) -> list[str]:
    """Text at a place, moved inside the picture if it would leave it; with ``showarrow`` a line to the place."""
    xref, yref = str(spec.get("xref") or "x"), str(spec.get("yref") or "y")
    x, y = paper.place(xref, spec.get("x", 0.5), "x"), paper.place(yref, spec.get("y", 0.5), "y")
    if x is None or y is None:
        return []
    size = float((spec.get("font") or {}).get("size", 12))
    lines = lines_of(spec.get("text") or "")
    wide, high = max(width(line, size) for line in lines), len(lines) * size * _LINE
    at_x, at_y = x + float(spec.get("xshift", 0)), y - float(spec.get("yshift", 0))
    parts = []
    if spec.get("showarrow", True):
        at_x, at_y = x + float(spec.get("ax", -10)), y + float(spec.get("ay", -30))
        ink = stroke(spec.get("arrowcolor") or FAINT, float(spec.get("arrowwidth", 1)))
        parts.append(f'<path d="M{n(x)},{n(y)}L{n(at_x)},{n(at_y)}" fill="none" {ink}/>')
    side = _side(spec.get("xanchor"), xref, spec.get("x", 0.5), ("left", "center", "right"))
    left = at_x - {"left": 0.0, "center": wide / 2, "right": wide}[side]
    if not spec.get("textangle"):
        left = min(max(left, 2.0), max(paper.width - wide - 2, 2.0))
    row = _side(spec.get("yanchor"), yref, spec.get("y", 0.5), ("bottom", "middle", "top"))
    top = at_y - {"top": 0.0, "middle": high / 2, "bottom": high}[row]
    top = min(max(top, 1.0), max(paper.height - high - 1, 1.0))
    anchor = {"left": ("start", left), "center": ("middle", left + wide / 2), "right": ("end", left + wide)}[
        side
    ]
    turn = (
        f' transform="rotate({n(float(spec["textangle"]))} {n(at_x)} {n(at_y)})"'
        if spec.get("textangle")
        else ""
    )
    # A halo in the colour of the page keeps text readable where it crosses lines.
    halo = f' paint-order="stroke" stroke-linejoin="round" {stroke(PAPER, 3)}' if spec.get("bgcolor") else ""
    opacity = float(spec.get("opacity", 1))
    ink = fill((spec.get("font") or {}).get("color") or INK, opacity)
    parts.append(f'<g font-size="{size:g}" text-anchor="{anchor[0]}" {ink}{halo}{turn}>')
    parts += [
        f'<text x="{n(anchor[1])}" y="{n(top + 0.95 * size + k * size * _LINE)}">{text(line)}</text>'
        for k, line in enumerate(lines)
    ]
    return [*parts, "</g>"]


def _side(given: Any, reference: str, value: Any, names: tuple[str, str, str]) -> str:
    """Where a text hangs; ``auto`` depends on the third of the paper that it is in."""
    if given in names:
        return str(given)
    if reference != "paper":
        return names[1]
    return names[0] if float(value) < 1 / 3 else names[2] if float(value) > 2 / 3 else names[1]
