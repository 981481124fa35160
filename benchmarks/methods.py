"""The 16 balancing methods of arXiv 2403.03891 on the built-in bench cohorts, and whether auxiliaries help. SYNTHETIC.

Two questions, one command:

1. **Which method?** {equal, uncertainty, dwa, auto_lambda} x {none, graddrop, pcgrad, cagrad}, the joint model on
   MSI, HRD and the five microenvironment scores, 5 folds, external cohorts. Every run is an ordinary run of the
   product; ``equipoise leaderboard`` compares them (all pairs at once, intervals, which may be the best).
2. **Do the microenvironment scores help?** For MSI and for HRD: the task alone against the task with the five
   scores, equal weighting, one random split a seed (split, initial weights and order are drawn again).
   Reported is the mean difference in AUROC with a percentile interval over seeds, whatever its sign. Nothing was
   tuned for it: the settings are those of ``examples/joint_msi_hrd.yaml``, but smaller.

What is finished is not run again; ``--work`` keeps the runs.
"""

import argparse
import json
import os
import platform
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.metadata import version
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

WEIGHTINGS = ("equal", "uncertainty", "dwa", "auto_lambda")
AGGREGATORS = ("none", "graddrop", "pcgrad", "cagrad")
SCORES = ("LISS", "LF", "SF", "Prolif", "ITH")
EXAMPLE = Path(__file__).parent.parent / "examples" / "joint_msi_hrd.yaml"
#: Smaller than the example where it only costs time.
SETTINGS = {
    "model": {
        "kind": "joint",
        "dim": 64,
        "heads": 4,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "feedforward": 128,
    },
    "training.epochs": 8,
    "training.patience": 8,
    "training.batch": 16,
    "training.bag_tiles": 48,
    "evaluation.bootstrap": 200,
}


