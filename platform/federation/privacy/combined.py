"""The privacy mechanism of a study: differential privacy of clients and patients, and secure aggregation.

The study switches on any of the three. At the client, in this order: gradients of patients are clipped and noise is
added, the update is clipped, the update is masked. At the server: the sum is unmasked, noise is added, the sum is
divided; accountants count executed rounds and steps.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from equipoise.platform.errors import FederationError, StudyError
from equipoise.platform.federation.aggregation.sums import WeightedMean
from equipoise.platform.federation.messages import (
    ClientManifest,
    ClientUpdate,
    TrainRequest,
    client_number,
)
from equipoise.platform.federation.privacy.accountant import Accountant, SampledGaussian
from equipoise.platform.federation.privacy.client_level import clipped, private_mean
from equipoise.platform.federation.privacy.fixed_point import FixedPoint, SaturationError
from equipoise.platform.federation.privacy.mechanism import (
    Accumulator,
    NoPrivacy,
    PrivacyMechanism,
    TooFewContributorsError,
)
from equipoise.platform.federation.privacy.noised_statistics import noised_manifest
from equipoise.platform.federation.privacy.params import (
    ClientLevelParams,
    NoisedStatistics,
    PrivacyParams,
    RecordLevelParams,
)
from equipoise.platform.federation.privacy.secure_aggregation import (
    MIN_CONTRIBUTORS,
    MaskedClients,
    MaskedSum,
    Participant,
    PublicKeys,
    SimulatedClients,
    enough,
    threshold_of,
)
from equipoise.platform.federation.privacy.shamir import Draw
from equipoise.platform.federation.vector import Schema, norm_of

if TYPE_CHECKING:
    from equipoise.platform.federation.clients.study_trainer import LocalSteps
    from equipoise.platform.federation.params import FederationParams

SECURE_AGGREGATION = "secure_aggregation"
#: Stream of the simulated clients' secrets.
SECRETS = 0x5EC2E7


#: Exchanges keys with the participants of a round: its number, their names, and the share of them that must answer.
MeetClients = Callable[[int, Sequence[str], float], MaskedClients]


class CombinedPrivacy:
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
        Fractional bits of fixed-point numbers.
    uniform
        Whether the study weights all clients equally.
    rate
        Probability with which a client takes part in a round, 1 if all do; needed for privacy of clients.
    secret
        Seed of noise and keys in place of ``seed``, outside a simulation: of the site whose half it is, or of the
        server.
    masked_clients
        At a server whose clients are elsewhere: exchanges keys with the participants of a round.
    participant
        At such a client: its side of the present round, if it has exchanged keys.

    Raises
    ------
    StudyError
        If privacy of clients is asked for without a rate.
    """

    identity = "PrivacyShield"

    def __init__(
        self,
        params: PrivacyParams,
        schema: Schema,
        *,
        seed: int,
        bits: int,
        uniform: bool,
        rate: float | None = None,
        secret: int | None = None,
        masked_clients: MeetClients | None = None,
        participant: Callable[[int], Participant] | None = None,
    ) -> None:
        if params.client_level is not None and rate is None:
            raise StudyError(
                "privacy of clients needs the probability with which a client takes part",
                where="federation.privacy.client_level",
                fix="write participation: {scheme: poisson, fraction: 0.5}, or scheme: all",
            )
        self.params, self.schema, self.bits = params, schema, bits
        self.seed = seed if secret is None else secret
        self._meet = masked_clients or self._simulated
        self._participant = participant
        self.uniform = uniform or params.client_level is not None
        self.rate = rate if params.client_level is not None else None
        self.every_round = params.client_level is not None
        self.differential = params.client_level is not None or params.record_level is not None
        self.dtype = "uint64" if params.secure_aggregation is not None else "float32"
        self.sums_only = params.secure_aggregation is not None or params.client_level is not None
        self.steps: LocalSteps | None = None
        if params.record_level is not None:
            from equipoise.platform.federation.privacy.record_level import PrivateTrainer

            self.steps = PrivateTrainer(params.record_level, secret)
        self.clients: Accountant | None = None
        if params.client_level is not None:
            self.clients = Accountant(params.client_level.delta, params.client_level.epsilon)
        self.patients: dict[str, Accountant] = {}
        self.sampling: dict[str, tuple[float, int]] = {}
        self.owners: dict[str, int] = {}
        self.round = 0
        self._masked_clients: MaskedClients | None = None

    def register(
        self, manifests: Mapping[str, ClientManifest], sampling: Mapping[str, tuple[float, int]]
    ) -> None:
        """Register the clients with the server half, once they have joined.

        Parameters
        ----------
        manifests
            What clients declared.
        sampling
            Client → sampling rate of patients and steps of a round
            (:func:`~equipoise.platform.federation.participation.sampling_plan`).

        Raises
        ------
        StudyError
            If delta is so large that publishing a random unit would satisfy it.
        """
        declared = manifests.values()
        self.owners = {g: sum(1 for m in declared if m.counts.get(g)) for g in self.schema.groups}
        if self.params.client_level is not None:
            _require_delta(self.params.client_level.delta, len(manifests), "clients", "client_level")
        if (record := self.params.record_level) is not None:
            most = max((m.n for m in declared), default=1)
            _require_delta(record.delta, most, "patients of a client", "record_level")
            self.sampling = dict(sampling)
            known = self.patients
            self.patients = {c: known.get(c) or self._account(record) for c in sorted(sampling)}

    # the client's half

    def declare(self, manifest: ClientManifest) -> ClientManifest:
        """With noise on the counts, if the study asks for it."""
        statistics = self.params.statistics
        if not isinstance(statistics, NoisedStatistics):
            return manifest
        return noised_manifest(manifest, statistics, seed=self.seed)

    def privatize(
        self, update: ClientUpdate, request: TrainRequest, weights: Mapping[str, float]
    ) -> ClientUpdate:
        """The update, clipped and masked; without scalars if they would reveal what the noise hides."""
        if request.kind != "fit":
            return update
        if self.params.client_level is not None:
            rounded = None if self.params.secure_aggregation is None else self.bits
            delta, _ = clipped(update.delta, self.params.client_level.clip, fraction_bits=rounded)
            update = dataclasses.replace(update, delta=delta, metrics={})
        if self.params.record_level is not None:
            update = dataclasses.replace(update, metrics={})
        if self.params.secure_aggregation is not None:
            update = dataclasses.replace(update, delta=self._masked(update, request, weights))
        return update

    def _masked(
        self, update: ClientUpdate, request: TrainRequest, weights: Mapping[str, float]
    ) -> np.ndarray:
        round_keys = request.privacy[SECURE_AGGREGATION]
        keys = {
            c: PublicKeys(bytes.fromhex(box), bytes.fromhex(mask))
            for c, (box, mask) in round_keys["keys"].items()
        }
        fixed = FixedPoint(self.bits, int(round_keys["summands"]))
        vector = np.zeros(self.schema.size, np.int64)
        for group, span in self.schema.spans:
            if weight := weights.get(group, 0.0):
                vector[span] = fixed.encode(update.delta[span], weight)
        if self._participant is not None:
            participant = self._participant(request.round)
        else:
            draw = self._draw(update.client, request.round)
            participant = Participant(update.client, request.round, self.schema.spans, draw)
        return participant.masked(vector.view(np.uint64), keys)

    def _draw(self, client: str, round_: int) -> Draw:
        """A client's random bytes for a round. In a simulation they are a function of the federation's seed; hospitals
        use those of their operating system, which the server does not know."""
        sequence = np.random.SeedSequence([self.seed, round_, client_number(client), SECRETS])
        return np.random.default_rng(sequence).bytes

    # the server's half

    def too_few(self, clients: Sequence[str]) -> str | None:
        """With secure aggregation, fewer clients than a revealed sum must have."""
        if self.params.secure_aggregation is None or len(clients) >= MIN_CONTRIBUTORS:
            return None
        return f"{len(clients)} of the {MIN_CONTRIBUTORS} clients that a masked sum must have"

    def open_round(self, round_: int, clients: Sequence[str]) -> Mapping[str, Any]:
        """Public keys of the participants, for secure aggregation."""
        self.round, self._masked_clients = round_, None
        if self.params.secure_aggregation is None or self.too_few(clients):
            return {}
        share = self.params.secure_aggregation.threshold
        self._masked_clients = self._meet(round_, clients, share)
        threshold = self._masked_clients.threshold
        keys = {c: [k.box.hex(), k.mask.hex()] for c, k in self._masked_clients.keys.items()}
        return {SECURE_AGGREGATION: {"keys": keys, "threshold": threshold, "summands": len(clients)}}

    def accumulator(self, schema: Schema, clients: Sequence[str]) -> Accumulator:
        """An accumulator for updates; it may be made before :meth:`open_round`, and is used after it."""
        inner: MaskedMean | WeightedMean = WeightedMean(schema)
        if self.params.secure_aggregation is not None:
            inner = MaskedMean(self, FixedPoint(self.bits, max(len(clients), 1)))
        return inner if self.params.client_level is None else NoisyMean(self, self.params.client_level, inner)

    def close_round(self, round_: int, asked: Mapping[str, int]) -> Mapping[str, float]:
        """Account for the round and the steps of all who were asked; epsilons for the history, of the worst client if
        each has one."""
        figures: dict[str, float] = {}
        if self.clients is not None:
            self.clients.spend(self._of_clients())
            figures["epsilon_clients"] = self.clients.spent()
        if self.params.record_level is not None:
            for client, requests in asked.items():
                self.patients[client].spend(self._of_patients(client), requests * self.sampling[client][1])
            figures["epsilon_patients"] = max((a.spent() for a in self.patients.values()), default=0.0)
        return figures

    def exhausted(self) -> str | None:
        """Why another round would exceed the privacy budget."""
        if self.clients is not None and not self.clients.allows(self._of_clients()):
            return (
                f"a further round would exceed the budget of clients, epsilon {self.clients.epsilon:g} "
                f"({self.clients.spent():.3g} spent)"
            )
        for client, account in self.patients.items():
            if not account.allows(self._of_patients(client), self.sampling[client][1]):
                return (
                    f"a further round would exceed the budget of the patients of {client}, epsilon "
                    f"{account.epsilon:g} ({account.spent():.3g} spent)"
                )
        return None

    def tight_epsilons(self) -> dict[str, float]:
        """Epsilons by privacy loss distributions, for the report; ``clients``, and every client's patients."""
        epsilons = {
            f"patients/{client}": account.tight_epsilon() for client, account in self.patients.items()
        }
        return epsilons | ({"clients": self.clients.tight_epsilon()} if self.clients is not None else {})

    def state_dict(self) -> dict[str, Any]:
        """The accountants."""
        patients = {client: account.state() for client, account in self.patients.items()}
        return {"clients": None if self.clients is None else self.clients.state(), "patients": patients}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        self.clients = None if state["clients"] is None else Accountant.from_state(state["clients"])
        self.patients = {
            client: Accountant.from_state(account) for client, account in state["patients"].items()
        }

    def masked_clients(self) -> MaskedClients:
        """The clients of the present round that exchanged keys."""
        if self._masked_clients is None:
            raise FederationError("a masked sum was requested before the round was opened")
        return self._masked_clients

    def _simulated(self, round_: int, clients: Sequence[str], share: float) -> MaskedClients:
        draws = {client: self._draw(client, round_) for client in clients}
        return SimulatedClients(draws, round_, self.schema.spans, threshold_of(share, len(clients)))

    def _account(self, record: RecordLevelParams) -> Accountant:
        """The account of a site's patients, with what was spent before training: on sums, and on declared counts."""
        account = Accountant(record.delta, record.epsilon)
        if isinstance(statistics := self.params.statistics, NoisedStatistics):
            account.spend(SampledGaussian(1.0, statistics.noise), 2)
        return account

    def _of_clients(self) -> SampledGaussian:
        level = self.params.client_level
        assert level is not None
        assert self.rate is not None
        return SampledGaussian(self.rate if level.adversary == "models" else 1.0, level.noise)

    def _of_patients(self, client: str) -> SampledGaussian:
        assert self.params.record_level is not None
        return SampledGaussian(self.sampling[client][0], self.params.record_level.noise)


