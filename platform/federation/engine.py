"""The engine: the rounds of a federation over any backend, and how one is continued after an interruption.

>>> federation = Federation(schema, initial, backend, FederationParams(), seed=1, lr=0.1)      # doctest: +SKIP
>>> result = federation.run()                                                            # doctest: +SKIP

A round is: choose clients, send them a request, let them train, validate their replies, aggregate, step. It is a
function of the checkpoint before it: participation, random draws at clients, virtual time and the order of sums depend
on seeds and names only. Therefore inline, one worker, three workers and a federation that was killed and resumed give
bit-identical results.
"""

from __future__ import annotations

import heapq
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from equipoise.platform.errors import FederationError
from equipoise.platform.federation.backend import Backend
from equipoise.platform.federation.messages import ClientManifest, TrainRequest, request_id_of
from equipoise.platform.federation.objective import Objective
from equipoise.platform.federation.params import FederationParams
from equipoise.platform.federation.participation import (
    VirtualClock,
    draw_rate,
    participants,
    poisson,
    sampling_plan,
    visiting_order,
)
from equipoise.platform.federation.privacy.mechanism import NoPrivacy, PrivacyMechanism
from equipoise.platform.federation.result import FederationResult
from equipoise.platform.federation.server.audit_log import AuditLog
from equipoise.platform.federation.server.checkpoint import RoundCheckpoint, load_checkpoint, save_checkpoint
from equipoise.platform.federation.server.server import RoundState, Server
from equipoise.platform.federation.server.validator import UpdateValidator
from equipoise.platform.federation.strategies.strategy import Strategy
from equipoise.platform.federation.vector import Schema
from equipoise.platform.registry import get
from equipoise.platform.training.params import entry_params

log = logging.getLogger("equipoise")

#: Called after every round with its row of the history.
OnRound = Callable[[dict[str, float]], None]
#: Given global weights ``[P]``, returns what the sites' inner validation says of them: ``val/<task>`` and ``monitor``,
#: of which smaller is better.
Validate = Callable[[np.ndarray], Mapping[str, float]]
#: Stream of random draws of the next client of an asynchronous federation.
NEXT_CLIENT = 0x4E87
_STATE, _STEP, _IN_FLIGHT, _BEST = "state/", "last_step", "flight/", "best"


@dataclass(frozen=True, order=True)
class InFlight:
    """A busy client: when it answers, its name, the number of its request, and the server's steps at its start."""

    due: float
    client: str
    request: int
    version: int


@dataclass
class AsyncSchedule:
    """Virtual time and the busy clients of an asynchronous federation; part of the checkpoint.

    Parameters
    ----------
    now, requests
        Virtual time, and number of requests made so far.
    in_flight
        Busy clients, as a heap.
    vectors
        Version → the weights that busy clients started from.
    """

    now: float = 0.0
    requests: int = 0
    in_flight: list[InFlight] = field(default_factory=list)
    vectors: dict[int, np.ndarray] = field(default_factory=dict)

    def state_dict(self) -> dict[str, Any]:
        """Plain data under the keys of checkpoints; the vectors are stored separately."""
        rows = [[f.due, f.client, f.request, f.version] for f in sorted(self.in_flight)]
        return {"now": self.now, "orders": self.requests, "flights": rows}

    @classmethod
    def from_state(cls, state: Mapping[str, Any], vectors: dict[int, np.ndarray]) -> AsyncSchedule:
        """The inverse."""
        flights = [InFlight(*row) for row in state["flights"]]
        return cls(float(state["now"]), int(state["orders"]), flights, vectors)


