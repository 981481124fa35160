"""The fit of a job's targets, the same at server and sites."""

from __future__ import annotations

from functools import partial

from equipoise.platform.federation.remote.job import RemoteJob
from equipoise.platform.federation.remote.sums import Fit
from equipoise.platform.training.targets import targets_from_statistics


def fit_of(job: RemoteJob) -> Fit:
    """Fits targets from statistics as the job says."""
    recipe = job.recipe
    return partial(
        targets_from_statistics,
        job.tasks,
        class_weights=recipe.training.class_weights,
        scaling=recipe.training.target_scaling,
        tables=recipe.tables,
        text=recipe.training.text,
        presence=recipe.needs_presence,
    )
