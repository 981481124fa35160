"""Population based training (Jaderberg 2017) and PB2 (Parker-Holder 2020) over learning rate and static loss weights.

A member trains all inner folds side by side, an epoch of each at a time, and reports the mean of the metric after
every epoch. Every few epochs members of the lowest quarter go on from the state of one of the highest, with its
settings changed a little (PBT: by a factor or drawn anew; PB2: by a Gaussian process over what settings gained).
Nothing stops early: a member that leads late is the reason to train a population.

The record of a member holds its last settings and every change. Which member copies whom depends on who is ready
first, so that a population, other than random or grid search, is not repeated exactly; members that had not ended when
a search was killed start anew.
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

from equipoise.datasets.whole_files import read_json, write_text
from equipoise.platform.search.configuration import configured
from equipoise.platform.search.params import SearchParams
from equipoise.platform.search.space import LOSS_WEIGHTS, Config, Dimension, Space
from equipoise.platform.search.trial import Material, Run, load_code, reason_of, trials_folder
from equipoise.platform.search.trials import FoldScore, Trial, mean, read_trial

if TYPE_CHECKING:
    from equipoise.datasets.splits import Fold
    from equipoise.platform.study import Study

#: Smallest share that a change can give a task, before shares are made to sum to one.
LEAST_SHARE = 0.01
#: How often in a training members are compared.
COMPARISONS = 8
#: Told after every epoch, with the folder that holds the member's state.
MemberReport = Callable[[dict[str, Any], Path], None]


class _EpochOverError(Exception):
    """Ends ``fit`` after an epoch; its checkpoint is written."""


def run_member(
    index: int,
    config: Config,
    material: Material,
    search: Path,
    report: MemberReport,
    start: Path | None = None,
) -> Trial:
    """Train a member from where ``start`` (or an untrained model) is to the end, and record it.

    Parameters
    ----------
    index, config
        Which member, and its settings from now on; shares need not sum to one.
    material, search
        As for :func:`~equipoise.platform.search.trial.run_trial`.
    report
        Called after every epoch; the record of a finished member is written before.
    start
        A folder that a report was given, of this member or of the one that it goes on from.
    """
    run = Run(index, config, material, search)
    if (record := trials_folder(search) / f"{run.name}.json").exists():
        return read_trial(record)  # compared once more after its last epoch
    shutil.rmtree(run.work, ignore_errors=True)
    if start is not None:
        shutil.copytree(start, run.work)
    run.begin_anew()
    state = read_json(run.work / "member.json", {"epoch": 0, "changes": [], "seconds": 0.0})
    if not state["changes"] or state["changes"][-1]["settings"] != config:
        state["changes"].append({"epoch": state["epoch"] + 1, "settings": config})
    run.changes = state["changes"]
    try:
        epochs = material.settings["training"]["epochs"]
        whole = {"training.patience": epochs, "training.min_epochs": epochs}
        study = configured(material.settings, config | whole)
        while state["epoch"] < epochs:
            began = time.process_time()
            last = state["epoch"] + 1 == epochs
            scores = [_advance(fold, study, material, run.work, to_the_end=last) for fold in material.folds]
            state["epoch"] += 1
            state["seconds"] += time.process_time() - began
            write_text(run.work / "member.json", json.dumps(state))
            objective = mean([score.values[material.metric] for score in scores])
            if last:
                _end(run, scores, state["seconds"])
            # Tune's word for the end: nobody goes on from anybody after the last epoch.
            done = {"done": True} if last else {}
            step = {"epoch": state["epoch"], "folds": len(scores), "objective": objective}
            report(step | done, run.work)
    except Exception as error:
        return run.trial or run.end("failed", reason_of(error))
    return run.trial or run.end("failed", "the member had nothing left to train")


def _end(run: Run, scores: Sequence[FoldScore], seconds: float) -> None:
    """Record the member; the time is shared out among its folds, which were trained side by side."""
    from dataclasses import replace

    run.scores = [replace(score, cpu_seconds=round(seconds / len(scores), 3)) for score in scores]
    kept = run.work.with_suffix(".last")
    run.work.rename(kept)  # the last report still shows it to Tune
    run.end("ok")
    kept.rename(run.work)


def _advance(fold: Fold, study: Study, material: Material, work: Path, *, to_the_end: bool) -> FoldScore:
    """One more epoch of a fold, scored as it stands; after the last one, scored with its best weights."""
    import torch

    from equipoise.platform.search.scores import fold_scores
    from equipoise.platform.search.trial import built
    from equipoise.platform.training.crossval import fit_recipe
    from equipoise.platform.training.predict import run_model

    made = built(fold, study, material)
    torch.set_num_threads(made.recipe.training.threads)
    checkpoint = work / f"fold-{fold.name}.pt"
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    adopt(checkpoint, made.identity())

    def over(row: dict[str, float]) -> None:
        if not to_the_end:
            raise _EpochOverError

    history: tuple[dict[str, float], ...] = ()
    best = 0
    try:
        result = fit_recipe(
            made.model, made.targets, made.train, made.val, made.recipe, made.seed, over, checkpoint
        )
        history, best = result.history, result.best_epoch
    except _EpochOverError:
        pass
    return FoldScore(
        fold=fold.name,
        values=fold_scores(made.targets, run_model(made.model, made.targets, made.scored)),
        epochs=len(history),
        best_epoch=best,
        parameters=sum(parameter.numel() for parameter in made.model.parameters()),
        cpu_seconds=0.0,
        wall_seconds=0.0,
        history=history,
    )


def adopt(checkpoint: Path, identity: Mapping[str, Any]) -> None:
    """Let a training with other settings go on from a checkpoint; nothing if there is none."""
    import torch

    from equipoise.datasets.whole_files import atomic_path

    if not checkpoint.exists():
        return
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    state["identity"] = json.dumps(identity)
    with atomic_path(checkpoint) as aside:
        torch.save(state, aside)


def first_settings(space: Space, drawn: Mapping[int, Config], study: Study) -> dict[int, Config]:
    """Settings that change, by member; the first has the study's learning rate and equal shares."""
    changing = {d.name: d for d in space.dimensions}
    own: Config = {name: dimension.default for name, dimension in changing.items()}
    own |= {f"{LOSS_WEIGHTS}.{task}": 1 / len(space.tasks) for task in space.tasks}
    return {
        index: own if index == 0 else {name: config[name] for name in own} for index, config in drawn.items()
    }


