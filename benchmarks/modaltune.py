"""What the modes of ModalTune cost on a patient with 5,000 tiles, and how well they predict. CPU, one thread.

Three tasks, RNA as 64 modal tokens, the adapter as published (bottleneck 192, 12 heads, 3 blocks). The slide encoder is
the seeded ``random_transformer`` with the published width of 768 and 3 layers in place of 12 (a layer per block): its
attention is full, that of LongNet dilated. A step is everything the product does for a patient: reading the stores,
forward, losses, gradients, AdamW. Modes take turns; CPU seconds of the process; medians of ratios within a round.

``joint_vs_per_task``: a step with a pass per task, as published, over a step with all tasks in one pass.
``ladder_vs_full``: the same over a step that reads hidden states from the store, which ``extract`` has put there;
``caching_steps`` is what that cost once, in steps of ``full``. ``late``: two of three layers stored, injection into the
last. ``prototypes``: 64 means of tiles. ``ladder_computed``: ladder without a store.
``peak_memory_ratio``: growth of the resident memory of a fresh process in a step of ``full``, over that of ``ladder``.

Quality is that of a smaller model on the bench cohorts (SYNTHETIC): the mean over tasks of AUROC and (1 + r)/2 within
cohorts on test patients; ``*_minus_joint`` is paired over folds and seeds, with its standard error.
"""

import argparse
import copy
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
import torch

from equipoise.datasets.cohorts.cases import Case
from equipoise.datasets.store.feature_store import FeatureStore
from equipoise.datasets.store.spec import StoreSpec
from equipoise.datasets.store.state_store import StateStore
from equipoise.datasets.tables.tasks import BinaryTask, RegressionTask
from equipoise.models.entries import ModalTuneParams
from equipoise.models.losses import TaskLosses
from equipoise.models.slide_encoders.entries import RandomTransformerParams
from equipoise.models.slide_encoders.random_transformer import RandomTransformer
from equipoise.models.slide_encoders.state_encoding import encode_states
from equipoise.platform.extraction.hidden_states import open_states, store_states
from equipoise.platform.extraction.params import ExtractionParams
from equipoise.platform.training.batches import CaseList
from equipoise.platform.training.build import build_balancer, build_model
from equipoise.platform.training.distributed import SINGLE_WORKER
from equipoise.platform.training.params import BalancingParams, TrainingParams
from equipoise.platform.training.step import Epoch, TrainingState
from equipoise.platform.training.targets import fit_targets

TILES, FEATURES, GENES = 5000, 1536, 500
ENCODER = {"width": 768, "depth": 3, "heads": 8}
PUBLISHED = {"slide_encoder_params": ENCODER, "rna_params": {"tokens": 64}}
MODES: dict[str, dict[str, Any]] = {
    "full": {"mode": "full"},
    "joint": {"mode": "joint"},
    "late": {"mode": "joint", "skipped": 2, "blocks": 1, "cache": True},
    "ladder_computed": {"mode": "ladder"},
    "ladder": {"mode": "ladder", "cache": True},
    "prototypes": {"mode": "ladder", "cache": True, "prototypes": 64},
}
#: The model that quality is measured with, and its modes.
SMALL = {
    "kind": "modaltune",
    "slide_encoder_params": {"width": 64, "depth": 6, "heads": 4},
    "bottleneck": 48,
    "embedding": 64,
}
QUALITY: dict[str, dict[str, Any]] = {
    "full": {"mode": "full"},
    "joint": {"mode": "joint"},
    "late": {"mode": "joint", "skipped": 4, "blocks": 2, "cache": True},
    "ladder": {"mode": "ladder", "cache": True},
    "prototypes": {"mode": "ladder", "cache": True, "prototypes": 6},
}
#: Tasks of the bench cohorts that quality is measured on.
TASKS, BINARY = ("MSI", "HRD", "LF"), ("MSI", "HRD")
#: Ratios the project promises.
PROMISED = {"joint_vs_per_task": 2.2, "ladder_vs_full": 5.0}


