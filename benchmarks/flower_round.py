"""Seconds of rounds of Flower's simulation, for ``benchmarks/federation.py``: run by an interpreter that has flwr.

``python flower_round.py ROUNDS CPUS WIDTH``: six clients of random rows, one SGD step of Cox's loss on 8 of them per
round, a linear model (WIDTH 0) or a network of two layers of WIDTH. Federated averaging without evaluation. The last
line of the output is JSON; the first two rounds, in which actors start, are left out.
"""

import json
import sys
import time
from importlib.metadata import version

import numpy as np
import torch
from flwr.client import ClientApp, NumPyClient
from flwr.common import ndarrays_to_parameters
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.simulation import run_simulation

SIZES = (248, 156, 164, 129, 129, 40)
COVARIATES, BATCH, LR = 39, 8, 0.01
ROUNDS, CPUS, WIDTH = (int(argument) for argument in sys.argv[1:4])
ends: list[float] = []


def network() -> torch.nn.Module:
    """As in the benchmark of the engine."""
    torch.manual_seed(0)
    if not WIDTH:
        return torch.nn.Linear(COVARIATES, 1)
    layers = [
        torch.nn.Linear(COVARIATES, WIDTH),
        torch.nn.SELU(),
        torch.nn.Linear(WIDTH, WIDTH),
        torch.nn.SELU(),
    ]
    return torch.nn.Sequential(*layers, torch.nn.Linear(WIDTH, 1))


class Site(NumPyClient):
    """Random rows, one step."""

    def __init__(self, at: int) -> None:
        generator = torch.Generator().manual_seed(at)
        self.rows = torch.randn(SIZES[at], COVARIATES, generator=generator)
        self.event = (torch.rand(SIZES[at], generator=generator) < 0.15).float()
        self.model = network()

    def fit(self, parameters, config):
        """One step of SGD on the first rows."""
        torch.set_num_threads(1)
        state = zip(self.model.state_dict(), map(torch.from_numpy, parameters), strict=True)
        self.model.load_state_dict(dict(state))
        optimizer = torch.optim.SGD(self.model.parameters(), LR)
        score, seen = self.model(self.rows[:BATCH])[:, 0], self.event[:BATCH]
        (seen * (torch.logcumsumexp(score, 0) - score)).sum().backward()
        optimizer.step()
        return [value.numpy() for value in self.model.state_dict().values()], len(self.rows), {}


class Timed(FedAvg):
    """Federated averaging that notes when a round ends."""

    def aggregate_fit(self, server_round, results, failures):
        """As usual."""
        done = super().aggregate_fit(server_round, results, failures)
        if failures:
            raise RuntimeError(f"clients failed: {failures[0]}")
        ends.append(time.perf_counter())
        return done


def client(context):
    """The site of a virtual client."""
    return Site(int(context.node_config["partition-id"])).to_client()


def server(context):
    """All six in every round, no evaluation."""
    initial = ndarrays_to_parameters([value.numpy() for value in network().state_dict().values()])
    strategy = Timed(
        fraction_fit=1.0,
        fraction_evaluate=0.0,
        min_fit_clients=len(SIZES),
        min_available_clients=len(SIZES),
        initial_parameters=initial,
    )
    return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=ROUNDS))


run_simulation(
    server_app=ServerApp(server_fn=server),
    client_app=ClientApp(client_fn=client),
    num_supernodes=len(SIZES),
    backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"num_cpus": CPUS}},
)
print(
    json.dumps(
        {"seconds": np.diff(ends)[1:].tolist(), "versions": {n: version(n) for n in ("flwr", "ray", "torch")}}
    )
)
