"""Training on Ray: several workers on one fold (Ray Train), or several folds at once (Ray tasks).

Both run the loop of :mod:`equipoise.platform.training.loop`. It writes a checkpoint after every epoch into the
fold's folder, which must be visible to all nodes; if a worker dies, all workers start again from the checkpoint.
Since everything random is a function of seed and epoch, the result is that of an uninterrupted training.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from torch import nn

from equipoise.platform.cluster.pools import cpu_label_selector, require_room
from equipoise.platform.errors import EquipoiseError, ResourceError, StudyError
from equipoise.platform.progress import ProgressBar
from equipoise.platform.training.batches import CaseList
from equipoise.platform.training.loop import FitResult, Reporter, fit, load_fit_result
from equipoise.platform.training.params import Recipe, TrainingParams
from equipoise.platform.training.start import initial_model
from equipoise.platform.training.targets import Targets

log = logging.getLogger("equipoise")

#: Restarts of all workers after which a fold is given up.
MAX_FAILURES = 3

#: GPUs of a fold or trial if Ray has one and the study does not say: heads over features use a fraction of one.
GPU_SHARE = 0.25


@dataclass(frozen=True)
class FitJob:
    """Inputs of every worker of a fold."""

    recipe: Recipe
    targets: Targets
    train: CaseList
    val: CaseList
    seed: int
    checkpoint: Path
    report: Reporter | None


def fit_on_workers(
    model: nn.Module,
    targets: Targets,
    train: CaseList,
    val: CaseList,
    recipe: Recipe,
    *,
    seed: int,
    checkpoint: Path,
    report: Reporter | None = None,
    gpus: bool | None = None,
) -> FitResult:
    """:func:`~equipoise.platform.training.loop.fit` by ``recipe.training.workers`` workers of Ray Train.

    Parameters
    ----------
    model
        Gets the best weights at the end; the workers build their own from the seed.
    report
        Called after every epoch in the first worker; must be picklable.
    gpus
        Whether each worker gets a GPU; by default if the cluster has enough of them.

    Raises
    ------
    StudyError
        If a batch has fewer patients than there are workers.
    ResourceError
        If the cluster is too small.
    EquipoiseError
        The error that ended training in a worker, or a worker that died more than ``MAX_FAILURES`` times.
    """
    training = recipe.training
    size = training.batch_for(targets.heads, len(train))
    if size < training.workers:
        raise StudyError(
            f"{training.workers} workers share batches of {size} patient{'s' if size > 1 else ''}",
            where="training.workers",
            fix=f"write training.batch: {training.workers} or more, or fewer workers",
        )
    if gpus is None:
        have = ray.cluster_resources().get("GPU", 0)
        gpus = have >= training.workers and training.device != "cpu"
        if training.device == "cuda" and not gpus:
            raise ResourceError(
                f"{training.workers} workers on GPUs need {training.workers} GPUs, Ray has {have:g}",
                where="training.workers",
                fix="write fewer training.workers, or training.device: auto",
            )
    job = FitJob(recipe, targets, train, val, seed, checkpoint.resolve(), report)
    run_workers(
        _train_worker,
        job,
        workers=training.workers,
        threads=training.threads,
        gpus=gpus,
        scratch=checkpoint.parent.resolve() / "ray",
    )
    return load_fit_result(
        model,
        targets,
        train,
        val,
        training,
        seed=seed,
        balancing=recipe.balancing,
        checkpoint=checkpoint,
    )


def run_workers(
    worker: Callable[[dict[str, Any]], None],
    job: Any,
    *,
    workers: int,
    threads: int,
    gpus: bool,
    scratch: Path,
) -> None:
    """Run a function in every worker of a process group of Ray Train, again from its start if one of them dies.

    Parameters
    ----------
    worker
        Called with ``{"job": reference}``; ``ray.get`` of the reference is the job.
    job
        Picklable; stored once for all workers.
    workers, threads, gpus
        How many, CPUs of each, and whether each gets a GPU.
    scratch
        Folder for Ray's own files, removed at the end; visible to all nodes.

    Raises
    ------
    ResourceError
        If the cluster is too small.
    EquipoiseError
        The error that ended the work in a worker, or a worker that died more than ``MAX_FAILURES`` times.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    have, need = ray.cluster_resources().get("CPU", 0), workers * threads
    if have < need:
        raise ResourceError(
            f"{workers} workers of {threads} CPU need {need} CPUs, Ray has {have:g}",
            where="training.workers",
            fix="write fewer training.workers, or raise resources.cpus",
        )
    require_room(
        {"CPU": threads} | ({"GPU": 1} if gpus else {}),
        "a worker",
        where="training.threads",
        fix="write fewer threads, or run on larger nodes",
    )
    trainer = TorchTrainer(
        worker,
        train_loop_config={"job": ray.put(job)},
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=gpus,
            resources_per_worker={"CPU": threads} | ({"GPU": 1} if gpus else {}),
            label_selector={} if gpus else cpu_label_selector(),  # type: ignore[call-arg] # of version 2
        ),
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        run_config=RunConfig(
            name="fit", storage_path=str(scratch), failure_config=FailureConfig(max_failures=MAX_FAILURES)
        ),
    )
    try:
        trainer.fit()
    except Exception as error:
        raise _root_cause(error) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _train_worker(config: dict[str, Any]) -> None:
    """One worker of a fold. An error raised by the training ends it at once; only a worker that dies is replaced."""
    import torch
    from ray import train

    from equipoise.platform.training.distributed import ProcessGroup

    job: FitJob = ray.get(config["job"])
    torch.set_num_threads(job.recipe.training.threads)
    first = train.get_context().get_world_rank() == 0
    recipe = job.recipe
    model = initial_model(recipe, job.targets, seed=job.seed)

    def report(row: dict[str, float]) -> None:
        if first and job.report is not None:
            job.report(row)
        train.report(dict(row))

    fit(
        model,
        job.targets,
        job.train,
        job.val,
        recipe.training,
        seed=job.seed,
        balancing=recipe.balancing,
        report=report,
        checkpoint=job.checkpoint,
        group=ProcessGroup(),
    )


