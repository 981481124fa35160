"""Pre-trained parts of a study's model, and the patients that they have seen: nobody may test on them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from equipoise.datasets.atomic_io import read_json
from equipoise.datasets.cohorts.seen import Seen
from equipoise.models.pretrained_folder import SEEN, read_pretrained
from equipoise.platform.errors import DataError
from equipoise.platform.extraction.slide_vectors import below, pretrained_folder
from equipoise.platform.study.schema import Study

if TYPE_CHECKING:
    import pandas as pd

    from equipoise.platform.training.inputs import StudyInputs

log = logging.getLogger("equipoise")

_SHOWN = 5


def seen_by_parts(study: Study) -> dict[str, Seen]:
    """Key of the study that names a pre-trained model → whom that model has seen.

    Raises
    ------
    DataError
        If a folder or its record of patients is missing.
    """
    folders = {}
    if study.training.start is not None:
        folders["training.start"] = study.base / Path(study.training.start).expanduser()
    if (folder := pretrained_folder(below(study.features, study.base))) is not None:
        folders["features.slide_encoder"] = Path(folder)
    return {key: _seen(key, folder) for key, folder in folders.items()}


def _seen(key: str, folder: Path) -> Seen:
    try:
        read_pretrained(folder)
    except (FileNotFoundError, ValueError) as error:
        what, _, fix = str(error).partition("\n")
        raise DataError(what, where=key, fix=fix or None) from error
    return Seen.from_json(read_json(folder / SEEN), str(folder / SEEN))


def refuse_seen(study: Study, inputs: StudyInputs) -> None:
    """Refuse a study that would test or select on patients that a pre-trained part of its model has seen.

    For steps in which every patient is in some test part: a search and a federation. With
    ``evaluation.seen_patients: mark`` it is a warning.

    Raises
    ------
    DataError
        Naming patients.
    """
    sentences = seen_sentences(
        seen_by_parts(study), inputs.cohorts.patients["patient"], _fingerprints(inputs)
    )
    if sentences and study.evaluation.seen_patients == "refuse":
        raise seen_error(sentences, study.file)
    for sentence in sentences:
        log.warning("%s", sentence)


def seen_sentences(seen: dict[str, Seen], patients: Sequence[str], slides: pd.DataFrame | None) -> list[str]:
    """One sentence per pre-trained part that has seen some of these patients, or of their slide files.

    Parameters
    ----------
    seen
        As :func:`seen_by_parts` gives it.
    patients
        Who is tested.
    slides
        Columns patient and fingerprint; ``None`` where slide files are not known.
    """
    sentences = []
    tested = set(patients)
    for part, known in seen.items():
        who = known.patients_among(patients)
        if slides is not None:
            rows = slides[slides["patient"].isin(tested) & (slides["fingerprint"].fillna("") != "")]
            files = set(known.slides_among(rows["fingerprint"].astype(str)))
            who += [p for p in rows.loc[rows["fingerprint"].isin(files), "patient"] if p not in who]
        if found := list(dict.fromkeys(who)):
            shown = ", ".join(found[:_SHOWN]) + (", …" if len(found) > _SHOWN else "")
            sentences.append(
                f"{len(found)} of {len(tested)} patients who are tested were seen by the pre-trained model of {part} "
                f"({shown}): their scores are too good"
            )
    return sentences


def seen_error(sentences: Sequence[str], where: Path) -> DataError:
    """The refusal of a study whose tested patients were seen."""
    return DataError(
        "\n".join(sentences),
        where=str(where),
        fix="pre-train without these cohorts (pretrain.cohorts), leave the patients out, or write "
        "evaluation.seen_patients: mark, which goes on and says so in the report",
    )


def _fingerprints(inputs: StudyInputs) -> pd.DataFrame | None:
    if inputs.tiles is None:
        return None
    return inputs.cohorts.slides.merge(inputs.tiles.index()[["slide", "fingerprint"]], on="slide")
