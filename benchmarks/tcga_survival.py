"""Survival of real TCGA patients from omics, covariates and published image risks, beside simple baselines.

PORPOISE's tables of GBMLGG and KIRC with its five folds. Everything is fitted on the training patients of a fold
through the product: exact fits with penalties, and weights of a late fusion, chosen on inner folds; networks stopped on
held-out parts of the training patients. Test patients are scored once per row. Mean of Harrell's C over folds, Uno's
beside it, with the intervals and paired tests of the product.

``gbmlgg_fusion_c``: late fusion (ridge) of RNA, CNV, mutations, covariates and the published risk of an image model;
``gbmlgg_no_image_c``: the same without the image. **The image risks were predicted out of fold, but by models that were
trained on the other folds, the tested one among them: weights stacked on them leak mildly.**
``gbmlgg_within_class_c``: the fusion inside LGG. ``gbmlgg_neural_c``: a network of omics and covariates.
``kirc_rna_c``: elastic net of RNA. ``kirc_rna_stage_c``: RNA and age, sex, stage, M and N, by the model that inner
cross-validation chose in each fold (``kirc_chosen``). ``hypal_sum_c``: equal-weight sum of the fusion without image and
the published risk of HyPAL-Surv, whose splits are others, among patients of GBMLGG who have both.
``gbmlgg_without_omics``: the fusion for test patients whose omics are hidden, beside the one that never saw any.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.linear_baselines import NETWORK, RNA, SHARED, linear_fold, trained_fold
from benchmarks.tcga_cases import OMICS, Patients, hidden, hypal_risks, read_patients
from benchmarks.tcga_scores import FoldRisks, RowStore, Scores, weighted_sum
from equipoise.datasets.cohorts.splits import Fold
from equipoise.datasets.omics.params import TableParams
from equipoise.models.probes import geneicl
from equipoise.models.probes.likelihoods import Cox
from equipoise.models.probes.selection import inner_folds
from equipoise.platform.training.batches import CaseList, collate
from equipoise.platform.training.exact import fits_exactly
from equipoise.platform.training.params import Recipe
from equipoise.platform.training.targets import fit_targets

COHORTS = ("GBMLGG", "KIRC")
ROWS = Path("build") / "tcga_survival"
#: Modalities whose absence in test patients is tried, by the name of the variant.
HIDDEN = {"omics hidden": {"clinical", "wsi"}, "image hidden": {"clinical", *OMICS}}
INNER_FOLDS = 4


@dataclass(frozen=True)
class Method:
    """A row: what is fitted, on which modalities, and what else is kept of its folds."""

    recipe: Recipe
    modalities: tuple[str, ...]
    keeps_scale: bool = False
    variants: tuple[str, ...] = ()


def penalised(covariates: Sequence[Mapping[str, Any]], **params: Any) -> Recipe:
    """An elastic net with these parameters."""
    tables = TableParams.model_validate({"rna": RNA, "clinical": list(covariates)})
    return Recipe(model="elastic_net", model_params=params, tables=tables, seed=1)


def network(covariates: Sequence[Mapping[str, Any]], seed: int = 1) -> Recipe:
    """The network of :mod:`benchmarks.linear_baselines`, which also reads covariates."""
    tables = TableParams.model_validate({"rna": RNA | {"components": 200}, "clinical": list(covariates)})
    return NETWORK.model_copy(update={"tables": tables, "seed": seed})


def self_normalising() -> Recipe:
    """A self-normalising network of genes as they are, sizes and rates near those of Pathomic Fusion."""
    tables = TableParams.model_validate({"rna": {"transform": "none", "clip_standardised": 5}})
    training = NETWORK.training.model_copy(update={"lr": 2e-3, "weight_decay": 5e-4, "members": 1})
    params = {"network": "snn", "dim": 64, "layers": 3, "dropout": 0.25}
    return Recipe(model="omics", model_params=params, training=training, tables=tables, seed=1)


def methods_of(patients: Patients) -> dict[str, Method]:
    """Rows that are fitted on a cohort, by name."""
    every = patients.covariates
    ridge, mixed = {"l1_ratio": 0.0}, {"l1_ratio": 0.5}

    def on(columns: Sequence[str]) -> Method:
        return Method(penalised([c for c in every if c["column"] in columns], **ridge), ("clinical",))

    with_omics = ("clinical", *OMICS)
    table = {
        "age": on(["age"]),
        "age and sex": on(["age", "is_female"]),
        "clinical": Method(penalised(every, **ridge), ("clinical",)),
        "ridge, rna": Method(penalised(every, **ridge), ("rna",)),
        "elastic net, rna": Method(penalised(every, **mixed), ("rna",)),
        "network, rna": Method(network(every), ("rna",)),
        "snn, omics": Method(self_normalising(), OMICS),
        "ridge, rna + clinical": Method(penalised(every, **ridge), ("clinical", "rna")),
        "elastic net, rna + clinical": Method(penalised(every, **mixed), ("clinical", "rna")),
        "late ridge, rna + clinical": Method(penalised(every, fusion="late", **ridge), ("clinical", "rna")),
        "late elastic net, rna + clinical": Method(
            penalised(every, fusion="late", **mixed), ("clinical", "rna")
        ),
        "late ridge, omics": Method(penalised(every, fusion="late", **ridge), OMICS, True),
        "elastic net, omics + clinical": Method(penalised(every, **mixed), with_omics),
        "late ridge, omics + clinical": Method(penalised(every, fusion="late", **ridge), with_omics, True),
        "network, omics + clinical": Method(network(every), with_omics),
    }
    if patients.name == "GBMLGG":
        late = penalised(every, fusion="late", **ridge)
        table = {"class": on(["oncotree_code"])} | table
        table["late ridge, image + clinical"] = Method(late, ("clinical", "wsi"))
        table["late ridge, image + omics + clinical"] = Method(
            late, (*with_omics, "wsi"), variants=tuple(HIDDEN)
        )
    return table


#: Of KIRC, from which inner cross-validation chooses.
CANDIDATES = (
    "ridge, rna + clinical", "elastic net, rna + clinical",
    "late ridge, rna + clinical", "late elastic net, rna + clinical",
)  # fmt: skip


class Cohort:
    """Rows of one cohort."""

    def __init__(self, patients: Patients, store: RowStore, folder: Path) -> None:
        self.patients, self.store, self.folder = patients, store, folder
        self.methods = methods_of(patients)
        self.scores = Scores(patients.labels)
        self.rows: dict[str, list[FoldRisks]] = {}

    def run(self, names: Sequence[str] | None = None) -> None:
        """Fit all methods, or some."""
        for name in names or self.methods:
            started = time.process_time()
            self.rows[name] = [self._fold(name, fold) for fold in self.patients.folds]
            self._say(name, time.process_time() - started)

    def risks(self, name: str) -> list[dict[str, float]]:
        """Per fold, patient → risk."""
        return [fold.risks for fold in self.rows[name]]

    def add(self, name: str, folds: Sequence[dict[str, float]]) -> None:
        """A row that needs no fit."""
        self.rows[name] = [FoldRisks(risks) for risks in folds]
        self._say(name, 0.0)

    def choose(self, names: Sequence[str]) -> list[str]:
        """Per fold, the method with the best C-index in an inner cross-validation of its training patients."""
        chosen = []
        for fold in self.patients.folds:
            settings = {name: self.methods[name].recipe.model_dump(mode="json") for name in names}
            kept = self.store.get(
                self.patients.name,
                "chosen",
                str(fold.index),
                settings,
                partial(self._inner, fold, names),
            )
            chosen.append(max(names, key=kept.notes.__getitem__))
            print(f"{self.patients.name} fold {fold.index}: {kept.notes}", flush=True)
        return chosen

    def _inner(self, fold: Fold, names: Sequence[str]) -> FoldRisks:
        """Its notes: method → mean C-index over inner folds."""
        everyone = np.array([*fold.train, *fold.val], object)
        days, event = np.array([self.patients.labels[p] for p in everyone], float).T
        part = inner_folds(Cox(days, event), np.ones(len(everyone)), INNER_FOLDS, seed=fold.index)
        values: dict[str, list[float]] = {name: [] for name in names}
        for k in range(INNER_FOLDS):
            rest = everyone[part != k].tolist()
            cut = len(rest) // 10
            inner = Fold(
                0,
                100 + fold.index * INNER_FOLDS + k,
                tuple(rest[:-cut]),
                tuple(rest[-cut:]),
                tuple(everyone[part == k]),
            )
            for name in names:
                found = self._fit(self.methods[name], inner, f"inner-{name}").risks
                values[name].append(self.scores.mean([found]).value)
        return FoldRisks({}, notes={name: float(np.mean(of)) for name, of in values.items()})

    def _fold(self, name: str, fold: Fold) -> FoldRisks:
        method = self.methods[name]
        settings = {
            "recipe": method.recipe.model_dump(mode="json"),
            "modalities": method.modalities,
            "scale": method.keeps_scale,
            "variants": method.variants,
        }
        return self.store.get(
            self.patients.name, name, str(fold.index), settings, lambda: self._fit(method, fold, name)
        )

    def _fit(self, method: Method, fold: Fold, name: str) -> FoldRisks:
        cases, task = self.patients.only(method.modalities), self.patients.task
        if not fits_exactly(method.recipe):
            folder = self.folder / self.patients.name / name
            return FoldRisks(trained_fold(method.recipe, task, cases, fold, folder)[1])
        fitted = linear_fold(method.recipe, task, cases, fold)
        scale: tuple[float, ...] = ()
        if method.keeps_scale:
            seen = list(fitted.predict(CaseList(cases, (*fold.train, *fold.val))).values())
            scale = float(np.mean(seen)), float(np.std(seen))
        variants = {}
        for variant in method.variants:
            bare = {p: hidden(cases[p], HIDDEN[variant]) for p in fold.test}
            variants[variant] = fitted.predict(CaseList(bare, fold.test))
        prefix = f"weight/{task.name}/"
        weights = {k.removeprefix(prefix): v for k, v in fitted.row.items() if k.startswith(prefix)}
        return FoldRisks(fitted.risks, scale, variants, {"weights": weights})

    def geneicl(self) -> None:
        """GeneICL on RNA, where it is installed or its rows are kept."""
        folds = []
        for fold in self.patients.folds:
            make = partial(self._in_context, fold)
            folds.append(self.store.get(self.patients.name, "geneicl", str(fold.index), {"rna": "z"}, make))
        self.rows["geneicl, rna"] = folds
        self._say("geneicl, rna", 0.0)

    def _in_context(self, fold: Fold) -> FoldRisks:
        """Support: all training patients, z-scores clipped to 5."""
        cases = self.patients.only(["rna"])
        train = CaseList(cases, (*fold.train, *fold.val))
        tables = TableParams.model_validate(
            {"rna": {"transform": "none", "clip": None, "clip_standardised": 5}}
        )
        targets = fit_targets([self.patients.task], train, tables=tables)

        def columns(part: CaseList) -> np.ndarray:
            return np.stack([collate([case], targets).omics["rna"][0].numpy() for case in part])

        label = np.array([self.patients.labels[p] for p in train.patients], float)
        test = CaseList(cases, fold.test)
        out = geneicl.predict(targets.heads[0], columns(train), label, columns(test))
        return FoldRisks(dict(zip(fold.test, out[:, 0].tolist(), strict=True)))

    def _say(self, name: str, seconds: float) -> None:
        values = self.scores.mean(self.risks(name)).fold_means
        shown = " ".join(f"{value:.3f}" for value in values)
        print(f"{self.patients.name} {name}: {np.mean(values):.4f} ({shown}); {seconds:.0f} s", flush=True)

    def table(self) -> dict[str, Any]:
        """Method → its figures, each beside clinical."""
        return {
            name: self.scores.row(self.risks(name))
            | {"minus_clinical": self.scores.difference(self.risks(name), self.risks("clinical"))}
            for name in self.rows
        }


def gbmlgg_figures(cohort: Cohort, data: Path) -> dict[str, Any]:
    """Keys of GBMLGG."""
    scores, clinical = cohort.scores, cohort.risks("clinical")
    fusion = cohort.rows["late ridge, image + omics + clinical"]
    without = "late ridge, omics + clinical"
    hypal = hypal_risks(data, "GBMLGG")
    lgg = cohort.patients.groups["LGG"]
    risks = [fold.risks for fold in fusion]
    bare = [fold.variants["omics hidden"] for fold in fusion]
    fallback = cohort.risks("late ridge, image + clinical")
    network = "network, omics + clinical"
    return {
        "gbmlgg_fusion_c": scores.mean(risks).value,
        "gbmlgg_fusion_minus_clinical": scores.difference(risks, clinical),
        "gbmlgg_no_image_c": scores.mean(cohort.risks(without)).value,
        "gbmlgg_image_gain": scores.difference(risks, cohort.risks(without)),
        "gbmlgg_image_leak": "the image model of a training patient was trained on the patients that are tested: mild",
        "gbmlgg_within_class_c": scores.mean(risks, among=lgg).value,
        "gbmlgg_within_class": {
            name: {
                "fusion": scores.mean(risks, among=members).value,
                "clinical": scores.mean(clinical, among=members).value,
                "difference": scores.difference(risks, clinical, among=members),
            }
            for name, members in cohort.patients.groups.items()
        },
        "gbmlgg_neural_c": scores.mean(cohort.risks(network)).value,
        "gbmlgg_neural_minus_clinical": scores.difference(cohort.risks(network), clinical),
        "gbmlgg_neural_minus_no_image": scores.difference(cohort.risks(network), cohort.risks(without)),
        "gbmlgg_weights": [fold.notes["weights"] for fold in fusion],
        "gbmlgg_without_omics": {
            "fusion_c": scores.mean(bare).value,
            "image_clinical_c": scores.mean(fallback).value,
            "largest_difference_of_a_risk": max(
                abs(one[p] - other[p]) for one, other in zip(bare, fallback, strict=True) for p in one
            ),
        },
        "gbmlgg_without_image": {
            "fusion_c": scores.mean([fold.variants["image hidden"] for fold in fusion]).value,
            "no_image_c": scores.mean(cohort.risks(without)).value,
        },
        "gbmlgg_hypal": hypal_figures(cohort, without, hypal),
    }


def hypal_figures(cohort: Cohort, name: str, hypal: Mapping[str, float]) -> dict[str, Any]:
    """HyPAL-Surv, a model of ours and their equal-weight sum, among patients who have both."""
    sums, theirs, ours = [], [], []
    for fold, of in zip(cohort.patients.folds, cohort.rows[name], strict=True):
        seen = np.array([hypal[p] for p in (*fold.train, *fold.val) if p in hypal])
        own = {p: (hypal[p] - seen.mean()) / seen.std() for p in fold.test if p in hypal}
        sums.append(weighted_sum([own, of.standardised()]))
        theirs.append(own)
        ours.append({p: of.risks[p] for p in own})
    mean = cohort.scores.mean
    return {
        "sum_c": mean(sums).value,
        "hypal_c": mean(theirs).value,
        "ours_c": mean(ours).value,
        "sum_minus_ours": cohort.scores.difference(sums, ours),
        "patients": sum(map(len, sums)),
    }


def kirc_figures(cohort: Cohort, data: Path, chosen: Sequence[str]) -> dict[str, Any]:
    """Keys of KIRC."""
    scores, clinical = cohort.scores, cohort.risks("clinical")
    best = cohort.risks("chosen, rna + clinical")
    return {
        "kirc_rna_c": scores.mean(cohort.risks("elastic net, rna")).value,
        "kirc_clinical_c": scores.mean(clinical).value,
        "kirc_rna_stage_c": scores.mean(best).value,
        "kirc_rna_stage_minus_clinical": scores.difference(best, clinical),
        "kirc_chosen": list(chosen),
        "kirc_hypal": hypal_figures(cohort, "late ridge, omics + clinical", hypal_risks(data, "KIRC")),
    }


def prepared(asked: argparse.Namespace) -> bool:
    """Whether the data are there; says so, and quietens what is not the benchmark's."""
    if not (asked.data / "tcga" / "porpoise").is_dir():
        reason = f"no tcga/porpoise in {asked.data}: give the data folder with --data"
        print(f"skipped: {reason}")
        print(json.dumps({"skipped": reason}))
        return False
    logging.getLogger("equipoise").setLevel(logging.ERROR)
    warnings.simplefilter("ignore", category=UserWarning)
    torch.set_num_threads(1)
    return True


