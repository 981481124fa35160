"""Survival from omics of real TCGA patients, federated: six cohorts, and the institutions of one of them.

PORPOISE's tables (RNA z-scores and mutations) of BRCA, GBMLGG, KIRC, KIRP, LUAD and LUSC; a Cox model that is linear in
mutations and 200 principal components of the RNA. First every cohort is a client; then GBMLGG alone, every institution
of at least 20 patients a client (tissue source sites by the GDC's table), the smaller ones together. Five folds of
patients; the study goes through the step ``federate``, with pooled, local and ensemble training on the same folds.

Clients take one full-batch step a round, so that a federation descends the partial likelihood stratified by client.
Penalty and transform of the RNA are chosen inside the training part of every fold, by sums that the sites send about
their inner validation patients. Pooled and local models have the transform that was chosen, and are ridge fits by a
solver, whose penalty is chosen by inner cross-validation: their figures stand under ``ridge``, too. Elastic nets,
pooled and local, stand beside them. For the six cohorts a second federation chooses among personalised strategies.

``cohort_fed_c``, ``cohort_local_c``, …: unweighted mean over the six cohorts of the C-index in the test part of the
folds; ``institution_*`` the same over institutions with at least 10 test patients in all. ``institution_pairs_c`` is
the concordance over all pairs of patients of one institution and one fold, ``institution_pairs_local_c`` that of local
models. ``cohort_personal_c`` is the mean of the personalised models.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
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
#: Method → its name in the figures.
KEYS = {
    "federated": "fed", "pooled": "pooled", "local": "local", "ensemble": "ensemble",
    "pooled elastic_net": "elastic_net", "local elastic_net": "elastic_net_local",
}  # fmt: skip
#: RNA as it comes, and with the logarithm that undoes the skew of z-scores.
RNA: dict[str, dict[str, Any]] = {
    "z": {"transform": "none", "clip_standardised": 5.0, "components": 200},
    "log": {"transform": "log", "clip_standardised": 5.0, "components": 200},
}


def candidate(rna: str, penalty: float, **settings: Any) -> dict[str, Any]:
    """Settings to choose among: a transform, a ridge penalty (per event) and what else differs."""
    return {"tables": {"rna": RNA[rna]}, "local": {"weight_decay": penalty}, **settings}


#: One global model.
GLOBAL = [candidate("z", 0.07), candidate("log", 0.02), candidate("log", 0.07), candidate("log", 0.2)]
#: A model per client: near the global one (Ditto), or some steps away from it (fine-tuning).
PERSONAL = [
    candidate("log", 0.02, strategy="ditto", strategy_params={"lam": 0.02}),
    *(candidate("log", 0.02, strategy="finetune", strategy_params={"steps": n}) for n in (30, 100)),
]


def study_of(
    data: Path,
    folder: Path,
    cohorts: tuple[str, ...],
    sites: dict[str, Any],
    asked: argparse.Namespace,
    candidates: Sequence[Mapping[str, Any]],
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
        "tables": {"rna": RNA["log"]},
        "model": {"kind": "omics", "network": "linear"},
        "training": {"batch": 64, "probe": False},
        "splits": {"scheme": "kfold", "folds": 5, "inner_val": 0.15},
        "evaluation": {"bootstrap": 200, "min_site_events": 1},
        "federation": {
            "sites": sites,
            "rounds": asked.rounds,
            "keep": "last",  # a convex loss: all candidates converge, and their penalty is what is chosen
            "strategy": "fedavgm",
            "local": {"optimizer": "sgd", "steps": 1, "batch": "full", "lr": 0.3, "schedule": "cosine"},
            "candidates": list(candidates),
            "evaluation": {
                "folds": asked.folds,
                "clean_costs": False,
                "linear_baselines": ["elastic_net"],
            },
        },
    }
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(study, sort_keys=False))
    return load_study(file)


def federate(study: Study, run: Path) -> pd.DataFrame:
    """``sites.csv`` of the study."""
    steps.run_steps(study, RunFolder.open(study, str(run), "auto"), ["validate", "extract", "federate"])
    return pd.read_csv(run / "federated" / "sites.csv", keep_default_na=False, na_values=[""])


def chosen(run: Path) -> list[dict[str, Any]]:
    """The settings that every fold has chosen."""
    facts = [
        json.loads(path.read_text()) for path in sorted((run / "federated" / "folds").glob("*/facts.json"))
    ]
    return [fact["candidates"][fact["chosen"]]["settings"] for fact in facts]


def show(table: pd.DataFrame, what: str) -> dict[str, dict[str, float]]:
    """Print the table; scope → method → value."""
    methods = [method for method in METHODS if (table["method"] == method).any()]
    print(f"\n| {what} | patients | events | {' | '.join(methods)} |")
    print(f"|---|---|---|{'---|' * len(methods)}")
    value = table.set_index(["scope", "client", "method"])["value"].unstack("method")
    counts = table[table["method"] == "pooled"].set_index(["scope", "client"])[["n", "n_pos"]]

    def line(name: str, n: Any, events: Any, row: Mapping[str, float]) -> None:
        cells = ["–" if pd.isna(row.get(method)) else f"{row[method]:.3f}" for method in methods]
        print(f"| {name} | {n} | {events} | {' | '.join(cells)} |")

    for key in [key for key in value.index if key[0] == "client"]:
        n, events = counts.loc[key]
        line(str(key[1]), int(n), "" if pd.isna(events) else int(events), value.loc[key].to_dict())
    names = {
        "mean": "mean of sites", "weighted": "mean by patients", "worst": "worst site",
        "pairs": "pairs within sites", "pooled": "all test patients",
    }  # fmt: skip
    scopes = {}
    for scope, name in names.items():
        scopes[scope] = table[table["scope"] == scope].set_index("method")["value"].to_dict()
        line(name, "", "", scopes[scope])
    for row in table[table["method"].str.contains(" - ") & table["scope"].isin(["mean", "pairs"])].to_dict(
        "records"
    ):
        print(
            f"{row['method']}, {names[row['scope']]}: {row['value']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]"
        )
    return scopes


def main() -> None:
    """Both federations and the personalised one, their tables, and the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--data", type=Path, default=SHARED, help="folder with tcga/ and fed/ [../shared/data]"
    )
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--folds", type=int, default=5, help="of five; nothing is kept with fewer")
    parser.add_argument("--seed", type=int, default=2024)
    parser.add_argument("--only", choices=["cohort", "institution"], help="one of the two; the other's stay")
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
    with tempfile.TemporaryDirectory() as temporary:
        for scheme, (cohorts, sites) in settings.items():
            if asked.only not in (None, scheme):
                continue
            folder = Path(temporary) / scheme
            folder.mkdir()
            study = study_of(asked.data, folder, cohorts, sites, asked, GLOBAL)
            table = federate(study, folder / "run")
            scopes = show(table, scheme)
            print("chosen:", json.dumps(chosen(folder / "run")))
            figures |= {
                f"{scheme}_{key}_c": round(scopes["mean"][method], 4)
                for method, key in KEYS.items()
                if method in scopes["mean"]
            }
            figures |= {f"{scheme}_ridge_c": figures[f"{scheme}_pooled_c"]}
            figures |= {f"{scheme}_ridge_local_c": figures[f"{scheme}_local_c"]}
            pairs = {
                "federated": "",
                "local": "_local",
                "pooled": "_pooled",
                "local elastic_net": "_elastic_net_local",
            }
            figures |= {
                f"{scheme}_pairs{key}_c": round(scopes["pairs"][method], 4)
                for method, key in pairs.items()
                if method in scopes["pairs"]
            }
            known = table[
                (table["scope"] == "client") & (table["method"] == "federated") & table["value"].notna()
            ]
            figures[f"{scheme}_clients"] = len(known)
        if asked.only != "institution":
            folder = Path(temporary) / "personal"
            folder.mkdir()
            cohorts, sites = settings["cohort"]
            study = study_of(asked.data, folder, cohorts, sites, asked, PERSONAL)
            reuse(Path(temporary) / "cohort" / "run", folder / "run", study)
            scopes = show(federate(study, folder / "run"), "cohort, personalised")
            print("chosen:", json.dumps(chosen(folder / "run")))
            figures["cohort_personal_c"] = round(scopes["mean"]["federated"], 4)
    figures |= {"rounds": asked.rounds, "folds": asked.folds, "smallest_site": EvaluationParams().min_site}
    part = "" if asked.only is None else f"{asked.only}_"
    figures |= {f"{part}seconds": round(time.perf_counter() - started), f"{part}load_before": round(load, 1)}
    figures |= {"python": sys.version.split()[0], "torch": version("torch")}
    if asked.folds == 5:
        results = Path(__file__).parent / "results" / "tcga_federation.json"
        kept = {} if asked.only is None else json.loads(results.read_text())
        results.write_text(json.dumps(kept | figures, indent=1) + "\n")
    print(json.dumps(figures))


def reuse(before: Path, run: Path, study: Study) -> None:
    """Baselines that are trained already, on the same folds and with the same settings, are not trained again."""
    RunFolder.open(study, str(run), "auto")
    for name in ("folds", "federated/folds/pooled", "federated/folds/local", "federated/folds/linear"):
        if (before / name).exists():
            shutil.copytree(before / name, run / name)


if __name__ == "__main__":
    main()
