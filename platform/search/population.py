"""Population based training (Jaderberg 2017) and PB2 (Parker-Holder 2020) over learning rate and static loss weights.

A member trains all inner folds in step, one epoch of each at a time, and reports the mean of the metric after every
epoch. Every few epochs members of the lowest quarter continue from the state of one of the highest, with its settings
changed a little (PBT: by a factor or drawn again; PB2: by a Gaussian process over the gains of settings). There is no
early stopping, because a member may take the lead late.

The record of a member holds its last settings and every change. Which member copies which one depends on which is
ready first, so that a population, unlike random or grid search, cannot be reproduced exactly; members that had not
ended when a search was killed start again.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray import tune

from equipoise.datasets.atomic_io import read_json, write_text
from equipoise.platform.errors import is_full_disk
from equipoise.platform.search.configuration import study_from_config
from equipoise.platform.search.context import TrialInputs
from equipoise.platform.search.params import SearchParams
from equipoise.platform.search.space import LOSS_WEIGHTS, Config, Dimension, Space
from equipoise.platform.search.trial import TrialRun, failure_reason, import_trial_code, trials_folder
from equipoise.platform.search.trial_records import FoldScore, Trial, mean, read_trial

if TYPE_CHECKING:
    from equipoise.datasets.cohorts.splits import Fold
    from equipoise.platform.study.schema import Study

#: Smallest share of a task after a change, before shares are normalised to sum to one.
MIN_SHARE = 0.01
#: Number of comparisons of members in a training.
COMPARISONS = 8
#: Called after every epoch, with the folder that holds the member's state.
MemberReport = Callable[[dict[str, Any], Path], None]


class _EpochDoneError(Exception):
    """Ends ``fit`` after an epoch; its checkpoint is written."""


def run_member(
    index: int,
    config: Config,
    inputs: TrialInputs,
    search: Path,
    report: MemberReport,
    start: Path | None = None,
) -> Trial:
    """Train a member from the state in ``start`` (or from an untrained model) to the end, and record it.

    Parameters
    ----------
    index, config
        Which member, and its settings from now on; shares need not sum to one.
    inputs, search
        As for :func:`~equipoise.platform.search.trial.run_trial`.
    report
        Called after every epoch; the record of a finished member is written before the call.
    start
        A folder that was reported, by this member or by the one from which it continues.
    """
    run = TrialRun(index, config, inputs, search)
    if (record := trials_folder(search) / f"{run.name}.json").exists():
        return read_trial(record)  # compared once more after its last epoch
    shutil.rmtree(run.work, ignore_errors=True)
    if start is not None:
        shutil.copytree(start, run.work)
    run.restart()
    state = read_json(run.work / "member.json", {"epoch": 0, "changes": [], "seconds": 0.0})
    if not state["changes"] or state["changes"][-1]["settings"] != config:
        state["changes"].append({"epoch": state["epoch"] + 1, "settings": config})
    run.changes = state["changes"]
    try:
        epochs = inputs.settings["training"]["epochs"]
        no_early_stopping = {"training.patience": epochs, "training.min_epochs": epochs}
        study = study_from_config(inputs.settings, config | no_early_stopping)
        while state["epoch"] < epochs:
            began = time.process_time()
            last = state["epoch"] + 1 == epochs
            scores = [_train_epoch(fold, study, inputs, run.work, last_epoch=last) for fold in inputs.folds]
            state["epoch"] += 1
            state["seconds"] += time.process_time() - began
            write_text(run.work / "member.json", json.dumps(state))
            objective = mean([score.values[inputs.metric] for score in scores])
            if last:
                _end(run, scores, state["seconds"])
            # Tells Tune that the member has ended, so that no member continues from it.
            done = {"done": True} if last else {}
            step = {"epoch": state["epoch"], "folds": len(scores), "objective": objective}
            report(step | done, run.work)
    except Exception as error:
        return run.trial or run.end("failed", failure_reason(error), died=is_full_disk(error))
    return run.trial or run.end("failed", "the member had no epochs left to train")


def _end(run: TrialRun, scores: Sequence[FoldScore], seconds: float) -> None:
    """Record the member; its time is divided equally among its folds, which were trained in step."""
    from dataclasses import replace

    run.scores = [replace(score, cpu_seconds=round(seconds / len(scores), 3)) for score in scores]
    kept = run.work.with_suffix(".last")
    run.work.rename(kept)  # the last report still shows it to Tune
    run.end("ok")
    kept.rename(run.work)


def _train_epoch(fold: Fold, study: Study, inputs: TrialInputs, work: Path, *, last_epoch: bool) -> FoldScore:
    """Train one more epoch of a fold and score the current weights; after the last epoch, the best weights."""
    import torch

    from equipoise.platform.search.scores import fold_scores
    from equipoise.platform.search.trial import fitting_inputs
    from equipoise.platform.training.crossval import fit_recipe
    from equipoise.platform.training.predict import run_model

    fold_inputs = fitting_inputs(fold, study, inputs)
    torch.set_num_threads(fold_inputs.recipe.training.threads)
    checkpoint = work / f"fold-{fold.name}.pt"
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    rewrite_fingerprint(checkpoint, fold_inputs.fingerprint())

    def stop(row: dict[str, float]) -> None:
        if not last_epoch:
            raise _EpochDoneError

    history: tuple[dict[str, float], ...] = ()
    best = 0
    try:
        result = fit_recipe(
            fold_inputs.model,
            fold_inputs.targets,
            fold_inputs.train,
            fold_inputs.val,
            fold_inputs.recipe,
            fold_inputs.seed,
            stop,
            checkpoint,
        )
        history, best = result.history, result.best_epoch
    except _EpochDoneError:
        pass
    return FoldScore(
        fold=fold.name,
        values=fold_scores(
            fold_inputs.targets, run_model(fold_inputs.model, fold_inputs.targets, fold_inputs.scored)
        ),
        epochs=len(history),
        best_epoch=best,
        parameters=sum(parameter.numel() for parameter in fold_inputs.model.parameters()),
        cpu_seconds=0.0,
        wall_seconds=0.0,
        history=history,
    )


def rewrite_fingerprint(checkpoint: Path, fingerprint: Mapping[str, Any]) -> None:
    """Let a training with other settings continue from a checkpoint; does nothing if there is none."""
    from equipoise.platform.training.checkpoint import read_state, write_state

    if checkpoint.exists():
        write_state(checkpoint, read_state(checkpoint) | {"identity": json.dumps(fingerprint)})


def initial_settings(space: Space, drawn: Mapping[int, Config], study: Study) -> dict[int, Config]:
    """Settings that change, by member; the first has the study's learning rate and equal shares."""
    changing = {d.name: d for d in space.dimensions}
    study_settings: Config = {name: dimension.default for name, dimension in changing.items()}
    study_settings |= {f"{LOSS_WEIGHTS}.{task}": 1 / len(space.tasks) for task in space.tasks}
    return {
        index: study_settings if index == 0 else {name: config[name] for name in study_settings}
        for index, config in drawn.items()
    }


