"""The server: takes replies, turns bad ones away, combines the others, steps.

It never sees a model, a patient or a client's state: only bytes, vectors and counts.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from equipoise.platform.errors import FederationError
from equipoise.platform.federation.backend import Reply
from equipoise.platform.federation.fixed_point import FixedPoint, SaturationError, WeightedMean
from equipoise.platform.federation.gate import Gate
from equipoise.platform.federation.ledger import Ledger
from equipoise.platform.federation.manifest import Manifest
from equipoise.platform.federation.order import nonce_of
from equipoise.platform.federation.rules.protocol import SiteRule
from equipoise.platform.federation.shield import Collector, Shield
from equipoise.platform.federation.strategies.strategy import Combined, Party, State, Strategy
from equipoise.platform.federation.update import ClientUpdate, Expected, group_weights
from equipoise.platform.federation.vector import Schema, norm_of
from equipoise.platform.federation.wire import MalformedError, failure_text, size_of

#: Rounds in a row that may end without a step.
MOST_IDLE = 3


@dataclass
class Tally:
    """What has come in since the last step.

    Parameters
    ----------
    collector
        Sums updates as they come; None where the rule needs all of them.
    arrays
        Sums of what clients sent along.
    """

    collector: Collector | None
    arrays: dict[str, WeightedMean]
    held: list[tuple[ClientUpdate, float]] = field(default_factory=list)
    sizes: dict[str, int] = field(default_factory=dict)
    parties: list[Party] = field(default_factory=list)
    metrics: dict[str, dict[str, float]] = field(default_factory=dict)
    verdicts: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)
    rejected: list[str] = field(default_factory=list)


class Server:
    """Weights, state of the strategy, and what is done with replies.

    Parameters
    ----------
    schema, vector
        Layout, and initial weights.
    strategy, rule, shield, gate, ledger
        The parts.
    manifests
        What clients declared.
    seed
        Of the federation.
    uniform
        Whether clients count alike.
    kept
        ``[P]`` bool, what stays at clients, or None.
    bits
        Of fixed-point numbers.
    min_clients
        Fewest accepted updates of a step.
    """

    def __init__(
        self,
        schema: Schema,
        vector: np.ndarray,
        *,
        strategy: Strategy,
        rule: SiteRule,
        shield: Shield,
        gate: Gate,
        ledger: Ledger,
        manifests: Mapping[str, Manifest],
        seed: int,
        uniform: bool,
        kept: np.ndarray | None,
        bits: int,
        min_clients: int,
    ) -> None:
        self.schema, self.vector = schema, vector
        self.strategy, self.rule, self.shield, self.gate, self.ledger = strategy, rule, shield, gate, ledger
        self.manifests = dict(manifests)
        self.seed, self.min_clients = seed, min_clients
        self.uniform = uniform or strategy.uniform or shield.uniform
        self.kept = kept
        self.fixed = FixedPoint(bits, max(len(manifests), 1))
        self.state: State = strategy.start(schema)
        self.last_step: np.ndarray | None = None
        self.idle = 0
        self.population = {
            group: sum(1 for m in manifests.values() if m.counts.get(group)) for group in schema.groups
        }

    @property
    def learners(self) -> list[str]:
        """Clients that have something to train and are not benched, by name."""
        return sorted(c for c, m in self.manifests.items() if m.learns and c not in self.gate.benched)

    def open(self, clients: Sequence[str]) -> Tally:
        """Begin to take replies of these clients."""
        streams = self.rule.streaming
        collector = self.shield.collector(self.schema, self.fixed, clients) if streams else None
        arrays = {name: WeightedMean(self.schema, self.fixed) for name in sorted(self.strategy.sends)}
        return Tally(collector, arrays)

    def expected(self, client: str, round_: int) -> Expected:
        """What an answer has to look like."""
        manifest = self.manifests[client]
        return Expected(
            schema_hash=self.schema.hash,
            size=self.schema.size,
            round=round_,
            client=client,
            nonce=nonce_of(self.seed, round_, client),
            n=manifest.n,
            counts=manifest.counts,
            arrays=self.strategy.sends,
            dtype=self.shield.dtype,
        )

    def take(self, tally: Tally, reply: Reply, asked: int, round_: int, factor: float = 1.0) -> bool:
        """Count a reply in, or turn it away with a row in the ledger; whether it was accepted.

        Parameters
        ----------
        asked
            Round of the order that it must answer.
        round_
            Round of the ledger.
        factor
            Of the update, beside the strategy's.
        """
        update, verdict, reason = self._read(reply, asked)
        if update is not None and verdict == "accepted":
            try:
                self._add(tally, update, factor)
            except SaturationError as error:
                verdict, reason = "quarantined", f"saturation: {error.what}"
                tally.rejected.append(update.client)
        if verdict == "accepted" and tally.collector is None:
            tally.verdicts[reply.client] = verdict  # the whole round has yet to be looked at
            tally.sizes[reply.client] = size_of(reply.data)
        else:
            self.note(
                tally, round_, reply.client, verdict, update=update, size=size_of(reply.data), reason=reason
            )
        return verdict == "accepted"

    def note(
        self,
        tally: Tally,
        round_: int,
        client: str,
        verdict: str,
        *,
        update: ClientUpdate | None = None,
        size: int = 0,
        reason: str | None = None,
    ) -> None:
        """Write down what became of a client's order; failures count towards the bench."""
        tally.verdicts[client] = verdict
        if reason:
            tally.reasons[client] = reason.partition("\n")[0]
        self.ledger.record(round_, client, verdict, update=update, size=size, reason=reason)
        if verdict in ("failed", "quarantined") and self.gate.fail(client):
            self.ledger.record(round_, client, "benched", reason="failed too often; left out from now on")

    def hand_on(self, tally: Tally, reply: Reply, round_: int) -> None:
        """Make a client's weights the server's, if its update is good."""
        update, verdict, reason = self._read(reply, round_)
        if update is not None and verdict == "accepted":
            self.vector = self.vector + update.delta
            tally.parties.append(Party(update.client, self._weights(update), update.steps))
            tally.metrics[update.client] = dict(update.metrics)
        self.note(
            tally, round_, reply.client, verdict, update=update, size=size_of(reply.data), reason=reason
        )

    def close(self, tally: Tally, round_: int, *, begun: np.ndarray | None = None) -> dict[str, float]:
        """Combine what was accepted, step, remember; figures for the history.

        Parameters
        ----------
        begun
            Weights at the start of a tour, whose steps are taken already.

        Raises
        ------
        FederationError
            If the weights are no longer finite, or several rounds in a row brought too few updates.
        """
        self._drop_outliers(tally, round_)
        before, norm = self.vector if begun is None else begun, 0.0
        if len(tally.parties) < self.min_clients:
            self.vector = before
            self._stand_still(tally, round_)
        else:
            self.idle = 0
            combined = self._combine(tally) if begun is None else None
            self.vector = self._finite(self.vector if combined is None else self._step(combined))
            norm = norm_of(self.vector - before if combined is None else combined.vector)
        self.last_step = self.vector - before
        self.gate.close_round(self.last_step, tally.rejected)
        self.ledger.close_round(round_)
        steps = {party.client: party.steps for party in tally.parties}
        row = self.figures(tally) | dict(self.shield.close_round(round_, steps))
        return row | {"update_norm": norm}

    def figures(self, tally: Tally) -> dict[str, float]:
        """Counts of verdicts and mean training losses, the same in any order of arrival."""
        row = {
            verdict: float(sum(1 for found in tally.verdicts.values() if found == verdict))
            for verdict in ("accepted", "quarantined", "failed", "late")
        }
        for name in sorted({name for own in tally.metrics.values() for name in own}):
            task = name.partition("/")[2]
            known = [
                (self.manifests[c].labelled[task], own[name])
                for c, own in tally.metrics.items()
                if name in own
            ]
            row[name] = math.fsum(n * value for n, value in known) / sum(n for n, _ in known)
        return row

    def state_dict(self) -> dict[str, Any]:
        """Plain data beside the vectors."""
        return {
            "idle": self.idle,
            "gate": self.gate.state_dict(),
            "rule": self.rule.state_dict(),
            "shield": self.shield.state_dict(),
        }

    def load(
        self, vector: np.ndarray, state: State, last: np.ndarray | None, plain: Mapping[str, Any]
    ) -> None:
        """Go on from a checkpoint."""
        self.vector, self.state, self.last_step, self.idle = vector, state, last, int(plain["idle"])
        self.gate.load_state_dict(plain["gate"], last)
        self.rule.load_state_dict(dict(plain["rule"]))
        self.shield.load_state_dict(dict(plain["shield"]))

    def _read(self, reply: Reply, asked: int) -> tuple[ClientUpdate | None, str, str | None]:
        """The update, what becomes of it, and why."""
        if reply.reason:
            return None, "failed", reply.reason
        if (text := failure_text(reply.data)) is not None:
            return None, "failed", text
        try:
            update = ClientUpdate.from_bytes(reply.data)
        except MalformedError as error:
            return None, "quarantined", f"malformed: {error.what}"
        reason = self.gate.check(update, self.expected(reply.client, asked))
        return (
            update,
            "accepted" if reason is None else "quarantined",
            None if reason is None else str(reason),
        )

    def _weights(self, update: ClientUpdate) -> dict[str, float]:
        counts = update.counts
        return {g: float(n > 0) if self.uniform else float(n) for g, n in counts.items()}

    def _add(self, tally: Tally, update: ClientUpdate, factor: float) -> None:
        weights, factor = self._weights(update), factor * self.strategy.factor(update)
        alike = {group: float(weight > 0) for group, weight in weights.items()}
        for name, total in tally.arrays.items():
            total.fixed.require(float(np.abs(update.arrays[name]).max(initial=0)), update.client)
        if tally.collector is None:
            peak = float(np.abs(update.delta).max(initial=0)) * max(weights.values(), default=0.0)
            self.fixed.require(peak * abs(factor), update.client)
            tally.held.append((update, factor))
        else:
            tally.collector.add(update.delta, weights, factor, client=update.client)
        for name, total in tally.arrays.items():
            total.add(update.arrays[name], alike, client=update.client)
        tally.parties.append(Party(update.client, weights, update.steps))
        tally.metrics[update.client] = dict(update.metrics)

    def _drop_outliers(self, tally: Tally, round_: int) -> None:
        """Where a whole round is held, updates out of proportion to the others of the round go, too."""
        if tally.collector is not None:
            return
        found = self.gate.outliers([update for update, _ in tally.held])
        for update, _ in tally.held:
            reason = found.get(update.client)
            verdict, text = ("accepted", None) if reason is None else ("quarantined", str(reason))
            size = tally.sizes[update.client]
            self.note(tally, round_, update.client, verdict, update=update, size=size, reason=text)
        tally.rejected += sorted(found)
        if found and tally.arrays:
            for name, total in tally.arrays.items():  # whole numbers: taken out again without a trace
                fresh = WeightedMean(self.schema, total.fixed)
                for update, _ in tally.held:
                    if update.client not in found:
                        fresh.add(update.arrays[name], {g: float(n > 0) for g, n in update.counts.items()})
                tally.arrays[name] = fresh
        tally.held = [(update, factor) for update, factor in tally.held if update.client not in found]
        tally.parties = [party for party in tally.parties if party.client not in found]
        tally.metrics = {client: own for client, own in tally.metrics.items() if client not in found}

    def _combine(self, tally: Tally) -> Combined:
        parties = tuple(sorted(tally.parties, key=lambda party: party.client))
        if tally.collector is not None:
            vector = tally.collector.result()
        else:
            held = sorted(tally.held, key=lambda item: item[0].client)
            updates = [
                u
                if factor == 1
                else dataclasses.replace(u, delta=(u.delta * np.float64(factor)).astype(np.float32))
                for u, factor in held
            ]
            weights = group_weights(updates, self.schema.groups, uniform=self.uniform)
            vector = self.rule.combine(updates, self.schema, weights)
        arrays = {name: total.sums() for name, total in tally.arrays.items()}
        return Combined(vector, parties, self.population, arrays)

    def _step(self, combined: Combined) -> np.ndarray:
        """New weights; what nobody trained, and what stays at clients, is as it was."""
        before = dict(self.state)
        found = np.asarray(self.strategy.step(self.schema, self.vector, combined, self.state), np.float32)
        if not self.schema.learned.all():  # statistics are averaged, whatever the server's optimiser
            rest = ~self.schema.learned
            found[rest] = self.vector[rest] + combined.vector[rest]
        active = {g for party in combined.parties for g, weight in party.weights.items() if weight > 0}
        for group, span in self.schema.spans:
            if group not in active:
                found[span] = self.vector[span]
                for name, old in before.items():
                    self.state[name][span] = old[span]
        if self.kept is not None:
            found[self.kept] = self.vector[self.kept]
        return found

    def _finite(self, found: np.ndarray) -> np.ndarray:
        if not np.isfinite([found.max(), found.min()]).all():
            raise FederationError(
                "the step of the server led to weights that are not finite",
                fix="lower federation.strategy_params.server_lr, or choose a rule that bounds updates (norm_clip)",
            )
        return found

    def _stand_still(self, tally: Tally, round_: int) -> None:
        self.idle += 1
        if self.idle >= MOST_IDLE:
            why = [f"{client}: {reason}" for client, reason in sorted(tally.reasons.items())]
            raise FederationError(
                f"{self.idle} rounds in a row brought fewer than {self.min_clients} usable updates "
                f"({'; '.join(why[:3]) or 'nobody took part'})",
                where=f"round {round_ + 1}",
                fix="the ledger says why updates were turned away; lower participation.min_clients or mend the clients",
            )
