"""The server: validates replies, sums and aggregates updates, and takes the step of the strategy.

It is made of manifests and messages: it never sees a model, a patient or a client's state.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter, deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from equipoise.platform.errors import FederationError
from equipoise.platform.federation.aggregation.protocol import ServerAggregation
from equipoise.platform.federation.aggregation.sums import WeightedMean
from equipoise.platform.federation.messages import (
    ClientManifest,
    ClientUpdate,
    MalformedError,
    Reply,
    failure_text,
    request_id_of,
    size_of,
)
from equipoise.platform.federation.objective import Objective, weight_table
from equipoise.platform.federation.privacy.fixed_point import SaturationError
from equipoise.platform.federation.privacy.mechanism import (
    Accumulator,
    PrivacyMechanism,
    TooFewContributorsError,
)
from equipoise.platform.federation.server.audit_log import AuditLog
from equipoise.platform.federation.server.validator import ExpectedUpdate, UpdateValidator
from equipoise.platform.federation.strategies.strategy import (
    AggregatedUpdate,
    Contribution,
    ServerState,
    Strategy,
)
from equipoise.platform.federation.vector import Schema, norm_of

#: Consecutive rounds without a step after which a federation ends with an error.
MAX_IDLE_ROUNDS = 3
#: Updates that are held because those of clients before them in the order of summation are still missing.
MAX_EARLY = 8


class HeldUpdate(NamedTuple):
    """A valid update that has not been summed yet, the factor it is multiplied by, and the size of its message."""

    update: ClientUpdate
    factor: float
    size: int


@dataclass
class RoundState:
    """What has arrived since the last step.

    Parameters
    ----------
    accumulator
        Sums updates; None if the server aggregation needs all of them at once.
    arrays
        Sums of the further vectors of clients.
    order
        Clients whose updates are summed in this order; those of others are summed when they arrive.
    held
        Client → its update, until it is summed.
    asked
        Client → requests that were sent to it since the last step, whatever became of them.
    skipped
        Why the updates may not be summed, if so.
    withheld
        Groups of parameters whose sum may not be known.
    """

    accumulator: Accumulator | None
    arrays: dict[str, WeightedMean]
    order: deque[str]
    held: dict[str, HeldUpdate] = field(default_factory=dict)
    contributions: list[Contribution] = field(default_factory=list)
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    verdicts: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    rejected: list[str] = field(default_factory=list)
    asked: Counter[str] = field(default_factory=Counter)
    skipped: str | None = None
    withheld: Mapping[str, str] = field(default_factory=dict)

    @property
    def answered(self) -> set[str]:
        """Clients with a verdict or a held update."""
        return {*self.verdicts, *self.held}

    @property
    def valid(self) -> int:
        """Number of updates for the next step."""
        return len(self.contributions) + len(self.held)

    def wanted(self, waiting: Sequence[str]) -> Sequence[str]:
        """The clients whose replies may be received next: only the next in order if many updates are held."""
        if self.accumulator is None or len(self.held) < MAX_EARLY:
            return waiting
        return [self.order[0]]


class Server:
    """The global weights, the state of the strategy, and the handling of replies.

    Parameters
    ----------
    schema, vector
        Layout, and initial weights.
    strategy, server_aggregation, privacy, validator, audit_log
        Its components.
    manifests
        Client → its manifest.
    seed
        Of the federation.
    objective
        Of all clients together; determines their weights.
    min_clients
        Fewest accepted updates for a step.

    Raises
    ------
    FederationError
        If the privacy mechanism protects sums, and strategy or aggregation would use what it does not protect.
    """

    def __init__(
        self,
        schema: Schema,
        vector: np.ndarray,
        *,
        strategy: Strategy,
        server_aggregation: ServerAggregation,
        privacy: PrivacyMechanism,
        validator: UpdateValidator,
        audit_log: AuditLog,
        manifests: Mapping[str, ClientManifest],
        seed: int,
        objective: Objective,
        min_clients: int,
    ) -> None:
        self.schema, self.vector = schema, vector
        self.strategy, self.server_aggregation = strategy, server_aggregation
        self.privacy, self.validator, self.audit_log = privacy, validator, audit_log
        if privacy.sums_only:
            _require_sums(strategy, server_aggregation)
        self.manifests = dict(manifests)
        self.seed, self.min_clients = seed, min_clients
        self.objective = objective
        self.shares = {client: objective.share(manifest) for client, manifest in manifests.items()}
        self.personal_mask = strategy.personal_mask(schema)
        self.state: ServerState = strategy.init_state(schema)
        self.last_step: np.ndarray | None = None
        self.idle = 0
        self.population = {
            group: sum(1 for m in manifests.values() if m.counts.get(group)) for group in schema.groups
        }

    @property
    def eligible(self) -> list[str]:
        """Clients with something to train that are not excluded, by name."""
        return sorted(c for c, m in self.manifests.items() if m.learns and c not in self.validator.excluded)

    def open_round(self, clients: Sequence[str], *, in_order: bool = True) -> RoundState:
        """Prepare to receive the replies of these clients, whose updates are summed in this order or as they come."""
        streams = self.server_aggregation.streaming
        accumulator = self.privacy.accumulator(self.schema, clients) if streams else None
        order = clients if in_order else ()
        return RoundState(accumulator, self._sums(), deque(order), asked=Counter(order))

    def skip_round(self, round_: int, reason: str) -> dict[str, float]:
        """Close a round in which nobody is asked, because too few clients would take part."""
        state = self.open_round([])
        state.skipped = reason
        return self.close_round(state, round_)

    def receive(self, state: RoundState, reply: Reply, asked: int, round_: int, factor: float = 1.0) -> None:
        """Validate a reply. A valid update is kept for the step, any other reply gets a row in the audit log.

        Parameters
        ----------
        asked
            Round of the request that it must answer.
        round_
            Round of the row in the audit log.
        factor
            Multiplies the update, in addition to the strategy's scale.
        """
        update, verdict, reason = self._validated(reply, asked)
        size = size_of(reply.data)
        if update is None or verdict != "accepted":
            self.record(state, round_, reply.client, verdict, update=update, size=size, reason=reason)
        else:
            factor *= self.strategy.update_scale(update)
            state.held[reply.client] = HeldUpdate(update, factor, size)
        if state.accumulator is not None:
            self._sum_in_order(state, state.accumulator, round_)

    def receive_in_turn(self, state: RoundState, reply: Reply, round_: int) -> None:
        """Add the update of a client to the weights at once, if it is valid (sequential strategies)."""
        update, verdict, reason = self._validated(reply, round_)
        if update is not None and verdict == "accepted":
            self.vector = self.vector + update.delta
            self._contribute(state, update)
        size = size_of(reply.data)
        self.record(state, round_, reply.client, verdict, update=update, size=size, reason=reason)

    def record(
        self,
        state: RoundState,
        round_: int,
        client: str,
        verdict: str,
        *,
        update: ClientUpdate | None = None,
        size: int = 0,
        reason: str | None = None,
    ) -> None:
        """Write the outcome of a client's request to the audit log; too many failures exclude the client."""
        state.verdicts[client] = verdict
        if reason:
            state.reasons[client] = reason.partition("\n")[0]
        self.audit_log.record(round_, client, verdict, update=update, size=size, reason=reason)
        if verdict in ("failed", "quarantined") and self.validator.fail(client):
            self.audit_log.record(round_, client, "benched", reason="failed too often; excluded from now on")

    def close_round(
        self, state: RoundState, round_: int, *, start_vector: np.ndarray | None = None
    ) -> dict[str, float]:
        """Aggregate the accepted updates and take the step of the strategy; returns the row of the history.

        Parameters
        ----------
        start_vector
            Weights before the round of a sequential strategy, whose updates have been applied already.

        Raises
        ------
        FederationError
            If the weights are no longer finite, or several consecutive rounds had too few updates.
        """
        held = self._without_outliers(state, round_) if state.accumulator is None else []
        before, norm = self.vector if start_vector is None else start_vector, 0.0
        ready = len(state.contributions) >= self.min_clients or self.privacy.every_round
        aggregated = self._aggregate(state, held) if ready and start_vector is None else None
        if aggregated is not None or (ready and start_vector is not None):
            self.idle = 0
            step = self.vector if aggregated is None else self._step(aggregated, state.withheld)
            self.vector = self._require_finite(step)
            norm = norm_of(self.vector - before if aggregated is None else aggregated.vector)
        else:
            self.vector = before
            self._skip_step(state, round_)
        # Written over the step before, which nobody needs any more: memory of this size is slow to get.
        self.last_step = np.subtract(self.vector, before, out=self.last_step)
        self.validator.close_round(self.last_step, state.rejected)
        if state.skipped is not None:
            self.audit_log.note(round_, "skipped", state.skipped)
        for group, reason in state.withheld.items():
            self.audit_log.note(round_, "withheld", f"{group}: {reason}")
        self.audit_log.close_round(round_)
        figures = dict(self.privacy.close_round(round_, state.asked))
        if state.skipped is not None:
            figures["skipped"] = 1.0
        return self._metrics(state) | figures | {"update_norm": norm}

    def state_dict(self) -> dict[str, Any]:
        """Plain data beside the vectors; the keys are those of checkpoints."""
        return {
            "idle": self.idle,
            "gate": self.validator.state_dict(),
            "rule": self.server_aggregation.state_dict(),
            "shield": self.privacy.state_dict(),
        }

    def load(
        self, vector: np.ndarray, state: ServerState, last: np.ndarray | None, plain: Mapping[str, Any]
    ) -> None:
        """Restore the state of a checkpoint."""
        self.vector, self.state, self.last_step, self.idle = vector, state, last, int(plain["idle"])
        self.validator.load_state_dict(plain["gate"], last)
        self.server_aggregation.load_state_dict(dict(plain["rule"]))
        self.privacy.load_state_dict(dict(plain["shield"]))

    # validation

    def _validated(self, reply: Reply, asked: int) -> tuple[ClientUpdate | None, str, str | None]:
        """The update, its verdict, and the reason if it is not accepted."""
        if reply.reason:
            return None, "failed", reply.reason
        if (text := failure_text(reply.data)) is not None:
            return None, "failed", text
        try:
            update = ClientUpdate.from_bytes(reply.data)
        except MalformedError as error:
            return None, "quarantined", f"malformed: {error.what}"
        manifest = self.manifests[reply.client]
        expected = ExpectedUpdate(
            schema_hash=self.schema.hash,
            size=self.schema.size,
            round=asked,
            client=reply.client,
            request_id=request_id_of(self.seed, asked, reply.client),
            n=manifest.n,
            counts=manifest.counts,
            arrays=self.strategy.extra_arrays,
            dtype=self.privacy.dtype,
        )
        reason = self.validator.check(update, expected)
        return (update, "accepted", None) if reason is None else (update, "quarantined", str(reason))

    def _without_outliers(self, state: RoundState, round_: int) -> list[HeldUpdate]:
        """The updates of a whole round by client, without those much longer than the others."""
        held = [state.held[client] for client in sorted(state.held)]
        outliers = self.validator.outliers([update for update, *_ in held])
        for update, _, size in held:
            reason = outliers.get(update.client)
            verdict, text = ("accepted", None) if reason is None else ("quarantined", str(reason))
            self.record(state, round_, update.client, verdict, update=update, size=size, reason=text)
        state.rejected += sorted(outliers)
        held = [item for item in held if item.update.client not in outliers]
        for item in held:
            self._contribute(state, item.update)
        return held

    # sums, aggregation and step

    def _sum_in_order(self, state: RoundState, accumulator: Accumulator, round_: int) -> None:
        """Sum the held updates up to the first client that has not answered."""
        ready = list(state.held) if not state.order else []
        while state.order and (state.order[0] in state.held or state.order[0] in state.verdicts):
            client = state.order.popleft()
            ready += [client] if client in state.held else []
        for client in ready:
            update, factor, size = state.held.pop(client)
            try:
                accumulator.add(update.delta, self._weights(client), factor, client=client)
            except SaturationError as error:
                reason = f"saturation: {error.what}"
                state.rejected.append(client)
                self.record(state, round_, client, "quarantined", update=update, size=size, reason=reason)
            else:
                self._contribute(state, update)
                self.record(state, round_, client, "accepted", update=update, size=size)

    def _contribute(self, state: RoundState, update: ClientUpdate) -> None:
        """Count an accepted update, and sum its further vectors."""
        share = self.shares[update.client]
        for name, total in state.arrays.items():
            total.add(update.arrays[name], share.fractions, client=update.client)
        state.contributions.append(Contribution(update.client, share.weights, update.steps))
        state.metrics[update.client] = dict(update.metrics)

    def _sums(self) -> dict[str, WeightedMean]:
        return {name: WeightedMean(self.schema) for name in sorted(self.strategy.extra_arrays)}

    def _weights(self, client: str) -> Mapping[str, float]:
        """Group → weight of the client, whatever an update says of itself."""
        return self.shares[client].weights

    def _aggregate(self, state: RoundState, held: Sequence[HeldUpdate]) -> AggregatedUpdate | None:
        """The aggregated update; None if so few updates may not be summed."""
        if state.accumulator is not None:
            try:
                vector = state.accumulator.result()
            except TooFewContributorsError as error:
                state.skipped = error.what
                return None
            state.withheld = state.accumulator.withheld()
        else:
            updates = [_scaled(update, factor) for update, factor, _ in held]
            weights = weight_table([self._weights(u.client) for u in updates], self.schema.groups)
            vector = self.server_aggregation.aggregate(updates, self.schema, weights)
        contributions = tuple(sorted(state.contributions, key=lambda contribution: contribution.client))
        arrays = {name: total.sums() for name, total in state.arrays.items()}
        expected = self.privacy.rate if self.privacy.every_round else None
        return AggregatedUpdate(vector, contributions, self.population, arrays, expected)

    def _step(self, aggregated: AggregatedUpdate, withheld: Collection[str] = ()) -> np.ndarray:
        """New weights; groups that nobody trained or whose sum is not known, and parameters that stay at clients, are
        unchanged."""
        before = dict(self.state)
        weights = np.asarray(self.strategy.step(self.schema, self.vector, aggregated, self.state), np.float32)
        if not self.schema.learned.all():  # statistics are averaged, whatever the optimiser of the server
            rest = ~self.schema.learned
            weights[rest] = self.vector[rest] + aggregated.vector[rest]
        trained = [contribution.weights for contribution in aggregated.contributions]
        active = {group for weights_of in trained for group, weight in weights_of.items() if weight > 0}
        active = set(self.schema.groups) if self.privacy.every_round else active - set(withheld)
        for group, span in self.schema.spans:
            if group not in active:
                weights[span] = self.vector[span]
                for name, old in before.items():
                    self.state[name][span] = old[span]
        if self.personal_mask is not None:
            weights[self.personal_mask] = self.vector[self.personal_mask]
        return weights

    def _require_finite(self, weights: np.ndarray) -> np.ndarray:
        if not np.isfinite([weights.max(), weights.min()]).all():
            raise FederationError(
                "the step of the server gave weights that are not finite",
                fix="lower federation.strategy_params.server_lr, or bound updates with server_aggregation: norm_clip",
            )
        return weights

    def _metrics(self, state: RoundState) -> dict[str, float]:
        """Counts of verdicts and mean training losses, whatever the order of arrival."""
        verdicts = list(state.verdicts.values())
        counted = ("accepted", "quarantined", "failed", "late")
        row = {verdict: float(verdicts.count(verdict)) for verdict in counted}
        for name in sorted({name for metrics in state.metrics.values() for name in metrics}):
            task = name.partition("/")[2]
            known = [
                (self.manifests[c].labels[task], metrics[name])
                for c, metrics in state.metrics.items()
                if name in metrics
            ]
            row[name] = math.fsum(n * value for n, value in known) / sum(n for n, _ in known)
        return row

    def _skip_step(self, state: RoundState, round_: int) -> None:
        """Leave the weights as they are. Where single updates must not be known, a round with too few of them is
        nobody's fault; the engine ends a federation that is left with too few clients."""
        if self.privacy.too_few(()) is not None:
            state.skipped = state.skipped or "nobody sent a usable update"
            return
        self.idle += 1
        if self.idle >= MAX_IDLE_ROUNDS:
            why = [f"{client}: {reason}" for client, reason in sorted(state.reasons.items())]
            raise FederationError(
                f"{self.idle} rounds in a row had fewer than {self.min_clients} usable updates "
                f"({'; '.join(why[:3]) or 'nobody took part'})",
                where=f"round {round_ + 1}",
                fix="the audit log has the reasons; lower participation.min_clients or fix the clients",
            )


def _require_sums(strategy: Strategy, aggregation: ServerAggregation) -> None:
    """Refuse classes that use more than a sum of updates, whatever their entries say of them."""
    if not aggregation.streaming:
        raise FederationError(
            f"{type(aggregation).__name__} aggregates single updates, and privacy protects only their sum here",
            where="federation.server_aggregation",
            fix="use server_aggregation: mean; an entry may say linear only if its class has streaming = True",
        )
    if strategy.extra_arrays:
        raise FederationError(
            f"{type(strategy).__name__} sends {', '.join(sorted(strategy.extra_arrays))}, which nothing protects",
            where="federation.strategy",
            fix="use another strategy; the entry of this one has to say sends_second_vector",
        )


def _scaled(update: ClientUpdate, factor: float) -> ClientUpdate:
    if factor == 1:
        return update
    return dataclasses.replace(update, delta=(update.delta * np.float64(factor)).astype(np.float32))
