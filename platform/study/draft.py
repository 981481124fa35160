"""Fills a study template from the tables in a folder.

Guesses are written into the file with the alternatives as comments; ``equipoise validate`` checks them like any other
setting.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from equipoise.datasets.params import Columns, TableSource
from equipoise.datasets.tables.tasks import RESERVED
from equipoise.platform.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

SLIDE_ENDINGS = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".dcm")
TABLE_ENDINGS = (".csv", ".tsv", ".xlsx", ".parquet")
COMPRESSED_ENDINGS = (".gz", ".bz2", ".xz", ".zip")
#: Columns that describe a patient rather than the disease: rarely a target, so they are written as comments.
DEMOGRAPHIC = ("age", "sex", "gender", "race", "ethnic", "female", "male", "site", "batch", "year")
#: A table with at least this many columns, all numeric, is a matrix of genes and not a clinical table.
WIDE = 50
#: A column with at most this many values holds labels rather than measurements.
FEW_VALUES = 10
FOLDS = 5
_MOST_OFFERED = 20

BINARY = (
    "- {name: MSI, type: binary, column: MSI, positive: MSI-H, negative: [MSS], exclude: [MSI-L], main: true}"
)
SURVIVAL = "- {name: OS, type: survival, time: {column: OS_MONTHS, unit: months}, event: {column: OS, event_value: 1}}"


@dataclass
class Draft:
    """The content of a drafted study, guessed from a folder of tables; the defaults are Equipoise's own names."""

    name: str = "MY-COHORT"
    clinical: str = "clinical.csv"
    slides: str | None = "slides.csv"
    slides_dir: str | None = "slides"
    site: str = "cohort"
    scheme: str = "kfold"
    folds: int = FOLDS
    omics: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)
    binary: list[str] = field(default_factory=list)
    regression: list[str] = field(default_factory=list)
    survival: list[str] = field(default_factory=list)
    demographic: list[str] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    other_tasks: list[str] = field(default_factory=list)


def biomarker(tables: Path | None, file: Path) -> str:
    """A study that predicts a biomarker and auxiliary regression targets."""
    draft = scan_tables(tables, file.parent) if tables else Draft(binary=[BINARY])
    if draft.binary:
        label = draft.binary[0]
        draft.tasks = [label if "main: true" in label else label.removesuffix("}") + ", main: true}"]
        draft.tasks += draft.regression[:5]
        draft.other_tasks = [*draft.binary[1:], *draft.regression[5:]]
    else:
        draft.other_tasks = [BINARY, *draft.regression]
    draft.other_tasks += [*(draft.survival or [SURVIVAL]), *draft.demographic]
    return _render(draft, "a biomarker with auxiliary targets", file)


def survival(tables: Path | None, file: Path) -> str:
    """A study that predicts survival."""
    draft = scan_tables(tables, file.parent) if tables else Draft(survival=[SURVIVAL])
    draft.tasks = draft.survival[:1]
    draft.other_tasks = draft.survival[1:] if draft.tasks else [SURVIVAL]
    draft.other_tasks += [*draft.binary, *draft.regression, *draft.demographic]
    return _render(draft, "survival", file)


