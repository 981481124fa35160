"""The settings under ``federation.privacy`` of a study take effect."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from equipoise.platform.errors import FederationError, StudyError
from equipoise.platform.federation.engine import Federation
from equipoise.platform.federation.params import FederationParams
from equipoise.platform.federation.simulation.simulation import Simulation
from equipoise.platform.training.batches import CaseList

ONE_STEP: dict[str, Any] = {
    "local": {"steps": 1, "optimizer": "sgd", "lr": 0.1, "batch": "full"},
    "model_params": {"dim": 4, "hidden": 2, "layers": 1, "dropout": 0.0},
    "rounds": 3,
}
OPEN_GATE = {"norm_factor": None}
Make = Callable[..., Simulation]


def test_masked_sums_are_the_sums(federate: Make) -> None:
    settings = ONE_STEP | {"rounds": 1, "validation": OPEN_GATE}
    plain = federate(**settings).run()
    masked = federate(**settings, privacy={"secure_aggregation": {}}).run()
    # D alone lacks RNA: the token in its place has one contributor, and its sum is not revealed.
    single = federate().schema.mask(["absent:rna"])
    np.testing.assert_allclose(masked.vector[~single], plain.vector[~single], atol=1e-6)
    assert np.array_equal(masked.vector[single], federate(**ONE_STEP).initial[single])
    assert not np.array_equal(plain.vector[single], masked.vector[single])
    noted = [row for row in masked.audit_log.rows if row["verdict"] == "withheld"]
    assert [row["round"] for row in noted] == [0]
    assert all("absent:rna: 1 of the 3" in row["reason"] for row in noted)
    assert not np.array_equal(plain.vector, federate(**ONE_STEP).initial)


def test_noise_is_added_and_counted(federate: Make) -> None:
    private = {"client_level": {"clip": 0.5, "noise": 1.0, "delta": 0.01}, "statistics": "public"}
    settings = {"weights": "uniform", "participation": {"scheme": "poisson", "fraction": 0.9}}
    settings |= {"validation": OPEN_GATE}
    open_, noisy = (federate(**ONE_STEP, **settings, **extra).run() for extra in ({}, {"privacy": private}))
    spent = [row["epsilon_clients"] for row in noisy.history]
    assert spent == sorted(spent)
    assert spent[0] > 0
    assert not np.allclose(noisy.vector, open_.vector, atol=1e-3)


def test_a_budget_ends_the_federation(federate: Make) -> None:
    private = {
        "client_level": {"clip": 0.5, "noise": 1.0, "delta": 0.01, "epsilon": 12.0},
        "statistics": "public",
    }
    settings = ONE_STEP | {"rounds": 50, "weights": "uniform", "validation": OPEN_GATE}
    result = federate(**settings, participation={"scheme": "poisson", "fraction": 0.9}, privacy=private).run()
    assert 0 < len(result.history) < 50
    assert result.history[-1]["epsilon_clients"] <= 12.0


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"privacy": {"secure_aggregation": {}}, "server_aggregation": "krum"}, "krum"),
        ({"privacy": {"client_level": {}}, "weights": "uniform"}, "norm_factor: null"),
        ({"privacy": {"client_level": {}}, "participation": {"min_clients": 2}}, "noisy step"),
        ({"privacy": {"client_level": {}}, "participation": {"scheme": "poisson"}}, "uniform"),
    ],
)
def test_promises_that_cannot_be_kept_are_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        FederationParams.model_validate(settings)


def test_a_round_that_nobody_joined_is_noisy_like_every_other(federate: Make) -> None:
    """Poisson samples of four clients are empty now and then; heads are owned by some clients only."""
    seen: list[np.ndarray] = []
    federation = federate(
        **ONE_STEP | {"rounds": 12},
        seed=5,
        weights="uniform",
        participation={"scheme": "poisson", "fraction": 0.3},
        validation=OPEN_GATE,
        privacy={"client_level": {"clip": 1, "noise": 10.0, "delta": 1e-2}, "statistics": "public"},
        extra={"on_round": lambda row: seen.append(server().vector.copy())},
    )
    engines: list[Federation] = []

    def server() -> Any:
        return engines[0].server

    original = Federation.run

    def run(self: Federation) -> Any:
        engines.append(self)
        return original(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Federation, "run", run)
        result = federation.run()
    joined = [row["accepted"] for row in result.history]
    assert 0 in joined  # a round that nobody joined, and later ones that go on
    for before, after in itertools.pairwise([federation.initial, *seen]):
        assert (after != before).all()
    lengths = [row["update_norm"] for row in result.history]
    assert max(lengths) < 3 * min(lengths)
    spent = [row["epsilon_clients"] for row in result.history]
    assert np.all(np.diff(spent) > 0)


def test_too_few_clients_skip_a_round_and_do_not_end_the_federation(federate: Make) -> None:
    """Of four clients, drop-outs leave fewer than three in some rounds; the others go on."""
    result = federate(
        **ONE_STEP | {"rounds": 12},
        seed=1,
        validation=OPEN_GATE,
        clock={"failures": 0.4},
        privacy={"secure_aggregation": {"threshold": 0.51}},
        exclude_after=1000,
    ).run()
    assert len(result.history) == 12
    for row in result.history:
        skipped = bool(row.get("skipped"))
        assert skipped == (row["accepted"] < 3), row
        assert (row["update_norm"] == 0) == skipped
    skips = [row["round"] for row in result.audit_log.rows if row["verdict"] == "skipped"]
    assert skips == [int(row["round"]) - 1 for row in result.history if row.get("skipped")]
    assert 0 < len(skips) < 12
    assert any(text.startswith("skipped: 2 of 3") for text in result.audit_log.withheld())
    assert "" not in result.audit_log.totals()


def test_small_samples_are_skipped_and_a_federation_without_any_sum_is_an_error(
    federate: Make, sites: dict[str, CaseList]
) -> None:
    settings = ONE_STEP | {"validation": OPEN_GATE, "privacy": {"secure_aggregation": {}}}
    one_each = {"participation": {"scheme": "uniform", "fraction": 0.5}}
    with pytest.raises(FederationError, match="all 3 rounds were skipped"):
        federate(**settings, **one_each).run()
    with pytest.raises(FederationError, match="no round is possible: 2 of the 3"):
        federate(**settings, clients={name: sites[name] for name in "AB"}).run()
    with_noise: dict[str, Any] = {
        "client_level": {"clip": 0.5, "noise": 1.0, "delta": 0.01},
        "secure_aggregation": {},
    }
    with_noise["statistics"] = "public"
    chosen = {"participation": {"scheme": "poisson", "fraction": 0.3}, "weights": "uniform"}
    result = federate(**settings | {"privacy": with_noise}, **chosen).run()
    assert any(row.get("skipped") for row in result.history)
    assert all(row["update_norm"] > 0 for row in result.history)


def test_cox_cannot_be_made_private_by_patient(federate: Make) -> None:
    with pytest.raises(StudyError, match="OS"):
        federate(**ONE_STEP, privacy={"record_level": {}, "statistics": "public"})
