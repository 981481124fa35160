"""Fed-TCGA-BRCA against the results that FLamby published (du Terrail et al., NeurIPS 2022 datasets and benchmarks).

Six regions of TCGA-BRCA, 39 covariates, a linear Cox model, FLamby's protocol: Cox's likelihood within batches of 8,
100 updates a round, 5 rounds, seeds 42 to 46, and its order of draws from torch's global generator, because the
figures are compared seed by seed. This is the only place in the repository that seeds globally. Local steps follow
the published loop; corrections at clients, aggregation of updates and the server's step are the product's
strategies and server aggregations.

``pooled_abs_diff``: largest difference of a C-index of pooled training from the published one, over seeds and test
sets. ``<method>_abs_diff``: difference of the means over seeds, of the pooled test or the mean of the six test sets,
whichever is larger. FedAvg and FedProx are printed without such a figure: raw years of age make them chaotic. With
covariates standardised by sums that the sites send (``fedavg_standardised_*``, pooled test, 10 seeds) they are not;
``balanced_mean`` is the same with balanced aggregation (upgrad over sites). Cyclic transfer really transfers here,
in FLamby it does not.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from equipoise.datasets.cohorts.cases import Case
from equipoise.datasets.omics.params import Covariate, TableParams
from equipoise.datasets.tables.tasks import SurvivalEvent, SurvivalTask, SurvivalTime
from equipoise.platform.federation.clients.local_training import ClientContext
from equipoise.platform.federation.messages import ClientUpdate, TrainRequest
from equipoise.platform.federation.objective import weight_table
from equipoise.platform.federation.standardisation import federated_targets
from equipoise.platform.federation.strategies.strategy import AggregatedUpdate, Contribution, Strategy
from equipoise.platform.federation.vector import Schema
from equipoise.platform.registry import get
from equipoise.platform.training.batches import CaseList

SHARED = Path(__file__).resolve().parents[2] / "shared" / "data"
SEEDS = range(42, 47)
BATCH, UPDATES, ROUNDS, EPOCHS, REGIONS = 8, 100, 5, 30, 6
POOLED = "Pooled Test"
TESTS = (POOLED, *(f"client_test_{k}" for k in range(REGIONS)))


class Method(NamedTuple):
    """A federated method: its published name, strategy of the product with parameters, learning rate of clients."""

    published: str | None
    strategy: str
    params: dict[str, Any]
    lr: float
    rounds: int = ROUNDS


#: As FLamby's servers start and step; Reddi et al. start from the square of tau, with other defaults.
ADAPTIVE: dict[str, Any] = {"beta2": 0.999, "tau": 1e-8, "initial_second_moment": 0.0}
METHODS = {
    "fedavg": Method("FedAvg100", "fedavg", {}, 0.1),
    "fedprox": Method("FedProx100", "fedprox", {"mu": 0.1}, 0.1),
    "scaffold": Method("Scaffold100", "scaffold", {"variant": "flamby"}, 0.01),
    "fedadam": Method("FedAdam100", "fedadam", ADAPTIVE | {"server_lr": 0.1}, 0.01),
    "fedyogi": Method("FedYogi100", "fedyogi", ADAPTIVE | {"server_lr": 0.1}, 0.01),
    "fedadagrad": Method("FedAdagrad100", "fedadagrad", ADAPTIVE | {"server_lr": 1.0}, 0.01),
    "cyclic": Method(None, "cyclic", {"order": "fixed"}, 0.01),
    "cyclic_30": Method(None, "cyclic", {"order": "fixed"}, 0.01, rounds=30),
}
#: Methods whose published means have to be met.
COMPARED = ("scaffold", "fedadam", "fedyogi", "fedadagrad")

Scores = dict[str, float]


class Regions(NamedTuple):
    """Rows ``[n, 39]`` with ``[n, 2]`` event and days: the six training parts, all of them, and the test sets."""

    clients: list[TensorDataset]
    pooled: TensorDataset
    tests: dict[str, TensorDataset]


def read(data: Path, *, standardise: bool = False) -> Regions:
    """The six regions in the order of ``brca.csv``."""
    folder = data / "fed" / "fed_tcga_brca"
    table = pd.read_csv(folder / "brca.csv").merge(pd.read_csv(folder / "train_test_split.csv"), on="pid")
    columns = [name for name in table if name not in ("pid", "E", "T", "fold", "fold2")]
    x = standardised_rows(table, columns) if standardise else table[columns].to_numpy(np.float32)
    y = table[["E", "T"]].to_numpy(np.float32)

    def rows(chosen: pd.Series) -> TensorDataset:
        return TensorDataset(torch.from_numpy(x[chosen]), torch.from_numpy(y[chosen]))

    tests = {f"client_test_{k}": rows(table["fold2"] == f"test_{k}") for k in range(REGIONS)}
    return Regions(
        [rows(table["fold2"] == f"train_{k}") for k in range(REGIONS)],
        rows(table["fold"] == "train"),
        {POOLED: rows(table["fold"] == "test")} | tests,
    )


def standardised_rows(table: pd.DataFrame, columns: list[str]) -> np.ndarray:
    """``[n, 39]`` float32 as the product prepares covariates of a federation: from sums of the training patients."""
    no_tiles = np.empty((0, 0), np.float16), np.empty((0, 2), np.int32)
    names = {"clinical": tuple(columns)}
    cases = {
        pid: Case(pid, "TCGA-BRCA", "", *no_tiles, (), (), {"clinical": row}, {"OS": (days, event)}, names)
        for pid, row, days, event in zip(
            table["pid"], table[columns].to_numpy(np.float32), table["T"], table["E"], strict=True
        )
    }
    task = SurvivalTask(
        name="OS",
        time=SurvivalTime(column="T", unit="days"),
        event=SurvivalEvent(column="E", event_value=["1"], censored_value=["0"]),
    )
    clients = {
        f"region-{k}": CaseList(cases, tuple(table.loc[table["fold2"] == f"train_{k}", "pid"]))
        for k in range(REGIONS)
    }
    params = TableParams(clinical=[Covariate(column=name, type="number") for name in columns])
    transform = federated_targets([task], clients, tables=params).tables["clinical"]
    return np.stack([transform.apply(case.omics["clinical"], names["clinical"]) for case in cases.values()])


def published(data: Path) -> dict[tuple[str, int], Scores]:
    """(method, seed) → test set → C-index."""
    scores: dict[tuple[str, int], Scores] = {}
    folder = data / "fed" / "flamby_published" / "results_benchmark_fed_tcga_brca"
    for seed in SEEDS:
        for row in pd.read_csv(folder / f"tcga_seed{seed}.csv").to_dict("records"):
            scores.setdefault((str(row["Method"]), seed), {})[str(row["Test"])] = float(row["Metric"])
    return scores


def seed_globally(seed: int) -> None:
    """As the published protocol does, before weights are drawn and again before training; it draws from torch only."""
    torch.manual_seed(seed)


def cox(scores: Tensor, y: Tensor) -> Tensor:
    """Negative partial log likelihood within the batch, over all its rows, ties as they come."""
    order = torch.sort(y[:, 1], descending=True, stable=True).indices
    s, event = scores.flatten()[order], y[order, 0]
    at_risk = torch.ones(len(s), len(s), dtype=torch.bool).tril()
    # One logsumexp per row: scores of raw ages are large, and a running sum would carry its rounding along.
    return (event * (s.expand(len(s), -1).masked_fill(~at_risk, -torch.inf).logsumexp(1) - s)).mean()


def concordance(model: nn.Module, tests: dict[str, TensorDataset]) -> Scores:
    """C-index of each test set."""
    from lifelines.utils import concordance_index

    result = {}
    for name, rows in tests.items():
        x, y = rows.tensors
        with torch.no_grad():
            risk = model(x).flatten().numpy()
        result[name] = float(concordance_index(y[:, 1].numpy(), -risk, y[:, 0].numpy()))
    return result


def loader(rows: TensorDataset) -> DataLoader[Any]:
    """Batches of 8, shuffled by the global generator."""
    return DataLoader(rows, batch_size=BATCH, shuffle=True)


def central(rows: TensorDataset, regions: Regions, seed: int) -> Scores:
    """Training on these rows in one place: Adam for 30 epochs."""
    seed_globally(seed)
    model = nn.Linear(rows.tensors[0].shape[1], 1)
    batches = loader(rows)
    seed_globally(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(EPOCHS):
        for x, y in batches:
            optimizer.zero_grad()
            cox(model(x), y).backward()
            optimizer.step()
    return concordance(model, regions.tests)


class Endless:
    """Batches for as long as anyone asks; iterators live longer than a round, and the first is made at once.

    What an iterator draws when it is made, and that it draws the shuffle at its first batch only, decides what
    the global generator gives to everybody after it.
    """

    def __init__(self, batches: DataLoader[Any]) -> None:
        self.batches = batches
        self.iterator = iter(batches)

    def __next__(self) -> Any:
        try:
            return next(self.iterator)
        except StopIteration:
            self.iterator = iter(self.batches)
            return next(self.iterator)


def federated(method: Method, regions: Regions, seed: int, server_aggregation: str = "mean") -> Scores:
    """FLamby's loop around the product's strategy and server aggregation."""
    seed_globally(seed)
    model = nn.Linear(regions.pooled.tensors[0].shape[1], 1)
    streams = [Endless(loader(rows)) for rows in regions.clients]
    seed_globally(seed)
    schema, strategy = Schema.of(model, ["survival"]), _strategy(method)
    sequential = get("strategies", method.strategy).attribute("sequential")
    aggregate: Callable[..., np.ndarray] = _object("server_aggregations", server_aggregation, {}).aggregate
    kept: list[dict[str, np.ndarray]] = [{} for _ in streams]
    vector, state = schema.flatten(model), strategy.init_state(schema)
    population = {"shared": len(streams)}
    for round_ in range(method.rounds):
        updates, start = [], vector
        for k, batches in enumerate(streams):
            request = TrainRequest(
                round_, "fit", seed, method.lr, 1, UPDATES, start, strategy.broadcast(state)
            )
            n = len(regions.clients[k].tensors[0])
            context = ClientContext(model, schema, request, kept[k], {"shared": n})
            delta, arrays = local(context, strategy, batches)
            updates.append(
                ClientUpdate(
                    schema.hash, round_, f"region-{k}", "", delta, {"shared": n}, n, context.steps, {}, arrays
                )
            )
            if sequential:  # the next one starts from what this one leaves
                start = start + delta
        if sequential:
            vector = start
            continue
        weights = weight_table([update.counts for update in updates], schema.groups)
        contributions = tuple(Contribution(u.client, {"shared": float(u.n)}, u.steps) for u in updates)
        aggregated = AggregatedUpdate(aggregate(updates, schema, weights), contributions, population)
        vector = strategy.step(schema, vector, aggregated, state).astype(np.float32)
    schema.load(model, vector)
    return concordance(model, regions.tests)


def local(
    context: ClientContext, strategy: Strategy, batches: Endless
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """100 steps of SGD with the strategy's correction: the difference of weights, and what is sent along."""
    context.schema.load(context.model, context.request.vector)
    strategy.on_train_start(context)
    optimizer = torch.optim.SGD(context.model.parameters(), lr=context.request.lr)
    while context.steps < UPDATES:
        x, y = next(batches)
        optimizer.zero_grad()
        cox(context.model(x), y).backward()
        strategy.on_before_optimizer_step(context)
        optimizer.step()
        context.steps += 1
    delta = context.schema.flatten(context.model) - context.request.vector
    return delta, strategy.on_train_end(context, delta)


