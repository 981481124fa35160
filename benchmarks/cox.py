"""Cox's partial likelihood with its gradient: the product's against what others write, on one thread.

5,000 patients, 30 % of them with an event; times in days (few ties) and in whole months (all of them tied). CPU
milliseconds of a forward and a backward pass, interleaved, medians.

``ms_n5000``: the product, the slowest of both treatments of ties and both kinds of times. ``vs_dense``: how many
times as long Efron's likelihood takes when risk sets and ties are n x n masks over broadcast scores. ``vs_loop``: the
same for Breslow's likelihood when two Python loops over all pairs of patients fill the mask of risk sets, as code of
Pathomic Fusion and its descendants does (from arrays of NumPy here; theirs index tensors, which is slower).
``vs_pure_python``: for Efron's likelihood and gradient in loops over events and patients without a library. All are run
at 5,000 patients, nothing is extrapolated. ``vs_torchsurv``: torchsurv's Efron likelihood, if ``--torchsurv`` names an
interpreter that has it; both are timed in that process then. ``*_difference``: relative distances of the losses.

With the real data, ``kirc_*`` and ``gbmlgg_*``: distance of the summed log likelihood from lifelines' (Efron) at
lifelines' estimate of age and sex, times in whole months.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from equipoise.models.cox import Ties, cox_partial_likelihood

PATIENTS = 5000
SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"


class Survival(NamedTuple):
    """``[n]`` scores that want a gradient, times, and events."""

    score: Tensor
    time: Tensor
    event: Tensor


def synthetic(patients: int, *, months: bool) -> Survival:
    """Random patients; times in days or in whole months."""
    rng = np.random.default_rng(0)
    days = rng.exponential(1500, patients) + 1
    score = torch.tensor(rng.normal(size=patients), requires_grad=True)
    times = np.floor(days / 30.4375) + 1 if months else np.ceil(days)
    return Survival(score, torch.tensor(times), torch.tensor((rng.random(patients) < 0.3).astype(float)))


def ours(data: Survival, ties: Ties = "efron") -> float:
    """The product."""
    data.score.grad = None
    loss = cox_partial_likelihood(*data, ties=ties)
    loss.backward()
    return float(loss.detach())


def dense(data: Survival) -> float:
    """Efron's likelihood with n x n masks, as a line of broadcasting writes it: O(n²) time and memory."""
    s, t, e = data
    s.grad = None
    hazard = (s - s.detach().max()).exp()
    at_risk = (t[None, :] >= t[:, None]).to(s)  # row: an event; column: who is at risk then
    tied = ((t[None, :] == t[:, None]) & (e[None, :] > 0)).to(s)
    deaths = tied.sum(dim=1)
    rank = tied.tril(-1).sum(dim=1)
    sums = (at_risk * hazard).sum(dim=1) - rank / deaths.clamp(min=1) * (tied * hazard).sum(dim=1)
    known = e > 0
    loss = (sums[known].log() + s.detach().max() - s[known]).sum()
    loss.backward()
    return float(loss.detach())


def loop(data: Survival) -> float:
    """Breslow's likelihood with a mask of risk sets that two Python loops over all pairs fill."""
    s, t, e = data
    s.grad = None
    times, n = t.numpy(), len(t)
    at_risk = np.zeros((n, n))
    for i in range(n):
        for j in range(n):
            at_risk[i, j] = times[j] >= times[i]
    hazard = (s - s.detach().max()).exp()
    sums = (torch.from_numpy(at_risk) * hazard).sum(dim=1)
    loss = (e * (sums.log() + s.detach().max() - s)).sum()
    loss.backward()
    return float(loss.detach())


def pure_python(data: Survival) -> float:
    """Efron's likelihood and its gradient by loops over events and patients."""
    s, t, e = (part.detach().tolist() for part in data)
    n = len(s)
    top = max(s)
    hazard = [math.exp(x - top) for x in s]
    gradient = [0.0] * n
    seen: dict[float, int] = {}
    total = 0.0
    for i in range(n):
        if not e[i]:
            continue
        at_risk = tied = 0.0
        deaths = 0
        for j in range(n):
            if t[j] >= t[i]:
                at_risk += hazard[j]
                if e[j] and t[j] == t[i]:
                    tied += hazard[j]
                    deaths += 1
        share = seen.get(t[i], 0) / deaths
        seen[t[i]] = seen.get(t[i], 0) + 1
        whole = at_risk - share * tied
        total += math.log(whole) + top - s[i]
        gradient[i] -= 1
        for j in range(n):
            if t[j] >= t[i]:
                gradient[j] += hazard[j] * (1 - share if e[j] and t[j] == t[i] else 1) / whole
    data.score.grad = torch.tensor(gradient, dtype=data.score.dtype)
    return total


def race(
    ways: dict[str, Callable[[Survival], float]], data: Survival, rounds: int, passes: int = 1
) -> dict[str, float]:
    """CPU milliseconds of each, in turn; the first round warms up.

    ``passes`` in a row are one measurement of the first way: those that fill n x n masks leave cold caches behind.
    """
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for place, (name, way) in enumerate(ways.items()):
            for again in range(1 if place else passes):
                started = time.process_time()
                way(data)
                if turn and (again or place or passes == 1):
                    spent[name].append(1000 * (time.process_time() - started))
    return {name: statistics.median(times) for name, times in spent.items()}


