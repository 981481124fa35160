"""Finds the clinical table, the slides and the omics among somebody's files, and says what the other files are."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equipoise.datasets.cohorts.sites import patient_code
from equipoise.datasets.params import Columns, TableSource
from equipoise.platform.errors import DataError, StudyError
from equipoise.platform.registry import nearest

if TYPE_CHECKING:
    import pandas as pd

SLIDE_ENDINGS = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".dcm")
TABLE_ENDINGS = (".csv", ".tsv", ".txt", ".xlsx", ".xlsm", ".parquet", ".json", ".jsonl")
COMPRESSED_ENDINGS = (".gz", ".bz2", ".xz", ".zip")
#: Rows that may stand above the column names of a workbook.
TITLE_ROWS = 4


@dataclass(frozen=True)
class Hints:
    """What the command line says about the tables, and how a draft is checked.

    Attributes
    ----------
    patient, sheet, time, event
        Column of the patient keys, sheet of a workbook, columns of a survival time and its event.
    where
        Column → value of the rows to keep.
    check
        Raises where a study (its text, and the file that it will be) does not validate.
    say
        Takes lines on what was seen and skipped.
    """

    patient: str | None = None
    sheet: str | None = None
    time: str | None = None
    event: str | None = None
    where: Mapping[str, str] = field(default_factory=dict)
    check: Callable[[str, Path], None] = lambda text, file: None
    say: Callable[[str], None] = lambda line: None


@dataclass
class PatientTable:
    """One table that was read.

    Attributes
    ----------
    shown
        Its path as the study writes it.
    source
        The section of the study: the path alone, or with sheet, header and row filter.
    table
        Its rows as text.
    columns
        Patient, file and resolution.
    recognised
        Whether a study finds these columns without being told.
    suffixes
        Suffix → modality of groups of omics columns.
    genes_in_rows
        The table is a matrix whose columns are patients.
    """

    shown: str
    source: Any
    table: pd.DataFrame
    columns: Columns
    recognised: bool
    suffixes: dict[str, str]
    genes_in_rows: bool = False

    @property
    def patients(self) -> pd.Series:
        """The key of every row, or of every column of a matrix with genes in rows."""
        import pandas as pd

        if self.genes_in_rows:
            return pd.Series(self.table.columns[1:], dtype=object).map(patient_code)
        return self.table[str(self.columns.patient)]

    @property
    def rest(self) -> pd.DataFrame:
        """Columns that are neither keys nor omics."""
        keys = {self.columns.patient, self.columns.file, self.columns.mpp}
        kept = [c for c in self.table.columns if c not in keys and not c.endswith((*self.suffixes, "\0"))]
        return self.table[kept]


@dataclass
class Scan:
    """What a folder, or a file, holds.

    Attributes
    ----------
    clinical, slides
        Tables; ``slides`` may be the clinical one, and ``slides_dir`` is the folder where such files lie.
    omics
        Modality → section of the study.
    remarks
        One sentence per file that is not used, and on what was guessed.
    """

    clinical: PatientTable | None = None
    slides: PatientTable | None = None
    slides_dir: str | None = None
    omics: dict[str, Any] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


def scan(tables: Path, base: Path, hints: Hints) -> Scan:
    """Read all tables of a folder, or one file, and sort them.

    Raises
    ------
    DataError
        If there is nothing that could be the clinical table; the message says what the files are.
    """
    if not tables.exists():
        raise DataError(
            "there is no such file or folder",
            where=str(tables),
            fix="--tables takes a table, or their folder",
        )
    from equipoise.datasets.tables.kinds import count_label_columns, is_matrix

    files = [tables] if not tables.is_dir() else sorted(p for p in tables.iterdir() if is_table(p))
    result = Scan()
    best = (-1, -1)
    matrices: list[PatientTable] = []
    clinical: list[PatientTable] = []
    for path in files:
        found = _read(path, base, hints, result)
        if found is None:
            continue
        if found.genes_in_rows or (is_matrix(found.rest) and not found.suffixes):
            matrices.append(found)
            continue
        if found.columns.file is not None and result.slides is None:
            result.slides = found
        clinical.append(found)
        rank = (count_label_columns(found.rest), len(found.rest.columns))
        if len(found.rest.columns) and rank > best:
            result.clinical, best = found, rank
    if result.clinical is None:
        kinds = "".join(f"\n  {remark}" for remark in result.remarks)
        only = f"; only matrices: {', '.join(m.shown for m in matrices)}" if matrices else ""
        raise DataError(
            f"no clinical table with a patient column and labels{only}{kinds}",
            where=str(tables),
            fix="name the patient column (--patient COLUMN), or write the study by hand from `equipoise init`",
        )
    _add_omics(result, matrices)
    _explain_others(result, clinical)
    _find_slides(result, tables if tables.is_dir() else tables.parent, base)
    return result


def is_table(path: Path) -> bool:
    """Whether a file ends like a table; ``~$name.xlsx`` is the lock of a workbook that somebody has open."""
    name = path.name.lower()
    if not path.is_file() or name.startswith(("~$", ".")):
        return False
    if path.suffix.lower() in COMPRESSED_ENDINGS:
        return name.removesuffix(path.suffix.lower()).endswith((".csv", ".tsv", ".txt", ".json", ".jsonl"))
    return name.endswith(TABLE_ENDINGS)


def _read(path: Path, base: Path, hints: Hints, result: Scan) -> PatientTable | None:
    """A table with its columns; ``None``, with a remark, for a file that is none, or another kind of table."""
    from equipoise.datasets.tables.files import sheet_names

    shown = os.path.relpath(path.resolve(), base.resolve())
    try:
        sheets = sheet_names(path)
        if hints.sheet is not None and sheets and hints.sheet not in sheets:
            raise StudyError(
                f"--sheet: no sheet {hints.sheet!r}{nearest(hints.sheet, sheets)}", where=str(path)
            )
        wanted: list[str | None] = [*sheets] if len(sheets) > 1 else [None]
        wanted = [hints.sheet] if hints.sheet is not None and sheets else wanted
        candidates = [_read_sheet(path, shown, sheet, hints) for sheet in wanted]
    except DataError as error:
        if hints.where and "no row has" in error.what:
            raise
        remark = f"{shown} was not read: {error.what}" + (f"; {error.fix}" if error.fix else "")
        result.remarks.append(" ".join(remark.split()))
        return None
    good = [found for found, _ in candidates if found is not None]
    if not good:
        result.remarks += [f"{shown} was not used: {why}" for _, why in candidates[:1]]
        return None
    chosen = max(good, key=lambda found: found.table.size)
    if len(candidates) > 1:
        others = [sheet for sheet in sheets if sheet != chosen.source["sheet"]]
        result.remarks.append(
            f"{shown}: sheet {chosen.source['sheet']!r} is read, not {', '.join(map(repr, others))} (--sheet)"
        )
    return chosen


def _read_sheet(path: Path, shown: str, sheet: str | None, hints: Hints) -> tuple[PatientTable | None, str]:
    """A table, or why it is none of patients."""
    from equipoise.datasets.tables.columns import find_file, find_patient, omics_suffixes
    from equipoise.datasets.tables.files import table_format
    from equipoise.datasets.tables.kinds import matrix_without_key, other_kind
    from equipoise.datasets.tables.reading import detect_dialect, filtered, read_table

    options: dict[str, Any] = {} if sheet is None else {"sheet": sheet}
    where = {column: [value] for column, value in hints.where.items()}
    rows = range(1, TITLE_ROWS + 1) if table_format(path) == "xlsx" else (1,)
    why = ""
    for header in rows:
        if header > 1:
            options["header"] = header
        try:
            source = TableSource.model_validate({"path": str(path.resolve()), **options})
            table = read_table(source, path.parent)
        except DataError as error:
            if header == 1:
                raise
            why = why or error.what
            continue
        patient = hints.patient if hints.patient in table.columns else None
        dialect = detect_dialect(table)
        patient = patient or (dialect.columns.patient if dialect else None) or find_patient(table)
        kind = other_kind(table, patient, shown)
        if kind:
            return None, kind
        if patient is None and (turned := matrix_without_key(table)) is not None:
            key = Columns(patient=str(table.columns[0]))
            section = {"path": shown, **options} if options else shown
            return PatientTable(shown, section, table, key, True, {}, genes_in_rows=turned), ""
        if patient is not None:
            break
        why = why or _no_patient(table, hints)
    else:
        return None, why
    if where and set(where) <= set(table.columns):
        options["where"] = where
        table = filtered(table, TableSource.model_validate({"path": shown, **options}))
    own = Columns() if dialect is None else dialect.columns
    file = own.file or find_file(table)
    file = None if file == patient else file
    columns = Columns(patient=patient, file=file, mpp=own.mpp)
    recognised = own.patient == patient and own.file == file
    section = {"path": shown, **options} if options else shown
    return PatientTable(shown, section, table, columns, recognised, omics_suffixes(table.columns)), ""


def _no_patient(table: pd.DataFrame, hints: Hints) -> str:
    names = " ".join(", ".join(map(str, table.columns[:5])).split())
    if hints.patient is not None:
        return f"no column {hints.patient!r}{nearest(hints.patient, list(table.columns))} among {names}"
    return f"no patient column is recognised among {names}: name it with --patient"


def _add_omics(result: Scan, matrices: Iterable[PatientTable]) -> None:
    """Matrices of the clinical table's patients, and groups of columns of the clinical table itself."""
    assert result.clinical is not None
    clinical = result.clinical
    for suffix, modality in clinical.suffixes.items():
        section = {"path": clinical.shown} if isinstance(clinical.source, str) else dict(clinical.source)
        result.omics.setdefault(modality, section | {"suffix": suffix})
    known = set(clinical.patients)
    for found in matrices:
        modality = _modality(found.shown)
        if not known & set(found.patients):
            result.remarks.append(f"{found.shown} was not used: it shares no patient with {clinical.shown}")
        elif modality in result.omics:
            result.remarks.append(f"{found.shown} was not used: another table is read as {modality}")
        else:
            result.omics[modality] = found.source


