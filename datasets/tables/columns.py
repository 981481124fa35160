"""What the columns of somebody else's clinical table may be: keys, labels, numbers, covariates, or none of these.

Names and values decide together. Everything here is a proposal that a study file writes down and ``validate`` checks.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from equipoise.datasets.params import label_key
from equipoise.datasets.tables.cells import MISSING
from equipoise.datasets.tables.survival_columns import UNKNOWN, words_of
from equipoise.datasets.tables.targets import parse_number

if TYPE_CHECKING:
    import pandas as pd

# fmt: off
#: Names of the patient column in words, most telling first.
PATIENT_NAMES = (
    "patient", "case_submitter_id", "cases_submitter_id", "bcr_patient_barcode", "tcga_participant_barcode",
    "participant_barcode", "patient_barcode", "patient_id", "patientid", "case_id", "case", "caseid", "submitter_id",
    "participant_id", "participant", "subject_id", "subject", "pid", "tcga_id", "tcga_barcode", "barcode",
    "patient_number", "individual", "sample_id", "sampleid", "sample", "id",
)
FILE_NAMES = (
    "filename", "file", "slide_id", "slide", "slide_submitter_id", "slide_name", "slide_path", "slide_file", "image",
    "image_id", "image_path", "file_name", "wsi", "wsi_path",
)
#: Names that data frames give to a first column that had none.
INDEX_NAMES = ("", "Unnamed: 0", "__index_level_0__", "index")
#: Suffix of a group of columns in a wide table → its modality.
SUFFIXES = {"_rnaseq": "rna", "_rna": "rna", "_cnv": "cnv", "_cna": "cnv", "_mut": "mutation"}
SPLIT_NAMES = frozenset((
    "train", "val", "valid", "validation", "test", "split", "splits", "fold", "folds", "set", "partition", "subset",
    "cv", "fold2", "kfold",
))
#: Words of columns that are inputs of a model rather than its targets: numbers, and numbers or categories.
NUMBER_WORDS = frozenset(("age", "bmi"))
COVARIATE_WORDS = NUMBER_WORDS | {
    "sex", "gender", "female", "male", "stage", "grade", "race", "ethnicity", "smoking", "smoker", "menopause",
}
#: Words of demographic columns, which are offered as targets in comments only.
DEMOGRAPHIC_WORDS = COVARIATE_WORDS | {
    "ethnic", "site", "batch", "year", "center", "centre", "hospital", "country", "region", "cohort", "channel",
    "height", "weight", "study", "project", "availability", "available", "lost", "follow", "matched",
    "somatic", "notes",
}
#: Words of columns that a model has written.
PREDICTION_WORDS = frozenset((
    "hazard", "hazards", "risk", "risks", "logit", "logits", "prob", "probability", "pred", "predicted", "prediction",
    "predictions", "yhat",
))
ID_WORDS = frozenset((
    "id", "ids", "barcode", "uuid", "uid", "aliquot", "accession", "mrn", "path", "file", "filename", "url", "link",
))
#: Words of a status that means nothing without its time.
STATUS_WORDS = frozenset(("vital", "deceased", "dead", "death", "died", "survival", "os", "dss", "pfi", "dfi", "pfs"))
# fmt: on
#: Of two values, what is not the positive class however rare it is.
PLAINLY_NEGATIVE = frozenset(
    ("0", "no", "false", "negative", "neg", "absent", "wt", "wild type", "wildtype", "normal")
)
#: Columns with a suffix from which on they are a matrix.
MIN_GENES = 5
BARCODE = re.compile(r"(TCGA|SYN)-[A-Za-z0-9]{2,3}-[A-Za-z0-9]{4,6}")
#: A column with at most this many values holds labels rather than measurements.
FEW_VALUES = 10
#: Patients that a class needs to be offered.
MIN_CLASS = 3


@dataclass
class Findings:
    """What the columns of a table were taken for.

    Attributes
    ----------
    binary, multiclass, numeric
        Column → its classes, the positive or rarest first; number of values.
    covariates
        Column → ``number`` or ``category``.
    spellings
        Column → class → its values, where they differ in case only (``Negative`` and ``negative``).
    unknown
        Column → its values that tell nothing (``Not Reported``).
    skipped
        Reason → columns.
    studies
        Columns that name several studies or cohorts in one table, with their values.
    """

    binary: dict[str, list[str]] = field(default_factory=dict)
    multiclass: dict[str, list[str]] = field(default_factory=dict)
    numeric: dict[str, int] = field(default_factory=dict)
    covariates: dict[str, str] = field(default_factory=dict)
    spellings: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    unknown: dict[str, list[str]] = field(default_factory=dict)
    skipped: dict[str, list[str]] = field(default_factory=dict)
    studies: dict[str, list[str]] = field(default_factory=dict)

    def skip(self, column: str, reason: str) -> None:
        """Note why a column is no label."""
        self.skipped.setdefault(reason, []).append(column)


def plain_name(name: str) -> str:
    """A column's name in lower case with underscores: ``Patient ID`` is ``patient_id``."""
    return re.sub(r"[^a-z0-9]+", "_", name.casefold()).strip("_")


