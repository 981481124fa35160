"""One cohort's clinical and slides table: keys checked, several rows per patient merged, slides named.

Tables of slides (PORPOISE, SurvPath) repeat a patient's labels on every row, tables of samples (CPTAC brain)
may contradict themselves. Equal rows are one patient; a patient whose rows contradict is left out with the
reason.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple

from equipoise.datasets.cohorts.clinical_tables import dialect_note, read_clinical
from equipoise.datasets.cohorts.keys import near_fix, near_keys, similar_note
from equipoise.datasets.cohorts.pixel_sizes import mpp_notes
from equipoise.datasets.cohorts.sites import SCHEMES, SiteScheme
from equipoise.datasets.errors import DataError
from equipoise.datasets.params import CohortSource, Columns, TableSource, label_key
from equipoise.datasets.remote.addresses import refuse_credentials
from equipoise.datasets.slides.mpp import NATIVE
from equipoise.datasets.tables.cells import is_key, key_marker
from equipoise.datasets.tables.reading import (
    MISSING,
    applicable,
    file_column,
    patient_column,
    read_table,
    require_columns,
    table_label,
)
from equipoise.datasets.tables.targets import parse_number

if TYPE_CHECKING:
    import pandas as pd

#: Endings that are cut off a file name to name its slide; others belong to the name (``…DX1.F6E9A5DF-D8FB``).
SLIDE_SUFFIXES = frozenset(
    [
        ".svs",
        ".tif",
        ".tiff",
        ".ndpi",
        ".mrxs",
        ".scn",
        ".svslide",
        ".vms",
        ".vmu",
        ".bif",
        ".qptiff",
        ".czi",
        ".dcm",
        ".jpg",
        ".jpeg",
        ".png",
        ".h5",
    ]
)


@dataclass(frozen=True)
class RawCohort:
    """Tables of a cohort before any patient is left out for lack of slides or labels.

    Attributes
    ----------
    labels
        Text indexed by patient in table order, with the task columns that the table has.
    sites
        A site per patient of ``labels``.
    conflicts
        Patient → how the rows of this patient contradict.
    keyless
        Reasons for rows without a patient key or a file name.
    slides
        Columns patient, path, stem, mpp, in table order without repetition; ``None`` without a slides table.
    repeated
        (patient, path) of slide rows that repeat an earlier one.
    clinical_columns
        All columns of the clinical table, for suggestions.
    notes
        Remarks for the report.
    contradicting
        Path of a slide → how its rows contradict.
    rows
        Patient → its first row of the clinical table.
    """

    source: CohortSource
    labels: pd.DataFrame
    sites: list[str]
    conflicts: dict[str, str]
    keyless: list[str]
    slides: pd.DataFrame | None
    repeated: list[tuple[str, str]]
    clinical_columns: tuple[str, ...]
    notes: list[str]
    contradicting: Mapping[str, str] = field(default_factory=dict)
    rows: Mapping[str, int] = field(default_factory=dict)


def read_cohort(
    source: CohortSource,
    task_columns: Sequence[str],
    columns: Columns,
    base: Path,
    schemes: Mapping[str, SiteScheme] = SCHEMES,
) -> RawCohort:
    """Read the tables of one cohort.

    Parameters
    ----------
    source
        The cohort as the study describes it.
    task_columns
        Columns that tasks read; those that the clinical table lacks are left out here.
    columns
        Patient, file and mpp column where they are not recognised.
    base
        Folder that relative paths start from.
    schemes
        Name → site scheme.

    Raises
    ------
    DataError
        If a table or a needed column is missing, keys do not line up, or a slide belongs to two patients.
    """
    clinical = read_clinical(source.clinical_tables, columns, base, source.name)
    table, key, notes, keyless = clinical.table, clinical.key, clinical.notes, clinical.keyless
    wanted = list(dict.fromkeys(column for column in task_columns if column in table.columns))
    scheme = schemes[source.site.scheme]
    site_params = scheme.params.model_validate(source.site.options)
    site_columns = list(getattr(site_params, "columns", ()))
    require_columns(table, site_columns, source.clinical)
    labels, conflicts = merge_rows(table, key, wanted, site_columns)
    if len(labels) < len(table) and len(source.clinical_tables) == 1:
        notes.append(
            f"cohort {source.name}: {len(table)} rows of the clinical table are {len(labels)} patients"
        )
    notes += filter(None, [similar_note(f"cohort {source.name}", dict.fromkeys(labels.index, source.name))])
    sites, site_notes = scheme.find(labels, source.name, site_params, base)
    slides = None
    repeated: list[Any] = []
    contradicting: dict[str, str] = {}
    if source.slides is not None:
        listing = table if source.slides == source.clinical else read_table(source.slides, base)
        if source.slides != source.clinical:
            notes += dialect_note(source.name, listing, columns, source.slides)
        listed = list_slides(listing, source.slides, source.slides_dir, columns, base)
        slides, repeated, contradicting = listed.slides, listed.repeated, listed.contradicting
        keyless += listed.incomplete
        if contradicting:
            path, reason = next(iter(contradicting.items()))
            notes.append(
                f"cohort {source.name}: {len(contradicting)} slides are left out, because the slides table gives them "
                f"several pixel sizes ({PurePosixPath(path).name}: {reason})"
            )
        notes += mpp_notes(source.name, slides["mpp"])
        local = source.slides_dir is not None and _is_local(source.slides_dir)
        if local and not (base / Path(str(source.slides_dir)).expanduser()).is_dir():
            notes.append(f"cohort {source.name}: there is no folder {source.slides_dir!r} (slides_dir)")
        _check_keys(labels.index, slides["patient"], source)
        notes += [
            f"cohort {source.name}: of the slides table, {near.text()}: {near.spelling.remedy}"
            for near in near_keys(slides["patient"], labels.index)
        ]
    if keyless:
        notes.append(f"cohort {source.name}: {len(keyless)} rows are left out: {keyless[0]}, …")
    return RawCohort(
        source=source,
        labels=labels[wanted],
        sites=sites,
        conflicts=conflicts,
        keyless=keyless,
        slides=slides,
        repeated=repeated,
        clinical_columns=tuple(table.columns),
        notes=notes + site_notes,
        contradicting=contradicting,
        rows=clinical.rows,
    )


def merge_rows(
    table: pd.DataFrame, key: str, label_columns: Sequence[str], exact_columns: Sequence[str] = ()
) -> tuple[pd.DataFrame, dict[str, str]]:
    """One row per patient, in the order of their first rows.

    Parameters
    ----------
    table
        Text with a key in every row.
    key
        Column of the patient keys.
    label_columns
        Columns whose missing values (:data:`~equipoise.datasets.tables.reading.MISSING`) give way to a value on
        another row.
    exact_columns
        Columns in which only the empty string is missing (``NA`` is a site code).

    Returns
    -------
    merged, conflicts
        Text indexed by patient, and patient → which rows contradict.
    """
    columns = list(dict.fromkeys([*label_columns, *exact_columns]))
    merged: dict[str, dict[str, tuple[str, int]]] = {}
    conflicts: dict[str, str] = {}
    rows = zip(table.index, table[key], *(table[column] for column in columns), strict=True)
    for row, patient, *values in rows:
        known = merged.setdefault(patient, {})
        for column, value in zip(columns, values, strict=True):
            if value == "" or (value in MISSING and column not in exact_columns):
                continue
            first, first_row = known.setdefault(column, (value, row))
            if label_key(first) != label_key(value):
                conflicts.setdefault(
                    patient, f"rows {first_row} and {row} contradict in {column!r}: {first!r} and {value!r}"
                )
    return _merged_frame(table, key, columns, merged), conflicts


def _merged_frame(
    table: pd.DataFrame, key: str, columns: list[str], merged: dict[str, dict[str, tuple[str, int]]]
) -> pd.DataFrame:
    """Known values; where a patient has none, the text of the first row, so that reasons can quote it."""
    first = ~table[key].duplicated()
    # Columns first: rows of a table with many thousands of columns are expensive.
    frame = table[columns][first].set_axis(table[key][first].rename("patient"))
    for column in columns:
        frame[column] = [
            merged[patient][column][0] if column in merged[patient] else text
            for patient, text in frame[column].items()
        ]
    return frame


class SlideList(NamedTuple):
    """A slides table.

    Attributes
    ----------
    slides
        Columns patient, path, stem, mpp: distinct slides in table order.
    repeated
        (patient, path) of repetitions.
    incomplete
        Reasons for rows without a key or file.
    contradicting
        Path → rows that give the same slide other pixel sizes.
    """

    slides: pd.DataFrame
    repeated: list[tuple[str, str]]
    incomplete: list[str]
    contradicting: dict[str, str]


def list_slides(
    table: pd.DataFrame, source: TableSource, slides_dir: str | None, columns: Columns, base: Path
) -> SlideList:
    """The rows of a slides table as patient, path, stem and mpp (NaN where the file is to say it).

    Raises
    ------
    DataError
        If a file belongs to two patients, an mpp is no number, or an address holds credentials.
    """
    import pandas as pd

    columns = applicable(columns, table)
    key, file = patient_column(table, columns, source), file_column(table, columns, source)
    mpp = _mpp_column(table, columns, source)
    folder: str | Path = (base / Path(source.path).expanduser()).parent
    if slides_dir is not None:
        folder = base / Path(slides_dir).expanduser() if _is_local(slides_dir) else slides_dir
    owner: dict[str, str] = {}
    rows: dict[str, tuple[str, str, str, float]] = {}
    row_of: dict[str, int] = {}
    repeated, incomplete = [], []
    contradicting: dict[str, str] = {}
    for number, patient, name, size in zip(table.index, table[key], table[file], mpp, strict=True):
        if not is_key(patient) or not is_key(name):
            no_patient = f"patient key{key_marker(patient)}"
            what = no_patient if not is_key(patient) else f"file name{key_marker(name)} (patient {patient})"
            incomplete.append(f"row {number} of {table_label(source)} has no {what}")
            continue
        path = _join(folder, name)
        if "://" in path:
            refuse_credentials(path, f"{table_label(source)}, row {number}")
        if path not in owner:
            owner[path] = patient
            rows[path] = (patient, path, slide_stem(name), size)
            row_of[path] = number
        elif owner[path] == patient:
            first = rows[path][-1]
            if math.isnan(first) and not math.isnan(size):
                rows[path], row_of[path] = (*rows[path][:-1], size), number
            elif not math.isnan(size) and abs(size - first) > NATIVE * abs(first):
                contradicting.setdefault(
                    path, f"rows {row_of[path]} and {number} contradict in mpp: {first:g} and {size:g}"
                )
            repeated.append((patient, path))
        else:
            raise DataError(
                f"slide {name!r} belongs to two patients, {owner[path]} and {patient}",
                where=f"{table_label(source)}, row {number}",
                fix="correct the slides table: whose slide it is decides what may be tested on it",
            )
    if not rows:
        raise DataError("no row has both a patient and a file", where=table_label(source))
    slides = pd.DataFrame(list(rows.values()), columns=["patient", "path", "stem", "mpp"])
    return SlideList(slides, repeated, incomplete, contradicting)


def _is_local(path: str | None) -> bool:
    return path is not None and "://" not in path


def _join(folder: str | Path, name: str) -> str:
    """A file of the table under its folder; absolute paths and addresses stay."""
    if "://" in name:
        return name
    if isinstance(folder, str):
        return f"{folder.rstrip('/')}/{name}"
    return str(folder / Path(name).expanduser())


def slide_stem(name: str) -> str:
    """Name of a slide: its file name without the ending; a DICOM slide is named after its folder.

    >>> slide_stem("a/TCGA-3C-AALI-01Z-00-DX1.F6E9A5DF.svs"), slide_stem("a/S1/level-0.dcm")
    ('TCGA-3C-AALI-01Z-00-DX1.F6E9A5DF', 'S1')
    """
    path = PurePosixPath(name.replace("\\", "/"))
    if path.suffix.lower() == ".dcm" and path.parent.name:
        return path.parent.name
    return path.stem if path.suffix.lower() in SLIDE_SUFFIXES else path.name


def name_slides(cohorts: Sequence[RawCohort]) -> list[list[str]]:
    """A unique name for every slide of every cohort: the stem, or as much of cohort and path as it takes.

    Names depend on what the tables list, not on who is left out later.
    """
    lists = [[] if raw.slides is None else list(raw.slides["stem"]) for raw in cohorts]
    everywhere = Counter(stem for stems in lists for stem in stems)
    named = []
    for raw, stems in zip(cohorts, lists, strict=True):
        inside = Counter(stems)
        paths = [] if raw.slides is None else list(raw.slides["path"])
        named.append(
            [
                stem
                if everywhere[stem] == 1
                else f"{raw.source.name}/{stem if inside[stem] == 1 else path.lstrip('/')}"
                for stem, path in zip(stems, paths, strict=True)
            ]
        )
    return named


def _mpp_column(table: pd.DataFrame, columns: Columns, source: TableSource) -> list[float]:
    if columns.mpp is not None:
        require_columns(table, [columns.mpp], source)
    if columns.mpp is None:
        return [float("nan")] * len(table)
    sizes = []
    for row, text in table[columns.mpp].items():
        number = float("nan") if text in MISSING else parse_number(text)
        if number is None:
            raise DataError(
                f"{text!r} is no number of micrometres per pixel",
                where=f"{table_label(source)}, row {row}, column {columns.mpp!r}",
                fix="write for instance 0.5, or leave the cell empty to take what the slide says",
            )
        sizes.append(number)
    return sizes


def _check_keys(patients: Sequence[str], slide_patients: pd.Series, source: CohortSource) -> None:
    """Clinical and slides table must share at least one key."""
    known = set(patients)
    listed = list(dict.fromkeys(slide_patients))
    if known.intersection(listed):
        return
    raise DataError(
        f"no patient of the slides table is in the clinical table: {', '.join(map(repr, listed[:3]))} there, "
        f"{', '.join(map(repr, list(patients)[:3]))} here",
        where=f"cohort {source.name!r}",
        fix=near_fix(near_keys(listed, patients)),
    )
