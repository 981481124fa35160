"""The engine: runs a server and its clients on a backend, and resumes after an interruption.

>>> federation = Federation(factory, targets, {"S1": cases_1, "S2": cases_2}, FederationParams(), seed=1)
>>> result = federation.run()                                                            # doctest: +SKIP

A round is a function of the checkpoint before it: participation, random draws at clients, virtual time and the
sums of updates depend on seeds and names only. Therefore inline, one worker, three workers and a federation that
was killed and resumed give bit-identical results.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from equipoise.platform.errors import FederationError
from equipoise.platform.federation.async_rounds import AsyncSchedule, resume_asynchronous, run_asynchronous
from equipoise.platform.federation.backend import Backend, ray_is_open
from equipoise.platform.federation.clients.local_training import ClientData, check_clients
from equipoise.platform.federation.clients.manifest import ClientManifest
from equipoise.platform.federation.clients.runner import ClientSetup, ClientState, batch_size
from equipoise.platform.federation.messages import request_id_of
from equipoise.platform.federation.params import FREE, FederationParams
from equipoise.platform.federation.privacy.combined import build_privacy
from equipoise.platform.federation.privacy.mechanism import PrivacyMechanism
from equipoise.platform.federation.privacy.record_level import check_supported, sampling_plan
from equipoise.platform.federation.result import FederationResult
from equipoise.platform.federation.rounds import RequestFactory, run_parallel, run_sequential
from equipoise.platform.federation.server.audit_log import AuditLog
from equipoise.platform.federation.server.checkpoint import RoundCheckpoint, load_checkpoint, save_checkpoint
from equipoise.platform.federation.server.server import Server
from equipoise.platform.federation.server.validator import UpdateValidator
from equipoise.platform.federation.simulation.clock import VirtualClock
from equipoise.platform.federation.simulation.inline_backend import InlineBackend
from equipoise.platform.federation.strategies.strategy import Strategy
from equipoise.platform.federation.vector import Schema
from equipoise.platform.fingerprints import content_hash
from equipoise.platform.registry import get
from equipoise.platform.training.batches import CaseList
from equipoise.platform.training.build import build_model
from equipoise.platform.training.params import BalancingParams, Recipe, TrainingParams, entry_params
from equipoise.platform.training.targets import Targets

if TYPE_CHECKING:
    from equipoise.platform.federation.simulation.ray_backend import WorkerPool

log = logging.getLogger("equipoise")

#: Called after every round with its row of the history.
OnRound = Callable[[dict[str, float]], None]

#: Parameter updates per round above which workers are faster than one process; models over tiles always use them.
MIN_PARALLEL_UPDATES = 2e8

_STATE, _STEP, _IN_FLIGHT = "state/", "last_step", "flight/"


class Federation:
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
        :class:`~equipoise.platform.federation.clients.local_training.ClientData` if balancing needs inner validation.
    params, training, balancing
        Settings.
    seed
        Seed of everything random.
    folder
        Where checkpoints are written and resumed from; nothing is written if not given.
    privacy
        Privacy mechanism; that of ``params.privacy`` if not given.
    validator
        Checks of updates; those of ``params.validation`` if not given.
    pool
        Workers to use; if not given, the federation starts workers and shuts them down at its end.
    on_round
        Called after every round, once its checkpoint is written; an exception in it ends the federation.

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
    ) -> None:
        self.params, self.seed, self.folder, self.on_round = params, seed, folder, on_round
        self.factory, self.targets, self.pool = factory, targets, pool
        training, balancing = training or TrainingParams(), balancing or BalancingParams()
        self.client_data = {
            name: data if isinstance(data, ClientData) else ClientData(data)
            for name, data in sorted(clients.items())
        }
        check_clients(self.client_data, balancing)
        model = factory()
        self.schema = Schema.of(model, [head.name for head in targets.heads])
        self.initial = self.schema.flatten(model)
        if params.privacy.record_level is not None:
            check_supported(
                model, targets.heads, weighting=balancing.weighting, aggregation=balancing.aggregation
            )
        self.setup = ClientSetup(
            factory=factory,
            targets=targets,
            strategy=build_strategy(params),
            privacy=privacy or _privacy(params, self.schema, seed),
            local=params.local,
            training=training,
            balancing=balancing,
            min_n=params.min_n,
        )
        self.validator = validator
        self.requests = RequestFactory(params, params.local.lr or training.lr, seed)

    def run(self) -> FederationResult:
        """Run all rounds that are not done yet.

        Raises
        ------
        FederationError
            If several consecutive rounds have too few usable updates, or the weights are no longer finite.
        """
        with self._backend() as backend:
            manifests = backend.join()
            for manifest in manifests.values():
                for flag in manifest.flags:
                    log.info("client %s: %s", manifest.client, flag)
            server = self._server(manifests)
            if not server.eligible:
                raise FederationError("no client has a patient with a label to learn from")
            sampling = {
                c: sampling_plan(m.n, batch_size(self.setup, m.n), *self.params.local.length)
                for c, m in manifests.items()
            }
            self.setup.privacy.register(manifests, sampling)
            clock = VirtualClock(self.params.clock, self._steps_of_clients(manifests), self.seed)
            history, schedule = self._resume(server, backend)
            advance = run_sequential if server.strategy.sequential else run_parallel
            for round_ in range(len(history), self.params.rounds):
                if reason := server.privacy.exhausted():
                    log.warning("the federation ends before round %d: %s", round_ + 1, reason)
                    break
                if server.strategy.asynchronous:
                    row = run_asynchronous(schedule, server, backend, clock, self.requests, round_)
                else:
                    row = advance(self.params, server, backend, clock, self.requests, round_)
                history.append({"round": float(round_ + 1), "lr": self.requests.learning_rate(round_)} | row)
                self._save(server, backend, history, schedule)
                if self.on_round is not None:
                    self.on_round(history[-1])
            self._personalise(server, backend)
            return self._result(server, backend, manifests, history)

    @contextmanager
    def _backend(self) -> Iterator[Backend]:
        chosen = self.params.backend
        if chosen == "auto":
            chosen = (
                "ray" if self._profits_from_workers() and ray_is_open() and self._has_room() else "inline"
            )
        if chosen == "inline":
            yield InlineBackend(self.setup, self.client_data)
            return
        from equipoise.platform.federation.simulation.ray_backend import RayBackend, worker_pool_for

        settings = self.params
        pool = self.pool or worker_pool_for(
            len(self.client_data),
            workers=settings.workers,
            cpus=settings.worker_cpus,
            gpus=settings.worker_gpus,
        )
        backend = RayBackend(
            self.setup, self.client_data, pool, workers=settings.workers, timeout_s=settings.timeout_s
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
        steps = sum(self._steps(len(data.train)) for data in self.client_data.values())
        return steps * self.schema.size > MIN_PARALLEL_UPDATES

    def _steps(self, patients: int) -> int:
        epochs, steps = self.params.local.length
        return steps or epochs * math.ceil(patients / batch_size(self.setup, patients))

    def _steps_of_clients(self, manifests: Mapping[str, ClientManifest]) -> dict[str, int]:
        return {client: self._steps(manifest.n) for client, manifest in manifests.items()}

    def _server(self, manifests: Mapping[str, ClientManifest]) -> Server:
        server_aggregation = get("server_aggregations", self.params.server_aggregation)
        settings = self.params
        default = UpdateValidator(
            settings.validation, min_n=settings.min_n, exclude_after=settings.exclude_after
        )
        path = None if self.folder is None else self.folder / "ledger.jsonl"
        audit_log = AuditLog(path, hashes=path is not None)  # without a file nobody reads the hashes
        return Server(
            self.schema,
            self.initial,
            strategy=self.setup.strategy,
            server_aggregation=server_aggregation.load()(
                entry_params(
                    "server_aggregations",
                    self.params.server_aggregation,
                    self.params.server_aggregation_params,
                ),
                seed=self.seed,
            ),
            privacy=self.setup.privacy,
            validator=self.validator or default,
            audit_log=audit_log,
            manifests=manifests,
            seed=self.seed,
            uniform=self.params.weights == "uniform",
            personal_mask=self.setup.strategy.personal_mask(self.schema),
            bits=self.params.fixed_point_bits,
            min_clients=self.params.participation.min_clients,
        )

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint must agree with to be continued."""
        settings = self.params.model_dump(mode="json", exclude=set(FREE))
        if self.params.local.schedule == "constant":
            settings.pop("rounds")
        return {
            "federation": settings,
            "training": self.setup.training.model_dump(mode="json"),
            "balancing": self.setup.balancing.model_dump(mode="json"),
            "schema": self.schema.hash,
            "initial weights": hashlib.sha256(self.initial.tobytes()).hexdigest()[:16],
            "targets": content_hash([json.dumps(self.targets.to_json())]),
            "clients": {
                name: content_hash([*data.train.patients, "", *(data.val.patients if data.val else ())])
                for name, data in self.client_data.items()
            },
            "shield": self.setup.privacy.identity,
            "seed": self.seed,
        }

    def _resume(self, server: Server, backend: Backend) -> tuple[list[dict[str, float]], AsyncSchedule]:
        saved = None
        if self.folder is not None:
            saved = load_checkpoint(self.folder, self.schema, self._identity())
        if saved is None:
            server.audit_log.keep_until(-1)
            return [], AsyncSchedule()
        names = (_STATE, _IN_FLIGHT)
        state, in_flight = (
            {k.removeprefix(prefix): v for k, v in saved.arrays.items() if k.startswith(prefix)}
            for prefix in names
        )
        server.load(saved.vector, state, saved.arrays.get(_STEP), saved.plain["server"])
        server.audit_log.keep_until(saved.rounds - 1)
        backend.restore_states(saved.clients)
        vectors = {int(version): vector for version, vector in in_flight.items()}
        schedule = AsyncSchedule.from_state(saved.plain["agenda"], vectors)
        resume_asynchronous(schedule, server, backend, self.requests)
        log.info("continuing after round %d", saved.rounds)
        return [dict(row) for row in saved.plain["history"]], schedule

    def _save(
        self, server: Server, backend: Backend, history: list[dict[str, float]], schedule: AsyncSchedule
    ) -> None:
        if self.folder is None:
            return
        arrays = {f"{_STATE}{name}": vector for name, vector in server.state.items()}
        arrays |= {f"{_IN_FLIGHT}{version}": vector for version, vector in schedule.vectors.items()}
        if server.last_step is not None:
            arrays[_STEP] = server.last_step
        plain = {"server": server.state_dict(), "agenda": schedule.state_dict(), "history": history}
        saved = RoundCheckpoint(len(history), server.vector, arrays, backend.client_states(), plain)
        save_checkpoint(self.folder, saved, self.schema, self._identity(), keep=self.params.checkpoints)

    def _personalise(self, server: Server, backend: Backend) -> None:
        """Local steps after the last round, whose result stays at the client."""
        if not server.strategy.personal_steps:
            return
        request = self.requests.personalise(server)
        published, waiting = backend.publish(request), set(server.eligible)
        for client in sorted(waiting):
            backend.send(published, client, request_id_of(self.seed, request.round, client))
        while waiting:
            reply = backend.receive(waiting)
            waiting.remove(reply.client)
            backend.commit(reply)

    def _result(
        self,
        server: Server,
        backend: Backend,
        manifests: Mapping[str, ClientManifest],
        history: list[dict[str, float]],
    ) -> FederationResult:
        model = self.factory().cpu()
        self.schema.load(model, server.vector)
        states = {
            client: ClientState.from_bytes(state).vectors for client, state in backend.client_states().items()
        }
        personal = {
            c: server.strategy.personal_weights(self.schema, server.vector, vectors)
            for c, vectors in states.items()
        }
        return FederationResult(
            model=model.eval(),
            schema=self.schema,
            vector=server.vector,
            targets=self.targets,
            history=tuple(history),
            manifests=manifests,
            personal={client: vector for client, vector in personal.items() if vector is not server.vector},
            excluded=server.validator.excluded,
            audit_log=server.audit_log,
            backend=backend.name,
            workers=backend.workers,
            factory=self.factory,
        )


