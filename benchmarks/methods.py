"""The 16 balancing methods of arXiv 2403.03891 on the built-in bench cohorts, and whether auxiliaries help. SYNTHETIC.

Two questions, one command:

1. **Which method?** {equal, uncertainty, dwa, auto_lambda} x {none, graddrop, pcgrad, cagrad}, attention pooling on
   MSI, HRD and the five microenvironment scores. Every method has the same budget: per fold the learning rate is chosen
   from the same values by the inner validation patients of that fold, then the fit is repeated with further seeds.
   Every task is also trained alone with the same budget, which is what Δm compares with: the mean over tasks of the
   relative difference to the single-task model, in percent (Vandenhende et al. 2021). Methods are compared by the
   max-T test over all pairs (docs/evaluation.md) per task and over all tasks; no method is called best because its
   mean is largest. ``weights_converged`` is the share of fits in which learned loss weights moved and had settled at
   the end; null for methods that learn none.
2. **Do the microenvironment scores help?** For MSI and for HRD: the task alone against the task with the five scores,
   equal weighting, over all folds, with several seeds. Reported is the mean difference in AUROC with a percentile
   interval over seeds, whatever its sign. Nothing was tuned for it.

Metrics are computed within each cohort and averaged. What is finished is not run again; ``--work`` keeps the fits.
"""

import argparse
import json
import os
import platform
import tempfile
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.bench_cohort import SETTINGS, TILES, BenchCohort, Trained, prepare, task_metrics
from equipoise.datasets.atomic_io import write_json

WEIGHTINGS = ("equal", "uncertainty", "dwa", "auto_lambda")
AGGREGATORS = ("none", "graddrop", "pcgrad", "cagrad")
METHODS = tuple("+".join(cell) for cell in product(WEIGHTINGS, AGGREGATORS))
MAIN = ("MSI", "HRD")
SCORES = ("LISS", "LF", "SF", "Prolif", "ITH")
TASKS = (*MAIN, *SCORES)
#: Learning rates of the model that every method, and every task alone, chooses from.
RATES = (1e-3, 3e-3)
#: What is kept of predictions.
COLUMNS = ("patient", "cohort", "fold", "role", "task", "target", "score")


