"""Do maps show what is there? Tiles that cause MSI by construction, checks of maps, and the time of a map. SYNTHETIC.

The cohorts of a preset (``demo`` unless said otherwise) are written as slides, extracted, and models are trained on
their study. Held-out patients (test folds and external cohorts) are explained from stored features. In these cohorts
MSI raises mucin and lymphocytes, and ``truth/masks`` says where they lie: a tile with at least 10 % of mucin pool or
lymphoid aggregate is causal.

- ``msi_tile_auroc``: how well a map of MSI ranks causal tiles of a slide above the others, the mean over slides with at
  least 5 of each, for the model of the study and the default method, both named beforehand. ``rows`` has every model
  and method.
- ``seconds_per_slide``: CPU seconds of a map of a patient with 10,000 tiles in one thread, features read from the store
  included, by one model.
- ``deletion_pass``: over the explained slides the mean area between the curves is larger than in 99 of 100 random
  orders; ``randomisation_pass``: the mean size of the rank correlation with re-initialised models is at most .5. A
  planted map of random numbers, the same whatever the model, has to fail both.

Cohorts, features, folds and rows that are there are not made again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.metrics import roc_auc_score

from equipoise.datasets.atomic_io import read_json, write_json
from equipoise.datasets.cohorts.cases import Case
from equipoise.datasets.names import plain_name
from equipoise.datasets.synthetic.layout import MASK_CLASSES
from equipoise.platform.cluster.params import RayOptions
from equipoise.platform.evaluation.predictions import read_predictions
from equipoise.platform.explain.attribution import CaseScores, Method, explain_case
from equipoise.platform.explain.checks import MOST_RANDOM, deletion_curves, rank_correlation, reinitialised
from equipoise.platform.explain.explained import Explained
from equipoise.platform.explain.fold_models import FoldModels
from equipoise.platform.run.context import RunContext
from equipoise.platform.run.folder import RunFolder
from equipoise.platform.run.loading import load_study
from equipoise.platform.run.steps import run_steps

SEED = 7
RESULT = Path(__file__).parent / "results" / "explain.json"
#: Share of a causal tile that is mucin pool or lymphoid aggregate, and um per pixel of the masks.
CAUSAL, MASK_UM = 0.10, 8.0
#: Fewest causal and other tiles of a slide that is scored.
FEWEST = 5
#: Run → what it changes in the study of the preset; the first is the study as it is.
RUNS: dict[str, dict[str, Any]] = {
    "joint": {},
    "abmil": {"model": {"kind": "abmil", "dim": 64, "hidden": 32}},
    "elastic_net": {"model": {"kind": "elastic_net", "modalities": ["wsi"]}},
    "mean_pool": {"model": {"kind": "mean_pool", "layers": 1, "dim": 64}},
    "joint, 64 tiles of a bag in an epoch": {"training.bag_tiles": 64},
}
METHODS = ("gradient_input", "integrated_gradients", "single_tile", "attention")
PLANTED = "planted"
#: Patients whose maps are checked, random orders of the deletion curve, re-initialised models.
CHECKED, ORDERS, RANDOM_MODELS = 8, 99, 3
TILES = 10_000


class PlantedMap:
    """Random numbers that depend on the case alone: what a map must not be."""

    def scores(self, case: Explained) -> torch.Tensor:
        """``[N]``."""
        digest = hashlib.sha256(case.batch.bags.cpu().numpy().tobytes()).digest()
        return torch.from_numpy(np.random.default_rng([*digest[:8]]).normal(size=case.tiles))


def main() -> None:
    """Print the table and the figures, keep them beside this file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--seed", type=int, default=SEED, help="of the cohorts")
    parser.add_argument("--work", default=None, help="folder of cohorts, runs and rows [a temporary folder]")
    parser.add_argument("--new", type=int, default=None, help="make so many new rows in --work and stop")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(arguments.work or scratch).resolve()
        figures = measure(work, arguments.preset, arguments.seed, arguments.new)
    if figures is None:
        return
    for row in figures["rows"]:
        print(line(row))
    figures |= {
        "synthetic": True,
        "preset": arguments.preset,
        "seed": arguments.seed,
        "load_before": round(load, 1),
        "cores": os.cpu_count(),
        "versions": {name: version(name) for name in ("torch", "numpy", "ray")}
        | {"python": platform.python_version()},
    }
    if (arguments.preset, arguments.seed) == ("demo", SEED):
        RESULT.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures))


