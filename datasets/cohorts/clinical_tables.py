"""The clinical table of a cohort: one file, or several that are joined by patient."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from equipoise.datasets.errors import DataError
from equipoise.datasets.params import Columns, TableSource
from equipoise.datasets.tables.cells import ATTRIBUTE, is_key, key_marker
from equipoise.datasets.tables.reading import (
    applicable,
    detect_dialect,
    patient_column,
    read_table,
    table_label,
)

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class ClinicalTable:
    """Rows with a patient key.

    Attributes
    ----------
    table
        Text; the index names rows in messages: a number, or ``7 of ages.xlsx`` where tables were joined.
    key
        Column of the patient keys.
    keyless
        Reasons for rows without a key.
    rows
        Patient → number of its first row in the first table.
    notes
        Remarks for the report.
    """

    table: pd.DataFrame
    key: str
    keyless: list[str]
    rows: dict[str, int]
    notes: list[str]


def read_clinical(sources: Sequence[TableSource], columns: Columns, base: Path, cohort: str) -> ClinicalTable:
    """Read the clinical table, or join several: a patient of any of them is in, with the columns of all.

    Columns of one name are one column: equal values are one, one that is missing gives way, and a patient whose
    tables contradict is left out like one whose rows do.

    Raises
    ------
    DataError
        If a table has no patient column or no key, or shares no patient with the tables before it.
    """
    parts = [_read(source, columns, base, cohort, several=len(sources) > 1) for source in sources]
    return parts[0] if len(parts) == 1 else _joined(parts, sources, cohort)


def _read(source: TableSource, columns: Columns, base: Path, cohort: str, *, several: bool) -> ClinicalTable:
    table = read_table(source, base)
    # Joined tables may call their patients differently.
    key = patient_column(table, applicable(columns, table) if several else columns, source)
    notes = dialect_note(cohort, table, columns, source)
    has_key = table[key].map(is_key)
    keyless = [
        f"row {row} of {table_label(source)} has no patient key{key_marker(text)}"
        for row, text in table.loc[~has_key, key].items()
    ]
    table = table[has_key]
    if table.empty:
        raise DataError(f"no row has a patient key in column {key!r}", where=table_label(source))
    rows = dict(zip(table[key][::-1], table.index[::-1].tolist(), strict=True))
    return ClinicalTable(table, key, keyless, rows, notes)


def _joined(parts: Sequence[ClinicalTable], sources: Sequence[TableSource], cohort: str) -> ClinicalTable:
    """The rows of all tables below each other; rows of a patient are merged like those of one table."""
    import pandas as pd

    key = parts[0].key
    seen: set[str] = set()
    everywhere = set(parts[0].rows)
    frames, notes, keyless = [], [], []
    for part, source in zip(parts, sources, strict=True):
        if seen and not seen & set(part.rows):
            here, there = (", ".join(map(repr, sorted(p.rows)[:3])) for p in (part, parts[0]))
            raise DataError(
                f"no patient is in the tables before it: {here} here, {there} in {table_label(sources[0])}",
                where=f"cohort {cohort!r}, {table_label(source)}",
                fix="make the patient keys of the clinical tables equal, letter by letter",
            )
        seen |= set(part.rows)
        everywhere &= set(part.rows)
        table = part.table.drop(columns=[key] if key != part.key and key in part.table.columns else [])
        table = table.rename(columns={part.key: key})
        frames.append(table.set_axis([f"{row} of {table_label(source)}" for row in table.index]))
        notes += part.notes
        keyless += part.keyless
    notes.append(
        f"cohort {cohort}: {len(sources)} clinical tables are joined by patient: {len(everywhere)} patients are in "
        f"all of them, {len(seen) - len(everywhere)} are not"
    )
    table = pd.concat(frames).fillna("")
    return ClinicalTable(table, key, keyless, parts[0].rows, notes)


def dialect_note(cohort: str, table: pd.DataFrame, columns: Columns, which: TableSource) -> list[str]:
    """Say how a table was read: which dialect, unless the study names the columns itself, and decimal commas."""
    notes = []
    if commas := table.attrs.get(ATTRIBUTE):
        shown = ", ".join(commas[:3]) + (", …" if len(commas) > 3 else "")
        notes.append(
            f"cohort {cohort}: {table_label(which)} writes decimal commas, read as points (columns {shown}); "
            "where that is wrong, write decimal: '.' on the table"
        )
    dialect = detect_dialect(table)
    if dialect is not None and columns.patient not in table.columns:
        recognised = ", ".join(name for name in dialect.columns.model_dump().values() if name)
        notes.append(f"cohort {cohort}: {table_label(which)} is read as {dialect.name} ({recognised})")
    return notes
