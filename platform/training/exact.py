"""Exact fits of linear models: a solver instead of epochs, for models that say they are convex.

The heads of such a model read the data directly, so that every task is a problem of its own with one optimum. Its ridge
penalty (the elastic net's, for a model that has one) is chosen by inner cross-validation on the training patients
(:mod:`equipoise.models.probes.selection`); inner validation patients stay out and are only scored, as everywhere. Where
tasks are balanced or patients are spread over clients the training loop fits the model, and :func:`distances` say how
far it stayed from the optimum.

Penalties, and the weights of a late fusion, are chosen on the training patients, and the inner validation patients are
scored by the fit that never saw them. Before test patients are predicted, :func:`refit` fits the heads again on both at
the chosen penalties: a solver needs no patients to stop on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import nn

from equipoise.models.base import MultiTaskModel
from equipoise.models.batch import CaseBatch
from equipoise.models.entries import Penalty
from equipoise.models.losses import TaskLosses
from equipoise.models.probes.heads import likelihood_of, read_head, smallest_group, write_head
from equipoise.models.probes.late import fit_one, fuse_late
from equipoise.models.probes.late_rows import LateRows
from equipoise.models.probes.likelihoods import Array, Likelihood
from equipoise.models.probes.path import LinearFit, Standardised, fit_path, penalty_grid, walk_path
from equipoise.models.probes.selection import Choice, choose_penalty, inner_folds
from equipoise.platform.registry import get
from equipoise.platform.training import checkpoint as checkpoints
from equipoise.platform.training.batches import CaseList, collate
from equipoise.platform.training.loop import FitResult, Reporter, check_patients, history_row
from equipoise.platform.training.monitor import ValidationMonitor
from equipoise.platform.training.params import BalancingParams, Recipe, TrainingParams, entry_params
from equipoise.platform.training.predict import run_model
from equipoise.platform.training.targets import Targets


@dataclass(frozen=True)
class Design:
    """Rows that the heads of a linear model read, and the targets, of n training cases.

    Attributes
    ----------
    x
        ``[n, p]`` rows, divided by ``spread``.
    spread
        ``[p]``; 1 where the model's rows are on a common scale.
    factors
        ``[p]`` relative penalties, None for all equally.
    likelihoods
        Task → its loss; without a task that has no label (no event).
    known
        Task → ``[n]`` whether the label is known.
    present
        ``[n, M]`` which modalities a case has, for a model that fits them apart.
    """

    x: Array
    spread: Array
    factors: Array | None
    likelihoods: dict[str, Likelihood]
    known: dict[str, np.ndarray]
    present: np.ndarray | None = None

    @cached_property
    def inputs(self) -> Standardised:
        """The rows, prepared once for all tasks."""
        return Standardised(self.x, self.factors)


def is_balanced(balancing: BalancingParams) -> bool:
    """Whether a method changes losses or gradients of tasks."""
    weighting, aggregator = get("weightings", balancing.weighting), get("aggregators", balancing.aggregation)
    return not weighting.attribute("neutral") or aggregator.attribute("kind") != "none"


def is_convex(recipe: Recipe) -> bool:
    """Whether the recipe's model is linear, so that every task has one optimum; with heads on text it is not, and task
    sampling weighs patients as no solver here does."""
    training = recipe.training
    return (
        training.text is None
        and training.task_sampling is None
        and bool(getattr(entry_params("models", recipe.model, recipe.model_params), "convex", False))
    )


def fits_exactly(recipe: Recipe) -> bool:
    """Whether a solver fits the recipe's model: it is linear, and its tasks are not balanced."""
    return is_convex(recipe) and not is_balanced(recipe.balancing)


def penalty_of(recipe: Recipe) -> Penalty:
    """Penalty of a recipe's model."""
    found = getattr(entry_params("models", recipe.model, recipe.model_params), "penalty", None)
    return found if isinstance(found, Penalty) else Penalty()


