"""Whether an adapter of an RNA encoder helps to predict survival. SYNTHETIC cohorts, one command.

The paper's third open question: mix-up against dropout, batch norm, a variational bottleneck and nothing, judged not by
pseudo-bulk but by the C-index downstream. For each of two built-in cohorts (400 patients, RNA counts) a single-cell
reference comes from donors of the other cohort of the same cancer. Fifty principal components of the reference stand in
for a frozen encoder; adapters are trained on its cells as ``benchmarks.mixup`` does; a ridge Cox model reads the
adapted vectors of the patients (penalty by inner folds, 5 folds x 3 repeats, the same for all rows).

Beside the adapters: all genes, the encoder's own vectors, an adapter with random weights that nobody trained, and the
risk behind the data. ``r_100`` as in ``benchmarks.mixup``. Differences are paired over the 15 folds with corrected
95 % intervals (Nadeau and Bengio, 2003), and averaged over both cohorts, which share no patient.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import t as student

from benchmarks.linear_baselines import linear_fold
from benchmarks.mixup import DIRICHLET, METHODS, NONE, REGULARISERS, TWO, components_of, rounded
from equipoise.datasets.cohorts.cases import Case
from equipoise.datasets.cohorts.splits import Fold
from equipoise.datasets.omics.params import TableParams
from equipoise.datasets.omics.single_cell import SingleCells, hold_out, pseudo_bulk, read_single_cells
from equipoise.datasets.synthetic.catalogue import SITES
from equipoise.datasets.synthetic.omics import write_single_cell
from equipoise.datasets.synthetic.params import CohortPlan, Knobs, Preset
from equipoise.datasets.synthetic.tables import build_tables
from equipoise.datasets.tables.tasks import SurvivalTask
from equipoise.models.gptomic.mixup import mix, mixed_labels, mixture_weights, recovery
from equipoise.models.gptomic.params import AdapterParams
from equipoise.models.gptomic.smoothing import Adapter, train_adapter
from equipoise.models.rna.protocol import RnaEncoder
from equipoise.platform.evaluation.metrics import harrell_c
from equipoise.platform.training.params import Recipe

RESULTS = Path(__file__).parent / "results" / "mixup_survival.json"
SEED = 7
#: Cohort with patients → cohort of the same cancer whose donors are the reference.
COHORTS = {"syn-crc-a": "syn-crc-b", "syn-luad-a": "syn-luad-b"}
PATIENTS, CELLS_PER_TYPE = 400, 100
FOLDS, REPEATS = 5, 3
HELD_OUT, PSEUDO_BULK = 0.3, 1000
ADAPTERS: dict[str, dict[str, Any]] = {
    "none": NONE,
    **{name: NONE | settings for name, settings in REGULARISERS.items()},
    "two cells": TWO,
    "Dirichlet": DIRICHLET,
    **{f"Dirichlet, {name}": METHODS[f"Dirichlet, {name}"] for name in REGULARISERS},
    "two cells, behind the encoder's vectors": TWO | {"keep": True},
    "Dirichlet, behind the encoder's vectors": DIRICHLET | {"keep": True},
}
ROWS = ["all genes", "encoder alone", "untrained adapter", *ADAPTERS, "risk behind the data"]
COMPLETE = Knobs(missing_slide=0, missing_rna=0, missing_label=0, missing_tme=0)
TASK = SurvivalTask.model_validate(
    {
        "name": "OS",
        "time": {"column": "OS_DAYS", "unit": "days"},
        "event": {"column": "OS_EVENT", "event_value": "1"},
    }
)
GENES = {"transform": "log_cpm"}
VECTORS = {"transform": "none", "clip": None}


def plan(name: str, patients: int) -> CohortPlan:
    """A built-in cohort without slides."""
    return CohortPlan(name=name, patients=patients, side_um=256, style=SITES[name])


def reference_of(name: str, folder: Path) -> SingleCells:
    """Cells of the donors of a cohort."""
    preset = Preset(name="reference", cohorts=(plan(name, 8),), single_cell=CELLS_PER_TYPE)
    path = folder / f"{name}.h5ad"
    write_single_cell(preset, SEED, path)
    return read_single_cells(path, "cell_type").with_equal_totals()


def adapter_of(
    reference: SingleCells, encoder: RnaEncoder, settings: Mapping[str, Any]
) -> tuple[Adapter, float]:
    """An adapter that was trained on a part of the cells, and its r on pseudo-bulk of the others."""
    params = AdapterParams.model_validate(settings)
    train, held_out = hold_out(reference, HELD_OUT, SEED)
    weights = mixture_weights(train.labels, params, SEED)
    vectors = encoder.encode(mix(train.values, weights), train.genes, kind="tpm", seed=0)
    adapter = train_adapter(
        vectors,
        mixed_labels(train.labels, weights, len(train.types)),
        train.types,
        params,
        encoder=encoder.name,
        encoder_fingerprint=encoder.fingerprint,
        seed=SEED,
    )
    values, fractions = pseudo_bulk(held_out, PSEUDO_BULK, seed=SEED)
    predicted = adapter.fractions(encoder.encode(values, held_out.genes, kind="tpm", seed=0))
    return adapter, recovery(predicted, fractions).r


def cases_of(vectors: pd.DataFrame, labels: pd.DataFrame) -> dict[str, Case]:
    """Patients with one table, ``rna``."""
    nothing = (np.empty((0, 0), np.float16), np.empty((0, 2), np.int32), (), ())
    columns = {"rna": tuple(map(str, vectors.columns))}
    values = vectors.to_numpy(np.float32)
    survival = labels.loc[vectors.index, ["OS_DAYS", "OS_EVENT"]].to_numpy(float)
    return {
        patient: Case(patient, "syn", "syn", *nothing, {"rna": row}, {TASK.name: (days, event)}, columns)
        for patient, row, (days, event) in zip(vectors.index, values, survival, strict=True)
    }


def folds_of(labels: pd.DataFrame, repeats: int) -> list[Fold]:
    """Random folds, events spread evenly."""
    folds = []
    for repeat in range(repeats):
        rng = np.random.default_rng([SEED, repeat])
        order = labels.iloc[rng.permutation(len(labels))].sort_values("OS_EVENT", kind="stable")
        part = pd.Series(np.arange(len(order)) % FOLDS, index=order.index)
        for k in range(FOLDS):
            train = list(part.index[part != k])
            folds.append(Fold(repeat, k, tuple(train), (), tuple(part.index[part == k])))
    return folds


def c_of_folds(
    vectors: pd.DataFrame, labels: pd.DataFrame, folds: list[Fold], rna: Mapping[str, Any]
) -> np.ndarray:
    """Harrell's C of ridge Cox in every fold."""
    cases = cases_of(vectors, labels)
    recipe = Recipe(
        model="elastic_net",
        model_params={"modalities": ["rna"], "l1_ratio": 0.0},
        tables=TableParams.model_validate({"rna": dict(rna)}),
        seed=1,
    )
    found = []
    for fold in folds:
        risks = linear_fold(recipe, TASK, cases, fold).risks
        rows = labels.loc[list(risks)]
        found.append(harrell_c(rows["OS_DAYS"].to_numpy(), rows["OS_EVENT"].to_numpy(), list(risks.values())))
    return np.array(found)


