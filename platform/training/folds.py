"""Several folds: one after another in this process, several at once in other processes, or each on many workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from equipoise.platform.progress import ProgressBar

if TYPE_CHECKING:
    from equipoise.platform.cluster.params import RayOptions
    from equipoise.platform.training.params import TrainingParams


def run_folds(
    jobs: Sequence[partial[Path]],
    training: TrainingParams,
    resources: RayOptions,
    finished: Callable[[], object] = lambda: None,
) -> None:
    """Train folds as a study says.

    Parameters
    ----------
    jobs
        Calls of :func:`~equipoise.platform.training.crossval.train_fold`, each with its ``report``.
    training, resources
        Workers and threads of a fold; the Ray to use, and how many folds are trained at once.
    finished
        Called after each fold while no other is trained.
    """
    if training.workers == 1 and (resources.folds == 1 or len(jobs) < 2):
        with ProgressBar("train", len(jobs), unit="folds") as bar:
            for job in jobs:
                with job.keywords["report"]:
                    job()
                finished()
                bar.update()
        return
    if jobs:
        from equipoise.platform.cluster.session import ray_session
        from equipoise.platform.training.on_ray import run_folds_in_parallel, shared_gpu

        with ray_session(resources):
            if training.workers > 1:
                with ProgressBar("train", len(jobs), unit="folds") as bar:
                    for job in jobs:
                        job()
                        finished()
                        bar.update()
            else:
                run_folds_in_parallel(
                    list(jobs),
                    max_concurrent=resources.folds,
                    cpus=training.threads,
                    gpus=shared_gpu(training),
                )
