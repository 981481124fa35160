"""Charts: what a reader measures off the picture with its ticks is in the record; no text leaves the picture."""

import html
import itertools
import math
import re
import xml.etree.ElementTree as ET

import numpy as np
import pandas as pd
import pytest

from equipoise.platform.report.charts import chart
from equipoise.platform.report.charts.text_size import width
from equipoise.platform.report.style import DARK, INTERNAL, NAMES, Figure, band, fade, layout, line

SVG = "{http://www.w3.org/2000/svg}"


def figure(data: list[dict], shape: dict | None = None, **extra: object) -> Figure:
    return Figure("slug", "A title", data, shape or layout("x", "y"), "", pd.DataFrame(), **extra)  # type: ignore[arg-type]


def drawn(
    data: list[dict], shape: dict | None = None, size: float = chart.HALF, **extra: object
) -> ET.Element:
    return ET.fromstring(chart.draw(figure(data, shape, **extra), size, "f"))


def texts(root: ET.Element) -> list[ET.Element]:
    return list(root.iter(f"{SVG}text"))


def words(root: ET.Element) -> list[str]:
    return ["".join(e.itertext()) for e in texts(root)]


def ruler(root: ET.Element, along: str, log: bool = False) -> tuple[float, float]:
    """Slope and offset from pixels to values, read from the numbers beside an axis."""
    anchor = "middle" if along == "x" else "end"
    pairs = []
    for group in root.iter(f"{SVG}g"):
        if group.get("text-anchor") == anchor:
            for element in group.iter(f"{SVG}text"):
                word = "".join(element.itertext()).replace("\u2212", "-").replace(" %", "e-2")
                if element.get("transform") is None and re.fullmatch(r"-?[\d.]+(e-2)?", word):
                    value = float(word)
                    shift = 0.36 * 11.5 if along == "y" else 0.0
                    pairs.append((float(element.get(along)) - shift, math.log10(value) if log else value))  # type: ignore[arg-type]
    assert len(pairs) >= 2, words(root)
    slope, offset = np.polyfit(*np.array(pairs).T, 1)
    return float(slope), float(offset)


def read(root: ET.Element, along: str, pixels: list[float], log: bool = False) -> list[float]:
    slope, offset = ruler(root, along, log)
    values = [slope * pixel + offset for pixel in pixels]
    return [10**value for value in values] if log else values


def numbers(element: ET.Element, name: str) -> list[float]:
    return [float(e.get(name)) for e in element.iter(f"{SVG}circle")]  # type: ignore[arg-type]


DOTS = {"type": "scatter", "mode": "markers", "x": [0.0, 2.5, 10.0], "y": [-3.0, 0.0, 4.0]}


def test_markers_stand_where_the_ticks_say() -> None:
    root = drawn([DOTS])
    assert read(root, "x", numbers(root, "cx")) == pytest.approx(DOTS["x"], abs=0.02)
    assert read(root, "y", numbers(root, "cy")) == pytest.approx(DOTS["y"], abs=0.02)


def test_markers_on_a_logarithmic_axis() -> None:
    y = [0.02, 1.0, 30.0]
    root = drawn([{**DOTS, "y": y}], layout("x", "y", yaxis={"type": "log"}))
    assert read(root, "y", numbers(root, "cy"), log=True) == pytest.approx(y, rel=0.02)


def test_error_bars_end_at_their_bounds() -> None:
    bars = {"type": "data", "symmetric": False, "array": [1.0, None, 2.0], "arrayminus": [0.5, None, 4.0]}
    root = drawn([{**DOTS, "error_x": bars}])
    path = next(e.get("d") for e in root.iter(f"{SVG}path") if re.fullmatch(r"(M[\d.]+,[\d.]+H[\d.]+)+", e.get("d", ""))
                and len(re.findall("M", e.get("d", ""))) == 2)  # fmt: skip
    ends = [float(p) for pair in re.findall(r"M([\d.]+),[\d.]+H([\d.]+)", path or "") for p in pair]
    assert read(root, "x", ends) == pytest.approx([-0.5, 1.0, 6.0, 12.0], abs=0.04)


def test_lines_break_at_gaps_and_stairs_are_horizontal_first() -> None:
    trace = line([0, 1, 2, 3, 4], [1.0, 2.0, np.nan, 3.0, 3.0], "a", INTERNAL)
    path = next(e.get("d") or "" for e in drawn([trace]).iter(f"{SVG}path") if e.get("stroke-linejoin"))
    assert path.count("M") == 2
    stairs = line([0, 1, 2], [3.0, 2.0, 1.0], "a", INTERNAL, line={"shape": "hv"})
    path = next(e.get("d") or "" for e in drawn([stairs]).iter(f"{SVG}path") if e.get("stroke-linejoin"))
    assert re.fullmatch(r"M[\d.]+,[\d.]+H[\d.]+V[\d.]+H[\d.]+V[\d.]+", path)


