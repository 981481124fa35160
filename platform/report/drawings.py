"""Inline SVG: participant flow and the interval bars of tables. ``Markup`` escapes all user text."""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from equipoise.platform.report.formatting import plural

_BOX, _SIDE, _GAP, _STEP, _HEIGHT = 196, 208, 30, 78, 46


@dataclass(frozen=True)
class Stage:
    """A stage of the flow: patients and slides that remain, and losses (``reasons``: text → count)."""

    name: str
    patients: int
    slides: int | None
    lost_patients: int
    lost_slides: int
    reasons: tuple[tuple[str, int], ...] = ()


def flow_diagram(title: str, stages: Sequence[Stage]) -> Markup:
    """Boxes from top to bottom; losses of a stage are shown at the right."""
    # A stage without losses would repeat the box above.
    stages = [
        s for i, s in enumerate(stages) if i in (0, len(stages) - 1) or s.lost_patients or s.lost_slides
    ]
    parts: list[Markup] = []
    for row, stage in enumerate(stages):
        top = 4 + row * _STEP
        if row:
            parts.append(_arrow(_BOX / 2 + 2, top - _STEP + _HEIGHT, _BOX / 2 + 2, top - 3))
        parts.append(_box(stage, top, last=row == len(stages) - 1))
        if row and (stage.lost_patients or stage.lost_slides):
            middle = top - (_STEP - _HEIGHT) / 2
            parts.append(_arrow(_BOX / 2 + 2, middle, _BOX + _GAP - 3, middle))
            parts.append(_loss(stage, middle))
    height = (len(stages) - 1) * _STEP + _HEIGHT + 8
    width = _BOX + _GAP + _SIDE + 6
    return Markup(
        '<svg class="flow" viewBox="0 0 {w} {h}" role="img" aria-label="participant flow of {title}" '
        'xmlns="http://www.w3.org/2000/svg">{body}</svg>'
    ).format(w=width, h=height, title=title, body=Markup("").join(parts))


def interval_bar(
    value: float, low: float, high: float, chance: float | None, limits: tuple[float, float] = (0.0, 1.0)
) -> Markup | None:
    """A point with its interval on a fixed axis; the tick marks a predictor without information."""
    if not math.isfinite(value):
        return None
    left, right = limits

    def x(v: float) -> float:
        return round(4 + 132 * (min(max(v, left), right) - left) / (right - left), 1)

    parts = [Markup('<line x1="4" x2="136" y1="9" y2="9" class="axis"/>')]
    if chance is not None:
        parts.append(Markup('<line x1="{0}" x2="{0}" y1="3" y2="15" class="chance"/>').format(x(chance)))
    if math.isfinite(low) and math.isfinite(high):
        parts.append(Markup('<line x1="{}" x2="{}" y1="9" y2="9" class="range"/>').format(x(low), x(high)))
    parts.append(Markup('<circle cx="{}" cy="9" r="3.6" class="point"/>').format(x(value)))
    return Markup('<svg class="bar" viewBox="0 0 140 18" aria-hidden="true">{}</svg>').format(
        Markup("").join(parts)
    )


def _box(stage: Stage, top: float, *, last: bool) -> Markup:
    slides = "" if stage.slides is None else f" · {plural(stage.slides, 'slide')}"
    return Markup(
        '<rect x="2" y="{y}" width="{w}" height="{h}" rx="5" class="{kind}"/>'
        '<text x="14" y="{y1}" class="stage">{name}</text>'
        '<text x="14" y="{y2}" class="n">{patients}{slides}</text>'
    ).format(
        y=top, w=_BOX, h=_HEIGHT, kind="box last" if last else "box", y1=top + 19, y2=top + 36,
        name=_short(stage.name, 24), patients=plural(stage.patients, 'patient'), slides=slides,
    )  # fmt: skip


def _loss(stage: Stage, middle: float) -> Markup:
    lost = [f"−{plural(stage.lost_patients, 'patient')}"] if stage.lost_patients else []
    lost += [f"−{plural(stage.lost_slides, 'slide')}"] if stage.lost_slides else []
    lines = [f"{_short(reason, 30)} ({n})" for reason, n in stage.reasons[:2]]
    if len(stage.reasons) == 1:  # the second line is free
        first_line, *rest = textwrap.wrap("{} ({})".format(*stage.reasons[0]), 36)
        lines = [first_line, *([_short(" ".join(rest), 36)] if rest else [])]
    if len(stage.reasons) > 2:
        lines[1] = f"and {len(stage.reasons) - 1} other reasons"
    full = "; ".join(f"{reason} ({n})" for reason, n in stage.reasons)
    left, first = _BOX + _GAP, middle - 7 * len(lines)
    body = [Markup('<text x="{}" y="{}" class="lost">{}</text>').format(left, first + 4, ", ".join(lost))]
    for row, text in enumerate(lines, start=1):
        body.append(
            Markup('<text x="{}" y="{}" class="why">{}</text>').format(left, first + 4 + 14 * row, text)
        )
    return Markup("<g><title>{}</title>{}</g>").format(full, Markup("").join(body))


def _arrow(x1: float, y1: float, x2: float, y2: float) -> Markup:
    """A line that ends in a small head; arrows of the flow point down or to the right."""
    head = f"M{x2 - 4},{y2 - 7} L{x2},{y2} L{x2 + 4},{y2 - 7} z"
    if x2 != x1:
        head = f"M{x2 - 7},{y2 - 4} L{x2},{y2} L{x2 - 7},{y2 + 4} z"
    return Markup('<line x1="{}" y1="{}" x2="{}" y2="{}" class="arrow"/><path d="{}" class="tip"/>').format(
        x1, y1, x2, y2, head
    )


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"