def settings_of_member(config: Mapping[str, Any], space: Space) -> Config:
    """What Tune has for a member as a configuration: shares that sum to one, and the methods."""
    settings: Config = dict(space.arms[0].config())
    for dimension in space.dimensions:
        settings[dimension.name] = config[dimension.name]
    shares = [max(float(config[f"{LOSS_WEIGHTS}.{task}"]), LEAST_SHARE) for task in space.tasks]
    return settings | {
        f"{LOSS_WEIGHTS}.{task}": share / math.fsum(shares)
        for task, share in zip(space.tasks, shares, strict=True)
    }


def build_population_scheduler(params: SearchParams, space: Space, epochs: int) -> Any:
    """PBT or PB2 over everything that is a range."""
    ranges: dict[str, Dimension] = {d.name: d for d in space.dimensions if not d.choices}
    every = max(1, epochs // COMPARISONS)
    weights = [f"{LOSS_WEIGHTS}.{task}" for task in space.tasks]
    if params.scheduler == "pb2":
        from ray.tune.schedulers.pb2 import PB2

        bounds: dict[str, Any] = {name: [d.low, d.high] for name, d in ranges.items()}
        bounds |= {name: [LEAST_SHARE, 1.0] for name in weights}
        return PB2(time_attr="epoch", perturbation_interval=every, hyperparam_bounds=bounds, log_config=False)
    from ray.tune.schedulers import PopulationBasedTraining

    changes: dict[str, Any] = {
        name: (tune.loguniform if d.log else tune.uniform)(d.low, d.high) for name, d in ranges.items()
    }
    changes |= {name: tune.uniform(LEAST_SHARE, 1.0) for name in weights}
    return PopulationBasedTraining(
        time_attr="epoch", perturbation_interval=every, hyperparam_mutations=changes, log_config=False
    )


def member_of(name: str) -> int:
    """A member's number, from its name: settings, and with them everything in Tune's configuration, are copied."""
    return int(name.partition("-")[0])


def trainable(
    config: dict[str, Any],
    material: Material,
    search: str,
    space: Space,
    run: Callable[..., object] = run_member,
) -> None:
    """A member in a worker of Tune."""
    load_code()
    index = member_of(tune.get_context().get_trial_name())

    def report(step: dict[str, Any], folder: Path) -> None:
        known = {key: -1.0 if value != value else value for key, value in step.items()}
        tune.report(known, checkpoint=tune.Checkpoint.from_directory(str(folder)))

    settings = settings_of_member(config, space)
    if (checkpoint := tune.get_checkpoint()) is None:
        run(index, settings, material, Path(search), report)
        return
    with checkpoint.as_directory() as start:
        run(index, settings, material, Path(search), report, Path(start))