def cohort_rows(
    name: str, folder: Path, repeats: int, adapters: Mapping[str, Mapping[str, Any]], beside: bool
) -> tuple[dict[str, np.ndarray], dict[str, float]]:
    """Row → C of every fold, and adapter → its r on pseudo-bulk; ``beside``: with the rows that are no adapters."""
    tables = build_tables(plan(name, PATIENTS), COMPLETE, SEED)
    labels = tables.clinical.set_index("PATIENT")[["OS_DAYS", "OS_EVENT"]].astype(float)
    counts = tables.omics["rna"].set_index("PATIENT").astype(np.float32).loc[labels.index]
    folds = folds_of(labels, repeats)
    reference = reference_of(COHORTS[name], folder)
    encoder = components_of(reference, folder / f"components-{name}")
    vectors = encoder.encode(counts.to_numpy(), tuple(counts.columns), kind="counts", seed=0)

    def frame(values: np.ndarray) -> pd.DataFrame:
        return pd.DataFrame(values, index=labels.index)

    rows = {"all genes": c_of_folds(counts, labels, folds, GENES)} if beside else {}
    rows["encoder alone"] = c_of_folds(frame(vectors), labels, folds, VECTORS)
    if beside:
        untrained, _ = adapter_of(reference, encoder, NONE | {"epochs": 1, "lr": 1e-12})
        rows["untrained adapter"] = c_of_folds(frame(untrained(vectors)), labels, folds, VECTORS)
    recovered = {}
    for title, settings in adapters.items():
        adapter, recovered[title] = adapter_of(reference, encoder, settings)
        rows[title] = c_of_folds(frame(adapter(vectors)), labels, folds, VECTORS)
        print(f"{name} {title}: C {rows[title].mean():.3f}, r {recovered[title]:.3f}", flush=True)
    if not beside:
        return rows, recovered
    truth = tables.truth.set_index("PATIENT").loc[labels.index, "log_hazard"]
    behind = []
    for fold in folds:
        part = labels.loc[list(fold.test)]
        behind.append(harrell_c(part["OS_DAYS"].to_numpy(), part["OS_EVENT"].to_numpy(), truth[part.index]))
    rows["risk behind the data"] = np.array(behind)
    return rows, recovered


