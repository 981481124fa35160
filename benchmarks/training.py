"""What the training loop costs: against plain PyTorch, and in memory on a very large bag. CPU, one thread.

``vs_plain_pytorch``: CPU seconds of the product's ``fit`` over those of a loop written by hand in plain PyTorch: the
same bags, initial weights, order of patients, losses, optimiser and schedule, inner validation after the epoch, best
weights kept. The published joint model, a binary and a regression task, one patient a step. Both run in this process
in turn; the figure is the median over rounds of the ratio within a round. Before that, both train without dropout
and must end with the same losses, so that they are known to do the same work.

``peak_gib_50k``: largest resident memory of a fresh process that takes one training step of the same model on a bag of
50,000 x 768 (``--step TILES`` is that process).
"""

import argparse
import copy
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from equipoise.datasets.cohorts.cases import Case
from equipoise.datasets.tables.tasks import BinaryTask, RegressionTask
from equipoise.models.entries import JointParams
from equipoise.models.joint.model import JointTransformer
from equipoise.models.losses import TaskLosses
from equipoise.platform.training.batches import CaseList, collate, draw_order
from equipoise.platform.training.loop import fit
from equipoise.platform.training.params import TrainingParams
from equipoise.platform.training.targets import Targets, fit_targets

FEATURES, LARGE = 768, 50_000
TASKS = (
    BinaryTask(name="MSI", column="MSI", positive="MSI-H", negative="MSS", main=True),
    RegressionTask(name="LF", column="LF"),
)
SETTINGS = TrainingParams(batch=1, device="cpu", amp="off")

Losses = tuple[float, float]