def _modality(path: str) -> str:
    name = Path(path).name.lower()
    return "cnv" if "cnv" in name or "cna" in name else "mutation" if "mut" in name else "rna"


def _explain_others(result: Scan, clinical: Iterable[PatientTable]) -> None:
    """Remarks on tables of patients beside the chosen one, which may be joined or are cohorts of their own."""
    chosen = result.clinical
    assert chosen is not None
    for found in clinical:
        if found is chosen or found is result.slides:
            continue
        shared = len(set(found.patients) & set(chosen.patients))
        if 2 * shared >= len(set(found.patients)):
            how = f"joined by patient with clinical: [{chosen.shown}, {found.shown}]"
        elif shared:
            how = f"it shares {shared} patients with {chosen.shown}"
        else:
            how = f"it has other patients than {chosen.shown} and may be a cohort of its own"
        result.remarks.append(f"{found.shown} was not used: {how}")


def _find_slides(result: Scan, folder: Path, base: Path) -> None:
    """The folder that holds files of the slides table: the tables' own, or one directly in it."""
    from equipoise.datasets.cohorts.cohort_tables import slide_stem

    if result.slides is None:
        return
    listed = {slide_stem(name) for name in result.slides.table[str(result.slides.columns.file)] if name}
    for place in (folder, *sorted(p for p in folder.iterdir() if p.is_dir())):
        files = [p.name for p in place.iterdir() if p.suffix.lower() in SLIDE_ENDINGS]
        if files and listed & {slide_stem(name) for name in files}:
            result.slides_dir = os.path.relpath(place.resolve(), base.resolve())
            return