def scan_tables(tables: Path, base: Path) -> Draft:
    """Find the clinical table, the slides table and matrices in a folder, and guess the meaning of their columns.

    Tables that cannot be read or used become remarks; the clinical table is the one with the most columns of text
    or of few values.

    Raises
    ------
    DataError
        If the folder holds nothing that could be the clinical table.
    """
    if not tables.is_dir():
        raise DataError(
            "is not a folder", where=str(tables), fix="--tables takes the folder that holds your tables"
        )
    draft = Draft(name=_identifier(tables.resolve().name), slides=None, slides_dir=None)
    unread: list[str] = []
    clinical: tuple[pd.DataFrame, pd.Series] | None = None
    best = (-1, 0)
    for path in sorted(p for p in tables.iterdir() if _is_table(p)):
        shown = _relative(path, base)
        read = _read(path, shown, base, draft, unread)
        if read is None:
            continue
        table, known = read
        if known.file is not None and draft.slides is None:
            draft.slides = shown
            if folder := _slides_folder(tables):
                draft.slides_dir = _relative(folder, base)
        others = table[[c for c in table.columns if c not in (known.patient, known.file, known.mpp)]]
        if _is_matrix(others):
            draft.omics.append(f"{{{_modality(path)}: {_quoted(shown)}}}")
        elif len(others.columns) and (rank := (_count_label_columns(others), len(others.columns))) > best:
            clinical, best, draft.clinical = (others, table[known.patient]), rank, shown
    if clinical is None and not unread:
        raise DataError(
            "no clinical table with a patient column (PATIENT or case_id)"
            + (f"; only matrices: {', '.join(draft.omics)}" if draft.omics else "")
            + "".join(f"\n  {remark}" for remark in draft.remarks),
            where=str(tables),
            fix="rename the column, or write the study by hand from `equipoise init` without --tables",
        )
    if clinical is None:
        draft.clinical = unread[0]  # its remark says what is missing
    else:
        _guess_sites(clinical[1], draft)
        _guess_tasks(clinical[0], draft)
    return draft


def _is_table(path: Path) -> bool:
    # "~$name.xlsx" is the lock file of a workbook that somebody has open.
    name = path.name.lower()
    if path.suffix.lower() in COMPRESSED_ENDINGS:
        return name.removesuffix(path.suffix.lower()).endswith((".csv", ".tsv")) and not name.startswith(".")
    return name.endswith(TABLE_ENDINGS) and not name.startswith(("~$", "."))


def _read(
    path: Path, shown: str, base: Path, draft: Draft, unread: list[str]
) -> "tuple[pd.DataFrame, Columns] | None":
    """A table with its recognised columns; ``None``, with a remark, where a study could not use it."""
    from equipoise.datasets.omics.matrix import INDEX_NAMES
    from equipoise.datasets.tables.reading import detect_dialect, read_table

    try:
        table = read_table(TableSource(path=str(path.resolve())), base)
    except DataError as error:
        unread.append(shown)
        remark = f"{shown} was not read: {error.what}" + (f"; {error.fix}" if error.fix else "")
        draft.remarks.append(" ".join(remark.split()))
        return None
    dialect = detect_dialect(table)
    if dialect is not None:
        return table, dialect.columns
    if table.columns[0] in INDEX_NAMES and _is_matrix(table[table.columns[1:]]):
        return table, Columns(
            patient=table.columns[0]
        )  # a matrix may have its key in a column without a name
    columns = " ".join(", ".join(table.columns[:5]).split())
    draft.remarks.append(f"{shown} was not used: no patient column (PATIENT or case_id) among {columns}")
    return None


def _is_matrix(table: "pd.DataFrame") -> bool:
    """Whether a table has many columns, all of them numeric."""
    return len(table.columns) >= WIDE and all(_numbers(table[column]) is not None for column in table.columns)


def _count_label_columns(table: "pd.DataFrame") -> int:
    """How many columns hold text or few values."""
    return sum(
        _numbers(table[column]) is None or 2 <= table[column].nunique() <= FEW_VALUES
        for column in table.columns
    )


def _numbers(column: "pd.Series") -> "pd.Series | None":
    """The known values of a column as numbers, ``None`` if one is text."""
    import pandas as pd

    from equipoise.datasets.tables.reading import MISSING

    numbers = pd.to_numeric(column[~column.isin(MISSING)], errors="coerce")
    return numbers if numbers.notna().all() else None


def _modality(path: Path) -> str:
    name = path.name.lower()
    return "cnv" if "cnv" in name else "mutation" if "mut" in name else "rna"


def _guess_sites(patients: "pd.Series", draft: Draft) -> None:
    """Take sites from barcodes where all patients have one; only then can folds keep sites together."""
    from equipoise.datasets.cohorts.sites import tss_code

    codes = {tss_code(patient) for patient in patients if patient}
    if codes and None not in codes:
        draft.site = "tss"
        if len(codes) > 1:
            draft.scheme, draft.folds = "site_preserved", min(FOLDS, len(codes))


