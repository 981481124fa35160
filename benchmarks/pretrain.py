"""Does a model that was pre-trained on four cohorts help on a fifth? SYNTHETIC.

The cohorts of preset ``pancancer`` are written as feature bags (five cancers, 96 patients each) and imported into a
feature store. ``equipoise pretrain`` trains gated attention on four of them: subtype, MSI, survival and five scores of
the microenvironment. The fifth, a cancer that it has not seen, is cross-validated with the first three tasks by

- ``random``: the same model from random weights,
- ``start``: the same model, training started from the pre-trained one,
- ``probe``: ridge on the frozen representation of the pre-trained model,
- ``probe, untrained``: ridge on that of the same model with random weights,
- ``mean tile``: ridge on the mean of the tiles.

A seed is another draw of all patients and tissue, and of everything random in training: five independent data sets. The
value of a seed is the mean over tasks of AUROC (subtype, MSI) and C (survival) over the test folds; differences are
paired by seed, with Student's interval of their mean. Settings were tried on seed 101, which is not among the five.
The cohorts share their biology by construction; nothing here says how much is shared among real cancers.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from equipoise.datasets.atomic_io import read_json, write_json, write_text
from equipoise.datasets.synthetic import generate
from equipoise.datasets.synthetic.catalogue import PRESETS_BY_NAME
from equipoise.datasets.synthetic.clinical import TME

PRESET, FIFTH, SEEDS = "pancancer", "syn-stad-a", (1, 2, 3, 4, 5)
RESULT = Path(__file__).parent / "results" / "pretrain.json"
MODEL: dict[str, Any] = {"kind": "abmil", "dim": 128, "hidden": 64}
RIDGE: dict[str, Any] = {"kind": "elastic_net", "modalities": ["wsi"], "l1_ratio": 0.0}
COMMON: dict[str, Any] = {
    "tables": {},
    "evaluation": {"baselines": False, "bootstrap": 50},
    "splits": {"scheme": "kfold", "folds": 3, "inner_val": 0.2},
    "training": {"epochs": 40, "patience": 12, "lr": 3.0e-4, "batch": 8, "bag_tiles": 48},
}
ARMS = ("random", "start", "probe", "probe, untrained", "mean tile")
#: What is compared with what.
PAIRS = (
    ("start", "random"),
    ("probe", "random"),
    ("probe", "probe, untrained"),
    ("probe", "mean tile"),
    ("start", "mean tile"),
)
METRICS = {"subtype": "auroc", "MSI": "auroc", "OS": "c_index"}


def main() -> None:
    """Print the tables and the figures, keep them beside this file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS), help="of the cohorts")
    parser.add_argument(
        "--work", default=None, help="folder of cohorts and runs, finished ones are kept [a temporary folder]"
    )
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(arguments.work or scratch).resolve()
        rows = {seed: measured(work / f"seed-{seed}", seed) for seed in arguments.seeds}
    figures = summary(rows)
    print("\n".join(lines(figures)))
    figures |= {
        "synthetic": True,
        "rows": {str(seed): row for seed, row in rows.items()},
        "load_before": round(load, 1),
        "cores": os.cpu_count(),
        "versions": {name: version(name) for name in ("torch", "numpy")}
        | {"python": platform.python_version()},
    }
    if tuple(arguments.seeds) == SEEDS:
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures))


def measured(work: Path, seed: int) -> dict[str, Any]:
    """Values of all arms in one draw of the cohorts; read where they were measured before."""
    done = work / "row.json"
    if (row := read_json(done, None)) is not None:
        return row
    started = time.perf_counter()
    study = prepare(work, seed)
    model = pretrained(work, study)
    untrained(work, model)
    row = {"pretrain": read_json(model / "config.json")["record"]["relative_loss"]}
    changes: dict[str, dict[str, Any]] = {
        "random": {"model": MODEL},
        "start": {"model": MODEL, "training.start": str(model)},
        "probe": {"model": RIDGE} | encoded_by(model),
        "probe, untrained": {"model": RIDGE} | encoded_by(work / "untrained"),
        "mean tile": {"model": RIDGE},
    }
    for arm in ARMS:
        row[arm] = cross_validated(work, arm, changes[arm])
    row["seconds"] = round(time.perf_counter() - started, 1)
    write_json(done, row)
    return row


def prepare(work: Path, seed: int) -> Path:
    """The cohorts as feature bags; two study files: of all cohorts, and of the fifth alone."""
    import yaml

    preset = PRESETS_BY_NAME[PRESET].model_copy(update={"content": "bags"})
    work.mkdir(parents=True, exist_ok=True)
    for job in generate.plan(preset, seed):
        if not generate.is_done(job, work):
            generate.write_patient(job, work)
    generate.write_tables(preset, seed, work)
    data = yaml.safe_load(generate.study_yaml(preset, seed)) | COMMON
    for cohort in data["cohorts"]:
        cohort.pop("omics", None)
    scores = [{"name": name, "type": "regression", "column": name} for name in TME]
    four = data | {"name": "four", "tasks": [*data["tasks"], *scores], "model": MODEL, "pretrain": {}}
    write_text(work / "four.yaml", yaml.safe_dump(four))
    (fifth,) = [cohort | {"role": "develop"} for cohort in data["cohorts"] if cohort["name"] == FIFTH]
    features = data["features"] | {"imported": [f"{FIFTH}/features"]}
    write_text(
        work / "fifth.yaml",
        yaml.safe_dump(data | {"name": "fifth", "cohorts": [fifth], "features": features, "model": MODEL}),
    )
    return work / "four.yaml"