def measure(work: Path, preset: str, seed: int, most_new: int | None = None) -> dict[str, Any] | None:
    """All rows, and what the first run says with the first method; None if ``most_new`` are made and some are left."""
    from equipoise.platform.run.synthesis import synthesize

    cohorts = work / preset
    work.mkdir(parents=True, exist_ok=True)
    if not (cohorts / "study.yaml").exists():
        synthesize(preset, seed, cohorts, RayOptions())
    rows = []
    for run, changes in RUNS.items():
        name_of_run = plain_name(run)
        context = trained(cohorts, work / "runs" / name_of_run, name_of_run, changes)
        models = load(context)
        if not changes:
            predictions = read_predictions(context.folder.evaluation / "predictions.parquet")
        for name in METHODS[:1] if changes else (METHODS[0], PLANTED, *METHODS[1:]):
            file = work / "rows" / f"{name_of_run}-{name}.json"
            if not file.exists() and most_new is not None:
                if not most_new:
                    return None
                most_new -= 1
            rows.append(kept(file, partial(row_of, context, models, predictions, run, name)))
    own = rows[0]
    planted = next(row for row in rows if row["method"] == PLANTED)
    best = max((row for row in rows if row["method"] != PLANTED), key=lambda row: row["msi_tile_auroc"])
    names = ("deletion_pass", "randomisation_pass")
    return {
        "model": own["model"],
        "method": own["method"],
        "msi_tile_auroc": own["msi_tile_auroc"],
        "seconds_per_slide": own["seconds_per_slide"],
        **{name: own[name] for name in names},
        "planted": {name: planted[name] for name in names},
        "msi_auroc_of_patients": patient_auroc(predictions, context.study.main_task.name),
        "best_afterwards": {name: best[name] for name in ("model", "method", "msi_tile_auroc")},
        "rows": rows,
    }