def fit_exactly(
    model: MultiTaskModel,
    targets: Targets,
    train: CaseList,
    val: CaseList,
    recipe: Recipe,
    *,
    seed: int,
    report: Reporter | None = None,
    checkpoint: Path | None = None,
) -> FitResult:
    """Put the optimum into the heads of a linear model; parameters and errors as of the training loop.

    Returns
    -------
    FitResult
        Its history has one row, with ``penalty/<task>`` (of a late fusion ``penalty/<task>/<modality>`` and
        ``weight/<task>/<modality>``, the weights of a patient who has them all), and ``gain/<task>``: how much lower
        the cross-validated loss is than that of a model without columns.
    """
    check_patients(train, val)
    fingerprint = checkpoints.training_fingerprint(
        model, targets, train, val, recipe.training, recipe.balancing, seed
    )
    progress = checkpoints.TrainingProgress()
    if checkpoint is not None:
        progress = checkpoints.resume(checkpoint, fingerprint, {})
    if not progress.history:
        progress.add(_solve(model, targets, train, val, recipe, seed), model)
        if checkpoint is not None:
            checkpoints.save(checkpoint, fingerprint, progress, {})
        if report is not None:
            report(progress.history[0])
    model.load_state_dict(progress.best_weights)
    return FitResult(tuple(progress.history), 1, stopped_early=False, exact=True)


def _solve(
    model: MultiTaskModel, targets: Targets, train: CaseList, val: CaseList, recipe: Recipe, seed: int
) -> dict[str, float]:
    row = fit_heads(model, targets, train, recipe, seed)
    losses = TaskLosses(targets.heads, targets.class_weights, ties=recipe.training.ties)
    seen, held = run_model(model, targets, train), run_model(model, targets, val)
    trained, validated = (losses(r.outputs, r.targets, r.label_mask, r.cohort) for r in (seen, held))
    monitor = ValidationMonitor(recipe.training.monitor, targets, losses)
    watched = monitor.row(validated, held, first=True)
    return history_row(0, math.nan, targets, trained, validated) | watched | row


def fit_heads(
    model: MultiTaskModel, targets: Targets, train: CaseList, recipe: Recipe, seed: int
) -> dict[str, float]:
    """Put the optimum on training patients into the heads; penalties, weights and gains as :func:`fit_exactly` says."""
    design, params = prepared_design(model, targets, train, recipe.training), penalty_of(recipe)
    row: dict[str, float] = {}
    for index in range(len(targets.heads)):
        if isinstance(model, LateRows):
            row |= _fit_late(model, design, index, params, seed)
        else:
            row |= _fit_early(model, design, index, params, seed)
    return row


def _fit_early(
    model: MultiTaskModel, design: Design, index: int, params: Penalty, seed: int
) -> dict[str, float]:
    """Penalty and optimum of one task, over all columns."""
    head = model.task_heads[index]
    if head.name not in design.likelihoods:
        outputs = 1 if head.kind == "binary" else head.outputs
        _write(model, design, index, LinearFit(np.zeros((design.x.shape[1], outputs)), np.zeros(outputs)))
        return {f"penalty/{head.name}": math.nan, f"gain/{head.name}": math.nan}
    choice = choose(design, head.name, params, seed)
    _write(model, design, index, choice.fit)
    gain = choice.null_score - float(choice.scores.min())
    return {f"penalty/{head.name}": choice.penalty, f"gain/{head.name}": gain}


def _write(model: MultiTaskModel, design: Design, index: int, fit: LinearFit) -> None:
    layer: nn.Linear = model.heads[index]  # type: ignore[assignment]
    raw = LinearFit(fit.weights / design.spread[:, None], fit.intercept)
    write_head(layer, model.task_heads[index], raw)