def pretrained(work: Path, study: Path) -> Path:
    """``equipoise pretrain`` on the four cohorts."""
    from equipoise.platform.run.folder import RunFolder
    from equipoise.platform.run.loading import load_study
    from equipoise.platform.run.steps import run_steps

    loaded = load_study(study)
    folder = RunFolder.open(loaded, str(work / "run"), "auto")
    run_steps(loaded, folder, ["extract", "pretrain"])
    return folder.pretrain / "model"


def untrained(work: Path, model: Path) -> None:
    """A folder with the same model and random weights."""
    from equipoise.models.batch import CaseShape, TaskHead
    from equipoise.models.pretrained_folder import read_pretrained, write_pretrained
    from equipoise.platform.training.build import build_model

    folder = read_pretrained(model)
    heads = [TaskHead(task, "regression", 1) for task in folder.tasks]
    network = build_model(folder.model, folder.model_params, CaseShape(folder.tiles.dim), heads, seed=0)
    shutil.rmtree(work / "untrained", ignore_errors=True)
    write_pretrained(
        work / "untrained",
        network.state_dict(),
        model=folder.model,
        model_params=folder.model_params,
        tiles=folder.tiles,
        tasks=folder.tasks,
        record={},
        seen={"format": "equipoise-seen/1", "parts": []},
    )


def encoded_by(model: Path) -> dict[str, Any]:
    """Settings of a study whose slides become vectors of a pre-trained model."""
    return {
        "features.slide_encoder": "pretrained",
        "features.slide_encoder_params": {"folder": str(model)},
    }


def cross_validated(work: Path, arm: str, changes: dict[str, Any]) -> dict[str, float]:
    """Task → its metric over the test folds of the fifth cohort, and their mean."""
    from equipoise.platform.extraction.sources import obtain_features
    from equipoise.platform.run.folder import RunFolder
    from equipoise.platform.run.loading import load_study
    from equipoise.platform.run.steps import RunContext, run_steps

    study = load_study(work / "fifth.yaml", changes)
    folder = RunFolder.open(study, str(work / "arms" / arm.replace(", ", "-").replace(" ", "-")), "auto")
    context = RunContext(study, folder)
    # In this process: vectors of some hundred slides are a matter of seconds.
    obtain_features(context.cohorts.slides, study.features, context.store_root, study.base, workers=0)
    run_steps(study, folder, ["train", "evaluate"])
    table = pd.read_csv(folder.evaluation / "metrics.csv")
    table = table[(table["role"] == "test") & (table["cohort"] == "all") & (table["predictor"] == "model")]
    found = {}
    for task, metric in METRICS.items():
        rows = table[(table["task"] == task) & (table["metric"] == metric) & (table["site"] == "all")]
        rows = rows[(rows["fold"] == "all") & (rows["class"].fillna("") == "")] if len(rows) > 1 else rows
        (value,) = rows["value"]
        found[task] = round(float(value), 4)
    return found | {"mean": round(float(np.mean(list(found.values()))), 4)}


def summary(rows: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds, and paired differences with Student's interval."""
    count = len(rows)
    values = {
        arm: {
            key: round(float(np.mean([row[arm][key] for row in rows.values()])), 4)
            for key in (*METRICS, "mean")
        }
        for arm in ARMS
    }
    differences = {}
    for arm, other in PAIRS:
        apart = np.array([row[arm]["mean"] - row[other]["mean"] for row in rows.values()])
        half = stats.t.ppf(0.975, count - 1) * apart.std(ddof=1) / count**0.5 if count > 1 else np.nan
        mean = float(apart.mean())
        differences[f"{arm} - {other}"] = {
            "difference": round(mean, 4),
            "low": round(mean - half, 4),
            "high": round(mean + half, 4),
            "better_in": int((apart > 0).sum()),
        }
    first = differences["start - random"]
    return {
        "seeds": list(rows),
        "values": values,
        "differences": differences,
        "start_minus_random": first["difference"],
        "start_minus_random_low": first["low"],
        "pretraining_beats_random": bool(first["low"] > 0),
    }


def lines(figures: dict[str, Any]) -> list[str]:
    """The tables on screen."""
    shown = [
        f"SYNTHETIC, {FIFTH} cross-validated, {len(figures['seeds'])} draws; AUROC, AUROC, C and their mean"
    ]
    for arm, row in figures["values"].items():
        shown.append(f"{arm:<18} " + "  ".join(f"{key} {value:.3f}" for key, value in row.items()))
    for name, row in figures["differences"].items():
        shown.append(
            f"{name:<26} {row['difference']:+.3f} ({row['low']:+.3f} to {row['high']:+.3f}), "
            f"better in {row['better_in']} of {len(figures['seeds'])}"
        )
    verdict = "beats" if figures["pretraining_beats_random"] else "does not beat"
    shown.append(f"pre-training {verdict} random initialisation (95 % interval of five paired differences)")
    return shown


if __name__ == "__main__":
    main()
