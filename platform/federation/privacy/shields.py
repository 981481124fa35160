"""The shield of a federation: differential privacy and secure aggregation behind the engine's seams.

A shield has any of three parts. At the client: patients' gradients are clipped and get noise, the update is
clipped, the update is masked, in this order. At the server: the sum is unmasked, gets noise, is divided; accounts
are kept of rounds that were held and steps that were taken.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from equipoise.platform.errors import FederationError, StudyError
from equipoise.platform.federation.fixed_point import FixedPoint, SaturationError, WeightedMean
from equipoise.platform.federation.manifest import Manifest
from equipoise.platform.federation.order import Order, client_number
from equipoise.platform.federation.privacy.accountant import Accountant, Mechanism
from equipoise.platform.federation.privacy.client_level import clipped, private_mean
from equipoise.platform.federation.privacy.params import ClientLevelParams, PrivacyParams
from equipoise.platform.federation.privacy.secure_aggregation import (
    Committee,
    MaskedSum,
    Participant,
    PublicKeys,
    threshold_of,
)
from equipoise.platform.federation.privacy.shamir import Draw
from equipoise.platform.federation.shield import Collector, Open, Shield
from equipoise.platform.federation.update import ClientUpdate
from equipoise.platform.federation.vector import Schema, norm_of

if TYPE_CHECKING:
    from equipoise.platform.federation.local import Trainer

SECURE = "secure_aggregation"
#: Stream of the simulated clients' secrets.
SECRETS = 0x5EC2E7


class PrivacyShield:
    """Client half and server half of the ``privacy`` section.

    Parameters
    ----------
    params
        The section.
    schema
        Layout of the vectors.
    seed
        Of the federation; in a simulation all noise and keys are functions of it.
    bits
        Of fixed-point numbers.
    uniform
        Whether the study lets clients count alike.
    rate
        Probability with which a client takes part in a round; needed for privacy of clients.

    Raises
    ------
    StudyError
        If privacy of clients is asked for without a rate.
    """

    def __init__(
        self,
        params: PrivacyParams,
        schema: Schema,
        *,
        seed: int,
        bits: int,
        uniform: bool,
        rate: float | None = None,
    ) -> None:
        if params.client_level is not None and rate is None:
            raise StudyError(
                "privacy of clients is accounted for Poisson samples of them",
                where="federation.privacy.client_level",
                fix="write participation: {scheme: poisson, fraction: 0.5}",
            )
        self.params, self.schema, self.seed, self.bits = params, schema, seed, bits
        self.uniform = uniform or params.client_level is not None
        self.rate = rate if params.client_level is not None else None
        self.dtype = "uint64" if params.secure_aggregation is not None else "float32"
        self.trainer: Trainer | None = None
        if params.record_level is not None:
            from equipoise.platform.federation.privacy.record_level import PrivateTrainer

            self.trainer = PrivateTrainer(params.record_level)
        self.clients: Accountant | None = None
        if params.client_level is not None:
            self.clients = Accountant(params.client_level.delta, params.client_level.epsilon)
        self.patients: dict[str, Accountant] = {}
        self.plans: dict[str, tuple[float, int]] = {}
        self.owners: dict[str, int] = {}
        self.round = 0
        self._committee: Committee | None = None

    def enrol(self, manifests: Mapping[str, Manifest], plans: Mapping[str, tuple[float, int]]) -> None:
        """Tell the server's half who the clients are, once they joined.

        Parameters
        ----------
        manifests
            What clients declared.
        plans
            Client → rate with which a patient is drawn and steps of a round
            (:func:`~equipoise.platform.federation.privacy.record_level.plan`).

        Raises
        ------
        StudyError
            If delta promises less than publishing one unit at random would.
        """
        declared = manifests.values()
        self.owners = {g: sum(1 for m in declared if m.counts.get(g)) for g in self.schema.groups}
        if self.params.client_level is not None:
            _require_delta(self.params.client_level.delta, len(manifests), "clients", "client_level")
        if (record := self.params.record_level) is not None:
            most = max((m.n for m in declared), default=1)
            _require_delta(record.delta, most, "patients of a client", "record_level")
            self.plans = dict(plans)
            known = self.patients
            self.patients = {c: known.get(c, Accountant(record.delta, record.epsilon)) for c in sorted(plans)}

    # the client's half

    def guard(self, update: ClientUpdate, order: Order) -> ClientUpdate:
        """The update clipped and masked, without scalars where they would tell what noise is to hide."""
        if order.kind != "fit":
            return update
        if self.params.client_level is not None:
            delta, _ = clipped(update.delta, self.params.client_level.clip, fraction_bits=self.bits)
            update = dataclasses.replace(update, delta=delta, metrics={})
        if self.params.record_level is not None:
            update = dataclasses.replace(update, metrics={})
        if self.params.secure_aggregation is not None:
            update = dataclasses.replace(update, delta=self._masked(update, order))
        return update

    def _masked(self, update: ClientUpdate, order: Order) -> np.ndarray:
        told = order.shield[SECURE]
        keys = {
            c: PublicKeys(bytes.fromhex(box), bytes.fromhex(mask)) for c, (box, mask) in told["keys"].items()
        }
        fixed = FixedPoint(self.bits, int(told["summands"]))
        vector = np.zeros(self.schema.size, np.int64)
        for group, span in self.schema.spans:
            if weight := self._weight(update.counts.get(group, 0)):
                vector[span] = fixed.encode(update.delta[span], weight)
        own = Participant(update.client, order.round, self._draw(update.client, order.round))
        return own.masked(vector.view(np.uint64), keys)

    def _weight(self, count: int) -> float:
        return float(count > 0) if self.uniform else float(count)

    def _draw(self, client: str, round_: int) -> Draw:
        """A client's random bytes for a round. A function of the federation's seed, as everything simulated is;
        hospitals would take those of their operating system, and the server would know none of them."""
        sequence = np.random.SeedSequence([self.seed, round_, client_number(client), SECRETS])
        return np.random.default_rng(sequence).bytes

    # the server's half

    def open_round(self, round_: int, clients: Sequence[str]) -> Mapping[str, Any]:
        """Public keys of the participants, for secure aggregation."""
        self.round = round_
        if self.params.secure_aggregation is None:
            return {}
        threshold = threshold_of(self.params.secure_aggregation.threshold, len(clients))
        draws = {client: self._draw(client, round_) for client in clients}
        self._committee = Committee(draws, round_, threshold)
        keys = {c: [k.box.hex(), k.mask.hex()] for c, k in self._committee.keys.items()}
        return {SECURE: {"keys": keys, "threshold": threshold, "summands": len(clients)}}

    def collector(self, schema: Schema, fixed: FixedPoint, clients: Sequence[str]) -> Collector:
        """Where updates are summed; opened before or after :meth:`open_round`, used after it."""
        if fixed.bits != self.bits:
            raise FederationError(f"clients use {self.bits} bits, the server {fixed.bits}")
        inner = (
            MaskedMean(self, fixed)
            if self.params.secure_aggregation is not None
            else WeightedMean(schema, fixed)
        )
        return inner if self.params.client_level is None else NoisyMean(self, self.params.client_level, inner)

    def close_round(self, round_: int, steps: Mapping[str, int]) -> Mapping[str, float]:
        """Count the round and the steps; epsilons for the history, of the worst client where each has one."""
        figures: dict[str, float] = {}
        if self.clients is not None:
            self.clients.spend(self._of_clients())
            figures["epsilon_clients"] = self.clients.spent()
        if self.params.record_level is not None:
            for client, taken in steps.items():
                self.patients[client].spend(self._of_patients(client), taken)
            figures["epsilon_patients"] = max((a.spent() for a in self.patients.values()), default=0.0)
        return figures

    def exhausted(self) -> str | None:
        """Why another round would cost more privacy than the budget holds."""
        if self.clients is not None and not self.clients.allows(self._of_clients()):
            return (
                f"a further round would exceed the budget of clients, epsilon {self.clients.epsilon:g} "
                f"({self.clients.spent():.3g} spent)"
            )
        for client, account in self.patients.items():
            if not account.allows(self._of_patients(client), self.plans[client][1]):
                return (
                    f"a further round would exceed the budget of the patients of {client}, epsilon "
                    f"{account.epsilon:g} ({account.spent():.3g} spent)"
                )
        return None

    def tight(self) -> dict[str, float]:
        """Epsilons by privacy loss distributions, for the report; ``clients``, and every client's patients."""
        found = {f"patients/{client}": account.tight() for client, account in self.patients.items()}
        return found | ({"clients": self.clients.tight()} if self.clients is not None else {})

    def state_dict(self) -> dict[str, Any]:
        """The accounts."""
        patients = {client: account.state() for client, account in self.patients.items()}
        return {"clients": None if self.clients is None else self.clients.state(), "patients": patients}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.clients = None if state["clients"] is None else Accountant.from_state(state["clients"])
        self.patients = {client: Accountant.from_state(own) for client, own in state["patients"].items()}

    def committee(self) -> Committee:
        """The simulated clients of the present round."""
        if self._committee is None:
            raise FederationError("a masked sum was asked for before the round was opened")
        return self._committee

    def _of_clients(self) -> Mechanism:
        assert self.params.client_level is not None
        assert self.rate is not None
        return Mechanism(self.rate, self.params.client_level.noise)

    def _of_patients(self, client: str) -> Mechanism:
        assert self.params.record_level is not None
        return Mechanism(self.plans[client][0], self.params.record_level.noise)


