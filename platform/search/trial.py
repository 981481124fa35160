"""One trial: the study with a configuration applied, trained and scored on inner folds, reported fold by fold.

A plain function without Ray; where the study has a ``federation`` section, it trains each fold across the sites
(:mod:`~equipoise.platform.search.federated_trial`). It sees search patients only: the cases that it is given contain no
other patient. Finished folds and epochs (or rounds) are written to ``search/work/<index>/`` at once, so that a killed
trial continues where it stopped and ends with the same numbers; its record is written after the last fold, before
that is reported.
"""

from __future__ import annotations

import json
import logging
import shutil
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equipoise.datasets.atomic_io import read_whole_json, write_text
from equipoise.datasets.redaction import masked
from equipoise.platform.errors import DataError, EquipoiseError, is_full_disk
from equipoise.platform.search.configuration import study_from_config, trial_label
from equipoise.platform.search.context import TrialInputs
from equipoise.platform.search.space import Config
from equipoise.platform.search.trial_records import (
    FoldScore,
    Status,
    Trial,
    fold_from_json,
    fold_to_json,
    trial_name,
    write_trial,
)

if TYPE_CHECKING:
    from torch import nn

    from equipoise.datasets.cohorts.splits import Fold
    from equipoise.platform.study.schema import Study
    from equipoise.platform.training.batches import CaseList
    from equipoise.platform.training.params import Recipe
    from equipoise.platform.training.targets import Targets

log = logging.getLogger("equipoise")

#: Called after every fold with ``folds`` so far, ``objective`` over them, and the values of the last one.
Report = Callable[[dict[str, Any]], None]


class StoppedError(Exception):
    """Raised by a report to end a trial early; it is recorded as pruned."""


def trials_folder(search: Path) -> Path:
    """Folder of the records of finished trials."""
    return search / "trials"


def work_folder(search: Path, index: int) -> Path:
    """Folder with the state of a trial that has not ended."""
    return search / "work" / f"{index:03d}"


def run_trial(
    index: int, config: Config, inputs: TrialInputs, search: Path, report: Report | None = None
) -> Trial:
    """Run the remaining folds of a trial and record how it ended; an error ends the trial, not the search.

    Parameters
    ----------
    index, config
        Index and configuration of the trial; the configuration is stored beside its folds until it ends.
    inputs
        Settings, cases, folds.
    search
        ``search/`` of the run folder.
    report
        Called after every fold.
    """
    run = TrialRun(index, config, inputs, search)
    try:
        run.begin()
        study = study_from_config(inputs.settings, config)
        for fold in inputs.folds:
            run.add(run.finished(fold) or score_fold(fold, study, inputs, run.work))
            if run.complete:
                run.end("ok")
            if report is not None:
                report(run.step())
    except StoppedError as stop:
        return run.trial or run.end("pruned", str(stop) or "stopped early")
    except Exception as error:
        log.debug("trial %s", run.name, exc_info=True)
        return run.end("failed", failure_reason(error), died=is_full_disk(error))
    assert run.trial is not None
    return run.trial


class TrialRun:
    """Progress of one trial, on disk and in memory."""

    def __init__(self, index: int, config: Config, inputs: TrialInputs, search: Path) -> None:
        self.index = index
        self.config = config
        self.inputs = inputs
        self.search = search
        self.name = trial_name(index, trial_label(config))
        self.work = work_folder(search, index)
        self.scores: list[FoldScore] = []
        self.trial: Trial | None = None
        self.changes: list[dict[str, Any]] = []
        self.started = ""

    @property
    def complete(self) -> bool:
        """Whether all folds are done."""
        return len(self.scores) == len(self.inputs.folds)

    def begin(self) -> None:
        """Record start and configuration, unless the trial is resumed; folds of another configuration are deleted."""
        begun = read_whole_json(self.work / "begun.json")
        if begun is None or begun.get("config") != self.config:
            shutil.rmtree(self.work, ignore_errors=True)
            begun = {"config": self.config, "started": current_time()}
            write_text(self.work / "begun.json", json.dumps(begun))
        self.started = begun["started"]

    def restart(self) -> None:
        """Set the start of the trial to now, without reading earlier state."""
        self.started = current_time()

    def finished(self, fold: Fold) -> FoldScore | None:
        """The score of a fold that was finished in an earlier session; None if it was not."""
        score = read_whole_json(self.work / f"fold-{fold.name}.json")  # a damaged one is computed again
        return None if score is None else fold_from_json(score)

    def add(self, score: FoldScore) -> None:
        """Store a finished fold."""
        path = self.work / f"fold-{score.fold}.json"
        if not path.exists():
            write_text(path, json.dumps(fold_to_json(score)))
        (self.work / f"fold-{score.fold}.pt").unlink(missing_ok=True)
        shutil.rmtree(self.work / f"fold-{score.fold}", ignore_errors=True)
        self.scores.append(score)

    def step(self) -> dict[str, Any]:
        """Values that are reported after a fold."""
        so_far = self._to_trial("ok", "")
        return {"folds": len(self.scores), "objective": so_far.objective, **self.scores[-1].values}

    def end(self, status: Status, reason: str = "", *, died: bool = False) -> Trial:
        """Record how the trial ended and delete its state, unless its process died: then it may go on from there."""
        trial = replace(self._to_trial(status, reason), died=died)
        if status == "ok" and trial.objective != trial.objective:
            trial = self._to_trial(
                "failed", f"{trial.metric} cannot be computed: scored patients lack labels or a class"
            )
        write_trial(trials_folder(self.search), trial)
        if not died:
            shutil.rmtree(self.work, ignore_errors=True)
        self.trial = trial
        return trial

    def _to_trial(self, status: Status, reason: str) -> Trial:
        return Trial(
            index=self.index,
            name=self.name,
            config=self.config,
            status=status,
            metric=self.inputs.metric,
            reason=reason,
            folds=tuple(replace(s, first=self.inputs.first_seed_fold(s.fold)) for s in self.scores),
            cpu_seconds=round(sum(score.cpu_seconds for score in self.scores), 3),
            wall_seconds=round(sum(score.wall_seconds for score in self.scores), 3),
            host=socket.gethostname(),
            started=self.started,
            ended=current_time(),
            changes=tuple(self.changes),
        )