def find_patient(table: pd.DataFrame) -> str | None:
    """The column with the patient keys: by its name, else the one that holds TCGA barcodes, else ``None``."""
    named = {plain_name(name): name for name in reversed(list(table.columns)) if name}
    candidates = [named[name] for name in PATIENT_NAMES if name in named]
    for column in [c for c in candidates if _holds_barcodes(table[c])] + candidates:
        values = {cell for cell in table[column] if cell not in MISSING}
        if len(values) > 1 and not all("." in v and parse_number(v) is not None for v in values):
            return column
    return next((c for c in table.columns if _holds_barcodes(table[c], patients=True)), None)


def find_file(table: pd.DataFrame) -> str | None:
    """The column with the slides, by its name; it differs in most rows."""
    named = {plain_name(name): name for name in reversed(list(table.columns)) if name}
    found = (named[name] for name in FILE_NAMES if name in named)
    return next((column for column in found if 2 * table[column].nunique() > len(table)), None)


def omics_suffixes(names: Collection[str]) -> dict[str, str]:
    """Suffix → modality of the groups of columns in a wide table (``TP53_rnaseq``)."""
    return {
        suffix: modality
        for suffix, modality in SUFFIXES.items()
        if sum(name.endswith(suffix) for name in names) >= MIN_GENES
    }


def classify(table: pd.DataFrame, used: Collection[str], patients: pd.Series) -> Findings:
    """Sort the columns of a clinical table.

    Parameters
    ----------
    table
        Text; its key, file and omics columns are left out before.
    used
        Columns of survival pairs.
    patients
        Keys, to count patients rather than rows.
    """
    found = Findings()
    first = ~patients.duplicated()
    for column in table.columns:
        cells = table[column]
        if column in used:
            continue
        if reason := _no_label(column, cells, found):
            found.skip(column, reason)
            continue
        known = cells[first & ~cells.isin(MISSING)].map(label_key)
        tell_nothing = known.map(str.casefold).isin(UNKNOWN)
        if tell_nothing.any():
            found.unknown[column] = sorted(set(known[tell_nothing]))
        _sort_in(column, known[~tell_nothing], found)
    return found


def _one_spelling(known: pd.Series) -> tuple[pd.Series, dict[str, list[str]]]:
    """Labels in their most frequent spelling, and class → spellings where there are several."""
    folded = known.map(str.casefold)
    common = {key: part.value_counts().index[0] for key, part in known.groupby(folded)}
    spellings = {common[key]: sorted(set(part)) for key, part in known.groupby(folded)}
    return folded.map(common), {name: values for name, values in spellings.items() if len(values) > 1}


def _sort_in(column: str, known: pd.Series, found: Findings) -> None:
    known, spellings = _one_spelling(known)
    counts = known.value_counts()
    words = set(words_of(column))
    numbers = [parse_number(value) for value in counts.index]
    numeric = all(number is not None for number in numbers)
    if len(counts) < 2:
        found.skip(column, "one value" if len(counts) else "no value")
        return
    many = numeric and len(counts) > FEW_VALUES
    if words & (NUMBER_WORDS if many else COVARIATE_WORDS) and (many or len(counts) <= 2 * FEW_VALUES):
        found.covariates[column] = "number" if many else "category"
    if len(counts) > FEW_VALUES:
        if numeric:
            found.numeric[column] = len(known)
        else:
            found.skip(
                column, "text of many values" if len(counts) < 0.9 * len(known) else "different in every row"
            )
        return
    if len(counts) > 2 and _names_studies(column):
        found.studies[column] = sorted(counts.index)
    if counts.min() < MIN_CLASS:
        found.skip(column, f"a value of fewer than {MIN_CLASS} patients")
        return
    classes = sorted(
        counts.index, key=lambda value: (value.casefold() in PLAINLY_NEGATIVE, counts[value], value)
    )
    if spellings:
        found.spellings[column] = spellings
    (found.binary if len(classes) == 2 else found.multiclass)[column] = classes


def _no_label(column: str, cells: pd.Series, found: Findings) -> str:
    """Why a column is no label whatever it holds; empty where it may be one."""
    words = words_of(column)
    if column in INDEX_NAMES or _counts_rows(cells):
        return "row numbers"
    if plain_name(column) in SPLIT_NAMES:
        return "splits"
    if set(words) & PREDICTION_WORDS:
        return "predictions"
    if "censor" in column.casefold() or set(words) & STATUS_WORDS:
        return "a status without its time"
    if words and (set(words) & ID_WORDS) and not _names_studies(column):
        return "identifiers and paths"
    if {"days", "date"} & set(words) or words[:1] == ["year"]:
        return "dates and times"
    return ""


def _names_studies(column: str) -> bool:
    return bool({"study", "project", "cohort"} & set(words_of(column)))


def _counts_rows(cells: pd.Series) -> bool:
    """0, 1, 2, … or 1, 2, 3, … in the order of the rows."""
    start = cells.iloc[0] if len(cells) else ""
    return (
        start in ("0", "1")
        and len(cells) > 2
        and cells.tolist() == [str(int(start) + i) for i in range(len(cells))]
    )


def _holds_barcodes(cells: pd.Series, *, patients: bool = False) -> bool:
    known = [cell for cell in cells if cell not in MISSING]
    match = BARCODE.fullmatch if patients else BARCODE.match
    return bool(known) and sum(bool(match(cell)) for cell in known) >= 0.8 * len(known)


def is_demographic(column: str) -> bool:
    """Whether a column describes a patient rather than the disease: rarely a target."""
    return bool(set(words_of(column)) & DEMOGRAPHIC_WORDS)