class MaskedMean:
    """The mean of masked updates. Clients apply their weights; the server knows the sum of weights from the counts.

    A group with fewer contributors than a sum must have stays masked, and is not updated.
    """

    def __init__(self, privacy: CombinedPrivacy, fixed: FixedPoint) -> None:
        self.privacy, self.fixed = privacy, fixed
        self.sum: MaskedSum | None = None
        self.weights: dict[str, dict[str, float]] = {}

    def add(
        self, values: np.ndarray, weights: Mapping[str, float], factor: float = 1.0, *, client: str = ""
    ) -> None:
        """Add a masked vector; ``weights`` enter the denominator only."""
        if factor != 1:
            raise FederationError("a masked update cannot be scaled by the server")
        if self.sum is None:
            schema, clients = self.privacy.schema, self.privacy.masked_clients()
            self.sum = MaskedSum(
                schema.size, schema.spans, clients.keys, clients.threshold, self.privacy.round
            )
        self.sum.add(client, values)
        for group, weight in weights.items():
            if weight:
                self.weights.setdefault(group, {})[client] = float(weight)

    def totals(self) -> np.ndarray:
        """``[P]`` int64 exact weighted sum of the updates of clients that answered; 0 in groups that stay masked.

        Raises
        ------
        TooFewContributorsError
            If fewer clients than the threshold answered.
        """
        if self.sum is None:
            return np.zeros(self.privacy.schema.size, np.int64)
        clients = self.privacy.masked_clients()
        return self.sum.unmasked(clients.reveal(self.sum.survivors, self.sum.dropped, self.weights))

    def withheld(self) -> Mapping[str, str]:
        """Groups with too few contributors."""
        answered = () if self.sum is None else self.sum.survivors
        return {
            group: f"{len(self.weights[group])} of the {MIN_CONTRIBUTORS} contributors that a masked sum must have"
            for group in self.privacy.schema.groups
            if self.weights.get(group) and not enough(self.weights[group], answered)
        }

    def sums(self) -> np.ndarray:
        """``[P]`` float64 weighted sum."""
        return self.fixed.decode(self.totals())

    def result(self) -> np.ndarray:
        """``[P]`` float32, the mean of the rounded updates."""
        schema, total = self.privacy.schema, self.totals()
        mean = np.zeros(schema.size, np.float32)
        for group, span in schema.spans:
            if weight := math.fsum(self.weights.get(group, {}).values()):
                mean[span] = self.fixed.decode(total[span], weight)
        return mean


