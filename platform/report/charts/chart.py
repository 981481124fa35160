"""A figure record as one SVG: axes are fitted to the data, margins to the text, then everything is drawn in order."""

import itertools
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from equipoise.platform.report.charts import axes, heat, legend, marks, notes, stacking
from equipoise.platform.report.charts.ink import fill, known, n, resolve, text
from equipoise.platform.report.charts.scale import Scale, Values, build_scale, title_of
from equipoise.platform.report.charts.text_size import lines_of, width
from equipoise.platform.report.style import FONT, HIGH_RISK, PAPER, Figure, plain

#: Widths in pixels: half a row of the page, a whole row, and a phone.
HALF, WHOLE, NARROW = 440.0, 960.0, 370.0

_AXIS = re.compile(r"^([xy])axis(\d*)$")
_TYPES = ("scatter", "bar", "box", "heatmap")
_MARK = "SYNTHETIC DATA"


def draw(figure: Figure, drawing_width: float, prefix: str, *, synthetic: bool = False) -> str:
    """The figure as an SVG element with a title and a description.

    Parameters
    ----------
    drawing_width
        Width in pixels at which text has its nominal size.
    prefix
        Unique start of the ids inside the element.
    synthetic
        Whether the figure is marked, so that a copy of it is marked too.

    Raises
    ------
    ValueError
        If the record asks for something that is not drawn here; the message names it.
    """
    chart = _Chart(figure, drawing_width)
    wide, high = chart.width, chart.height
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {n(wide)} {n(high)}" role="img" '
        f'aria-labelledby="{prefix}-t" aria-describedby="{prefix}-d" font-family="{text(FONT)}">'
        f'<title id="{prefix}-t">{text(figure.title)}{" (SYNTHETIC DATA)" if synthetic else ""}</title>'
        f'<desc id="{prefix}-d">{text(chart.description())}</desc>'
    )
    body = "".join(chart.parts(prefix))
    return f"{head}{body}{_watermark(wide, high) if synthetic else ''}</svg>"


def standalone(svg: str) -> str:
    """A drawn figure as a file: light colours, a white ground, a size."""
    found = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)
    assert found is not None
    size = f'width="{found[1]}" height="{found[2]}"'
    ground = f'<rect {size} fill="{PAPER}"/>'
    return resolve(svg.replace("<svg ", f"<svg {size} ", 1).replace("</desc>", f"</desc>{ground}", 1))


def data_uri(svg: str) -> str:
    """The file as a link. Quotes inside texts are escaped, so those that are left delimit attributes."""
    return "data:image/svg+xml;charset=utf-8," + quote(
        svg.replace('"', "'"), safe=" =:/;,'()!*.-_~@&+?$|[]{}"
    )


def _watermark(wide: float, high: float) -> str:
    size = min(30.0, wide / 14)
    turn = f"rotate(-20 {n(wide / 2)} {n(high / 2)})"
    return (
        f'<text x="{n(wide / 2)}" y="{n(high / 2)}" text-anchor="middle" font-size="{size:g}" font-weight="700" '
        f'transform="{turn}" aria-hidden="true" {fill(HIGH_RISK, 0.13)}>{_MARK}</text>'
    )


