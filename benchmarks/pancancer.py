"""Five cancers, one of them held out: ModalTune beside models of one modality and other fusions. SYNTHETIC.

The cohorts of the preset ``pancancer`` are written as slides, extracted into a feature store and read by the study of
``examples/modaltune.yaml``: no random bags. On the same folds of four cancers, with the same tiles, genes, epochs and
tasks (subtype, MSI, survival), are trained

- ModalTune as in the example: classes on text, Cox's likelihood stratified by cohort, an ordinal target of survival on
  text beside it,
- the same with direct heads alone, and with text alone as published (every task on text, KL divergence, sentences as
  they are),
- ``concat`` of both modalities, of RNA alone (with age and sex, so that who has none is scored, too) and of slides
  alone, and Path-GPTOmic (``gptomic``).

The fifth cancer is scored three ways: by the models as they are (zero-shot: the nearest label for heads on text), by
ridge probes on their frozen embeddings, and by ridges that were fitted to its own tables and tiles. One report compares
the runs pair by pair (``equipoise leaderboard``).

Sizes of the models were chosen beforehand, small for so few patients, and nothing was tuned for any of them. Runs whose
folder is finished are not made again. The cohorts were made by a program: what is better here need not be so on
patients.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from equipoise.platform.cluster.params import RayOptions
from equipoise.platform.evaluation.baselines import read_baselines
from equipoise.platform.evaluation.metrics_table import read_metrics
from equipoise.platform.evaluation.robustness import read_robustness

PRESET, SEED = "pancancer", 7
STUDY = Path(__file__).parent.parent / "examples" / "modaltune.yaml"
RESULT = Path(__file__).parent / "results" / "pancancer.json"
#: Task → metrics of the figures.
METRICS = {
    "subtype": ("auroc", "balanced_accuracy"),
    "MSI": ("auroc", "balanced_accuracy"),
    "OS": ("c_index",),
}
#: Task of the example that no other model has.
ON_TEXT = "OS_text"
SMALL = {"dim": 32, "hidden": 16, "layers": 1, "dropout": 0.5, "modality_dropout": 0.2}


def concat(*modalities: str) -> dict[str, Any]:
    """Late fusion of these modalities."""
    lone = {} if len(modalities) > 1 else {"modality_dropout": 0}
    return {"model": {"kind": "concat", "modalities": list(modalities)} | SMALL | lone}


GPTOMIC: dict[str, Any] = {
    "kind": "gptomic", "modalities": ["wsi", "rna"], "image": "abmil", "image_params": {"dim": 32, "hidden": 16},
    "dim": 32, "layers": 1, "snn_layers": 1, "dropout": 0.5, "output_scale": 0.1,
}  # fmt: skip
AGE_AND_SEX = [{"column": "AGE", "type": "number"}, {"column": "SEX", "type": "category"}]
TEXT_ALONE = {"tasks": ["subtype", "MSI", "OS"], "loss": "kl", "centre": False, "ordinal": False}
#: Run → what it changes in the study; all but the first have the tasks of :data:`METRICS`.
RUNS: dict[str, dict[str, Any]] = {
    "modaltune": {},
    "modaltune-direct": {"training.text": None},
    "modaltune-text": {f"training.text.{key}": value for key, value in TEXT_ALONE.items()},
    # A patient without RNA has nothing for a model of RNA; age and sex, which say little here, make the patients the
    # same for all runs.
    "rna": {"training.text": None, "tables.clinical": AGE_AND_SEX} | concat("rna", "clinical"),
    "image": {"training.text": None} | concat("wsi"),
    "concat": {"training.text": None} | concat("wsi", "rna"),
    "gptomic": {"training.text": None, "model": GPTOMIC},
}


def main() -> None:
    """Print the table and the figures, keep them beside this file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=SEED, help="of the cohorts")
    parser.add_argument("--work", default=None, help="folder of cohorts and runs [a temporary folder]")
    parser.add_argument("--only", nargs="+", choices=[*RUNS], help="make these runs in --work and stop")
    arguments = parser.parse_args()
    if arguments.only:
        make(Path(arguments.work or ".").resolve(), arguments.seed, arguments.only)
        return
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        figures = measure(Path(arguments.work or scratch).resolve(), arguments.seed)
    print("\n".join(lines(figures)))
    figures |= {
        "synthetic": True,
        "seed": arguments.seed,
        "load_before": round(load, 1),
        "cores": os.cpu_count(),
        "versions": {name: version(name) for name in ("ray", "torch", "numpy")}
        | {"python": platform.python_version()},
    }
    if arguments.seed == SEED:
        RESULT.parent.mkdir(exist_ok=True)
        RESULT.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(figures))