def main() -> None:
    """Print the figures, keep them beside this file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=10, help="seeds of the second question")
    parser.add_argument("--processes", type=int, default=2, help="runs at a time")
    parser.add_argument("--work", default=None, help="folder of cohorts and runs [a temporary folder]")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(arguments.work or scratch).resolve()
        study = prepare(work)
        figures = grid(study, work, arguments.processes)
        figures |= auxiliaries(study, work, arguments.seeds, arguments.processes)
    figures |= {
        "synthetic": True,
        "seeds": arguments.seeds,
        "settings": SETTINGS,
        "load_before": round(load, 1),
        "cores": os.cpu_count(),
        "versions": {name: version(name) for name in ("torch", "numpy")}
        | {"python": platform.python_version()},
    }
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    (results / "methods.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures))


def prepare(work: Path) -> Path:
    """The bench cohorts and the example study beside them; features are imported by the first run."""
    from equipoise.platform.cluster.params import RayOptions
    from equipoise.platform.run.synthesis import synthesize

    work.mkdir(parents=True, exist_ok=True)
    study = work / EXAMPLE.name
    shutil.copy(EXAMPLE, study)
    synthesize("bench", 7, work / "bench", RayOptions(address="local", dashboard=False))
    run_steps(study, work / "runs" / "features", SETTINGS, ("validate", "extract"))
    return study


def run_steps(study: Path, out: Path, overrides: dict[str, Any], steps: tuple[str, ...] | None = None) -> str:
    """One run of the product in this process; returns its folder."""
    import torch

    from equipoise.platform.run import steps as product_steps
    from equipoise.platform.run.folder import RunFolder
    from equipoise.platform.run.loading import load_study

    torch.set_num_threads(1)
    settled = load_study(study, overrides)
    names = steps or ("validate", "extract", "train", "evaluate")
    product_steps.run_steps(settled, RunFolder.open(settled, str(out), "auto"), names)
    return str(out)


def run_all(study: Path, runs: dict[Path, dict[str, Any]], processes: int) -> None:
    """Runs side by side, in processes that each take the next run when they are done."""
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(run_steps, study, out, SETTINGS | what): out for out, what in runs.items()}
        for done, future in enumerate(as_completed(waiting), 1):
            future.result()
            print(f"{done} of {len(runs)}: {waiting[future].name}", flush=True)


def grid(study: Path, work: Path, processes: int) -> dict[str, Any]:
    """The leaderboard of the 16 methods."""
    from equipoise.platform.report.leaderboard import leaderboard_text, write_leaderboard

    names = ["+".join(cell) for cell in product(WEIGHTINGS, AGGREGATORS)]
    runs = {work / "runs" / n: {"name": n.replace("+", "-"), "balancing": n} for n in names}
    run_all(study, runs, processes)
    written = write_leaderboard(list(runs), work / "leaderboard", baseline="equal+none")
    print(leaderboard_text(written))
    table = written.board.table.set_index("method")
    keep = [
        c
        for c in table
        if c in ("mean_rank", "rank_low", "rank_high", "may_be_best")
        or c.endswith(("/auroc", "/r", "/low", "/high"))
    ]
    rows = {
        str(name): {k: None if pd.isna(v) else round(float(v), 3) for k, v in row.items()}
        for name, row in table[keep].iterrows()
    }
    overall = written.board.overall
    return {
        "best": written.board.best,
        "may_be_best": None if overall is None else overall.best_set,
        "pairs_apart": None if overall is None else overall.separated,
        "smallest_detectable": None if overall is None else round(overall.smallest_detectable, 4),
        "methods": rows,
    }


def auxiliaries(study: Path, work: Path, seeds: int, processes: int) -> dict[str, Any]:
    """AUROC with the five scores less AUROC alone, per seed; test folds and external cohorts."""
    import yaml

    whole = {task["name"]: task for task in yaml.safe_load(study.read_text())["tasks"]}
    runs: dict[Path, dict[str, Any]] = {}
    for seed in range(seeds):
        for main in ("MSI", "HRD"):
            for kind, names in (("alone", (main,)), ("joint", (main, *SCORES))):
                name = f"{main}-{kind}-{seed}"
                tasks = [{**whole[task], "main": task == main} for task in names]
                runs[work / "auxiliaries" / name] = {
                    "name": name,
                    "seed": 100 + seed,
                    "tasks": tasks,
                    "balancing": "equal+none",
                    "splits": {
                        "scheme": "monte_carlo",
                        "repeats": 1,
                        "test_fraction": 0.25,
                        "inner_val": 0.2,
                    },
                }
    run_all(study, runs, processes)
    figures: dict[str, Any] = {}
    for main, role in product(("MSI", "HRD"), ("test", "external")):
        pairs = [
            [
                auroc_of(work / "auxiliaries" / f"{main}-{kind}-{seed}", main, role)
                for kind in ("alone", "joint")
            ]
            for seed in range(seeds)
        ]
        alone, joint = np.array(pairs).T
        gain = joint - alone
        rng = np.random.default_rng(0)
        means = rng.choice(gain, (10_000, len(gain))).mean(axis=1)
        low, high = np.percentile(means, [2.5, 97.5])
        figures[f"auxiliaries_{main}_{role}"] = {
            "alone": round(float(alone.mean()), 4),
            "joint": round(float(joint.mean()), 4),
            "difference": round(float(gain.mean()), 4),
            "interval_over_seeds": [round(float(low), 4), round(float(high), 4)],
            "seeds_better": int((gain > 0).sum()),
        }
        print(f"{main} {role}: {figures[f'auxiliaries_{main}_{role}']}", flush=True)
    return figures


def auroc_of(run: Path, task: str, role: str) -> float:
    """Mean over folds of the AUROC in the predictions of a run."""
    from equipoise.platform.evaluation.metrics import auroc
    from equipoise.platform.evaluation.predictions import read_predictions

    rows = read_predictions(run / "evaluation" / "predictions.parquet")
    rows = rows[(rows["task"] == task) & (rows["role"] == role)].dropna(subset=["target"])
    folds = [
        auroc(fold["target"].to_numpy(bool), fold["score"].to_numpy()) for _, fold in rows.groupby("fold")
    ]
    return float(np.mean(folds))


if __name__ == "__main__":
    main()