def from_recipe(
    recipe: Recipe,
    targets: Targets,
    clients: Mapping[str, CaseList | ClientData],
    params: FederationParams,
    *,
    seed: int,
    folder: Path | None = None,
    privacy: PrivacyMechanism | None = None,
    pool: WorkerPool | None = None,
    on_round: OnRound | None = None,
) -> Federation:
    """A federation of a study's model, with initial weights that depend on the seed only."""
    factory = partial(build_model, recipe.model, recipe.model_params, targets.shape, targets.heads, seed=seed)
    return Federation(
        factory,
        targets,
        clients,
        params,
        seed=seed,
        training=recipe.training,
        balancing=recipe.balancing,
        folder=folder,
        privacy=privacy,
        pool=pool,
        on_round=on_round,
    )


def _privacy(params: FederationParams, schema: Schema, seed: int) -> PrivacyMechanism:
    """The privacy mechanism of a study."""
    drawn = params.participation.scheme == "poisson"
    return build_privacy(
        params.privacy,
        schema,
        seed=seed,
        bits=params.fixed_point_bits,
        uniform=params.weights == "uniform",
        rate=params.participation.fraction if drawn else None,
    )


def build_strategy(params: FederationParams) -> Strategy:
    """The strategy of a study."""
    strategy_params = entry_params("strategies", params.strategy, params.strategy_params)
    strategy_class = get("strategies", params.strategy).load()
    if params.strategy == "fednova":
        return strategy_class(strategy_params, momentum=params.local.momentum)
    return strategy_class(strategy_params)
