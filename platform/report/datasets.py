"""Data sets of a report in their order: the test folds, then every external cohort, with names and colours."""

from collections.abc import Iterator
from typing import NamedTuple

import pandas as pd

from equipoise.platform.report.style import EXTERNAL, INTERNAL, SERIES

#: Values of ``cohort`` that stand for all patients of the test folds, the best first.
_TOGETHER = ("pooled", "all")


class Dataset(NamedTuple):
    """Rows of a table about one set of patients."""

    name: str
    role: str
    cohort: str
    colour: str
    rows: pd.DataFrame


def datasets_of(table: pd.DataFrame | None, task: str) -> Iterator[Dataset]:
    """The test folds (all cohorts together), then each external cohort; nothing without rows.

    Parameters
    ----------
    table
        Columns ``role``, ``cohort`` and ``task``.
    """
    if table is None:
        return
    rows = table[table["task"] == task]
    test = rows[rows["role"] == "test"]
    together = next((name for name in _TOGETHER if (test["cohort"] == name).any()), None)
    if together is not None:
        yield Dataset("test folds", "test", together, INTERNAL, test[test["cohort"] == together])
    outside = rows[(rows["role"] == "external") & ~rows["cohort"].isin(_TOGETHER)]
    colours = [EXTERNAL, *(c for c in SERIES if c not in (INTERNAL, EXTERNAL))]
    for index, (cohort, part) in enumerate(outside.groupby("cohort", sort=True)):
        yield Dataset(f"external {cohort}", "external", str(cohort), colours[index % len(colours)], part)