class NoisyMean:
    """The mean with noise and a fixed denominator, from any kind of sum."""

    def __init__(
        self, privacy: CombinedPrivacy, params: ClientLevelParams, inner: MaskedMean | WeightedMean
    ) -> None:
        self.privacy, self.params, self.inner = privacy, params, inner

    def add(
        self, values: np.ndarray, weights: Mapping[str, float], factor: float = 1.0, *, client: str = ""
    ) -> None:
        """Add a clipped update.

        Raises
        ------
        SaturationError
            If it is longer than the clipping norm, or has a weight above one.
        """
        if factor != 1 or any(weight not in (0, 1) for weight in weights.values()):
            raise SaturationError(f"{client} has a weight of more than one in a sum with privacy of clients")
        if self.privacy.dtype == "float32" and norm_of(values) > self.params.clip:
            raise SaturationError(
                f"{client} sent an update longer than the clipping norm {self.params.clip:g}"
            )
        self.inner.add(values, weights, client=client)

    def withheld(self) -> Mapping[str, str]:
        """None: a group whose sum stays masked gets its noise like every other."""
        return {}

    def result(self) -> np.ndarray:
        """``[P]`` float32; noise alone where the sum stays masked."""
        privacy, rate = self.privacy, self.privacy.rate
        assert rate is not None
        expected = privacy.schema.expand({g: rate * max(count, 1) for g, count in privacy.owners.items()})
        expected[privacy.schema.frozen] = 0
        return private_mean(
            self._sums(), self.params.clip, self.params.noise, expected, privacy.seed, privacy.round
        )

    def _sums(self) -> np.ndarray:
        try:
            return self.inner.sums()
        except TooFewContributorsError:
            return np.zeros(self.privacy.schema.size)