class _Chart:
    """Axes, margins and places of one figure."""

    def __init__(self, figure: Figure, drawing_width: float) -> None:
        self.traces: list[dict[str, Any]] = plain(list(figure.data))
        self.layout: dict[str, Any] = plain(dict(figure.layout))
        self.width, self.height = drawing_width, float(figure.height)
        for trace in self.traces:
            if trace.get("type", "scatter") not in _TYPES:
                raise ValueError(f"traces of type {trace.get('type')!r} are not supported")
        self.specs = {
            f"{found[1]}{found[2]}": dict(spec)
            for key, spec in self.layout.items()
            if (found := _AXIS.match(key))
        }
        for trace in self.traces:
            for along in ("x", "y"):
                self.specs.setdefault(self._axis_of(trace, along), {})
        self.specs.setdefault("x", {})
        self.specs.setdefault("y", {})
        self.bars: dict[int, list[stacking.Bar]] = {}
        values = self._values()
        self.scales = {
            name: build_scale(name, spec, values[name], self._length(name))
            for name, spec in self.specs.items()
        }
        self._fit()

    @staticmethod
    def _axis_of(trace: Mapping[str, Any], along: str) -> str:
        return str(trace.get(f"{along}axis") or along)

    def _length(self, name: str) -> float:
        low, high = self._domain(name)
        whole = self.width - 100 if name[0] == "x" else self.height - 90
        return max(whole * (high - low), 40.0)

    def _domain(self, name: str) -> tuple[float, float]:
        spec = self.specs[name]
        if (under := spec.get("overlaying")) and under in self.specs:
            return self._domain(str(under))
        low, high = spec.get("domain") or (0.0, 1.0)
        return float(low), float(high)

    # ---- what the axes hold -----------------------------------------------------------------------------------

    def _values(self) -> dict[str, Values]:
        values = {name: Values() for name in self.specs}
        for trace in self.traces:
            x, y = (values[self._axis_of(trace, along)] for along in ("x", "y"))
            kind = trace.get("type", "scatter")
            if kind == "scatter":
                self._of_scatter(trace, x, y)
            elif kind == "heatmap":
                rows = trace.get("z") or []
                x.add(heat.span(trace.get("x"), max((len(row) for row in rows), default=0)))
                y.add(heat.span(trace.get("y"), len(rows)))
            elif kind == "box":
                flat = trace.get("orientation") == "h" or (trace.get("x") and not trace.get("y"))
                along, across = (x, y) if flat else (y, x)
                along.add(trace.get("x" if flat else "y") or [])
                along.air = True
                across.add([_name(trace)])
            else:
                across = y if trace.get("orientation") == "h" else x
                across.add(trace.get("y" if trace.get("orientation") == "h" else "x") or [])
        self._of_bars(values)
        for name, spec in self.specs.items():
            if spec.get("type") == "category" and not values[name].texts:
                values[name].texts = [str(v) for v in values[name].numbers]
        return values

    @staticmethod
    def _of_scatter(trace: Mapping[str, Any], x: Values, y: Values) -> None:
        points = list(marks.points_of(trace))
        x.add([p["x"] for p in points])
        y.add([p["y"] for p in points])
        y.air = True
        x.air = x.air or str(trace.get("mode") or "") != "lines"
        for key, axis, datum in (("error_x", x, "x"), ("error_y", y, "y")):
            spec = trace.get(key)
            if not isinstance(spec, Mapping):
                continue
            for p in points:
                plus = marks.at(spec.get("array"), p["index"])
                minus = (
                    marks.at(spec.get("arrayminus"), p["index"]) if spec.get("symmetric") is False else plus
                )
                if known(p[datum]):
                    axis.add(
                        [p[datum] + plus if known(plus) else None, p[datum] - minus if known(minus) else None]
                    )
        if str(trace.get("fill")) == "tozeroy":
            y.from_zero = True

    def _of_bars(self, values: dict[str, Values]) -> None:
        groups: dict[tuple[str, str, bool], list[int]] = {}
        for k, trace in enumerate(self.traces):
            if trace.get("type") == "bar":
                key = (self._axis_of(trace, "x"), self._axis_of(trace, "y"), trace.get("orientation") == "h")
                groups.setdefault(key, []).append(k)
        mode, gap = str(self.layout.get("barmode") or "group"), float(self.layout.get("bargap", 0.2))
        for (x, y, flat), members in groups.items():
            along, across = (values[x], values[y]) if flat else (values[y], values[x])
            names = across.texts
            if self.specs[y if flat else x].get("type") == "category" and not names:
                names = across.texts = [str(v) for v in across.numbers]
            placed = stacking.place([self.traces[k] for k in members], names, mode, gap)
            for k, bars in zip(members, placed, strict=True):
                self.bars[k] = bars
                along.add([end for bar in bars for end in (bar.base, bar.tip)])
                if not names:
                    across.add([bar.middle + side * bar.width / 2 for bar in bars for side in (-1, 1)])
                error = self.traces[k].get("error_x" if flat else "error_y")
                if isinstance(error, Mapping):
                    reach = [(bar, marks.at(error.get("array"), bar.index)) for bar in bars]
                    along.add([bar.tip + s * e for bar, e in reach if known(e) for s in (-1, 1)])
            along.from_zero = along.air = True

    # ---- margins ----------------------------------------------------------------------------------------------

    def _fit(self) -> None:
        """Margins from the text, then the pixels of every axis; rows that need more height get it."""
        self.legend = legend.arrange(self.traces, self.layout, self.width - 16)
        under = float((self.layout.get("legend") or {}).get("y", 1) or 0) < 0
        self.legend_below = under and bool(self.legend.entries)
        above = 0.0 if self.legend_below or not self.legend.entries else self.legend.height + 8
        self.top = max(12.0, above + 6)
        rows = {
            name: axes.labels_of_rows(s, 0.4 * self.width)
            for name, s in self.scales.items()
            if name[0] == "y"
        }
        self.rows = rows
        left, right = [0.0], [12.0]
        for name, labels in rows.items():
            room = axes.room_beside(self.scales[name], labels, self._length(name))
            (right if self.specs[name].get("side") == "right" else left).append(room)
        self.left = max(left) + 6
        self.right = self.width - max(right) - self._room_of_bars_of_colours()
        self._place_columns()
        self.columns = {n_: axes.labels_of_columns(s) for n_, s in self.scales.items() if n_[0] == "x"}
        first_height = self.height
        for _ in range(2):
            self._place_rows()
            self._square()
            short = self._missing_height()
            if short <= 1.001:
                break
            self.height = min(
                self.bottom_margin + self.top + (self.bottom - self.top) * short, 12 * first_height
            )

    def _room_of_bars_of_colours(self) -> float:
        room = 0.0
        for trace in self.traces:
            if trace.get("type") == "heatmap" and trace.get("showscale", True):
                labels = max((width(label, 11) for _, label in heat.bar_ticks(trace)), default=0.0)
                room += 12 + float((trace.get("colorbar") or {}).get("thickness", 10)) + 5 + labels
        return room

    def _place_columns(self) -> None:
        for name, scale in self.scales.items():
            if name[0] == "x":
                low, high = self._domain(name)
                wide = self.right - self.left
                self.scales[name] = scale.placed(self.left + low * wide, self.left + high * wide)
        last = [(s, s.ticks[-1]) for n_, s in self.scales.items() if n_[0] == "x" and s.ticks]
        over = max((s.pixel(v) + width(t, 11.5) / 2 - (self.width - 4) for s, (v, t) in last), default=0.0)
        if over > 0 and self.right - over > self.left + 40 and not self._named_columns():
            self.right -= over
            self._place_columns_again()

    def _named_columns(self) -> bool:
        return any(
            s.kind == "category" or s.spec.get("ticktext") for n_, s in self.scales.items() if n_[0] == "x"
        )

    def _place_columns_again(self) -> None:
        for name, scale in self.scales.items():
            if name[0] == "x":
                low, high = self._domain(name)
                wide = self.right - self.left
                self.scales[name] = scale.placed(self.left + low * wide, self.left + high * wide)

    def _place_rows(self) -> None:
        needed = 10.0
        for name in self.columns:
            room = axes.room_below(self.scales[name], self.columns[name], self.right - self.left) + 4
            low = self._domain(self._anchor(name))[0]
            inside = low * (self.height - self.top - 20)
            needed = max(needed, room - inside)
        self.bottom_margin = needed + (self.legend.height + 8 if self.legend_below else 0.0)
        self.bottom = max(self.height - self.bottom_margin, self.top + 40)
        for name, scale in self.scales.items():
            if name[0] == "y":
                low, high = self._domain(name)
                tall = self.bottom - self.top
                self.scales[name] = scale.placed(self.bottom - low * tall, self.bottom - high * tall)

    def _anchor(self, name: str) -> str:
        """The axis that an axis stands on."""
        anchor = str(self.specs[name].get("anchor") or ("y" if name[0] == "x" else "x"))
        return anchor if anchor in self.specs else ("y" if name[0] == "x" else "x")

    def _missing_height(self) -> float:
        """By how much the rows of an axis are too close for their labels, as a factor."""
        factors = [1.0]
        for name, labels in self.rows.items():
            scale = self.scales[name]
            if scale.kind != "category" and scale.spec.get("ticktext") is None:
                continue
            places = sorted(scale.pixel(value) for value, _ in scale.ticks)
            gap = min((b - a for a, b in itertools.pairwise(places)), default=0.0)
            if gap > 0:
                factors.append(axes.height_of_rows(scale, labels) / gap)
        return max(factors)

    def _square(self) -> None:
        """Equal lengths of the units of two axes where the figure asks for it."""
        y = self.scales["y"]
        if y.spec.get("scaleanchor") != "x":
            return
        x = self.scales["x"]
        spans = abs(x.high - x.low), abs(y.high - y.low)
        unit = min(abs(x.end - x.start) / spans[0], abs(y.end - y.start) / spans[1])
        wide, tall = unit * spans[0], unit * spans[1]
        spare = (self.right - self.left - wide) / 2
        self.scales["x"] = x.placed(self.left + spare, self.left + spare + wide)
        self.scales["y"] = y.placed(y.start, y.start - tall)

    # ---- drawing ----------------------------------------------------------------------------------------------

    def parts(self, prefix: str) -> list[str]:
        """Everything in the order of painting."""
        paper = self._paper()
        shapes = self.layout.get("shapes") or []
        drawn: list[str] = []
        clips: dict[str, str] = {}
        for shape in shapes:
            if shape.get("layer") == "below":
                drawn += notes.shape(shape, paper)
        for name, scale in self.scales.items():
            other = self.scales[self._anchor(name)]
            drawn += axes.grid(scale, other.start, other.end)
        drawn += self._marks(prefix, clips)
        for shape in shapes:
            if shape.get("layer") != "below":
                drawn += notes.shape(shape, paper)
        for name, scale in self.scales.items():
            drawn += self._axis(name, scale)
        for annotation in self.layout.get("annotations") or []:
            drawn += notes.annotation(annotation, paper)
        drawn += self._legend()
        used = "".join(drawn)
        definitions = [clip for key, clip in clips.items() if f"url(#{key})" in used]
        return [f"<defs>{''.join(definitions)}</defs>" if definitions else "", used]

    def _marks(self, prefix: str, clips: dict[str, str]) -> list[str]:
        drawn: list[str] = []
        before: dict[tuple[str, str], dict[str, Any]] = {}
        bar_left = self.right + 12
        for k, trace in enumerate(self.traces):
            pair = self._axis_of(trace, "x"), self._axis_of(trace, "y")
            panel = self._panel(pair, prefix, clips)
            kind = trace.get("type", "scatter")
            if trace.get("visible") in (False, "legendonly"):
                continue
            if kind == "scatter":
                drawn += marks.scatter(trace, panel, before.get(pair))
                before[pair] = trace
            elif kind == "bar":
                drawn += marks.bars(trace, panel, self.bars[k])
            elif kind == "box":
                flat = trace.get("orientation") == "h" or (trace.get("x") and not trace.get("y"))
                place = (panel.y if flat else panel.x).value(_name(trace))
                drawn += marks.boxes(trace, panel, place or 0.0, 0.6)
            else:
                drawn += marks.heat_map(trace, panel)
                if trace.get("showscale", True):
                    top, tall = panel.y.end, panel.y.start - panel.y.end
                    drawn += heat.colour_bar(trace, bar_left, min(top, top + tall), abs(tall))
                    bar_left += self._room_of_bars_of_colours()
        return drawn

    def _panel(self, pair: tuple[str, str], prefix: str, clips: dict[str, str]) -> marks.Panel:
        x, y = self.scales[pair[0]], self.scales[pair[1]]
        key = f"{prefix}-{pair[0]}{pair[1]}"
        left, right = sorted((x.start, x.end))
        top, bottom = sorted((y.start, y.end))
        clips[key] = (
            f'<clipPath id="{key}"><rect x="{n(left)}" y="{n(top)}" width="{n(right - left)}" '
            f'height="{n(bottom - top)}"/></clipPath>'
        )
        return marks.Panel(x, y, key)

    def _axis(self, name: str, scale: Scale) -> list[str]:
        other = self.scales[self._anchor(name)]
        if name[0] == "x":
            return axes.below(scale, self.columns[name], max(other.start, other.end))
        right = scale.spec.get("side") == "right"
        line = max(other.start, other.end) if right else min(other.start, other.end)
        return axes.beside(scale, self.rows[name], line)

    def _legend(self) -> list[str]:
        left = self.left if self.left + self.legend.width <= self.width - 4 else 8.0
        top = self.height - self.legend.height - 2 if self.legend_below else 4.0
        return legend.draw(self.legend, left, top)

    def _paper(self) -> notes.Paper:
        x, y = self.scales["x"], self.scales["y"]
        if y.spec.get("scaleanchor") == "x":
            left, right, top, bottom = x.start, x.end, y.end, y.start
        else:
            left, right, top, bottom = self.left, self.right, self.top, self.bottom
        return notes.Paper(left, right, top, bottom, self.width, self.height, self.scales)

    def description(self) -> str:
        """What the axes are, from where to where they go, and the names of what is drawn."""
        sentences = []
        for name, what in (("x", "Horizontal axis"), ("y", "Vertical axis")):
            scale = self.scales[name]
            if scale.spec.get("visible") is False:
                continue
            ends = [" ".join(lines_of(label)) for _, label in scale.ticks]
            title = title_of(scale.spec)
            if scale.kind == "category" or scale.spec.get("ticktext") is not None:
                reach = ", ".join(ends[:12]) + (f" and {len(ends) - 12} more" if len(ends) > 12 else "")
            else:
                reach = f"from {ends[0]} to {ends[-1]}" if len(ends) > 1 else ""
            said = " ".join(part for part in (title, reach) if part)
            if said:
                sentences.append(f"{what}: {said}.")
        names = dict.fromkeys(" ".join(lines_of(t["name"])) for t in self.traces if t.get("name"))
        if names:
            sentences.append(f"Shown: {', '.join(list(names)[:12])}.")
        return " ".join(sentences)


def _name(trace: Mapping[str, Any]) -> str:
    return str(trace.get("name") or "")
