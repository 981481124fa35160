"""A round of a federation: the engine on Ray and inline, a plain loop over clients, and Flower's simulation.

Six clients with the patients of the six regions of TCGA-BRCA (866 in all, 39 covariates of random numbers), Cox's
model, batches of 8, SGD; all clients take part in every round; no checkpoints and no audit log on disk; medians over
rounds of several turns, in each of which all ways have theirs; Ray up and workers warm.

- ``round_overhead_s``: one update per round and client, so that nearly everything is the engine;
- ``round_20mb_s``: the same with a network of 20 MB of weights;
- ``vs_loop_protocol``: a round of 100 updates per client on Ray, over a plain loop that trains one client after the
  other with the same local training and averages in NumPy (below 1: the engine costs less than its workers save);
  ``vs_bare_loop``: over a loop written in bare torch on ready tensors, without batches of cases, balancing or
  checks of losses (what is paid for one training loop everywhere);
- ``vs_bare_20mb``: a round on Ray over the bare loop, with 20 MB of weights;
- ``many_peak_gib``: peak memory (proportional set size of all processes) of 500 clients under SCAFFOLD with 20 %
  participation;
- ``vs_flower_overhead``, ``vs_flower_20mb``: Flower's round over ours, if an interpreter that has ``flwr[simulation]``
  and torch is given by ``--flower-python`` or ``EQUIPOISE_FLOWER_PYTHON``; in every turn it runs after our Ray has
  been shut down, so that both have the machine for themselves;
- ``vs_pfl``, ``vs_pfl_20mb``: the round of pfl's simulation, which runs in one process, over our inline round, if an
  interpreter that has ``pfl`` and torch is given by ``--pfl-python``.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks.tree import measure
from equipoise.datasets.cohorts.cases import Case
from equipoise.datasets.omics.params import TableParams
from equipoise.datasets.tables.tasks import SurvivalTask
from equipoise.platform.cluster.params import RayOptions
from equipoise.platform.cluster.session import ray_session
from equipoise.platform.federation.clients.runner import ClientRunner
from equipoise.platform.federation.clients.study_trainer import ClientData
from equipoise.platform.federation.messages import ClientUpdate, TrainRequest, request_id_of
from equipoise.platform.federation.params import FederationParams
from equipoise.platform.federation.privacy.mechanism import NoPrivacy
from equipoise.platform.federation.simulation.ray_backend import WorkerPool
from equipoise.platform.federation.simulation.simulation import Simulation
from equipoise.platform.federation.standardisation import federated_targets
from equipoise.platform.training.batches import CaseList
from equipoise.platform.training.build import build_model
from equipoise.platform.training.params import TrainingParams
from equipoise.platform.training.targets import Targets

SIZES = {"Northeast": 248, "South": 156, "West": 164, "Midwest": 129, "Europe": 129, "Canada": 40}
COVARIATES, BATCH, LR = 39, 8, 0.01
WIDTH = 2216  # 39 · 2216 + 2216² weights and biases: 5.0 million numbers, 20 MB
TASK = SurvivalTask(
    name="OS", time={"column": "t", "unit": "days"}, event={"column": "e", "event_value": "dead"}, main=True
)
TRAINING = TrainingParams(device="cpu", batch=BATCH)
#: Name, updates per client and round, whether the model is the large one.
CASES = (("overhead", 1, False), ("20mb", 1, True), ("protocol", 100, False))


def main() -> None:
    """Print the figures, keep them beside this file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=12, help="rounds of every kind and turn")
    parser.add_argument("--turns", type=int, default=3, help="turns of every kind")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--many", action="store_true", help="only run the 500 clients, in this process")
    parser.add_argument("--flower-python", default=os.environ.get("EQUIPOISE_FLOWER_PYTHON"))
    parser.add_argument("--pfl-python", default=os.environ.get("EQUIPOISE_PFL_PYTHON"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.many:
        print(json.dumps(many(arguments.workers)))
        return
    load = os.getloadavg()[0]
    seconds: dict[str, list[float]] = {}
    peers: dict[str, Any] = dict.fromkeys(("flower", "pfl"), "not run: no interpreter was given")
    for _ in range(arguments.turns):
        with ray_session(RayOptions(address="local", cpus=arguments.workers, dashboard=False)):
            pool = WorkerPool(arguments.workers)
            for name, steps, large in CASES:
                turn(seconds, name, pool, arguments.rounds, steps=steps, large=large)
        if arguments.flower_python:
            sizes = [str(arguments.rounds + 2), str(arguments.workers)]
            peers["flower"] = peer(seconds, "flower", arguments.flower_python, sizes)
        if arguments.pfl_python:
            peers["pfl"] = peer(seconds, "pfl", arguments.pfl_python, [str(arguments.rounds + 2)])
    figures: dict[str, Any] = {f"{way}_s": round(median(values), 4) for way, values in seconds.items()}
    figures["vs_loop_protocol"] = round(figures["round_protocol_s"] / figures["loop_protocol_s"], 3)
    figures["vs_bare_loop"] = round(figures["round_protocol_s"] / figures["bare_protocol_s"], 3)
    figures["vs_bare_20mb"] = round(figures["round_20mb_s"] / figures["bare_20mb_s"], 3)
    figures |= peers
    for name in ("overhead", "20mb") if arguments.flower_python else ():
        figures[f"vs_flower_{name}"] = round(figures[f"flower_{name}_s"] / figures[f"round_{name}_s"], 2)
    for key, name in (("vs_pfl", "overhead"), ("vs_pfl_20mb", "20mb")) if arguments.pfl_python else ():
        figures[key] = round(figures[f"pfl_{name}_s"] / figures[f"inline_{name}_s"], 2)
    figures |= many_measured(arguments.workers)
    figures |= {
        "rounds": arguments.rounds * arguments.turns,
        "workers": arguments.workers,
        "load_before": round(load, 1),
        "cores": os.cpu_count(),
        "versions": {name: version(name) for name in ("ray", "torch", "numpy")}
        | {"python": platform.python_version()},
    }
    for key, value in figures.items():
        print(f"{key:<24} {value}")
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    (results / "federation.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures))


def make_clients() -> dict[str, CaseList]:
    """Random covariates, times that follow one of them."""
    rng = np.random.default_rng(0)
    columns = {"clinical": tuple(f"x{i}" for i in range(COVARIATES))}
    blank = (np.zeros((0, 0), np.float16), np.zeros((0, 2), np.int32), (), ())
    clients = {}
    for client, count in SIZES.items():
        cases = {}
        for i in range(count):
            row = rng.normal(size=COVARIATES).astype(np.float32)
            label = (float(rng.exponential(1000 * np.exp(-row[0])) + 1), float(rng.random() < 0.15))
            name = f"{client}-{i}"
            cases[name] = Case(name, "SYN", client, *blank, {"clinical": row}, {"OS": label}, columns)
        clients[client] = CaseList(cases, tuple(cases))
    return clients


def settle(large: bool) -> tuple[dict[str, CaseList], Targets, Callable[[], Any]]:
    """Clients, targets, model factory."""
    clients = make_clients()
    if large:  # a table of RNA through a network
        for cases in clients.values():
            for name, case_ in list(cases.source.items()):  # type: ignore[attr-defined]
                row = case_.omics["clinical"]
                cases.source[name] = Case(  # type: ignore[index]
                    *(
                        getattr(case_, f)
                        for f in ("patient", "cohort", "site", "bag", "coords", "slides", "tiles")
                    ),
                    {"rna": row},
                    case_.targets,
                    {"rna": case_.columns["clinical"]},
                )
    tables = TableParams.model_validate(
        {"clinical": [{"column": f"x{i}", "type": "number"} for i in range(COVARIATES)]}
    )
    targets = federated_targets([TASK], clients, tables=tables)
    kind, params = ("omics", {"dim": WIDTH, "layers": 2, "dropout": 0.0}) if large else ("clinical", {})
    return clients, targets, partial(build_model, kind, params, targets.shape, targets.heads, seed=0)


def turn(
    seconds: dict[str, list[float]], name: str, pool: WorkerPool, rounds: int, *, steps: int, large: bool
) -> None:
    """Add the seconds of rounds: engine on Ray, engine inline, plain loop, bare loop."""
    clients, targets, factory = settle(large)
    engine(clients, targets, factory, steps, 1, "ray", pool)  # workers are warm
    for way, backend in (("round", "ray"), ("inline", "inline")):
        workers = pool if backend == "ray" else None
        seconds.setdefault(f"{way}_{name}", []).extend(
            engine(clients, targets, factory, steps, rounds, backend, workers)
        )
    for way, by_hand in (("loop", loop), ("bare", bare)):
        seconds.setdefault(f"{way}_{name}", []).extend(by_hand(clients, targets, factory, steps, rounds))


def settings(steps: int, rounds: int, backend: str) -> FederationParams:
    """Federated averaging with steps of SGD."""
    local = {"steps": steps, "optimizer": "sgd", "lr": LR, "batch": BATCH}
    return FederationParams.model_validate({"rounds": rounds, "local": local, "backend": backend})


def engine(
    clients: dict[str, CaseList],
    targets: Targets,
    factory: Callable[[], Any],
    steps: int,
    rounds: int,
    backend: str,
    pool: WorkerPool | None,
) -> list[float]:
    """Seconds of every round but the first two."""
    ends: list[float] = []
    federation = Simulation(
        factory,
        targets,
        clients,
        settings(steps, rounds + 2, backend),
        seed=0,
        training=TRAINING,
        pool=pool,
        on_round=lambda row: ends.append(time.perf_counter()),
    )
    result = federation.run()
    assert all(row["accepted"] == len(clients) for row in result.history)
    return np.diff(ends)[1:].tolist()


def loop(
    clients: dict[str, CaseList], targets: Targets, factory: Callable[[], Any], steps: int, rounds: int
) -> list[float]:
    """One client after the other by the same local training, and the mean of their weights."""
    params = settings(steps, rounds, "inline")
    client_data = {name: ClientData(cases) for name, cases in clients.items()}
    simulation = Simulation(factory, targets, client_data, params, seed=0, training=TRAINING)
    runner = ClientRunner(simulation.setup(simulation.strategy, NoPrivacy()), client_data)
    runner.join()
    vector = runner.schema.flatten(factory())
    weights = np.array([len(cases) for cases in clients.values()], np.float32)
    seconds = []
    for round_ in range(rounds):
        started = time.perf_counter()
        request = TrainRequest(round_, "fit", 0, LR, 1, steps, vector)
        total = np.zeros_like(vector)
        for weight, client in zip(weights / weights.sum(), clients, strict=True):
            data, _ = runner.train(client, request, request_id_of(0, round_, client), b"")
            total += weight * ClientUpdate.from_bytes(data).delta
        vector = vector + total
        seconds.append(time.perf_counter() - started)
    return seconds


def bare(
    clients: dict[str, CaseList], targets: Targets, factory: Callable[[], Any], steps: int, rounds: int
) -> list[float]:
    """The protocol in bare torch: rows are tensors before the clock starts."""
    from equipoise.platform.training.batches import collate

    data = {}
    for name, cases in clients.items():
        batch = collate(list(cases), targets)
        rows = torch.cat(list(batch.omics.values()), dim=1)
        data[name] = rows, batch.targets["OS"][:, 0], batch.targets["OS"][:, 1]
    model = factory()
    network = torch.nn.Sequential(*([model.body] if model.body is not None else []), model.heads[0])
    state = {key: value.clone() for key, value in network.state_dict().items()}
    share = {name: len(cases) / sum(SIZES.values()) for name, cases in clients.items()}
    seconds = []
    for round_ in range(rounds):
        started = time.perf_counter()
        mean = {key: torch.zeros_like(value) for key, value in state.items()}
        for name, (rows, time_, event) in data.items():
            network.load_state_dict(state)
            optimizer = torch.optim.SGD(network.parameters(), LR)
            generator = torch.Generator().manual_seed(round_)
            order = torch.cat(
                [
                    torch.randperm(len(rows), generator=generator)
                    for _ in range(1 + steps * BATCH // len(rows))
                ]
            )
            for step in range(steps):
                chosen = order[step * BATCH : (step + 1) * BATCH]
                score, at, seen = network(rows[chosen])[:, 0], time_[chosen], event[chosen]
                by_time = torch.argsort(at, descending=True, stable=True)
                score, seen = score[by_time], seen[by_time]
                loss = (seen * (torch.logcumsumexp(score, 0) - score)).sum() / seen.sum().clamp(min=1)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            for key, value in network.state_dict().items():
                mean[key] += share[name] * value
        state = mean
        seconds.append(time.perf_counter() - started)
    return seconds


def many(workers: int, clients: int = 500, rounds: int = 10) -> dict[str, float]:
    """SCAFFOLD, which keeps a vector at every client, with 20 % of the clients in a round."""
    rng = np.random.default_rng(0)
    blank = (np.zeros((0, 0), np.float16), np.zeros((0, 2), np.int32), (), ())
    client_data = {}
    for at in range(clients):
        cases = {}
        for i in range(int(rng.integers(5, 40))):
            row = rng.normal(size=COVARIATES).astype(np.float32)
            label = (float(rng.exponential(1000 * np.exp(-row[0])) + 1), float(rng.random() < 0.5))
            cases[f"{at}-{i}"] = Case(f"{at}-{i}", "SYN", f"S{at}", *blank, {"rna": row}, {"OS": label})
        client_data[f"client {at:03d}"] = CaseList(cases, tuple(cases))
    targets = federated_targets([TASK], client_data)
    factory = partial(build_model, "omics", {"dim": 512, "layers": 2}, targets.shape, targets.heads, seed=0)
    local = {"epochs": 1, "optimizer": "sgd", "lr": LR, "batch": BATCH}
    participation = {"scheme": "uniform", "fraction": 0.2}
    params = {"rounds": rounds, "strategy": "scaffold", "local": local, "participation": participation}
    params |= {"backend": "ray", "workers": workers}
    ends: list[float] = []
    with ray_session(RayOptions(address="local", cpus=workers, object_store_mb=600, dashboard=False)):
        federation = Simulation(
            factory,
            targets,
            client_data,
            FederationParams.model_validate(params),
            seed=0,
            training=TRAINING,
            on_round=lambda row: ends.append(time.perf_counter()),
        )
        result = federation.run()
    assert all(row["accepted"] == clients // 5 for row in result.history)
    return {
        "many_clients": clients,
        "many_round_s": round(float(np.median(np.diff(ends))), 3),
        "many_weights": result.schema.size,
    }


def many_measured(workers: int) -> dict[str, float]:
    """The same in a process of its own, with the peak memory of it and of its Ray."""
    command = [sys.executable, "-m", "benchmarks.federation", "--many", "--workers", str(workers)]
    usage = measure(command, Path(__file__).parents[1], interval_s=0.5)
    if usage.code:
        raise SystemExit(usage.output[-3000:])
    return json.loads(usage.output.strip().splitlines()[-1]) | {
        "many_peak_gib": round(usage.peak_mb / 1024, 2)
    }


def peer(seconds: dict[str, list[float]], name: str, python: str, sizes: list[str]) -> dict[str, str]:
    """Add rounds of another simulation with the same models, clients and CPUs; versions."""
    script = Path(__file__).with_name(f"{name}_round.py")
    answer: dict[str, Any] = {}
    for case_, width in (("overhead", 0), ("20mb", WIDTH)):
        command = [python, str(script), *sizes, str(width)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-3000:]}")
        answer = json.loads(done.stdout.strip().splitlines()[-1])
        seconds.setdefault(f"{name}_{case_}", []).extend(answer["seconds"])
    return answer["versions"]


if __name__ == "__main__":
    main()
