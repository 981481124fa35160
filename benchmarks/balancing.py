"""What a balancing method adds to a training step, against equal weighting, and against the published loop.

The published joint model (6.2 M parameters), one patient with a bag of 512 x 768, dropout as published, one
thread. A step is everything the product does for a batch: reading the case, forward, losses, gradients,
balancing, AdamW. Methods take turns; CPU seconds of the process; medians; ratios to equal weighting within the
same round, so that a noisy machine cancels out. T = 2: one classification, one regression; T = 6: five
regressions.

``vs_published_loop`` is the time of PCGrad done as public multi-task code does it, divided by ours: a gradient
list per task, projection parameter by parameter in Python with fresh dot products, tokens counted as shared,
sums written to ``.grad``. Reimplemented here from that description.

``pcgrad_representation`` compares gradients at the shared representation, ``pcgrad_every4`` takes them in every fourth
step; its ratio is that of four consecutive steps. What they cost in quality is measured on the bench cohorts
(SYNTHETIC): a small joint model on seven tasks, every fold with several seeds; ``quality_*`` is the mean over tasks
of AUROC and (1 + r)/2 within cohorts on test patients, ``*_minus_pcgrad`` the paired difference to the exact method
with its standard error over folds and seeds (fits share patients, so that it is a lower bound).
"""

import argparse
import json
import os
import platform
import random
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from equipoise.datasets.cohorts.cases import Case
from equipoise.datasets.tables.tasks import BinaryTask, RegressionTask
from equipoise.models.losses import TaskLosses
from equipoise.platform.registry import entries
from equipoise.platform.training.batches import CaseList, collate
from equipoise.platform.training.build import build_balancer, build_model
from equipoise.platform.training.distributed import SINGLE_WORKER
from equipoise.platform.training.params import BalancingParams, TrainingParams, refusal
from equipoise.platform.training.step import Epoch, TrainingState
from equipoise.platform.training.targets import Targets, fit_targets

TILES, DIM, PATIENTS = 512, 768, 24
#: Ratios the project promises, at T = 2.
PROMISED = {"uncertainty": 1.05, "pcgrad": 1.6, "cagrad": 1.7, "upgrad": 1.7, "auto_lambda": 3.5}
#: PCGrad with fewer or shorter passes, and the ratios promised at T = 6.
CHEAP: dict[str, dict[str, Any]] = {
    "pcgrad_representation": {"aggregation": "pcgrad", "at": "representation"},
    "pcgrad_every4": {"aggregation": "pcgrad", "every": 4},
}
PROMISED_T6 = {"pcgrad_representation": 1.6, "pcgrad_every4": 1.8}
#: The model that quality is measured with.
SMALL_JOINT = {
    "kind": "joint",
    "dim": 32,
    "heads": 4,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "feedforward": 64,
}
#: Steps after which a method repeats itself.
PERIOD = {"pcgrad_every4": 4}


def main() -> None:
    """Print the figures, keep them beside this file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=16, help="steps of every method")
    parser.add_argument("--seeds", type=int, default=2, help="seeds of the fits that quality is measured on")
    parser.add_argument("--work", default=None, help="folder of the bench cohorts [a temporary folder]")
    parser.add_argument("--all", action="store_true", help="every registered method, not only the promised")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    load = os.getloadavg()[0]
    figures: dict[str, object] = {}
    for count in (2, 6):
        steps = {
            name: product_step(name, count)
            for name in (methods() if arguments.all else ["equal", *PROMISED, *CHEAP])
        }
        steps["published_loop"] = published_step(count)
        ratios, milliseconds = interleave(steps, arguments.rounds)
        suffix = "" if count == 2 else f"_t{count}"
        figures |= {
            f"{name}_ratio{suffix}": round(value, 3) for name, value in ratios.items() if name != "equal"
        }
        figures[f"vs_published_loop{suffix}"] = round(ratios["published_loop"] / ratios["pcgrad"], 3)
        figures[f"equal_cpu_ms{suffix}"] = round(milliseconds["equal"], 1)
    for name, most in PROMISED.items():
        figures[f"{name}_promised"] = most
    for name, most in PROMISED_T6.items():
        figures[f"{name}_t6_promised"] = most
    with tempfile.TemporaryDirectory() as scratch:
        figures |= quality(Path(arguments.work or scratch).resolve(), arguments.seeds)
    figures |= {
        "rounds": arguments.rounds,
        "bag": f"{TILES} x {DIM}",
        "load_before": round(load, 1),
        "cores": os.cpu_count(),
        "versions": {name: version(name) for name in ("torch", "numpy")}
        | {"python": platform.python_version()},
    }
    for key, value in figures.items():
        print(f"{key:<40} {value}")
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    (results / "balancing.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures))


def methods() -> list[str]:
    """Every weighting and every aggregator, each with the neutral other slot."""
    names = [name for name in entries("weightings") if name != "static"]
    names += [name for name in entries("aggregators") if name != "none"]
    return [*names, *CHEAP]


def interleave(
    steps: dict[str, Callable[[int], None]], rounds: int
) -> tuple[dict[str, float], dict[str, float]]:
    """Median over rounds of (CPU time of a method / of equal weighting), and median CPU milliseconds.

    A method that repeats itself after several steps is measured over that many.
    """
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(-2, rounds):  # two rounds warm up
        for name, step in steps.items():
            started = time.process_time()
            step(turn % PATIENTS)
            if turn >= 0:
                seconds[name].append(time.process_time() - started)
    ratios = {}
    for name, values in seconds.items():
        period = PERIOD.get(name, 1)
        own, equal = (
            np.reshape(part[: len(part) // period * period], (-1, period)).sum(axis=1)
            for part in (values, seconds["equal"])
        )
        ratios[name] = float(np.median(own / equal))
    return ratios, {name: 1000 * median(values) for name, values in seconds.items()}


def setting(count: int) -> tuple[Targets, CaseList, CaseList]:
    """Random bags, one classification task and ``count - 1`` regressions."""
    rng = np.random.default_rng(0)
    tasks = [BinaryTask(name="MSI", column="MSI", positive="1", negative="0", main=True)]
    names = [f"TME{i}" for i in range(count - 1)]
    cases = {}
    for i in range(PATIENTS):
        bag = rng.normal(size=(TILES, DIM)).astype(np.float16)
        labels = {"MSI": float(i % 2), **{name: float(rng.normal()) for name in names}}
        patient = f"P{i:02d}"
        coords = np.zeros((TILES, 2), np.int32)
        cases[patient] = Case(patient, "SYN", "S", bag, coords, (patient,), (TILES,), {}, labels)
    patients = tuple(cases)
    targets = fit_targets(
        [*tasks, *(RegressionTask(name=n, column=n) for n in names)], CaseList(cases, patients)
    )
    return targets, CaseList(cases, patients[: PATIENTS - 8]), CaseList(cases, patients[PATIENTS - 8 :])


def product_step(name: str, count: int) -> Callable[[int], None]:
    """One step of the product's loop with a method in its slot."""
    slot = CHEAP.get(name) or {"weighting" if name in entries("weightings") else "aggregation": name}
    balancing = BalancingParams.model_validate(slot)
    assert refusal(balancing.weighting, balancing.aggregation) is None
    targets, train, val = setting(count)
    model = build_model("joint", {}, targets.shape, targets.heads, seed=0)
    params = TrainingParams(probe=False, device="cpu")
    state = TrainingState(
        model,
        TaskLosses(targets.heads, targets.class_weights),
        torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True),
        build_balancer(balancing, model, targets.heads),
        torch.device("cpu"),
        SINGLE_WORKER,
    )
    epoch = Epoch(state, targets, train, val, params, size=1, seed=0, epoch=0, lr=1e-4)
    model.train()
    return lambda turn: epoch.step([turn % len(train)])