def main() -> None:
    """Both measurements, a table and the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cases", type=int, default=64, help="training patients; a quarter as many validate")
    parser.add_argument("--tiles", type=int, default=512, help="tiles of a bag on average")
    parser.add_argument("--step", type=int, metavar="TILES", help="one step on one bag, and nothing else")
    parser.add_argument("--only", choices=["time", "memory"], help="one of the measurements; nothing is kept")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.step:
        print(json.dumps(one_step(arguments.step)))
        return
    load = os.getloadavg()[0]
    figures: dict[str, object] = {}
    if arguments.only != "memory":
        figures |= race(arguments.rounds, arguments.cases, arguments.tiles)
    if arguments.only != "time":
        figures |= memory()
    figures |= {"load_before": round(load, 1), "cores": os.cpu_count(), "python": sys.version.split()[0]}
    figures["versions"] = {name: version(name) for name in ("torch", "numpy")}
    if not arguments.only:
        results = Path(__file__).parent / "results"
        results.mkdir(exist_ok=True)
        (results / "training.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures))


def race(rounds: int, count: int, tiles: int) -> dict[str, object]:
    """CPU seconds of both loops over an epoch, in turn."""
    cases = synthetic(count + count // 4, tiles)
    patients = tuple(cases)
    train, val = CaseList(cases, patients[:count]), CaseList(cases, patients[count:])
    targets = fit_targets(TASKS, train)
    ways: dict[str, Callable[..., list[Losses]]] = {"equipoise": by_equipoise, "plain": by_plain_pytorch}
    few = (targets, CaseList(cases, patients[:6]), CaseList(cases, patients[-2:]))
    same = [way(new_model(targets, dropout=0.0), *few, epochs=2) for way in ways.values()]
    if not np.allclose(same[0], same[1], rtol=1e-4):
        raise SystemExit(f"the loops do not do the same work; losses {same}")
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name in sorted(ways, reverse=bool(turn % 2)):
            model = new_model(targets, dropout=0.1)
            started = time.process_time()
            ways[name](model, targets, train, val, epochs=1)
            if turn:  # the first turn warms caches and the allocator
                seconds[name].append(time.process_time() - started)
    ratios = [a / b for a, b in zip(seconds["equipoise"], seconds["plain"], strict=True)]
    print(f"\n{'an epoch of ' + str(count) + ' bags':<24} {'CPU s':>8} {'against plain':>15}")
    for name, times in seconds.items():
        middle = statistics.median(times)
        print(f"  {name:<22} {middle:>8.2f} {middle / statistics.median(seconds['plain']):>15.3f}")
    return {
        "vs_plain_pytorch": round(statistics.median(ratios), 3),
        "vs_plain_pytorch_range": [round(min(ratios), 3), round(max(ratios), 3)],
        "cpu_s_per_step": {name: round(statistics.median(s) / count, 4) for name, s in seconds.items()},
        "cases": count,
        "tiles": tiles,
        "rounds": rounds,
    }


def memory() -> dict[str, object]:
    """Peak memory and CPU seconds of a fresh process that takes one step on a very large bag."""
    command = [sys.executable, "-m", "benchmarks.training", "--step", str(LARGE)]
    done = subprocess.run(
        command, cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE, text=True, check=True
    )
    measured = json.loads(done.stdout.splitlines()[-1])
    print(
        f"\na step on {LARGE:,} x {FEATURES}: {measured['peak_gib']:.2f} GiB, {measured['cpu_s']:.0f} CPU s\n"
    )
    return {"peak_gib_50k": round(measured["peak_gib"], 2), "cpu_s_50k": round(measured["cpu_s"])}


def one_step(tiles: int) -> dict[str, float]:
    """A training step from a case as the feature store gives it to changed weights; peak of this process."""
    cases = list(synthetic(3, 8).values())
    targets = fit_targets(TASKS, cases)
    model = new_model(targets, dropout=0.1).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=SETTINGS.lr, fused=True)
    case = next(iter(synthetic(1, tiles, exactly=True).values()))
    started = time.process_time()
    batch = collate([case], targets)
    losses = TaskLosses(targets.heads, targets.class_weights)
    losses(model(batch), batch.targets, batch.label_mask, batch.cohort).means().sum().backward()
    optimizer.step()
    taken = time.process_time() - started
    # Not ru_maxrss: a child inherits its parent's.
    line = next(li for li in Path("/proc/self/status").read_text().splitlines() if li.startswith("VmHWM:"))
    return {"peak_gib": int(line.split()[1]) / 2**20, "cpu_s": taken}


def synthetic(count: int, tiles: int, *, exactly: bool = False) -> dict[str, Case]:
    """Cases with bags of random float16 features, a quarter smaller or larger than ``tiles``."""
    rng = np.random.default_rng(0)
    cases = {}
    for i in range(count):
        n = tiles if exactly else int(rng.integers(tiles * 3 // 4, tiles * 5 // 4 + 1))
        patient = f"P{i:03d}"
        cases[patient] = Case(
            patient=patient,
            cohort="SYN",
            site=f"S{i % 4}",
            bag=rng.standard_normal((n, FEATURES), np.float32).astype(np.float16),
            coords=np.zeros((n, 2), np.int32),
            slides=(patient,),
            tiles=(n,),
            omics={},
            targets={"MSI": float(i % 3 == 0), "LF": float(rng.uniform())},
        )
    return cases


def new_model(targets: Targets, dropout: float) -> JointTransformer:
    """The published model, with the same weights every time."""
    torch.manual_seed(0)
    return JointTransformer(JointParams(dropout=dropout), targets.shape, targets.heads)


def by_equipoise(
    model: JointTransformer, targets: Targets, train: CaseList, val: CaseList, *, epochs: int
) -> list[Losses]:
    """The product; returns validation losses by epoch."""
    settings = SETTINGS.model_copy(update={"epochs": epochs})
    rows = fit(model, targets, train, val, settings, seed=0).history
    return [(row["val/MSI"], row["val/LF"]) for row in rows]


def by_plain_pytorch(
    model: JointTransformer, targets: Targets, train: CaseList, val: CaseList, *, epochs: int
) -> list[Losses]:
    """What one would write without the product."""
    shown, held_out = (examples(part, targets) for part in (train, val))
    class_weights = torch.tensor(targets.class_weights["MSI"])
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=SETTINGS.lr, weight_decay=SETTINGS.weight_decay, fused=True
    )
    history: list[Losses] = []
    best, best_weights = math.inf, {}
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = SETTINGS.lr * 0.5 * (1 + math.cos(math.pi * epoch / epochs))
        model.train()
        running = 0.0
        for i in itertools.chain.from_iterable(draw_order(len(shown), 1, 0, epoch)):
            losses = losses_of(model, shown[i], class_weights)
            loss = losses[0] + losses[1]
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            running += loss.item()
        if not math.isfinite(running):
            raise SystemExit("training diverged")
        model.eval()
        with torch.inference_mode():
            val_losses = torch.tensor([losses_of(model, example, class_weights) for example in held_out])
        history.append((float(val_losses[:, 0].mean()), float(val_losses[:, 1].mean())))
        if sum(history[-1]) < best:
            best, best_weights = sum(history[-1]), copy.deepcopy(model.state_dict())
    model.load_state_dict(best_weights)
    return history


Example = tuple[np.ndarray, Tensor, Tensor]


def examples(part: CaseList, targets: Targets) -> list[Example]:
    """Bags as they are kept, and labels ready for the losses."""
    result = []
    for case in part:
        label, value = (task.encode(case.targets[task.head.name]) for task in targets.tasks)
        result.append((case.bag, torch.tensor([label], dtype=torch.int64), torch.tensor([[value]])))
    return result


def losses_of(model: JointTransformer, example: Example, class_weights: Tensor) -> Sequence[Tensor]:
    """Weighted cross-entropy and squared error of one bag, from the layers of the model."""
    bag, label, value = example
    x = nn.functional.relu(model.project(torch.from_numpy(bag.astype(np.float32))[None]))
    for layer in model.encoder:
        x = layer(x, None)
    tokens = torch.stack(list(model.tokens))[None]
    for layer in model.decoder:
        tokens = layer(tokens, x, None)
    logits, predicted = (head(tokens[:, i]) for i, head in enumerate(model.heads))
    # Summed over one case: a mean would divide by the class weight again.
    entropy = nn.functional.cross_entropy(logits, label, weight=class_weights, reduction="sum")
    return entropy, nn.functional.mse_loss(predicted, value)


if __name__ == "__main__":
    main()
