"""Seconds of rounds of pfl's simulation, for ``benchmarks/federation.py``: run by an interpreter that has pfl.

``python pfl_round.py ROUNDS WIDTH``: six clients of random rows, one SGD step of Cox's loss on 8 of them per round, a
linear model (WIDTH 0) or a network of two layers of WIDTH, as in ``flower_round.py``. Federated averaging in one
process with one thread, weighted by patients, without evaluation. The last line of the output is JSON; the first two
rounds are left out.
"""

import json
import sys
import time
from importlib.metadata import version

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.hyperparam import NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel

SIZES = (248, 156, 164, 129, 129, 40)
COVARIATES, BATCH, LR = 39, 8, 0.01
ROUNDS, WIDTH = (int(argument) for argument in sys.argv[1:3])
ends: list[float] = []


class Network(torch.nn.Module):
    """As in the benchmark of the engine, with the methods that pfl asks of a model."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[torch.nn.Module] = []
        if WIDTH:
            layers += [torch.nn.Linear(COVARIATES, WIDTH), torch.nn.SELU()]
            layers += [torch.nn.Linear(WIDTH, WIDTH), torch.nn.SELU()]
        self.layers = torch.nn.Sequential(*layers, torch.nn.Linear(WIDTH or COVARIATES, 1))

    def loss(self, rows, event):
        """Cox's loss of rows that are sorted by time."""
        score = self.layers(rows)[:, 0]
        return (event * (torch.logcumsumexp(score, 0) - score)).sum()

    def metrics(self, rows, event):
        """None."""
        return {}


class Timed(TrainingProcessCallback):
    """Notes when a round ends."""

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        """Called after every round."""
        ends.append(time.perf_counter())
        return False, Metrics()


def site(at: int) -> Dataset:
    """Random rows of a client."""
    generator = torch.Generator().manual_seed(at)
    rows = torch.randn(SIZES[at], COVARIATES, generator=generator)
    event = (torch.rand(SIZES[at], generator=generator) < 0.15).float()
    return Dataset(raw_data=(rows, event), user_id=str(at))


torch.set_num_threads(1)
torch.manual_seed(0)
network, sites = Network(), [site(at) for at in range(len(SIZES))]


def in_turn():
    """Numbers of the clients, again and again."""
    while True:
        yield from range(len(SIZES))


sampler = in_turn()
data = FederatedDataset(lambda at: sites[at], lambda: next(sampler))
backend = SimulatedBackend(data, data, postprocessors=[WeightByDatapoints()])
model = PyTorchModel(network, torch.optim.SGD, torch.optim.SGD(network.parameters(), lr=1.0))
FederatedAveraging().run(
    NNAlgorithmParams(
        central_num_iterations=ROUNDS,
        evaluation_frequency=10 * ROUNDS,
        train_cohort_size=len(SIZES),
        val_cohort_size=0,
    ),
    backend,
    model,
    NNTrainHyperParams(
        local_num_epochs=None, local_num_steps=1, local_learning_rate=LR, local_batch_size=BATCH
    ),
    callbacks=[Timed()],
)
print(
    json.dumps({"seconds": np.diff(ends)[1:].tolist(), "versions": {n: version(n) for n in ("pfl", "torch")}})
)
