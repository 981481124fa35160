"""How far predictions can be trusted, SYNTHETIC: coverage of sets and intervals, and drift of another stain.

The preset ``quick``: sets of every fold's model are calibrated on its inner validation patients and measured on its
test patients (development cohort); the external cohort, of another stain and scanner, gets the sets that a new patient
would get. Drift: the external slides against those of development; and as a control each test fold against the slides
of the other folds, which have the same stain.

Keys: ``coverage`` of the main task on the test folds with its binomial interval ``coverage_low``, ``coverage_high``,
``expected_low`` to ``expected_high`` where exchangeable patients have it in 95 % of studies,
``tasks_in_expected_range``; ``external_coverage`` of the external cohort beside ``drift_flag`` (any test of the batch),
and ``drift_flag_same_stain`` (any test of any fold); ``slides_flagged`` is the share of slides whose features or colour
are flagged, of the external cohort and, ``slides_flagged_same_stain``, of the folds.
"""

import argparse
import json
import os
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from equipoise.platform.cluster.params import RayOptions
from equipoise.platform.cluster.session import ray_session
from equipoise.platform.prediction.conformal import LEVEL
from equipoise.platform.prediction.coverage import external_coverage, nested_coverage, trade_off
from equipoise.platform.prediction.drift import DriftReference
from equipoise.platform.prediction.slide_sets import looks_at, slide_set
from equipoise.platform.prediction.trust import Trust
from equipoise.platform.run.context import RunContext
from equipoise.platform.run.folder import RunFolder
from equipoise.platform.run.loading import load_study
from equipoise.platform.run.results import RunResults
from equipoise.platform.run.steps import run_steps
from equipoise.platform.run.synthesis import synthesize

STEPS = ("validate", "extract", "train", "evaluate")


def main() -> None:
    """Make the run, or read one, and print the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="quick")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--study", help="study file of a finished run, in place of a new one")
    parser.add_argument("--run", help="its run folder")
    arguments = parser.parse_args()
    started, load = time.perf_counter(), os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        if arguments.study:
            study = load_study(arguments.study)
            context = RunContext(study, RunFolder.open(study, arguments.run, "must"))
        else:
            options = RayOptions()
            with ray_session(options):
                study = load_study(synthesize(arguments.preset, arguments.seed, Path(folder), options))
                out = RunFolder.open(study, str(Path(folder) / "run"), "auto")
                run_steps(study, out, STEPS)
            context = RunContext(study, out)
        figures = measure(context)
    figures |= {"versions": {name: version(name) for name in ("numpy", "scipy", "torch")}}
    figures |= {"seconds": round(time.perf_counter() - started), "load_before": round(load, 1)}
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    (results / "prediction.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures))


def measure(context: RunContext) -> dict[str, Any]:
    """Coverage and drift of a finished run."""
    predictions = RunResults(context.folder.root).predictions
    task = context.study.main_task.name
    inputs = context.inputs
    assert inputs.tiles is not None
    slides = inputs.cohorts.slides.merge(inputs.cohorts.patients[["patient", "role"]], on="patient")
    looks = looks_at(slides)
    every = slide_set(slides, inputs.tiles, looks)
    develop = np.asarray(slides.set_index("slide")["role"].reindex(every.slide) == "develop")
    trust = Trust.fit(predictions, every.where(develop))
    assert trust.conformal is not None
    assert trust.drift is not None
    nested, external = nested_coverage(predictions), external_coverage(trust.conformal, predictions)
    inside, outside = (
        table[(table["task"] == task) & (table["class"] == "")].iloc[0] for table in (nested, external)
    )
    rng = np.random.default_rng(0)
    new = every.where(~develop)
    batch, found = trust.drift.batch(new, rng), trust.drift.slides(new)
    same = control(predictions, every.where(develop), rng)
    show(nested, external, batch, found, same, trade_off(predictions))
    figures: dict[str, Any] = {
        "synthetic": True,
        "task": task,
        "level": LEVEL,
        "coverage": round(inside["coverage"], 4),
        "coverage_low": round(inside["low"], 4),
        "coverage_high": round(inside["high"], 4),
        "expected_low": round(inside["expected_low"], 4),
        "expected_high": round(inside["expected_high"], 4),
        "patients": int(inside["n"]),
        "tasks_in_expected_range": in_range(nested),
        "external_coverage": round(outside["coverage"], 4),
        "external_low": round(outside["low"], 4),
        "external_high": round(outside["high"], 4),
        "drift_flag": bool(batch["flagged"].any()),
        "drift_checks": {row.check: bool(row.flagged) for row in batch.itertuples()},
        "drift_flag_same_stain": bool(same["flagged"].any()),
        "slides_flagged": share(found),
        "slides_flagged_same_stain": float(same["slides"].mean().round(4)),
    }
    tasks = {}
    for row in nested[nested["class"] == ""].to_dict("records"):
        other = external[(external["task"] == row["task"]) & (external["class"] == "")]
        names = ("coverage", "low", "high", "expected_low", "expected_high")
        tasks[row["task"]] = {name: round(row[name], 4) for name in names} | {
            "external_coverage": round(float(other["coverage"].iloc[0]), 4) if len(other) else None,
        }
    return figures | {"tasks": tasks}


def control(predictions: pd.DataFrame, slides: Any, rng: np.random.Generator) -> pd.DataFrame:
    """Every test fold against the development slides of the other folds: ``fold check flagged slides``."""
    rows = []
    patients = np.asarray(slides.patient)
    for fold, test in predictions[predictions["role"] == "test"].groupby(["repeat", "fold"]):
        chosen = np.isin(patients, test["patient"].unique().astype(str))
        reference = DriftReference.fit(slides.where(~chosen))
        flagged = share(reference.slides(slides.where(chosen)))
        for row in reference.batch(slides.where(chosen), rng).itertuples():
            rows.append((f"{fold[0]}-{fold[1]}", row.check, row.flagged, flagged, row.reason))
    return pd.DataFrame(rows, columns=["fold", "check", "flagged", "slides", "reason"])


def share(found: pd.DataFrame) -> float:
    """Share of slides with a flag of features or colour."""
    of_vectors = found[found["check"].isin(["embedding", "stain"])]
    return round(float(of_vectors.groupby("slide")["flagged"].any().mean()), 4)


def in_range(nested: pd.DataFrame) -> str:
    """How many tasks have a coverage where exchangeable patients have it in 95 % of studies."""
    every = nested[nested["class"] == ""]
    inside = (every["expected_low"] <= every["coverage"]) & (every["coverage"] <= every["expected_high"])
    return f"{int(inside.sum())} of {len(every)}"


def show(*tables: pd.DataFrame) -> None:
    """Print the tables."""
    titles = (
        "SYNTHETIC: coverage on test folds", "coverage on the external cohort", "drift of the external cohort",
        "its slides: share flagged by check", "control: test folds against the other folds", "abstention, validation",
    )  # fmt: skip
    with pd.option_context("display.width", 200, "display.max_columns", 30, "display.max_colwidth", 120):
        for title, table in zip(titles, tables, strict=True):
            shown = table.groupby("check")["flagged"].mean() if "percentile" in table else table
            print(f"\n{title}\n{shown.round(3).to_string()}")


if __name__ == "__main__":
    main()
