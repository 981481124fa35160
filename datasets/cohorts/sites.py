"""Which site (hospital, institution, cohort) a patient comes from.

TCGA-like barcodes (``TCGA-AA-3660``, ``SYN-S3-CA001``) name the tissue source site in their second field;
several codes can be one institution. Barcodes are parsed by their dashes, codes stay text: ``01`` keeps its
zero and ``NA`` is Duke University. CPTAC case ids carry no site. Codes and institutions mean the same hospital in
every cohort; what a column says is known to its own cohort only.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel

from equipoise.datasets.errors import DataError
from equipoise.datasets.params import (
    CohortSites,
    ColumnSites,
    InstitutionSites,
    SiteParams,
    TableSource,
    TssSites,
)
from equipoise.datasets.tables.reading import read_table, require_columns

if TYPE_CHECKING:
    import pandas as pd

BARCODE = re.compile(r"^(TCGA|SYN)-")
CODE_COLUMN, INSTITUTION_COLUMN = "TSS Code", "Source Site"


def tss_code(patient: str) -> str | None:
    """The tissue source site of a TCGA-like barcode, ``None`` for other keys.

    >>> tss_code("TCGA-3C-AALI"), tss_code("C3L-00001")
    ('3C', None)
    """
    fields = patient.split("-")
    return fields[1] if BARCODE.match(patient) and len(fields) >= 3 and fields[1] else None


def patient_code(barcode: str) -> str:
    """The patient of a sample or slide barcode: its first three fields; other keys stay as they are."""
    return "-".join(barcode.split("-")[:3]) if tss_code(barcode) else barcode


def read_institutions(path: str, base: Path) -> dict[str, str]:
    """Tissue source site code → institution.

    Spellings that differ in case or spaces only (``ILSbio``, ``ILSBio``) are one institution, under the
    spelling that stands first in the table.

    Raises
    ------
    DataError
        If a column is missing, or a code stands for two institutions.
    """
    source = TableSource(path=path)
    table = read_table(source, base)
    require_columns(table, (CODE_COLUMN, INSTITUTION_COLUMN), source)
    first_spelling: dict[str, str] = {}
    institutions: dict[str, str] = {}
    for code, name in zip(table[CODE_COLUMN], table[INSTITUTION_COLUMN], strict=True):
        name = " ".join(name.split())
        name = first_spelling.setdefault(name.casefold(), name)
        if institutions.setdefault(code, name) != name:
            raise DataError(
                f"code {code!r} stands for both {institutions[code]!r} and {name!r}",
                where=path,
                fix="keep one row per code",
            )
    return institutions


def by_cohort(
    table: pd.DataFrame, cohort: str, params: SiteParams, base: Path
) -> tuple[list[str], list[str]]:
    """Every patient at one site, the cohort."""
    return [cohort] * len(table), []


def by_tss(table: pd.DataFrame, cohort: str, params: SiteParams, base: Path) -> tuple[list[str], list[str]]:
    """The code in the barcode."""
    return _codes(table.index, cohort), []


def by_institution(
    table: pd.DataFrame, cohort: str, params: InstitutionSites, base: Path
) -> tuple[list[str], list[str]]:
    """The institution of the code in the barcode; an unknown code is a site of its own."""
    codes = _codes(table.index, cohort)
    institutions = read_institutions(params.institution, base)
    unknown = sorted({code for code in codes if code not in institutions})
    notes = []
    if unknown:
        patients = sum(code in unknown for code in codes)
        notes.append(
            f"cohort {cohort}: {params.institution} does not know the site code(s) {', '.join(unknown)} of "
            f"{patients} patients; each code counts as an institution"
        )
    return [institutions.get(code, code) for code in codes], notes


def by_column(
    table: pd.DataFrame, cohort: str, params: ColumnSites, base: Path
) -> tuple[list[str], list[str]]:
    """``COHORT:VALUE`` of a column of the clinical table; patients without a value share ``COHORT:unknown``.

    A hospital's own numbering means nothing to another cohort: site 1 of two cohorts is two sites.
    """
    sites = [str(site) for site in table[params.column]]
    notes = []
    if empty := sites.count(""):
        notes.append(
            f"cohort {cohort}: {empty} patients have no {params.column!r}; they are kept together as one site"
        )
    stripped = [
        (patient, site)
        for patient, site in zip(table.index, sites, strict=True)
        if (code := tss_code(patient)) and site != code and site and site == code.lstrip("0")
    ]
    if stripped:
        patient, site = stripped[0]
        notes.append(
            f"cohort {cohort}: column {params.column!r} has lost leading zeros ({site!r} for {patient}, "
            f"{len(stripped)} patients): use 'site: tss', which reads the barcode"
        )
    return [f"{cohort}:{site or 'unknown'}" for site in sites], notes


class SiteScheme(NamedTuple):
    """A site scheme: its parameter model, and what finds the site of each patient of a cohort.

    ``find(table, cohort, params, base)`` returns a site per row of the clinical table, and remarks for the report. The
    table is indexed by patient and holds the columns that the parameters name (``params.columns``); relative paths
    start from ``base``.
    """

    params: type[BaseModel]
    find: Callable[[pd.DataFrame, str, Any, Path], tuple[list[str], list[str]]]


#: The built-in schemes.
SCHEMES = {
    "cohort": SiteScheme(CohortSites, by_cohort),
    "tss": SiteScheme(TssSites, by_tss),
    "institution": SiteScheme(InstitutionSites, by_institution),
    "column": SiteScheme(ColumnSites, by_column),
}


def _codes(patients: Iterable[str], cohort: str) -> list[str]:
    patients = list(patients)
    codes = [tss_code(patient) for patient in patients]
    if without := [patient for patient, code in zip(patients, codes, strict=True) if code is None]:
        raise DataError(
            f"{len(without)} of {len(patients)} patient keys are no TCGA-like barcode and carry no site "
            f"({', '.join(without[:3])})",
            where=f"cohort {cohort!r}, site",
            fix="site: cohort, or site: {column: COLUMN} with a column of the clinical table",
        )
    return [code for code in codes if code is not None]
