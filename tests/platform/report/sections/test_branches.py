"""The section of models with branches: when it is left out, what it says aloud, and what is in its figures."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from equipoise.platform.evaluation.baselines import BASELINE_COLUMNS
from equipoise.platform.report.blocks import Cell, Figures, Notice, Table, Text
from equipoise.platform.report.entries import SectionParams
from equipoise.platform.report.run_files import RunFiles, Task
from equipoise.platform.report.sections.branches import branch_remarks, build


class Run(RunFiles):
    """A run of nothing but histories, a study and a table of branches."""

    def __init__(
        self,
        histories: dict[str, pd.DataFrame],
        modulation: str = "gradmod",
        branches: list[dict] | None = None,
    ) -> None:
        super().__init__(Path("nowhere"))
        table = None if branches is None else pd.DataFrame(branches, columns=list(BASELINE_COLUMNS))
        model = {"kind": "gptomic", "fusion": "concat", "modulation": modulation}
        self.__dict__ |= {
            "histories": histories,
            "branches": table,
            "study": {"model": model},
            "tasks": [Task("OS", "survival", True)],
            "metric_rows": [],
            "confidence": 0.95,
        }


def history(rho: list[float], image: list[float], omics: list[float]) -> pd.DataFrame:
    """An epoch per value; the ratio of the omics branch is the inverse of that of the image branch."""
    epochs = np.arange(1, len(rho) + 1)
    return pd.DataFrame(
        {
            "epoch": epochs,
            "monitor": np.abs(epochs - 2.0),  # the second epoch is kept
            "rho/image": rho,
            "rho/omics": [1 / value for value in rho],
            "coefficient/image": image,
            "coefficient/omics": omics,
            "c/OS/image": 0.6,
            "c/OS/omics": 0.7,
        }
    )


def row(predictor: str, value: tuple[float, float, float], lead: tuple[float, float, float], **more) -> dict:
    names = ("value", "low", "high", "lead", "lead_low", "lead_high")
    rest = {"role": "test", "cohort": "all", "task": "OS", "kind": "survival", "metric": "c_index"}
    rest |= {"predictor": predictor, "n": 90, "n_pos": 40, "p": 0.03, "method": "", "note": ""}
    return rest | dict(zip(names, (*value, *lead), strict=True)) | more


FOLDS = {
    "0-0": history([0.5, 0.4, 0.9], [1, 1, 1], [0.4, 0.2, 0.9]),
    "0-1": history([0.5, 0.8], [1, 1], [0.4, 0.8]),
}
CLEAR = [
    row("image", (0.62, 0.55, 0.69), (0.1, 0.05, 0.15)),
    row("omics", (0.65, 0.58, 0.71), (0.07, 0.02, 0.12)),
]


def test_models_without_branches_have_no_section() -> None:
    plain = FOLDS["0-0"][["epoch", "monitor"]]
    assert build(Run({"0-0": plain}), SectionParams()) is None
    alone = FOLDS["0-0"].drop(columns=["rho/image", "coefficient/image", "c/OS/image"])
    assert build(Run({"0-0": alone}), SectionParams()) is None


def test_ratio_and_coefficient_over_the_epochs() -> None:
    section = build(Run(FOLDS, branches=CLEAR), SectionParams())
    assert section is not None
    assert section.lead == "The model fuses the branches image and omics by concat, with modulation gradmod."
    figures = [figure for block in section.blocks if isinstance(block, Figures) for figure in block.items]
    assert figures[0].layout["yaxis"]["ticktext"] == [
        "0.5",
        "0.7",
        "0.8",
        "0.9",
        "1",
        "1.1",
        "1.25",
        "1.5",
        "2",
    ]
    assert [f.slug for f in figures] == ["branches-ratio", "branches-coefficient", "branches-score-os"]
    ratio = figures[0].table.set_index(["branch", "epoch"])
    assert ratio.loc[("image", 2), "mean"] == pytest.approx(0.6)  # (0.4 + 0.8) / 2
    assert ratio.loc[("omics", 2), ["low", "high", "folds"]].tolist() == pytest.approx([1.25, 2.5, 2])
    assert ratio.loc[("image", 3), ["mean", "folds"]].tolist() == pytest.approx([0.9, 1])
    balance = next(b for b in section.blocks if isinstance(b, Table) and b.columns[0] == "Branch")
    assert balance.rows == [
        ["image", "0.60", "0.40 to 0.80", "1.00", "0 %"],
        ["omics", "1.88", "1.25 to 2.50", "0.20", "100 %"],
    ]


def test_branches_stand_beside_the_fused_model() -> None:
    outside = row("image", (0.58, 0.4, 0.7), (0.02, -0.1, 0.1), role="external", cohort="other")
    section = build(Run(FOLDS, branches=[*CLEAR, outside]), SectionParams())
    assert section is not None
    table = next(b.beside for b in section.blocks if isinstance(b, Figures) and b.beside)
    names = [cell for r in table.rows if isinstance(cell := r[0], Cell)]
    assert [name.text for name in names] == ["fused model", "image alone", "omics alone", "image alone"]
    assert [name.note for name in names] == [*["test folds"] * 3, "external other"]
    assert table.rows[1][1] == "0.620 (0.550–0.690)"
    difference = table.rows[1][2]
    assert isinstance(difference, Cell)
    assert (difference.text, difference.tone) == ("0.100 (0.050–0.150)", "good")


def test_what_must_not_be_overlooked_is_said_aloud() -> None:
    assert branch_remarks(Run(FOLDS, branches=CLEAR)) == []
    still = {name: table.assign(**{"coefficient/omics": 1.0}) for name, table in FOLDS.items()}
    (never,) = branch_remarks(Run(still, branches=CLEAR))
    assert never.startswith("gradmod never slowed a branch in any fold")
    (partly,) = branch_remarks(Run(FOLDS | {"0-2": still["0-0"]}, branches=CLEAR))
    assert "in 1 of 3 folds" in partly
    # A method that slows nothing by design is not blamed for it.
    assert branch_remarks(Run(still, modulation="aux_losses", branches=CLEAR)) == []
    weak = [
        row("image", (0.52, 0.44, 0.6), (0.1, 0.02, 0.2)),
        row("omics", (0.66, 0.6, 0.7), (0.0, -0.03, 0.03)),
    ]
    chance, gain = branch_remarks(Run(FOLDS, branches=weak))
    assert (
        chance == "OS: the branch image alone cannot be told apart from chance (Harrell C 0.52, 0.44–0.60)."
    )
    assert gain.startswith(
        "OS: the fused model is not clearly better than its branch omics alone (difference 0.000"
    )
    worse = [row("omics", (0.66, 0.6, 0.7), (-0.04, -0.07, -0.01))]
    assert "worse than its branch omics" in branch_remarks(Run(FOLDS, branches=worse))[0]


def test_remarks_are_on_top_and_missing_scores_are_explained() -> None:
    weak = [row("image", (0.52, 0.44, 0.6), (0.1, 0.02, 0.2))]
    section = build(Run(FOLDS, branches=weak), SectionParams())
    assert section is not None
    assert isinstance(section.blocks[0], Notice)
    run = Run(FOLDS)
    run.study["training"] = {"members": 3}
    section = build(run, SectionParams())
    assert section is not None
    (said,) = [b.text for b in section.blocks if isinstance(b, Text)]
    assert "members of an ensemble" in said
