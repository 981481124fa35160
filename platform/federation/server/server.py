"""The server: receives replies, validates and aggregates updates, and takes the step of the strategy.

It never sees a model, a patient or a client's state, only bytes, vectors and counts.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from equipoise.platform.errors import FederationError
from equipoise.platform.federation.aggregation.protocol import ServerAggregation
from equipoise.platform.federation.backend import Reply
from equipoise.platform.federation.clients.manifest import ClientManifest
from equipoise.platform.federation.messages import (
    ClientUpdate,
    ExpectedUpdate,
    MalformedError,
    failure_text,
    group_weights,
    request_id_of,
    size_of,
)
from equipoise.platform.federation.privacy.fixed_point import FixedPoint, SaturationError, WeightedMean
from equipoise.platform.federation.privacy.mechanism import Accumulator, PrivacyMechanism
from equipoise.platform.federation.server.audit_log import AuditLog
from equipoise.platform.federation.server.validator import UpdateValidator
from equipoise.platform.federation.strategies.strategy import (
    AggregatedUpdate,
    Contribution,
    ServerState,
    Strategy,
)
from equipoise.platform.federation.vector import Schema, norm_of

#: Consecutive rounds without a step after which a federation ends with an error.
MAX_IDLE_ROUNDS = 3


@dataclass
class RoundState:
    """What has arrived since the last step.

    Parameters
    ----------
    accumulator
        Sums updates as they arrive; None if the server aggregation needs all of them at once.
    arrays
        Sums of the further vectors of clients.
    """

    accumulator: Accumulator | None
    arrays: dict[str, WeightedMean]
    held: list[tuple[ClientUpdate, float]] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    contributions: list[Contribution] = field(default_factory=list)
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    verdicts: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    rejected: list[str] = field(default_factory=list)


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
    uniform
        Whether all clients count equally.
    personal_mask
        ``[P]`` bool, the parameters that stay at the clients, or None.
    bits
        Fractional bits of fixed-point numbers.
    min_clients
        Fewest accepted updates for a step.
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
        uniform: bool,
        personal_mask: np.ndarray | None,
        bits: int,
        min_clients: int,
    ) -> None:
        self.schema, self.vector = schema, vector
        self.strategy, self.server_aggregation = strategy, server_aggregation
        self.privacy, self.validator, self.audit_log = privacy, validator, audit_log
        self.manifests = dict(manifests)
        self.seed, self.min_clients = seed, min_clients
        self.uniform = uniform or strategy.uniform or privacy.uniform
        self.personal_mask = personal_mask
        self.fixed = FixedPoint(bits, max(len(manifests), 1))
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

    def open_round(self, clients: Sequence[str]) -> RoundState:
        """Prepare to receive the replies of these clients."""
        streams = self.server_aggregation.streaming
        accumulator = self.privacy.accumulator(self.schema, self.fixed, clients) if streams else None
        arrays = {name: WeightedMean(self.schema, self.fixed) for name in sorted(self.strategy.extra_arrays)}
        return RoundState(accumulator, arrays)

    def expected(self, client: str, round_: int) -> ExpectedUpdate:
        """What a valid answer to the current request looks like."""
        manifest = self.manifests[client]
        return ExpectedUpdate(
            schema_hash=self.schema.hash,
            size=self.schema.size,
            round=round_,
            client=client,
            request_id=request_id_of(self.seed, round_, client),
            n=manifest.n,
            counts=manifest.counts,
            arrays=self.strategy.extra_arrays,
            dtype=self.privacy.dtype,
        )

    def receive(
        self, round_state: RoundState, reply: Reply, asked: int, round_: int, factor: float = 1.0
    ) -> bool:
        """Add a reply to the round, or reject it with a row in the audit log; whether it was accepted.

        Parameters
        ----------
        asked
            Round of the request that it must answer.
        round_
            Round of the row in the audit log.
        factor
            Multiplies the update, in addition to the strategy's scale.
        """
        update, verdict, reason = self._checked(reply, asked)
        if update is not None and verdict == "accepted":
            try:
                self._add(round_state, update, factor)
            except SaturationError as error:
                verdict, reason = "quarantined", f"saturation: {error.what}"
                round_state.rejected.append(update.client)
        if verdict == "accepted" and round_state.accumulator is None:
            round_state.verdicts[reply.client] = verdict  # outliers are rejected once the round is complete
            round_state.sizes[reply.client] = size_of(reply.data)
        else:
            self.record(
                round_state,
                round_,
                reply.client,
                verdict,
                update=update,
                size=size_of(reply.data),
                reason=reason,
            )
        return verdict == "accepted"

    def record(
        self,
        round_state: RoundState,
        round_: int,
        client: str,
        verdict: str,
        *,
        update: ClientUpdate | None = None,
        size: int = 0,
        reason: str | None = None,
    ) -> None:
        """Write the outcome of a client's request to the audit log; too many failures exclude the client."""
        round_state.verdicts[client] = verdict
        if reason:
            round_state.reasons[client] = reason.partition("\n")[0]
        self.audit_log.record(round_, client, verdict, update=update, size=size, reason=reason)
        if verdict in ("failed", "quarantined") and self.validator.fail(client):
            self.audit_log.record(round_, client, "benched", reason="failed too often; excluded from now on")

    def receive_in_turn(self, round_state: RoundState, reply: Reply, round_: int) -> None:
        """Add the update of a client to the weights at once, if it is valid (sequential strategies)."""
        update, verdict, reason = self._checked(reply, round_)
        if update is not None and verdict == "accepted":
            self.vector = self.vector + update.delta
            round_state.contributions.append(Contribution(update.client, self._weights(update), update.steps))
            round_state.metrics[update.client] = dict(update.metrics)
        self.record(
            round_state, round_, reply.client, verdict, update=update, size=size_of(reply.data), reason=reason
        )

    def close_round(
        self, round_state: RoundState, round_: int, *, start_vector: np.ndarray | None = None
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
        self._reject_outliers(round_state, round_)
        before, norm = self.vector if start_vector is None else start_vector, 0.0
        if len(round_state.contributions) < self.min_clients:
            self.vector = before
            self._skip_step(round_state, round_)
        else:
            self.idle = 0
            aggregated = self._aggregate(round_state) if start_vector is None else None
            self.vector = self._require_finite(self.vector if aggregated is None else self._step(aggregated))
            norm = norm_of(self.vector - before if aggregated is None else aggregated.vector)
        self.last_step = self.vector - before
        self.validator.close_round(self.last_step, round_state.rejected)
        self.audit_log.close_round(round_)
        steps = {contribution.client: contribution.steps for contribution in round_state.contributions}
        row = self.metrics(round_state) | dict(self.privacy.close_round(round_, steps))
        return row | {"update_norm": norm}

    def metrics(self, round_state: RoundState) -> dict[str, float]:
        """Counts of verdicts and mean training losses, whatever the order of arrival."""
        row = {
            verdict: float(sum(1 for outcome in round_state.verdicts.values() if outcome == verdict))
            for verdict in ("accepted", "quarantined", "failed", "late")
        }
        for name in sorted({name for metrics in round_state.metrics.values() for name in metrics}):
            task = name.partition("/")[2]
            known = [
                (self.manifests[c].labelled[task], metrics[name])
                for c, metrics in round_state.metrics.items()
                if name in metrics
            ]
            row[name] = math.fsum(n * value for n, value in known) / sum(n for n, _ in known)
        return row

    def state_dict(self) -> dict[str, Any]:
        """Plain data beside the vectors."""
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

    def _checked(self, reply: Reply, asked: int) -> tuple[ClientUpdate | None, str, str | None]:
        """The update, its verdict, and the reason if it is not accepted."""
        if reply.reason:
            return None, "failed", reply.reason
        if (text := failure_text(reply.data)) is not None:
            return None, "failed", text
        try:
            update = ClientUpdate.from_bytes(reply.data)
        except MalformedError as error:
            return None, "quarantined", f"malformed: {error.what}"
        reason = self.validator.check(update, self.expected(reply.client, asked))
        return (
            update,
            "accepted" if reason is None else "quarantined",
            None if reason is None else str(reason),
        )

    def _weights(self, update: ClientUpdate) -> dict[str, float]:
        counts = update.counts
        return {g: float(n > 0) if self.uniform else float(n) for g, n in counts.items()}

    def _add(self, round_state: RoundState, update: ClientUpdate, factor: float) -> None:
        weights, factor = self._weights(update), factor * self.strategy.update_scale(update)
        equal = {group: float(weight > 0) for group, weight in weights.items()}
        for name, total in round_state.arrays.items():
            total.fixed.require(float(np.abs(update.arrays[name]).max(initial=0)), update.client)
        if round_state.accumulator is None:
            peak = float(np.abs(update.delta).max(initial=0)) * max(weights.values(), default=0.0)
            self.fixed.require(peak * abs(factor), update.client)
            round_state.held.append((update, factor))
        else:
            round_state.accumulator.add(update.delta, weights, factor, client=update.client)
        for name, total in round_state.arrays.items():
            total.add(update.arrays[name], equal, client=update.client)
        round_state.contributions.append(Contribution(update.client, weights, update.steps))
        round_state.metrics[update.client] = dict(update.metrics)

    def _reject_outliers(self, round_state: RoundState, round_: int) -> None:
        """If the whole round is held in memory, also reject updates much longer than the others."""
        if round_state.accumulator is not None:
            return
        outliers = self.validator.outliers([update for update, _ in round_state.held])
        for update, _ in round_state.held:
            reason = outliers.get(update.client)
            verdict, text = ("accepted", None) if reason is None else ("quarantined", str(reason))
            size = round_state.sizes[update.client]
            self.record(round_state, round_, update.client, verdict, update=update, size=size, reason=text)
        round_state.rejected += sorted(outliers)
        if outliers and round_state.arrays:
            for name, total in round_state.arrays.items():  # sum again without the outliers
                fresh = WeightedMean(self.schema, total.fixed)
                for update, _ in round_state.held:
                    if update.client not in outliers:
                        fresh.add(update.arrays[name], {g: float(n > 0) for g, n in update.counts.items()})
                round_state.arrays[name] = fresh
        round_state.held = [
            (update, factor) for update, factor in round_state.held if update.client not in outliers
        ]
        round_state.contributions = [
            contribution for contribution in round_state.contributions if contribution.client not in outliers
        ]
        round_state.metrics = {
            client: metrics for client, metrics in round_state.metrics.items() if client not in outliers
        }

    def _aggregate(self, round_state: RoundState) -> AggregatedUpdate:
        contributions = tuple(sorted(round_state.contributions, key=lambda contribution: contribution.client))
        if round_state.accumulator is not None:
            vector = round_state.accumulator.result()
        else:
            held = sorted(round_state.held, key=lambda item: item[0].client)
            updates = [
                u
                if factor == 1
                else dataclasses.replace(u, delta=(u.delta * np.float64(factor)).astype(np.float32))
                for u, factor in held
            ]
            weights = group_weights(updates, self.schema.groups, uniform=self.uniform)
            vector = self.server_aggregation.aggregate(updates, self.schema, weights)
        arrays = {name: total.sums() for name, total in round_state.arrays.items()}
        return AggregatedUpdate(vector, contributions, self.population, arrays)

    def _step(self, aggregated: AggregatedUpdate) -> np.ndarray:
        """New weights; groups that nobody trained and parameters that stay at clients are unchanged."""
        before = dict(self.state)
        weights = np.asarray(self.strategy.step(self.schema, self.vector, aggregated, self.state), np.float32)
        if not self.schema.learned.all():  # statistics are averaged, whatever the optimiser of the server
            rest = ~self.schema.learned
            weights[rest] = self.vector[rest] + aggregated.vector[rest]
        active = {
            g
            for contribution in aggregated.contributions
            for g, weight in contribution.weights.items()
            if weight > 0
        }
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

    def _skip_step(self, round_state: RoundState, round_: int) -> None:
        self.idle += 1
        if self.idle >= MAX_IDLE_ROUNDS:
            why = [f"{client}: {reason}" for client, reason in sorted(round_state.reasons.items())]
            raise FederationError(
                f"{self.idle} rounds in a row had fewer than {self.min_clients} usable updates "
                f"({'; '.join(why[:3]) or 'nobody took part'})",
                where=f"round {round_ + 1}",
                fix="the audit log has the reasons; lower participation.min_clients or fix the clients",
            )