def _fit_late(model: LateRows, design: Design, index: int, params: Penalty, seed: int) -> dict[str, float]:
    """Penalties, optima and weights of one task, modality by modality."""
    name, names = model.task_heads[index].name, model.modalities
    if name not in design.likelihoods:
        return {f"penalty/{name}/{m}": math.nan for m in names} | {f"gain/{name}": math.nan}
    likelihood, known = design.likelihoods[name], design.known[name]
    assert design.present is not None
    fusion = fuse_late(
        [design.x[:, columns] for columns in model.blocks.values()],
        [model.factors[columns] for columns in model.blocks.values()],
        design.present,
        likelihood,
        known,
        inner_folds(likelihood, known, max(1, min(params.folds, smallest_group(likelihood, known))), seed),
        l1_ratio=params.l1_ratio,
        penalties=params.penalties,
    )
    model.write(index, fusion)
    row = {f"penalty/{name}/{m}": penalty for m, penalty in zip(names, fusion.penalties, strict=True)}
    row |= {f"weight/{name}/{m}": float(w) for m, w in zip(names, fusion.weights[-1], strict=True)}
    return row | {f"gain/{name}": fusion.gain}


def refit(
    model: MultiTaskModel, targets: Targets, cases: CaseList, recipe: Recipe, row: Mapping[str, float]
) -> None:
    """Fit the heads again on more patients, at the penalties and with the weights that were chosen before.

    Parameters
    ----------
    model, targets
        After :func:`fit_exactly`; transforms of tables and the mean tile stay those of its training patients.
    cases
        The training patients and those of inner validation.
    recipe
        As of the first fit.
    row
        The row of its history.
    """
    design, params = design_of(model, targets, cases, recipe.training), penalty_of(recipe)
    for index, head in enumerate(targets.heads):
        if head.name not in design.likelihoods:
            continue
        likelihood, known = design.likelihoods[head.name], design.known[head.name]
        if isinstance(model, LateRows):
            assert design.present is not None
            fits = []
            for m, (name, columns) in enumerate(model.blocks.items()):
                x, penalty = design.x[:, columns], row[f"penalty/{head.name}/{name}"]
                if math.isnan(penalty):
                    fits.append(
                        LinearFit(np.zeros((x.shape[1], likelihood.outputs)), np.zeros(likelihood.outputs))
                    )
                    continue
                use = known & design.present[:, m]
                fits.append(fit_one(x, model.factors[columns], likelihood, use, penalty, params.l1_ratio))
            model.write_fits(index, fits)
        elif not math.isnan(penalty := row[f"penalty/{head.name}"]):
            now = read_head(model.heads[index], head)  # type: ignore[arg-type]
            start = LinearFit(now.weights * design.spread[:, None], now.intercept)
            steps = walk_path(
                design.inputs,
                likelihood,
                [penalty],
                l1_ratio=params.l1_ratio,
                use=known.astype(float),
                start=start,
            )
            _write(model, design, index, next(steps).fit())


def design_of(model: MultiTaskModel, targets: Targets, cases: CaseList, params: TrainingParams) -> Design:
    """Rows that a model reads of some cases, and their targets."""
    return _design(model.cpu().eval(), targets, [collate([case], targets) for case in cases], params)


def prepared_design(
    model: MultiTaskModel, targets: Targets, train: CaseList, params: TrainingParams
) -> Design:
    """The same of training cases, after the model was prepared on them."""
    batches = [collate([case], targets) for case in train]
    model.cpu().eval().prepare(batches)
    return _design(model, targets, batches, params)


def _design(
    model: MultiTaskModel, targets: Targets, batches: Sequence[CaseBatch], params: TrainingParams
) -> Design:
    with torch.no_grad():
        x = torch.cat([model.rows(batch) for batch in batches]).double().numpy()
        present = None
        if isinstance(model, LateRows):
            present = torch.cat([model.presence(batch) for batch in batches]).numpy()
    spread = np.ones(x.shape[1])
    if not model.rows_are_standardised:
        values = x.std(axis=0)
        spread = np.where(values > 1e-6 * np.abs(x).mean(axis=0), values, 1.0)
    cohort = torch.cat([batch.cohort for batch in batches if batch.cohort is not None]).numpy()
    likelihoods, known = {}, {}
    for head in targets.heads:
        mask = torch.cat([batch.label_mask[head.name] for batch in batches]).numpy()
        likelihood = likelihood_of(
            head,
            torch.cat([batch.targets[head.name] for batch in batches]).double().numpy(),
            class_weights=targets.class_weights.get(head.name),
            ties=params.ties,
            cohort=cohort,
        )
        if likelihood.counts(mask[:, None].astype(float))[0] > 0:
            likelihoods[head.name], known[head.name] = likelihood, mask
    return Design(x / spread, spread, model.factors, likelihoods, known, present)


