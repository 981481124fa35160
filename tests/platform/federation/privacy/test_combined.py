"""Privacy inside a federation: what leaves a client, what the server learns, noise and budgets."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from equipoise.datasets.tables.tasks import SurvivalTask
from equipoise.platform.errors import FederationError, StudyError
from equipoise.platform.federation.aggregation.mean import Mean
from equipoise.platform.federation.aggregation.protocol import StatelessAggregation
from equipoise.platform.federation.aggregation.sums import WeightedMean
from equipoise.platform.federation.entries import MeanParams, ServerParams
from equipoise.platform.federation.messages import ClientManifest, ClientUpdate, TrainRequest
from equipoise.platform.federation.objective import Objective
from equipoise.platform.federation.params import FederationParams
from equipoise.platform.federation.participation import sampling_plan
from equipoise.platform.federation.privacy.accountant import SampledGaussian
from equipoise.platform.federation.privacy.combined import CombinedPrivacy
from equipoise.platform.federation.privacy.combined import build_privacy as asked_for
from equipoise.platform.federation.privacy.fixed_point import FixedPoint, SaturationError
from equipoise.platform.federation.privacy.mechanism import NoPrivacy, PrivacyMechanism
from equipoise.platform.federation.privacy.params import PrivacyParams
from equipoise.platform.federation.server.audit_log import AuditLog
from equipoise.platform.federation.server.server import Server
from equipoise.platform.federation.server.validator import UpdateValidator
from equipoise.platform.federation.simulation.simulation import Simulation
from equipoise.platform.federation.strategies.strategy import Strategy
from equipoise.platform.federation.vector import Schema, Segment, norm_of
from equipoise.platform.training.batches import CaseList
from equipoise.platform.training.build import build_model
from equipoise.platform.training.params import TrainingParams
from equipoise.platform.training.targets import Targets, fit_targets

SIZE = 200
SCHEMA = Schema(
    (
        Segment("trunk", (150,), "shared", "weight", 0, 150, True),
        Segment("msi", (30,), "task:msi", "weight", 150, 180, True),
        Segment("hrd", (20,), "task:hrd", "weight", 180, 200, True),
    )
)
COUNTS = {
    "a": {"shared": 40, "task:msi": 40},
    "b": {"shared": 25, "task:hrd": 25},
    "c": {"shared": 10, "task:msi": 7},
    "d": {"shared": 31, "task:msi": 31},
}


def build_privacy(
    *, uniform: bool = False, rate: float | None = None, schema: Schema = SCHEMA, **params: Any
) -> CombinedPrivacy:
    mechanism = CombinedPrivacy(
        PrivacyParams.model_validate(params), schema, seed=5, bits=32, uniform=uniform, rate=rate
    )
    manifests = {c: ClientManifest(c, counts["shared"], {}, {}, counts) for c, counts in COUNTS.items()}
    mechanism.register(manifests, dict.fromkeys(COUNTS, (0.5, 4)))
    return mechanism


def updates() -> list[ClientUpdate]:
    rng, result = np.random.default_rng(0), []
    for client, counts in COUNTS.items():
        owned = SCHEMA.expand(dict.fromkeys(counts, 1.0))
        delta = (owned * rng.normal(size=SIZE)).astype(np.float32)
        result.append(
            ClientUpdate("h", 0, client, "n", delta, counts, counts["shared"], 3, {"loss/msi": 0.5})
        )
    return result


def request(mechanism: CombinedPrivacy, round_: int = 0, clients: str = "abcd") -> TrainRequest:
    told = json.loads(json.dumps(mechanism.open_round(round_, list(clients))))
    return TrainRequest(round_, "fit", 5, 0.1, 1, None, np.zeros(SIZE, np.float32), {}, told)


def weights_of(update: ClientUpdate, uniform: bool = False) -> dict[str, float]:
    """Counts of patients, or 1 for each client that trains a group."""
    return {g: float(n > 0) if uniform else float(n) for g, n in update.counts.items()}


def summed(mechanism: CombinedPrivacy, answers: list[ClientUpdate], uniform: bool = False) -> np.ndarray:
    accumulator = mechanism.accumulator(SCHEMA, list("abcd"))
    for answer in answers:
        accumulator.add(answer.delta, weights_of(answer, uniform), client=answer.client)
    return accumulator.result()


@pytest.mark.parametrize("uniform", [False, True])
@pytest.mark.parametrize("dropped", ["", "b"])
def test_masked_federations_are_open_ones_but_for_rounding(uniform: bool, dropped: str) -> None:
    mechanism = build_privacy(uniform=uniform, secure_aggregation={"threshold": 0.51})
    asked = request(mechanism)
    plain = WeightedMean(SCHEMA)
    answers = []
    for update in updates():
        if update.client != dropped:
            answers.append(mechanism.privatize(update, asked, weights_of(update, uniform)))
            plain.add(update.delta, weights_of(update, uniform))
    masked = summed(mechanism, answers, uniform)
    np.testing.assert_array_equal(masked, summed(mechanism, answers[::-1], uniform))
    known = ~SCHEMA.mask(["task:hrd"])  # which one site owns: its sum stays masked
    np.testing.assert_allclose(masked[known], plain.result()[known], rtol=1e-6, atol=1e-9)
    assert not masked[~known].any()


def test_a_group_of_one_owner_is_not_revealed_and_said() -> None:
    mechanism = build_privacy(secure_aggregation={"threshold": 0.51})
    asked = request(mechanism)
    accumulator = mechanism.accumulator(SCHEMA, list("abcd"))
    for update in updates():
        sent = mechanism.privatize(update, asked, weights_of(update))
        accumulator.add(sent.delta, dict(update.counts), client=update.client)
    mean = accumulator.result()
    assert mean[SCHEMA.mask(["shared", "task:msi"])].all()
    assert not mean[SCHEMA.mask(["task:hrd"])].any()
    (reason,) = accumulator.withheld().values()
    assert list(accumulator.withheld()) == ["task:hrd"]
    assert "1 of the 3 contributors" in reason


def test_what_leaves_a_client_is_masked() -> None:
    mechanism = build_privacy(secure_aggregation={})
    plain = updates()[0]
    sent = mechanism.privatize(plain, request(mechanism), weights_of(plain, mechanism.uniform))
    again = ClientUpdate.from_bytes(sent.to_bytes())
    assert again.delta.dtype == np.dtype(mechanism.dtype) == np.uint64
    # The group it did not train is masked as well: zeros would be seen.
    assert len(np.unique(again.delta)) == SIZE
    assert plain.delta.tobytes() not in sent.to_bytes()
    encoded = FixedPoint(32, 4).encode(plain.delta[:150], 40.0)
    assert not np.intersect1d(encoded.view(np.uint64), again.delta).size


def test_saturation_is_refused_at_the_client_where_the_server_cannot_see_it() -> None:
    mechanism = build_privacy(secure_aggregation={})
    huge = updates()[0]
    object.__setattr__(huge, "delta", np.full(SIZE, 1e9, np.float32))
    with pytest.raises(SaturationError):
        mechanism.privatize(huge, request(mechanism), weights_of(huge, mechanism.uniform))


def test_too_few_survivors_lose_the_round() -> None:
    mechanism = build_privacy(secure_aggregation={"threshold": 1.0})
    asked = request(mechanism)
    with pytest.raises(FederationError, match="needed for a sum"):
        summed(
            mechanism,
            [
                mechanism.privatize(update, asked, weights_of(update, mechanism.uniform))
                for update in updates()[:3]
            ],
        )


def test_the_server_cannot_scale_a_masked_update() -> None:
    mechanism = build_privacy(secure_aggregation={})
    sent = mechanism.privatize(updates()[0], request(mechanism), weights_of(updates()[0]))
    with pytest.raises(FederationError, match="cannot be scaled"):
        mechanism.accumulator(SCHEMA, list("abcd")).add(sent.delta, {}, 0.5, client="a")


@pytest.mark.parametrize("secure", [False, True])
def test_client_level_clips_adds_noise_once_and_divides_by_what_is_expected(secure: bool) -> None:
    params: dict[str, Any] = {"client_level": {"clip": 0.5, "noise": 1e-6, "delta": 0.1}}
    if secure:
        params["secure_aggregation"] = {}
    mechanism = build_privacy(rate=0.5, **params)
    assert mechanism.uniform
    assert mechanism.rate == 0.5
    asked = request(mechanism)
    answers = [
        mechanism.privatize(update, asked, weights_of(update, mechanism.uniform)) for update in updates()
    ]
    assert all(answer.metrics == {} for answer in answers)
    result = summed(mechanism, answers, uniform=True)
    clip = [u.delta * (0.5 / norm_of(u.delta)) for u in updates()]
    owners = SCHEMA.expand({"shared": 4, "task:msi": 3, "task:hrd": 1})
    expected = np.sum(clip, axis=0) / (0.5 * owners)
    expected[SCHEMA.mask(["task:hrd"])] *= not secure  # the sum of one owner stays masked: noise alone
    np.testing.assert_allclose(result, expected, atol=1e-5)
    assert result.all()


def test_noise_hides_one_client() -> None:
    mechanism = build_privacy(rate=1.0, client_level={"clip": 0.5, "noise": 4.0, "delta": 0.1})
    asked = request(mechanism)
    answers = [
        mechanism.privatize(update, asked, weights_of(update, mechanism.uniform)) for update in updates()
    ]
    whole, without = summed(mechanism, answers, uniform=True), summed(mechanism, answers[1:], uniform=True)
    # Both sums have noise of their own, also with one seed; what the client adds is not longer than 0.5.
    owners = SCHEMA.expand({"shared": 4, "task:msi": 3, "task:hrd": 1})
    expected = np.sqrt(2 * np.sum((4.0 * 0.5 / owners) ** 2))
    assert norm_of(whole - without) == pytest.approx(expected, rel=0.15)
    assert expected > 30 * 0.5


def test_a_client_that_does_not_clip_or_wants_to_count_more_is_rejected() -> None:
    mechanism = build_privacy(rate=0.5, client_level={"clip": 0.5, "delta": 0.1})
    accumulator = mechanism.accumulator(SCHEMA, list("abcd"))
    with pytest.raises(SaturationError, match="longer than the clipping norm"):
        accumulator.add(updates()[0].delta, {"shared": 1.0}, client="a")
    with pytest.raises(SaturationError, match="more than one"):
        accumulator.add(np.zeros(SIZE, np.float32), {"shared": 40.0}, client="a")


def test_rounds_are_counted_and_the_budget_ends_the_federation() -> None:
    level = {"clip": 1, "noise": 2.0, "delta": 0.01, "epsilon": 6.0}
    mechanism = build_privacy(rate=0.5, client_level=level | {"adversary": "models"})
    rounds = 0
    while mechanism.exhausted() is None:
        figures = mechanism.close_round(rounds, {})
        rounds += 1
    assert rounds == mechanism.clients.executed[SampledGaussian(0.5, 2.0)] > 1
    assert figures["epsilon_clients"] <= 6.0 < mechanism.clients.after(SampledGaussian(0.5, 2.0), 1)
    assert "budget of clients" in mechanism.exhausted()
    assert mechanism.tight_epsilons()["clients"] < figures["epsilon_clients"]
    again = build_privacy(rate=0.5, client_level=level | {"adversary": "models"})
    again.load_state_dict(json.loads(json.dumps(mechanism.state_dict())))
    assert again.exhausted() == mechanism.exhausted()


def test_sampling_amplifies_only_where_participation_is_not_seen() -> None:
    seen = build_privacy(rate=0.1, client_level={"noise": 2.0, "delta": 0.01})
    unseen = build_privacy(rate=0.1, client_level={"noise": 2.0, "delta": 0.01, "adversary": "models"})
    for mechanism in (seen, unseen):
        mechanism.close_round(0, {})
    assert seen.clients.executed == {SampledGaussian(1.0, 2.0): 1}
    assert unseen.clients.executed == {SampledGaussian(0.1, 2.0): 1}
    assert seen.clients.spent() > 3 * unseen.clients.spent()


def test_what_promises_nothing_is_refused() -> None:
    with pytest.raises(StudyError, match="probability with which a client"):
        build_privacy(client_level={})
    with pytest.raises(StudyError, match="1 / 4 clients"):
        build_privacy(rate=0.5, client_level={"delta": 0.5})
    with pytest.raises(StudyError, match="1 / 40 patients"):
        build_privacy(record_level={"delta": 0.03})


def test_a_study_without_privacy_has_an_open_shield() -> None:
    known: dict[str, Any] = {"seed": 0, "bits": 32, "uniform": False, "rate": None}
    assert type(asked_for(PrivacyParams.model_validate({}), SCHEMA, **known)) is NoPrivacy
    masked = PrivacyParams.model_validate({"secure_aggregation": {}})
    assert asked_for(masked, SCHEMA, **known).dtype == "uint64"


@pytest.fixture(scope="module")
def hazard(sites: dict[str, CaseList]) -> Targets:
    """Survival in discrete time, whose loss has a separate term per patient."""
    task = SurvivalTask(
        name="OS",
        time={"column": "t", "unit": "days"},
        event={"column": "e", "event_value": "dead"},
        likelihood="discrete_hazard",
        bins=3,
        main=True,
    )
    return fit_targets([task], [case for cases in sites.values() for case in cases])


@pytest.mark.filterwarnings("ignore:torch.searchsorted")
def test_patients_are_protected_in_a_whole_federation_and_steps_are_counted(
    sites: dict[str, CaseList], hazard: Targets
) -> None:
    model_params = {"dim": 4, "hidden": 2, "layers": 1, "dropout": 0.25}
    factory = partial(build_model, "concat", model_params, hazard.shape, hazard.heads, seed=1)
    schema = Schema.of(factory(), ["OS"])

    def run(noise: float) -> tuple[Any, CombinedPrivacy]:
        wanted = PrivacyParams.model_validate(
            {"record_level": {"clip": 0.5, "noise": noise, "delta": 1e-2}, "secure_aggregation": {}}
        )
        mechanism = CombinedPrivacy(wanted, schema, seed=3, bits=32, uniform=False)
        known = {c: ClientManifest(c, len(cases), {}, {}, {}) for c, cases in sites.items()}
        mechanism.register(known, {c: sampling_plan(len(cases), 3, 2, None) for c, cases in sites.items()})
        local = {"epochs": 2, "optimizer": "sgd", "lr": 0.05, "batch": 3}
        params = {
            "rounds": 2,
            "local": local,
            "backend": "inline",
            "min_n": 1,
            "validation": {"norm_factor": None},
        }
        federation = Simulation(
            factory,
            hazard,
            sites,
            FederationParams.model_validate(params),
            seed=3,
            training=TrainingParams.model_validate({"device": "cpu"}),
            privacy=mechanism,
        )
        return federation.run(), mechanism

    result, mechanism = run(1.0)
    rows = [row for row in result.audit_log.rows if row["verdict"] == "accepted"]
    assert len(rows) == 2 * len(sites)
    assert all(row["keys"] == ["delta"] for row in rows)  # no training loss leaves
    for client, cases in sites.items():
        rate, steps = sampling_plan(len(cases), 3, 2, None)
        assert mechanism.patients[client].executed == {SampledGaussian(rate, 1.0): 2 * steps}
    spent = [account.spent() for account in mechanism.patients.values()]
    assert result.history[-1]["epsilon_patients"] == max(spent)
    again, _ = run(1.0)
    np.testing.assert_array_equal(again.vector, result.vector)
    louder, _ = run(50.0)
    assert norm_of(louder.vector - result.vector) > 5 * norm_of(result.vector - _initial(schema, factory))


def _initial(schema: Schema, factory: Callable[[], Any]) -> np.ndarray:
    return schema.flatten(factory())


class Halved(StatelessAggregation):
    """A weighted sum by what its entry says, and yet not one that the server can take as a sum."""

    def aggregate(self, updates: Any, schema: Schema, weights: Any) -> np.ndarray:
        return np.asarray(sum(update.delta for update in updates) / 2, np.float32)


class Talkative(Strategy):
    extra_arrays = frozenset({"features"})


@pytest.mark.parametrize(
    "params", [{"secure_aggregation": {}}, {"client_level": {"clip": 1, "noise": 1, "delta": 0.001}}]
)
def test_classes_that_use_more_than_the_protected_sum_are_refused(params: dict[str, Any]) -> None:
    """Whatever their entries say: masks would be averaged, noise left out, a vector sent as it is."""
    private = build_privacy(rate=0.5, **params)
    fedavg, mean = Strategy(ServerParams()), Mean(MeanParams())

    def serve(strategy: Strategy, aggregation: Any, privacy: PrivacyMechanism) -> Server:
        return Server(
            SCHEMA,
            np.zeros(SIZE, np.float32),
            strategy=strategy,
            server_aggregation=aggregation,
            privacy=privacy,
            validator=UpdateValidator(),
            audit_log=AuditLog(),
            manifests={},
            seed=5,
            objective=Objective.of({}, SCHEMA.groups),
            min_clients=1,
        )

    serve(fedavg, mean, private)
    with pytest.raises(FederationError, match="Halved aggregates single updates"):
        serve(fedavg, Halved(MeanParams()), private)
    with pytest.raises(FederationError, match="Talkative sends features"):
        serve(Talkative(ServerParams()), mean, private)
    for open_to_all in (NoPrivacy(), build_privacy(record_level={"clip": 1, "noise": 1, "delta": 0.001})):
        serve(Talkative(ServerParams()), Halved(MeanParams()), open_to_all)
