"""Do intervals of cross-validated metrics cover, and do comparisons keep their error? SYNTHETIC.

Studies are simulated whose truth is known (Gaussian features, the classes differ in their means), every study is
cross-validated in five stratified folds, and the product's own functions make the interval and the test. Counted is

- how often the nominal 95 % interval of a mean AUROC contains the AUROC of *these five models* on new patients, and the
  mean AUROC of *the procedure* that trained them, for ridge with intercept and a small network at 5, 8 and 20
  positives a fold; beside it the percentile bootstrap that was used before, for its coverage and as the unit of
  width;
- how often two equal models, and any two of sixteen equal models, are called different, and how often models that do
  differ are told apart on 200 patients.

The AUROC of a linear score w is known exactly, Φ(w·μ / √(2 w·w)); that of a network is its AUROC on 20,000 new
patients. Keys: ``cv_coverage_models`` and ``cv_coverage_procedure`` (means over the six cells), ``cv_coverage_min``
(the worst cell of either), ``cv_width_models`` and ``cv_width_procedure`` (mean width over that of the bootstrap),
``pair_null_rate`` (worst of three sizes), ``pair_power`` (mean of two cells), ``fwer_best`` (worst of two sizes),
``best_separated`` (share of fifteen pairs).
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

from equipoise.platform.evaluation import metrics
from equipoise.platform.evaluation.influence import Cell, CellMean, auroc_influence
from equipoise.platform.evaluation.intervals import (
    bootstrap_weights,
    influence_interval,
    pair_factor,
    paired_test,
    percentile_interval,
)
from equipoise.platform.evaluation.multiple_comparisons import Contrasts, compare_all

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

FOLDS = 5
#: Patients and positives: 5, 8 and 20 positives a fold.
SIZES = ((100, 25), (200, 40), (500, 100))
FEATURES, SHIFT = 8, 0.3
METHODS = 16


def main() -> None:
    """Print the figures, keep them beside this file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=int, default=400, help="simulated studies per cell")
    parser.add_argument("--seed", type=int, default=12)
    arguments = parser.parse_args()
    load, started = os.getloadavg()[0], time.time()
    figures = intervals(arguments.runs, arguments.seed) | comparisons(arguments.runs, arguments.seed)
    figures |= {
        "synthetic": True,
        "runs": arguments.runs,
        "seconds": round(time.time() - started),
        "load_before": round(load, 1),
        "cores": os.cpu_count(),
        "versions": {name: version(name) for name in ("torch", "numpy", "scipy")}
        | {"python": platform.python_version()},
    }
    results = Path(__file__).parent / "results"
    (results / "coverage.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures))


def stratified_folds(rng: np.random.Generator, positives: int, n: int) -> Ints:
    """``[n]``: fold of each patient; the positives come first."""
    return np.r_[rng.permutation(positives) % FOLDS, rng.permutation(n - positives) % FOLDS]


def ridge(x_RND: Floats, y_N: Floats, train_RN: NDArray[np.bool_], penalty: float = 1.0) -> Floats:
    """Weights ``[R, D]`` of ridge regressions with intercept on ±1 labels, each on its training patients."""
    use = train_RN[:, :, None].astype(float)
    count = train_RN.sum(1)[:, None]
    x = (x_RND - (x_RND * use).sum(1, keepdims=True) / count[:, :, None]) * use
    label = 2 * y_N - 1
    target = (label - (label * train_RN).sum(1, keepdims=True) / count) * train_RN
    gram = x.transpose(0, 2, 1) @ x + penalty * np.eye(x.shape[2])
    return np.linalg.solve(gram, (x.transpose(0, 2, 1) @ target[:, :, None]))[:, :, 0]


def network(
    x_RND: Floats, y_N: Floats, train_RN: NDArray[np.bool_], seed: int, steps: int = 60
) -> Callable[[Floats], Floats]:
    """R networks of 8 tanh units, trained side by side by 60 steps of Adam; returns their scoring function.

    The function takes patients ``[R, n, D]`` or ``[n, D]`` and returns scores ``[R, n]``.
    """
    import torch

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(seed)
    r, _, d = x_RND.shape
    shapes = ((r, d, 8), (r, 1, 8), (r, 8, 1), (r, 1, 1))
    parameters = [
        (torch.randn(s, generator=generator) * (scale / np.sqrt(s[1]))).requires_grad_()
        for s, scale in zip(shapes, (1.0, 0.0, 1.0, 0.0), strict=True)
    ]
    x = torch.as_tensor(x_RND, dtype=torch.float32)
    y = torch.as_tensor(y_N, dtype=torch.float32).expand(r, -1)
    use = torch.as_tensor(train_RN, dtype=torch.float32)
    optimizer = torch.optim.Adam(parameters, lr=0.05)

    def forward(x: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(x @ parameters[0] + parameters[1])
        return (hidden @ parameters[2] + parameters[3])[:, :, 0]

    for _ in range(steps):
        optimizer.zero_grad()
        loss = torch.nn.functional.binary_cross_entropy_with_logits(forward(x), y, use, reduction="none")
        (loss.sum(1) / use.sum(1)).sum().backward()
        optimizer.step()

    def score(patients: Floats) -> Floats:
        with torch.no_grad():
            return np.asarray(forward(torch.as_tensor(patients, dtype=torch.float32)), float)

    return score


def truth_of_ridge(weights: Floats, shift: Floats) -> Floats:
    """AUROC of linear scores ``[..., D]`` on new patients."""
    return np.asarray(norm.cdf(weights @ shift / np.sqrt(2 * (weights**2).sum(-1))))


def cross_validate(
    learner: str, n: int, positives: int, runs: int, seed: int, new_patients: int = 20_000
) -> tuple[Floats, Ints, Floats]:
    """Scores ``[runs, n]`` of test patients, their folds ``[runs, n]``, and the truth ``[runs, FOLDS]`` of the
    models."""
    rng = np.random.default_rng([seed, n])
    y = (np.arange(n) < positives).astype(float)
    shift = np.full(FEATURES, SHIFT)
    folds = np.stack([stratified_folds(rng, positives, n) for _ in range(runs)])
    x = rng.normal(size=(runs, n, FEATURES)) + y[:, None] * shift
    half = new_patients // 2
    new = rng.normal(size=(new_patients, FEATURES))
    new[:half] += shift
    scores, truth = np.empty((runs, n)), np.empty((runs, FOLDS))
    for k in range(FOLDS):
        if learner == "ridge":
            weights = ridge(x, y, folds != k)
            fold_scores, truth[:, k] = np.einsum("rnd,rd->rn", x, weights), truth_of_ridge(weights, shift)
        else:
            score = network(x, y, folds != k, seed=1000 * seed + k)
            fold_scores = score(x)
            ranked = rankdata(score(new), axis=1)[:, :half].sum(1)
            truth[:, k] = ranked / half**2 - (half + 1) / (2 * half)
        scores = np.where(folds == k, fold_scores, scores)
    return scores, folds, truth


def mean_over_folds(y: Floats, score: Floats, fold: Ints) -> CellMean:
    """The product's mean AUROC over test folds, with its influence values."""
    cells = []
    for k in range(FOLDS):
        (index,) = np.nonzero(fold == k)
        value, influence = auroc_influence(y[index], score[index])
        cells.append(Cell(float(value), influence, index, 0, k))
    mean = CellMean.of(cells, len(y))
    assert mean is not None
    return mean


def bootstrap_before(y: Floats, score: Floats, fold: Ints, seed: int) -> tuple[float, float]:
    """The percentile bootstrap stratified within fold and class, as metrics had it until influence values came."""
    weights = bootstrap_weights(2 * fold + y.astype(int), 300, np.random.SeedSequence(seed))
    parts = [metrics.auroc(y[fold == k], score[fold == k], weights[:, fold == k]) for k in range(FOLDS)]
    interval = percentile_interval(np.mean(parts, axis=0), 0.95, "")
    return interval.low, interval.high


def covered(low: float, high: float, truth: float) -> bool:
    """Whether an interval contains the truth."""
    return bool(low <= truth <= high)


def interval_cell(
    learner: str, n: int, positives: int, runs: int, seed: int, new_patients: int = 20_000
) -> dict[str, float]:
    """Coverage and widths of one cell."""
    y = (np.arange(n) < positives).astype(float)
    scores, folds, truth = cross_validate(learner, n, positives, runs, seed, new_patients)
    procedure = float(truth.mean())
    rows = []
    for r in range(runs):
        mean = mean_over_folds(y, scores[r], folds[r])
        new = influence_interval(mean, 0.95, few=positives // FOLDS < 5)
        low, high = bootstrap_before(y, scores[r], folds[r], r)
        models = float(truth[r].mean())
        rows.append(
            (
                covered(new.low, new.high, models),
                covered(new.low_procedure, new.high_procedure, procedure),
                new.high - new.low,
                new.high_procedure - new.low_procedure,
                covered(low, high, models),
                covered(low, high, procedure),
                high - low,
            )
        )
    found = np.array(rows, float).mean(0)
    return {
        "models": found[0],
        "procedure": found[1],
        "width_models": found[2] / found[6],
        "width_procedure": found[3] / found[6],
        "bootstrap_models": found[4],
        "bootstrap_procedure": found[5],
        "auroc": procedure,
    }


def intervals(runs: int, seed: int) -> dict[str, Any]:
    """Coverage of both intervals over learners and sizes."""
    cells = {}
    for learner in ("ridge", "network"):
        for n, positives in SIZES:
            cell = interval_cell(learner, n, positives, runs, seed)
            cells[f"{learner}_{n}_{positives}"] = {k: round(float(v), 4) for k, v in cell.items()}
            print(f"{learner}, {n} patients, {positives} positive: {cell}", flush=True)

    def mean(key: str) -> float:
        return round(float(np.mean([cell[key] for cell in cells.values()])), 4)

    return {
        "cv_coverage_models": mean("models"),
        "cv_coverage_procedure": mean("procedure"),
        "cv_coverage_min": min(min(c["models"], c["procedure"]) for c in cells.values()),
        "cv_width_models": mean("width_models"),
        "cv_width_procedure": mean("width_procedure"),
        "bootstrap_coverage_models": mean("bootstrap_models"),
        "bootstrap_coverage_procedure": mean("bootstrap_procedure"),
        "bootstrap_coverage_min": min(
            min(c["bootstrap_models"], c["bootstrap_procedure"]) for c in cells.values()
        ),
        "cells": cells,
    }


def methods_on_shared_patients(
    n: int, positives: int, runs: int, methods: int, strength: Floats, seed: int
) -> tuple[Floats, Ints, Floats]:
    """Ridges of which each sees 4 features of all and 4 of its own: scores ``[runs, M, n]``, folds, truth ``[runs,
    M]``.

    ``strength [M]`` is the shift of a method's own features; the shared ones have ``SHIFT``.
    """
    rng = np.random.default_rng([seed, n, methods])
    y = (np.arange(n) < positives).astype(float)
    folds = np.stack([stratified_folds(rng, positives, n) for _ in range(runs)])
    shared = rng.normal(size=(runs, n, 4)) + y[:, None] * SHIFT
    scores = np.zeros((runs, methods, n))
    truth = np.zeros((runs, methods))
    for m in range(methods):
        own = rng.normal(size=(runs, n, 4)) + y[:, None] * strength[m]
        x = np.concatenate([shared, own], axis=2)
        shift = np.r_[np.full(4, SHIFT), np.full(4, strength[m])]
        for k in range(FOLDS):
            weights = ridge(x, y, folds != k)
            scores[:, m] = np.where(folds == k, np.einsum("rnd,rd->rn", x, weights), scores[:, m])
            truth[:, m] += truth_of_ridge(weights, shift) / FOLDS
    return scores, folds, truth


def pair_rejections(n: int, positives: int, runs: int, strength: Floats, seed: int) -> tuple[float, float]:
    """Share of studies in which two models are called different at the 5 % level, and their true difference."""
    y = (np.arange(n) < positives).astype(float)
    scores, folds, truth = methods_on_shared_patients(n, positives, runs, 2, strength, seed)
    rejected = 0
    for r in range(runs):
        first, second = (mean_over_folds(y, s, folds[r]) for s in scores[r])
        apart = first.minus(second)
        assert apart is not None
        rejected += paired_test(apart).p < 0.05
    return rejected / runs, float((truth[:, 0] - truth[:, 1]).mean())


def many_rejections(n: int, positives: int, runs: int, strength: Floats, seed: int) -> dict[str, float]:
    """Sixteen methods: studies with any pair apart, share of pairs of the first method apart, size of the best set."""
    y = (np.arange(n) < positives).astype(float)
    scores, folds, truth = methods_on_shared_patients(n, positives, runs, len(strength), strength, seed)
    names = [str(m) for m in range(len(strength))]
    any_pair, first, best_set, without_best = [], [], [], []
    for r in range(runs):
        means = [mean_over_folds(y, s, folds[r]) for s in scores[r]]
        factor = np.sqrt(pair_factor(means[0], fixed=False))
        contrasts = Contrasts(
            np.array([m.value for m in means]),
            np.stack([factor * m.directions for m in means]),
            tuple(range(n)),
            positives - FOLDS,
        )
        result = compare_all(names, {"task": contrasts}, seed=r, draws=1000)["task"]
        any_pair.append(result.separated > 0)
        first.append(float((result.p[0, 1:] < 0.05).mean()))
        best_set.append(len(result.best_set))
        without_best.append("0" not in result.best_set)
    return {
        "any": float(np.mean(any_pair)),
        "first": float(np.mean(first)),
        "best_set": float(np.mean(best_set)),
        "first_excluded": float(np.mean(without_best)),
        "ahead": float((truth[:, 0] - truth[:, 1:].mean(1)).mean()),
    }


def comparisons(runs: int, seed: int) -> dict[str, Any]:
    """Errors and power of the test of a pair and of all pairs."""
    equal = np.full(METHODS, SHIFT)
    pair_null = {f"{n}_{p}": pair_rejections(n, p, 2 * runs, equal[:2], seed)[0] for n, p in SIZES}
    # The better model has what the other has and more, or the other less; both differ by .069.
    stronger = {"stronger": np.array([0.475, SHIFT]), "weaker": np.array([0.334, 0.12])}
    power = {name: pair_rejections(200, 40, 4 * runs, strength, seed) for name, strength in stronger.items()}
    many = {f"{n}_{p}": many_rejections(n, p, runs, equal, seed) for n, p in SIZES[:2]}
    ahead = equal.copy()
    ahead[0] = 0.79
    best = many_rejections(200, 40, runs, ahead, seed)
    figures = {
        "pair_null_rate": max(pair_null.values()),
        "pair_null": pair_null,
        "pair_power": round(float(np.mean([rejected for rejected, _ in power.values()])), 4),
        "pair_power_cells": {
            name: {"power": rejected, "difference": round(apart, 4)}
            for name, (rejected, apart) in power.items()
        },
        "fwer_best": max(cell["any"] for cell in many.values()),
        "many_null": many,
        "best_separated": round(best["first"], 4),
        "best_ahead": round(best["ahead"], 4),
        "best_set": round(best["best_set"], 2),
        "best_excluded": best["first_excluded"],
    }
    print(figures, flush=True)
    return figures


if __name__ == "__main__":
    main()
