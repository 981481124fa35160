"""User tables: located, read as text and filtered; their columns are recognised by dialect.

Every error says where, why, how to fix it and the nearest names that exist.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from equipoise.datasets.errors import DataError
from equipoise.datasets.params import Columns, TableSource, label_key
from equipoise.datasets.suggestions import nearest, value_counts
from equipoise.datasets.tables.cells import MISSING, with_decimal_points
from equipoise.datasets.tables.files import read_grid

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "MISSING",
    "Columns",
    "Dialect",
    "TableSource",
    "applicable",
    "detect_dialect",
    "file_column",
    "locate",
    "patient_column",
    "read_table",
    "require_columns",
    "table_label",
]


@dataclass(frozen=True)
class Dialect:
    """Column names that a family of tools uses."""

    name: str
    columns: Columns


#: In this order: GDC tables have ``case_id`` too, which is an id that no other table knows.
DIALECTS = (
    Dialect("equipoise/STAMP", Columns(patient="PATIENT", file="FILENAME", mpp="MPP")),
    Dialect("GDC", Columns(patient="case_submitter_id", file="slide_submitter_id")),
    Dialect("CLAM/PORPOISE/SurvPath", Columns(patient="case_id", file="slide_id", mpp="mpp")),
    Dialect("TCGA", Columns(patient="bcr_patient_barcode")),
    Dialect("cBioPortal", Columns(patient="PATIENT_ID")),
    Dialect("cBioPortal", Columns(patient="Patient ID")),
)

#: Columns from which on names of one shape are taken for keys.
MANY_KEYS = 5
#: Parts of names that such columns often have; used for suggestions only.
LIKELY = {
    "patient": ("patient", "case", "barcode", "subject", "participant"),
    "file": ("file", "slide", "image"),
}


def table_label(source: TableSource | Sequence[TableSource]) -> str:
    """The table as messages name it; joined ones with a plus."""
    if not isinstance(source, TableSource):
        return " + ".join(table_label(one) for one in source)
    return f"{source.path}, sheet {source.sheet!r}" if source.sheet else source.path


def locate(path: str, base: Path) -> Path:
    """An existing file for a path of the study.

    Raises
    ------
    DataError
        With the nearest file names of the folder.
    """
    if "://" in path:
        raise DataError(
            "tables are read from files, not from addresses", where=path, fix="copy the table to a file"
        )
    full = base / Path(path).expanduser()
    if full.is_file():
        return full
    if full.is_dir():
        raise DataError("is a folder, not a table", where=str(full), fix="name the file inside it")
    if not full.parent.is_dir():
        raise DataError(
            f"the folder {full.parent} does not exist",
            where=path,
            fix=f"paths are relative to {base.resolve()}",
        )
    names = [entry.name for entry in full.parent.iterdir() if entry.is_file()]
    raise DataError(
        f"no such file{nearest(full.name, names)}",
        where=str(full),
        fix=f"paths are relative to {base.resolve()}",
    )


def read_table(source: TableSource, base: Path) -> pd.DataFrame:
    """Read a table as text.

    Parameters
    ----------
    source
        Path, sheet, header row, encoding, renamed columns and row filter.
    base
        Folder that relative paths start from.

    Returns
    -------
    pandas.DataFrame
        Stripped text, missing = ``""``; the index (``row``) is the row number in the file.

    Raises
    ------
    DataError
        If file, sheet, column or a value of ``where`` is not there, or nothing is left.
    """
    table = read_grid(
        locate(source.path, base), sheet=source.sheet, header=source.header, encoding=source.encoding
    )
    table = with_decimal_points(table, source.decimal)
    if source.rename:
        require_columns(table, source.rename, source)
        table = table.rename(columns=source.rename)
        if repeated := sorted(set(table.columns[table.columns.duplicated()])):
            raise DataError(
                f"'rename' gives several columns the name {repeated[0]!r}",
                where=table_label(source),
                fix="rename the other column too",
            )
    if table.empty:
        raise DataError("the table has column names but no rows", where=table_label(source))
    return filtered(table, source)


def filtered(table: pd.DataFrame, source: TableSource) -> pd.DataFrame:
    """The rows that the source's ``where`` keeps.

    Raises
    ------
    DataError
        If a column or a value is not there, or nothing is left.
    """
    require_columns(table, source.where, source)
    for column, wanted in source.where.items():
        values = table[column].map(label_key)
        for value in wanted:
            if not (values == value).any():
                raise DataError(
                    f"no row has {value!r} in column {column!r}{nearest(value, values.unique())}",
                    where=table_label(source),
                    fix=f"values of the column: {value_counts(values)}",
                )
        table = table.loc[values.isin(wanted)]
    if table.empty:
        raise DataError(
            "no row fulfils all conditions of 'where'", where=table_label(source), fix="loosen 'where'"
        )
    return table


def require_columns(
    table: pd.DataFrame, columns: Iterable[str], source: TableSource | Sequence[TableSource]
) -> None:
    """Raise a :class:`DataError` with the nearest names for the first column that is not in the table."""
    for column in columns:
        if column not in table.columns:
            raise DataError(
                f"no column {column!r}{nearest(column, table.columns)}",
                where=table_label(source),
                fix=f"columns: {_shortened(table.columns)}",
            )


def _shortened(names: Iterable[str], n: int = 20) -> str:
    names = list(names)
    return ", ".join(names[:n]) + (f", … ({len(names)} columns)" if len(names) > n else "")


def detect_dialect(table: pd.DataFrame) -> Dialect | None:
    """The dialect whose patient column the table has, with the columns as the table spells them.

    Columns that the table does not have are ``None``; no dialect at all gives ``None``.
    """
    spelled = {str(name).casefold(): str(name) for name in reversed(table.columns)}
    for dialect in DIALECTS:
        recognised = {}
        for role, name in dialect.columns.model_dump().items():
            # A slide may be named in the words of another dialect than its patient.
            names = [name, *(getattr(d.columns, role) for d in DIALECTS)] if role != "patient" else [name]
            found = (spelled.get(n.casefold()) for n in names if n is not None)
            recognised[role] = next((n for n in found if n is not None), None)
        if recognised["patient"] is not None:
            return Dialect(dialect.name, Columns(**recognised))
    return None


def applicable(columns: Columns, table: pd.DataFrame) -> Columns:
    """The study's columns for a slides or omics table, which may use another dialect.

    A named column that the table lacks gives way to the dialect's where one is recognised (the caller says
    so); without a dialect it stays, and looking it up is an error with the nearest names.
    """
    dialect = detect_dialect(table)
    if dialect is None:
        return columns
    recognised = dialect.columns.model_dump()
    chosen = {
        role: name if name in table.columns else recognised[role] or name
        for role, name in columns.model_dump().items()
    }
    return Columns(**chosen)


def _turned(table: pd.DataFrame) -> str:
    """A hint where column names look like keys: the table has patients in its columns; empty otherwise."""
    names = [str(name) for name in table.columns[1:] if any(sign.isdigit() for sign in str(name))]
    shapes = Counter(re.sub(r"[A-Za-z]+", "A", re.sub(r"\d+", "0", name)) for name in names)
    if len(table.columns) < MANY_KEYS or not shapes or 2 * shapes.most_common(1)[0][1] < len(table.columns):
        return ""
    return (
        f"if {', '.join(names[:3])}, … are patients, they stand in the columns: transpose the table, so that "
        "a row is a patient"
    )


def patient_column(table: pd.DataFrame, columns: Columns, source: TableSource) -> str:
    """The column with the patient keys: the one the study names, else the one of a known dialect."""
    return _role_column(table, columns, source, "patient", "patient key")


def file_column(table: pd.DataFrame, columns: Columns, source: TableSource) -> str:
    """The column with the slide files: the one the study names, else the one of a known dialect."""
    return _role_column(table, columns, source, "file", "slide file")


def _role_column(table: pd.DataFrame, columns: Columns, source: TableSource, role: str, meaning: str) -> str:
    dialect = detect_dialect(table)
    recognised = getattr(dialect.columns, role) if dialect else None
    named = getattr(columns, role)
    if named is None and recognised is None:
        names = dict.fromkeys(getattr(d.columns, role) for d in DIALECTS)
        known = " or ".join(repr(name) for name in names if name is not None)
        likely = [c for c in table.columns if any(word in c.casefold() for word in LIKELY[role])][:3]
        guess = f"; likely: {', '.join(map(repr, likely))}" if likely else ""
        raise DataError(
            f"no column is recognised as the {meaning} ({known}){guess}",
            where=table_label(source),
            fix=_turned(table)
            or f"name it: columns: {{{role}: COLUMN}} of the cohort, or rename: {{COLUMN: {next(iter(names))}}} of the "
            f"table; columns: {_shortened(table.columns)}",
        )
    if named is not None and named not in table.columns:
        hint = f" or leave it out: {recognised!r} is recognised" if recognised else ""
        raise DataError(
            f"no column {named!r} for the {meaning}{nearest(named, table.columns)}",
            where=table_label(source),
            fix=f"correct columns: {{{role}: …}} of the cohort{hint}; columns: {_shortened(table.columns)}",
        )
    column = named or recognised
    assert column is not None  # neither: refused above
    return column
