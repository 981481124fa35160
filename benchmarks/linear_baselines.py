"""Linear baselines on real TCGA patients, and what a small network adds to them.

PORPOISE's tables of BRCA, GBMLGG, KIRC, KIRP, LUAD and LUSC with its own five folds of patients. Everything is fitted
on the training patients of a fold through the functions of the product: transforms of tables, the exact solver of
``elastic_net`` and ``clinical``, the training loop for the network. No setting is chosen on test patients; penalties
come from inner folds, the network's epochs from its members' held-out parts.

``gbmlgg_all_c``: elastic net on RNA, CNV, mutations, age, sex and histology. ``kirc_rna_c``: elastic net on RNA alone.
``clinical_minus_lifelines``: largest distance over cohorts between the mean C-index of the model ``clinical`` (age and
sex) and lifelines' ``CoxPHFitter`` on the same columns with the same penalty; without any penalty it stands beside.
``network_minus_ridge`` and ``network_worst``: mean and smallest difference over cohorts between the network (ensemble
of inner folds, full-batch Cox) and ridge on the same RNA. ``seconds_per_fold``: CPU seconds of the slowest cohort for
all fits of a fold, on one thread. ``batch_*``: whether the table of RNA carries its batch. ``gbmlgg_within_*``: C-index
among patients of one class, GBM or LGG, where knowing the class helps nobody.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml

from equipoise.datasets.cohorts.cases import Case, CaseReader
from equipoise.datasets.cohorts.cohort import Cohorts
from equipoise.datasets.cohorts.splits import Fold
from equipoise.datasets.omics.params import TableParams
from equipoise.models.base import MultiTaskModel
from equipoise.platform.evaluation.metrics import harrell_c
from equipoise.platform.evaluation.predictions import read_predictions
from equipoise.platform.run.context import read_cohorts
from equipoise.platform.run.loading import load_study
from equipoise.platform.run.table_checks import tables_with_batches
from equipoise.platform.training.batches import CaseList
from equipoise.platform.training.build import build_model
from equipoise.platform.training.crossval import train_fold
from equipoise.platform.training.exact import fit_heads
from equipoise.platform.training.params import Recipe, TrainingParams
from equipoise.platform.training.predict import run_model, task_scores
from equipoise.platform.training.targets import Targets, fit_targets

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
COHORTS = ("BRCA", "GBMLGG", "KIRC", "KIRP", "LUAD", "LUSC")
#: Pairs that were standardised apart and are one cancer elsewhere, and two cohorts that are one table.
TABLES = {"gbmlgg": ("GBMLGG",), "nsclc": ("LUAD", "LUSC"), "rcc": ("KIRC", "KIRP"), "brca": ("BRCA",)}
TASK = "OS"
RNA = {"transform": "log", "clip": None, "clip_standardised": 5}
NETWORK = Recipe(
    model="omics",
    model_params={
        "network": "relu",
        "dim": 32,
        "layers": 1,
        "dropout": 0.5,
        "input_dropout": 0.2,
        "output_scale": 0.1,
    },
    training=TrainingParams(
        epochs=130,
        patience=50,
        lr=3e-3,
        weight_decay=0.01,
        schedule="constant",
        batch="full",
        monitor="added_loss",
        members=5,
        probe=False,
        device="cpu",
    ),
    tables=TableParams.model_validate({"rna": RNA | {"components": 200}}),
    seed=1,
)


def elastic_net(
    modalities: Sequence[str], l1_ratio: float, covariates: Sequence[dict[str, str]] = ()
) -> Recipe:
    """The penalised linear model over these tables."""
    return Recipe(
        model="elastic_net",
        model_params={"modalities": list(modalities), "l1_ratio": l1_ratio},
        tables=TableParams.model_validate({"rna": RNA, "clinical": list(covariates)}),
        seed=1,
    )


def cohorts_of(
    data: Path,
    names: Sequence[str],
    folder: Path,
    *,
    covariates: Sequence[dict[str, Any]] | None = None,
    clinical: Path | None = None,
) -> Cohorts:
    """Patients, survival, omics and covariates of these cohorts, as a study reads them.

    ``clinical`` is a table with more covariates than PORPOISE's own, and ``covariates`` are those to read.
    """

    def cohort(name: str) -> dict[str, Any]:
        table = str(data / "tcga" / "porpoise" / f"tcga_{name.lower()}_all_clean.csv.zip")
        suffixes = {"rna": "_rnaseq", "cnv": "_cnv", "mutation": "_mut"}
        header = pd.read_csv(table, nrows=0).columns
        omics = {
            modality: {"path": table, "suffix": suffix}
            for modality, suffix in suffixes.items()
            if any(column.endswith(suffix) for column in header)
        }
        return {"name": name, "role": "develop", "clinical": str(clinical or table), "omics": omics}

    # PORPOISE's censorship: 1 is censored, 0 has died.
    death = {
        "time": {"column": "survival_months", "unit": "months"},
        "event": {"column": "censorship", "event_value": "0", "censored_value": "1"},
    }
    reads = ["clinical", *sorted({m for name in names for m in cohort(name)["omics"]})]
    study = {
        "version": 1,
        "name": "linear-baselines",
        "cohorts": [cohort(name) for name in names],
        "tasks": [{"name": TASK, "type": "survival", **death}],
        "tables": {"clinical": list(covariates or covariates_of(names))},
        "model": {"kind": "elastic_net", "modalities": reads},
    }
    file = folder / f"{'-'.join(names)}.yaml"
    file.write_text(yaml.safe_dump(study, sort_keys=False))
    return read_cohorts(load_study(file))


def covariates_of(names: Sequence[str]) -> list[dict[str, str]]:
    """Age and sex, and the histology of gliomas, which PORPOISE's table of them names."""
    columns = [{"column": "age", "type": "number"}, {"column": "is_female", "type": "category"}]
    return [*columns, *([{"column": "oncotree_code", "type": "category"}] if "GBMLGG" in names else [])]