class Federation:
    """A server and the clients behind a backend.

    Parameters
    ----------
    schema, initial
        Layout of the model, and its initial weights ``[P]``.
    backend
        Reaches the clients.
    params
        Settings.
    seed
        Seed of everything random.
    lr
        Learning rate of the first round.
    strategy, privacy, validator
        Those of ``params`` if not given; no privacy if not given.
    folder
        Where checkpoints are written and resumed from; nothing is written if not given.
    identity
        What a checkpoint must agree with to be continued.
    on_round
        Called after every round, once its checkpoint is written; an exception in it ends the federation.
    validate
        Asked after every round; its answer joins the row of the history. With ``params.keep: best`` the weights of the
        round with the smallest ``monitor`` are kept, and a federation ends after ``params.patience`` rounds without a
        smaller one. Without it the last round is kept.
    """

    def __init__(
        self,
        schema: Schema,
        initial: np.ndarray,
        backend: Backend,
        params: FederationParams,
        *,
        seed: int,
        lr: float,
        strategy: Strategy | None = None,
        privacy: PrivacyMechanism | None = None,
        validator: UpdateValidator | None = None,
        folder: Path | None = None,
        identity: Mapping[str, Any] | None = None,
        on_round: OnRound | None = None,
        validate: Validate | None = None,
    ) -> None:
        self.schema, self.initial, self.backend = schema, initial, backend
        self.params = params if params.rounds is not None else params.in_training()
        self.rounds = self.params.rounds or 1
        self.validate = validate
        self.best_vector = initial
        self.seed, self.lr, self.folder, self.on_round = seed, lr, folder, on_round
        self.identity = dict(identity or {})
        self.strategy = strategy or build_strategy(params)
        self.privacy = privacy or NoPrivacy()
        self.validator = validator or UpdateValidator(
            params.validation, min_n=params.min_n, exclude_after=params.exclude_after
        )
        self.schedule = AsyncSchedule()

    def run(self) -> FederationResult:
        """Run all rounds that are not done yet.

        Raises
        ------
        FederationError
            If several consecutive rounds have too few usable updates, or the weights are no longer finite.
        """
        manifests = self.backend.join()
        for manifest in manifests.values():
            for flag in manifest.flags:
                log.info("client %s: %s", manifest.client, flag)
        self.server = self._server(manifests)
        if not self.server.eligible:
            raise FederationError("no client has a patient with a label to learn from")
        length = self.params.local.length
        plans = {c: sampling_plan(m.n, m.batch, *length) for c, m in manifests.items() if m.n}
        self.privacy.register(manifests, plans)
        self.clock = VirtualClock(self.params.clock, {c: steps for c, (_, steps) in plans.items()}, self.seed)
        history = self._resume()
        one_round = self.simultaneous_round
        entry = get("strategies", self.params.strategy)
        if entry.attribute("sequential"):
            one_round = self.sequential_round
        elif entry.attribute("asynchronous"):
            one_round = self.asynchronous_round
        for round_ in range(len(history), self.rounds):
            if self._out_of_patience(history):
                break
            if reason := self.privacy.exhausted() or self.privacy.too_few(self.server.eligible):
                if not round_:
                    raise FederationError(f"no round is possible: {reason}", where="federation.privacy")
                log.warning("the federation ends before round %d: %s", round_ + 1, reason)
                break
            row = one_round(round_)
            history.append({"round": float(round_ + 1), "lr": self.learning_rate(round_)} | row)
            if self.validate is not None:
                history[-1] |= self.validate(self.server.vector)
            if self._keeps_best and best_round(history) == round_ + 1:
                self.best_vector = self.server.vector
            self._save(history)
            if self.on_round is not None:
                self.on_round(history[-1])
        if history and all(row.get("skipped") for row in history) and not self.privacy.every_round:
            raise FederationError(
                f"all {len(history)} rounds were skipped: too few clients took part to reveal their sum",
                fix="let more clients take part in a round, or lower federation.privacy.secure_aggregation.threshold",
            )
        kept = best_round(history) if self._keeps_best else len(history)
        if kept != len(history):
            self.server.vector = self.best_vector
        self._personalise()
        return self._result(manifests, history, kept)

    @property
    def _keeps_best(self) -> bool:
        return self.params.keep == "best" and self.validate is not None

    def _out_of_patience(self, history: Sequence[Mapping[str, float]]) -> bool:
        patience = self.params.patience
        return self._keeps_best and patience is not None and len(history) - best_round(history) >= patience

    # rounds; each returns its row of the history

    def simultaneous_round(self, round_: int) -> dict[str, float]:
        """All participants train in parallel from the same weights."""
        server, backend = self.server, self.backend
        chosen = self.choose(round_)
        if reason := self.privacy.too_few(chosen):
            self.privacy.open_round(round_, chosen)
            return server.skip_round(round_, reason)
        state, absent = server.open_round(chosen), self.clock.absent(chosen, round_)
        for client, (verdict, reason) in absent.items():
            server.record(state, round_, client, verdict, reason=reason)
        published = backend.publish(self.request(round_, chosen, self.learning_rate(round_)))
        waiting = [client for client in chosen if client not in absent]
        for client in waiting:
            backend.send(published, client, request_id_of(self.seed, round_, client))
        while waiting:  # clients train, and reply in any order
            reply = backend.receive(state.wanted(waiting))
            waiting.remove(reply.client)
            server.receive(state, reply, round_, round_)  # validated, and summed in the order of names
            backend.commit(reply)
        return server.close_round(state, round_)  # aggregation, and the step of the strategy

    def sequential_round(self, round_: int) -> dict[str, float]:
        """Every participant trains from the weights that the previous one sent."""
        server, backend = self.server, self.backend
        chosen, start = self.choose(round_), server.vector
        state, absent = server.open_round(chosen), self.clock.absent(chosen, round_)
        order = visiting_order(chosen, shuffled=self.strategy.shuffled, seed=self.seed, round_=round_)
        for client in order:
            if client in absent:
                verdict, reason = absent[client]
                server.record(state, round_, client, verdict, reason=reason)
                continue
            published = backend.publish(self.request(round_, [client], self.learning_rate(round_)))
            backend.send(published, client, request_id_of(self.seed, round_, client))
            reply = backend.receive([client])
            server.receive_in_turn(state, reply, round_)
            backend.commit(reply)
        return server.close_round(state, round_, start_vector=start)

    def asynchronous_round(self, round_: int) -> dict[str, float]:
        """Advance virtual time until the buffer of updates is full, and take a step.

        Every busy client has a request of its own, made when it started. Its answer arrives at a time of the virtual
        clock, whatever the real order in which workers finish.
        """
        server, backend, schedule, strategy = self.server, self.backend, self.schedule, self.strategy
        state, asked = server.open_round(server.eligible, in_order=False), 0
        while state.valid < strategy.buffer:
            self._start_idle_clients(state, round_)
            if not schedule.in_flight:
                raise FederationError(
                    f"a buffer of {strategy.buffer} updates cannot be filled by {len(server.eligible)} clients",
                    fix="lower federation.strategy_params.buffer",
                )
            item = heapq.heappop(schedule.in_flight)
            schedule.now, asked = item.due, asked + 1
            reply = backend.receive([item.client])
            if self.clock.failing([item.client], item.request):
                server.record(state, round_, item.client, "failed", reason="dropped out (simulated)")
            else:
                server.receive(state, reply, item.request, round_, strategy.staleness(round_ - item.version))
            backend.commit(reply)
        row = server.close_round(state, round_)
        used = {item.version for item in schedule.in_flight}
        schedule.vectors = {v: vector for v, vector in schedule.vectors.items() if v in used}
        return row | {"virtual_time": schedule.now, "asked": float(asked)}

    def _start_idle_clients(self, state: RoundState, version: int) -> None:
        """Send requests to idle clients; a client whose update is in the buffer waits until after the step."""
        schedule, server = self.schedule, self.server
        while len(schedule.in_flight) < (self.strategy.concurrency or len(server.manifests)):
            busy = {item.client for item in schedule.in_flight} | state.answered
            idle = [client for client in server.eligible if client not in busy]
            if not idle:
                return
            rng = np.random.default_rng(np.random.SeedSequence([self.seed, schedule.requests, NEXT_CLIENT]))
            client = idle[int(rng.integers(len(idle)))]
            due = schedule.now + self.clock.duration(client, schedule.requests)
            item = InFlight(due, client, schedule.requests, version)
            schedule.vectors.setdefault(version, server.vector)
            schedule.requests += 1
            heapq.heappush(schedule.in_flight, item)
            state.asked[client] += 1
            self._send_in_flight(item)

    def _send_in_flight(self, item: InFlight) -> None:
        lr, vector = self.learning_rate(item.version), self.schedule.vectors[item.version]
        published = self.backend.publish(self.request(item.request, [item.client], lr, vector))
        self.backend.send(published, item.client, request_id_of(self.seed, item.request, item.client))

    # what rounds are made of

    def choose(self, round_: int) -> list[str]:
        """Clients that are asked to train in a round, by name."""
        eligible, manifests = self.server.eligible, self.server.manifests
        if self.privacy.rate is not None:
            return poisson(eligible, self.privacy.rate, seed=self.seed, round_=round_)
        sizes = {client: manifest.n for client, manifest in manifests.items()}
        return participants(self.params.participation, eligible, sizes, seed=self.seed, round_=round_)

    def learning_rate(self, round_: int) -> float:
        """Learning rate of a round."""
        if self.params.local.schedule != "cosine":
            return self.lr
        return self.lr * 0.5 * (1 + math.cos(math.pi * round_ / self.rounds))

    def request(
        self, round_: int, clients: Sequence[str], lr: float, vector: np.ndarray | None = None
    ) -> TrainRequest:
        """Train from the current weights of the server, or from the given ones."""
        epochs, steps = self.params.local.length
        return TrainRequest(
            round=round_,
            kind="fit",
            seed=self.seed,
            lr=lr,
            epochs=epochs,
            steps=steps,
            vector=self.server.vector if vector is None else vector,
            arrays=self.strategy.broadcast(self.server.state),
            privacy=self.privacy.open_round(round_, clients),
            totals=self.server.objective.totals,
        )

    def _personalise(self) -> None:
        """Local steps after the last round, whose result stays at the client."""
        if not self.strategy.personal_steps:
            return
        rounds, steps, waiting = self.rounds, self.strategy.personal_steps, set(self.server.eligible)
        # Not that of the last round: a cosine ends at 0, and clients would stay where they are.
        request = TrainRequest(rounds, "personalise", self.seed, self.lr, 1, steps, self.server.vector)
        for item in sorted(
            self.schedule.in_flight
        ):  # of an asynchronous strategy: nobody needs these replies
            self.backend.receive([item.client])
        published = self.backend.publish(request)
        for client in sorted(waiting):
            self.backend.send(published, client, request_id_of(self.seed, rounds, client))
        while waiting:
            reply = self.backend.receive(waiting)
            waiting.remove(reply.client)
            self.backend.commit(reply)

    # server, checkpoint, result

    def _server(self, manifests: Mapping[str, ClientManifest]) -> Server:
        params = self.params
        path = None if self.folder is None else self.folder / "ledger.jsonl"
        # Without a file nobody reads the hashes; those of updates without noise would confirm a guess of them.
        hashes = path is not None and not (self.privacy.every_round and self.privacy.dtype == "float32")
        name, values = params.server_aggregation, params.server_aggregation_params
        aggregation = get("server_aggregations", name)
        return Server(
            self.schema,
            self.initial,
            strategy=self.strategy,
            server_aggregation=aggregation.load()(aggregation.params.model_validate(values), seed=self.seed),
            privacy=self.privacy,
            validator=self.validator,
            audit_log=AuditLog(path, hashes=hashes),
            manifests=manifests,
            seed=self.seed,
            objective=objective_of(
                params, self.schema, manifests, equal=self.strategy.uniform or self.privacy.uniform
            ),
            min_clients=params.participation.min_clients,
        )

    def _resume(self) -> list[dict[str, float]]:
        """The history of the rounds that are done, with everything else as it was after the last of them."""
        saved = None
        if self.folder is not None:
            saved = load_checkpoint(self.folder, self.schema, self.identity)
        self.server.audit_log.keep_until(-1 if saved is None else saved.rounds - 1)
        if saved is None:
            return []
        state, in_flight = (
            {k.removeprefix(prefix): v for k, v in saved.arrays.items() if k.startswith(prefix)}
            for prefix in (_STATE, _IN_FLIGHT)
        )
        self.best_vector = saved.arrays.get(_BEST, saved.vector)
        self.server.load(saved.vector, state, saved.arrays.get(_STEP), saved.plain["server"])
        self.backend.restore_states(saved.clients)
        vectors = {int(version): vector for version, vector in in_flight.items()}
        self.schedule = AsyncSchedule.from_state(saved.plain["agenda"], vectors)
        for item in sorted(self.schedule.in_flight):
            self._send_in_flight(item)
        log.info("continuing after round %d", saved.rounds)
        return [dict(row) for row in saved.plain["history"]]

    def _save(self, history: list[dict[str, float]]) -> None:
        if self.folder is None:
            return
        server = self.server
        arrays = {f"{_STATE}{name}": vector for name, vector in server.state.items()}
        arrays |= {f"{_IN_FLIGHT}{version}": vector for version, vector in self.schedule.vectors.items()}
        if server.last_step is not None:
            arrays[_STEP] = server.last_step
        if self._keeps_best and best_round(history) != len(history):
            arrays[_BEST] = self.best_vector
        plain = {"server": server.state_dict(), "agenda": self.schedule.state_dict(), "history": history}
        saved = RoundCheckpoint(len(history), server.vector, arrays, self.backend.client_states(), plain)
        save_checkpoint(self.folder, saved, self.schema, self.identity, keep=self.params.checkpoints)

    def _result(
        self, manifests: Mapping[str, ClientManifest], history: list[dict[str, float]], kept: int
    ) -> FederationResult:
        return FederationResult(
            schema=self.schema,
            vector=self.server.vector,
            history=tuple(history),
            manifests=manifests,
            excluded=self.server.validator.excluded,
            audit_log=self.server.audit_log,
            backend=self.backend.name,
            workers=self.backend.workers,
            kept_round=kept,
        )


def objective_of(
    params: FederationParams, schema: Schema, manifests: Mapping[str, ClientManifest], *, equal: bool
) -> Objective:
    """The objective of these clients; ``equal`` where strategy or privacy need all weights to be the same."""
    sequential = get("strategies", params.strategy).attribute("sequential")
    sizes = [manifest.n for manifest in manifests.values() if manifest.learns]
    return Objective.of(
        manifests,
        schema.groups,
        weighting="steps" if sequential else "equal" if equal else "labels",
        equal=equal or params.weights == "uniform",
        draw=draw_rate(params.participation, sizes),
        length=params.local.length,
    )


def best_round(history: Sequence[Mapping[str, float]]) -> int:
    """The round (from 1) with the smallest ``monitor``, the first of equals; the last one if no round has a value."""
    known = [
        (row["monitor"], int(row["round"])) for row in history if not math.isnan(row.get("monitor", math.nan))
    ]
    return min(known)[1] if known else len(history)


def build_strategy(params: FederationParams) -> Strategy:
    """The strategy of a study."""
    settings = entry_params("strategies", params.strategy, params.strategy_params)
    strategy: Strategy = get("strategies", params.strategy).load()(settings, params.local)
    return strategy
