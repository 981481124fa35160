"""Slides in the section on limits: what could not be used, and what is used with a remark."""

from pathlib import Path

import pandas as pd

from equipoise.platform.report.blocks import Heading, Table, Text
from equipoise.platform.report.run_files import RunFiles
from equipoise.platform.report.sections.limits import slide_blocks


def run_with(folder: Path, **errors: tuple[str, str]) -> RunFiles:
    (folder / "manifest").mkdir()
    rows = [
        {"slide": slide, "patient": "P", "cohort": "A", "status": status, "error": error}
        for slide, (status, error) in errors.items()
    ]
    pd.DataFrame(rows).to_parquet(folder / "manifest" / "slides.parquet")
    return RunFiles(folder)


def test_remarks_are_shown_apart_from_failures(tmp_path: Path) -> None:
    run = run_with(
        tmp_path,
        good=("ok", ""),
        brown=("ok", "2% of the stained area has a colour of H&E"),
        dark=("wrong_stain", "no transmitted light"),
    )
    heading, failed, remarks, used = slide_blocks(run, 5)
    assert isinstance(heading, Heading)
    assert isinstance(failed, Table)
    assert [row[0] for row in failed.rows] == ["dark"]
    assert isinstance(remarks, Heading)
    assert "with a remark" in remarks.text
    assert isinstance(used, Table)
    assert used.rows == [["brown", "P", "A", "ok", "2% of the stained area has a colour of H&E"]]


def test_without_either_there_is_one_line(tmp_path: Path) -> None:
    blocks = slide_blocks(run_with(tmp_path, good=("ok", "")), 5)
    assert [type(block) for block in blocks] == [Heading, Text]