def quality(work: Path, seeds: int) -> dict[str, object]:
    """Quality of equal weighting, PCGrad and its cheap forms on the same folds and seeds of the bench cohorts."""
    from benchmarks.bench_cohort import SETTINGS, BenchCohort, task_metrics

    bench = BenchCohort(work, SETTINGS | {"model": SMALL_JOINT})
    forms: dict[str, dict[str, Any]] = {"equal": {}, "pcgrad": {"aggregation": "pcgrad"}, **CHEAP}
    means: dict[str, list[float]] = {name: [] for name in forms}
    for fold, seed in product(range(len(bench.folds)), range(seeds)):
        for name, balancing in forms.items():
            fit = bench.fit(fold, seed=seed, balancing=balancing, training={"lr": 3e-3})
            found = task_metrics(fit.predictions[fit.predictions["role"] == "test"])
            binary = {task.name for task in bench.study.tasks if task.type == "binary"}
            means[name].append(float(np.mean([v if t in binary else (1 + v) / 2 for t, v in found.items()])))
    figures: dict[str, object] = {
        f"quality_{name}": round(float(np.mean(values)), 4) for name, values in means.items()
    }
    for name in CHEAP:
        apart = np.subtract(means[name], means["pcgrad"])
        figures[f"quality_{name}_minus_pcgrad"] = round(float(apart.mean()), 4)
        figures[f"quality_{name}_minus_pcgrad_se"] = round(float(apart.std(ddof=1) / len(apart) ** 0.5), 4)
    return figures | {"quality_synthetic": True, "quality_fits": len(means["pcgrad"])}


def published_step(count: int) -> Callable[[int], None]:
    """PCGrad as public code does it: a list of gradients per task, projected parameter by parameter."""
    targets, train, _ = setting(count)
    model = build_model("joint", {}, targets.shape, targets.heads, seed=0)
    losses = TaskLosses(targets.heads, targets.class_weights)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    head_ids = {id(p) for head in model.heads for p in head.parameters()}  # type: ignore[union-attr]
    shared = [p for p in model.parameters() if id(p) not in head_ids]
    heads = [list(head.parameters()) for head in model.heads]  # type: ignore[union-attr]
    model.train()

    def step(turn: int) -> None:
        batch = collate([train[turn % len(train)]], targets)
        means = losses(model(batch), batch.targets, batch.label_mask, batch.cohort).means()
        optimizer.zero_grad()
        for task in range(count):
            for parameter, grad in zip(
                heads[task], torch.autograd.grad(means[task], heads[task], retain_graph=True), strict=True
            ):
                parameter.grad = grad.clone()
        grads = [
            [g.clone() for g in torch.autograd.grad(means[task], shared, retain_graph=True)]
            for task in range(count)
        ]
        projected = [[g.clone() for g in task] for task in grads]
        for i in range(count):
            others = [j for j in range(count) if j != i]
            random.shuffle(others)
            for j in others:
                product = sum((a * b).sum() for a, b in zip(projected[i], grads[j], strict=True))
                if product < 0:
                    norm = sum((b * b).sum() for b in grads[j])
                    projected[i] = [
                        a - product / norm * b for a, b in zip(projected[i], grads[j], strict=True)
                    ]
        for k, parameter in enumerate(shared):
            parameter.grad = torch.stack([task[k] for task in projected]).sum(0)
        optimizer.step()

    return step


if __name__ == "__main__":
    main()
