"""The engine: clients, a server and a backend become a federation that can be interrupted.

>>> federation = Federation(factory, targets, {"S1": cases_1, "S2": cases_2}, FederationParams(), seed=1)
>>> result = federation.run()                                                            # doctest: +SKIP

A round is a function of the checkpoint before it: who takes part, what is drawn at clients, virtual time and
the sums of updates depend on seeds and names only. Therefore inline, one worker, three workers and a federation
that was killed and resumed end with the same bits.
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
from equipoise.platform.federation import asynchronous, checkpoint, rounds
from equipoise.platform.federation.backend import Backend, ray_is_open
from equipoise.platform.federation.client import ClientData, ClientState, Setup, batch_size
from equipoise.platform.federation.clock import Clock
from equipoise.platform.federation.gate import Gate
from equipoise.platform.federation.inline import Inline
from equipoise.platform.federation.ledger import Ledger
from equipoise.platform.federation.local import check_members
from equipoise.platform.federation.manifest import Manifest
from equipoise.platform.federation.order import nonce_of
from equipoise.platform.federation.params import FREE, FederationParams
from equipoise.platform.federation.privacy.record_level import check, plan
from equipoise.platform.federation.privacy.shields import shield_of
from equipoise.platform.federation.result import FederationResult
from equipoise.platform.federation.server import Server
from equipoise.platform.federation.shield import Shield
from equipoise.platform.federation.strategies.strategy import Strategy
from equipoise.platform.federation.vector import Schema
from equipoise.platform.registry import get
from equipoise.platform.training.batches import CaseList
from equipoise.platform.training.build import build_model
from equipoise.platform.training.checkpoint import digest
from equipoise.platform.training.params import BalancingParams, Recipe, TrainingParams, entry_params
from equipoise.platform.training.targets import Targets

if TYPE_CHECKING:
    from equipoise.platform.federation.on_ray import Crew

log = logging.getLogger("equipoise")

#: Called after every round with its row of the history.
OnRound = Callable[[dict[str, float]], None]

#: Numbers moved by optimisers in a round from which on workers are worth their messages; models over tiles always are.
WORTH_WORKERS = 2e8

_STATE, _STEP, _FLIGHT = "state/", "last_step", "flight/"


class Federation:
    """Clients that train one model together.

    Parameters
    ----------
    factory
        Makes a model with the initial weights; for Ray it must be picklable.
    targets
        Tasks, scalers, tables: the same at every client
        (:func:`~equipoise.platform.federation.standardise.federated_targets`).
    clients
        Name → its training patients, or :class:`~equipoise.platform.federation.local.ClientData` where balancing
        needs inner validation.
    params, training, balancing
        Settings.
    seed
        Of everything random.
    folder
        Where rounds are kept and resumed from; without one nothing is written.
    shield
        Privacy; what ``params.privacy`` asks for if not given.
    gate
        What updates have to be; a usual one if not given.
    crew
        Workers to use; own ones, which end with the federation, if not given.
    on_round
        Called after every round, once its checkpoint is written; what it raises ends the federation.

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
        shield: Shield | None = None,
        gate: Gate | None = None,
        crew: Crew | None = None,
        on_round: OnRound | None = None,
    ) -> None:
        self.params, self.seed, self.folder, self.on_round = params, seed, folder, on_round
        self.factory, self.targets, self.crew = factory, targets, crew
        training, balancing = training or TrainingParams(), balancing or BalancingParams()
        self.members = {
            name: data if isinstance(data, ClientData) else ClientData(data)
            for name, data in sorted(clients.items())
        }
        check_members(self.members, balancing)
        model = factory()
        self.schema = Schema.of(model, [head.name for head in targets.heads])
        self.initial = self.schema.flatten(model)
        if params.privacy.record_level is not None:
            check(model, targets.heads, weighting=balancing.weighting, aggregation=balancing.aggregation)
        self.setup = Setup(
            factory=factory,
            targets=targets,
            strategy=build_strategy(params),
            shield=shield or _shield(params, self.schema, seed),
            local=params.local,
            training=training,
            balancing=balancing,
            min_n=params.min_n,
        )
        self.gate = gate
        self.orders = rounds.Orders(params, params.local.lr or training.lr, seed)

    def run(self) -> FederationResult:
        """All rounds that are not done yet.

        Raises
        ------
        FederationError
            If several rounds in a row bring too few usable updates, or the weights stop being finite.
        """
        with self._backend() as backend:
            manifests = backend.join()
            for manifest in manifests.values():
                for flag in manifest.flags:
                    log.info("client %s: %s", manifest.client, flag)
            server = self._server(manifests)
            if not server.learners:
                raise FederationError("no client has a patient with a label to learn from")
            plans = {
                c: plan(m.n, batch_size(self.setup, m.n), *self.params.local.length)
                for c, m in manifests.items()
            }
            self.setup.shield.enrol(manifests, plans)
            clock = Clock(self.params.clock, self._work(manifests), self.seed)
            history, agenda = self._resume(server, backend)
            advance = rounds.in_turn if server.strategy.sequential else rounds.together
            for round_ in range(len(history), self.params.rounds):
                if reason := server.shield.exhausted():
                    log.warning("the federation ends before round %d: %s", round_ + 1, reason)
                    break
                if server.strategy.asynchronous:
                    row = asynchronous.step(agenda, server, backend, clock, self.orders, round_)
                else:
                    row = advance(self.params, server, backend, clock, self.orders, round_)
                history.append({"round": float(round_ + 1), "lr": self.orders.rate(round_)} | row)
                self._save(server, backend, history, agenda)
                if self.on_round is not None:
                    self.on_round(history[-1])
            self._personalise(server, backend)
            return self._result(server, backend, manifests, history)

    @contextmanager
    def _backend(self) -> Iterator[Backend]:
        chosen = self.params.backend
        if chosen == "auto":
            chosen = "ray" if self._worth_workers() and ray_is_open() and self._has_room() else "inline"
        if chosen == "inline":
            yield Inline(self.setup, self.members)
            return
        from equipoise.platform.federation.on_ray import OnRay, crew_for

        settings = self.params
        crew = self.crew or crew_for(
            len(self.members), workers=settings.workers, cpus=settings.worker_cpus, gpus=settings.worker_gpus
        )
        backend = OnRay(
            self.setup, self.members, crew, workers=settings.workers, timeout_s=settings.timeout_s
        )
        try:
            yield backend
        finally:
            backend.close()
            if crew is not self.crew:
                crew.dismiss()

    def _has_room(self) -> bool:
        """Whether anything of the session is free; workers that wait for others to end may wait for ever."""
        from equipoise.platform.federation.on_ray import free_workers

        return self.crew is not None or free_workers(self.params.worker_cpus, self.params.worker_gpus) > 0

    def _worth_workers(self) -> bool:
        if self.targets.shape.features:
            return True
        steps = sum(self._steps(len(data.train)) for data in self.members.values())
        return steps * self.schema.size > WORTH_WORKERS

    def _steps(self, patients: int) -> int:
        epochs, steps = self.params.local.length
        return steps or epochs * math.ceil(patients / batch_size(self.setup, patients))

    def _work(self, manifests: Mapping[str, Manifest]) -> dict[str, int]:
        return {client: self._steps(manifest.n) for client, manifest in manifests.items()}

    def _server(self, manifests: Mapping[str, Manifest]) -> Server:
        rule = get("site_rules", self.params.rule)
        settings = self.params
        usual = Gate(settings.gate, min_n=settings.min_n, bench_after=settings.bench_after)
        path = None if self.folder is None else self.folder / "ledger.jsonl"
        ledger = Ledger(path, hashes=path is not None)  # hashes are for a ledger that is kept
        return Server(
            self.schema,
            self.initial,
            strategy=self.setup.strategy,
            rule=rule.load()(
                entry_params("site_rules", self.params.rule, self.params.rule_params), seed=self.seed
            ),
            shield=self.setup.shield,
            gate=self.gate or usual,
            ledger=ledger,
            manifests=manifests,
            seed=self.seed,
            uniform=self.params.weights == "uniform",
            kept=self.setup.strategy.kept(self.schema),
            bits=self.params.fixed_point_bits,
            min_clients=self.params.participation.min_clients,
        )

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint must agree on to be continued."""
        settings = self.params.model_dump(mode="json", exclude=set(FREE))
        if self.params.local.schedule == "constant":
            settings.pop("rounds")
        return {
            "federation": settings,
            "training": self.setup.training.model_dump(mode="json"),
            "balancing": self.setup.balancing.model_dump(mode="json"),
            "schema": self.schema.hash,
            "initial weights": hashlib.sha256(self.initial.tobytes()).hexdigest()[:16],
            "targets": digest([json.dumps(self.targets.to_json())]),
            "clients": {
                name: digest([*data.train.patients, "", *(data.val.patients if data.val else ())])
                for name, data in self.members.items()
            },
            "shield": type(self.setup.shield).__name__,
            "seed": self.seed,
        }

    def _resume(self, server: Server, backend: Backend) -> tuple[list[dict[str, float]], asynchronous.Agenda]:
        saved = None
        if self.folder is not None:
            saved = checkpoint.load(self.folder, self.schema, self._identity())
        if saved is None:
            server.ledger.keep_until(-1)
            return [], asynchronous.Agenda()
        names = (_STATE, _FLIGHT)
        state, flights = (
            {k.removeprefix(prefix): v for k, v in saved.arrays.items() if k.startswith(prefix)}
            for prefix in names
        )
        server.load(saved.vector, state, saved.arrays.get(_STEP), saved.plain["server"])
        server.ledger.keep_until(saved.rounds - 1)
        backend.restore(saved.clients)
        vectors = {int(version): vector for version, vector in flights.items()}
        agenda = asynchronous.Agenda.from_state(saved.plain["agenda"], vectors)
        asynchronous.resume(agenda, server, backend, self.orders)
        log.info("going on after round %d", saved.rounds)
        return [dict(row) for row in saved.plain["history"]], agenda

    def _save(
        self, server: Server, backend: Backend, history: list[dict[str, float]], agenda: asynchronous.Agenda
    ) -> None:
        if self.folder is None:
            return
        arrays = {f"{_STATE}{name}": vector for name, vector in server.state.items()}
        arrays |= {f"{_FLIGHT}{version}": vector for version, vector in agenda.vectors.items()}
        if server.last_step is not None:
            arrays[_STEP] = server.last_step
        plain = {"server": server.state_dict(), "agenda": agenda.state_dict(), "history": history}
        saved = checkpoint.Saved(len(history), server.vector, arrays, backend.states(), plain)
        checkpoint.save(self.folder, saved, self.schema, self._identity(), keep=self.params.checkpoints)

    def _personalise(self, server: Server, backend: Backend) -> None:
        """Local steps after the last round; what comes of them stays at the client."""
        if not server.strategy.personal_steps:
            return
        order = self.orders.personalise(server)
        published, waiting = backend.publish(order), set(server.learners)
        for client in sorted(waiting):
            backend.start(published, client, nonce_of(self.seed, order.round, client))
        while waiting:
            reply = backend.wait(waiting)
            waiting.remove(reply.client)
            backend.commit(reply)

    def _result(
        self,
        server: Server,
        backend: Backend,
        manifests: Mapping[str, Manifest],
        history: list[dict[str, float]],
    ) -> FederationResult:
        model = self.factory().cpu()
        self.schema.load(model, server.vector)
        kept = {client: ClientState.from_bytes(state).vectors for client, state in backend.states().items()}
        own = {
            c: server.strategy.personal(self.schema, server.vector, vectors) for c, vectors in kept.items()
        }
        return FederationResult(
            model=model.eval(),
            schema=self.schema,
            vector=server.vector,
            targets=self.targets,
            history=tuple(history),
            manifests=manifests,
            personal={client: vector for client, vector in own.items() if vector is not server.vector},
            benched=server.gate.benched,
            ledger=server.ledger,
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
    shield: Shield | None = None,
    crew: Crew | None = None,
    on_round: OnRound | None = None,
) -> Federation:
    """A federation of a study's model, with initial weights that depend on nothing but the seed."""
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
        shield=shield,
        crew=crew,
        on_round=on_round,
    )


def _shield(params: FederationParams, schema: Schema, seed: int) -> Shield:
    """The privacy that a study asks for."""
    drawn = params.participation.scheme == "poisson"
    return shield_of(
        params.privacy,
        schema,
        seed=seed,
        bits=params.fixed_point_bits,
        uniform=params.weights == "uniform",
        rate=params.participation.fraction if drawn else None,
    )


def build_strategy(params: FederationParams) -> Strategy:
    """The strategy that a study names."""
    own = entry_params("strategies", params.strategy, params.strategy_params)
    made = get("strategies", params.strategy).load()
    return made(own, momentum=params.local.momentum) if params.strategy == "fednova" else made(own)
