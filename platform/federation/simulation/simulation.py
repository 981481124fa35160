"""A simulated federation: patients of clients in this process or in Ray workers, behind the engine's backend.

>>> simulation = Simulation(factory, targets, {"S1": cases_1, "S2": cases_2}, FederationParams(), seed=1)
>>> result = simulation.run()                                                            # doctest: +SKIP
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from equipoise.platform.federation.backend import Backend
from equipoise.platform.federation.clients.runner import ClientRunner, ClientSetup, ClientState
from equipoise.platform.federation.clients.setup import client_setup
from equipoise.platform.federation.clients.study_trainer import (
    ClientData,
    batch_size,
    check_clients,
)
from equipoise.platform.federation.engine import Federation, OnRound, Validate, build_strategy
from equipoise.platform.federation.params import FederationParams
from equipoise.platform.federation.participation import sampling_plan
from equipoise.platform.federation.privacy.combined import privacy_of
from equipoise.platform.federation.privacy.mechanism import PrivacyMechanism
from equipoise.platform.federation.privacy.record_level import check_supported
from equipoise.platform.federation.result import FederationResult
from equipoise.platform.federation.server.checkpoint import identity_of
from equipoise.platform.federation.server.validator import UpdateValidator
from equipoise.platform.federation.simulation.inline_backend import InlineBackend
from equipoise.platform.federation.strategies.strategy import Strategy
from equipoise.platform.federation.vector import Schema
from equipoise.platform.fingerprints import content_hash
from equipoise.platform.training.batches import CaseList
from equipoise.platform.training.params import BalancingParams, Recipe, TrainingParams
from equipoise.platform.training.start import initial_model, training_record
from equipoise.platform.training.targets import Targets

if TYPE_CHECKING:
    from equipoise.platform.federation.simulation.ray_backend import WorkerPool

#: Parameter updates per round above which workers are faster than one process; models over tiles always use them.
MIN_PARALLEL_UPDATES = 2e8


class Simulation:
    """Clients that train one model together.

    Parameters
    ----------
    factory
        Makes a model with the initial weights; for Ray it must be picklable.
    targets
        Tasks, scalers, tables: the same at every client
        (:func:`~equipoise.platform.federation.standardisation.federated_targets`).
    clients
        Name → its training patients, or
        :class:`~equipoise.platform.federation.clients.study_trainer.ClientData` if balancing needs inner validation.
    params, training, balancing
        Settings.
    seed
        Seed of everything random.
    privacy
        Privacy mechanism; that of ``params.privacy`` if not given.
    pool
        Workers to use; if not given, the federation starts workers and shuts them down at its end.
    folder, validator, on_round, validate
        As for :class:`~equipoise.platform.federation.engine.Federation`.

    Raises
    ------
    DataError
        If there is no client, a client has no patient, or a patient belongs to two.
    StudyError
        If a balancing method needs inner validation and a client has none.
    """

    def __init__(
        self,
        factory: Callable[[], nn.Module],
        targets: Targets,
        clients: Mapping[str, CaseList | ClientData],
        params: FederationParams,
        *,
        seed: int,
        training: TrainingParams | None = None,
        balancing: BalancingParams | None = None,
        folder: Path | None = None,
        privacy: PrivacyMechanism | None = None,
        validator: UpdateValidator | None = None,
        pool: WorkerPool | None = None,
        on_round: OnRound | None = None,
        validate: Validate | None = None,
    ) -> None:
        params = params if params.rounds is not None else params.in_training()
        self.params, self.seed, self.folder, self.on_round = params, seed, folder, on_round
        self.validate = validate
        self.factory, self.targets, self.pool, self.validator = factory, targets, pool, validator
        self.training, self.balancing = training or TrainingParams(), balancing or BalancingParams()
        self.client_data = {
            name: data if isinstance(data, ClientData) else ClientData(data)
            for name, data in sorted(clients.items())
        }
        check_clients(self.client_data, self.balancing)
        model = factory()
        self.schema = Schema.of(model, [head.name for head in targets.heads])
        self.initial = self.schema.flatten(model)
        if params.privacy.record_level is not None:
            methods = {"weighting": self.balancing.weighting, "aggregation": self.balancing.aggregation}
            check_supported(model, targets.heads, **methods)
        self.privacy = privacy or privacy_of(params, self.schema, seed)
        self.strategy = build_strategy(params)

    def run(self) -> FederationResult:
        """Run all rounds that are not done yet; see :meth:`~equipoise.platform.federation.engine.Federation.run`."""
        with self._backend() as backend:
            federation = Federation(
                self.schema,
                self.initial,
                backend,
                self.params,
                seed=self.seed,
                lr=self.params.local.lr or self.training.lr,
                strategy=self.strategy,
                privacy=self.privacy,
                validator=self.validator,
                folder=self.folder,
                identity=self._identity(),
                on_round=self.on_round,
                validate=self.validate,
            )
            return with_models(federation.run(), backend, self.strategy, self.factory)

    def setup(self, strategy: Strategy, privacy: PrivacyMechanism) -> ClientSetup:
        """What the workers are given to train with this strategy and privacy mechanism."""
        return client_setup(
            self.factory, self.targets, self.params, self.training, self.balancing, strategy, privacy
        )

    @contextmanager
    def _backend(self) -> Iterator[Backend]:
        params, setup, chosen = self.params, self.setup(self.strategy, self.privacy), self.params.backend
        if chosen == "auto":
            worthwhile = self._profits_from_workers() and _ray_is_open() and self._has_room()
            chosen = "ray" if worthwhile else "inline"
        if chosen == "inline":
            yield InlineBackend(ClientRunner(setup, self.client_data))
            return
        from equipoise.platform.federation.simulation.ray_backend import RayBackend, worker_pool_for

        pool = self.pool or worker_pool_for(
            len(self.client_data), workers=params.workers, cpus=params.worker_cpus, gpus=params.worker_gpus
        )
        backend = RayBackend(
            setup, self.client_data, pool, workers=params.workers, timeout_s=params.timeout_s
        )
        try:
            yield backend
        finally:
            backend.close()
            if pool is not self.pool:
                pool.shutdown()

    def _has_room(self) -> bool:
        """Whether the session has free resources; without any, new workers might wait for ever."""
        from equipoise.platform.federation.simulation.ray_backend import free_workers

        return self.pool is not None or free_workers(self.params.worker_cpus, self.params.worker_gpus) > 0

    def _profits_from_workers(self) -> bool:
        if self.targets.shape.features:
            return True
        local, counts = self.params.local, [len(data.train) for data in self.client_data.values()]
        sizes = [(n, batch_size(local, self.training, self.targets, n)) for n in counts]
        steps = sum(sampling_plan(n, batch, *local.length)[1] for n, batch in sizes)
        return steps * self.schema.size > MIN_PARALLEL_UPDATES

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint must agree with to be continued."""
        return identity_of(self.params, self.schema, self.initial, self.privacy, self.seed) | {
            "training": training_record(self.training),
            "balancing": self.balancing.model_dump(mode="json"),
            "targets": content_hash([json.dumps(self.targets.training_json())]),
            "clients": {
                name: content_hash([*data.train.patients, "", *(data.val.patients if data.val else ())])
                for name, data in self.client_data.items()
            },
        }


