"""Participants: labels that are lost are counted with their reasons, apart from patients who leave."""

from pathlib import Path

import pandas as pd

from equipoise.platform.report.blocks import Heading, Table
from equipoise.platform.report.entries import FlowParams
from equipoise.platform.report.run_files import RunFiles
from equipoise.platform.report.sections.flow import build

COLUMNS = ["cohort", "patient", "slide", "task", "stage", "reason"]


class Run(RunFiles):
    """A run of nothing but accounts of labels and exclusions."""

    def __init__(self, labels: list[dict], exclusions: list[tuple[str, ...]]) -> None:
        super().__init__(Path("nowhere"))
        self.__dict__ |= {"labels": labels, "exclusions": pd.DataFrame(exclusions, columns=COLUMNS)}


def test_labels_are_counted_apart_from_patients() -> None:
    losses = [
        {"reason": "no value", "patients": 12, "expected": True, "examples": ["'' in row 2, P0"]},
        {"reason": "not a number", "patients": 3, "expected": False, "examples": ["'n.d.' in row 7, P5"]},
    ]
    accounts = [
        {"task": "OS", "cohort": "A", "patients": 40, "usable": 25, "losses": losses},
        {"task": "MSI", "cohort": "A", "patients": 40, "usable": 40, "losses": []},
    ]
    rows = [
        ("A", "P5", "", "OS", "label", "'n.d.' is not a number"),
        ("A", "P9", "", "", "has slide", "no slide"),
    ]
    section = build(Run(accounts, rows), FlowParams())
    titles = [block.text for block in section.blocks if isinstance(block, Heading)]
    assert titles == ["Labels", "Exclusions"]
    labels, by_reason, every = [block for block in section.blocks if isinstance(block, Table)]
    assert labels.rows == [
        ["OS", "A", "25 of 40", "12", "no value", ""],
        ["", "", "", "3", "not a number", "'n.d.' in row 7, P5"],
        ["MSI", "A", "40 of 40", "0", "–", ""],
    ]
    assert by_reason.rows == [["A", "has slide", "no slide", "1"]]
    assert [row[3] for row in every.rows] == ["OS", ""]


def test_exclusions_of_an_earlier_version_have_no_task(tmp_path: Path) -> None:
    (tmp_path / "manifest").mkdir()
    text = "cohort,patient,slide,stage,reason\nA,P1,,unique,rows contradict\n"
    (tmp_path / "manifest" / "exclusions.csv").write_text(text)
    run = RunFiles(tmp_path)
    assert run.excluded is not None
    assert len(run.excluded) == 1
    assert run.labels == []
