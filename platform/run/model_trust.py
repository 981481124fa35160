"""What an exported model says of its own reliability, from the predictions and the slides of its run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from equipoise.platform.prediction.conformal import LEVEL
from equipoise.platform.prediction.operating_points import called_negative
from equipoise.platform.prediction.slide_sets import MOST_LOOKS, looks_at, slide_set
from equipoise.platform.prediction.trust import Trust

if TYPE_CHECKING:
    from equipoise.platform.prediction.drift import SlideSet
    from equipoise.platform.run.context import RunContext
    from equipoise.platform.study.schema import Study


def trust_of_run(
    run: Path, study: Study, context: RunContext | None, *, refit: bool = False, level: float = LEVEL
) -> Trust | None:
    """Calibrate on the out-of-fold predictions, and summarise the slides of the development patients.

    Parameters
    ----------
    run, study
        The run folder, evaluated, and its study.
    context
        The same with its features; None if they are not at hand: there is no drift check then, and a note says so.
    refit
        Whether new patients are scored by one model that was trained again on all patients.
    level
        Probability with which sets are to hold the truth.

    Returns
    -------
    None if the run has no predictions yet.
    """
    from equipoise.platform.report.run_files import RunFiles

    predictions = RunFiles(run).predictions
    if predictions is None:
        return None
    slides = None if context is None else development_slides(context)
    negatives = {task.name: called_negative(task) for task in study.tasks if task.type == "binary"}
    trust = Trust.fit(predictions, slides, level=level, refit=refit, negatives=negatives)
    if context is None:
        note = "no drift check: the export was made without the study and its features (export with -c study.yaml)"
        return replace(trust, notes=(*trust.notes, note))
    return trust


def development_slides(context: RunContext) -> SlideSet | None:
    """Slides of the development patients, with the colour of some of them; None for a model that reads no slides."""
    inputs = context.inputs
    if inputs.tiles is None:
        return None
    patients = inputs.cohorts.patients
    develop = set(patients.loc[patients["role"] == "develop", "patient"])
    slides = inputs.cohorts.slides
    slides = slides[slides["patient"].isin(develop)]
    looks = {}
    if context.study.features.imported is None:
        looks = looks_at(slides, context.study.features.mpp_override, MOST_LOOKS)
    return slide_set(slides, inputs.tiles, looks)