class MaskedMean:
    """The mean of masked updates; weights are applied by clients, the server knows their sums from the counts."""

    def __init__(self, shield: PrivacyShield, fixed: FixedPoint) -> None:
        self.shield, self.fixed = shield, fixed
        self.sum: MaskedSum | None = None
        self.weights: dict[str, list[float]] = {}

    def add(
        self, values: np.ndarray, weights: Mapping[str, float], factor: float = 1.0, *, client: str = ""
    ) -> None:
        """Count a masked vector in; ``weights`` go below the line only."""
        if factor != 1:
            raise FederationError("a masked update cannot be scaled by the server")
        if self.sum is None:
            keys = self.shield.committee().keys
            assert self.shield.params.secure_aggregation is not None
            threshold = threshold_of(self.shield.params.secure_aggregation.threshold, len(keys))
            self.sum = MaskedSum(self.shield.schema.size, keys, threshold, self.shield.round)
        self.sum.add(client, values)
        for group, weight in weights.items():
            if weight:
                self.weights.setdefault(group, []).append(float(weight))

    def totals(self) -> np.ndarray:
        """``[P]`` int64 exact weighted sum of the survivors' updates."""
        if self.sum is None:
            return np.zeros(self.shield.schema.size, np.int64)
        return self.sum.unmasked(self.shield.committee().reveal(self.sum.survivors, self.sum.dropped))

    def sums(self) -> np.ndarray:
        """``[P]`` float64 weighted sum."""
        return self.fixed.decode(self.totals())

    def result(self) -> np.ndarray:
        """``[P]`` float32 mean, that of :class:`~equipoise.platform.federation.fixed_point.WeightedMean` exactly."""
        schema, total = self.shield.schema, self.totals()
        found = np.zeros(schema.size, np.float32)
        for group, span in schema.spans:
            if weight := math.fsum(self.weights.get(group, ())):
                found[span] = self.fixed.decode(total[span], weight)
        return found