def main() -> None:
    """Print the figures, keep them beside this file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3, help="steps of every mode")
    parser.add_argument("--only", choices=["costs", "quality"], help="keep the other figures as they are")
    parser.add_argument("--seeds", type=int, default=2, help="seeds of the fits that quality is measured on")
    parser.add_argument("--work", default=None, help="folder of the bench cohorts [a temporary folder]")
    parser.add_argument("--memory", nargs=2, metavar=("MODE", "STORES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.memory:
        print(json.dumps(growth(Patient(Path(arguments.memory[1])).step(arguments.memory[0]))))
        return
    load, results = os.getloadavg()[0], Path(__file__).parent / "results"
    file = results / "modaltune.json"
    figures: dict[str, Any] = json.loads(file.read_text()) if arguments.only and file.exists() else {}
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(arguments.work or scratch).resolve()
        if arguments.only != "quality":
            figures |= costs(work / "stores", arguments.rounds)
            print(json.dumps(figures), flush=True)
            figures |= {"rounds": arguments.rounds, "load_before": round(load, 1)}
        if arguments.only != "costs":
            figures |= quality(work, arguments.seeds)
    figures |= {
        **{f"{name}_promised": least for name, least in PROMISED.items()},
        "tiles": TILES,
        "encoder": f"random_transformer {ENCODER['width']} x {ENCODER['depth']}",
        "tasks": 3,
        "cores": os.cpu_count(),
        "versions": {name: version(name) for name in ("torch", "numpy")}
        | {"python": platform.python_version()},
    }
    for key, value in figures.items():
        print(f"{key:<40} {value}")
    results.mkdir(exist_ok=True)
    file.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures))


class Patient:
    """One patient with random tiles in a store of features, read again in every step.

    Parameters
    ----------
    stores
        Folder of the stores; filled where it is empty.
    """

    def __init__(self, stores: Path) -> None:
        self.stores = stores
        self.states: StateStore | None = None
        self.caching: dict[str, float] = {}
        self.slides = pd.DataFrame({"slide": ["S"], "path": ["S.svs"], "patient": ["P"], "mpp": [0.5]})
        spec = StoreSpec("random", "0" * 64, FEATURES, 0.5, 256)
        table = self.slides.assign(fingerprint="f")
        self.tiles = FeatureStore.create_or_open(stores, spec)
        if not FeatureStore.exists(stores, spec) or not len(self.tiles.index()):
            rng = np.random.default_rng(0)
            (key,) = self.tiles.register(table)
            places = rng.permutation(100 * 100)[:TILES]
            x, y = ((places // 100 * 256).astype(np.int32), (places % 100 * 256).astype(np.int32))
            row = {"status": "ok", "n": TILES, "attempts": 1, "mpp": 0.5}
            bag = rng.standard_normal((TILES, FEATURES), np.float32).astype(np.float16)
            self.tiles.stage(key, x, y, bag, {"slide": "S", **row})
            self.tiles.record([{"key": key, **row}])
            self.tiles.commit()
            self.tiles.close()
        self.tiles.choose(table)
        self.rna = np.random.default_rng(1).normal(size=GENES).astype(np.float32)

    def __getitem__(self, patient: str) -> Case:
        bag, coords = self.tiles.read("S")
        labels = {"A": 1.0 if patient == "P" else 0.0, "B": 0.3, "C": 0.7}
        case = Case(patient, "SYN", "S", bag, coords, ("S",), (len(bag),), {"rna": self.rna}, labels)
        case = replace(case, mpp=(0.5,), extent=128.0)
        if self.states is not None:
            states, counts = self.states.read(("S",))
            case = replace(case, states=states, state_counts=counts)
        return case

    def step(self, mode: str) -> Callable[[], None]:
        """One step of the product's loop in a mode, with its hidden states stored."""
        own: Any = PUBLISHED | MODES[mode]
        source = copy.copy(self)
        if (kept := ModalTuneParams.model_validate(own).hidden_states) is not None:
            params, started = ExtractionParams(), time.process_time()
            store_states(self.slides, self.tiles, kept, params, self.stores, workers=0)
            self.caching[mode] = time.process_time() - started
            source.states = open_states(self.slides, self.tiles, kept, params, self.stores)
        cases = CaseList(source, ("P",))
        tasks = [BinaryTask(name="A", column="A", positive="1", negative="0", main=True)]
        tasks += [RegressionTask(name=name, column=name) for name in "BC"]
        others = [
            replace(source["P"], patient=f"Q{i}", omics={"rna": self.rna + i}, targets=labels)
            for i, labels in enumerate(({"A": 0.0, "B": 0.1, "C": 0.2}, {"A": 1.0, "B": 0.9, "C": 0.5}))
        ]
        targets = fit_targets(tasks, [source["P"], *others])
        model = build_model("modaltune", own, targets.shape, targets.heads, seed=0)
        state = TrainingState(
            model,
            TaskLosses(targets.heads, targets.class_weights),
            torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True),
            build_balancer(BalancingParams(), model, targets.heads),
            torch.device("cpu"),
            SINGLE_WORKER,
        )
        settings = TrainingParams(probe=False, device="cpu")
        epoch = Epoch(state, targets, cases, cases, settings, size=1, seed=0, epoch=0, lr=1e-4)
        model.train()
        return lambda: epoch.step([0])