def agreement(data: Survival, way: Callable[[Survival], float], ties: Ties = "efron") -> float:
    """Relative distance of a loss from the product's; the gradients must be equal, too."""
    own, own_gradient = ours(data, ties), data.score.grad
    other, other_gradient = way(data), data.score.grad
    assert own_gradient is not None
    assert other_gradient is not None
    if not torch.allclose(own_gradient, other_gradient, rtol=1e-6, atol=1e-9):
        raise SystemExit(f"{way.__name__} has another gradient: they do not do the same work")
    return abs(other - own) / abs(own)


def measured(rounds: int) -> dict[str, Any]:
    """Times of the product and how many times as long the others take."""
    by_setting = {}
    for months in (False, True):
        data = synthetic(PATIENTS, months=months)
        both: dict[str, Callable[[Survival], float]] = {
            "efron": lambda d: ours(d, "efron"),
            "breslow": lambda d: ours(d, "breslow"),
        }
        for ties, ms in race(both, data, 10 * rounds).items():
            by_setting[f"{ties}, {'months' if months else 'days'}"] = round(ms, 3)
    data, few = synthetic(PATIENTS, months=True), synthetic(300, months=True)
    differences = {
        "dense_difference": agreement(data, dense),
        "loop_difference": agreement(few, loop, "breslow"),
        "pure_python_difference": agreement(few, pure_python),
    }
    spent = race({"ours": ours, "dense": dense}, data, rounds, passes=20)
    for way in (loop, pure_python):
        spent |= race({way.__name__: way}, data, 1)
    ratio = {name: round(ms / spent["ours"], 1) for name, ms in spent.items()}
    return {
        "ms_n5000": max(by_setting.values()),
        "vs_dense": ratio["dense"],
        "vs_loop": ratio["loop"],
        "vs_pure_python": ratio["pure_python"],
        "ms": by_setting | {name: round(ms, 3) for name, ms in spent.items()},
    } | differences


def in_torchsurv(rounds: int) -> dict[str, Any]:
    """In a process that has torchsurv: its time over the product's, and the distance of the losses."""
    from torchsurv.loss.cox import neg_partial_log_likelihood

    data = synthetic(PATIENTS, months=True)

    def theirs(d: Survival) -> float:
        d.score.grad = None
        loss = neg_partial_log_likelihood(d.score, d.event > 0, d.time, ties_method="efron", reduction="sum")
        loss.backward()
        return float(loss.detach())

    warnings.simplefilter("ignore")  # torchsurv says at every call which treatment of ties it was asked for
    spent = race({"ours": ours, "theirs": theirs}, data, 5 * rounds)
    own = ours(data)
    return {
        "vs_torchsurv": round(spent["theirs"] / spent["ours"], 2),
        "torchsurv_difference": abs(theirs(data) - own) / abs(own),
        "torchsurv": version("torchsurv"),
    }


def torchsurv_figures(interpreter: str | None, rounds: int) -> dict[str, Any]:
    """The figures of :func:`in_torchsurv`, null without an interpreter."""
    if interpreter is None:
        return {"vs_torchsurv": None, "torchsurv_difference": None, "torchsurv": None}
    command = [interpreter, "-m", "benchmarks.cox", "--in-torchsurv", "--rounds", str(rounds)]
    done = subprocess.run(
        command, cwd=Path(__file__).parent.parent, stdout=subprocess.PIPE, text=True, check=True
    )
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def real_differences(data: Path) -> dict[str, float | None]:
    """Distance of the log likelihood from lifelines' on PORPOISE's patients in whole months; null without them."""
    names = ("kirc", "gbmlgg")
    if not (data / "tcga" / "porpoise").is_dir():
        return {f"{name}_efron_difference": None for name in names}
    import pandas as pd
    from lifelines import CoxPHFitter

    found: dict[str, float | None] = {}
    for name in names:
        table = data / "tcga" / "porpoise" / f"tcga_{name}_all_clean.csv.zip"
        columns = ["case_id", "age", "is_female", "survival_months", "censorship"]
        rows = pd.read_csv(table, usecols=columns).drop_duplicates("case_id")
        rows["T"], rows["E"] = np.floor(rows["survival_months"]) + 1, 1.0 - rows["censorship"]
        rows["is_female"] = rows["is_female"].fillna(rows["is_female"].mode()[0])
        fitted = CoxPHFitter().fit(rows[["age", "is_female", "T", "E"]], "T", "E")
        x, t, e = (torch.tensor(rows[c].to_numpy(float)) for c in (["age", "is_female"], "T", "E"))
        score = x @ torch.tensor(fitted.params_.to_numpy())
        found[f"{name}_efron_difference"] = abs(
            cox_partial_likelihood(score, t, e).item() + fitted.log_likelihood_
        )
    return found


def main() -> None:
    """Print the figures, keep them beside this file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--torchsurv", metavar="PYTHON", help="an interpreter that has torchsurv and equipoise"
    )
    parser.add_argument("--data", type=Path, default=SHARED, help="folder with tcga/ [../shared/data]")
    parser.add_argument("--in-torchsurv", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.in_torchsurv:
        print(json.dumps(in_torchsurv(asked.rounds)))
        return
    load = os.getloadavg()[0]
    figures = (
        measured(asked.rounds)
        | torchsurv_figures(asked.torchsurv, asked.rounds)
        | real_differences(asked.data)
    )
    print(f"\nforward and backward, {PATIENTS} patients, CPU ms")
    for name, ms in figures["ms"].items():
        print(f"  {name:<18} {ms:>10}")
    figures |= {
        "patients": PATIENTS,
        "rounds": asked.rounds,
        "load_before": round(load, 1),
        "cores": os.cpu_count(),
        "versions": {name: version(name) for name in ("torch", "numpy", "lifelines")}
        | {"python": sys.version.split()[0]},
    }
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    (results / "cox.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