def score_fold(fold: Fold, study: Study, inputs: TrialInputs, work: Path) -> FoldScore:
    """Train on an inner fold, in one place or across sites as the study says, and score its held-out patients.

    Its checkpoints are in ``work``, as ``fold-<name>.pt`` or in a folder ``fold-<name>``.
    """
    if study.federation is None:
        return run_fold(fold, study, inputs, work / f"fold-{fold.name}.pt")
    from equipoise.platform.search.federated_trial import run_federated_fold

    return run_federated_fold(fold, study, inputs, work / f"fold-{fold.name}")


def run_fold(fold: Fold, study: Study, inputs: TrialInputs, checkpoint: Path) -> FoldScore:
    """Train on an inner fold and score its held-out patients.

    Parameters
    ----------
    fold
        Its ``test`` part is scored; ``val`` stops training.
    study
        With the trial's configuration.
    inputs
        Cases.
    checkpoint
        File of the state after every epoch.
    """
    import torch

    from equipoise.platform.search.scores import fold_scores
    from equipoise.platform.training.crossval import fit_recipe
    from equipoise.platform.training.predict import run_model

    cpu, wall = time.process_time(), time.perf_counter()
    fold_inputs = fitting_inputs(fold, study, inputs)
    torch.set_num_threads(fold_inputs.recipe.training.threads)
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    result = fit_recipe(
        fold_inputs.model,
        fold_inputs.targets,
        fold_inputs.train,
        fold_inputs.val,
        fold_inputs.recipe,
        fold_inputs.seed,
        None,
        checkpoint,
    )
    return FoldScore(
        fold=fold.name,
        values=fold_scores(
            fold_inputs.targets, run_model(fold_inputs.model, fold_inputs.targets, fold_inputs.scored)
        ),
        epochs=len(result.history),
        best_epoch=result.best_epoch,
        parameters=sum(parameter.numel() for parameter in fold_inputs.model.parameters()),
        cpu_seconds=round(time.process_time() - cpu, 3),
        wall_seconds=round(time.perf_counter() - wall, 3),
        history=result.history,
    )


@dataclass(frozen=True)
class FittingInputs:
    """Recipe, cases, targets and untrained model of a fold."""

    recipe: Recipe
    train: CaseList
    val: CaseList
    scored: CaseList
    targets: Targets
    model: nn.Module
    seed: int

    def fingerprint(self) -> dict[str, Any]:
        """Fingerprint in a checkpoint of this training."""
        from equipoise.platform.training.checkpoint import training_fingerprint

        recipe = self.recipe
        return training_fingerprint(
            self.model, self.targets, self.train, self.val, recipe.training, recipe.balancing, self.seed
        )


def fitting_inputs(fold: Fold, study: Study, inputs: TrialInputs) -> FittingInputs:
    """Cases, targets fitted on training patients, and an untrained model."""
    from equipoise.platform.training.batches import CaseList
    from equipoise.platform.training.build import recipe_of
    from equipoise.platform.training.crossval import fold_seed
    from equipoise.platform.training.start import initial_model, recipe_targets

    recipe = recipe_of(study)
    train, val, scored = (CaseList(inputs.cases, part) for part in (fold.train, fold.val, fold.test))
    targets = recipe_targets(recipe, study.tasks, train)
    seed = fold_seed(recipe.seed, fold)
    model = initial_model(recipe, targets, seed=seed)
    return FittingInputs(recipe, train, val, scored, targets, model, seed)


def import_trial_code() -> None:
    """Import the modules that trials need, so that imports are not counted as their time."""
    import equipoise.platform.search.scores
    import equipoise.platform.study.schema
    import equipoise.platform.training.crossval  # noqa: F401


def check_hidden_patients(inputs: TrialInputs, hidden: Mapping[str, str]) -> None:
    """Refuse a search in which a trial could read a patient that it must not see.

    Parameters
    ----------
    hidden
        Patient → the reason why trials must not see the patient.

    Raises
    ------
    DataError
        Naming the patients.
    """
    listed = {p for fold in inputs.folds for part in (fold.train, fold.val, fold.test) for p in part}
    listed |= {p for client in inputs.clients for p in client.patients}
    if seen := sorted((listed | set(inputs.cases)) & set(hidden)):
        kept = ", ".join(f"{patient} ({hidden[patient]})" for patient in seen[:5])
        raise DataError(
            f"trials could see {len(seen)} patients that must be hidden from them: {kept}", where="search"
        )


def failure_reason(error: BaseException) -> str:
    """Why a trial failed, on one line."""
    import sys

    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and isinstance(error, torch.OutOfMemoryError):
        torch.cuda.empty_cache()  # the process continues with the next trial
    text = str(error) if isinstance(error, EquipoiseError) else f"{type(error).__name__}: {error}"
    return masked(" ".join(text.split()))[:1000]


def current_time() -> str:
    """Current time with zone, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def unfinished_configs(search: Path) -> dict[int, Config]:
    """Configurations of trials that have started and not ended, by index."""
    result = {}
    for path in sorted((search / "work").glob("[0-9]*/begun.json")):
        begun = read_whole_json(path)
        if begun is not None:
            result[int(path.parent.name)] = begun["config"]
    return result
