"""Ray Tune as the executor of trials: packs them on CPUs and fractions of GPUs, reuses workers, stops poor trials.

Tune decides where and when a trial runs and whether it continues after a fold. Which trials are finished, and what a
resumed search runs, is read from the records alone: nothing that Tune writes under ``search/ray`` is ever read.

How a trial can end: it records itself as ``ok`` or, after an exception or a memory error, ``failed``. If its process
was killed (by Ray's memory monitor or by a user), the trial goes on from its last epoch in another one, :data:`RETRIES`
times; then the driver records it as ``failed`` and ``died``, and the next search tries it again. It also records what
a scheduler stopped (``pruned``). :mod:`faulthandler` watches the time limit, because its thread does not need the
interpreter lock: it writes the traceback of the trial and ends the process; such a trial is not tried again.
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
from ray.tune.execution import class_cache
from ray.tune.search import Searcher as TuneSearcher

from equipoise.platform.cluster.pools import cpu_label_selector, require_room
from equipoise.platform.cluster.session import environment_variables
from equipoise.platform.search.configuration import trial_label
from equipoise.platform.search.context import TrialInputs
from equipoise.platform.search.params import SearchParams
from equipoise.platform.search.searchers import Searcher
from equipoise.platform.search.space import Config, Space
from equipoise.platform.search.trial import TrialRun, import_trial_code, run_trial, trials_folder, work_folder
from equipoise.platform.search.trial_records import Trial, read_trial, trial_name
from equipoise.platform.training.on_ray import shared_gpu
from equipoise.platform.training.params import TrainingParams

log = logging.getLogger("equipoise")

#: How often a trial whose process died is tried again.
RETRIES = 2

#: Tune's own loggers and progress output are switched off: the records replace them.
_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # an interrupted search ends at once; its records are on disk
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",  # its state is never read back
    "RAY_AIR_NEW_OUTPUT": "0",  # progress and failures are logged here
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a trial may fail before it has anything to report
}


def run_trials(
    indices: Sequence[int],
    searcher: Searcher,
    inputs: TrialInputs,
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
        Numbers of the trials, in the order in which they start.
    searcher
        Gives configurations and is told the results.
    inputs
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
        The function that runs a trial.
    """
    recorder = TrialRecorder(searcher, inputs, search, params, on_end)
    queue = TrialQueue(list(indices), searcher, started)
    trainable = tune.with_parameters(
        _trainable,
        inputs=[ray.put(inputs)],
        search=str(search),
        limit_s=params.trial_time_limit_s,
        run=run,
    )
    settings = tune.TuneConfig(
        metric="objective",
        mode="max",
        search_alg=queue,
        scheduler=build_scheduler(params, len(inputs.folds)),
        num_samples=len(indices),
        max_concurrent_trials=concurrency_of(params, training),
        reuse_actors=True,
        trial_name_creator=_name_of,
        trial_dirname_creator=_name_of,
    )
    _fit(trainable, settings, recorder, resources_of(params, training), search)