def settings_of_member(config: Mapping[str, Any], space: Space) -> Config:
    """Tune's configuration of a member as a configuration of the space: shares that sum to one, and the methods."""
    settings: Config = dict(space.arms[0].config())
    for dimension in space.dimensions:
        settings[dimension.name] = config[dimension.name]
    shares = [max(float(config[f"{LOSS_WEIGHTS}.{task}"]), MIN_SHARE) for task in space.tasks]
    return settings | {
        f"{LOSS_WEIGHTS}.{task}": share / math.fsum(shares)
        for task, share in zip(space.tasks, shares, strict=True)
    }


def build_population_scheduler(params: SearchParams, space: Space, epochs: int) -> Any:
    """PBT or PB2 over all dimensions that are ranges."""
    ranges: dict[str, Dimension] = {d.name: d for d in space.dimensions if not d.choices}
    every = max(1, epochs // COMPARISONS)
    weights = [f"{LOSS_WEIGHTS}.{task}" for task in space.tasks]
    if params.scheduler == "pb2":
        from ray.tune.schedulers.pb2 import PB2

        bounds: dict[str, Any] = {name: [d.low, d.high] for name, d in ranges.items()}
        bounds |= {name: [MIN_SHARE, 1.0] for name in weights}
        return PB2(time_attr="epoch", perturbation_interval=every, hyperparam_bounds=bounds, log_config=False)
    from ray.tune.schedulers import PopulationBasedTraining

    changes: dict[str, Any] = {
        name: (tune.loguniform if d.log else tune.uniform)(d.low, d.high) for name, d in ranges.items()
    }
    changes |= {name: tune.uniform(MIN_SHARE, 1.0) for name in weights}
    return PopulationBasedTraining(
        time_attr="epoch", perturbation_interval=every, hyperparam_mutations=changes, log_config=False
    )


def member_of(name: str) -> int:
    """A member's number, from its name, because Tune copies the whole configuration between members."""
    return int(name.partition("-")[0])


def trainable(
    config: dict[str, Any],
    inputs: TrialInputs,
    search: str,
    space: Space,
    run: Callable[..., object] = run_member,
) -> None:
    """A member in a worker of Tune."""
    import_trial_code()
    index = member_of(tune.get_context().get_trial_name())

    def report(step: dict[str, Any], folder: Path) -> None:
        known = {key: -1.0 if value != value else value for key, value in step.items()}
        tune.report(known, checkpoint=tune.Checkpoint.from_directory(str(folder)))

    settings = settings_of_member(config, space)
    if (checkpoint := tune.get_checkpoint()) is None:
        run(index, settings, inputs, Path(search), report)
        return
    with checkpoint.as_directory() as start:
        run(index, settings, inputs, Path(search), report, Path(start))
