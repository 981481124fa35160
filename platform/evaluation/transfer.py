"""The table of transfer: probe, zero-shot and baselines in every external cohort, with intervals and the probe's lead.

``transfer.parquet`` holds the predictions behind it (:mod:`equipoise.platform.training.transfer`), a cohort and a
predictor per name; ``transfer.csv`` has the columns of ``baselines.csv``. ``lead`` is the probe's value minus that of
the predictor. Values are means over folds of the cohort, so that zero-shot values differ a little from those of the
metrics table, which scores the whole cohort at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from equipoise.platform.evaluation.baselines import BASELINE_COLUMNS, evaluate_baselines, write_baselines
from equipoise.platform.evaluation.metric_definitions import CHANCE_LEVEL, PRIMARY

if TYPE_CHECKING:
    import pandas as pd

    from equipoise.platform.evaluation.params import EvaluationParams

#: Stem of the two files.
STEM = "transfer"
#: Name of the predictor that gives everybody the same score.
CONSTANT = "constant class"
_LEAD = ("lead", "lead_low", "lead_high", "p")


def evaluate_transfer(
    found: Mapping[str, Mapping[str, pd.DataFrame]], params: EvaluationParams, seed: int
) -> pd.DataFrame:
    """Columns of a table of baselines, ``role`` external; the first predictor of a cohort is the one that leads."""
    import pandas as pd

    tables = []
    for cohort, predictors in found.items():
        first, leading = next(iter(predictors.items()))
        table = evaluate_baselines(leading, predictors, params, seed, also=["sensitivity"])
        # Patients of one cohort are all that there are.
        table = table[table["cohort"] == "all"].assign(role="external", cohort=cohort)
        table.loc[table["predictor"] == first, [*_LEAD, "method"]] = [np.nan] * len(_LEAD) + [""]
        classes = leading.groupby("task")["class"].nunique().to_dict()
        tables += [table, _constant(table, classes)]
    if not tables:
        return pd.DataFrame(columns=list(BASELINE_COLUMNS))
    return pd.concat(tables, ignore_index=True)


def _constant(table: pd.DataFrame, classes: Mapping[str, int]) -> pd.DataFrame:
    """What the same score for everybody reaches; its balanced accuracy follows from the number of classes."""
    import pandas as pd

    rows = []
    for (task, metric), part in table.groupby(["task", "metric"], sort=False):
        row = part.iloc[0]
        value = CHANCE_LEVEL[str(metric)]
        if metric != PRIMARY[str(row["kind"])]:
            value = 1 / classes[str(task)]
        rows.append(
            {
                **{c: row[c] for c in ("role", "cohort", "task", "kind", "metric", "n", "n_pos")},
                "value": value,
            }
        )
    return pd.DataFrame(rows, columns=list(BASELINE_COLUMNS)).assign(predictor=CONSTANT, method="", note="")


def write_transfer(
    found: Mapping[str, Mapping[str, pd.DataFrame]], table: pd.DataFrame, folder: Path
) -> None:
    """Write ``transfer.parquet`` and ``transfer.csv`` below ``folder``, each atomically."""
    named = {f"{cohort}: {name}": rows for cohort, of in found.items() for name, rows in of.items()}
    write_baselines(named, table, folder, STEM)