@dataclass(frozen=True)
class Fit:
    """One fit, and the name of its file."""

    method: str
    fold: int
    lr: float
    seed: int
    tasks: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Of its file."""
        return f"{self.method}-{'+'.join(self.tasks) or 'all'}-{self.fold}-{self.lr:g}-{self.seed}.json"


def main() -> None:
    """Print the figures, keep them beside this file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=2, help="seeds of every method")
    parser.add_argument("--auxiliary-seeds", type=int, default=3, help="seeds of the second question")
    parser.add_argument("--processes", type=int, default=2, help="fits at a time")
    parser.add_argument("--work", default=None, help="folder of cohorts and fits [a temporary folder]")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(arguments.work or scratch).resolve()
        prepare(work)
        runner = Runner(work, arguments.processes)
        figures = grid(runner, arguments.seeds)
        figures |= auxiliaries(runner, arguments.auxiliary_seeds)
    figures |= {
        "synthetic": True,
        "seeds": arguments.seeds,
        "auxiliary_seeds": arguments.auxiliary_seeds,
        "rates": list(RATES),
        "settings": SETTINGS | {"tiles": TILES},
        "load_before": round(load, 1),
        "cores": os.cpu_count(),
        "versions": {name: version(name) for name in ("torch", "numpy")}
        | {"python": platform.python_version()},
    }
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    (results / "methods.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures))


class Runner:
    """Fits in several processes, each kept in a file of its own.

    Parameters
    ----------
    work
        Folder of the cohorts; fits are in ``fits/``.
    processes
        Fits at a time.
    """

    def __init__(self, work: Path, processes: int) -> None:
        self.work, self.processes = work, processes
        (work / "fits").mkdir(exist_ok=True)

    def __call__(self, fits: Iterable[Fit]) -> dict[Fit, Trained]:
        """The results; what is finished is not run again."""
        wanted = list(dict.fromkeys(fits))
        missing = [fit for fit in wanted if not (self.work / "fits" / fit.name).exists()]
        if missing:
            with ProcessPoolExecutor(self.processes, mp_context=get_context("spawn")) as pool:
                waiting = [pool.submit(run_fit, self.work, fit) for fit in missing]
                for done, future in enumerate(as_completed(waiting), 1):
                    future.result()
                    if done % 20 == 0 or done == len(missing):
                        print(f"{done} of {len(missing)} fits", flush=True)
        return {fit: read_fit(self.work / "fits" / fit.name) for fit in wanted}


@cache
def cohort(work: Path) -> BenchCohort:
    """The cohort of this process."""
    import torch

    torch.set_num_threads(1)
    return BenchCohort(work)


def run_fit(work: Path, fit: Fit) -> None:
    """Run one fit and keep it."""
    trained = cohort(work).fit(
        fit.fold, tasks=fit.tasks, seed=fit.seed, balancing=fit.method, training={"lr": fit.lr}
    )
    plain = {
        "predictions": trained.predictions[list(COLUMNS)].to_dict("list"),
        "history": trained.history,
        "steps": trained.steps,
    }
    write_json(work / "fits" / fit.name, plain)


def read_fit(path: Path) -> Trained:
    """A kept fit."""
    plain = json.loads(path.read_text())
    return Trained(pd.DataFrame(plain["predictions"]), tuple(plain["history"]), plain["steps"])


def tuned(runner: Runner, arms: dict[str, tuple[str, tuple[str, ...]]], seeds: int) -> dict[str, list[Fit]]:
    """Arm (method, tasks) → its fits over folds and seeds, at the learning rate that inner validation chose per
    fold.
    """
    folds = range(SETTINGS["splits.folds"])
    first = {
        arm: [[Fit(method, fold, lr, 0, tasks) for lr in RATES] for fold in folds]
        for arm, (method, tasks) in arms.items()
    }
    results = runner(fit for grid in first.values() for fits in grid for fit in fits)

    def validated(fit: Fit) -> float:
        rows = results[fit].predictions
        return float(np.mean(list(task_metrics(rows[rows["role"] == "val"]).values())))

    chosen = {arm: [max(fits, key=validated) for fits in grid] for arm, grid in first.items()}
    return {
        arm: [Fit(f.method, f.fold, f.lr, seed, f.tasks) for seed in range(seeds) for f in fits]
        for arm, fits in chosen.items()
    }


def test_rows(trained: dict[Fit, Trained], fits: list[Fit]) -> pd.DataFrame:
    """Predictions of test patients, a repeat for every seed."""
    parts = []
    for fit in fits:
        rows = trained[fit].predictions
        parts.append(rows[rows["role"] == "test"].assign(repeat=fit.seed))
    return pd.concat(parts, ignore_index=True)


def scores_of(trained: dict[Fit, Trained], fits: list[Fit]) -> dict[str, float]:
    """task → metric, the mean over folds and cohorts."""
    each = [
        task_metrics(rows[rows["role"] == "test"])
        for fit in fits
        if (rows := trained[fit].predictions) is not None
    ]
    return {str(task): float(value) for task, value in pd.DataFrame(each).mean().items()}


def contrasts(tables: dict[str, pd.DataFrame], task: str) -> Any:
    """Values and error directions of methods on a task: cells are seed x fold x cohort, all metrics on the scale 0
    to 1.
    """
    from equipoise.platform.evaluation.influence import (
        Cell,
        CellMean,
        auroc_influence,
        pearson_influence,
    )
    from equipoise.platform.evaluation.intervals import pair_factor
    from equipoise.platform.evaluation.multiple_comparisons import Contrasts

    patients = sorted(set(next(iter(tables.values()))["patient"]))
    number = {patient: index for index, patient in enumerate(patients)}
    influence_of = auroc_influence if task in MAIN else pearson_influence
    # r on the scale of an AUROC, so that a mean over tasks is one of like with like.
    scale, shift = (1.0, 0.0) if task in MAIN else (0.5, 0.5)
    values, directions, rarest, cells = [], [], 0, 0
    for table in tables.values():
        rows = table[table["task"] == task].dropna(subset=["target"])
        parts = []
        for (repeat, fold, _), part in rows.groupby(["repeat", "fold", "cohort"]):
            found = influence_of(part["target"].to_numpy(float), part["score"].to_numpy(float))
            who = part["patient"].map(number).to_numpy()
            parts.append(Cell(float(found.value), np.asarray(found.influence), who, repeat, fold))
        mean = CellMean.of(parts, len(patients))
        assert mean is not None
        values.append(shift + scale * mean.value)
        directions.append(scale * np.sqrt(pair_factor(mean, fixed=False)) * mean.directions)
        once = rows.drop_duplicates("patient")["target"]
        rarest = int(once.value_counts().min()) if task in MAIN else len(once)
        cells = mean.cells
    repeats = len(directions[0]) // len(patients)
    units = tuple((s, patient) for s in range(repeats) for patient in patients)
    return Contrasts(np.array(values), np.stack(directions), units, float(rarest - cells))


def grid(runner: Runner, seeds: int) -> dict[str, Any]:
    """The 16 methods against each other and against single-task models."""
    from equipoise.platform.evaluation.multiple_comparisons import Contrasts, compare_all
    from equipoise.platform.training.weight_convergence import learns_weights, weight_convergence

    together: dict[str, tuple[str, tuple[str, ...]]] = {method: (method, ()) for method in METHODS}
    arms = tuned(runner, together | {task: ("equal+none", (task,)) for task in TASKS}, seeds)
    trained = runner(fit for fits in arms.values() for fit in fits)
    single = {task: scores_of(trained, arms[task])[task] for task in TASKS}
    tables = {method: test_rows(trained, arms[method]) for method in METHODS}
    of_task = {task: contrasts(tables, task) for task in TASKS}
    everything = Contrasts.mean(list(of_task.values()))
    compared = compare_all(METHODS, of_task)
    jointly = compare_all(METHODS, {"mean": everything})["mean"]
    ranks = pd.DataFrame({t: pd.Series(-c.values, METHODS).rank() for t, c in of_task.items()}).mean(axis=1)
    rows: dict[str, dict[str, Any]] = {}
    for index, method in enumerate(METHODS):
        scores = scores_of(trained, arms[method])
        by_seed = [
            relative_gain(scores_of(trained, [f for f in arms[method] if f.seed == seed]), single)
            for seed in range(seeds)
        ]
        learns = learns_weights(method.split("+")[0])
        weights = [weight_convergence(trained[fit].history, TASKS) for fit in arms[method]]
        last = pd.DataFrame([trained[fit].history[-1] for fit in arms[method]]).mean()
        rows[method] = {
            "delta_m": round(relative_gain(scores, single), 2),
            "delta_m_seeds": [round(value, 2) for value in by_seed],
            "mean": round(float(everything.values[index]), 4),
            "mean_rank": round(float(ranks[method]), 2),
            "may_be_best": bool(jointly.may_be_best[index]),
            "may_be_best_in": [task for task in TASKS if compared[task].may_be_best[index]],
            "weights_converged": round(float(np.mean([w.converged for w in weights])), 2) if learns else None,
            "weights_moved": round(float(np.mean([w.has_moved for w in weights])), 2) if learns else None,
            "weights": {t: round(float(last.get(f"loss_weight/{t}", last[f"weight/{t}"])), 3) for t in TASKS},
            "rates": [fit.lr for fit in arms[method] if fit.seed == 0],
        } | {f"test/{task}/{'auroc' if task in MAIN else 'r'}": round(scores[task], 3) for task in TASKS}
    table = pd.DataFrame(rows).T[["delta_m", "mean", "mean_rank", "weights_converged", "may_be_best"]]
    print(table.sort_values("mean", ascending=False).to_string(), flush=True)
    highest = METHODS[int(np.argmax(everything.values))]
    return {
        "best": jointly.best_set[0] if len(jointly.best_set) == 1 else None,
        "highest": highest,
        "not_excluded_as_best": jointly.best_set,
        "pairs_apart": jointly.separated,
        "smallest_detectable": round(jointly.smallest_detectable, 4),
        "range_of_means": round(float(np.ptp(everything.values)), 4),
        "pairs_apart_in": {task: compared[task].separated for task in TASKS},
        "steps": trained[arms["equal+none"][0]].steps,
        "alone": {task: round(value, 3) for task, value in single.items()},
        "methods": rows,
    }


def relative_gain(scores: dict[str, float], single: dict[str, float]) -> float:
    """Δm: mean over tasks of the relative difference to the single-task model, in percent."""
    return float(100 * np.mean([(scores[task] - single[task]) / abs(single[task]) for task in TASKS]))


def auxiliaries(runner: Runner, seeds: int) -> dict[str, Any]:
    """AUROC with the five scores less AUROC alone, over all folds, per seed."""
    folds = range(SETTINGS["splits.folds"])

    def fits(main: str, names: tuple[str, ...], seed: int) -> list[Fit]:
        # Seeds of their own: those of the grid chose a learning rate.
        return [Fit("equal+none", fold, RATES[0], 100 + seed, (main, *names)) for fold in folds]

    arms = {
        (main, kind, seed): fits(main, names, seed)
        for main in MAIN
        for kind, names in (("alone", ()), ("joint", SCORES))
        for seed in range(seeds)
    }
    trained = runner(fit for some in arms.values() for fit in some)
    figures: dict[str, Any] = {}
    for main in MAIN:
        alone, joint = (
            np.array([scores_of(trained, arms[main, kind, seed])[main] for seed in range(seeds)])
            for kind in ("alone", "joint")
        )
        gain = joint - alone
        rng = np.random.default_rng(0)
        means = rng.choice(gain, (10_000, len(gain))).mean(axis=1)
        low, high = np.percentile(means, [2.5, 97.5])
        figures[f"auxiliaries_{main}_test"] = {
            "alone": round(float(alone.mean()), 4),
            "joint": round(float(joint.mean()), 4),
            "difference": round(float(gain.mean()), 4),
            "interval_over_seeds": [round(float(low), 4), round(float(high), 4)],
            "seeds_better": int((gain > 0).sum()),
        }
        print(f"{main}: {figures[f'auxiliaries_{main}_test']}", flush=True)
    return figures


if __name__ == "__main__":
    main()
