"""Ray Tune as the executor of trials: packs them on CPUs and parts of GPUs, keeps workers warm, stops hopeless ones.

Tune decides where and when a trial runs and whether it goes on after a fold. What is finished, and what a resumed
search does, is read from the records alone: nothing that Tune writes under ``search/ray`` is ever read back.

How a trial can end: it records itself as ``ok`` or, for an exception or an error of memory, ``failed``. Where its
process could not, the driver does: ``pruned`` by a scheduler, ``failed`` when the process was killed (by Ray's memory
monitor, by somebody) or hung past its limit. The watch over the limit is :mod:`faulthandler`'s, whose thread needs no
lock of the interpreter: it writes where the trial stood and ends the process.
"""

from __future__ import annotations

import faulthandler
import logging
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune.search import Searcher as TuneSearcher

from equipoise.platform.search.configuration import label
from equipoise.platform.search.params import SearchParams
from equipoise.platform.search.searchers import Searcher
from equipoise.platform.search.space import Config, Space
from equipoise.platform.search.trial import Material, Run, load_code, run_trial, trials_folder, work_folder
from equipoise.platform.search.trials import Trial, read_trial, trial_name
from equipoise.platform.session import environment
from equipoise.platform.training.params import TrainingParams

log = logging.getLogger("equipoise")

#: Where Ray has a GPU and nothing else is said: heads over features fill a part of one.
GPU_SHARE = 0.25

#: Tune's own loggers write parameters of every kind into the home folder's style; ours are the records.
_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # an interrupted search ends at once; its records are on disk
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",  # its state is never read back
    "RAY_AIR_NEW_OUTPUT": "0",  # progress is ours, and failures are
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial may fail before it has anything to report
}


def run_trials(
    indices: Sequence[int],
    searcher: Searcher,
    material: Material,
    params: SearchParams,
    search: Path,
    *,
    started: Mapping[int, Config],
    training: TrainingParams,
    on_end: Callable[[Trial], None],
    run: Callable[..., object] = run_trial,
) -> None:
    """Run the trials of these numbers; every one of them has a record afterwards.

    Parameters
    ----------
    indices
        In the order in which they start.
    searcher
        Asked for configurations, told of ends.
    material
        Put into Ray's object store once.
    search
        ``search/`` of the run folder.
    started
        Configurations of trials that an earlier session began.
    training
        CPUs of a trial, whether it may have a GPU, and how many workers train its folds.
    on_end
        Called for every trial that ends.
    run
        What a trial is.
    """
    ledger = Ledger(searcher, material, search, params, on_end)
    plan = Plan(list(indices), searcher, started)
    trainable = tune.with_parameters(
        _trainable,
        material=[ray.put(material)],
        search=str(search),
        limit_s=params.trial_time_limit_s,
        run=run,
    )
    settings = tune.TuneConfig(
        metric="objective",
        mode="max",
        search_alg=plan,
        scheduler=build_scheduler(params, len(material.folds)),
        num_samples=len(indices),
        max_concurrent_trials=concurrency_of(params, training),
        reuse_actors=True,
        trial_name_creator=_name_of,
        trial_dirname_creator=_name_of,
    )
    _fit(trainable, settings, ledger, resources_of(params, training), search)


def run_population(
    first: Mapping[int, Config],
    space: Space,
    material: Material,
    params: SearchParams,
    search: Path,
    *,
    training: TrainingParams,
    on_end: Callable[[Trial], None],
) -> None:
    """Train a population; every member has a record afterwards.

    Parameters
    ----------
    first
        Member → settings at the start, of what changes.
    space
        What changes, and within which bounds.
    material, params, search, training, on_end
        As for :func:`run_trials`.
    """
    from equipoise.platform.search import population

    name = label(space.arms[0].config())

    def named(trial: Any) -> str:
        return trial_name(trial.config["member"], name)

    def identify(trial: Any) -> tuple[int, Config]:
        return population.member_of(str(trial)), population.settings_of_member(trial.config, space)

    changing = {key for config in first.values() for key in config}
    ledger = Ledger(None, material, search, params, on_end, identify)
    trainable = tune.with_parameters(population.trainable, material=material, search=str(search), space=space)
    settings = tune.TuneConfig(
        metric="objective",
        mode="max",
        scheduler=population.build_population_scheduler(
            params, space, material.settings["training"]["epochs"]
        ),
        max_concurrent_trials=concurrency_of(params, training),
        reuse_actors=True,
        trial_name_creator=named,
        trial_dirname_creator=named,
    )
    begin = {key: tune.sample_from(partial(_at_first, first=dict(first), key=key)) for key in changing}
    start = {"member": tune.grid_search(sorted(first)), **begin}
    _fit(trainable, settings, ledger, resources_of(params, training), search, start)


