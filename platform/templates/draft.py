"""Fills a study template from the tables in a folder.

Guesses are shown, not hidden: what was guessed is written into the file with the alternatives as comments, and
``equipoise validate`` checks it like anything a person wrote.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from equipoise.datasets.specs import TableSource
from equipoise.platform.errors import DataError

if TYPE_CHECKING:
    import pandas as pd

SLIDE_ENDINGS = (".svs", ".tif", ".tiff", ".ndpi", ".mrxs", ".scn", ".bif", ".dcm")
TABLE_ENDINGS = (".csv", ".tsv", ".xlsx", ".parquet")
#: Columns that describe a patient rather than the disease: rarely what a study predicts, so they are offered last.
DEMOGRAPHIC = ("age", "sex", "gender", "race", "ethnic", "female", "male", "site", "batch", "year")


@dataclass
class Found:
    """What a folder of tables offers a study; without a folder, the names that Equipoise itself uses."""

    name: str = "MY-COHORT"
    clinical: str = "clinical.csv"
    slides: str | None = "slides.csv"
    slides_dir: str | None = "slides"
    site: str = "cohort"
    columns: str | None = None
    binary: list[str] = field(default_factory=list)
    regression: list[str] = field(default_factory=list)
    survival: list[str] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    other_tasks: list[str] = field(default_factory=list)


def biomarker(tables: Path | None, file: Path) -> str:
    """A study that predicts a biomarker and auxiliary regression targets."""
    found = look(tables, file.parent) if tables else Found()
    binary = found.binary or [
        "- {name: MSI, type: binary, column: MSI, positive: MSI-H, negative: [MSS], exclude: [MSI-L], main: true}"
    ]
    found.tasks = [binary[0].replace("}", ", main: true}") if "main:" not in binary[0] else binary[0]]
    found.tasks += found.regression[:5]
    found.other_tasks = [*binary[1:], *found.regression[5:], *(found.survival or [SURVIVAL])]
    return _render(found, "a biomarker with auxiliary targets", file)


def survival(tables: Path | None, file: Path) -> str:
    """A study that predicts survival."""
    found = look(tables, file.parent) if tables else Found()
    found.tasks = (found.survival or [SURVIVAL])[:1]
    found.other_tasks = [*found.survival[1:], *found.binary, *found.regression]
    return _render(found, "survival", file)


SURVIVAL = "- {name: OS, type: survival, time: {column: OS_MONTHS, unit: months}, event: {column: OS, event_value: 1}}"


def look(tables: Path, base: Path) -> Found:
    """Find the clinical and the slides table in a folder and what their columns could be.

    Raises
    ------
    DataError
        If the folder holds no table with a patient column.
    """
    from equipoise.datasets.tables import detect_dialect, read_table

    if not tables.is_dir():
        raise DataError(
            "is not a folder", where=str(tables), fix="--tables takes the folder that holds your tables"
        )
    found = Found(name=_plain(tables.resolve().name), slides=None, slides_dir=None)
    clinical = None
    for path in sorted(p for p in tables.iterdir() if p.suffix.lower() in TABLE_ENDINGS):
        table = read_table(TableSource(path=str(path.resolve())), base)
        dialect = detect_dialect(table)
        if dialect is None:
            continue
        shown = _relative(path, base)
        if dialect.columns.file in table.columns and found.slides is None:
            found.slides = shown
            if folder := _slides_folder(tables):
                found.slides_dir = _relative(folder, base)
        others = [c for c in table.columns if c not in (dialect.columns.patient, dialect.columns.file)]
        if others and (clinical is None or len(others) > len(clinical.columns)):
            clinical, found.clinical = table[others], shown
            patients = table[dialect.columns.patient]
            found.site = "tss" if patients.str.match(r"^(TCGA|SYN)-").all() else "cohort"
    if clinical is None:
        raise DataError(
            "no table with a patient column (PATIENT or case_id) was found",
            where=str(tables),
            fix="rename the column, or write the study by hand from `equipoise init` without --tables",
        )
    _tasks(clinical, found)
    return found


def _tasks(table: "pd.DataFrame", found: Found) -> None:
    """Sort columns into two-valued labels, numbers, and pairs of time and event."""
    import pandas as pd

    from equipoise.datasets.tables import MISSING

    numeric: dict[str, Any] = {}
    events = {_event_of(column, table) for column in table.columns if _time_unit(column)}
    for column in sorted(table.columns, key=_is_demographic):
        values = table[column][~table[column].isin(MISSING)]
        numbers = pd.to_numeric(values, errors="coerce")
        kinds = values.nunique()
        if kinds == 2 and column not in events:
            rare, common = values.value_counts().index[1], values.value_counts().index[0]
            found.binary.append(
                _task(name=_plain(column), type="binary", column=column, positive=rare, negative=[common])
            )
        if kinds > 10 and numbers.notna().all():
            numeric[column] = numbers
    for column in numeric:
        event = _event_of(column, table)
        unit = _time_unit(column)
        if event and unit:
            found.survival.append(
                f"- {{name: {_plain(event)}, type: survival, time: {{column: {_quoted(column)}, unit: {unit}}}, "
                f"event: {{column: {_quoted(event)}, event_value: 1}}}}   # check: which value means that it happened?"
            )
        elif unit is None:
            found.regression.append(_task(name=_plain(column), type="regression", column=column))


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
    """The folder below (or the folder itself) in which slides lie."""
    for folder in (tables, *sorted(p for p in tables.iterdir() if p.is_dir())):
        if any(path.suffix.lower() in SLIDE_ENDINGS for path in folder.iterdir()):
            return folder
    return None


def _render(found: Found, summary: str, file: Path) -> str:
    from jinja2 import Environment, StrictUndefined

    text = (Path(__file__).parent / "study.yaml").read_text(encoding="utf-8")
    template = Environment(undefined=StrictUndefined, keep_trailing_newline=True).from_string(text)  # noqa: S701
    return template.render(found=found, summary=summary, file=file.name)


def _task(**values: Any) -> str:
    return "- " + yaml.safe_dump(values, default_flow_style=True, sort_keys=False, width=10_000).strip()


def _quoted(text: str) -> str:
    return yaml.safe_dump(text, default_flow_style=True).splitlines()[0].strip()


def _plain(text: str) -> str:
    """Letters, digits and dashes of a name, starting with a letter."""
    plain = "".join(c if c.isalnum() and c.isascii() else "_" for c in text).strip("_")
    return plain if plain[:1].isalpha() else f"x{plain}"


def _relative(path: Path, base: Path) -> str:
    import os

    return os.path.relpath(path.resolve(), base.resolve())
