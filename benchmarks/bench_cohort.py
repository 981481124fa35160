"""Trainings on the built-in bench cohorts, in this process: a recipe, a fold and a seed become predictions. SYNTHETIC.

The study is ``examples/joint_msi_hrd.yaml`` with a smaller model; targets, the training loop and the predictions
table are the product's.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from equipoise.datasets.cohorts.cases import Case

EXAMPLE = Path(__file__).parent.parent / "examples" / "joint_msi_hrd.yaml"
#: Attention pooling in place of the example's transformer, and fewer tiles: a fit takes two seconds instead of twenty.
SETTINGS: dict[str, Any] = {
    "model": {"kind": "abmil", "dim": 64, "hidden": 32},
    "training.epochs": 8,
    "training.patience": 8,
    "training.batch": 32,
    "training.monitor": "val_loss",
    "splits.folds": 2,
}
#: Tiles of a patient, drawn once.
TILES = 24


@dataclass(frozen=True)
class Trained:
    """One fit.

    Parameters
    ----------
    predictions
        Rows of validation and test patients, by ``role``.
    history
        The row of every epoch.
    steps
        Of the optimiser.
    """

    predictions: pd.DataFrame
    history: tuple[dict[str, float], ...]
    steps: int


class BenchCohort:
    """Development patients of the bench cohorts with their folds, read into memory once.

    Parameters
    ----------
    work
        Folder of cohorts and features; made where they are missing.
    settings
        Overrides of the example study.
    """

    def __init__(self, work: Path, settings: Mapping[str, Any] = SETTINGS) -> None:
        from equipoise.datasets.cohorts.splits import make_folds
        from equipoise.platform.run.context import RunContext
        from equipoise.platform.run.folder import RunFolder
        from equipoise.platform.run.loading import load_study
        from equipoise.platform.training.build import recipe_of

        path = prepare(work)
        self.study = load_study(path, dict(settings))
        as_written = load_study(path, {})
        folder = RunFolder.open(as_written, str(work / "runs" / "features"), "auto")
        inputs = RunContext(as_written, folder).inputs
        self.patients = inputs.cohorts.patients
        self.folds = make_folds(self.patients, self.study.split_scheme, self.study.tasks, self.study.seed)
        reader = inputs.cases("develop")
        names = sorted({p for fold in self.folds for p in (*fold.train, *fold.val, *fold.test)})
        self.cases = {p: fewer_tiles(reader[p], np.random.default_rng([7, i])) for i, p in enumerate(names)}
        self.recipe = recipe_of(self.study)

    def fit(self, fold: int, *, tasks: Sequence[str] = (), seed: int = 0, **changes: Any) -> Trained:
        """Train on a fold and predict its validation and test patients.

        Parameters
        ----------
        fold
            Index of the fold.
        tasks
            Names of the tasks, all if none is given; a single one is trained alone.
        seed
            Of initial weights, order and dropout.
        changes
            ``training`` and ``balancing`` as in a study, merged into it.
        """
        from equipoise.platform.training.batches import CaseList
        from equipoise.platform.training.build import build_model
        from equipoise.platform.training.crossval import fold_seed
        from equipoise.platform.training.loop import fit
        from equipoise.platform.training.params import BalancingParams, TrainingParams
        from equipoise.platform.training.predict import Role, predict_with_latents
        from equipoise.platform.training.targets import fit_targets

        chosen, part = self.recipe, self.folds[fold]
        training = TrainingParams.model_validate(chosen.training.model_dump() | changes.get("training", {}))
        balancing = BalancingParams.model_validate(changes.get("balancing", "equal"))
        wanted = [t for t in self.study.tasks if not tasks or t.name in tasks]
        if len(wanted) == 1:
            wanted = [wanted[0].model_copy(update={"main": True})]
        train, val, test = (CaseList(self.cases, p) for p in (part.train, part.val, part.test))
        targets = fit_targets(
            wanted,
            train,
            class_weights=training.class_weights,
            scaling=training.target_scaling,
            tables=chosen.tables,
        )
        number = fold_seed(chosen.seed + 1000 * seed, part)
        model = build_model(chosen.model, chosen.model_params, targets.shape, targets.heads, seed=number)
        result = fit(model, targets, train, val, training, seed=number, balancing=balancing)
        parts: tuple[tuple[CaseList, Role], ...] = ((val, "val"), (test, "test"))
        rows = [
            predict_with_latents(model, targets, cases, role=role, repeat=part.repeat, fold=part.index)[0]
            for cases, role in parts
        ]
        steps = len(result.history) * -(-len(train) // training.batch_for(targets.heads, len(train)))
        return Trained(pd.concat(rows, ignore_index=True), result.history, steps)


def fewer_tiles(case: Case, rng: np.random.Generator) -> Case:
    """The case with some of its tiles, in memory."""
    chosen = np.sort(rng.permutation(len(case.bag))[:TILES])
    ends = np.cumsum(case.tiles)
    tiles = tuple(np.bincount(np.searchsorted(ends, chosen, side="right"), minlength=len(ends)).tolist())
    return replace(case, bag=np.array(case.bag[chosen]), coords=np.array(case.coords[chosen]), tiles=tiles)


def prepare(work: Path) -> Path:
    """The bench cohorts, and the example study beside them with imported features."""
    import torch

    from equipoise.platform.cluster.params import RayOptions
    from equipoise.platform.run import steps
    from equipoise.platform.run.folder import RunFolder
    from equipoise.platform.run.loading import load_study
    from equipoise.platform.run.synthesis import synthesize

    work.mkdir(parents=True, exist_ok=True)
    study = work / EXAMPLE.name
    if not study.exists():
        synthesize("bench", 7, work / "bench", RayOptions(address="local", dashboard=False))
        shutil.copy(EXAMPLE, study)
    torch.set_num_threads(1)
    as_written = load_study(study, {})
    folder = RunFolder.open(as_written, str(work / "runs" / "features"), "auto")
    steps.run_steps(as_written, folder, ("validate", "extract"))
    return study


def run_study(study: Path, out: Path, overrides: dict[str, Any], names: tuple[str, ...]) -> str:
    """Steps of the product in this process, on one thread; returns the run folder."""
    import torch

    from equipoise.platform.run import steps
    from equipoise.platform.run.folder import RunFolder
    from equipoise.platform.run.loading import load_study

    torch.set_num_threads(1)
    changed = load_study(study, overrides)
    steps.run_steps(changed, RunFolder.open(changed, str(out), "auto"), names)
    return str(out)


def task_metrics(rows: pd.DataFrame) -> dict[str, float]:
    """task → AUROC or Pearson r of each cohort, averaged over cohorts: a score that knows only the cohort has .5
    or 0.
    """
    from equipoise.platform.evaluation.metrics import auroc, pearson

    found: dict[str, float] = {}
    for task, table in rows.dropna(subset=["target"]).groupby("task"):
        values = []
        for _, part in table.groupby("cohort"):
            target, score = part["target"].to_numpy(float), part["score"].to_numpy(float)
            if set(np.unique(table["target"])) <= {0.0, 1.0}:
                values.append(float(auroc(target > 0, score)))
            else:
                values.append(float(pearson(target, score)))
        found[str(task)] = float(np.nanmean(values))
    return found
