"""Matrices of patients x genes from csv, tsv, xlsx or parquet.

Unlike clinical tables these are wide: text is parsed to float32 directly and columns that are not needed are
skipped. NaN marks a single missing value; a patient without any value has no row, which means that the
modality is absent.
"""

from __future__ import annotations

import csv
from collections.abc import Collection, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from equipoise.datasets.errors import DataError
from equipoise.datasets.omics.genes_in_rows import Turned, require_turned, turned
from equipoise.datasets.params import Columns, OmicsSource, TableSource, label_key
from equipoise.datasets.suggestions import nearest
from equipoise.datasets.tables.cells import decimal_mark, is_key
from equipoise.datasets.tables.files import (
    TextHead,
    open_parquet,
    open_text,
    read_grid,
    table_format,
    text_head,
    unique_columns,
)
from equipoise.datasets.tables.reading import (
    MISSING,
    applicable,
    detect_dialect,
    locate,
    patient_column,
    read_table,
    require_columns,
    table_label,
)

if TYPE_CHECKING:
    import pandas as pd

#: Names that data frames give to a first column that had none.
INDEX_NAMES = ("", "Unnamed: 0", "__index_level_0__", "index")


def read_matrix(
    source: TableSource,
    base: Path,
    columns: Columns | None = None,
    patients: Collection[str] | None = None,
) -> pd.DataFrame:
    """Read patients x genes.

    Parameters
    ----------
    source
        Path, row filter and, for :class:`~equipoise.datasets.params.OmicsSource`, the suffix of the gene
        columns.
    base
        Folder that relative paths start from.
    columns
        Patient column where it is not recognised; a first column without a name is taken otherwise.
    patients
        Known patients, by whose names in the header a table with genes in rows is recognised.

    Returns
    -------
    pandas.DataFrame
        float32 [patients, genes], indexed by patient in the order of the table; equal rows of a patient are
        one. ``attrs["notes"]`` says how a table with genes in rows was read.

    Raises
    ------
    DataError
        If there is no patient or gene column, a gene column holds text, or rows of one patient differ.
    """
    import pandas as pd

    path = locate(source.path, base)
    names = _column_names(path, source)
    probe = pd.DataFrame(columns=names, dtype=object)
    if (rows := _genes_in_rows(probe, source, columns or Columns(), patients)) is not None:
        return _read_turned(path, source, names, rows, base)
    key = _key_column(probe, columns or Columns(), source)
    require_columns(probe, source.where, source)
    genes = _gene_columns(probe, key, source)
    needed = [key, *source.where, *genes]
    frame = _read_needed(path, source, names, needed, genes, base)
    frame = _filtered(frame, source)
    if np.isinf(frame[genes].to_numpy()).any():
        raise DataError(
            "the matrix holds infinite values", where=table_label(source), fix="leave such cells empty"
        )
    return _one_row_per_patient(frame, key, genes, source)


def _genes_in_rows(
    probe: pd.DataFrame, source: TableSource, columns: Columns, patients: Collection[str] | None
) -> Turned | None:
    """How to read a table with genes in rows, ``None`` for one with patients in rows."""
    orient = source.orient if isinstance(source, OmicsSource) else "patients"
    names = list(probe.columns)
    if orient == "genes":
        return require_turned(names, patients, table_label(source))
    if (
        orient == "patients"
        or patients is None
        or columns.patient in names
        or detect_dialect(probe) is not None
    ):
        return None
    return turned(names, patients)


def _read_turned(path: Path, source: TableSource, names: list[str], rows: Turned, base: Path) -> pd.DataFrame:
    """A table with genes in rows as patients x genes."""
    samples = list(rows.columns.values())
    frame = _read_needed(path, source, names, [rows.gene, *samples], samples, base)
    frame = frame[frame[rows.gene].str.strip() != ""]
    if np.isinf(frame[samples].to_numpy()).any():
        raise DataError(
            "the matrix holds infinite values", where=table_label(source), fix="leave such cells empty"
        )
    matrix = frame[samples].T
    matrix.columns = frame[rows.gene].str.strip().tolist()
    matrix.index = list(rows.columns)
    matrix.index.name = "patient"
    matrix = matrix.loc[matrix.notna().any(axis=1)]
    if matrix.empty:
        raise DataError("no patient has a value", where=table_label(source))
    read = f"genes are rows ({rows.gene!r}), patients are columns"
    matrix.attrs["notes"] = ["; ".join([read, *rows.notes])]
    return matrix


