"""Every weighting and every aggregator on the two-task toy with a known Pareto front.

Two parameters, two losses, two narrow gorges above a bowl in which the front lies: the landscape of the CAGrad
paper (Liu et al., NeurIPS 2021, appendix), with the first loss scaled by 0.1 and five starting points as in the
Nash-MTL and FAMO papers; Adam at 5e-3 for at most 10,000 steps, the reach of their 50,000 at 1e-3 in a fifth of the
time. A run also ends once it stands still at the front, or has stood still elsewhere for 3,000 steps. Methods go
through the product's ``Balancer`` with default settings; ``static`` undoes the scale of the first loss.

The toy has no data: validation losses, further batches and the second forward pass are the same two functions.
Losses are raised by 21 to be positive, as in the FAMO paper, which changes no gradient.

Writes docs/figures/toy-pareto.png; prints a table of distances to the front and a last line of JSON.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import multiprocessing
import os
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from equipoise.models.balancing.entries import AGGREGATORS, WEIGHTINGS
from equipoise.models.balancing.protocol import StepContext
from equipoise.models.batch import TaskHead
from equipoise.platform.training.build import build_balancer
from equipoise.platform.training.params import BalancingParams

STARTS = [(-8.5, 7.5), (0.0, 0.0), (9.0, 9.0), (-7.5, -0.5), (9.0, -1.0)]
SCALE = torch.tensor([0.1, 1.0])
RAISED = 21.0
LR = 5e-3
EPOCH = 200
STILL, AT_FRONT, ELSEWHERE = 1e-2, 3, 15  # so many epochs whose mean places lie so close together
REACHED = 0.1
EVERY = 50
HEADS = (TaskHead("first", "regression", 1, main=True), TaskHead("second", "regression", 1, main=True))
SETTINGS: dict[str, dict[str, Any]] = {"static": {"weights": {"first": 10.0, "second": 1.0}}}
FIGURE = Path(__file__).parent.parent / "docs" / "figures" / "toy-pareto.png"


class Toy(nn.Module):
    r"""Parameters θ and the losses of both tasks; with s = 1 for the first and -1 for the second task,

    .. math:: L = c_1 \big(\log \max(|\tfrac{θ_1 + 7 s}{2} - s \tanh θ_2|, 5·10^{-6}) + 6\big)
                + c_2 \big(\tfrac{(θ_1 - 7 s)^2 + 0.1 (θ_2 + 8)^2}{10} - 20\big), \quad
              c_1 = \max(\tanh \tfrac{θ_2}{2}, 0), \; c_2 = \max(-\tanh \tfrac{θ_2}{2}, 0)
    """

    side = torch.tensor([1.0, -1.0])

    def __init__(self, start: tuple[float, float]) -> None:
        super().__init__()
        self.theta = nn.Parameter(torch.tensor(start))

    def shared_parameters(self) -> list[nn.Parameter]:
        """Both."""
        return [self.theta]

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        """None."""
        return []

    def losses(self) -> Tensor:
        """``[2]``, raised and scaled; a graph of one product, because one of thirty tiny nodes is slow."""
        values, slopes = tangent(*self.theta.tolist())
        level = (torch.tensor(values) + RAISED) * SCALE
        return torch.addmv(level, torch.tensor(slopes) * SCALE[:, None], self.theta - self.theta.detach())

    def second_forward_losses(self) -> Tensor:
        """After the step."""
        with torch.no_grad():
            return self.losses().double()

    def validation_losses(self) -> Tensor:
        """The same two functions."""
        return self.losses()

    def sample_losses(self, index: int) -> Tensor:
        """The same two functions."""
        return self.losses()


def landscape(x: Tensor, y: Tensor, side: Tensor) -> Tensor:
    """The published losses of both tasks; at y = 0 ``clamp`` passes the slopes of both sides, ``relu`` none."""
    gate = torch.tanh(y / 2)
    gorge = ((x + 7 * side) / 2 - side * torch.tanh(y)).abs().clamp(min=5e-6).log() + 6
    bowl = ((x - 7 * side).square() + 0.1 * (y + 8).square()) / 10 - 20
    return gate.clamp(min=0) * gorge + (-gate).clamp(min=0) * bowl


def tangent(x: float, y: float) -> tuple[list[float], list[list[float]]]:
    """:func:`landscape` at one point, and its slopes by x and y for each task, worked out by hand."""
    gate, bend = math.tanh(y / 2), math.tanh(y)
    c1, c2 = max(gate, 0), max(-gate, 0)
    d1, d2 = ((1 - gate**2) / 2 * side if side * gate >= 0 else 0.0 for side in (1, -1))
    values, slopes = [], []
    for side in (1, -1):
        u = (x + 7 * side) / 2 - side * bend
        gorge, within = math.log(max(abs(u), 5e-6)) + 6, abs(u) >= 5e-6
        du = (0.5 / u, -side * (1 - bend**2) / u) if within else (0.0, 0.0)
        bowl = ((x - 7 * side) ** 2 + 0.1 * (y + 8) ** 2) / 10 - 20
        values.append(c1 * gorge + c2 * bowl)
        along = c1 * du[0] + c2 * (x - 7 * side) / 5
        slopes.append([along, c1 * du[1] + c2 * (y + 8) / 50 + d1 * gorge + d2 * bowl])
    return values, slopes


def check_slopes() -> None:
    """The tangent by hand is autograd's, at random points and at the kink."""
    draws = torch.rand(200, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 20 - 10
    for point in [*draws, torch.zeros(2, dtype=torch.float64)]:
        values, slopes = tangent(*point.tolist())
        expected = torch.autograd.functional.jacobian(
            lambda p: landscape(p[0], p[1], Toy.side.double()), point
        )
        torch.testing.assert_close(torch.tensor(slopes, dtype=torch.float64), expected)
        at = landscape(point[0], point[1], Toy.side.double())
        torch.testing.assert_close(torch.tensor(values, dtype=torch.float64), at)


class Path2D(NamedTuple):
    """One run: ``[n, 2]`` losses along the way in units of the landscape, and how many steps it took."""

    losses: np.ndarray
    steps: int


def descend(slot: str, name: str, start: tuple[float, float], most: int) -> Path2D:
    """Adam from one starting point, with an epoch's end every 200 steps."""
    torch.set_num_threads(1)
    params = SETTINGS.get(name, {})
    chosen = BalancingParams.model_validate({slot: name, f"{slot}_params": params})
    model = Toy(start)
    balancer = build_balancer(chosen, model, HEADS)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR, fused=True)
    present, tasks = torch.tensor([True, True]), tuple(head.name for head in HEADS)
    seen, places, centres = [], [], []
    for step in range(most):
        losses = model.losses()
        means = losses.detach().double()
        seen.append(means.tolist())
        places.append(model.theta.tolist())
        context = StepContext(tasks, present, step // EPOCH, step % EPOCH, seed=0, lr=LR)
        record = balancer.backward(losses, means, context, model)
        optimizer.step()
        balancer.learn(means, context, record, model)
        if (step + 1) % EPOCH == 0:
            balancer.weighting.on_epoch_end(torch.tensor(seen[-EPOCH:], dtype=torch.float64).mean(0))
            centres.append(np.mean(places[-EPOCH:], axis=0))
            arrived = distance(landscape_of(seen[-1]), pareto_front()) < REACHED
            lately = centres[-(AT_FRONT if arrived else ELSEWHERE) :]
            if len(lately) >= (AT_FRONT if arrived else ELSEWHERE) and np.ptp(lately, axis=0).max() < STILL:
                break
    way = landscape_of(np.array(seen)[np.r_[0 : len(seen) : EVERY, len(seen) - 1]])
    return Path2D(way, len(seen))


def kept(folder: Path | None, slot: str, name: str, start: tuple[float, float], most: int) -> Path2D:
    """:func:`descend`, or what an earlier call of the benchmark kept of it."""
    if folder is None:
        return descend(slot, name, start, most)
    file = folder / f"{slot}_{name}_{start[0]}_{start[1]}_{most}.npz"
    if not file.exists():
        path = descend(slot, name, start, most)
        partial = file.with_suffix(".part.npz")
        np.savez(partial, losses=path.losses, steps=path.steps)
        partial.rename(file)
    with np.load(file) as saved:
        return Path2D(saved["losses"], int(saved["steps"]))


def landscape_of(losses: Any) -> np.ndarray:
    """Losses as published, neither raised nor scaled."""
    return np.asarray(losses) / SCALE.numpy() - RAISED


@functools.cache
def pareto_front() -> np.ndarray:
    """``[n, 2]`` losses of the points of a fine grid around the bowl that no other point beats in both."""
    x, y = torch.meshgrid(
        torch.linspace(-7.5, 7.5, 3001, dtype=torch.float64),
        torch.linspace(-9.5, -7.5, 401, dtype=torch.float64),
        indexing="ij",
    )
    points = landscape(x.flatten()[:, None], y.flatten()[:, None], Toy.side.double()).numpy()
    points = points[np.argsort(points[:, 0])]
    best = np.minimum.accumulate(points[:, 1])
    return points[points[:, 1] <= best]


def distance(point: np.ndarray, front: np.ndarray) -> float:
    """Euclidean, in the units of the landscape."""
    return float(np.sqrt(((front - point) ** 2).sum(1).min()))


def main() -> None:
    """Run all methods, draw, and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--methods", nargs="*", help="some of the names [all]")
    parser.add_argument("--steps", type=int, default=10_000, help="at most")
    parser.add_argument("--keep", type=Path, help="folder for finished runs, which are not run again")
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    pairs = [("weighting", name) for name in WEIGHTINGS]
    pairs += [("aggregation", name) for name in AGGREGATORS if name != "none"]
    pairs = [(slot, name) for slot, name in pairs if not arguments.methods or name in arguments.methods]
    check_slopes()
    load, started = os.getloadavg()[0], time.perf_counter()
    if arguments.keep:
        arguments.keep.mkdir(parents=True, exist_ok=True)
    jobs = [(arguments.keep, slot, name, start, arguments.steps) for slot, name in pairs for start in STARTS]
    with multiprocessing.get_context("spawn").Pool(arguments.processes) as pool:
        paths = pool.starmap(kept, jobs, chunksize=1)
    runs = {pair: paths[i * len(STARTS) : (i + 1) * len(STARTS)] for i, pair in enumerate(pairs)}
    front = pareto_front()
    methods = {name: summary(method_paths, front) for (_, name), method_paths in runs.items()}
    report(methods)
    figures = {
        "reached_all": sorted(name for name, row in methods.items() if row["reached"] == len(STARTS)),
        "methods": methods,
        "steps_at_most": arguments.steps,
        "seconds": round(time.perf_counter() - started, 1),
        "load_before": load,
        "versions": {"torch": version("torch"), "numpy": version("numpy")},
    }
    if not arguments.methods:
        draw(runs, front)
        results = Path(__file__).parent / "results" / "toy_pareto.json"
        results.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures))


def summary(paths: list[Path2D], front: np.ndarray) -> dict[str, Any]:
    """Where the runs of a method ended."""
    ends = [path.losses[-1] for path in paths]
    distances = [distance(end, front) for end in ends]
    return {
        "reached": sum(d < REACHED for d in distances),
        "distance": [round(d, 3) for d in distances],
        "losses": [[round(float(value), 2) for value in end] for end in ends],
        "steps": [path.steps for path in paths],
    }


def report(methods: dict[str, dict[str, Any]]) -> None:
    """A line per method: how many runs came to the front, and how far from it each of them ended."""
    print(f"{'method':<14} {'reached':>7}  distance to the front from each start")
    for name, row in methods.items():
        print(
            f"{name:<14} {row['reached']:>5}/{len(STARTS)}  "
            + " ".join(f"{d:>7.3f}" for d in row["distance"])
        )


def draw(runs: dict[tuple[str, str], list[Path2D]], front: np.ndarray) -> None:
    """One small panel per method: ways through the space of losses, and the front in grey below."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt
    from PIL import Image

    across = 7
    down = math.ceil(len(runs) / across)
    figure, axes = plt.subplots(down, across, figsize=(14, 2 * down), sharex=True, sharey=True, dpi=90)
    for panel, ((slot, name), paths) in zip(axes.flat, runs.items(), strict=False):
        panel.plot(*front.T, color="0.6", linewidth=4, solid_capstyle="round")
        for path, colour in zip(paths, ("C0", "C1", "C2", "C3", "C4"), strict=True):
            panel.plot(*path.losses.T, color=colour, linewidth=0.9)
            panel.plot(*path.losses[0], "o", color=colour, markersize=3)
            panel.plot(*path.losses[-1], "*", color="black", markersize=5)
        reached = sum(distance(path.losses[-1], front) < REACHED for path in paths)
        panel.set_title(
            f"{name}  {reached}/{len(paths)}", fontsize=9, color="C0" if slot == "weighting" else "black"
        )
        panel.tick_params(labelsize=7)
    for panel in axes.flat[len(runs) :]:
        panel.axis("off")
    figure.supxlabel("loss of the first task", fontsize=9)
    figure.supylabel("loss of the second task", fontsize=9)
    figure.tight_layout()
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE)
    plt.close(figure)
    Image.open(FIGURE).convert("RGB").quantize(64).save(FIGURE, optimize=True)


if __name__ == "__main__":
    main()