def _strategy(method: Method) -> Strategy:
    return _object("strategies", method.strategy, method.params)


def _object(kind: str, name: str, params: dict[str, Any]) -> Any:
    entry = get(kind, name)
    return entry.load()(entry.params.model_validate(params))


class Result(NamedTuple):
    """Mean and standard deviation over seeds."""

    pooled: tuple[float, float]
    mean_of_sites: tuple[float, float]


def summary(scores: Sequence[Scores]) -> Result:
    """Pooled test, and the unweighted mean over the six test sets."""
    sites = [statistics.fmean(s[test] for test in TESTS[1:]) for s in scores]
    pooled = [s[POOLED] for s in scores]
    return Result(
        (statistics.fmean(pooled), statistics.stdev(pooled)),
        (statistics.fmean(sites), statistics.stdev(sites)),
    )


def main() -> None:
    """All methods, the table, and the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, default=SHARED, help="folder that holds fed/ [../shared/data]")
    parser.add_argument("--only", choices=["pooled", "federated", "standardised"], help="nothing is kept")
    arguments = parser.parse_args()
    if not (arguments.data / "fed" / "fed_tcga_brca").is_dir():
        reason = f"no fed/fed_tcga_brca in {arguments.data}: give the data folder with --data"
        print(f"skipped: {reason}")
        print(json.dumps({"skipped": reason}))
        return
    torch.set_num_threads(1)
    started, load = time.perf_counter(), os.getloadavg()[0]
    figures: dict[str, Any] = {}
    if arguments.only != "standardised":
        figures |= parity(arguments.data, arguments.only)
    if arguments.only in (None, "standardised"):
        figures |= standardised(arguments.data)
    figures |= {"seconds": round(time.perf_counter() - started), "load_before": round(load, 1)}
    figures["versions"] = {name: version(name) for name in ("torch", "numpy", "lifelines")}
    figures["python"] = sys.version.split()[0]
    if not arguments.only:
        results = Path(__file__).parent / "results" / "flamby.json"
        results.write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures))


def parity(data: Path, only: str | None) -> dict[str, Any]:
    """The raw protocol against what was published."""
    regions, known = read(data), published(data)
    figures: dict[str, Any] = {}
    print("| method | published: pooled test | mean of 6 sites | ours: pooled test | mean of 6 sites |")
    print("|---|---|---|---|---|")
    if only != "federated":
        ours = [central(regions.pooled, regions, seed) for seed in SEEDS]
        theirs = [known["Pooled Training", seed] for seed in SEEDS]
        gaps = [abs(a[t] - b[t]) for a, b in zip(ours, theirs, strict=True) for t in TESTS]
        figures["pooled_abs_diff"] = max(gaps)
        row("pooled training", summary(theirs), summary(ours))
        for k, rows in enumerate(regions.clients):
            theirs = [known[f"Local {k}", seed] for seed in SEEDS]
            row(f"local {k}", summary(theirs), summary([central(rows, regions, seed) for seed in SEEDS]))
    if only == "pooled":
        return figures
    for name, method in METHODS.items():
        scores = summary([federated(method, regions, seed) for seed in SEEDS])
        reference = None
        if method.published is not None:
            reference = summary([known[method.published, seed] for seed in SEEDS])
        row(name, reference, scores)
        if reference is not None:
            gaps = [abs(a[0] - b[0]) for a, b in zip(scores, reference, strict=True)]
            figures[f"{name}_abs_diff" if name in COMPARED else f"{name}_difference"] = round(max(gaps), 4)
        figures[name] = [round(value[0], 4) for value in scores]
    return figures


def standardised(data: Path) -> dict[str, Any]:
    """FedAvg with federated standardisation, and balanced aggregation beside it, 10 seeds."""
    regions = read(data, standardise=True)
    figures: dict[str, Any] = {}
    for key, rule in (("fedavg_standardised", "mean"), ("balanced", "balanced")):
        result = summary([federated(METHODS["fedavg"], regions, seed, rule) for seed in range(42, 52)])
        row(f"{key.replace('_', ', ')}, 10 seeds", None, result)
        figures[f"{key}_mean"] = round(result.pooled[0], 4)
        figures[f"{key}_sd"] = round(result.pooled[1], 4)
        figures[f"{key}_mean_of_sites"] = round(result.mean_of_sites[0], 4)
    return figures


def row(name: str, theirs: Result | None, ours: Result) -> None:
    """One line of the table."""
    cells = [f"{mean:.4f} ± {spread:.4f}" for result in (theirs, ours) if result for mean, spread in result]
    print(f"| {name} | {' | '.join(['–', '–'] * (theirs is None) + cells)} |", flush=True)


if __name__ == "__main__":
    main()
