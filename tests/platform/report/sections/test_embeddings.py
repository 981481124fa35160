"""The section of embeddings: left out without tables, what its rows say, that chance is beside the index."""

from pathlib import Path

import pandas as pd

from equipoise.platform.evaluation.baselines import BASELINE_COLUMNS
from equipoise.platform.evaluation.feature_robustness import NOT_INSTALLED
from equipoise.platform.evaluation.robustness import ROBUSTNESS_COLUMNS
from equipoise.platform.report.blocks import Cell, Heading, Table
from equipoise.platform.report.entries import SectionParams
from equipoise.platform.report.run_files import RunFiles, Task
from equipoise.platform.report.sections.embeddings import build

ROW = {"role": "external", "cohort": "X", "task": "MSI", "kind": "multiclass", "n": 60}


def run(
    transfer: list[dict] | None, robustness: list[dict] | None, features: pd.DataFrame | None = None
) -> RunFiles:
    made = RunFiles(Path("nowhere"))
    made.__dict__ |= {
        "transfer": None if transfer is None else pd.DataFrame(transfer, columns=list(BASELINE_COLUMNS)),
        "robustness": None
        if robustness is None
        else pd.DataFrame(robustness, columns=list(ROBUSTNESS_COLUMNS)),
        "feature_robustness": features,
        "tasks": [Task("MSI", "binary", True)],
        "confidence": 0.95,
    }
    return made


def test_nothing_is_shown_without_tables() -> None:
    assert build(run(None, None), SectionParams()) is None


def test_rows_say_what_was_fitted_where_and_what_the_probe_gains() -> None:
    values = {"low": 0.7, "high": 0.9}
    rows = [
        ROW | values | {"predictor": "probe", "metric": "auroc", "value": 0.8},
        ROW | values | {"predictor": "probe", "metric": "balanced_accuracy", "value": 0.75},
        ROW
        | values
        | {
            "predictor": "zero-shot",
            "metric": "auroc",
            "value": 0.6,
            "lead": 0.2,
            "lead_low": 0.1,
            "lead_high": 0.3,
        }
        | {"p": 0.001},
        ROW | {"predictor": "constant class", "metric": "balanced_accuracy", "value": 0.5},
    ]
    index = {"task": "MSI", "centre": "site", "k": 5.0, "value": 0.4, "low": 0.3, "high": 0.45, "chance": 0.6}
    section = build(
        run(rows, [index | {"margin": -0.1, "support": 1.0, "n": 60.0, "folds": 2.0}]), SectionParams()
    )
    assert section is not None
    titles = [block.text for block in section.blocks if isinstance(block, Heading)]
    assert titles == ["MSI in X", "Embeddings after training: class or centre"]
    transfer, robust = (block for block in section.blocks if isinstance(block, Table))
    by_name = {row[0].text: row for row in transfer.rows if isinstance(row[0], Cell)}
    assert by_name["probe"][0].note == "frozen embedding, ridge fitted in the cohort"
    assert by_name["zero-shot"][-1] == Cell("0.200 (0.100–0.300)", "good", by_name["zero-shot"][-1].note)
    assert by_name["constant class"][2] == "0.500"
    (line,) = robust.rows
    assert line[2].tone == "bad"  # below neighbours drawn at random
    assert line[3] == "0.600"


def test_features_stand_with_the_measures_of_croma_and_the_reason_for_what_is_missing() -> None:
    row = {
        "task": "MSI",
        "centre": "site",
        "k": 5,
        "value": 0.7,
        "low": 0.65,
        "high": 0.75,
        "chance": 0.6,
        "n": 60,
    }
    row |= {"mari": 0.72, "croma": 0.11, "croma_tail": -0.2, "apd": -0.14, "apd_cells": "A and B", "note": ""}
    without = row | {
        "mari": float("nan"),
        "croma": float("nan"),
        "croma_tail": float("nan"),
        "apd": float("nan"),
    }
    table = pd.DataFrame([row, without | {"apd_cells": "", "note": NOT_INSTALLED}])
    section = build(run(None, None, table), SectionParams())
    assert section is not None
    (shown,) = [block for block in section.blocks if isinstance(block, Table)]
    known, missing = shown.rows
    assert known[2].tone == "good"
    assert [str(known[4]), known[5].text, known[5].note] == ["0.720", "0.11", "worst tenth −0.20"]
    assert (known[6].text, known[6].note) == ("−0.14", "A and B")
    assert (missing[0].mark, str(missing[4]), missing[6].text) == ("1", "–", "–")
    assert list(shown.footnotes) == [NOT_INSTALLED]
