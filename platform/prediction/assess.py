"""How far to trust the predictions of new patients: what travels with a model, applied to their scores and slides."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from equipoise.datasets.atomic_io import atomic_path, write_text
from equipoise.datasets.names import file_stem
from equipoise.datasets.store.feature_store import FeatureStore
from equipoise.platform.errors import StudyError
from equipoise.platform.prediction.exported_model import ExportedModel
from equipoise.platform.prediction.slide_sets import looks_at, slide_set
from equipoise.platform.prediction.trust import Assessment, Trust

if TYPE_CHECKING:
    import pandas as pd

    from equipoise.platform.prediction.new_patients import NewPatients

log = logging.getLogger(__name__)

#: Columns that the table of predictions gets for every patient and task, see :meth:`Assessment.by_patient`.
COLUMNS = ("level", "set", "low", "high", "answer", "abstained", "reasons", "drift_percentile")
#: Folder of the pages of patients.
PAGES = "patients"
#: Wider pictures are made smaller on a page.
_PICTURE_PX = 480


def trust_of(model: ExportedModel, level: float | None = None) -> Trust | None:
    """What travels with a model, at its own level or another; None for a model without ``trust.json``.

    Raises
    ------
    DataError
        If ``trust.json`` is not what it should be.
    StudyError
        If a level is asked for that is none, or there are no sets.
    """
    state = model.trust()
    if state is None:
        if level is not None:
            raise StudyError(
                "the model has no calibration, so that there are no sets at any level",
                where="--coverage",
                fix="leave it out, or export the model again",
            )
        return None
    if level is not None and not 0.5 < level < 1:
        raise StudyError(
            f"the coverage {level:g} is not above 0.5 and below 1",
            where="--coverage",
            fix="write for example 0.9",
        )
    trust = Trust.from_dict(state)
    return trust if level is None else trust.at(level)


def assess(
    trust: Trust | None, model: ExportedModel, new: NewPatients, members: pd.DataFrame
) -> Assessment | None:
    """What is to be said beside the predictions; None if nothing is known.

    Parameters
    ----------
    trust, model
        From :func:`trust_of`, and the model.
    new
        The patients, with their slides.
    members
        Scores of every member for every patient, as rows of the predictions table.

    Raises
    ------
    DataError
        If the calibration belongs to another model.
    """
    if trust is None:
        return None
    store = new.reader.store
    if not isinstance(store, FeatureStore) or new.slides.empty:
        return trust.assess(members)
    slides = new.slides.assign(cohort=new.cohorts.patients["cohort"].iloc[0])
    readable = (
        slides[[Path(str(path)).exists() for path in slides["path"]]] if "path" in slides else slides[:0]
    )
    features = model.config.features
    stated = None if features is None else features.extraction.get("mpp_override")
    looks = looks_at(readable[readable["status"] == "ok"], stated) if new.qc is not None else {}
    predicted = slides[slides["patient"].isin(members["patient"])]
    return trust.assess(members, slide_set(predicted, store, looks), predicted, looks)


def with_assessment(table: pd.DataFrame, assessment: Assessment | None) -> pd.DataFrame:
    """The table of predictions with :data:`COLUMNS`; as it is without an assessment."""
    if assessment is None:
        return table
    joined = table.merge(assessment.by_patient(), on=["patient", "task"], how="left")
    return joined.assign(abstained=joined["abstained"].astype("boolean"))


def slide_flags(assessment: Assessment | None) -> dict[str, list[str]]:
    """Patient → what speaks against the slides: name of slide and check."""
    flags: dict[str, list[str]] = {}
    if assessment is None:
        return flags
    drift = assessment.drift[assessment.drift["flagged"].astype(bool)]
    poor = assessment.quality[assessment.quality["severity"] == "warning"]
    for table, what in ((drift, "unlike training"), (poor, "quality")):
        for row in table.itertuples():
            flags.setdefault(str(row.patient), []).append(f"slide {row.slide}: {what} ({row.check})")
    return flags


def write_assessment(assessment: Assessment, out: Path) -> None:
    """Write ``drift.csv``, ``batch.csv`` and ``quality.csv``."""
    for name in ("drift", "batch", "quality"):
        with atomic_path(out / f"{name}.csv") as path:
            getattr(assessment, name).to_csv(path, index=False)


def write_pages(
    table: pd.DataFrame,
    model: ExportedModel,
    trust: Trust | None,
    assessment: Assessment | None,
    new: NewPatients,
    out: Path,
    pictures: Mapping[str, list[Path]] | None = None,
) -> list[Path]:
    """Write one page per predicted patient, ``patients/<patient>.html``.

    Parameters
    ----------
    table
        Predictions.
    model, trust, assessment, new
        What predicted, and what is to be said beside it.
    out
        The output folder.
    pictures
        Slide → heat-maps; thumbnails of the extraction are added.
    """
    from equipoise.platform.prediction.patient_page import ModelRecord, PatientRecord, patient_page
    from equipoise.platform.report.blocks import Picture
    from equipoise.platform.report.embedded_pictures import embedded_jpeg

    about = ModelRecord(
        model.config.name,
        trust,
        model.config.synthetic,
        {"SHA-256": model.sealed.sha256[:16], "Combined": model.config.combined},
    )
    of_patient = new.cohorts.slides.groupby("patient")["slide"].apply(list).to_dict()

    def files_of(slide: str) -> list[Path]:
        thumbnail = [] if new.qc is None else [new.qc / f"{file_stem(slide)}.jpg"]
        return [file for file in thumbnail if file.is_file()] + (pictures or {}).get(slide, [])

    written = []
    for patient, rows in table.groupby("patient", sort=False):
        files = [(slide, file) for slide in of_patient.get(patient, []) for file in files_of(slide)]
        shown = [
            Picture(
                embedded_jpeg(file, _PICTURE_PX),
                slide if file.stem == file_stem(slide) else f"{slide}: {_map_title(file)}",
            )
            for slide, file in files
        ]
        record = PatientRecord(str(patient), rows, assessment or nothing(), shown)
        page = out / PAGES / f"{file_stem(str(patient))}.html"
        page.parent.mkdir(parents=True, exist_ok=True)
        write_text(page, patient_page(record, about))
        written.append(page)
    return written


def _map_title(picture: Path) -> str:
    """``MSI: MSI-H, gradient input``, from the scores that the picture was drawn of."""
    from equipoise.platform.explain.tile_scores import read_tile_scores

    scores = read_tile_scores(picture.with_suffix(".parquet"))
    return f"{scores.title}, {scores.method.replace('_', ' ')}"


def nothing() -> Assessment:
    """An assessment that says nothing."""
    import pandas as pd

    from equipoise.platform.prediction.abstention import DECISION_COLUMNS
    from equipoise.platform.prediction.conformal import SET_COLUMNS
    from equipoise.platform.prediction.drift import BATCH_COLUMNS, SLIDE_COLUMNS
    from equipoise.platform.prediction.quality import QUALITY_COLUMNS

    columns = (SET_COLUMNS, DECISION_COLUMNS, SLIDE_COLUMNS, BATCH_COLUMNS, QUALITY_COLUMNS)
    return Assessment(*(pd.DataFrame(columns=list(names)) for names in columns))