def _at_first(config: dict[str, Any], first: dict[int, Config], key: str) -> Any:
    return first[config["member"]][key]


def _fit(
    trainable: Any,
    settings: tune.TuneConfig,
    ledger: Ledger,
    resources: dict[str, float],
    search: Path,
    start: dict[str, Any] | None = None,
) -> None:
    """Let Tune run; what it writes goes with the end."""
    scratch = search / "ray"
    shutil.rmtree(scratch, ignore_errors=True)
    with environment(_ENVIRONMENT), _quiet("ray.tune"):
        tune.Tuner(
            tune.with_resources(trainable, resources),
            param_space=start,
            tune_config=settings,
            run_config=tune.RunConfig(
                name=scratch.name, storage_path=str(search.resolve()), callbacks=[ledger], verbose=0
            ),
        ).fit()
    shutil.rmtree(scratch, ignore_errors=True)


def resources_of(params: SearchParams, training: TrainingParams) -> dict[str, float]:
    """What Ray keeps free for a trial; one that has workers only waits for them, and they ask for themselves."""
    if training.workers > 1:
        return {"cpu": 0, "gpu": 0, "memory": 1}  # Tune refuses a request for nothing; a byte is free
    gpus = params.gpus
    if gpus is None:
        gpus = GPU_SHARE if training.device != "cpu" and ray.cluster_resources().get("GPU", 0) else 0.0
    return {"cpu": training.threads if params.cpus is None else params.cpus, "gpu": gpus}


def concurrency_of(params: SearchParams, training: TrainingParams) -> int | None:
    """Most trials at a time: one, where trials wait for workers and would take each other's places."""
    return 1 if training.workers > 1 and params.max_concurrent is None else params.max_concurrent


def build_scheduler(params: SearchParams, folds: int) -> Any:
    """What decides after every fold whether a trial goes on; trials at the same fold saw the same patients."""
    from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, MedianStoppingRule

    if params.scheduler == "median":
        return MedianStoppingRule(time_attr="folds", grace_period=1, min_samples_required=3)
    if params.scheduler in ("asha", "hyperband"):
        brackets = 1 if params.scheduler == "asha" else min(3, folds)
        factor = 3 if folds > 3 else 2
        return AsyncHyperBandScheduler(
            time_attr="folds", max_t=folds, grace_period=1, reduction_factor=factor, brackets=brackets
        )
    return FIFOScheduler()


class Plan(TuneSearcher):
    """Hands out planned trials in order, as Tune asks for them."""

    def __init__(self, indices: list[int], searcher: Searcher, started: Mapping[int, Config]) -> None:
        super().__init__(metric="objective", mode="max")
        self._left = indices
        self._searcher = searcher
        self._started = started

    def suggest(self, trial_id: str) -> dict[str, Any] | str:  # type: ignore[override]
        """The next trial; Tune's word for the end after the last."""
        if not self._left:
            return TuneSearcher.FINISHED
        index = self._left.pop(0)
        config = self._started.get(index)
        config = self._searcher.ask(index) if config is None else config
        return {"index": index, "settings": config}

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """The ledger tells the searcher, from the record."""

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict, **spec: Any) -> bool:
        """Metric and direction are known."""
        return True

    def save(self, checkpoint_path: str) -> None:
        """Nothing: records are the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: records are the state."""


