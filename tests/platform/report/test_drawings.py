"""Inline SVG: geometry and escaping."""

import re
import xml.etree.ElementTree as ET

import numpy as np

from equipoise.platform.report.drawings import Stage, flow_diagram, interval_bar

STAGES = [
    Stage("in table", 20, 25, 0, 0),
    Stage("unique", 20, 25, 0, 0),
    Stage("has label", 17, 21, 3, 4, (("label is <b>NA</b>", 2), ("no label", 1), ("excluded", 1))),
    Stage("used", 17, 21, 0, 0),
]


def texts(svg: str) -> list[str]:
    return ["".join(e.itertext()) for e in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


def test_flow_shows_what_is_left_and_what_is_lost() -> None:
    words = texts(flow_diagram("TCGA", STAGES))
    assert words[:2] == ["in table", "20 patients · 25 slides"]
    assert "−3 patients, −4 slides" in words
    assert "label is <b>NA</b> (2)" in words
    assert "and 2 other reasons" in words
    assert words[-2:] == ["used", "17 patients · 21 slides"]


def test_a_single_reason_has_two_lines() -> None:
    reason = "the slides table lists no slide of the patient in this cohort"
    words = texts(flow_diagram("TCGA", [STAGES[0], Stage("has slide", 18, 23, 2, 2, ((reason, 2),))]))
    start = words.index("−2 patients, −2 slides")
    assert " ".join(words[start + 1 : start + 3]) == f"{reason} (2)"


def test_stages_without_losses_are_not_drawn() -> None:
    assert "unique" not in texts(flow_diagram("TCGA", STAGES))


def test_user_text_is_escaped() -> None:
    svg = flow_diagram('"><script>alert(1)</script>', [Stage("<script>", 1, None, 0, 0)])
    assert "<script>" not in svg
    assert texts(svg) == ["<script>", "1 patient"]
    ET.fromstring(svg)


def test_interval_bar_places_its_parts_on_the_axis() -> None:
    bar = interval_bar(0.75, 0.5, 1.0, 0.5)
    assert bar is not None
    point = re.search(r'circle cx="([\d.]+)"', bar)
    assert point is not None
    assert float(point[1]) == 4 + 132 * 0.75
    assert 'class="chance"' in bar
    assert 'x1="70.0" x2="136.0"' in bar
    assert interval_bar(np.nan, 0, 1, 0.5) is None
    without = interval_bar(1.0, np.nan, np.nan, None)
    assert without is not None
    assert "range" not in without
    assert "chance" not in without
