"""One trial: the study with a configuration put in, trained and scored on inner folds, reported fold by fold.

A plain function that knows nothing of Ray; where the study has a ``federation`` section, it trains each fold across the
sites (:mod:`~equipoise.platform.search.federated`). It sees search patients only: the cases that it is given hold
nobody else. What it finishes is on disk at once, folds and epochs or rounds under ``search/work/<index>/``, so that a
trial that is killed goes on where it stopped and ends with the same numbers; its record appears when the last fold has
ended, before that is reported.
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

from equipoise.datasets.whole_files import read_json, write_text
from equipoise.platform.errors import DataError, EquipoiseError
from equipoise.platform.search.configuration import configured, label
from equipoise.platform.search.space import Config
from equipoise.platform.search.trials import (
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

    from equipoise.datasets.cases import Case
    from equipoise.datasets.splits import Fold
    from equipoise.platform.federation.sites import Client
    from equipoise.platform.study import Study
    from equipoise.platform.training.batches import CaseList
    from equipoise.platform.training.params import Recipe
    from equipoise.platform.training.targets import Targets

log = logging.getLogger("equipoise")

#: Told after every fold: ``folds`` so far, ``objective`` over them, and the values of the last one.
Report = Callable[[dict[str, Any]], None]


class StoppedError(Exception):
    """Raised by a report to end a trial early; it is recorded as pruned."""


@dataclass(frozen=True)
class Material:
    """What all trials of a search share.

    Parameters
    ----------
    settings
        The study, resolved.
    cases
        Search patient → case; there is nobody else in it.
    folds
        Inner folds, in the order in which they are run.
    metric
        What is maximised.
    clients
        Of a study that federates: who owns which search patients.
    """

    settings: dict[str, Any]
    cases: Mapping[str, Case]
    folds: tuple[Fold, ...]
    metric: str
    clients: tuple[Client, ...] = ()

    def first_of(self, name: str) -> str:
        """The first fold with the patients of the fold of this name, where that is another one: other seeds have it."""
        parts = {fold.name: (fold.train, fold.val, fold.test) for fold in self.folds}
        found = next(other for other, own in parts.items() if own == parts[name])
        return "" if found == name else found


def trials_folder(search: Path) -> Path:
    """Records of finished trials."""
    return search / "trials"


def work_folder(search: Path, index: int) -> Path:
    """What a trial that has not ended keeps."""
    return search / "work" / f"{index:03d}"


def run_trial(
    index: int, config: Config, material: Material, search: Path, report: Report | None = None
) -> Trial:
    """Run what is left of a trial and record how it ended; an error ends the trial, not the search.

    Parameters
    ----------
    index, config
        Which trial; the configuration is kept beside its folds until it ends.
    material
        Settings, cases, folds.
    search
        ``search/`` of the run folder.
    report
        Called after every fold.
    """
    run = Run(index, config, material, search)
    try:
        run.begin()
        study = configured(material.settings, config)
        for fold in material.folds:
            run.add(run.finished(fold) or score_fold(fold, study, material, run.work))
            if run.complete:
                run.end("ok")
            if report is not None:
                report(run.step())
    except StoppedError as stop:
        return run.trial or run.end("pruned", str(stop) or "stopped early")
    except Exception as error:
        log.debug("trial %s", run.name, exc_info=True)
        return run.end("failed", reason_of(error))
    assert run.trial is not None
    return run.trial


class Run:
    """Progress of one trial, on disk and in memory."""

    def __init__(self, index: int, config: Config, material: Material, search: Path) -> None:
        self.index = index
        self.config = config
        self.material = material
        self.search = search
        self.name = trial_name(index, label(config))
        self.work = work_folder(search, index)
        self.scores: list[FoldScore] = []
        self.trial: Trial | None = None
        self.changes: list[dict[str, Any]] = []
        self.started = ""

    @property
    def complete(self) -> bool:
        """Whether all folds are done."""
        return len(self.scores) == len(self.material.folds)

    def begin(self) -> None:
        """Note when and with what the trial began, unless it goes on; folds of another configuration are dropped."""
        begun = read_json(self.work / "begun.json")
        if begun is None or begun["config"] != self.config:
            shutil.rmtree(self.work, ignore_errors=True)
            begun = {"config": self.config, "started": now()}
            write_text(self.work / "begun.json", json.dumps(begun))
        self.started = begun["started"]

    def begin_anew(self) -> None:
        """Note that the trial begins now, whatever is there."""
        self.started = now()

    def finished(self, fold: Fold) -> FoldScore | None:
        """The score of a fold that an earlier session has finished."""
        score = read_json(self.work / f"fold-{fold.name}.json")
        return None if score is None else fold_from_json(score)

    def add(self, score: FoldScore) -> None:
        """Keep a finished fold."""
        path = self.work / f"fold-{score.fold}.json"
        if not path.exists():
            write_text(path, json.dumps(fold_to_json(score)))
        (self.work / f"fold-{score.fold}.pt").unlink(missing_ok=True)
        shutil.rmtree(self.work / f"fold-{score.fold}", ignore_errors=True)
        self.scores.append(score)

    def step(self) -> dict[str, Any]:
        """What is reported after a fold."""
        so_far = self._made("ok", "")
        return {"folds": len(self.scores), "objective": so_far.objective, **self.scores[-1].values}

    def end(self, status: Status, reason: str = "") -> Trial:
        """Record how the trial ended and drop what it kept to go on."""
        trial = self._made(status, reason)
        if status == "ok" and trial.objective != trial.objective:
            trial = self._made(
                "failed", f"{trial.metric} cannot be worked out: scored patients lack labels or a class"
            )
        write_trial(trials_folder(self.search), trial)
        shutil.rmtree(self.work, ignore_errors=True)
        self.trial = trial
        return trial

    def _made(self, status: Status, reason: str) -> Trial:
        return Trial(
            index=self.index,
            name=self.name,
            config=self.config,
            status=status,
            metric=self.material.metric,
            reason=reason,
            folds=tuple(replace(s, first=self.material.first_of(s.fold)) for s in self.scores),
            cpu_seconds=round(sum(score.cpu_seconds for score in self.scores), 3),
            wall_seconds=round(sum(score.wall_seconds for score in self.scores), 3),
            host=socket.gethostname(),
            started=self.started,
            ended=now(),
            changes=tuple(self.changes),
        )


def score_fold(fold: Fold, study: Study, material: Material, work: Path) -> FoldScore:
    """Train on an inner fold, in one place or across sites as the study says, and score whom it holds out.

    What it needs to go on lies in ``work``, as ``fold-<name>.pt`` or in a folder ``fold-<name>``.
    """
    if study.federation is None:
        return run_fold(fold, study, material, work / f"fold-{fold.name}.pt")
    from equipoise.platform.search.federated import run_federated_fold

    return run_federated_fold(fold, study, material, work / f"fold-{fold.name}")


def run_fold(fold: Fold, study: Study, material: Material, checkpoint: Path) -> FoldScore:
    """Train on an inner fold and score the patients that it holds out.

    Parameters
    ----------
    fold
        Its ``test`` part is scored; ``val`` stops training.
    study
        With the trial's configuration.
    material
        Cases.
    checkpoint
        Where the state after every epoch is kept.
    """
    import torch

    from equipoise.platform.search.scores import fold_scores
    from equipoise.platform.training.crossval import fit_recipe
    from equipoise.platform.training.predict import run_model

    cpu, wall = time.process_time(), time.perf_counter()
    made = built(fold, study, material)
    torch.set_num_threads(made.recipe.training.threads)
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    result = fit_recipe(
        made.model, made.targets, made.train, made.val, made.recipe, made.seed, None, checkpoint
    )
    return FoldScore(
        fold=fold.name,
        values=fold_scores(made.targets, run_model(made.model, made.targets, made.scored)),
        epochs=len(result.history),
        best_epoch=result.best_epoch,
        parameters=sum(parameter.numel() for parameter in made.model.parameters()),
        cpu_seconds=round(time.process_time() - cpu, 3),
        wall_seconds=round(time.perf_counter() - wall, 3),
        history=result.history,
    )


@dataclass(frozen=True)
class Built:
    """What training on a fold begins with."""

    recipe: Recipe
    train: CaseList
    val: CaseList
    scored: CaseList
    targets: Targets
    model: nn.Module
    seed: int

    def identity(self) -> dict[str, Any]:
        """What a checkpoint of this training says of itself."""
        from equipoise.platform.training.checkpoint import identity

        recipe = self.recipe
        return identity(
            self.model, self.targets, self.train, self.val, recipe.training, recipe.balancing, self.seed
        )


def built(fold: Fold, study: Study, material: Material) -> Built:
    """Cases, targets fitted on training patients, and an untrained model."""
    from equipoise.platform.training.batches import CaseList
    from equipoise.platform.training.build import build_model
    from equipoise.platform.training.crossval import fold_seed
    from equipoise.platform.training.recipe import recipe_of
    from equipoise.platform.training.targets import fit_targets

    recipe = recipe_of(study)
    train, val, scored = (CaseList(material.cases, part) for part in (fold.train, fold.val, fold.test))
    targets = fit_targets(
        study.tasks,
        train,
        class_weights=recipe.training.class_weights,
        scaling=recipe.training.target_scaling,
        tables=recipe.tables,
    )
    seed = fold_seed(recipe.seed, fold)
    model = build_model(recipe.model, recipe.model_params, targets.shape, targets.heads, seed=seed)
    return Built(recipe, train, val, scored, targets, model, seed)


def load_code() -> None:
    """Import what trials need, before their time is taken."""
    import equipoise.platform.search.scores
    import equipoise.platform.study
    import equipoise.platform.training.crossval  # noqa: F401


def check_unseen(material: Material, hidden: Mapping[str, str]) -> None:
    """Refuse a search in which a trial could read a patient that it must not see.

    Parameters
    ----------
    hidden
        Patient → what the patient is kept for.

    Raises
    ------
    DataError
        Naming the patients.
    """
    listed = {p for fold in material.folds for part in (fold.train, fold.val, fold.test) for p in part}
    listed |= {p for client in material.clients for p in client.patients}
    if seen := sorted((listed | set(material.cases)) & set(hidden)):
        kept = ", ".join(f"{patient} ({hidden[patient]})" for patient in seen[:5])
        raise DataError(
            f"trials could see {len(seen)} patients that are kept from them: {kept}", where="search"
        )


def reason_of(error: BaseException) -> str:
    """Why a trial failed, on one line."""
    import sys

    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available() and isinstance(error, torch.OutOfMemoryError):
        torch.cuda.empty_cache()  # the process goes on with the next trial
    text = str(error) if isinstance(error, EquipoiseError) else f"{type(error).__name__}: {error}"
    return " ".join(text.split())[:1000]


def now() -> str:
    """Time with zone, to the second."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def unfinished(search: Path) -> dict[int, Config]:
    """Configurations of trials that began and have not ended, by index."""
    found = {}
    for path in sorted((search / "work").glob("[0-9]*/begun.json")):
        found[int(path.parent.name)] = read_json(path)["config"]
    return found