def choose(design: Design, task: str, params: Penalty, seed: int) -> Choice:
    """Penalty and fit of one task, in the units of ``design.x``.

    Where labels are too few for inner folds the largest penalty is taken, and scores are NaN.
    """
    likelihood, known = design.likelihoods[task], design.known[task]
    folds = min(params.folds, smallest_group(likelihood, known))
    use = known.astype(float)
    l1_ratio, factors = params.l1_ratio, design.factors
    if folds < 2:
        top = penalty_grid(design.x, likelihood, l1_ratio=l1_ratio, factors=factors, use=use, count=1)
        fit = fit_path(design.inputs, likelihood, top, l1_ratio=l1_ratio, use=use).fit(0)
        nowhere, everyone = np.full(len(use), -1), fit.outputs(design.x)[:, :, None]
        return Choice(float(top[0]), fit, top, np.array([math.nan]), math.nan, False, nowhere, everyone)
    grid = penalty_grid(
        design.x, likelihood, l1_ratio=l1_ratio, factors=factors, use=use, count=params.penalties
    )
    return choose_penalty(
        design.inputs, likelihood, l1_ratio=l1_ratio, penalties=grid, use=use, folds=folds, seed=seed
    )


@dataclass(frozen=True)
class Distance:
    """How far a linear model is from its optimum for one task.

    Attributes
    ----------
    penalty
        Ridge penalty chosen by inner cross-validation on the training patients.
    objective
        Mean training loss and penalty of the model, minus the least possible: 0 or more.
    train, val
        Mean loss on training and inner validation patients, minus that of the optimum; NaN without labels.
    """

    penalty: float
    objective: float
    train: float
    val: float


def distances(
    model: MultiTaskModel, targets: Targets, train: CaseList, val: CaseList, recipe: Recipe, *, seed: int
) -> Mapping[str, Distance]:
    """Task → distance of a linear model, however it was fitted, from the optimum on the training patients."""
    design = design_of(model, targets, train, recipe.training)
    held = design_of(model, targets, val, recipe.training)
    result = {}
    for head, layer in zip(targets.heads, model.heads, strict=True):
        if head.name not in design.likelihoods:
            continue
        choice = choose(design, head.name, penalty_of(recipe), seed)
        now = read_head(layer, head)  # type: ignore[arg-type]
        now = LinearFit(now.weights * design.spread[:, None], now.intercept)
        factors = np.ones(design.x.shape[1]) if design.factors is None else design.factors
        loss, best = (_loss(design, head.name, fit) for fit in (now, choice.fit))
        penalty, least = (
            0.5 * choice.penalty * float((factors[:, None] * fit.weights**2).sum())
            for fit in (now, choice.fit)
        )
        raw = [
            LinearFit(f.weights / design.spread[:, None] * held.spread[:, None], f.intercept)
            for f in (now, choice.fit)
        ]
        val_loss, val_best = (_loss(held, head.name, fit) for fit in raw)
        result[head.name] = Distance(
            choice.penalty, loss + penalty - best - least, loss - best, val_loss - val_best
        )
    return result


def _loss(design: Design, task: str, fit: LinearFit) -> float:
    if task not in design.likelihoods:
        return math.nan
    eta = fit.outputs(design.x)[:, :, None]
    return float(design.likelihoods[task].at(eta, design.known[task][:, None].astype(float)).value[0])
