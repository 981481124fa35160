"""Second open question of Path-GPTOmic: the best weight of image against omics, per cohort and per subgroup.

Risk of a patient: w · image + (1 − w) · omics, both standardised on the training patients of the fold. Omics are the
late fusion of RNA, CNV and mutations of :mod:`benchmarks.tcga_survival`. The image risk of GBMLGG is MCAT's attention
model, out of fold (its models were trained on the tested patients of other folds: weights that are *fitted* on it leak
mildly). For KIRC and LUAD there is only HyPAL-Surv's risk, which has read image **and** RNA, on other splits; UCEC has
no table of omics here, and its risk stands alone.

``best`` is the w with the highest mean concordance of the folds among the patients of a subgroup, ``low`` and ``high``
its 95 % percentile bootstrap over patients, drawn within fold and event; ``flat`` the weights whose concordance is
within .005 of the best. A best weight is chosen on the tested patients, so that its concordance is optimistic;
``gain`` is that of weights chosen on the other four folds, against omics alone (paired influence values, 1.5 V).
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.tcga_cases import Patients, hypal_risks, read_patients
from benchmarks.tcga_scores import RowStore, Scores, weighted_sum
from benchmarks.tcga_survival import Cohort, parser_of, prepared, write_result

GRID = np.linspace(0, 1, 21)
DRAWS = 1000
OMICS_ROW = "late ridge, omics"
#: Concordance that a weight may lose and still count as equally good.
FLAT = 0.005
#: Events below which a subgroup is left out.
FEWEST_EVENTS = 15

Risks = Mapping[str, float]


class Pairs:
    """Comparable pairs of the patients of a fold, and which of them each weight puts in the right order."""

    def __init__(self, labels: Mapping[str, tuple[float, float]], image: Risks, omics: Risks) -> None:
        self.patients = list(image)
        days, event = np.array([labels[p] for p in self.patients], float).reshape(-1, 2).T
        self.event = event
        earlier, later = np.nonzero(
            (event[:, None] == 1) & ((days[:, None] < days) | ((days[:, None] == days) & (event == 0)))
        )
        self.earlier, self.later = earlier, later
        x, y = (np.array([of[p] for p in self.patients]) for of in (image, omics))
        apart = GRID[:, None] * (x[earlier] - x[later]) + (1 - GRID[:, None]) * (y[earlier] - y[later])
        self.right = (0.5 + 0.5 * np.sign(apart)).T  # [pairs, weights]

    def concordance(self, counts: NDArray[np.float64]) -> NDArray[np.float64]:
        """``[B, weights]`` for ``[B, patients]`` copies of each patient; NaN without a pair."""
        weight = counts[:, self.earlier] * counts[:, self.later]
        total = weight.sum(axis=1, keepdims=True)
        with np.errstate(invalid="ignore"):
            return (weight @ self.right) / np.where(total > 0, total, np.nan)

    def draw(self, rng: np.random.Generator, draws: int) -> NDArray[np.float64]:
        """``[B, patients]`` copies, drawn with replacement among those with and those without an event."""
        counts = np.zeros((draws, len(self.patients)))
        for seen in (0, 1):
            (inside,) = np.nonzero(self.event == seen)
            if len(inside):
                counts[:, inside] = rng.multinomial(len(inside), np.full(len(inside), 1 / len(inside)), draws)
        return counts


def best_weight(
    scores: Scores, image: Sequence[Risks], omics: Sequence[Risks], among: Collection[str], seed: int
) -> dict[str, Any]:
    """Best weight of the image with its interval among some patients, and the curve of all weights."""
    rng = np.random.default_rng(seed)
    folds = []
    for x, y in zip(image, omics, strict=True):
        both = [p for p in x if p in y and p in among]
        folds.append(Pairs(scores.labels, {p: x[p] for p in both}, {p: y[p] for p in both}))
    folds = [fold for fold in folds if len(fold.earlier)]
    curve = np.mean([fold.concordance(np.ones((1, len(fold.patients))))[0] for fold in folds], axis=0)
    drawn = np.nanmean([fold.concordance(fold.draw(rng, DRAWS)) for fold in folds], axis=0)
    replicates = GRID[drawn.argmax(axis=1)]
    low, high = np.quantile(replicates, [0.025, 0.975])
    level = GRID[curve > curve.max() - FLAT]
    return {
        "patients": sum(len(fold.patients) for fold in folds),
        "events": int(sum(fold.event.sum() for fold in folds)),
        "best": float(GRID[curve.argmax()]),
        "low": float(low),
        "high": float(high),
        "flat": [float(level.min()), float(level.max())],
        "c_best": float(curve.max()),
        "c_image": float(curve[-1]),
        "c_omics": float(curve[0]),
        "c_equal": float(curve[len(GRID) // 2]),
    }


def gain_of_chosen(scores: Scores, image: Sequence[Risks], omics: Sequence[Risks]) -> dict[str, Any]:
    """Sums with weights that the other folds chose, against omics alone."""
    curves = []
    for x, y in zip(image, omics, strict=True):
        fold = Pairs(scores.labels, x, y)
        curves.append(fold.concordance(np.ones((1, len(fold.patients))))[0])
    chosen = [
        float(GRID[np.mean([c for j, c in enumerate(curves) if j != k], axis=0).argmax()])
        for k in range(len(curves))
    ]
    sums = [weighted_sum([x, y], [w, 1 - w]) for x, y, w in zip(image, omics, chosen, strict=True)]
    return scores.difference(sums, omics) | {"chosen": chosen, "c": scores.mean(sums).value}


def subgroups(patients: Patients) -> dict[str, set[str]]:
    """Everybody, classes, halves by age, sexes, and early and late stages."""
    columns = next(iter(patients.cases.values())).columns["clinical"]
    rows = {
        p: dict(zip(columns, case.omics["clinical"].tolist(), strict=True))
        for p, case in patients.cases.items()
    }
    age = {p: row["age"] for p, row in rows.items()}
    middle = float(np.nanmedian(list(age.values())))
    groups = {"all": set(rows)} | patients.groups
    groups["younger"] = {p for p, value in age.items() if value < middle}
    groups["older"] = {p for p, value in age.items() if value >= middle}
    for name, value in (("female", 1), ("male", 0)):
        groups[name] = {p for p, row in rows.items() if row[f"is_female={value}"] == 1}
    if "stage" in columns:
        groups["stage I-II"] = {p for p, row in rows.items() if row["stage"] <= 2}
        groups["stage III-IV"] = {p for p, row in rows.items() if row["stage"] >= 3}
    return {name: members for name, members in groups.items() if members}


def figures_of(cohort: Cohort, risks: Risks) -> dict[str, Any]:
    """Best weights of a cohort: everybody, and its subgroups with enough events."""
    image, omics = [], []
    for fold, row in zip(cohort.patients.folds, cohort.rows[OMICS_ROW], strict=True):
        seen = np.array([risks[p] for p in (*fold.train, *fold.val) if p in risks])
        own = row.standardised()
        both = [p for p in fold.test if p in risks]
        image.append({p: (risks[p] - seen.mean()) / seen.std() for p in both})
        omics.append({p: own[p] for p in both})
    events = {p for p, (_, event) in cohort.patients.labels.items() if event and p in risks}
    groups = {
        name: best_weight(cohort.scores, image, omics, members, seed=0)
        for name, members in subgroups(cohort.patients).items()
        if len(members & events) >= FEWEST_EVENTS
    }
    return {"groups": groups, "gain": gain_of_chosen(cohort.scores, image, omics)}


def main() -> None:
    """GBMLGG with an image risk; KIRC, LUAD and UCEC with one of image and RNA."""
    asked = parser_of(__doc__ or "").parse_args()
    if not prepared(asked):
        return
    started, load = time.perf_counter(), os.getloadavg()[0]
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name, source in (("GBMLGG", "image"), ("KIRC", "image and RNA"), ("LUAD", "image and RNA")):
            patients = read_patients(asked.data, name, Path(temporary))
            cohort = Cohort(patients, RowStore(asked.rows), Path(temporary))
            cohort.run([OMICS_ROW])
            risks = (
                {p: float(case.bag[0, 0]) for p, case in patients.cases.items() if len(case.bag)}
                if source == "image"
                else hypal_risks(asked.data, name)
            )
            found[name] = {"source": source} | figures_of(cohort, risks)
            for group, row in found[name]["groups"].items():
                print(f"{name} {group}: {row['best']:.2f} [{row['low']:.2f}, {row['high']:.2f}]", flush=True)
    found["UCEC"] = {"source": "image and RNA", "c_image": ucec_c(asked.data)}
    write_result("tcga_weights", {"cohorts": found}, started, load)


def ucec_c(data: Path) -> float:
    """Concordance of HyPAL-Surv's risk of UCEC, by its own labels."""
    import pandas as pd

    from equipoise.platform.evaluation.metrics import harrell_c

    table = pd.read_csv(data / "tcga" / "hypal" / "hypal_ucec.csv")
    return float(harrell_c(table["time"], table["event"], table["mean_hazard"]))


if __name__ == "__main__":
    main()
