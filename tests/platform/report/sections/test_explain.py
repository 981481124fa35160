"""The section of maps: left out without them, checks counted, pictures and links of files that are there."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tests.datasets.slides.conftest import write_slide  # noqa: F401 - the fixture
from tests.platform.explain.conftest import FAILED, PASSED, made_map

from equipoise.platform.explain.render import render
from equipoise.platform.explain.tile_scores import TileScores, scores_path, write_tile_scores
from equipoise.platform.report.blocks import Gallery, Heading, Notice, Table
from equipoise.platform.report.entries import ExplainParams
from equipoise.platform.report.page import write_report
from equipoise.platform.report.run_files import RunFiles, Task
from equipoise.platform.report.sections.explain import build

MAPS = (
    made_map(slide="A-1"),
    made_map(slide="A-1", task="OS", kind="survival", class_name="", checks=(PASSED, FAILED)),
    made_map(slide="B-1"),
)


def run(folder: Path, maps: tuple[TileScores, ...]) -> RunFiles:
    for scores in maps:
        path = scores_path(folder / "explain", scores.slide, scores.task, scores.class_name, scores.method)
        write_tile_scores(scores, path)
    made = RunFiles(folder)
    made.__dict__["tasks"] = [Task("MSI", "binary", True), Task("OS", "survival", False)]
    return made


@pytest.fixture
def drawn(write_slide: Callable, tmp_path: Path) -> RunFiles:  # noqa: F811 - a fixture by its name
    """Three maps of two slides; the pictures of the second slide lie on blank paper."""
    slide = write_slide([np.full((500, 700, 3), 240, np.uint8), np.full((250, 350, 3), 240, np.uint8)])
    render(MAPS[:2], slide, tmp_path / "explain" / "A-1")
    render(MAPS[2:], None, tmp_path / "explain" / "B-1")
    return run(tmp_path, MAPS)


def test_absent_without_maps(tmp_path: Path) -> None:
    assert build(RunFiles(tmp_path), ExplainParams()) is None


def test_checks_are_counted_and_failures_named(drawn: RunFiles) -> None:
    section = build(drawn, ExplainParams())
    assert section is not None
    assert section.lead.startswith("3 maps of 2 slides")
    assert "1 of them failed a check" in section.lead
    (notice,) = (block for block in section.blocks if isinstance(block, Notice))
    assert list(notice.items) == [
        f"OS, integrated gradients, slide A-1: model randomisation: {FAILED.reason}"
    ]
    table = next(block for block in section.blocks if isinstance(block, Table))
    shown = [[cell if isinstance(cell, str) else cell.text for cell in row] for row in table.rows]
    assert [row[:5] for row in shown] == [
        ["MSI: MSIH", "integrated gradients", "deletion", "2 of 2", "2"],
        ["OS", "integrated gradients", "deletion", "1 of 1", "1"],
        ["OS", "integrated gradients", "model randomisation", "0 of 1", "1"],
    ]
    assert table.download is not None
    assert len(table.download.table) == 4


def test_previews_go_round_the_slides_and_link_viewers_that_exist(drawn: RunFiles) -> None:
    section = build(drawn, ExplainParams(maps=2))
    assert section is not None
    galleries = [block for block in section.blocks if isinstance(block, Gallery)]
    previews = galleries[0].items
    assert ["slide A-1" in previews[0].caption, "slide B-1" in previews[1].caption] == [True, True]
    assert [picture.href for picture in previews] == ["explain/A-1/viewer.html", ""]
    assert "2 of 3 maps" in galleries[0].caption
    tiles = galleries[1:]
    assert len(tiles) == 2  # both ends of MSI; the map of OS failed, so its tiles are no evidence
    assert all(len(gallery.items) == 6 for gallery in tiles)
    best = float(MAPS[0].score.max())
    assert tiles[0].items[0].caption == f"{best:.3g}"


def test_tables_are_shown_as_they_are(drawn: RunFiles) -> None:
    genes = pd.DataFrame(
        {"task": ["MSI"] * 20, "gene": ["NA", *map(str, range(19))], "mean_abs": np.arange(20) / 7}
    )
    genes.to_csv(drawn.folder / "explain" / "genes.csv", index=False)
    section = build(drawn, ExplainParams(rows=5))
    assert section is not None
    assert Heading("Genes and pathways") in section.blocks
    table = section.blocks[-1]
    assert isinstance(table, Table)
    assert list(table.columns) == ["Task", "Gene", "Mean abs"]
    assert table.rows[0][1] == "NA"  # a gene, not a missing value
    assert len(table.rows) == 5
    assert "The first 5 of 20 rows" in table.caption
    assert table.download is not None
    assert len(table.download.table) == 20


def test_a_broken_map_is_named_and_the_others_are_shown(drawn: RunFiles) -> None:
    broken = drawn.folder / "explain" / "A-1" / "MSI.MSIH.integrated_gradients.parquet"
    broken.write_bytes(b"PAR1")
    section = build(drawn, ExplainParams())
    assert section is not None
    first = section.blocks[0]
    assert isinstance(first, Notice)
    assert "MSI.MSIH.integrated_gradients.parquet" in first.items[0]
    assert section.lead.startswith("2 maps of 2 slides")


def test_the_page_holds_the_section_and_stays_small(make_run: Callable, made: type, drawn: RunFiles) -> None:
    folder = make_run(made())
    (drawn.folder / "explain").rename(folder / "explain")
    page = write_report(folder).read_text()
    assert "What predictions rest on" in page
    assert 'href="explain/A-1/viewer.html"' in page
    assert 'alt="map of MSI: MSIH by integrated gradients"' in page
    section = build(RunFiles(folder), ExplainParams())
    assert section is not None
    pictures = [p for block in section.blocks if isinstance(block, Gallery) for p in block.items]
    assert sum(len(picture.uri) for picture in pictures) < 400_000
