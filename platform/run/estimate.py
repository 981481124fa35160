"""What a run would take, as text: features from a sample of slides, training from two epochs; nothing is written."""

import math
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from equipoise.platform.errors import DataError, EquipoiseError
from equipoise.platform.extraction.maintenance import size_text
from equipoise.platform.progress import format_duration
from equipoise.platform.run.context import RunContext
from equipoise.platform.run.folder import RunFolder
from equipoise.platform.study.schema import Study

#: Epochs of the training that is timed.
EPOCHS = 2


def describe_cost(study: Study, steps: Sequence[str]) -> list[str]:
    """Lines on time and size of the steps that take long; says what is not known and why.

    Parameters
    ----------
    study
        The study.
    steps
        Names out of :data:`~equipoise.platform.run.folder.STEPS`.
    """
    context = RunContext(study, RunFolder(Path("unused")))
    lines = []
    if "extract" in steps and study.reads_slides:
        lines.append("extraction: " + _extraction(context))
    if "train" in steps:
        lines.append("training: " + _training(context))
    return lines


def _extraction(context: RunContext) -> str:
    """Slides that are left, their tiles, bytes and time."""
    from equipoise.platform.extraction.estimate import estimate_extraction
    from equipoise.platform.extraction.sources import open_features

    study, slides = context.study, context.cohorts.slides
    if study.features.imported is not None:
        return f"{len(slides)} slides are imported, none is read"
    try:
        index = open_features(study.features, context.store_root, study.base, slides).index()
        left = slides[~slides["slide"].isin(index["slide"])]
    except DataError:  # there is no store yet
        left = slides
    if not len(left):
        return f"all {len(slides)} slides have been extracted"
    try:
        estimate = estimate_extraction(left, study.features)
    except EquipoiseError as error:
        return f"{len(left)} slides, time not known: {error.what}"
    if math.isnan(estimate.tiles):
        return f"{len(left)} slides, time not known: {estimate.problem}"
    workers = study.resources.workers or study.resources.cpus or os.cpu_count() or 1
    return (
        f"{len(left)} of {len(slides)} slides are left, about {estimate.tiles:,.0f} tiles, {size_text(estimate.bytes)} "
        f"of features; about {format_duration(estimate.hours * 3600 / workers)} with {workers} workers at "
        f"{estimate.tiles_per_s:.1f} tiles/s each (measured on {estimate.sample} slides here, decoding included)"
    )


def _training(context: RunContext) -> str:
    """Folds, epochs and time."""
    from equipoise.datasets.cohorts.splits import make_folds
    from equipoise.platform.training.build import recipe_of
    from equipoise.platform.training.crossval import train_fold

    study = context.study
    try:
        inputs = context.inputs
        inputs.cohorts.require_learnable()
        folds = make_folds(inputs.cohorts.patients, study.split_scheme, study.tasks, study.seed)
    except DataError as error:
        return f"time not known yet: {error.what}"
    brief = study.training.model_copy(update={"epochs": EPOCHS, "min_epochs": 1, "workers": 1})
    recipe = recipe_of(study.model_copy(update={"training": brief}))
    parts = (folds[0], study.tasks, inputs.cases("develop"), recipe)
    rows: list[float] = []
    with tempfile.TemporaryDirectory() as scratch:
        started = time.perf_counter()
        train_fold(
            *parts,
            Path(scratch),
            features=inputs.features,
            content_keys=inputs.content_keys,
            report=lambda row: rows.append(time.perf_counter()),
        )
        whole = time.perf_counter() - started
    first, other = rows[0] - started, (rows[-1] - rows[0]) / max(len(rows) - 1, 1)
    rest = whole - (rows[-1] - started)
    fold = first + other * (study.training.epochs - 1) + rest
    at_once = min(study.resources.folds, len(folds))
    return (
        f"{len(folds)} folds x at most {study.training.epochs} epochs, at most about "
        f"{format_duration(fold * math.ceil(len(folds) / at_once))} with {at_once} at a time (measured on {EPOCHS} "
        "epochs of the first fold here; early stopping makes it less)"
    )