def interval(differences: np.ndarray) -> dict[str, float]:
    """Mean over cohorts ``[cohorts, folds]`` and its 95 % interval; folds of a cohort overlap in training."""
    cohorts, n = differences.shape
    variance = (1 / n + 1 / (FOLDS - 1)) * differences.var(axis=1, ddof=1)
    half = student.ppf(0.975, n - 1) * np.sqrt(variance.sum()) / cohorts
    mean = float(differences.mean())
    return {"difference": mean, "low": mean - float(half), "high": mean + float(half)}


def with_kept_rows(record: dict[str, Any]) -> dict[str, Any]:
    """What was measured before, with these rows; refused if a row that both have is another one now."""
    kept = json.loads(RESULTS.read_text())
    for name in ("encoder alone", "none"):
        if kept["rows"][name] != record["rows"][name]:
            raise SystemExit(f"{name!r} is not what it was: measure all rows")
    rows = kept["rows"] | record["rows"]
    return kept | {"rows": {name: rows[name] for name in sorted(rows, key=ROWS.index)}}


def main() -> None:
    """Both cohorts, all adapters, and the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--repeats", type=int, default=REPEATS, help="of the folds; nothing is kept with fewer"
    )
    parser.add_argument(
        "--adapters",
        nargs="*",
        choices=tuple(ADAPTERS),
        help="measure some of the rows, the others are kept [all]",
    )
    asked = parser.parse_args()
    torch.set_num_threads(1)
    load, started = os.getloadavg()[0], time.process_time()
    chosen = {name: ADAPTERS[name] for name in ("none", *(asked.adapters or ADAPTERS))}
    beside = not asked.adapters
    with tempfile.TemporaryDirectory() as folder:
        found = {name: cohort_rows(name, Path(folder), asked.repeats, chosen, beside) for name in COHORTS}
    c = {row: np.stack([rows[row] for rows, _ in found.values()]) for row in next(iter(found.values()))[0]}
    table: dict[str, dict[str, Any]] = {}
    for row, values in c.items():
        entry: dict[str, Any] = {"c": float(values.mean())}
        entry["c_of_cohorts"] = dict(zip(COHORTS, map(float, values.mean(axis=1)), strict=True))
        if row in chosen:
            entry["r_100"] = float(np.mean([recovered[row] for _, recovered in found.values()]))
        for name in ("encoder alone", "none"):
            if row != name:
                entry[f"against_{name.replace(' ', '_')}"] = interval(values - c[name])
        table[row] = entry
    print(f"\nSYNTHETIC\n{'':36} C      r      C against the encoder alone [95 %]")
    for row, entry in table.items():
        apart = entry.get("against_encoder_alone")
        text = f"{apart['difference']:+.3f} [{apart['low']:+.3f}, {apart['high']:+.3f}]" if apart else ""
        r = f"{entry['r_100']:.3f}" if "r_100" in entry else "     "
        print(f"{row:36} {entry['c']:.3f}  {r}  {text}")
    record = {
        "data": "SYNTHETIC",
        "patients": PATIENTS,
        "folds": FOLDS,
        "repeats": asked.repeats,
        "rows": table,
    }
    record |= {"cpu_seconds": round(time.process_time() - started, 1), "load_before": round(load, 2)}
    record |= {"torch": version("torch"), "numpy": version("numpy")}
    record = rounded(record)
    if asked.repeats >= REPEATS:
        RESULTS.write_text(json.dumps(record if beside else with_kept_rows(record), indent=2) + "\n")
    print(json.dumps(record))


if __name__ == "__main__":
    main()
