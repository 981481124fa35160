"""Cox's model with few patients a step: risk sets of the batch against those of all training patients, on real data.

PORPOISE's KIRC and GBMLGG, published five folds: a network of 32 units on RNA (log, 200 components) and mutations (with
KIRC's 937 columns of CNV beside them no arm is better than chance). It compares (a) the 32 patients of a batch, (b) all
training patients by their last known score, (c) all of them in one step; (a) and (b) with shuffled batches and
with batches that hold their share of events, and with batches of 8, the default of the product. At most 20 epochs in
batches of 32, 8 in batches of 8, 130 in full batches; inner validation stops. Every arm chooses its learning rate per
fold from the same two values by the inner validation of the first seed and is fitted with further seeds. No setting is
chosen on test patients.

``c``: mean C-index of the test parts over folds and seeds. Differences ``b - a`` come with a 95 % interval from 1.5
times the variance of the paired influence values of the test patients, averaged over seeds (docs/evaluation.md): for
the procedures that trained the models. ``spread_of_seeds``: standard deviation over seeds of the mean over folds.
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
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.linear_baselines import NETWORK, RNA, SHARED, cohorts_of, folds_of, only
from equipoise.datasets.cohorts.cases import CaseReader
from equipoise.datasets.omics.params import TableParams
from equipoise.platform.evaluation.influence import Cell, CellMean, concordance_influence
from equipoise.platform.evaluation.intervals import paired_test
from equipoise.platform.federation.clients.study_trainer import (
    ClientData,
    IdentityTransform,
    with_transformed_tables,
)
from equipoise.platform.training.batches import CaseList, collate
from equipoise.platform.training.build import build_model
from equipoise.platform.training.loop import fit
from equipoise.platform.training.params import TrainingParams
from equipoise.platform.training.targets import Targets, fit_targets

COHORTS = ("KIRC", "GBMLGG")
MODALITIES = ("rna", "mutation")
RATES = (1e-3, 3e-3)
TABLES = TableParams.model_validate({"rna": RNA | {"components": 200}})
#: Few epochs of many steps; a full batch takes one step per epoch and needs more of them.
_BATCH: dict[str, Any] = {"batch": 32, "epochs": 20, "patience": 8}
_BATCH_8: dict[str, Any] = {"batch": 8, "epochs": 8, "patience": 4}
ARMS: dict[str, dict[str, Any]] = {
    "batch": _BATCH,
    "batch_stratified": _BATCH | {"order": "stratified"},
    "memory": _BATCH | {"risk_sets": "memory"},
    "memory_stratified": _BATCH | {"risk_sets": "memory", "order": "stratified"},
    "batch_8": _BATCH_8,
    "memory_8": _BATCH_8 | {"risk_sets": "memory"},
    "full": {"batch": "full", "epochs": 130, "patience": 50},
}
#: What is compared with what.
PAIRS = (
    ("memory", "batch"),
    ("memory_stratified", "batch_stratified"),
    ("batch_stratified", "batch"),
    ("memory_stratified", "memory"),
    ("memory_8", "batch_8"),
    ("full", "batch"),
    ("full", "memory"),
)


@dataclass(frozen=True)
class FoldData:
    """Patients of a fold with their tables transformed, and days and events of its test patients."""

    targets: Targets
    train: CaseList
    val: CaseList
    test: CaseList
    days: np.ndarray
    event: np.ndarray


def prepared(task: Any, cases: dict[str, Any], fold: Any) -> FoldData:
    """Transforms fitted on training patients, applied once for all fits."""
    train, val, test = (
        CaseList(cases, tuple(p for p in part if p in cases)) for part in (fold.train, fold.val, fold.test)
    )
    targets = fit_targets([task], train, tables=TABLES)
    data = with_transformed_tables(ClientData(train, val), targets)
    seen = with_transformed_tables(ClientData(test), targets).train
    identity = {name: IdentityTransform(table.names) for name, table in targets.tables.items()}
    days, event = np.array([case.targets[task.name] for case in test], float).T
    assert data.val is not None
    return FoldData(
        dataclasses.replace(targets, tables=identity),  # type: ignore[arg-type]
        data.train,
        data.val,
        seen,
        days,
        event,
    )


def trained(data: FoldData, arm: str, lr: float, seed: int) -> tuple[float, np.ndarray]:
    """The monitored value of the epoch that was kept, and risks of the test patients."""
    targets = data.targets
    model = build_model("omics", NETWORK.model_params, targets.shape, targets.heads, seed=seed)
    settings = NETWORK.training.model_dump() | ARMS[arm] | {"lr": lr, "members": 1}
    result = fit(model, targets, data.train, data.val, TrainingParams.model_validate(settings), seed=seed)
    with torch.inference_mode():
        risk = model.eval()(collate(list(data.test), targets))[targets.main.name][:, 0]
    return result.history[result.best_epoch - 1]["monitor"], risk.double().numpy()


def of_cohort(data: Path, name: str, folder: Path, folds: int, seeds: int) -> dict[str, Any]:
    """C-indices of all arms and their differences."""
    cohorts = cohorts_of(data, [name], folder)
    reader, task = CaseReader(cohorts, None, role="develop"), cohorts.tasks[0]
    everybody = list(cohorts.patients["patient"])
    cases = only({patient: reader[patient] for patient in everybody}, MODALITIES)
    number = {patient: index for index, patient in enumerate(cases)}
    cells: dict[str, list[Cell]] = {arm: [] for arm in ARMS}
    by_seed: dict[str, list[list[float]]] = {arm: [] for arm in ARMS}
    rates: dict[str, list[float]] = {arm: [] for arm in ARMS}
    seconds = dict.fromkeys(ARMS, 0.0)
    for fold in folds_of(data, name, list(cases))[:folds]:
        parts = prepared(task, cases, fold)
        who = np.array([number[patient] for patient in parts.test.patients])
        for arm in ARMS:
            started = time.process_time()
            first = {lr: trained(parts, arm, lr, 0) for lr in RATES}
            lr = min(first, key=lambda rate: first[rate][0])
            risks = [first[lr][1]] + [trained(parts, arm, lr, seed)[1] for seed in range(1, seeds)]
            seconds[arm] += time.process_time() - started
            found = [concordance_influence(parts.days, parts.event, risk) for risk in risks]
            values = [float(one.value) for one in found]
            influence = np.mean([one.influence for one in found], axis=0)
            cells[arm].append(Cell(float(np.mean(values)), influence, who, 0, fold.index))
            by_seed[arm].append(values)
            rates[arm].append(lr)
        shown = ", ".join(f"{arm} {cells[arm][-1].value:.3f}" for arm in ARMS)
        print(f"{name} fold {fold.index}: {shown}", flush=True)
    means = {arm: CellMean.of(cells[arm], len(cases)) for arm in ARMS}
    rows = {
        arm: {
            "c": round(float(np.mean([cell.value for cell in cells[arm]])), 4),
            "folds": [round(cell.value, 4) for cell in cells[arm]],
            "spread_of_seeds": round(float(np.mean(by_seed[arm], axis=0).std(ddof=1)), 4)
            if seeds > 1
            else None,
            "rates": rates[arm],
            "cpu_s": round(seconds[arm], 1),
        }
        for arm in ARMS
    }
    differences = {}
    for one, other in PAIRS:
        a, b = means[one], means[other]
        assert a is not None
        assert b is not None
        apart = a.minus(b)
        assert apart is not None
        test = paired_test(apart)
        interval = [round(test.difference + sign * 1.96 * test.se, 4) for sign in (-1, 1)]
        differences[f"{one} - {other}"] = {"difference": round(test.difference, 4), "interval": interval}
    return {"arms": rows, "differences": differences}


def main() -> None:
    """Both cohorts, a table and the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, default=SHARED, help="folder with tcga/ [../shared/data]")
    parser.add_argument("--folds", type=int, default=5, help="of five; nothing is kept with fewer")
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    if not (asked.data / "tcga" / "porpoise").is_dir():
        print(json.dumps({"skipped": f"no tcga/porpoise in {asked.data}: give the data folder with --data"}))
        return
    logging.getLogger("equipoise").setLevel(logging.ERROR)
    warnings.simplefilter("ignore", category=UserWarning)
    torch.set_num_threads(1)
    load, started = os.getloadavg()[0], time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary:
        cohorts = {
            name: of_cohort(asked.data, name, Path(temporary), asked.folds, asked.seeds) for name in COHORTS
        }
    print(f"\n| C-index, mean of folds and seeds | {' | '.join(ARMS)} |\n|---|{'---|' * len(ARMS)}")
    for name, row in cohorts.items():
        print(f"| {name} | {' | '.join(format(row['arms'][arm]['c'], '.3f') for arm in ARMS)} |")
    figures: dict[str, Any] = {
        "cohorts": cohorts,
        "seeds": asked.seeds,
        "folds": asked.folds,
        "settings": {arm: dict(settings) for arm, settings in ARMS.items()} | {"rates": list(RATES)},
        "seconds": round(time.perf_counter() - started),
        "load_before": round(load, 1),
        "cores": os.cpu_count(),
        "versions": {name: version(name) for name in ("torch", "numpy")} | {"python": sys.version.split()[0]},
    }
    if asked.folds == 5:
        results = Path(__file__).parent / "results"
        results.mkdir(exist_ok=True)
        (results / "risk_sets.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
