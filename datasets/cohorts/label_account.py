"""Labels of every task: how many patients have a usable one, and why the others have none.

A patient whom another task keeps in the study loses a label without leaving; this is where that is counted. The account
is printed by ``validate``, written to ``manifest/labels.json`` and shown in the report.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from equipoise.datasets.cohorts.cohort_tables import RawCohort
from equipoise.datasets.tables.reading import table_label
from equipoise.datasets.tables.targets import EncodedTask, NoLabel
from equipoise.datasets.tables.tasks import Task

if TYPE_CHECKING:
    import pandas as pd

#: Under ``manifest/``.
FILE = "labels.json"
#: Stage of rows of ``manifest/exclusions.csv`` that take a patient out of one task only.
STAGE = "label"
GAP_COLUMNS = ("cohort", "patient", "task", "kind", "value", "reason", "expected", "row")
#: Examples that are kept of each reason.
EXAMPLES = 3
#: Cohorts that a line of the terminal names one by one.
FEW_COHORTS = 6
NO_COLUMN, REPEATED_COLUMN = "no such column", "a column that occurs several times"


@dataclass(frozen=True)
class LabelLoss:
    """Patients without a usable label for one reason.

    Attributes
    ----------
    reason
        Without the value.
    patients
        How many.
    expected
        Whether nothing is there, or the study leaves the value out.
    examples
        Up to three values with row and patient.
    """

    reason: str
    patients: int
    expected: bool
    examples: tuple[str, ...]

    @property
    def text(self) -> str:
        """``10 not a number ('n.d.' in row 3, P001)``."""
        shown = f" ({', '.join(self.examples)}{', …' if self.patients > len(self.examples) else ''})"
        return f"{self.patients} {self.reason}{shown}"


@dataclass(frozen=True)
class LabelAccount:
    """Labels of one task in one cohort.

    Attributes
    ----------
    task, cohort
        Names.
    patients
        Patients whose labels were looked at: all that have what the model reads.
    usable
        Those with a label.
    losses
        Why the others have none, the most frequent reason first.
    """

    task: str
    cohort: str
    patients: int
    usable: int
    losses: tuple[LabelLoss, ...]

    @property
    def unusable(self) -> int:
        """Patients for whom the table has something that is no label."""
        return sum(loss.patients for loss in self.losses if not loss.expected)

    @property
    def warning(self) -> str | None:
        """A sentence where labels are lost that the table has something for; ``None`` otherwise."""
        if not self.unusable:
            return None
        losses = "; ".join(loss.text for loss in self.losses if not loss.expected)
        return (
            f"task {self.task!r}, cohort {self.cohort}: what the table has for {self.unusable} of {self.patients} "
            f"patients is no usable label: {losses}"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def label_accounts(
    patients: pd.DataFrame, gaps: pd.DataFrame, tasks: Sequence[Task]
) -> tuple[LabelAccount, ...]:
    """The account of every cohort and task, in the order of the study.

    Parameters
    ----------
    patients
        Columns patient, cohort and those of the tasks: everybody who is in.
    gaps
        Table of :func:`label_gaps`; may hold patients who left because no task has a label for them.
    """
    accounts = []
    cohorts = dict.fromkeys([*patients["cohort"], *gaps["cohort"]])
    for task in tasks:
        for cohort in cohorts:
            inside = patients[patients["cohort"] == cohort]
            lost = gaps[(gaps["cohort"] == cohort) & (gaps["task"] == task.name)]
            usable = int(inside[list(task.frame_columns)].notna().all(axis=1).sum())
            losses = tuple(
                LabelLoss(str(kind), len(rows), bool(rows["expected"].iloc[0]), _examples(rows))
                for kind, rows in lost.groupby("kind", sort=False)
            )
            ordered = tuple(sorted(losses, key=lambda loss: -loss.patients))
            accounts.append(LabelAccount(task.name, str(cohort), usable + len(lost), usable, ordered))
    return tuple(accounts)


def account_lines(accounts: Sequence[LabelAccount]) -> list[str]:
    """One line per task for the terminal: over all cohorts, then by cohort where there are few, and what is lost."""
    lines = []
    for name in dict.fromkeys(account.task for account in accounts):
        parts = [account for account in accounts if account.task == name]
        line = f"{name}: {sum(a.usable for a in parts)} of {sum(a.patients for a in parts)} patients"
        if 1 < len(parts) <= FEW_COHORTS:
            line += f" ({', '.join(f'{a.cohort} {a.usable} of {a.patients}' for a in parts)})"
        lost: dict[str, int] = {}
        for loss in (loss for account in parts for loss in account.losses):
            lost[loss.reason] = lost.get(loss.reason, 0) + loss.patients
        lines.append("; ".join([line, *(f"{n} {reason}" for reason, n in lost.items())]))
    return lines


def _examples(rows: pd.DataFrame) -> tuple[str, ...]:
    first = rows.head(EXAMPLES)
    return tuple(
        f"{value!r} in row {row}, {patient}" if row else f"{value!r}, {patient}"
        for value, row, patient in zip(first["value"], first["row"], first["patient"], strict=True)
    )


def label_gaps(
    patients: Mapping[str, str], encoded: Sequence[EncodedTask], rows: Mapping[str, int]
) -> pd.DataFrame:
    """Who has no label for a task, one row each.

    Parameters
    ----------
    patients
        Patient → cohort of all whose labels count.
    encoded
        Targets.
    rows
        Patient → row of the clinical table.

    Returns
    -------
    Columns :data:`GAP_COLUMNS`; ``row`` is 0 where it is not known.
    """
    import pandas as pd

    found = [
        (cohort, patient, task.name, gap.kind, gap.value, gap.text, gap.expected, rows.get(patient, 0))
        for task in encoded
        for patient, cohort in patients.items()
        if (gap := task.reasons.get(patient)) is not None
    ]
    return pd.DataFrame(found, columns=list(GAP_COLUMNS), dtype=object)


def lacking_column(task: Task, raw: RawCohort) -> tuple[str, NoLabel] | None:
    """The first column of a task that a cohort's table lacks, or has several times, and what that means.

    ``None`` where the table has all of them.
    """
    for column in task.columns:
        if column in raw.labels.columns:
            continue
        if several := numbered(column, raw.clinical_columns):
            named = " and ".join(map(repr, several))
            text = f"column {column!r} occurs {len(several)} times in {table_label(raw.source.clinical)}, as {named}"
            return column, NoLabel(REPEATED_COLUMN, column, text)
        return column, NoLabel(
            NO_COLUMN, column, f"cohort {raw.source.name} has no column {column!r}", expected=True
        )
    return None


def numbered(column: str, columns: Iterable[str]) -> list[str]:
    """``OS (1)`` and ``OS (2)``: the names under which a table holds a column that occurs several times."""
    names = set(columns)
    found: list[str] = []
    while (name := f"{column} ({len(found) + 1})") in names:
        found.append(name)
    return found