def costs(stores: Path, rounds: int) -> dict[str, Any]:
    """CPU seconds of the modes in turns, what the stores cost once, and memory."""
    patient = Patient(stores)
    steps = {mode: patient.step(mode) for mode in MODES}
    seconds: dict[str, list[float]] = {mode: [] for mode in MODES}
    for turn in range(rounds):
        for mode, step in steps.items():
            if not turn and mode != "full":
                step()  # warms up; the longest one does not need it
            started = time.process_time()
            step()
            seconds[mode].append(time.process_time() - started)

    def ratio(slow: str, fast: str) -> float:
        return round(median(a / b for a, b in zip(seconds[slow], seconds[fast], strict=True)), 2)

    figures: dict[str, Any] = {"joint_vs_per_task": ratio("full", "joint")}
    figures |= {f"{mode}_vs_full": ratio("full", mode) for mode in MODES if mode != "full"}
    figures |= {f"{mode}_cpu_seconds": round(median(values), 3) for mode, values in seconds.items()}
    figures["caching_steps"] = round(patient.caching["ladder"] / median(seconds["full"]), 2)
    grown = {}
    for mode in ("full", "joint", "ladder"):
        command = [sys.executable, "-m", "benchmarks.modaltune", "--memory", mode, str(stores)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        grown[mode] = float(done.stdout.splitlines()[-1])
        figures[f"{mode}_step_mib"] = round(grown[mode])
    return figures | {
        "peak_memory_ratio": round(grown["full"] / grown["ladder"], 1),
        "peak_memory_joint_ratio": round(grown["joint"] / grown["ladder"], 1),
    }


def growth(step: Callable[[], None]) -> float:
    """MiB by which the highest resident memory in a step lies above that before it (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")  # the highest so far becomes the present one
    before = _status("VmRSS")
    step()
    return (_status("VmHWM") - before) / 1024


def _status(name: str) -> int:
    """KiB of an entry of ``/proc/self/status``."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def quality(work: Path, seeds: int) -> dict[str, Any]:
    """Quality of the modes on the same folds and seeds of the bench cohorts."""
    from benchmarks.bench_cohort import SETTINGS, BenchCohort, task_metrics

    bench = BenchCohort(work, SETTINGS | {"model": SMALL})
    plain = dict(bench.cases)
    means: dict[str, list[float]] = {mode: [] for mode in QUALITY}
    for mode, changes in QUALITY.items():
        own = {key: value for key, value in SMALL.items() if key != "kind"} | changes
        bench.recipe = bench.recipe.model_copy(update={"model_params": own})
        bench.cases = with_states(plain, ModalTuneParams.model_validate(own))
        for fold, seed in product(range(len(bench.folds)), range(seeds)):
            fit = bench.fit(fold, tasks=TASKS, seed=seed, training={"lr": 2e-3})
            found = task_metrics(fit.predictions[fit.predictions["role"] == "test"])
            means[mode].append(float(np.mean([v if t in BINARY else (1 + v) / 2 for t, v in found.items()])))
        print(f"quality {mode} {np.mean(means[mode]):.4f}", flush=True)
    figures: dict[str, Any] = {}
    for mode, values in means.items():
        figures[f"quality_{mode}"] = round(float(np.mean(values)), 4)
        if mode != "joint":
            apart = np.subtract(values, means["joint"])
            figures[f"quality_{mode}_minus_joint"] = round(float(apart.mean()), 4)
            error = apart.std(ddof=1) / len(apart) ** 0.5
            figures[f"quality_{mode}_minus_joint_se"] = round(float(error), 4)
    return figures | {"quality_synthetic": True, "quality_fits": len(means["joint"])}


def with_states(cases: dict[str, Case], params: ModalTuneParams) -> dict[str, Case]:
    """The cases with the hidden states that a model with these parameters reads."""
    from equipoise.datasets.cohorts.places import corners_um

    kept = params.hidden_states
    if kept is None:
        return cases
    encoder = RandomTransformer(RandomTransformerParams.model_validate(params.slide_encoder_params))
    found = {}
    for patient, case in cases.items():
        corners = corners_um(case.coords, case.tiles, case.mpp, case.extent)
        if len(case.bag) and corners is not None:
            states, counts = encode_states(encoder, kept, case.bag, corners, case.extent)
            case = replace(case, states=states, state_counts=counts)
        found[patient] = case
    return found


if __name__ == "__main__":
    main()
