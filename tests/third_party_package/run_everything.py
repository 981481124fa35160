"""Runs a study of tables and one of slides in which every method is from elsewhere; prints what was used as JSON."""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from equipoise_elsewhere.methods import USED

from equipoise.datasets.synthetic import generate
from equipoise.platform.cluster.params import RayOptions
from equipoise.platform.explain.tile_scores import list_tile_scores, read_tile_scores
from equipoise.platform.extraction.sources import obtain_features
from equipoise.platform.registry import get
from equipoise.platform.run.context import RunContext
from equipoise.platform.run.folder import RunFolder
from equipoise.platform.run.loading import load_study
from equipoise.platform.run.steps import run_steps
from equipoise.platform.run.synthesis import synthesize


def write_tables(folder: Path) -> None:
    """48 patients of three initials, whose age decides their response."""
    rng = np.random.default_rng(0)
    age = rng.integers(30, 90, 48)
    columns = {
        "PATIENT": [f"{'ABC'[i % 3]}{i:02}" for i in range(48)],
        "AGE": age,
        "RESPONSE": np.where(age + rng.normal(0, 5, 48) > 60, "yes", "no"),
        "SIZE": age / 2 + rng.normal(0, 3, 48),
    }
    pd.DataFrame(columns).to_csv(folder / "clinical.csv", index=False)
    genes = pd.DataFrame(rng.poisson(20 + age[:, None], (48, 6)), columns=list("abcdef"))
    genes.insert(0, "PATIENT", columns["PATIENT"])
    genes.to_csv(folder / "rna.csv", index=False)


def run_tables(folder: Path) -> None:
    """Every step of a study that the package's template wrote."""
    write_tables(folder)
    file = folder / "study.yaml"
    file.write_text(get("templates", "two_sites").load()(folder, file))
    steps = ("validate", "extract", "train", "evaluate", "federate", "report")
    study = load_study(file, {"training.text": {"encoder": "letters", "dim": 8}})
    run_steps(study, RunFolder.open(study, str(folder / "run"), "auto"), steps)
    small = {"kind": "modaltune", "dim": 8, "bottleneck": 8, "attention_heads": 2, "clinical": "opposites"}
    study = load_study(file, {"model": small, "training.epochs": 1})
    run_steps(study, RunFolder.open(study, str(folder / "tokens"), "auto"), ("validate", "extract", "train"))


def run_slides(folder: Path) -> None:
    """Slides of the package's cohort through its encoders, in this process instead of Ray workers."""
    definition = get("cohorts", "pocket").load()("pocket")
    for job in generate.plan(definition, 7):
        generate.write_patient(job, folder)
    file = synthesize("pocket", 7, folder, RayOptions())
    overrides = {
        "features.encoder": "mean_colour",
        "features.slide_encoder": "extremes",
        "model": {
            "kind": "gptomic",
            "image": "mean_pool",
            "image_params": {"dim": 4},
            "dim": 4,
            "fusion": "mean_branch",
            "modulation": "halve",
        },
        "explain": {"methods": ["brightness", "integrated_gradients"], "slides": 1},
        "tasks": [{"name": "LF", "type": "regression", "column": "LF", "main": True}],
    }
    study = load_study(file, overrides)
    context = RunContext(study, RunFolder(folder / "run"))
    obtain_features(context.cohorts.slides, study.features, context.store_root, study.base, workers=0)
    run = RunFolder.open(study, str(folder / "run"), "auto")
    run_steps(study, run, ("extract", "train", "evaluate", "explain"))
    units = {read_tile_scores(path).unit for path in list_tile_scores(run.explain)}
    if "brightness, whatever the LF" not in units:
        raise SystemExit(f"units of maps: {units}")


if __name__ == "__main__":
    tables, slides = Path(sys.argv[1]) / "tables", Path(sys.argv[1]) / "slides"
    tables.mkdir()
    slides.mkdir()
    run_tables(tables)
    run_slides(slides)
    page = (tables / "run" / "report.html").read_text(encoding="utf-8")
    print(json.dumps({"used": sorted(USED), "greeted": "A sentence of another package." in page}))