def _guess_tasks(table: "pd.DataFrame", draft: Draft) -> None:
    """Sort columns into two-valued labels, numbers, and pairs of time and event."""
    from equipoise.datasets.tables.reading import MISSING

    names = _Names()
    numeric: list[str] = []
    events = {_event_of(column, table) for column in table.columns if _time_unit(column)}
    events |= {column for column in table.columns if "censor" in column.lower()}
    for column in filter(None, table.columns):  # one without a name counts the rows
        values = table[column][~table[column].isin(MISSING)]
        kinds = values.nunique()
        if kinds == 2 and column not in events:
            rare, common = values.value_counts().index[1], values.value_counts().index[0]
            task = _task(
                name=names.of(column), type="binary", column=column, positive=rare, negative=[common]
            )
            (draft.demographic if _is_demographic(column) else draft.binary).append(task)
        if kinds > FEW_VALUES and _numbers(values) is not None:
            numeric.append(column)
    for column in numeric:
        event = _event_of(column, table)
        unit = _time_unit(column)
        if event and unit:
            draft.survival.append(
                f"- {{name: {names.of(event)}, type: survival, time: {{column: {_quoted(column)}, unit: {unit}}}, "
                f"event: {{column: {_quoted(event)}, event_value: 1}}}}   # check: which value means that it happened?"
            )
        elif unit is None:
            task = _task(name=names.of(column), type="regression", column=column)
            (draft.demographic if _is_demographic(column) else draft.regression).append(task)


class _Names:
    """Unique task names from column names; columns of the patients table are never used."""

    def __init__(self) -> None:
        self._taken = set(RESERVED)

    def of(self, column: str) -> str:
        plain = name = _identifier(column)
        number = 2
        while name in self._taken:
            name, number = f"{plain}_{number}", number + 1
        self._taken.add(name)
        return name


def _time_unit(column: str) -> str | None:
    return next((unit for unit in ("months", "years", "days") if unit in column.lower()), None)


def _is_demographic(column: str) -> bool:
    return any(word in column.lower().replace(" ", "_").split("_") for word in DEMOGRAPHIC)


def _event_of(time: str, table: "pd.DataFrame") -> str | None:
    """The two-valued column that shares a first word with a time column (OS_MONTHS and OS_EVENT)."""
    stem = time.replace(".", "_").replace(" ", "_").split("_")[0].lower()
    for column in table.columns:
        if (
            column != time
            and column.lower().startswith(stem)
            and set(table[column]) - {""} <= {"0", "1", "0.0", "1.0"}
        ):
            return column
    return None


def _slides_folder(tables: Path) -> Path | None:
    """The folder with slides: this folder or one directly below it."""
    for folder in (tables, *sorted(p for p in tables.iterdir() if p.is_dir())):
        if any(path.suffix.lower() in SLIDE_ENDINGS for path in folder.iterdir()):
            return folder
    return None


def _render(draft: Draft, summary: str, file: Path) -> str:
    from jinja2 import Environment, StrictUndefined

    if (more := len(draft.other_tasks) - _MOST_OFFERED) > 0:
        draft.other_tasks = [*draft.other_tasks[:_MOST_OFFERED], f"… and {more} more columns"]
    text = (Path(__file__).parent / "template.yaml").read_text(encoding="utf-8")
    template = Environment(undefined=StrictUndefined, keep_trailing_newline=True).from_string(text)  # noqa: S701
    template.globals["quoted"] = _quoted
    return template.render(draft=draft, summary=summary, file=file.name)


def _task(**values: Any) -> str:
    return "- " + _flow(values)


def _quoted(text: str) -> str:
    return _flow([text])[1:-1]


def _flow(value: Any) -> str:
    """One line of YAML that may stand inside brackets."""
    text = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10**6)
    return text.strip()


def _identifier(text: str) -> str:
    """Letters, digits and dashes of a name, starting with a letter."""
    plain = "".join(c if c.isalnum() and c.isascii() else "_" for c in text).strip("_")
    return plain if plain[:1].isalpha() else f"x{plain}"


def _relative(path: Path, base: Path) -> str:
    import os

    return os.path.relpath(path.resolve(), base.resolve())
