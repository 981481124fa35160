"""Room for axes and their drawing: grid, lines, ticks, labels that wrap or turn, titles."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from equipoise.platform.report.charts.ink import fill, n, stroke, text
from equipoise.platform.report.charts.scale import Scale, title_of
from equipoise.platform.report.charts.text_size import width, wrap
from equipoise.platform.report.style import FAINT, GRID, SOFT

_LINE = 1.18  # height of a line of text in units of its size
_STANDOFF = 5.0
_TITLE = 12.5


@dataclass(frozen=True)
class Labels:
    """The labels of an axis as lines of text, the room they need, and whether they are turned."""

    lines: tuple[tuple[str, ...], ...]
    across: float
    turned: bool = False


def font(scale: Scale, part: str = "tickfont") -> tuple[float, str]:
    """Size and attributes of the colour of an axis' text."""
    spec = scale.spec.get(part) or {}
    return float(spec.get("size", 11.5)), fill(spec.get("color") or SOFT)


def labels_of_rows(scale: Scale, most: float) -> Labels:
    """Labels of a vertical axis, wrapped at ``most`` pixels."""
    size, _ = font(scale)
    lines = tuple(tuple(wrap(label, size, most)) for _, label in scale.ticks)
    widest = max((width(line, size) for label in lines for line in label), default=0.0)
    return Labels(lines, widest)


def height_of_rows(scale: Scale, labels: Labels) -> float:
    """Pixels between neighbouring ticks that the labels of a vertical axis need."""
    size, _ = font(scale)
    return max((len(lines) for lines in labels.lines), default=1) * size * _LINE + 3


def labels_of_columns(scale: Scale) -> Labels:
    """Labels of a horizontal axis: wrapped to the room between ticks, turned if a word is longer than that.

    Numbers without names of their own are thinned out instead.
    """
    size, _ = font(scale)
    named = scale.kind == "category" or scale.spec.get("ticktext") is not None
    places = [scale.pixel(value) for value, _ in scale.ticks]
    gap = min((abs(b - a) for a, b in itertools.pairwise(places)), default=abs(scale.end - scale.start))
    texts = [label for _, label in scale.ticks]
    if not named:
        every = next(
            (k for k in (1, 2, 4, 5, 10, 20, 50) if _apart(places[::k], texts[::k], size)), len(texts) or 1
        )
        kept = tuple((label,) if k % every == 0 else ("",) for k, label in enumerate(texts))
        return Labels(kept, size * _LINE if texts else 0.0)
    wrapped = tuple(tuple(wrap(label, size, max(gap - 6, size))) for label in texts)
    words = [word for label in texts for word in label.split()]
    if all(width(word, size) <= gap - 6 for word in words) and all(len(lines) <= 3 for lines in wrapped):
        return Labels(wrapped, max((len(lines) for lines in wrapped), default=0) * size * _LINE)
    # A turned label goes down to the left: the first ones must not leave the picture.
    rooms = [min(150.0, (place - size) / 0.71) for place in places]
    lines = tuple(tuple(wrap(label, size, room)) for label, room in zip(texts, rooms, strict=True))
    longest = max(width(line, size) for label in lines for line in label)
    deepest = max(len(label) for label in lines)
    return Labels(lines, 0.71 * (longest + deepest * size * _LINE), turned=True)


def _apart(places: Sequence[float], texts: Sequence[str], size: float) -> bool:
    ends = sorted(
        (p - width(t, size) / 2, p + width(t, size) / 2) for p, t in zip(places, texts, strict=True)
    )
    return all(a[1] + 5 <= b[0] for a, b in itertools.pairwise(ends))


def room_below(scale: Scale, labels: Labels, length: float) -> float:
    """Pixels below a horizontal axis for ticks, labels and title."""
    if scale.spec.get("visible") is False:
        return 0.0
    title = wrap(title_of(scale.spec), _TITLE, length) if title_of(scale.spec) else []
    under = labels.across + _STANDOFF if labels.across else 0.0
    return _tick(scale) + under + (len(title) * _TITLE * _LINE + 6 if title else 0.0)


def room_beside(scale: Scale, labels: Labels, length: float) -> float:
    """Pixels left of a vertical axis of a length for ticks, labels and title."""
    if scale.spec.get("visible") is False:
        return 0.0
    title = wrap(title_of(scale.spec), _TITLE, length) if title_of(scale.spec) else []
    return _room_of_labels(scale, labels) + (len(title) * _TITLE * _LINE + 6 if title else 0.0)


def _room_of_labels(scale: Scale, labels: Labels) -> float:
    standoff = float(scale.spec.get("ticklabelstandoff", 0)) + _STANDOFF
    return _tick(scale) + (labels.across + standoff if labels.across else 0.0)


def _tick(scale: Scale) -> float:
    return float(scale.spec.get("ticklen", 4)) if scale.spec.get("ticks") == "outside" else 0.0


