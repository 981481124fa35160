"""Several members per fold, each stopped on another part of the training patients, averaged.

Source: the networks of a cross-validation as one model, as in nnU-Net (Isensee et al., Nature Methods 18, 2021), here
inside one fold: every training patient takes part, and a member's chance choice of an epoch averages out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from torch import nn

from equipoise.models.base import MultiTaskModel
from equipoise.models.ensemble import Ensemble
from equipoise.models.seeds import torch_seed
from equipoise.platform.errors import StudyError
from equipoise.platform.training.batches import CaseList
from equipoise.platform.training.loop import FitResult, Reporter
from equipoise.platform.training.params import Recipe
from equipoise.platform.training.predict import run_model
from equipoise.platform.training.start import initial_model
from equipoise.platform.training.strata import strata_of
from equipoise.platform.training.targets import Targets

#: Fits one member: model, targets, training patients, validation patients, recipe, seed, report, checkpoint.
FitMember = Callable[[nn.Module, Targets, CaseList, CaseList, Recipe, int, Reporter | None, Path], FitResult]


@dataclass(frozen=True)
class TrainedEnsemble:
    """Members that have been trained.

    Attributes
    ----------
    model
        Their average.
    results
        Per member, how its training went.
    held_out
        Patient → the member that did not learn from the patient.
    """

    model: Ensemble
    results: tuple[FitResult, ...]
    held_out: dict[str, int]

    @property
    def result(self) -> FitResult:
        """All members as one: their histories one behind the other with a column ``member``, the median epoch."""
        rows = tuple({"member": k, **row} for k, one in enumerate(self.results) for row in one.history)
        epoch = round(float(np.median([one.best_epoch for one in self.results])))
        first = self.results[0]
        return FitResult(rows, epoch, all(one.stopped_early for one in self.results), exact=first.exact)

    @property
    def summaries(self) -> list[dict[str, int]]:
        """Per member, epochs and the epoch whose weights were kept."""
        return [{"epochs": len(one.history), "best_epoch": one.best_epoch} for one in self.results]


def empty_ensemble(recipe: Recipe, targets: Targets, seed: int) -> Ensemble:
    """Members with initial weights."""
    return Ensemble([_member(recipe, targets, seed, k) for k in range(recipe.training.members)])


def _member(recipe: Recipe, targets: Targets, seed: int, member: int) -> MultiTaskModel:
    model = initial_model(recipe, targets, seed=torch_seed(seed, member))
    if not isinstance(model, MultiTaskModel):
        raise StudyError(
            f"model {recipe.model} cannot be a member of an ensemble: it is no MultiTaskModel",
            where="training.members",
            fix="write members: 1",
        )
    return model


def fit_ensemble(
    fit_member: FitMember,
    recipe: Recipe,
    targets: Targets,
    cases: CaseList,
    *,
    seed: int,
    report: Reporter | None,
    folder: Path,
) -> TrainedEnsemble:
    """Train all members; those that are done are not trained again.

    Parameters
    ----------
    fit_member
        Trains a model in place: :func:`~equipoise.platform.training.crossval.fit_recipe`.
    recipe, targets
        Settings, and what was fitted on ``cases``.
    cases
        All patients of the fold but those of its test part.
    seed
        Of the parts, and of every member together with its number.
    report
        Called after every epoch of every member; its rows have a column ``member``.
    folder
        Where checkpoints of the members are kept until the fold is done.
    """
    ensemble = empty_ensemble(recipe, targets, seed)
    parts = stratified_parts(cases, targets, recipe.training.members, seed)
    results: list[FitResult] = []
    held_out: dict[str, int] = {}
    for k, model in enumerate(ensemble.members):
        train, val = (
            CaseList(cases.source, tuple(np.asarray(cases.patients, object)[chosen].tolist()))
            for chosen in (parts != k, parts == k)
        )
        of_member = None if report is None else partial(_report, report, k)
        checkpoint = folder / f"checkpoint-{k}.pt"
        results.append(
            fit_member(model, targets, train, val, recipe, torch_seed(seed, k), of_member, checkpoint)
        )
        ensemble.standardise(k, run_model(model, targets, train).outputs)
        held_out |= dict.fromkeys(val.patients, k)
    return TrainedEnsemble(ensemble, tuple(results), held_out)


def _report(report: Reporter, member: int, row: dict[str, float]) -> None:
    report({"member": member, **row})


def stratified_parts(cases: CaseList, targets: Targets, count: int, seed: int) -> np.ndarray:
    """[n] which of ``count`` parts each patient belongs to; sizes and shares of every stratum differ by at most one.

    Strata are those of :func:`~equipoise.platform.training.strata.strata_of`.

    Raises
    ------
    StudyError
        If there are fewer patients than parts.
    """
    if len(cases) < count:
        raise StudyError(
            f"{len(cases)} training patients are too few for {count} members",
            where="training.members",
            fix="write fewer members",
        )
    strata = strata_of(cases, targets)
    rng = np.random.default_rng(np.random.SeedSequence([seed, count]))
    order = rng.permutation(len(cases))
    # Sorted by stratum and assigned in turn, consecutive strata go on where the one before ended.
    order = order[np.argsort(strata[order], kind="stable")]
    parts = np.empty(len(cases), int)
    parts[order] = np.arange(len(cases)) % count
    return parts