def make(work: Path, seed: int, names: Sequence[str]) -> dict[str, Path]:
    """Cohorts and runs, in a folder whose finished parts are not made again; the run folders."""
    from equipoise.platform.run.synthesis import synthesize

    work.mkdir(parents=True, exist_ok=True)
    synthesize(PRESET, seed, work / PRESET, RayOptions())
    study = Path(shutil.copy(STUDY, work))
    tasks = [
        task for task in yaml.safe_load(study.read_text(encoding="utf-8"))["tasks"] if task["name"] in METRICS
    ]
    folders = {}
    for name in names:
        changes, folders[name] = RUNS[name], work / "runs" / name
        common = {"name": name} | ({"tasks": tasks} if changes else {"evaluation.baselines": True})
        run(study, folders[name], {"evaluation.baselines": False} | common | changes)
    return folders


def measure(work: Path, seed: int) -> dict[str, Any]:
    """All runs and their comparison."""
    from equipoise.platform.report.leaderboard import write_leaderboard

    folders = make(work, seed, list(RUNS))
    written = write_leaderboard(list(folders.values()), work / "leaderboard", "modaltune")
    figures: dict[str, Any] = {name: figures_of(folder) for name, folder in folders.items()}
    return {
        "patients": counted(folders["modaltune"]),
        "runs": figures,
        "baselines": baselines(folders["modaltune"]),
        "differences": differences(written.board.differences),
        "may_be_best": {
            task: list(pairs.best_set) for task, pairs in written.board.pairs.items() if task in METRICS
        },
    }


def run(study: Path, out: Path, settings: dict[str, Any]) -> None:
    """All steps but those that the study has not, finished ones skipped."""
    from equipoise.platform.run.folder import RunFolder
    from equipoise.platform.run.loading import load_study
    from equipoise.platform.run.steps import run_steps

    if (out / "report.html").exists():
        return
    changed = load_study(study, settings)
    steps = ("validate", "extract", "train", "evaluate", "report")
    run_steps(changed, RunFolder.open(changed, str(out), "auto"), steps)


def counted(folder: Path) -> dict[str, int]:
    """Patients and deaths of the development cohorts and of the one held out, and who has no RNA."""
    table = pd.read_parquet(folder / "manifest" / "patients.parquet")
    held = table["role"] == "external"
    deaths = table["OS.event"] == 1
    return {
        "development": int((~held).sum()), "held_out": int(held.sum()),
        "deaths": int((deaths & ~held).sum()), "deaths_held_out": int((deaths & held).sum()),
    }  # fmt: skip


def figures_of(folder: Path) -> dict[str, Any]:
    """Test folds, the held-out cohort as the model is, and in the words of its table of transfer."""
    metrics = read_metrics(folder / "evaluation" / "metrics.csv")
    whole = metrics[
        (metrics["fold"] == "all") & (metrics["site"] == "all") & (metrics["class"] == "")
        & (metrics["predictor"] == "model")
    ]  # fmt: skip
    test = whole[(whole["role"] == "test") & (whole["cohort"] == "all")]
    transfer = read_baselines(folder / "evaluation" / "transfer.csv")
    index = read_robustness(folder / "evaluation" / "robustness.csv")
    keys = ("value", "low", "high", "chance", "margin")
    return {
        "test": of_tasks(test),
        "held_out": of_tasks(whole[whole["role"] == "external"]),
        "transfer": {str(name): of_tasks(rows) for name, rows in transfer.groupby("predictor", sort=False)},
        "robustness": {
            f"{row['task']}, {row['centre']}": {key: rounded(row[key]) for key in keys}
            for row in index.to_dict("records")
        },
        "parameters": parameters(folder),
    }