def parser_of(text: str) -> argparse.ArgumentParser:
    """Options that the benchmarks of these cohorts share."""
    parser = argparse.ArgumentParser(description=text.splitlines()[0])
    parser.add_argument("--data", type=Path, default=SHARED, help="folder with tcga/ [../shared/data]")
    parser.add_argument("--rows", type=Path, default=ROWS, help=f"where rows are kept [{ROWS}]")
    return parser


def rounded(value: Any) -> Any:
    """Numbers to four digits, all the way down."""
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, Mapping):
        return {key: rounded(one) for key, one in value.items()}
    return [rounded(one) for one in value] if isinstance(value, list | tuple) else value


def write_result(name: str, figures: Mapping[str, Any], started: float, load: float) -> None:
    """Keep the figures, and print them as the last line."""
    record = rounded(figures) | {
        "seconds": round(time.perf_counter() - started),
        "load_before": round(load, 2),
        "python": sys.version.split()[0],
        "torch": version("torch"),
    }
    results = Path(__file__).parent / "results" / f"{name}.json"
    results.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record))


def main() -> None:
    """All rows of both cohorts."""
    asked = parser_of(__doc__ or "").parse_args()
    if not prepared(asked):
        return
    started, load = time.perf_counter(), os.getloadavg()[0]
    store = RowStore(asked.rows)
    figures: dict[str, Any] = {}
    tables: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for name in COHORTS:
            patients = read_patients(asked.data, name, Path(temporary))
            cohort = Cohort(patients, store, Path(temporary))
            cohort.run()
            if geneicl.is_installed() or (asked.rows / name / "geneicl-0.json").exists():
                cohort.geneicl()
            if name == "GBMLGG":
                cohort.add("published image risk", image_rows(patients))
                figures |= gbmlgg_figures(cohort, asked.data)
            else:
                chosen = cohort.choose(CANDIDATES)
                best = [cohort.risks(method)[k] for k, method in enumerate(chosen)]
                cohort.add("chosen, rna + clinical", best)
                figures |= kirc_figures(cohort, asked.data, chosen)
            tables[name] = cohort.table()
    figures["hypal_sum_c"] = figures["gbmlgg_hypal"]["sum_c"]
    write_result("tcga_survival", figures | {"cohorts": tables}, started, load)


def image_rows(patients: Patients) -> list[dict[str, float]]:
    """The published risks as they are."""
    return [{p: float(patients.cases[p].bag[0, 0]) for p in fold.test} for fold in patients.folds]


if __name__ == "__main__":
    main()