def _column_names(path: Path, source: TableSource) -> list[str]:
    """Names of all columns, after renaming."""
    kind = table_format(path)
    if kind == "parquet":
        names = unique_columns([name.strip() for name in open_parquet(path).schema_arrow.names])
    elif kind != "text":
        names = list(
            read_grid(path, sheet=source.sheet, header=source.header, encoding=source.encoding).columns
        )
    else:
        head = _head(path, source)
        first = next(csv.reader(head.lines, delimiter=head.delimiter))
        names = unique_columns([name.strip() for name in first])
    for name in source.rename:
        if name not in names:
            raise DataError(
                f"no column {name!r} to rename{nearest(name, names)}",
                where=table_label(source),
                fix="correct 'rename'",
            )
    return unique_columns([source.rename.get(name, name) for name in names])


def _head(path: Path, source: TableSource) -> TextHead:
    """Delimiter and first lines of a text file, from the header on."""
    with open_text(path, source.encoding) as stream:
        head = text_head(stream, source.header)
    if not head.lines:
        raise DataError("the table is empty", where=table_label(source))
    return head


def _key_column(probe: pd.DataFrame, columns: Columns, source: TableSource) -> str:
    """The patient column: named, recognised, or the first column without a name."""
    known = columns.patient in probe.columns or detect_dialect(probe) is not None
    if not known and probe.columns[0] in INDEX_NAMES:
        return probe.columns[0]
    return patient_column(probe, applicable(columns, probe), source)


def _gene_columns(probe: pd.DataFrame, key: str, source: TableSource) -> list[str]:
    suffix = source.suffix if isinstance(source, OmicsSource) else None
    if suffix is not None:
        genes = [name for name in probe.columns if name.endswith(suffix) and len(name) > len(suffix)]
        if not genes:
            raise DataError(
                f"no column ends with {suffix!r}", where=table_label(source), fix="correct 'suffix'"
            )
        return genes
    dialect = detect_dialect(probe)
    roles = set(dialect.columns.model_dump().values()) if dialect else set()
    genes = [n for n in probe.columns if n not in {key, *source.where, *roles} and n not in INDEX_NAMES]
    if not genes:
        raise DataError(f"no columns besides the patient key {key!r}", where=table_label(source))
    return genes


def _read_needed(
    path: Path, source: TableSource, names: list[str], needed: list[str], genes: list[str], base: Path
) -> pd.DataFrame:
    """Key and filter columns as text, genes as float32."""
    import pandas as pd

    kind = table_format(path)
    if kind == "text" and (fast := _text_numbers(path, source, names, needed, genes)) is not None:
        return fast
    if kind == "parquet" and (fast := _parquet_numbers(path, needed, genes)) is not None:
        return fast
    # The slow way takes what the fast ones do not (workbooks, renamed Parquet) and says what is wrong elsewhere.
    table = read_table(source.model_copy(update={"where": {}}), base)[needed]
    numbers = table[genes].where(~table[genes].isin(MISSING)).apply(pd.to_numeric, errors="coerce")
    bad = numbers.isna() & ~table[genes].isin(MISSING)
    if bad.to_numpy().any():
        _refuse_text(table, bad, source)
    return pd.concat([table[_text_columns(needed, genes)], numbers.astype(np.float32)], axis=1)


def _text_columns(needed: list[str], genes: list[str]) -> list[str]:
    numeric = set(genes)
    return [name for name in needed if name not in numeric]


