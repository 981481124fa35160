"""The section of maps: left out without them, checks counted, pictures and links of files that are there."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tests.datasets.slides.conftest import write_slide  # noqa: F401 - the fixture
from tests.platform.explain.conftest import FAILED, PASSED, made_map

from equipoise.platform.explain.render import render
from equipoise.platform.explain.tile_scores import TileScores, scores_path, write_tile_scores
from equipoise.platform.report.blocks import Gallery, Notice, Table
from equipoise.platform.report.entries import ExplainParams
from equipoise.platform.report.page import write_report
from equipoise.platform.report.run_files import RunFiles, Task
from equipoise.platform.report.sections.explain import build
from equipoise.platform.report.sections.explain_tables import explain_tables

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
    assert all(len(gallery.items) == 5 for gallery in tiles)
    best = float(MAPS[0].score.max())
    assert tiles[0].items[0].caption == f"{best:.3g}"


def test_a_page_with_pseudonyms_links_no_viewer(drawn: RunFiles) -> None:
    pseudonymous = RunFiles(drawn.folder)
    pseudonymous.__dict__["tile_scores"] = [
        (path, dataclasses.replace(scores, slide=f"S-{scores.slide[0]}XYZ"))
        for path, scores in drawn.tile_scores
    ]
    section = build(pseudonymous, ExplainParams())
    assert section is not None
    pictures = [p for block in section.blocks if isinstance(block, Gallery) for p in block.items]
    assert pictures
    assert {picture.href for picture in pictures} == {""}
    assert not any("A-1" in picture.caption for picture in pictures)


def test_genes_are_averaged_over_cohorts_and_ranked(drawn: RunFiles) -> None:
    """By hand: gene A has (3 * 0.1 + 1 * 0.5) / 4 = 0.2 on average, gene NA 0.3."""
    rows = [
        ("X", "test", "MSI", "MSIH", "rna", "A", 3, 0.1, 0.1),
        ("Y", "external", "MSI", "MSIH", "rna", "A", 1, -0.5, 0.5),
        ("X", "test", "MSI", "MSIH", "rna", "NA", 3, 0.3, 0.3),
        ("X", "test", "OS", "", "rna", "B", 3, 9.0, 9.0),
    ]
    columns = ["cohort", "role", "task", "class", "modality", "gene", "n", "mean", "mean_abs"]
    pd.DataFrame(rows, columns=columns).to_csv(drawn.folder / "explain" / "genes.csv", index=False)
    table = explain_tables(drawn, 5)[-1]
    assert isinstance(table, Table)
    assert list(table.rows) == [
        ["MSI: MSIH", "NA", "rna", "3", "0.300", "0.300"],  # a gene, not a missing value
        ["MSI: MSIH", "A", "rna", "4", "0.200", "−0.050"],
        ["OS", "B", "rna", "3", "9.000", "9.000"],
    ]
    (first, last) = explain_tables(drawn, 1)[-1].rows  # type: ignore[union-attr]
    assert (first[1], last[1]) == ("NA", "B")  # the largest of each task


def test_modalities_name_no_patients(drawn: RunFiles) -> None:
    rows = [
        ("P1", "MSI", "MSIH", "rna", 0.4, 0.25),
        ("P2", "MSI", "MSIH", "rna", -0.2, 0.75),
        ("P1", "OS", "", "wsi", 1, 1),
    ]
    columns = ["patient", "task", "class", "modality", "change", "ig_share"]
    pd.DataFrame(rows, columns=columns).to_csv(drawn.folder / "explain" / "modalities.csv", index=False)
    table = explain_tables(drawn, 5)[1]
    assert isinstance(table, Table)
    assert list(table.rows) == [
        ["MSI: MSIH", "rna", "2", "0.300", "0.100", "50 %"],
        ["OS", "wsi", "1", "1.000", "1.000", "100 %"],
    ]
    assert table.download is not None
    assert "P1" not in table.download.table.to_csv()


def test_a_table_of_another_layout_is_named(drawn: RunFiles) -> None:
    (drawn.folder / "explain" / "genes.csv").write_text("name,value\nA,1\n")
    section = build(drawn, ExplainParams())
    assert section is not None
    first = section.blocks[0]
    assert isinstance(first, Notice)
    assert first.items[0].startswith("explain/genes.csv: lacks the columns task, class, gene")


def test_a_broken_map_is_named_and_the_others_are_shown(drawn: RunFiles) -> None:
    broken = drawn.folder / "explain" / "A-1" / "MSI.MSIH.integrated_gradients.parquet"
    broken.write_bytes(b"PAR1")
    section = build(drawn, ExplainParams())
    assert section is not None
    first = section.blocks[0]
    assert isinstance(first, Notice)
    assert "MSI.MSIH.integrated_gradients.parquet" in first.items[0]
    assert section.lead.startswith("2 maps of 2 slides")


def test_the_page_holds_the_section_and_stays_small(drawn: RunFiles) -> None:
    page = write_report(drawn.folder).read_text()  # a folder that holds nothing else
    assert "What predictions rest on" in page
    assert 'href="explain/A-1/viewer.html"' in page
    assert 'alt="map of MSI: MSIH by integrated gradients"' in page
    section = build(drawn, ExplainParams())
    assert section is not None
    pictures = [p for block in section.blocks if isinstance(block, Gallery) for p in block.items]
    assert sum(len(picture.uri) for picture in pictures) < 400_000