def test_a_band_is_the_area_between_its_lines() -> None:
    traces = band([0.0, 1.0], [1.0, 2.0], [3.0, 5.0], INTERNAL, "band")
    root = drawn(traces)
    path = next(e.get("d") or "" for e in root.iter(f"{SVG}path") if (e.get("d") or "").endswith("Z"))
    corners = [tuple(map(float, c)) for c in re.findall(r"[ML]([\d.]+),([\d.]+)", path)]
    assert read(root, "y", [y for _, y in corners]) == pytest.approx([3, 5, 2, 1], abs=0.03)
    assert read(root, "x", [x for x, _ in corners]) == pytest.approx([0, 1, 1, 0], abs=0.01)


def test_stacked_bars_stand_on_each_other_and_grouped_ones_beside() -> None:
    data = [{"type": "bar", "x": ["a", "b"], "y": [1, 2], "name": "one"},
            {"type": "bar", "x": ["a", "b"], "y": [3, 4], "name": "two"}]  # fmt: skip
    root = drawn(data, layout("", "n", barmode="stack"))
    boxes = [e for e in root.iter(f"{SVG}rect") if e.find(f"{SVG}title") is not None]
    tops = read(root, "y", [float(e.get("y")) for e in boxes])  # type: ignore[arg-type]
    bottoms = read(root, "y", [float(e.get("y")) + float(e.get("height")) for e in boxes])  # type: ignore[arg-type]
    assert tops == pytest.approx([1, 2, 4, 6], abs=0.05)
    assert bottoms == pytest.approx([0, 0, 1, 2], abs=0.05)
    root = drawn(data, layout("", "n", barmode="group"))
    boxes = [e for e in root.iter(f"{SVG}rect") if e.find(f"{SVG}title") is not None]
    spans = sorted((float(e.get("x")), float(e.get("x")) + float(e.get("width"))) for e in boxes)  # type: ignore[arg-type]
    assert all(a[1] <= b[0] + 0.2 for a, b in itertools.pairwise(spans))


def test_a_box_spans_the_quartiles_of_numpy() -> None:
    values = [1.0, 2.0, 4.0, 7.0, 11.0, 30.0]
    trace = {"type": "box", "y": values, "name": "a", "boxpoints": "outliers"}
    root = drawn([trace])
    box = next(e for e in root.iter(f"{SVG}rect"))
    ends = [float(box.get("y")), float(box.get("y")) + float(box.get("height"))]  # type: ignore[arg-type]
    low, high = np.percentile(values, [25, 75])
    assert read(root, "y", ends) == pytest.approx([high, low], abs=0.2)
    assert read(root, "y", numbers(root, "cy")) == pytest.approx(
        [30.0], abs=0.2
    )  # beyond 1.5 interquartile ranges


def test_a_heat_map_fades_to_the_page_and_writes_readable_numbers() -> None:
    trace = {"type": "heatmap", "x": ["a", "b", "c"], "y": ["r"], "z": [[-1.0, 0.0, 0.5]], "zmin": -1, "zmax": 1,
             "colorscale": [[0, "#b3342b"], [0.5, "#ffffff"], [1, INTERNAL]], "text": [["-1", "0", ".5"]],
             "texttemplate": "%{text}", "hovertemplate": "%{y}, %{x}: %{z:.1f}<extra></extra>"}  # fmt: skip
    root = drawn([trace])
    cells = [e for e in root.iter(f"{SVG}rect") if e.find(f"{SVG}title") is not None]
    assert [c.findtext(f"{SVG}title") for c in cells] == ["r, a: \u22121.0", "r, b: 0.0", "r, c: 0.5"]
    assert cells[0].get("fill") == "var(--red)"
    assert cells[1].get("fill") == "none"
    assert (cells[2].get("fill"), cells[2].get("fill-opacity")) == ("var(--blue)", "0.5")
    inks = {"".join(e.itertext()): e.get("fill") for e in texts(root) if e.get("fill")}
    assert inks["-1"] == "var(--paper)"
    assert inks["0"] == "var(--figure-ink)"


LONG = "a cohort with a very long name of its own, from a hospital with a longer one"