def of_tasks(rows: pd.DataFrame) -> dict[str, dict[str, dict[str, float | None]]]:
    """Task → metric → value with its interval."""
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    for row in rows.to_dict("records"):
        if row["metric"] in METRICS.get(row["task"], ()):
            cell = {key: rounded(row[key]) for key in ("value", "low", "high")}
            found.setdefault(row["task"], {})[row["metric"]] = cell
    return found


def rounded(value: float) -> float | None:
    """Four decimals; None for what was not estimable."""
    return None if not np.isfinite(value) else round(float(value), 4)


def parameters(folder: Path) -> int:
    """Trained numbers of the first fold's model."""
    from safetensors import safe_open

    with safe_open(folder / "folds" / "0-0" / "model.safetensors", framework="numpy") as file:
        return sum(int(np.prod(file.get_slice(name).get_shape())) for name in file.keys())  # noqa: SIM118


def baselines(folder: Path) -> dict[str, dict[str, dict[str, float | None]]]:
    """Dataset → baseline → task → value of the main metric."""
    table = read_baselines(folder / "evaluation" / "baselines.csv")
    datasets = {
        "test": (table["role"] == "test") & (table["cohort"] == "all"),
        "held_out": table["role"] == "external",
    }
    return {
        dataset: {
            str(name): {
                row["task"]: rounded(row["value"])
                for row in rows.to_dict("records")
                if row["task"] in METRICS
            }
            for name, rows in table[which].groupby("predictor", sort=False)
        }
        for dataset, which in datasets.items()
    }


def differences(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Every run minus ModalTune, in the main metric of each task, test folds and held-out cohort."""
    chosen = table[
        (table["reference"] == "modaltune") & (table["class"] == "") & (table["predictor"] == "model")
        & table["cohort"].isin(["all", "syn-stad-a"])
    ]  # fmt: skip
    rows = []
    for row in chosen.to_dict("records"):
        if row["task"] in METRICS and row["metric"] == METRICS[row["task"]][0]:
            numbers = {key: rounded(row[key]) for key in ("difference", "low", "high", "p", "p_pairs")}
            rows.append({key: row[key] for key in ("run", "role", "task", "metric")} | numbers)
    return rows


def lines(figures: dict[str, Any]) -> list[str]:
    """The tables on screen."""
    counts = figures["patients"]
    shown = [
        f"SYNTHETIC, {counts['development']} patients of four cancers in the folds, {counts['held_out']} of a fifth "
        "held out"
    ]
    for part, of in (("test", lambda run: run["test"]), ("held out", lambda run: run["held_out"])):
        shown.append(f"{part:<18}" + "".join(f"{task:>12}" for task in METRICS))
        for name, found in figures["runs"].items():
            row = of(found)
            shown.append(
                f"{name:<18}" + "".join(f"{row[task][m[0]]['value']:>12.3f}" for task, m in METRICS.items())
            )
    shown.append("probe on the embedding, held out")
    for name, found in figures["runs"].items():
        row = found["transfer"]["probe"]
        shown.append(
            f"{name:<18}" + "".join(f"{row[task][m[0]]['value']:>12.3f}" for task, m in METRICS.items())
        )
    shown += [
        f"may be the best in {task}: {', '.join(names)}" for task, names in figures["may_be_best"].items()
    ]
    return shown


if __name__ == "__main__":
    main()