def _text_numbers(
    path: Path, source: TableSource, names: list[str], needed: list[str], genes: list[str]
) -> pd.DataFrame | None:
    """Numeric text parsed without a detour; ``None`` if a gene column holds text or a row is short or long."""
    import pandas as pd

    head = _head(path, source)
    mark = decimal_mark(list(csv.reader(head.lines[1:], delimiter=head.delimiter)), source.decimal)
    text = _text_columns(needed, genes)
    with open_text(path, source.encoding) as stream:
        # Pandas would fill short rows with NaN and cut long ones without a word.
        body = islice(csv.reader(stream, delimiter=head.delimiter), head.skipped + 1, None)
        if any(row and len(row) != len(names) for row in body):
            return None
    with open_text(path, source.encoding) as stream:
        try:
            return pd.read_csv(
                stream,
                sep=head.delimiter,
                decimal=mark,
                header=None,
                names=names,
                skiprows=head.skipped + 1,
                usecols=needed,
                dtype=dict.fromkeys(text, str) | dict.fromkeys(genes, np.float32),
                na_values=dict.fromkeys(genes, sorted(MISSING)) | {name: [] for name in text},
                keep_default_na=False,
                index_col=False,
            )[needed]
        except ValueError:
            return None


def _parquet_numbers(path: Path, needed: list[str], genes: list[str]) -> pd.DataFrame | None:
    """Numeric Parquet columns without a detour through text; ``None`` if a gene column is not numeric."""
    import pyarrow as pa

    file = open_parquet(path)
    schema = file.schema_arrow
    if not all(name in schema.names for name in needed):
        return None
    kinds = [schema.field(name).type for name in genes]
    if not all(pa.types.is_floating(k) or pa.types.is_integer(k) or pa.types.is_boolean(k) for k in kinds):
        return None
    frame = file.read(columns=needed).to_pandas(ignore_metadata=True)
    text = _text_columns(needed, genes)
    frame[text] = frame[text].astype(object).where(frame[text].notna(), "").astype(str)
    return frame[needed].astype(dict.fromkeys(genes, np.float32))


def _refuse_text(table: pd.DataFrame, bad: pd.DataFrame, source: TableSource) -> None:
    columns = list(bad.columns[bad.any()])
    row = bad.index[bad[columns[0]]][0]
    raise DataError(
        f"{len(columns)} column(s) hold text among the genes: {', '.join(map(repr, columns[:5]))} "
        f"(row {row}: {table.at[row, columns[0]]!r})",
        where=table_label(source),
        fix="take these columns out of the table, or name the ending of the gene columns (suffix: _rnaseq)",
    )


def _filtered(frame: pd.DataFrame, source: TableSource) -> pd.DataFrame:
    for column, wanted in source.where.items():
        frame = frame.loc[frame[column].str.strip().map(label_key).isin(wanted)]
    if frame.empty:
        raise DataError(
            "the matrix has no rows" + (" that fulfil 'where'" if source.where else ""),
            where=table_label(source),
        )
    return frame


def _one_row_per_patient(
    frame: pd.DataFrame, key: str, genes: Sequence[str], source: TableSource
) -> pd.DataFrame:
    """Equal rows of a patient become one; rows without a key or without any value go."""
    frame = frame.assign(**{key: frame[key].str.strip()})
    frame = frame.loc[frame[key].map(is_key) & frame[list(genes)].notna().any(axis=1)]
    if frame.empty:
        raise DataError("no patient has a value", where=table_label(source))
    matrix = frame.set_index(key)[list(genes)]
    matrix.index.name = "patient"
    first = matrix.loc[~matrix.index.duplicated()]
    rows, firsts = matrix.to_numpy(), first.to_numpy()[first.index.get_indexer(matrix.index)]
    equal = ((rows == firsts) | (np.isnan(rows) & np.isnan(firsts))).all(axis=1)
    differing = list(dict.fromkeys(matrix.index[~equal]))
    if differing:
        raise DataError(
            f"{len(differing)} patients have several rows that differ: {', '.join(differing[:3])}",
            where=table_label(source),
            fix="keep one sample per patient, for instance with 'where: {sample_type: Primary Tumor}'",
        )
    suffix = source.suffix if isinstance(source, OmicsSource) else None
    if suffix:
        first.columns = [name.removesuffix(suffix) for name in first.columns]
    return first