class NoisyMean:
    """The mean with noise and a fixed denominator, over any sum."""

    def __init__(
        self, shield: PrivacyShield, params: ClientLevelParams, inner: MaskedMean | WeightedMean
    ) -> None:
        self.shield, self.params, self.inner = shield, params, inner

    def add(
        self, values: np.ndarray, weights: Mapping[str, float], factor: float = 1.0, *, client: str = ""
    ) -> None:
        """Count a clipped update in.

        Raises
        ------
        SaturationError
            If it is longer than the clipping norm, or would count for more than one.
        """
        if factor != 1 or any(weight not in (0, 1) for weight in weights.values()):
            raise SaturationError(f"{client} would count for more than one in a sum with privacy of clients")
        if self.shield.dtype == "float32" and norm_of(values) > self.params.clip:
            raise SaturationError(
                f"{client} sent an update longer than the clipping norm {self.params.clip:g}"
            )
        self.inner.add(values, weights, client=client)

    def result(self) -> np.ndarray:
        """``[P]`` float32."""
        shield, rate = self.shield, self.shield.rate
        assert rate is not None
        expected = shield.schema.expand({group: rate * count for group, count in shield.owners.items()})
        return private_mean(
            self.inner.sums(), self.params.clip, self.params.noise, expected, shield.seed, shield.round
        )


def shield_of(
    params: PrivacyParams, schema: Schema, *, seed: int, bits: int, uniform: bool, rate: float | None
) -> Shield:
    """The shield that a study asks for; none that protects if it asks for nothing."""
    if params.client_level is None and params.record_level is None and params.secure_aggregation is None:
        return Open()
    return PrivacyShield(params, schema, seed=seed, bits=bits, uniform=uniform, rate=rate)


def _require_delta(delta: float, units: int, what: str, where: str) -> None:
    if delta * units >= 1:
        raise StudyError(
            f"delta {delta:g} is not below 1 / {units} {what}: publishing one of them at random would keep it",
            where=f"federation.privacy.{where}",
            fix=f"write delta: {0.1 / units:.1g}",
        )