def folds_of(data: Path, name: str, patients: Sequence[str]) -> list[Fold]:
    """The published folds; a tenth of the training patients is the part that single fits would stop on."""
    known, folds = set(patients), []
    for k in range(5):
        file = data / "tcga" / "porpoise" / "splits_5foldcv" / f"tcga_{name.lower()}" / f"splits_{k}.csv"
        table = pd.read_csv(file)
        train, test = ([p for p in table[part].dropna() if p in known] for part in ("train", "val"))
        folds.append(
            Fold(0, k, tuple(train[: -len(train) // 10]), tuple(train[-len(train) // 10 :]), tuple(test))
        )
    return folds


def only(cases: dict[str, Case], modalities: Sequence[str]) -> dict[str, Case]:
    """The same patients with these tables alone."""
    return {
        patient: dataclasses.replace(case, omics={m: v for m, v in case.omics.items() if m in modalities})
        for patient, case in cases.items()
        if any(m in case.omics for m in modalities)
    }


def part_of(cases: dict[str, Case], patients: Sequence[str]) -> CaseList:
    """Those of the patients that have a table."""
    return CaseList(cases, tuple(p for p in patients if p in cases))


@dataclasses.dataclass(frozen=True)
class LinearFold:
    """An exact fit on a fold: patient → risk in the test part, how it was fitted, and the fit itself."""

    risks: dict[str, float]
    row: dict[str, float]
    model: MultiTaskModel
    targets: Targets

    @property
    def penalty(self) -> float:
        """The penalty that was chosen."""
        return self.row[f"penalty/{TASK}"]

    def predict(self, cases: CaseList) -> dict[str, float]:
        """Patient → risk."""
        task = self.targets.tasks[0]
        scores = task_scores(task, run_model(self.model, self.targets, cases).outputs[task.head.name])
        return dict(zip(cases.patients, scores[:, 0].tolist(), strict=True))


def linear_fold(recipe: Recipe, task: Any, cases: dict[str, Case], fold: Fold) -> LinearFold:
    """The exact fit on all patients of the fold but those of its test part."""
    train = part_of(cases, (*fold.train, *fold.val))
    targets = fit_targets([task], train, tables=recipe.tables)
    model: Any = build_model(recipe.model, recipe.model_params, targets.shape, targets.heads, seed=0)
    row = fit_heads(model, targets, train, recipe, recipe.seed)
    fitted = LinearFold({}, row, model, targets)
    return dataclasses.replace(fitted, risks=fitted.predict(part_of(cases, fold.test)))


def trained_fold(
    recipe: Recipe, task: Any, cases: dict[str, Case], fold: Fold, folder: Path
) -> tuple[Path, dict[str, float]]:
    """Folder of a fold of the product's training, and patient → risk in its test part."""
    parts = [part_of(cases, part).patients for part in (fold.train, fold.val, fold.test)]
    kept = Fold(fold.repeat, fold.index, *parts)
    keys = dict.fromkeys(cases, "")
    path = train_fold(kept, [task], cases, recipe, folder, features="no tiles", content_keys=keys)
    table = read_predictions(path / "preds.parquet")
    rows = table[table["role"] == "test"]
    return path, dict(zip(rows["patient"], rows["score"], strict=True))


def lifelines_risks(
    task: Any, cases: dict[str, Case], fold: Fold, covariates: Sequence[dict[str, str]], penalty: float
) -> dict[str, float]:
    """Patient → risk by lifelines on the columns that the model ``clinical`` reads.

    Without a penalty one column of each category is left out: all of them add up to a constant.
    """
    from lifelines import CoxPHFitter

    train, test = part_of(cases, (*fold.train, *fold.val)), part_of(cases, fold.test)
    targets = fit_targets([task], train, tables=TableParams.model_validate({"clinical": list(covariates)}))
    transform = targets.tables["clinical"]
    names = list(transform.names)
    first = [next((n for n in names if n.startswith(f"{c['column']}=")), "") for c in covariates]
    kept = names if penalty else [n for n in names if n not in first]

    def frame(part: CaseList) -> pd.DataFrame:
        rows = [transform.apply(case.omics["clinical"], tuple(case.columns["clinical"])) for case in part]
        return pd.DataFrame(np.stack(rows).astype(float), columns=names)[kept]

    columns = frame(train)
    days, event = np.array([case.targets[task.name] for case in train], float).T
    # lifelines takes means over patients where the product takes them over events, and penalises standardised columns.
    of_lifelines = penalty * event.sum() / len(event) / columns.var(ddof=1).to_numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # rare classes: lifelines warns of columns that hardly vary
        fitted = CoxPHFitter(penalizer=of_lifelines if penalty else 1e-6)
        fitted.fit(columns.assign(time=days, event=event), "time", "event")
    risk = fitted.predict_log_partial_hazard(frame(test)).to_numpy()
    return dict(zip(test.patients, risk.tolist(), strict=True))


class Scores:
    """C-indices of the test parts: fold by fold, method by method."""

    def __init__(self, cases: dict[str, Case]) -> None:
        self.labels = {patient: case.targets[TASK] for patient, case in cases.items()}
        self.by_method: dict[str, list[float]] = {}
        self.seconds: list[float] = []

    def add(self, method: str, risks: dict[str, float], among: set[str] | None = None) -> None:
        """One fold; ``among`` restricts the patients who are compared."""
        patients = [p for p in risks if among is None or p in among]
        days, event = np.array([self.labels[p] for p in patients], float).T
        value = float(harrell_c(days, event, [risks[p] for p in patients]))
        self.by_method.setdefault(method, []).append(value)

    def mean(self, method: str) -> float:
        """Mean over the folds in which it exists."""
        return float(np.nanmean(self.by_method[method]))


def cohort_scores(
    data: Path, name: str, folder: Path, folds: int, groups: dict[str, set[str]], part: str
) -> Scores:
    """The methods of a part on one cohort."""
    cohorts = cohorts_of(data, [name], folder)
    reader, task = CaseReader(cohorts, None, role="develop"), cohorts.tasks[0]
    cases = {patient: reader[patient] for patient in cohorts.patients["patient"]}
    rna, clinical = only(cases, ["rna"]), only(cases, ["clinical"])
    covariates = covariates_of([name])
    both = [c for c in covariates if c["column"] != "oncotree_code"]
    classes = [c for c in covariates if c["column"] != "is_female"]
    exact = Recipe(model="clinical", tables=TableParams.model_validate({"clinical": both}), seed=1)
    age = Recipe(model="clinical", tables=TableParams.model_validate({"clinical": classes}), seed=1)
    everything = elastic_net(["rna", "cnv", "mutation", "clinical"], 0.5, covariates)
    scores = Scores(cases)
    for fold in folds_of(data, name, list(cases))[:folds]:
        started = time.process_time()
        own = linear_fold(exact, task, clinical, fold)
        found = {"clinical": own.risks}
        if part == "all":
            found |= {
                "elastic net": linear_fold(elastic_net(["rna"], 0.5), task, rna, fold).risks,
                "ridge": linear_fold(elastic_net(["rna"], 0.0), task, rna, fold).risks,
                "network": trained_fold(NETWORK, task, rna, fold, folder / name)[1],
            }
        if part == "all" and name == "GBMLGG":
            found["all"] = linear_fold(everything, task, cases, fold).risks
            found["age and class"] = linear_fold(age, task, clinical, fold).risks
        scores.seconds.append(time.process_time() - started)
        found["lifelines"] = lifelines_risks(task, clinical, fold, both, own.penalty)
        found["lifelines unpenalised"] = lifelines_risks(task, clinical, fold, both, 0.0)
        for method, risks in found.items():
            scores.add(method, risks)
            for group, members in groups.items():
                scores.add(f"{method} within {group}", risks, members)
        row = ", ".join(f"{method} {scores.by_method[method][-1]:.3f}" for method in found)
        print(f"{name} fold {fold.index}: {row}; {scores.seconds[-1]:.1f} s", flush=True)
    return scores


def figures_of(scores: dict[str, Scores]) -> dict[str, Any]:
    """The keys of the benchmark for which there are scores."""
    clinical = {name: s.mean("clinical") - s.mean("lifelines") for name, s in scores.items()}
    figures: dict[str, Any] = {"clinical_minus_lifelines": max(clinical.values(), key=abs)}
    methods = ("elastic net", "ridge", "network", "clinical", "lifelines", "lifelines unpenalised")
    figures["cohorts"] = {
        name: {method.replace(" ", "_"): s.mean(method) for method in methods if method in s.by_method}
        for name, s in scores.items()
    }
    if not all("network" in s.by_method for s in scores.values()):
        return figures
    gap = {name: s.mean("network") - s.mean("ridge") for name, s in scores.items()}
    figures |= {
        "network_minus_ridge": float(np.mean(list(gap.values()))),
        "network_worst": min(gap.values()),
        "seconds_per_fold": max(float(np.mean(s.seconds)) for s in scores.values()),
    }
    if "GBMLGG" in scores:
        glioma = scores["GBMLGG"]
        figures["gbmlgg_all_c"] = glioma.mean("all")
        figures["gbmlgg_age_class_c"] = glioma.mean("age and class")
        for group in ("GBM", "LGG"):
            for method in ("all", "age and class"):
                key = f"gbmlgg_within_{group.lower()}_{method.replace(' ', '_')}_c"
                figures[key] = glioma.mean(f"{method} within {group}")
    if "KIRC" in scores:
        figures["kirc_rna_c"] = scores["KIRC"].mean("elastic net")
    return figures


def main() -> None:
    """Tables that carry their batch, all methods on all cohorts, and the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=SHARED, help="folder with tcga/ [../shared/data]")
    parser.add_argument("--folds", type=int, default=5, help="of five; nothing is kept with fewer")
    parser.add_argument(
        "--part",
        choices=("all", "clinical"),
        default="all",
        help="clinical: this model and lifelines alone, within two minutes; other figures that are kept stay",
    )
    parser.add_argument("--cohorts", nargs="*", default=list(COHORTS), help="nothing is kept with fewer")
    asked = parser.parse_args()
    if not (asked.data / "tcga" / "porpoise").is_dir():
        reason = f"no tcga/porpoise in {asked.data}: give the data folder with --data"
        print(f"skipped: {reason}")
        print(json.dumps({"skipped": reason}))
        return
    logging.getLogger("equipoise").setLevel(logging.ERROR)
    warnings.simplefilter("ignore", category=UserWarning)
    torch.set_num_threads(1)
    started, load = time.perf_counter(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        flags: dict[str, bool] = {}
        for table, names in TABLES.items() if asked.part == "all" else ():
            found = tables_with_batches(cohorts_of(asked.data, names, folder))
            flags[f"batch_{table}"] = any(one.modality == "rna" for one in found)
            print(f"{table}: {'; '.join(one.sentence for one in found) or 'no table carries its batch'}")
        scores = {}
        for name in asked.cohorts:
            groups = glioma_classes(asked.data) if name == "GBMLGG" else {}
            scores[name] = cohort_scores(asked.data, name, folder, asked.folds, groups, asked.part)
    figures = figures_of(scores) | flags
    rounded: dict[str, Any] = {k: round(v, 4) if isinstance(v, float) else v for k, v in figures.items()}
    rounded["cohorts"] = {
        name: {method: round(c, 4) for method, c in row.items()} for name, row in figures["cohorts"].items()
    }
    show(rounded)
    record = rounded | {
        "folds": asked.folds,
        "seconds": round(time.perf_counter() - started),
        "load_before": round(load, 2),
        "python": sys.version.split()[0],
        "torch": version("torch"),
        "lifelines": version("lifelines"),
    }
    if asked.folds == 5 and set(asked.cohorts) == set(COHORTS):
        results = Path(__file__).parent / "results" / "linear_baselines.json"
        kept = json.loads(results.read_text()) if asked.part != "all" and results.exists() else {}
        rows = {name: kept.get("cohorts", {}).get(name, {}) | row for name, row in rounded["cohorts"].items()}
        times = {key: kept[key] for key in ("seconds", "load_before") if key in kept}
        results.write_text(json.dumps(kept | record | {"cohorts": rows} | times, indent=2) + "\n")
    print(json.dumps(record))


def glioma_classes(data: Path) -> dict[str, set[str]]:
    """GBM and LGG → patients."""
    table = pd.read_csv(
        data / "tcga" / "porpoise" / "tcga_gbmlgg_all_clean.csv.zip", usecols=["case_id", "oncotree_code"]
    )
    gbm = set(table.loc[table["oncotree_code"] == "GBM", "case_id"])
    return {"GBM": gbm, "LGG": set(table["case_id"]) - gbm}


def show(figures: dict[str, Any]) -> None:
    """A table of cohorts by methods."""
    rows = figures["cohorts"]
    methods = list(next(iter(rows.values())))
    print(f"\n| C-index, mean of folds | {' | '.join(methods)} |\n|---|{'---|' * len(methods)}")
    for name, row in rows.items():
        print(f"| {name} | {' | '.join(f'{row[method]:.3f}' for method in methods)} |")


if __name__ == "__main__":
    main()