@pytest.mark.parametrize("size", [chart.NARROW, chart.HALF, chart.WHOLE])
@pytest.mark.parametrize("names", [["short", LONG], [LONG.replace(" ", "_"), "x" * 90]])
def test_no_text_leaves_the_picture(size: float, names: list[str]) -> None:
    rows = {"type": "scatter", "mode": "markers", "x": [0.1, 0.2], "y": [0, 1], "name": names[0]}
    shape = layout(LONG, LONG, yaxis={"tickvals": [0, 1], "ticktext": names, "range": [-0.6, 1.4]},
                   annotations=[{"x": 0.2, "y": 1, "text": "noted at the edge of it", "showarrow": False}])  # fmt: skip
    columns = {"type": "bar", "x": [*names, "c", "d", "e"], "y": [1, 2, 3, 4, 5], "name": names[1]}
    for root in (
        drawn([rows, {**rows, "name": names[1]}], shape, size),
        drawn([columns, {**columns, "name": "s"}], None, size),
    ):
        wide, high = (float(v) for v in root.get("viewBox", "").split()[2:])
        parents = {child: parent for parent in root.iter() for child in parent}
        for element in texts(root):
            group = parents[element]
            font = float(element.get("font-size") or group.get("font-size") or 12)
            length = width("".join(element.itertext()), font) / 1.07
            anchor = element.get("text-anchor") or group.get("text-anchor") or "start"
            if turn := re.match(
                r"translate\(([\d.-]+),([\d.-]+)\) rotate\((-\d+)\)", element.get("transform") or ""
            ):
                x, y, angle = float(turn[1]), float(turn[2]), math.radians(float(turn[3]))
                back = {"start": 0.0, "middle": 0.5, "end": 1.0}[anchor] * length
                ends = [(x + s * math.cos(angle), y + s * math.sin(angle)) for s in (-back, length - back)]
            else:
                left = float(element.get("x", 0)) - {"start": 0.0, "middle": 0.5, "end": 1.0}[anchor] * length
                ends = [(left, float(element.get("y", 0))), (left + length, float(element.get("y", 0)))]
            for x, y in ends:
                assert -1 <= x <= wide + 1, "".join(element.itertext())
                assert 0 <= y <= high + 1, "".join(element.itertext())
        shown = "".join("".join(words(root)).split())
        for name in names:
            assert "".join(name.split()) in shown, "no name is shortened"


def test_a_square_has_equal_units() -> None:
    shape = layout("x", "y", xaxis={"range": [0, 1]}, yaxis={"range": [0, 1], "scaleanchor": "x"})
    root = drawn([{**DOTS, "x": [0, 0.5, 1], "y": [0, 0.5, 1]}], shape)
    assert abs(ruler(root, "x")[0]) == pytest.approx(abs(ruler(root, "y")[0]), rel=0.01)


def test_user_text_stays_text_in_marks_names_and_labels() -> None:
    bad = "</title><script>1</script>\"'&\x00"
    safe = html.escape(bad, quote=False)
    trace = {**DOTS, "text": [safe] * 3, "name": safe, "hovertemplate": "%{text}<extra></extra>"}
    root = drawn([trace, trace], layout(safe, "y", annotations=[{"x": 1, "y": 1, "text": safe}]))
    assert not list(root.iter(f"{SVG}script"))
    assert any("<script>" in word for word in words(root))


def test_tooltips_fill_the_template() -> None:
    trace = {**DOTS, "text": ["one", "two", "three"], "customdata": [[7, 0.25], [8, 0.5], [9, 1.0]],
             "name": "N",
             "hovertemplate": "%{text}<br>%{x:.1f}, %{customdata[1]:.0%}<extra>%{fullData.name}</extra>"}  # fmt: skip
    hints = [e.text for e in drawn([trace]).iter(f"{SVG}title")]
    assert hints[1:] == ["one\n0.0, 25 %\nN", "two\n2.5, 50 %\nN", "three\n10.0, 100 %\nN"]


def test_colours_are_variables_in_the_page_and_values_in_the_file() -> None:
    trace = line([0, 1], [0, 1], "a", fade(INTERNAL, 0.5))
    svg = chart.draw(figure([trace]), chart.HALF, "f")
    assert 'stroke="var(--blue)" stroke-opacity="0.5"' in svg
    file = chart.standalone(svg)
    assert f'stroke="{INTERNAL}"' in file
    assert "var(" not in file
    assert set(NAMES.values()) == set(DARK)


@pytest.mark.parametrize(
    ("trace", "message"),
    [
        ({"type": "pie"}, "traces of type 'pie'"),
        ({**DOTS, "marker": {"symbol": "heart"}}, "marker symbol 'heart'"),
        ({"type": "heatmap", "z": [[1]], "colorscale": "Viridis"}, "'Viridis'"),
        ({**DOTS, "hovertemplate": "%{x:~q}"}, "number format '~q'"),
    ],
)
def test_what_is_not_drawn_is_named(trace: dict, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        drawn([trace])


def test_figures_without_data_have_axes() -> None:
    root = drawn([])
    assert "x" in words(root)
    assert root.findtext(f"{SVG}title") == "A title"
    assert "Horizontal axis: x" in (root.findtext(f"{SVG}desc") or "")