def with_models(
    result: FederationResult, backend: Backend, strategy: Strategy, factory: Callable[[], nn.Module]
) -> FederationResult:
    """The result with the personal weights of the clients, and with models."""
    states = {client: ClientState.from_bytes(state) for client, state in backend.client_states().items()}
    weights = {
        c: strategy.personal_weights(result.schema, result.vector, s.vectors) for c, s in states.items()
    }
    personal = {client: vector for client, vector in weights.items() if vector is not result.vector}
    return dataclasses.replace(result, factory=factory, personal=personal)


def from_recipe(
    recipe: Recipe,
    targets: Targets,
    clients: Mapping[str, CaseList | ClientData],
    params: FederationParams,
    *,
    seed: int,
    **options: Any,
) -> Simulation:
    """A federation of a study's model, with initial weights that depend on the seed only; ``options`` as there.

    What the section leaves open (rounds, learning rate, schedule, …) is that of ``training``.
    """
    params = params.in_training(recipe.training)
    factory = partial(initial_model, recipe, targets, seed=seed)
    settings: dict[str, Any] = {"training": recipe.training, "balancing": recipe.balancing}
    return Simulation(factory, targets, clients, params, seed=seed, **settings, **options)


def _ray_is_open() -> bool:
    """Whether this is the driver of an open Ray session; inside a worker (a search trial) clients run inline."""
    ray = sys.modules.get("ray")
    if ray is None or not hasattr(ray, "is_initialized") or not ray.is_initialized():
        return False
    return bool(ray.get_runtime_context().worker.mode != ray.WORKER_MODE)
