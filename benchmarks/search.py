"""What a search costs: against fresh processes, and against a loop written by hand. Preset ``bench``, CPU.

The same random trials (two inner folds, several balancing methods, one size of model) are run three ways:

- ``search``: the product's driver on Ray Tune, records, checkpoints and all; Ray is up, its workers have torch;
- ``loop``: one process that reads cases from the same memory-mapped store, and for every trial and fold builds, fits
  and scores, with nothing around it: no record, no checkpoint, no Ray;
- ``two_loops``: the same loop in two processes in parallel, each with half of the trials; only the loops are
  counted. Two processes on two hardware threads of one core take more CPU seconds than one alone: the difference
  between ``search`` and ``two_loops`` is the overhead of the search;
- ``naive``: every trial a fresh process that reads the tables and all ``.h5`` bags of its patients into memory, two at
  a time.

All must give the same metrics. Ways run in turn: half of all others before ``search``, the other half
after it, so that other work on the machine meets all of them. CPU seconds are those of the whole process tree, Ray
included in all of them; wall seconds of ``loop`` are those of one process on one core.

Keys: ``vs_naive`` (wall, naive / search), ``overhead_vs_loop`` (CPU, search / loop), ``overhead_vs_two_loops`` (CPU,
search / two_loops), ``trials_per_minute``.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.tree import _cpu as cpu_of
from benchmarks.tree import _tree as tree_of

ROOT = Path(__file__).parent.parent
SPACE: dict[str, Any] = {
    "balancing": ["equal", "uncertainty", "dwa", "equal+pcgrad"],
    "training.lr": {"loguniform": [1e-4, 1e-2]},
    "training.weight_decay": {"loguniform": [1e-4, 1e-1]},
    "training.batch": 8,
    "training.bag_tiles": 64,
    "model.dim": 256,
    "model.hidden": 128,
    "model.branches": "shared",
    "model.dropout": {"uniform": [0.0, 0.5]},
}


def main() -> None:
    """Prepare the cohort, run all ways, print a table and the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--cohorts", type=Path, help="folder that keeps the cohorts for another run")
    parser.add_argument("--one", nargs=3, metavar=("STUDY", "INDEX", "OUT"), help=argparse.SUPPRESS)
    parser.add_argument("--half", nargs=3, metavar=("STUDY", "INDICES", "OUT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        one(Path(arguments.one[0]), int(arguments.one[1]), Path(arguments.one[2]))
        return
    if arguments.half:
        indices = [int(index) for index in arguments.half[1].split(",")]
        half_of_loop(Path(arguments.half[0]), indices, Path(arguments.half[2]))
        return
    load = os.getloadavg()[0]
    # Ray's workers are nicer than other processes by default: on a machine that does other work, too, they would wait
    # for it and the others would not.
    os.environ.setdefault("RAY_worker_niceness", "0")
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.cohorts or Path(temporary) / "cohorts"
        study = cohorts(folder, arguments.trials, arguments.epochs)
        timings, metrics = race(study, arguments.trials, Path(temporary))
    for name in ("loop", "two_loops", "naive"):
        if metrics[name] != metrics["search"]:
            raise SystemExit(
                f"{name} and search do not do the same work: {metrics[name]} {metrics['search']}"
            )
    figures = summary(timings, arguments.trials) | {"same_metrics": True, "epochs": arguments.epochs}
    figures |= {"load_before": round(load, 1), "cores": os.cpu_count(), "python": sys.version.split()[0]}
    figures["versions"] = {name: version(name) for name in ("ray", "torch", "numpy", "pyarrow", "h5py")}
    if arguments.trials == parser.get_default("trials"):
        results = Path(__file__).parent / "results"
        results.mkdir(exist_ok=True)
        (results / "search.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures))


@dataclass
class Timings:
    """Wall and CPU seconds of a process tree."""

    wall: float = 0.0
    cpu: float = 0.0


def summary(timings: dict[str, Timings], trials: int) -> dict[str, Any]:
    """The table on screen, and the ratios."""
    print(f"\n{f'{trials} trials':<10} {'wall s':>8} {'CPU s':>8} {'CPU s a trial':>14}")
    for name, timing in timings.items():
        print(f"  {name:<8} {timing.wall:>8.0f} {timing.cpu:>8.0f} {timing.cpu / trials:>14.2f}")
    print()
    search, loop, two, naive = (timings[name] for name in ("search", "loop", "two_loops", "naive"))
    return {
        "vs_naive": round(naive.wall / search.wall, 2),
        "overhead_vs_loop": round(search.cpu / loop.cpu, 3),
        "overhead_vs_two_loops": round(search.cpu / two.cpu, 3),
        "trials_per_minute": round(60 * trials / search.wall, 1),
        "trials": trials,
        "cpu_s_per_trial": {name: round(timing.cpu / trials, 2) for name, timing in timings.items()},
        "wall_s": {name: round(timing.wall, 1) for name, timing in timings.items()},
    }


def cohorts(folder: Path, trials: int, epochs: int) -> Path:
    """The cohorts of preset ``bench``, their bags in the feature store, and the study of this benchmark."""
    import yaml

    from equipoise.platform.cluster.params import RayOptions
    from equipoise.platform.cluster.session import ray_session
    from equipoise.platform.run import steps
    from equipoise.platform.run.folder import RunFolder
    from equipoise.platform.run.loading import load_study
    from equipoise.platform.run.synthesis import synthesize

    with ray_session(RayOptions(address="local", dashboard=False)):
        study = synthesize("bench", 7, folder, RayOptions())
    settings = yaml.safe_load(study.read_text())
    settings["name"] = "benchmark-search"
    settings["model"] = {"kind": "abmil", "dim": 256, "hidden": 128}
    settings["training"] |= {"epochs": epochs, "min_epochs": epochs, "batch": 8, "bag_tiles": 64}
    settings["search"] = {"trials": trials, "folds": 2, "space": SPACE, "max_concurrent": os.cpu_count()}
    written = folder / "benchmark-search.yaml"
    written.write_text(yaml.safe_dump(settings))
    steps.extract(steps.RunContext(load_study(written), RunFolder(folder / "extracted")))
    return written


def race(study: Path, trials: int, scratch: Path) -> tuple[dict[str, Timings], dict[str, dict[int, Any]]]:
    """All ways, Ray up all the time; what they took and the means of every trial's metrics."""
    import ray

    from equipoise.platform.cluster.params import RayOptions
    from equipoise.platform.cluster.session import ray_session

    timings = {name: Timings() for name in ("search", "loop", "two_loops", "naive")}
    metrics: dict[str, dict[int, Any]] = {name: {} for name in timings}
    half = trials // 2
    search_context = prepared_of(study)
    first, second = range(half), range(half, trials)
    with ray_session(RayOptions(address="local", dashboard=False)):
        ray.get([ray.remote(warm).remote() for _ in range(os.cpu_count() or 1)])

        def timed(name: str, way: Callable[[], dict[int, Any]]) -> None:
            with measure_tree(timings[name]):
                metrics[name] |= way()
            print(f"{name}: {timings[name].wall:.0f} s, {timings[name].cpu:.0f} CPU s", flush=True)

        def both(indices: range) -> None:
            metrics["two_loops"] |= by_two_loops(study, indices, scratch / "two", timings["two_loops"])

        timed("loop", lambda: by_hand(search_context, first))
        both(first)
        timed("naive", lambda: by_processes(study, first, scratch / "naive"))
        timed("search", lambda: by_search(search_context, trials, scratch / "search"))
        timed("naive", lambda: by_processes(study, second, scratch / "naive"))
        both(second)
        timed("loop", lambda: by_hand(search_context, second))
    return timings, metrics


def warm() -> None:
    """A worker that has imported what trials need; it stays busy until the others are, too."""
    from equipoise.platform.search.trial import import_trial_code

    import_trial_code()
    time.sleep(1)


def prepared_of(study: Path) -> Any:
    """Space, folds and cases of the study."""
    from equipoise.platform.run import steps
    from equipoise.platform.run.folder import RunFolder
    from equipoise.platform.run.loading import load_study
    from equipoise.platform.search.search import prepare

    context = steps.RunContext(load_study(study), RunFolder(Path("unused")))
    return prepare(context.study, context.inputs)


def configuration(search_context: Any, index: int) -> dict[str, Any]:
    """Of a trial: the first is the study as written, the others are drawn."""
    from equipoise.platform.search.configuration import config_from_study
    from equipoise.platform.search.searchers import RandomSearch

    if index == 0:
        return config_from_study(search_context.study, search_context.space)
    return RandomSearch(search_context.space, search_context.seed).ask(index)


def by_search(search_context: Any, trials: int, folder: Path) -> dict[int, Any]:
    """The product."""
    from equipoise.platform.search.search import restore_searcher, started_configs
    from equipoise.platform.search.trial import trials_folder
    from equipoise.platform.search.trial_records import read_trials, write_table
    from equipoise.platform.search.tune_runner import run_trials

    searcher, count = restore_searcher(search_context, [])
    run_trials(
        list(range(count)),
        searcher,
        search_context.inputs,
        search_context.params,
        folder,
        started=started_configs(search_context, folder),
        training=search_context.study.training,
        on_end=lambda trial: None,
    )
    records = read_trials(trials_folder(folder))
    write_table(records, folder / "trials.parquet")
    return {trial.index: rounded(trial.means) for trial in records}


def by_hand(search_context: Any, indices: Sequence[int]) -> dict[int, Any]:
    """One process: targets of a fold are fitted once, then build, fit, score."""
    import torch

    from equipoise.platform.search.configuration import study_from_config
    from equipoise.platform.search.scores import fold_scores
    from equipoise.platform.training.batches import CaseList
    from equipoise.platform.training.build import build_model, recipe_of
    from equipoise.platform.training.crossval import fold_seed
    from equipoise.platform.training.loop import fit
    from equipoise.platform.training.predict import run_model
    from equipoise.platform.training.targets import fit_targets

    torch.set_num_threads(1)
    cases, study = search_context.inputs.cases, search_context.study
    fitted = [
        fit_targets(study.tasks, CaseList(cases, fold.train), tables=study.tables)
        for fold in search_context.inputs.folds
    ]
    means = {}
    for index in indices:
        recipe = recipe_of(
            study_from_config(search_context.inputs.settings, configuration(search_context, index))
        )
        values = []
        for fold, targets in zip(search_context.inputs.folds, fitted, strict=True):
            train, val, scored = (CaseList(cases, part) for part in (fold.train, fold.val, fold.test))
            seed = fold_seed(recipe.seed, fold)
            model = build_model(recipe.model, recipe.model_params, targets.shape, targets.heads, seed=seed)
            fit(model, targets, train, val, recipe.training, seed=seed, balancing=recipe.balancing)
            values.append(fold_scores(targets, run_model(model, targets, scored)))
        means[index] = rounded({name: float(np.mean([row[name] for row in values])) for name in values[0]})
    return means


def by_two_loops(study: Path, indices: range, folder: Path, timing: Timings) -> dict[int, Any]:
    """Two processes side by side; the time of each loop alone is added to ``timing``."""
    folder.mkdir(exist_ok=True)
    running = []
    for half in filter(None, (indices[::2], indices[1::2])):
        numbers, out = ",".join(map(str, half)), folder / f"{half[0]}.json"
        command = [sys.executable, "-m", "benchmarks.search", "--half", str(study), numbers, str(out)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        running.append((subprocess.Popen(command, cwd=ROOT, env=environment), out))
    metrics: dict[int, Any] = {}
    walls = []
    for process, out in running:
        if process.wait():
            raise SystemExit("a loop beside another one failed")
        row = json.loads(out.read_text())
        metrics |= {int(index): means for index, means in row["metrics"].items()}
        timing.cpu += row["cpu"]
        walls.append(row["wall"])
    timing.wall += max(walls)
    return metrics


def half_of_loop(study: Path, indices: list[int], out: Path) -> None:
    """The loop by hand over some of the trials, with what it took."""
    search_context = prepared_of(study)
    by_hand(search_context, indices[:1])  # imports and first calls are not the loop's
    started, cpu = time.perf_counter(), time.process_time()
    metrics = by_hand(search_context, indices)
    row = {
        "metrics": metrics,
        "cpu": time.process_time() - cpu,
        "wall": time.perf_counter() - started,
    }
    out.write_text(json.dumps(row))


def by_processes(study: Path, indices: range, folder: Path) -> dict[int, Any]:
    """Fresh processes, two at a time."""
    folder.mkdir(exist_ok=True)

    def start(index: int) -> tuple[int, Any]:
        out = folder / f"{index}.json"
        command = [sys.executable, "-m", "benchmarks.search", "--one", str(study), str(index), str(out)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(command, cwd=ROOT, check=True, env=environment)
        return index, json.loads(out.read_text())

    with ThreadPoolExecutor(2) as pool:
        return dict(pool.map(start, indices))


def one(study: Path, index: int, out: Path) -> None:
    """The naive process: tables, all bags into memory, one trial."""
    import h5py

    search_context = prepared_of(study)
    source = search_context.inputs.cases
    bags: dict[str, np.ndarray] = {}
    for row in search_context.cohorts.slides.itertuples():
        # prepare() has only mapped the store; this process holds features of its own, as a script does.
        with h5py.File(Path(row.path).with_suffix(".h5")) as file:
            bags[row.patient] = file["feats"][:]
    cases = {patient: replace(source[patient], bag=bags[patient]) for patient in source}
    inputs = replace(search_context.inputs, cases=cases)
    out.write_text(
        json.dumps(by_hand(replace(search_context, inputs=inputs), range(index, index + 1))[index])
    )


def rounded(values: dict[str, float]) -> dict[str, float]:
    """Means to nine places: sums in another order differ in the last ones."""
    return {name: round(value, 9) for name, value in sorted(values.items())}


@contextmanager
def measure_tree(timing: Timings, interval_s: float = 0.5) -> Iterator[None]:
    """Add wall seconds, and CPU seconds of this process and everything below it while it was seen."""
    before = {pid: cpu_of(pid) for pid in tree_of(os.getpid())}
    seen: dict[int, float] = {}
    done = threading.Event()

    def sample() -> None:
        while True:
            seen.update({pid: max(cpu_of(pid), seen.get(pid, 0.0)) for pid in tree_of(os.getpid())})
            if done.wait(interval_s):
                return

    sampler = threading.Thread(target=sample, daemon=True)
    started = time.perf_counter()
    sampler.start()
    try:
        yield
    finally:
        timing.wall += time.perf_counter() - started
        seen.update({pid: max(cpu_of(pid), seen.get(pid, 0.0)) for pid in tree_of(os.getpid())})
        done.set()
        sampler.join()
        timing.cpu += sum(cpu - before.get(pid, 0.0) for pid, cpu in seen.items())


if __name__ == "__main__":
    main()