class Ledger(tune.Callback):
    """Sees to it that every trial that ended has a record, and tells the searcher what it says."""

    def __init__(
        self,
        searcher: Searcher | None,
        material: Material,
        search: Path,
        params: SearchParams,
        on_end: Callable[[Trial], None],
        identify: Callable[[Any], tuple[int, Config]] = lambda trial: (
            trial.config["index"],
            trial.config["settings"],
        ),
    ) -> None:
        self._identify = identify
        self._searcher = searcher
        self._material = material
        self._search = search
        self._params = params
        self._on_end = on_end

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """It ended by itself, or the scheduler stopped it."""
        self._settle(trial, "pruned", f"stopped by {self._params.scheduler}")

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """Its process died."""
        self._settle(trial, "failed", "")

    def _settle(self, trial: Any, status: Any, reason: str) -> None:
        index, config = self._identify(trial)
        path = trials_folder(self._search) / f"{trial_name(index, label(config))}.json"
        record = read_trial(path) if path.exists() else self._missing(trial, index, config, status, reason)
        hang_file(self._search, index).unlink(missing_ok=True)
        if self._searcher is not None:
            self._searcher.tell(record)
        self._on_end(record)

    def _missing(self, trial: Any, index: int, config: Config, status: Any, reason: str) -> Trial:
        run = Run(index, config, self._material, self._search)
        run.begin()
        for fold in self._material.folds:
            if (score := run.finished(fold)) is not None:
                run.add(score)
        if status == "pruned":
            return run.end("pruned", f"{reason} after {len(run.scores)} of {len(self._material.folds)} folds")
        return run.end("failed", self._why(trial, index))

    def _why(self, trial: Any, index: int) -> str:
        """In words, why the process of a trial is no more."""
        stood = hang_file(self._search, index)
        if stood.exists() and (text := stood.read_text(errors="replace").strip()):
            return f"did not end within {self._params.trial_time_limit_s:g} s; it was at {_place(text)}"
        text = " ".join(str(trial.get_error() or "its process died").split())
        if "OutOfMemory" in text or "memory pressure" in text:
            return f"out of memory: {text}"[:1000]
        return f"its process died: {text}"[:1000]


def hang_file(search: Path, index: int) -> Path:
    """Where the watch writes what a trial was doing when its time was over."""
    return work_folder(search, index).with_suffix(".hang")


@lru_cache(maxsize=1)
def fetched(material: ray.ObjectRef) -> Material:
    """What trials share, once per process: tables are unpacked and stores mapped for the first trial alone."""
    found: Material = ray.get(material)
    return found


def _trainable(
    config: dict[str, Any],
    material: list[ray.ObjectRef],
    search: str,
    limit_s: float | None,
    run: Callable[..., object],
) -> None:
    """One trial in a worker of Tune."""
    folder = Path(search)

    def report(step: dict[str, Any]) -> None:
        objective = step["objective"]
        # A scheduler cannot compare what is not known: below everything that is.
        tune.report(step | {"objective": -1.0 if math.isnan(objective) else objective})

    load_code()  # seconds in a new process, and none of the trial's time
    shared = fetched(*material)
    with _watched(limit_s, hang_file(folder, config["index"])):
        run(config["index"], config["settings"], shared, folder, report)


@contextmanager
def _watched(limit_s: float | None, path: Path) -> Iterator[None]:
    """End the process if the block takes longer, and leave behind where it stood."""
    if limit_s is None:
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        faulthandler.dump_traceback_later(limit_s, exit=True, file=file)
        try:
            yield
        finally:
            faulthandler.cancel_dump_traceback_later()
    path.unlink(missing_ok=True)


def _place(text: str) -> str:
    """The innermost line of this package in a dump of all threads, else the first line of a stack."""
    lines = [line.strip() for line in text.splitlines() if line.strip().startswith("File ")]
    own = [line for line in lines if "equipoise" in line or "/platform/" in line]
    return (own or lines or ["an unknown place"])[0]


def _name_of(trial: Any) -> str:
    return trial_name(trial.config["index"], label(trial.config["settings"]))


@contextmanager
def _quiet(name: str) -> Iterator[None]:
    """Tune prints its own progress and warns of missing logs and of failures; all of it stands in the records."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
            yield
    finally:
        logger.setLevel(level)