def kept(file: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A row that is on disk, or a new one."""
    if not (row := read_json(file, {})):
        row = make()
        write_json(file, row)
    print(line(row), flush=True)
    return row


def line(row: dict[str, Any]) -> str:
    """A row as text."""
    text = (
        f"SYNTHETIC {row['model']:<11} {row['method']:<21} tile AUROC {row['msi_tile_auroc']:.3f} "
        f"(MSI-H {row['msi_tile_auroc_of_msi']:.3f}) in {row['slides_scored']} slides"
    )
    if "deletion_p" not in row:
        return text
    passes = [name for name in ("deletion", "randomisation") if row[f"{name}_pass"]]
    return (
        f"{text}, {row['seconds_per_slide']:.2f} s a slide, deletion p {row['deletion_p']:.2f}, randomisation "
        f"{row['randomisation']:.2f}, passes {' and '.join(passes) or 'neither'}"
    )


def trained(cohorts: Path, folder: Path, name: str, changes: dict[str, Any]) -> RunContext:
    """A run of the preset's study with another model, up to its predictions."""
    study = load_study(cohorts / "study.yaml", {"name": name, "evaluation.baselines": False, **changes})
    run = RunFolder.open(study, str(folder), "auto")
    steps = ["validate", "extract", "train", *([] if changes else ["evaluate"])]
    if set(steps) & set(run.to_do()):
        run_steps(study, run, steps)
    return RunContext(study, run)


def load(context: RunContext) -> FoldModels:
    """The models of the folds and the cases."""
    inputs = context.inputs
    folders = sorted(path for path in context.folder.folds.iterdir() if not path.name.startswith("."))
    return FoldModels.of(folders, inputs.cases("develop"), inputs.cases("external"), torch.device("cpu"))


def row_of(
    context: RunContext, models: FoldModels, predictions: pd.DataFrame, run: str, name: str
) -> dict[str, Any]:
    """One model and one method; checks and time for the first method and the planted one."""
    method = Method(PLANTED, PlantedMap()) if name == PLANTED else Method.named(name)
    task = context.study.main_task.name
    rows = predictions[(predictions["task"] == task) & predictions["role"].isin(["test", "external"])]
    people = rows.drop_duplicates("patient").sort_values(["role", "cohort", "patient"])
    store, cohorts = context.inputs.tiles, context.study.base
    assert store is not None
    scored: list[tuple[str, float, float]] = []
    explained: list[CaseScores] = []
    for person in people.itertuples():
        case = models.case(person.patient, person.role)
        if not len(case.bag):
            continue
        own = [models.folds[fold] for fold in models.unseen(person.patient, person.role)]
        (result,) = explain_case(own, case, task, None, method)
        explained.append(result)
        for scores in result.by_slide(synthetic=True):
            mask = cohorts / person.cohort / "truth" / "masks" / f"{scores.slide}.png"
            causal = causal_tiles(mask, scores.x, scores.y, scores.side, store.mpp(scores.slide))
            if min(causal.sum(), (~causal).sum()) >= FEWEST:
                scored.append((person.cohort, person.target, float(roc_auc_score(causal, scores.score))))
    aurocs = np.array([auroc for _, _, auroc in scored])
    msi = np.array([target == 1 for _, target, _ in scored])
    row: dict[str, Any] = {
        "model": run,
        "method": name,
        "msi_tile_auroc": round(float(aurocs.mean()), 3),
        "msi_tile_auroc_se": round(float(aurocs.std(ddof=1) / len(aurocs) ** 0.5), 3),
        "msi_tile_auroc_of_msi": round(float(aurocs[msi].mean()), 3) if msi.any() else None,
        "msi_tile_auroc_by_cohort": {
            cohort: round(float(np.mean([a for c, _, a in scored if c == cohort])), 3)
            for cohort in sorted({c for c, _, _ in scored})
        },
        "slides_scored": len(scored),
        "slides_of_msi": int(msi.sum()),
    }
    if name in (METHODS[0], PLANTED):
        row |= checks(explained[:: max(len(explained) // CHECKED, 1)][:CHECKED], method)
        row["seconds_per_slide"] = seconds_per_slide(models, task, method)
    return row


def checks(some: list[CaseScores], method: Method) -> dict[str, Any]:
    """Both checks over some patients: whether maps of this method mean something for this model."""
    curves = [deletion_curves(result, seed=SEED, orders=ORDERS) for result in some]
    # Each case on the scale of its own null, so that none outweighs the others.
    units = [max(float(curve.null.std()), 1e-12) for curve in curves]
    area = float(np.mean([curve.area / unit for curve, unit in zip(curves, units, strict=True)]))
    null = np.mean([curve.null / unit for curve, unit in zip(curves, units, strict=True)], axis=0)
    p = (1 + int((null >= area).sum())) / (1 + ORDERS)
    similar = float(np.mean([similarity(result, method) for result in some]))
    return {
        "patients_checked": len(some),
        "deletion_area": round(area, 3),
        "deletion_p": round(p, 3),
        "deletion_pass": p <= 0.01,
        "randomisation": round(similar, 3),
        "randomisation_pass": similar <= MOST_RANDOM,
    }


def causal_tiles(
    mask: Path, x: NDArray[np.int32], y: NDArray[np.int32], side: float, mpp: float
) -> NDArray[np.bool_]:
    """``[N]`` which tiles are at least 10 % mucin pool or lymphoid aggregate."""
    classes = np.asarray(Image.open(mask))
    causal = np.isin(classes, [MASK_CLASSES.index("mucin"), MASK_CLASSES.index("lymphoid aggregate")])
    scale = mpp / MASK_UM
    found = []
    for left, top in zip(x * scale, y * scale, strict=True):
        part = causal[round(top) : round(top + side * scale), round(left) : round(left + side * scale)]
        found.append(bool(part.size) and part.mean() >= CAUSAL)
    return np.array(found, bool)


def similarity(scores: CaseScores, method: Method) -> float:
    """Mean size of the rank correlation of a map with those of re-initialised models."""
    one = scores.explained[0]
    others = [
        Explained(reinitialised(one.model, SEED + number), one.batch, one.output)
        for number in range(RANDOM_MODELS)
    ]
    maps = [method.attribution.scores(other).double().numpy() for other in others]
    return float(np.mean([abs(rank_correlation(scores.each[0], other)) for other in maps]))


def patient_auroc(predictions: pd.DataFrame, task: str) -> dict[str, float]:
    """Role → AUROC of the task over patients with a label, folds averaged."""
    rows = predictions[(predictions["task"] == task) & predictions["role"].isin(["test", "external"])]
    known = rows[rows["target"].notna()].groupby(["role", "patient"])[["score", "target"]].mean()
    return {
        role: round(float(roc_auc_score(part["target"], part["score"])), 3)
        for role, part in known.groupby(level=0)
    }


def seconds_per_slide(models: FoldModels, task: str, method: Method) -> float:
    """CPU seconds of a map of 10,000 tiles by the model of one fold, with the reading of their features.

    One thread, so that they are what it takes on an idle core; the median of three, or one that took long.
    """
    trained = next(iter(models.folds.values()))
    taken: list[float] = []
    while len(taken) < 3 and sum(taken) < 8:
        started = time.process_time()
        case = large_case(models)
        explain_case([trained], case, task, None, method)[0].by_slide(synthetic=True)
        taken.append(time.process_time() - started)
    return round(float(np.median(taken)), 3)


def large_case(models: FoldModels) -> Case:
    """A patient with 10,000 tiles on a square grid, whose features are read from the store."""
    parts: list[NDArray[np.float16]] = []
    example: Case | None = None
    while sum(map(len, parts)) < TILES:
        for case in models.cases["test"].values():
            parts.append(np.array(case.bag))
            example = case
            if sum(map(len, parts)) >= TILES:
                break
    assert example is not None
    at = np.arange(TILES)
    side = int(example.extent / example.mpp[0])
    coords = np.stack([at % 100 * side, at // 100 * side], axis=1).astype(np.int32)
    changes = {
        "bag": np.concatenate(parts)[:TILES],
        "coords": coords,
        "slides": ("large",),
        "tiles": (TILES,),
    }
    return Case(**{**vars(example), **changes, "mpp": example.mpp[:1], "states": None, "state_counts": None})


if __name__ == "__main__":
    main()