def run_population(
    first: Mapping[int, Config],
    space: Space,
    inputs: TrialInputs,
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
        Settings that change, and their bounds.
    inputs, params, search, training, on_end
        As for :func:`run_trials`.
    """
    from equipoise.platform.search import population

    name = trial_label(space.arms[0].config())

    def named(trial: Any) -> str:
        return trial_name(trial.config["member"], name)

    def identify(trial: Any) -> tuple[int, Config]:
        return population.member_of(str(trial)), population.settings_of_member(trial.config, space)

    changing = {key for config in first.values() for key in config}
    recorder = TrialRecorder(None, inputs, search, params, on_end, identify)
    trainable = tune.with_parameters(population.trainable, inputs=inputs, search=str(search), space=space)
    settings = tune.TuneConfig(
        metric="objective",
        mode="max",
        scheduler=population.build_population_scheduler(params, space, inputs.settings["training"]["epochs"]),
        max_concurrent_trials=concurrency_of(params, training),
        reuse_actors=True,
        trial_name_creator=named,
        trial_dirname_creator=named,
    )
    begin = {key: tune.sample_from(partial(_at_first, first=dict(first), key=key)) for key in changing}
    start = {"member": tune.grid_search(sorted(first)), **begin}
    _fit(trainable, settings, recorder, resources_of(params, training), search, start)


def _at_first(config: dict[str, Any], first: dict[int, Config], key: str) -> Any:
    return first[config["member"]][key]


def _fit(
    trainable: Any,
    settings: tune.TuneConfig,
    recorder: TrialRecorder,
    resources: dict[str, float],
    search: Path,
    start: dict[str, Any] | None = None,
) -> None:
    """Run Tune and delete its files afterwards."""
    require_room(
        {"CPU": resources["cpu"], "GPU": resources["gpu"]},
        "a trial",
        where="search.cpus, search.gpus",
        fix="write less, or run on larger nodes",
    )
    scratch = search / "ray"
    shutil.rmtree(scratch, ignore_errors=True)
    with environment_variables(_ENVIRONMENT), _secrets_stay_here(), _silenced("ray.tune"):
        tune.Tuner(
            tune.with_resources(trainable, bundle_of(resources)),
            param_space=start,
            tune_config=settings,
            run_config=tune.RunConfig(
                name=scratch.name,
                storage_path=str(search.resolve()),
                callbacks=[recorder],
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=RETRIES),
            ),
        ).fit()
    shutil.rmtree(scratch, ignore_errors=True)


def resources_of(params: SearchParams, training: TrainingParams) -> dict[str, float]:
    """Resources that Ray reserves for a trial; a trial with workers only waits for them, and they reserve their own."""
    if training.workers > 1:
        return {"cpu": 0, "gpu": 0, "memory": 1}  # Tune refuses a request for nothing; a byte is free
    gpus = shared_gpu(training) if params.gpus is None else params.gpus
    return {"cpu": training.threads if params.cpus is None else params.cpus, "gpu": gpus}


def bundle_of(resources: dict[str, float]) -> dict[str, float] | tune.PlacementGroupFactory:
    """The request for a trial: one that needs CPUs and no GPU keeps away from the nodes of a GPU pool."""
    labels = {} if resources["gpu"] or not resources["cpu"] else cpu_label_selector()
    if not labels:
        return resources
    return tune.PlacementGroupFactory([{"CPU": resources["cpu"]}], bundle_label_selector=[labels])


def concurrency_of(params: SearchParams, training: TrainingParams) -> int | None:
    """Most trials at a time: one where trials have workers of their own, because they would block each other."""
    return 1 if training.workers > 1 and params.max_concurrent is None else params.max_concurrent


def build_scheduler(params: SearchParams, folds: int) -> Any:
    """The scheduler that decides after every fold whether a trial continues; folds are the same for all trials."""
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


class TrialQueue(TuneSearcher):
    """Gives Tune the planned trials in order."""

    def __init__(self, indices: list[int], searcher: Searcher, started: Mapping[int, Config]) -> None:
        super().__init__(metric="objective", mode="max")
        self._left = indices
        self._searcher = searcher
        self._started = started

    def suggest(self, trial_id: str) -> dict[str, Any] | str:  # type: ignore[override]
        """The next trial; ``FINISHED`` after the last."""
        if not self._left:
            return TuneSearcher.FINISHED
        index = self._left.pop(0)
        config = self._started.get(index)
        config = self._searcher.ask(index) if config is None else config
        return {"index": index, "settings": config}

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        """The recorder tells the searcher, from the record."""

    def set_search_properties(self, metric: str | None, mode: str | None, config: dict, **spec: Any) -> bool:
        """Metric and direction are known."""
        return True

    def save(self, checkpoint_path: str) -> None:
        """Nothing: records are the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: records are the state."""


class TrialRecorder(tune.Callback):
    """Makes sure that every trial that ended has a record, and passes the record to the searcher."""

    def __init__(
        self,
        searcher: Searcher | None,
        inputs: TrialInputs,
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
        self._inputs = inputs
        self._search = search
        self._params = params
        self._on_end = on_end

    def on_trial_complete(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """The trial ended by itself, or the scheduler stopped it."""
        self._record_end(trial, "pruned", f"stopped by {self._params.scheduler}")

    def on_trial_error(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        """The process of the trial died."""
        self._record_end(trial, "failed", "")

    def _record_end(self, trial: Any, status: Any, reason: str) -> None:
        index, config = self._identify(trial)
        path = trials_folder(self._search) / f"{trial_name(index, trial_label(config))}.json"
        record = read_trial(path) if path.exists() else self._missing(trial, index, config, status, reason)
        hang_file(self._search, index).unlink(missing_ok=True)
        if self._searcher is not None:
            self._searcher.tell(record)
        self._on_end(record)

    def _missing(self, trial: Any, index: int, config: Config, status: Any, reason: str) -> Trial:
        run = TrialRun(index, config, self._inputs, self._search)
        run.begin()
        for fold in self._inputs.folds:
            if (score := run.finished(fold)) is not None:
                run.add(score)
        if status == "pruned":
            return run.end("pruned", f"{reason} after {len(run.scores)} of {len(self._inputs.folds)} folds")
        if hung := hang_reason(self._search, index, self._params.trial_time_limit_s):
            return run.end("failed", hung)
        return run.end("failed", self._why_it_died(trial), died=True)

    @staticmethod
    def _why_it_died(trial: Any) -> str:
        """Why the process of a trial ended, as text."""
        text = " ".join(str(trial.get_error() or "its process died").split())
        if "OutOfMemory" in text or "memory pressure" in text:
            return f"out of memory: {text}"[:1000]
        return f"its process died: {text}"[:1000]


def hang_file(search: Path, index: int) -> Path:
    """File for the traceback of a trial that exceeded its time limit."""
    return work_folder(search, index).with_suffix(".hang")


def hang_reason(search: Path, index: int, limit_s: float | None) -> str:
    """Where a trial was when it exceeded its time limit, as a reason; empty if it did not."""
    file = hang_file(search, index)
    if limit_s is None or not file.exists() or not (text := file.read_text(errors="replace").strip()):
        return ""
    return f"did not end within {limit_s:g} s; it was at {_innermost_line(text)}"


@lru_cache(maxsize=1)
def fetch_inputs(inputs: ray.ObjectRef) -> TrialInputs:
    """The inputs of all trials, loaded once per process: only the first trial unpacks tables and maps stores."""
    result: TrialInputs = ray.get(inputs)
    return result


def _trainable(
    config: dict[str, Any],
    inputs: list[ray.ObjectRef],
    search: str,
    limit_s: float | None,
    run: Callable[..., object],
) -> None:
    """One trial in a worker of Tune."""
    folder = Path(search)

    def report(step: dict[str, Any]) -> None:
        objective = step["objective"]
        # A scheduler cannot compare NaN: use a value below all others.
        tune.report(step | {"objective": -1.0 if math.isnan(objective) else objective})

    import_trial_code()  # takes seconds in a new process; not counted as time of the trial
    shared = fetch_inputs(*inputs)
    this = TrialRun(config["index"], config["settings"], shared, folder)
    if (trials_folder(folder) / f"{this.name}.json").exists():
        return  # its process died when it had ended
    if hung := hang_reason(folder, this.index, limit_s):
        this.begin()
        this.end("failed", hung)
        return
    with _watched(limit_s, hang_file(folder, config["index"])):
        run(config["index"], config["settings"], shared, folder, report)


@contextmanager
def _watched(limit_s: float | None, path: Path) -> Iterator[None]:
    """End the process if the block exceeds the limit, and write its traceback to ``path``."""
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


def _innermost_line(text: str) -> str:
    """The innermost line of this package in a dump of all threads, else the first line of a stack."""
    lines = [line.strip() for line in text.splitlines() if line.strip().startswith("File ")]
    project_lines = [line for line in lines if "equipoise" in line or "/platform/" in line]
    return (project_lines or lines or ["an unknown place"])[0]


def _name_of(trial: Any) -> str:
    return trial_name(trial.config["index"], trial_label(trial.config["settings"]))


@contextmanager
def _secrets_stay_here() -> Iterator[None]:
    """Let Tune put no credentials into the runtime environment of trials, which Ray writes into its logs.

    Tune would copy keys of AWS from the driver. Workers of a local Ray have the driver's environment anyway; nodes of a
    cluster have credentials of their own.
    """
    before = class_cache.ENV_VARS_TO_PROPAGATE
    class_cache.ENV_VARS_TO_PROPAGATE = {name for name in before if not name.startswith("AWS_")}
    try:
        yield
    finally:
        class_cache.ENV_VARS_TO_PROPAGATE = before


@contextmanager
def _silenced(name: str) -> Iterator[None]:
    """Silence Tune's progress output and warnings; the records hold the same information."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with open(os.devnull, "w", encoding="utf-8") as null, redirect_stdout(null):
            yield
    finally:
        logger.setLevel(level)