def grid(scale: Scale, low: float, high: float) -> list[str]:
    """Lines of the grid between two pixels of the other axis."""
    if not scale.shows("showgrid"):
        return []
    places = [scale.pixel(value) for value, _ in scale.ticks]
    if scale.name[0] == "x":
        path = "".join(f"M{n(p)},{n(low)}V{n(high)}" for p in places)
    else:
        path = "".join(f"M{n(low)},{n(p)}H{n(high)}" for p in places)
    lines = (
        [f'<path d="{path}" fill="none" {stroke(scale.spec.get("gridcolor") or GRID, 1)}/>'] if path else []
    )
    if scale.spec.get("zeroline") and (zero := scale(0)) is not None and scale.inside(0.0):
        ends = f"M{n(zero)},{n(low)}V{n(high)}" if scale.name[0] == "x" else f"M{n(low)},{n(zero)}H{n(high)}"
        lines.append(f'<path d="{ends}" fill="none" {stroke(FAINT, 1.2)}/>')
    return lines


def below(scale: Scale, labels: Labels, line: float) -> list[str]:
    """A horizontal axis at pixel ``line``."""
    if scale.spec.get("visible") is False:
        return []
    tick, (size, ink) = _tick(scale), font(scale)
    parts = _ruler(scale, line, tick)
    words = []
    top = line + tick + _STANDOFF
    for (value, _), lines in zip(scale.ticks, labels.lines, strict=True):
        x = scale.pixel(value)
        for k, word in enumerate(lines):
            if not word:
                continue
            if labels.turned:
                along = k * size * _LINE
                place = f'transform="translate({n(x + along)},{n(top + 0.5 * size)}) rotate(-45)" text-anchor="end"'
                words.append(f"<text {place}>{text(word)}</text>")
            else:
                y = top + 0.8 * size + k * size * _LINE
                words.append(f'<text x="{n(x)}" y="{n(y)}">{text(word)}</text>')
    if words:
        parts += [f'<g font-size="{size:g}" text-anchor="middle" {ink}>', *words, "</g>"]
    if title_of(scale.spec):
        y = top + (labels.across + _STANDOFF if labels.across else 0.0) + 0.8 * _TITLE
        middle, length = (scale.start + scale.end) / 2, abs(scale.end - scale.start)
        parts += _title(scale, middle, y, wrap(title_of(scale.spec), _TITLE, length), turned=False)
    return parts


def beside(scale: Scale, labels: Labels, line: float) -> list[str]:
    """A vertical axis at pixel ``line``."""
    if scale.spec.get("visible") is False:
        return []
    right = scale.spec.get("side") == "right"
    tick, (size, ink) = _tick(scale), font(scale)
    parts = _ruler(scale, line, -tick if not right else tick)
    standoff = float(scale.spec.get("ticklabelstandoff", 0)) + _STANDOFF + tick
    x = line + standoff if right else line - standoff
    words = []
    for (value, _), lines in zip(scale.ticks, labels.lines, strict=True):
        first = scale.pixel(value) + 0.36 * size - (len(lines) - 1) * size * _LINE / 2
        words += [
            f'<text x="{n(x)}" y="{n(first + k * size * _LINE)}">{text(word)}</text>'
            for k, word in enumerate(lines)
        ]
    if words:
        parts += [
            f'<g font-size="{size:g}" text-anchor="{"start" if right else "end"}" {ink}>',
            *words,
            "</g>",
        ]
    if title_of(scale.spec):
        title = wrap(title_of(scale.spec), _TITLE, abs(scale.end - scale.start))
        deep, room = len(title) * _TITLE * _LINE, _room_of_labels(scale, labels)
        first = line + room + _TITLE * _LINE if right else line - room - 6 - deep + _TITLE * _LINE
        parts += _title(scale, first, (scale.start + scale.end) / 2, title, turned=True)
    return parts


def _ruler(scale: Scale, line: float, tick: float) -> list[str]:
    """The line of an axis and its tick marks."""
    horizontal = scale.name[0] == "x"
    path = ""
    if scale.shows("showline"):
        ends = (scale.start, scale.end)
        path = (
            f"M{n(ends[0])},{n(line)}H{n(ends[1])}" if horizontal else f"M{n(line)},{n(ends[0])}V{n(ends[1])}"
        )
    if tick:
        places = [scale.pixel(value) for value, _ in scale.ticks]
        path += "".join(
            f"M{n(p)},{n(line)}v{n(tick)}" if horizontal else f"M{n(line)},{n(p)}h{n(tick)}" for p in places
        )
    return (
        [f'<path d="{path}" fill="none" {stroke(scale.spec.get("linecolor") or FAINT, 1)}/>'] if path else []
    )


def _title(scale: Scale, x: float, y: float, lines: Sequence[str], *, turned: bool) -> list[str]:
    """Lines of a title, the first at a place; those of a turned one follow to the right."""
    parts = [f'<g font-size="{_TITLE:g}" text-anchor="middle" {fill(_colour_of_title(scale.spec))}>']
    for k, line in enumerate(lines):
        shift = k * _TITLE * _LINE
        flat = f'x="{n(x)}" y="{n(y + shift)}"'
        place = f'transform="translate({n(x + shift)},{n(y)}) rotate(-90)"' if turned else flat
        parts.append(f"<text {place}>{text(line)}</text>")
    return [*parts, "</g>"]


def _colour_of_title(spec: dict[str, Any]) -> Any:
    title = spec.get("title")
    given = title.get("font") if isinstance(title, dict) else None
    return (given or {}).get("color") or SOFT
