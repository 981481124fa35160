"""The part of a model card that says how far to trust a prediction, and what was measured of it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from equipoise.platform.prediction.coverage import external_coverage, nested_coverage

if TYPE_CHECKING:
    import pandas as pd

    from equipoise.platform.prediction.trust import Trust


def reliability(trust: Trust, predictions: pd.DataFrame) -> str:
    """A section in Markdown: what sets promise, the coverage that was measured, which checks are made.

    Parameters
    ----------
    trust
        What is exported.
    predictions
        The predictions table of the run.
    """
    lines = ["", "## How far to trust a prediction", ""]
    conformal = trust.conformal
    if conformal is not None:
        lines += [f"- {sentence}" for sentence in conformal.guarantees]
        level = next((task.level for task in conformal.tasks.values()), math.nan)
        rows = []
        if math.isfinite(level):
            nested = nested_coverage(predictions, level=level, negatives=conformal.negatives)
            rows = _rows(nested.assign(cohort="development, test folds"))
        if all(not task.refit for task in conformal.tasks.values()):
            rows += _rows(external_coverage(conformal, predictions))
        if rows:
            lines += [
                "",
                "Coverage as measured (95 % interval). On the test folds the sets of each fold's model were calibrated",
                "on its inner validation patients; external patients had the sets that this model gives.",
                "",
                "| task | patients | of class | n | coverage | expected |",
                "|---|---|---|---|---|---|",
                *rows,
            ]
    checks = "none: no reference of training slides"
    if trust.drift is not None:
        checks = f"{', '.join(trust.drift.checks)}, against the training slides"
    lines += ["", f"- Drift checks of new slides: {checks}."]
    lines += ["- There is no answer where a set holds several labels or none, or a slide is flagged."]
    lines += [f"- {note}" for note in trust.notes]
    return "\n".join(lines) + "\n"


def _rows(coverage: pd.DataFrame) -> list[str]:
    rows = []
    for row in coverage.to_dict("records"):
        expected = (
            f"{row['expected_low']:.2f}–{row['expected_high']:.2f}"
            if math.isfinite(row["expected_low"])
            else "–"
        )
        measured = f"{row['coverage']:.2f} ({row['low']:.2f}–{row['high']:.2f})"
        cells = (row["task"], row["cohort"], row["class"] or "all", row["n"], measured, expected)
        rows.append("| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |")
    return rows
