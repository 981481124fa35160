"""Modulation of branches on real gliomas: does it gain anything over training them as they are?

``gptomic`` on PORPOISE's GBMLGG: an omics branch (200 components of RNA, CNV, mutations), an image branch over the
published risk of MCAT's attention model (a bag with one tile of width 1, standardised without labels; its models were
trained on the tested patients of other folds, so that whatever is learned on it leaks mildly, equally for all methods),
no covariates, as in the paper, fusion by concatenation, in one row by the Kronecker product. One full-batch step an
epoch, the recipe of :mod:`benchmarks.linear_baselines`; everything but the modulation is the same, with the parameters
that its entry has by default. Five published folds, five seeds.

Harrell's C per fold and seed. ``minus_none``: the difference to the same model without modulation, influence values of
each patient averaged over seeds, 1.5 V and the variance of the seeds' mean; ``corrected_t`` stands beside it, over the
25 pairs of fold and seed. ``p_pairs`` is corrected for all pairs of methods (max-T), ``pairs`` what may be best.
``verdict``: a gain or a loss where the interval leaves 0 out and ``p_pairs`` is below .05.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.linear_baselines import NETWORK, RNA, trained_fold
from benchmarks.tcga_cases import OMICS, Patients, read_patients, with_risk
from benchmarks.tcga_scores import FoldRisks, RowStore, Scores, Z
from benchmarks.tcga_survival import parser_of, prepared, write_result
from equipoise.datasets.omics.params import TableParams
from equipoise.platform.evaluation.influence import CellMean
from equipoise.platform.evaluation.intervals import PAIR_FACTOR, corrected_t
from equipoise.platform.evaluation.multiple_comparisons import Contrasts, compare_all
from equipoise.platform.training.params import Recipe

#: Row → fusion and modulation.
METHODS = {
    "none": ("concat", "none"),
    "gradmod": ("concat", "gradmod"),
    "ogm_ge": ("concat", "ogm_ge"),
    "aux_losses": ("concat", "aux_losses"),
    "modality_dropout": ("concat", "modality_dropout"),
    "rank_distillation": ("concat", "rank_distillation"),
    "kronecker, none": ("kronecker", "none"),
}
SEEDS = (1, 2, 3, 4, 5)


def recipe_of(method: str, seed: int) -> Recipe:
    """The model of a row."""
    fusion, modulation = METHODS[method]
    tables = TableParams.model_validate({"rna": RNA | {"components": 200}})
    model = {
        "image": "mean_pool",
        "image_params": {"layers": 1, "dim": 8, "dropout": 0.0},
        "dim": 32,
        "layers": 1,
        "snn_layers": 1,
        "dropout": 0.5,
        "input_dropout": 0.2,
        "output_scale": 0.1,
        "fusion": fusion,
        "modulation": modulation,
    }
    training = NETWORK.training.model_copy(update={"members": 1})
    return Recipe(model="gptomic", model_params=model, training=training, tables=tables, seed=seed)


def rows_of(patients: Patients, store: RowStore, folder: Path, method: str) -> list[list[FoldRisks]]:
    """Per seed, the folds."""
    found = []
    for seed in SEEDS:
        recipe, of_seed = recipe_of(method, seed), []
        for fold in patients.folds:

            def fit(recipe: Recipe = recipe, fold: Any = fold, seed: int = seed) -> FoldRisks:
                place = folder / method / str(seed)
                path, risks = trained_fold(recipe, patients.task, patients.cases, fold, place)
                return FoldRisks(risks, notes=coefficients(path))

            part = f"{seed}-{fold.index}"
            settings = {"recipe": recipe.model_dump(mode="json")}
            of_seed.append(store.get(patients.name, f"gptomic {method}", part, settings, fit))
        found.append(of_seed)
    return found


def coefficients(folder: Path) -> dict[str, float]:
    """Mean and smallest coefficient of each branch over epochs, and its mean ratio."""
    import pandas as pd

    history = pd.read_csv(folder / "history.csv")
    notes: dict[str, float] = {}
    for column in history:
        if column.startswith("coefficient/"):
            notes |= {
                f"{column} mean": float(history[column].mean()),
                f"{column} least": float(history[column].min()),
            }
        elif column.startswith("rho/"):
            notes[f"{column} mean"] = float(history[column].mean())
    return notes


def over_seeds(scores: Scores, rows: Sequence[Sequence[FoldRisks]]) -> list[CellMean]:
    """Per seed, the mean over folds."""
    return [scores.mean([fold.risks for fold in folds]) for folds in rows]


def comparison(one: Sequence[CellMean], other: Sequence[CellMean]) -> dict[str, Any]:
    """Difference of two methods over the same folds and seeds."""
    apart = [a.minus(b) for a, b in zip(one, other, strict=True)]
    differences = [d for d in apart if d is not None]
    values = np.array([d.value for d in differences])
    influence = np.mean([d.by_repeat[0] for d in differences], axis=0)
    variance = PAIR_FACTOR * float((influence**2).sum()) + float(values.var(ddof=1)) / len(values)
    mean, se = float(values.mean()), math.sqrt(variance)
    test = corrected_t(np.concatenate([d.fold_means for d in differences]), differences[0].ratio)
    low, high = mean - Z * se, mean + Z * se
    return {
        "difference": mean,
        "low": low,
        "high": high,
        "corrected_t": {"se": test.se, "p": test.p},
    }


def verdict(found: dict[str, Any]) -> str:
    """What a difference shows, corrected for all pairs of methods."""
    if found["p_pairs"] >= 0.05:
        return "no gain shown"
    return "gain" if found["low"] > 0 else "loss" if found["high"] < 0 else "no gain shown"


def main() -> None:
    """All rows, or some."""
    parser = parser_of(__doc__ or "")
    parser.add_argument(
        "--methods", nargs="*", choices=METHODS, default=list(METHODS), help="none among them"
    )
    asked = parser.parse_args()
    if not prepared(asked):
        return
    started, load = time.perf_counter(), os.getloadavg()[0]
    store, means, rows = RowStore(asked.rows), {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        patients = with_standardised_risks(read_patients(asked.data, "GBMLGG", Path(temporary)))
        scores = Scores(patients.labels)
        for method in asked.methods:
            rows[method] = rows_of(patients, store, Path(temporary), method)
            means[method] = over_seeds(scores, rows[method])
            values = [mean.value for mean in means[method]]
            print(f"{method}: {np.mean(values):.4f} ± {np.std(values, ddof=1):.4f} over seeds", flush=True)
    figures: dict[str, dict[str, Any]] = {}
    for method, of_seeds in means.items():
        values = [mean.value for mean in of_seeds]
        notes = [fold.notes for folds in rows[method] for fold in folds]
        figures[method] = {
            "c": float(np.mean(values)),
            "seed_sd": float(np.std(values, ddof=1)),
            "within_lgg_c": float(
                np.mean(
                    [
                        scores.mean([f.risks for f in folds], among=patients.groups["LGG"]).value
                        for folds in rows[method]
                    ]
                )
            ),
            "branches": {key: float(np.nanmean([note[key] for note in notes])) for key in notes[0]},
        }
        if method != "none":
            figures[method]["minus_none"] = comparison(of_seeds, means["none"])
    together = compare_all(list(means), {"OS": contrasts(means, scores)})["OS"]
    for method in list(means)[1:]:
        found = figures[method]["minus_none"]
        found["p_pairs"] = float(together.p[together.names.index(method), together.names.index("none")])
        found["verdict"] = verdict(found)
    best = {"may_be_best": together.best_set, "separated_pairs": together.separated}
    write_result("tcga_modulation", {"seeds": len(SEEDS), "methods": figures, "pairs": best}, started, load)


def contrasts(means: dict[str, list[CellMean]], scores: Scores) -> Contrasts:
    """All methods for the max-T comparison: influence averaged over seeds, 1.5 V, and the variance of seeds' means."""
    by_seed = np.array([[mean.value for mean in of] for of in means.values()])
    influence = np.stack([np.mean([mean.by_repeat[0] for mean in of], axis=0) for of in means.values()])
    chance = np.diag(by_seed.std(axis=1, ddof=1) / math.sqrt(by_seed.shape[1]))
    directions = np.hstack([math.sqrt(PAIR_FACTOR) * influence, chance])
    events = sum(event for _, event in scores.labels.values())
    folds = len(next(iter(means.values()))[0].fold_means)
    units = (*scores.labels, *(f"seeds of {method}" for method in means))
    return Contrasts(by_seed.mean(axis=1), directions, units, float(events - folds))


def with_standardised_risks(patients: Patients) -> Patients:
    """Omics, and image risks with mean 0 and standard deviation 1 over all patients: no label is read."""
    risks = {p: float(case.bag[0, 0]) for p, case in patients.cases.items()}
    mean, spread = (float(f(list(risks.values()))) for f in (np.mean, np.std))
    kept = patients.only((*OMICS, "wsi"))
    cases = {p: with_risk(case, (risks[p] - mean) / spread) for p, case in kept.items()}
    return Patients(patients.name, cases, patients.task, patients.folds, patients.covariates, patients.groups)


if __name__ == "__main__":
    main()