def build_privacy(
    params: PrivacyParams,
    schema: Schema,
    *,
    seed: int,
    bits: int,
    uniform: bool,
    rate: float | None,
    **remote: Any,
) -> PrivacyMechanism:
    """The privacy mechanism of a study; :class:`NoPrivacy` if it asks for none.

    Parameters
    ----------
    remote
        Outside a simulation: ``secret``, ``masked_clients``, ``participant`` of :class:`CombinedPrivacy`.
    """
    if params.client_level is None and params.record_level is None and params.secure_aggregation is None:
        return NoPrivacy()
    return CombinedPrivacy(params, schema, seed=seed, bits=bits, uniform=uniform, rate=rate, **remote)


def privacy_of(params: FederationParams, schema: Schema, seed: int, **remote: Any) -> PrivacyMechanism:
    """The privacy mechanism of a ``federation`` section; ``remote`` as for :func:`build_privacy`."""
    rates = {"poisson": params.participation.fraction, "all": 1.0}
    return build_privacy(
        params.privacy,
        schema,
        seed=seed,
        bits=params.fixed_point_bits,
        uniform=params.weights == "uniform",
        rate=rates.get(params.participation.scheme),
        **remote,
    )


def _require_delta(delta: float, units: int, what: str, where: str) -> None:
    if delta * units >= 1:
        raise StudyError(
            f"delta {delta:g} is not below 1 / {units} {what}: publishing one of them at random would satisfy it",
            where=f"federation.privacy.{where}",
            fix=f"write delta: {0.1 / units:.1g}",
        )
