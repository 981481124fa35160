"""A cohort that is only predicted: patients from a slides table, a folder of slides, names or tables, without labels.

There is no clinical table, unless a model reads covariates. Everything else is as for the cohorts of a study: names of
slides, harmonised genes, exclusions with their reasons.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from equipoise.datasets.cohorts.clinical_tables import read_clinical
from equipoise.datasets.cohorts.cohort import Cohorts, assemble
from equipoise.datasets.cohorts.cohort_tables import (
    SLIDE_SUFFIXES,
    RawCohort,
    SlideList,
    list_slides,
    merge_rows,
    slide_stem,
)
from equipoise.datasets.errors import DataError
from equipoise.datasets.omics.matrix import read_matrix
from equipoise.datasets.omics.params import CLINICAL, Covariate
from equipoise.datasets.params import CohortSource, Columns, OmicsSource, TableSource
from equipoise.datasets.tables.reading import read_table

if TYPE_CHECKING:
    import pandas as pd

_DICOM = ".dcm"
#: Endings of slides that a folder is searched for: pictures and features lie beside slides, too.
_SLIDES = SLIDE_SUFFIXES - {".h5", ".jpg", ".jpeg", ".png"}


@dataclass(frozen=True)
class UnlabelledTables:
    """Tables of new patients.

    Attributes
    ----------
    omics
        Modality → matrix of patients x genes.
    clinical
        Table with the covariates that a model reads, or None.
    """

    omics: Mapping[str, OmicsSource]
    clinical: TableSource | None = None


def slides_in(folder: Path) -> SlideList:
    """Every slide file below a folder; each is a patient of its own, named like the slide.

    A folder of DICOM files is one slide.

    Raises
    ------
    DataError
        If there is none.
    """
    files = sorted(file for file in folder.rglob("*") if file.is_file() and file.suffix.lower() in _SLIDES)
    dicom: dict[Path, Path] = {}
    for file in files:
        if file.suffix.lower() == _DICOM:
            dicom.setdefault(file.parent, file)
    chosen = [file for file in files if file.suffix.lower() != _DICOM or dicom[file.parent] == file]
    if not chosen:
        raise DataError(
            "no slide files here or below",
            where=str(folder),
            fix=f"known endings: {', '.join(sorted(_SLIDES))}",
        )
    return SlideList(_frame([(str(file), slide_stem(str(file))) for file in chosen]), [], [], {})


def slides_named(names: Sequence[str]) -> SlideList:
    """Slides of a feature store, by their names there; each is a patient of its own."""
    return SlideList(_frame([(name, name) for name in names]), [], [], {})


def slides_of_table(source: TableSource, slides_dir: str | None, base: Path) -> SlideList:
    """Rows of a slides table: patient, file and, where there is one, the pixel size.

    Raises
    ------
    DataError
        As :func:`~equipoise.datasets.cohorts.cohort_tables.list_slides`.
    """
    return list_slides(read_table(source, base), source, slides_dir, Columns(), base)


def _frame(slides: Sequence[tuple[str, str]]) -> pd.DataFrame:
    import pandas as pd

    rows = [(stem, path, stem, math.nan) for path, stem in slides]
    return pd.DataFrame(rows, columns=["patient", "path", "stem", "mpp"])


def load_unlabelled(
    name: str,
    slides: SlideList | None,
    tables: UnlabelledTables,
    base: Path,
    *,
    reads: frozenset[str],
    covariates: Sequence[Covariate] = (),
) -> Cohorts:
    """One cohort of patients without labels.

    Parameters
    ----------
    name
        Of the cohort.
    slides
        Their slides, None without any.
    tables
        Their tables.
    base
        Folder that relative paths start from.
    reads
        Modalities that the model reads; a patient who has none of them is left out.
    covariates
        Columns of the clinical table that the model reads.

    Returns
    -------
    Cohorts without tasks; patients in the order of the clinical table, of the slides, of the other tables.

    Raises
    ------
    DataError
        If a table cannot be used, or there is nobody.
    """
    import pandas as pd

    where = tables.clinical or next(iter(tables.omics.values()), None) or TableSource(path=name)
    source = CohortSource.model_construct(
        name=name, role="develop", clinical=where, omics=dict(tables.omics), columns=None, slides=None
    )
    if slides is not None:  # its slides are read already
        source = source.model_copy(update={"slides": where})
    labels = pd.DataFrame(index=pd.Index([], name="patient"))
    conflicts: dict[str, str] = {}
    columns: tuple[str, ...] = ()
    if tables.clinical is not None:
        clinical = read_clinical([tables.clinical], Columns(), base, name)
        wanted = [covariate.column for covariate in covariates if covariate.column in clinical.table.columns]
        labels, conflicts = merge_rows(clinical.table, clinical.key, wanted)
        labels, columns = labels[wanted], tuple(clinical.table.columns)
    patients = labels.index.tolist()
    patients += [] if slides is None else slides.slides["patient"].tolist()
    for matrix in tables.omics.values():
        patients += read_matrix(matrix, base).index.tolist()
    everybody = pd.Index(list(dict.fromkeys(patients)), name="patient")
    raw = RawCohort(
        source=source,
        labels=labels.reindex(everybody).fillna("").astype(object),
        sites=[name] * len(everybody),
        conflicts=conflicts,
        keyless=[] if slides is None else slides.incomplete,
        slides=None if slides is None else slides.slides,
        repeated=[] if slides is None else slides.repeated,
        clinical_columns=columns,
        notes=[],
        contradicting={} if slides is None else slides.contradicting,
    )
    given = covariates if tables.clinical is not None and CLINICAL in reads else ()
    cohorts = assemble([raw], (), None, base, covariates=given, reads=reads)
    return replace(cohorts, patients=cohorts.patients.assign(role="external"))
