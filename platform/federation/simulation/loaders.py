"""A federation over one's own model and data loaders: any ``nn.Module``, any batches, a function for the loss.

>>> loaders = {"A": loader_a, "B": loader_b}                                                    # doctest: +SKIP
>>> result = federate_loaders(Net, loaders, loss_fn, FederationParams(), seed=1)                # doctest: +SKIP
>>> result.model                                                                                # doctest: +SKIP

The same engine, strategies, server aggregations and privacy as for a study; every parameter is shared by all clients,
and the clients train in this process one after the other.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from equipoise.platform.errors import DataError, FederationError, StudyError
from equipoise.platform.federation.clients.local_training import LocalJob, LocalOutcome
from equipoise.platform.federation.clients.runner import ClientRunner, ClientSetup
from equipoise.platform.federation.engine import Federation, OnRound, build_strategy
from equipoise.platform.federation.messages import ClientManifest
from equipoise.platform.federation.params import FederationParams
from equipoise.platform.federation.privacy.combined import privacy_of
from equipoise.platform.federation.result import FederationResult
from equipoise.platform.federation.server.checkpoint import identity_of
from equipoise.platform.federation.simulation.inline_backend import InlineBackend
from equipoise.platform.federation.simulation.simulation import with_models
from equipoise.platform.federation.vector import Schema
from equipoise.platform.training.params import TrainingParams

#: Batch of a client → scalar loss, as a function of the model.
LossFunction = Callable[[nn.Module, Any], Tensor]


#: Settings about patients and workers, which have no meaning here.
OF_STUDIES = ("sites", "evaluation", "workers", "worker_cpus", "worker_gpus", "timeout_s")


class LoaderTrainer:
    """Trains a model on the batches of the clients' loaders.

    Parameters
    ----------
    loaders
        Client → its batches. Random draws of a loader, with a generator of its own or without, are functions of the
        federation's seed, round and client.
    model_fn
        Makes the model, on the device where it is trained.
    loss_fn
        Loss of the model on a batch.
    """

    tasks: tuple[str, ...] = ("loss",)

    def __init__(
        self,
        loaders: Mapping[str, DataLoader[Any]],
        *,
        model_fn: Callable[[], nn.Module],
        loss_fn: LossFunction,
    ) -> None:
        self.loaders, self.loss_fn, self.model = dict(loaders), loss_fn, model_fn()

    def declare(self, client: str, groups: Sequence[str]) -> ClientManifest:
        """The size of the client's data set; it trains all parameters.

        Raises
        ------
        DataError
            If the data set is empty or has no length.
        """
        loader = self.loaders[client]
        try:
            n = len(loader.dataset)  # type: ignore[arg-type]
            batches = len(loader)
        except TypeError:
            raise DataError(
                f"the data set of client {client} has no length", fix="use a map-style one"
            ) from None
        if not batches:
            raise DataError(f"client {client} has no batch to train on", fix="leave it out")
        batch = min(loader.batch_size or math.ceil(n / batches), n)
        return ClientManifest(
            client, n, {"loss": n}, {}, dict.fromkeys(groups, n), batch=batch, labels={"loss": n}
        )

    def train(self, job: LocalJob) -> LocalOutcome:
        """The given number of passes over the loader, or of steps."""
        context, loader = job.context, self.loaders[job.client]
        epochs, steps = context.request.epochs, context.request.steps
        device = next(self.model.parameters()).device
        with job.hooked(device):
            for generator in (loader.generator, getattr(loader.sampler, "generator", None)):
                if generator is not None:
                    generator.manual_seed(job.seed)
            for passes in itertools.count(1):
                left = None if steps is None else steps - context.steps
                losses = [self._step(job, batch) for batch in itertools.islice(loader, left)]
                if passes == epochs if steps is None else context.steps == steps:
                    mean = math.fsum(losses) / len(losses)
                    return LocalOutcome(passes, {"loss": (mean, len(loader.dataset))})  # type: ignore[arg-type]
        raise AssertionError("unreachable")

    def _step(self, job: LocalJob, batch: Any) -> float:
        job.context.batch = lambda: batch
        job.optimizer.zero_grad()
        loss = self.loss_fn(self.model, batch)
        value, factors = float(loss.detach()), job.loss_factors(self.tasks)
        if not math.isfinite(value):
            raise FederationError(f"the loss of client {job.client} is {value}", fix="lower local.lr")
        (loss if factors is None else loss * factors[0].to(loss)).backward()
        job.optimizer.step()
        job.context.steps += 1
        return value


def federate_loaders(
    model_fn: Callable[[], nn.Module],
    loaders: Mapping[str, DataLoader[Any]],
    loss_fn: LossFunction,
    params: FederationParams,
    *,
    seed: int,
    folder: Path | None = None,
    on_round: OnRound | None = None,
) -> FederationResult:
    """Train one model on the data of several clients.

    Parameters
    ----------
    model_fn
        Makes the model; random initial weights are a function of the seed.
    loaders
        Client → a loader of its training data.
    loss_fn
        ``loss_fn(model, batch)`` → scalar loss, the mean over the batch.
    params
        Rounds, strategy, server aggregation, privacy and the local steps. Batches are those of the loaders.
    seed
        Seed of everything random.
    folder
        Where checkpoints are written and resumed from; nothing is written if not given.
    on_round
        Called after every round with its row of the history.

    Raises
    ------
    DataError
        If there is no client, or a client has no data.
    StudyError
        If a setting needs the patients of a study: ``local.batch``, privacy of patients, Ray or :data:`OF_STUDIES`.
    FederationError
        If three rounds in a row have too few usable updates. A client whose loss is NaN or infinite fails, and is left
        out after ``exclude_after`` failures.
    """
    if not loaders:
        raise DataError("there is no client")
    if params.privacy.record_level is not None:
        raise StudyError("privacy of patients needs the losses of a study; loaders have none per patient")
    if params.local.batch != "auto" or params.backend == "ray":
        raise StudyError("with loaders, batches are those of the loaders and clients train in this process")
    if given := [name for name in OF_STUDIES if getattr(params, name) != getattr(FederationParams(), name)]:
        raise StudyError(f"{', '.join(given)}: only for federations of a study's patients")
    params = params.in_training()
    factory = partial(_seeded, model_fn, seed)
    model = factory()
    schema = Schema.of(model, ())
    initial = schema.flatten(model)
    strategy, privacy = build_strategy(params), privacy_of(params, schema, seed)
    ordered = {client: loaders[client] for client in sorted(loaders)}
    trainer = partial(LoaderTrainer, model_fn=factory, loss_fn=loss_fn)
    threads = torch.get_num_threads()
    runner = ClientRunner(
        ClientSetup(trainer, strategy, privacy, params.local, threads, params.min_n), ordered
    )
    backend = InlineBackend(runner)
    federation = Federation(
        schema,
        initial,
        backend,
        params,
        seed=seed,
        lr=params.local.lr or TrainingParams().lr,
        strategy=strategy,
        privacy=privacy,
        folder=folder,
        identity=identity_of(params, schema, initial, privacy, seed)
        | {"clients": {client: manifest.n for client, manifest in backend.join().items()}},
        on_round=on_round,
    )
    return with_models(federation.run(), backend, strategy, factory)


def _seeded(model_fn: Callable[[], nn.Module], seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model_fn()
