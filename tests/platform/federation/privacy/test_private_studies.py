"""The settings under ``federation.privacy`` of a study take effect."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from equipoise.platform.errors import StudyError
from equipoise.platform.federation.params import FederationParams
from equipoise.platform.federation.simulation.simulation import Simulation

ONE_STEP: dict[str, Any] = {
    "local": {"steps": 1, "optimizer": "sgd", "lr": 0.1, "batch": "full"},
    "model_params": {"dim": 4, "hidden": 2, "layers": 1, "dropout": 0.0},
    "rounds": 3,
}
OPEN_GATE = {"norm_factor": None}
Make = Callable[..., Simulation]


def test_masked_sums_are_the_sums(federate: Make) -> None:
    plain = federate(**ONE_STEP, validation=OPEN_GATE).run()
    masked = federate(**ONE_STEP, validation=OPEN_GATE, privacy={"secure_aggregation": {}}).run()
    np.testing.assert_allclose(masked.vector, plain.vector, atol=1e-6)
    assert not np.array_equal(plain.vector, federate(**ONE_STEP).initial)


def test_noise_is_added_and_counted(federate: Make) -> None:
    private = {"client_level": {"clip": 0.5, "noise": 1.0, "delta": 0.01}}
    settings = {"weights": "uniform", "participation": {"scheme": "poisson", "fraction": 0.9}}
    open_, noisy = (federate(**ONE_STEP, **settings, **extra).run() for extra in ({}, {"privacy": private}))
    spent = [row["epsilon_clients"] for row in noisy.history]
    assert spent == sorted(spent)
    assert spent[0] > 0
    assert not np.allclose(noisy.vector, open_.vector, atol=1e-3)


def test_a_budget_ends_the_federation(federate: Make) -> None:
    private = {"client_level": {"clip": 0.5, "noise": 1.0, "delta": 0.01, "epsilon": 6.0}}
    settings = ONE_STEP | {"rounds": 50, "weights": "uniform"}
    result = federate(**settings, participation={"scheme": "poisson", "fraction": 0.9}, privacy=private).run()
    assert 0 < len(result.history) < 50
    assert result.history[-1]["epsilon_clients"] <= 6.0


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"privacy": {"secure_aggregation": {}}, "server_aggregation": "krum"}, "krum"),
        ({"privacy": {"client_level": {}}, "weights": "uniform"}, "scheme: poisson"),
        ({"privacy": {"client_level": {}}, "participation": {"scheme": "poisson"}}, "uniform"),
    ],
)
def test_promises_that_cannot_be_kept_are_refused(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        FederationParams.model_validate(settings)


def test_cox_cannot_be_made_private_by_patient(federate: Make) -> None:
    with pytest.raises(StudyError, match="OS"):
        federate(**ONE_STEP, privacy={"record_level": {}})