def _root_cause(error: BaseException) -> BaseException:
    """The :class:`EquipoiseError` that a worker raised, or what its machine lacks (a full disk), or a ResourceError
    with Ray's message."""
    seen: set[int] = set()
    waiting: list[Any] = [error]
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        own = not isinstance(one, ray.exceptions.RayError)  # Ray's copy of an error has no number
        if isinstance(one, EquipoiseError) or (isinstance(one, OSError) and own and one.errno):
            return one
        waiting += [one.__cause__, one.__context__, getattr(one, "cause", None)]
        waiting += list(getattr(one, "worker_failures", {}).values())
    return ResourceError(
        f"Ray Train gave up: {str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__}",
        fix="read the log above; the last finished epoch is kept, --resume continues from it",
    )


def shared_gpu(training: TrainingParams) -> float:
    """The share of a GPU for a training that shares one with others; 0 on CPUs, or if Ray has none."""
    return GPU_SHARE if training.device != "cpu" and ray.cluster_resources().get("GPU", 0) else 0.0


def run_folds_in_parallel(
    jobs: Sequence[Callable[[], Path]], *, max_concurrent: int, cpus: int, gpus: float = 0.0
) -> None:
    """Run folds as Ray tasks, at most ``max_concurrent`` at a time; the first error cancels the others.

    Parameters
    ----------
    jobs
        Each trains one fold; picklable.
    max_concurrent
        Folds at a time.
    cpus, gpus
        CPUs of each, and its share of a GPU; without one, folds see no GPU.
    """
    require_room(
        {"CPU": cpus} | ({"GPU": gpus} if gpus else {}),
        "a fold",
        where="training.threads",
        fix="write fewer threads, or run on larger nodes",
    )
    task = ray.remote(_fold).options(
        num_cpus=cpus, num_gpus=gpus, max_retries=2, label_selector={} if gpus else cpu_label_selector()
    )
    queue = list(jobs)
    running: list[Any] = []
    try:
        with ProgressBar("train", len(jobs), unit="folds") as bar:
            while queue or running:
                while queue and len(running) < max_concurrent:
                    running.append(task.remote(queue.pop(0), cpus))
                done, running = ray.wait(running, num_returns=1)
                ray.get(done)
                bar.update()
    except ray.exceptions.RayTaskError as error:
        raise _root_cause(error) from error
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _fold(job: Callable[[], Path], threads: int) -> str:
    import torch

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(threads)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    return str(job())
