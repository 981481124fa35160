"""Rows of the benchmark on ModalTune's cases: who trains, on what, by which recipe, and what it predicts for the test.

A row is one arm with one seed. Networks are trained by the loop of the product (an ensemble of five members, each of
which stops on another fifth of the training and validation cases), penalised linear models by its exact solver. The
epochs, the penalties and every choice come from training and validation cases; test cases are predicted once. Rows are
kept on disk, so that an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from benchmarks.linear_baselines import RNA, linear_fold
from benchmarks.modaltune_cases import CANCERS, Joined
from benchmarks.tcga_scores import FoldRisks, RowStore
from equipoise.datasets.cohorts.cases import Case
from equipoise.datasets.cohorts.splits import Fold
from equipoise.datasets.omics.params import TableParams
from equipoise.platform.training.batches import CaseList
from equipoise.platform.training.crossval import fold_seed
from equipoise.platform.training.ensemble import fit_ensemble
from equipoise.platform.training.exact import fits_exactly
from equipoise.platform.training.loop import FitResult, Reporter, fit
from equipoise.platform.training.params import BalancingParams, Recipe, TaskSamplingParams, TrainingParams
from equipoise.platform.training.predict import predict
from equipoise.platform.training.targets import Targets, fit_targets

AGE = {"column": "age", "type": "number"}
HISTOLOGY = {"column": "histology", "type": "category"}
EVERY = tuple(CANCERS)
INNER_FOLDS = 4

#: Sizes for a few hundred patients without slides, chosen by inner cross-validation.
SIZES: dict[str, Any] = {
    "rna": "perceptron",
    "rna_params": {"output_scale": 0.03},
    "clinical_params": {"output_scale": 0.1},
    "dim": 24,
    "blocks": 1,
    "bottleneck": 12,
    "embedding": 8,
}
TRAINING = TrainingParams(
    epochs=100,
    patience=30,
    lr=5e-3,
    weight_decay=0.01,
    schedule="constant",
    batch="full",
    monitor="added_loss",
    members=5,
    probe=False,
    device="cpu",
)
CLASSES = TRAINING.model_copy(update={"monitor": "mean_loss", "schedule": "cosine"})
#: All cancers in one model: wider, and an epoch by the mean over tasks of the loss relative to a constant's.
PAN_SIZES: dict[str, Any] = {"dim": 48, "bottleneck": 24, "embedding": 32}
PAN = TRAINING.model_copy(update={"lr": 3e-3, "patience": 25, "monitor": "mean_loss"})
#: Method of the balanced arms, and temperature of the sampled ones.
BALANCING = "uncertainty+none"
TEMPERATURE = 2.0
#: Patients of a step where tasks are sampled.
SAMPLED_BATCH = 256


@dataclass(frozen=True)
class Arm:
    """What is trained.

    Attributes
    ----------
    cancers
        Whose cases train and are predicted.
    tasks
        Names of tasks.
    recipe
        Its seed is replaced by that of the row.
    modalities
        Tables that are read.
    everyone
        Whether cases without RNA train, too.
    """

    cancers: tuple[str, ...]
    tasks: tuple[str, ...]
    recipe: Recipe
    modalities: tuple[str, ...] = ("rna",)
    everyone: bool = False

    def fold(self, joined: Joined) -> Fold:
        """The published split; the test part holds all cases that the arm can read."""
        fold = joined.fold(self.cancers, rna_only=not self.everyone)
        reads_all = self.modalities != ("rna",)
        test = joined.part(self.cancers, "test") if reads_all else fold.test
        return dataclasses.replace(fold, test=test)


def network(
    modalities: Sequence[str], training: TrainingParams, *, balancing: str = "equal+none", **model: Any
) -> Recipe:
    """ModalTune without slides."""
    return Recipe(
        model="modaltune",
        model_params=SIZES | {"modalities": list(modalities)} | model,
        training=training,
        balancing=BalancingParams.model_validate(balancing),
        tables=TableParams.model_validate({"rna": RNA | {"components": 200}, "clinical": [AGE]}),
    )


def ridge(modalities: Sequence[str], covariates: Sequence[Mapping[str, Any]] = (AGE,)) -> Recipe:
    """An exact fit with a ridge penalty, chosen on inner folds, on the same transform of RNA."""
    tables = TableParams.model_validate({"rna": RNA, "clinical": list(covariates)})
    params = {"modalities": list(modalities), "l1_ratio": 0.0}
    return Recipe(model="elastic_net", model_params=params, tables=tables, seed=1)


def per_cancer_arms(cancer: str) -> dict[str, Arm]:
    """Name → arm of the per-cancer recipe."""
    one, subtype, os = (cancer,), f"subtype_{cancer}", f"os_{cancer}"
    both = ("clinical", "rna")
    hiding = network(both, TRAINING, modality_dropout=0.2)
    return {
        "rna, subtype": Arm(one, (subtype,), network(("rna",), CLASSES)),
        "rna, survival": Arm(one, (os,), network(("rna",), TRAINING)),
        "rna + age, survival": Arm(one, (os,), network(both, TRAINING), both),
        "rna + age, hidden at random": Arm(one, (subtype, os), hiding, both),
        "rna + age, all cases": Arm(one, (subtype, os), hiding, both, everyone=True),
    }


def ridge_arms(cancer: str) -> dict[str, Arm]:
    """Name → penalised linear model of a cancer."""
    one, subtype, os = (cancer,), f"subtype_{cancer}", f"os_{cancer}"
    both = ("clinical", "rna")
    return {
        "ridge, rna, subtype": Arm(one, (subtype,), ridge(("rna",))),
        "ridge, rna": Arm(one, (os,), ridge(("rna",))),
        "ridge, rna + age": Arm(one, (os,), ridge(both), both),
        "ridge, age + class": Arm(one, (os,), ridge(("clinical",), (AGE, HISTOLOGY)), ("clinical",)),
    }


def pan_cancer_arms() -> dict[str, Arm]:
    """Name → arm that trains all cancers together, from RNA alone."""
    apart = tuple(task for cancer in CANCERS for task in (f"subtype_{cancer}", f"os_{cancer}"))
    sampled = TRAINING.model_copy(
        update={
            "batch": SAMPLED_BATCH,
            "task_sampling": TaskSamplingParams(temperature=TEMPERATURE),
            "epochs": 60,
            "patience": 15,
        }
    )

    def arm(tasks: tuple[str, ...], training: TrainingParams = PAN, balancing: str = "equal+none") -> Arm:
        return Arm(EVERY, tasks, network(("rna",), training, balancing=balancing, **PAN_SIZES))

    return {
        "plain": arm(("subtype", "os")),
        "stratified": arm(("subtype", "os_strata")),
        "a head per cancer": arm(apart),
        "+ balancing": arm(apart, balancing=BALANCING),
        "+ task sampling": arm(apart, sampled),
        "+ both": arm(apart, sampled, BALANCING),
    }


@dataclass(frozen=True)
class Rows:
    """Fits rows, or reads those that are kept."""

    joined: Joined
    store: RowStore
    folder: Path

    def test(self, name: str, arm: Arm, seed: int) -> dict[str, dict[str, float]]:
        """Task, or task and class → test patient → score, by the published split."""
        return self._kept(name, arm, seed, arm.fold(self.joined), f"test-{seed}")

    def inner(self, name: str, arm: Arm, seed: int) -> list[tuple[Fold, dict[str, dict[str, float]]]]:
        """The same per inner fold: cases of train and val, of which every one is held out once."""
        return [
            (fold, self._kept(name, arm, seed, fold, f"inner-{k}-{seed}"))
            for k, fold in enumerate(self.inner_folds(arm, INNER_FOLDS))
        ]

    def inner_folds(self, arm: Arm, count: int) -> list[Fold]:
        """Parts of training and validation cases, with equal shares of classes and events; drawn once."""
        (cancer,) = arm.cancers
        fold = arm.fold(self.joined)
        patients = np.array([*fold.train, *fold.val], object)
        labels = self.joined.labels(cancer)
        keys = [f"{self.joined.classes[p]} {labels.get(p, (0, -1))[1]}" for p in patients]
        order = np.random.default_rng(np.random.SeedSequence([len(patients)])).permutation(len(patients))
        order = order[np.argsort(np.array(keys)[order], kind="stable")]
        part = np.empty(len(patients), int)
        part[order] = np.arange(len(patients)) % count
        found = []
        for k in range(count):
            rest = patients[part != k].tolist()
            cut = len(rest) // 8
            found.append(
                Fold(0, 100 + k, tuple(rest[:-cut]), tuple(rest[-cut:]), tuple(patients[part == k].tolist()))
            )
        return found

    def _kept(self, name: str, arm: Arm, seed: int, fold: Fold, part: str) -> dict[str, dict[str, float]]:
        settings = {
            "recipe": arm.recipe.model_dump(mode="json"),
            "tasks": arm.tasks,
            "modalities": arm.modalities,
            "patients": [len(fold.train), len(fold.val), len(fold.test)],
        }
        place = "-".join(arm.cancers).lower() if len(arm.cancers) == 1 else "pan-cancer"
        return self.store.get(place, name, part, settings, lambda: self._fit(arm, seed, fold)).variants

    def _fit(self, arm: Arm, seed: int, fold: Fold) -> FoldRisks:
        cases = {patient: reduced(case, arm.modalities) for patient, case in self.joined.cases.items()}
        tasks = [self.joined.tasks[name] for name in arm.tasks]
        model: nn.Module
        if fits_exactly(arm.recipe):
            fitted = linear_fold(arm.recipe, tasks[0], cases, fold)
            model, targets = fitted.model, fitted.targets
        else:
            recipe = arm.recipe.model_copy(update={"seed": seed})
            model, targets = trained(recipe, tasks, cases, fold, self.folder)
        table = predict(model, targets, CaseList(cases, fold.test), role="test", repeat=0, fold=fold.index)
        scores: dict[str, dict[str, float]] = {}
        for row in table.itertuples():
            key = f"{row.task}/{row[table.columns.get_loc('class') + 1]}".rstrip("/")
            scores.setdefault(key, {})[row.patient] = float(row.score)
        return FoldRisks({}, variants=scores)


def reduced(case: Case, modalities: Sequence[str]) -> Case:
    """A case with these tables alone."""
    return dataclasses.replace(case, omics={m: v for m, v in case.omics.items() if m in modalities})


def trained(
    recipe: Recipe, tasks: Sequence[Any], cases: Mapping[str, Case], fold: Fold, folder: Path
) -> tuple[nn.Module, Targets]:
    """An ensemble on training and validation cases, as a fold of the product trains it, without checkpoints."""
    learned = CaseList(cases, (*fold.train, *fold.val))
    targets = fit_targets(tasks, learned, class_weights=recipe.training.class_weights, tables=recipe.tables)
    seed = fold_seed(recipe.seed, fold)
    ensemble = fit_ensemble(_member, recipe, targets, learned, seed=seed, report=None, folder=folder)
    return ensemble.model, targets


def _member(
    model: nn.Module,
    targets: Targets,
    train: CaseList,
    val: CaseList,
    recipe: Recipe,
    seed: int,
    report: Reporter | None,
    checkpoint: Path,
) -> FitResult:
    return fit(
        model, targets, train, val, recipe.training, seed=seed, balancing=recipe.balancing, report=report
    )
