"""Survival from omics of real TCGA patients, federated: six cohorts, and the institutions of one of them.

PORPOISE's tables (RNA z-scores and mutations) of BRCA, GBMLGG, KIRC, KIRP, LUAD and LUSC; a self-normalising network
with Cox's loss. First every cohort is a client; then GBMLGG alone, every institution of at least 20 patients a client
(tissue source sites by the GDC's table), the smaller ones together. Five folds of patients; the study goes through the
product's step ``federate``, with pooled, local and ensemble training beside it on the same folds.

``cohort_fed_c``, ``cohort_local_c``, ``cohort_pooled_c``: unweighted mean over the six cohorts of the C-index in the
test part of the folds; ``institution_*`` the same over institutions with at least 10 test patients in all.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from equipoise.platform.evaluation.params import EvaluationParams
from equipoise.platform.federation.simulation.evaluation import METHODS
from equipoise.platform.run import steps
from equipoise.platform.run.folder import RunFolder
from equipoise.platform.run.loading import load_study
from equipoise.platform.study.schema import Study

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
COHORTS = ("BRCA", "GBMLGG", "KIRC", "KIRP", "LUAD", "LUSC")


def study_of(
    data: Path, folder: Path, cohorts: tuple[str, ...], sites: dict[str, Any], asked: argparse.Namespace
) -> Study:
    """A study of these cohorts."""

    def cohort(name: str) -> dict[str, Any]:
        table = str(data / "tcga" / "porpoise" / f"tcga_{name.lower()}_all_clean.csv.zip")
        return {
            "name": f"TCGA-{name}",
            "role": "develop",
            "clinical": table,
            "site": "tss",
            "omics": {
                "rna": {"path": table, "suffix": "_rnaseq"},
                "mutation": {"path": table, "suffix": "_mut"},
            },
        }

    # PORPOISE's censorship: 1 is censored, 0 has died.
    death = {
        "time": {"column": "survival_months", "unit": "months"},
        "event": {"column": "censorship", "event_value": "0", "censored_value": "1"},
    }
    study = {
        "version": 1,
        "name": "tcga-federation",
        "seed": asked.seed,
        "cohorts": [cohort(name) for name in cohorts],
        "tasks": [{"name": "OS", "type": "survival", **death}],
        "tables": {"rna": {"genes": 500}},
        "model": {"kind": "omics", "dim": 64, "layers": 1},
        "training": {"epochs": 20, "patience": 5, "lr": 5e-4, "batch": 64, "probe": False},
        "splits": {"scheme": "kfold", "folds": 5, "inner_val": 0.15},
        "evaluation": {"bootstrap": 200},
        "federation": {
            "sites": sites,
            "rounds": asked.rounds,
            "local": {"epochs": 1, "batch": "full", "lr": 5e-4},
            "evaluation": {"folds": asked.folds},
        },
    }
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(study, sort_keys=False))
    return load_study(file)


def federate(
    data: Path, cohorts: tuple[str, ...], sites: dict[str, Any], asked: argparse.Namespace
) -> pd.DataFrame:
    """``sites.csv`` of the study."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        study = study_of(data, folder, cohorts, sites, asked)
        run = folder / "run"
        steps.run_steps(study, RunFolder.open(study, str(run), "auto"), ["validate", "extract", "federate"])
        return pd.read_csv(run / "federated" / "sites.csv", keep_default_na=False, na_values=[""])


def show(table: pd.DataFrame, what: str) -> dict[str, float]:
    """Print the table; the unweighted means over sites by method."""
    print(f"\n| {what} | patients | events | {' | '.join(METHODS)} |")
    print(f"|---|---|---|{'---|' * len(METHODS)}")
    value = table.set_index(["scope", "client", "method"])["value"].unstack("method")
    counts = table[table["method"] == "federated"].set_index(["scope", "client"])[["n", "n_pos"]]

    def line(name: str, n: Any, events: Any, row: pd.Series) -> None:
        cells = ["–" if pd.isna(row.get(method)) else f"{row[method]:.3f}" for method in METHODS]
        print(f"| {name} | {n} | {events} | {' | '.join(cells)} |")

    for key in [key for key in value.index if key[0] == "client"]:
        n, events = counts.loc[key]
        line(str(key[1]), int(n), int(events), value.loc[key])
    means = {}
    for scope, name in (("mean", "mean of sites"), ("weighted", "mean by patients"), ("worst", "worst site")):
        of_scope = table[table["scope"] == scope].set_index("method")["value"]
        line(name, "", "", of_scope)
        if scope == "mean":
            means = {str(method): float(c) for method, c in of_scope.items()}
    line("all test patients", "", "", table[table["scope"] == "pooled"].set_index("method")["value"])
    return means


def main() -> None:
    """Both federations, their tables, and the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--data", type=Path, default=SHARED, help="folder with tcga/ and fed/ [../shared/data]"
    )
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--folds", type=int, default=5, help="of five; nothing is kept with fewer")
    parser.add_argument("--seed", type=int, default=2024)
    asked = parser.parse_args()
    sources = asked.data / "fed" / "tcga_tss" / "tissueSourceSite.tsv"
    if not (asked.data / "tcga" / "porpoise").is_dir() or not sources.is_file():
        reason = f"no tcga/porpoise or fed/tcga_tss in {asked.data}: give the data folder with --data"
        print(f"skipped: {reason}")
        print(json.dumps({"skipped": reason}))
        return
    started, load = time.perf_counter(), os.getloadavg()[0]
    figures: dict[str, Any] = {}
    settings: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
        "cohort": (COHORTS, {"scheme": "cohort"}),
        "institution": (("GBMLGG",), {"scheme": "institution", "table": str(sources)}),
    }
    for scheme, (cohorts, sites) in settings.items():
        table = federate(asked.data, cohorts, sites, asked)
        means = show(table, scheme)
        keys = {"federated": "fed", "local": "local", "pooled": "pooled", "ensemble": "ensemble"}
        figures |= {f"{scheme}_{keys[method]}_c": round(value, 4) for method, value in means.items()}
        known = table[(table["scope"] == "client") & (table["method"] == "federated")]
        figures[f"{scheme}_clients"] = len(known)
    figures |= {"rounds": asked.rounds, "folds": asked.folds, "smallest_site": EvaluationParams().min_site}
    figures |= {"seconds": round(time.perf_counter() - started), "load_before": round(load, 1)}
    figures |= {"python": sys.version.split()[0], "torch": version("torch")}
    if asked.folds == 5:
        results = Path(__file__).parent / "results" / "tcga_federation.json"
        results.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
