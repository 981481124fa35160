"""Incompatible settings are refused with a reason; compatible ones are not."""

import subprocess
import sys
from typing import Any

import pytest
from pydantic import ValidationError

from equipoise.platform.federation.privacy.compatibility import refusals
from equipoise.platform.federation.privacy.params import PrivacyParams
from equipoise.platform.registry import entries, get

SECURE = PrivacyParams.model_validate({"secure_aggregation": {}})
CLIENTS = PrivacyParams.model_validate({"client_level": {}, "statistics": "public"})
RECORDS = PrivacyParams.model_validate({"record_level": {}, "statistics": "public"})
ALL = PrivacyParams.model_validate(
    {"secure_aggregation": {}, "client_level": {}, "record_level": {}, "statistics": "public"}
)
UNSEEN = PrivacyParams.model_validate({"client_level": {"adversary": "models"}, "statistics": "public"})
FITS: dict[str, Any] = {
    "server_aggregation": get("server_aggregations", "mean"),
    "strategy": get("strategies", "fedavg"),
    "uniform_weights": True,
}


@pytest.mark.parametrize("privacy", [PrivacyParams.model_validate({}), SECURE, CLIENTS, RECORDS, ALL])
def test_what_goes_together(privacy: PrivacyParams) -> None:
    assert refusals(privacy, **FITS) == []


@pytest.mark.parametrize(
    ("privacy", "changes", "reason"),
    [
        *(
            (SECURE, {"server_aggregation": get("server_aggregations", name)}, "needs single updates")
            for name in entries("server_aggregations")
            if name != "mean"
        ),
        *(
            (CLIENTS, {"server_aggregation": get("server_aggregations", name)}, "not bounded")
            for name in entries("server_aggregations")
            if name != "mean"
        ),
        (SECURE, {"norm_factor": True}, "clients clip their updates themselves"),
        (SECURE, {"max_norm": True}, "clients clip their updates themselves"),
        (CLIENTS, {"norm_factor": True}, "must not decide about another's"),
        (CLIENTS, {"min_clients": 2}, "every round takes its noisy step"),
        (CLIENTS, {"participation": "size"}, "different chances"),
        (UNSEEN, {"participation": "all"}, "without drawing everybody does"),
        (SECURE, {"strategy": get("strategies", "fedbuff")}, "masks cancel within a round"),
        (SECURE, {"strategy": get("strategies", "cyclic")}, "nothing to mask"),
        (SECURE, {"strategy": get("strategies", "scaffold")}, "second vector"),
        (SECURE, {"strategy": get("strategies", "fednova")}, "at the server"),
        (CLIENTS, {"uniform_weights": False}, "use uniform weights"),
        (CLIENTS, {"strategy": get("strategies", "scaffold")}, "second vector"),
        (CLIENTS, {"strategy": get("strategies", "fednova")}, "all have to count equally"),
        (CLIENTS, {"strategy": get("strategies", "fedbuff")}, "rounds, each with its noise"),
        (CLIENTS, {"strategy": get("strategies", "cyclic")}, "without a sum"),
        (SECURE, {"max_share": 0.3}, "only their sum is known"),
        (CLIENTS, {"max_share": 0.3}, "only their sum is known"),
        (RECORDS, {"strategy": get("strategies", "moon")}, "compares the features of patients"),
    ],
)
def test_what_excludes_each_other(privacy: PrivacyParams, changes: dict[str, Any], reason: str) -> None:
    (refusal,) = refusals(privacy, **(FITS | changes))
    assert reason in refusal


def test_all_reasons_are_given_at_once() -> None:
    assert (
        len(
            refusals(
                ALL,
                **FITS
                | {"server_aggregation": get("server_aggregations", "krum")}
                | {"uniform_weights": False, "norm_factor": True},
            )
        )
        == 4
    )


def test_amplification_is_not_claimed_where_participants_see_each_other() -> None:
    privacy = PrivacyParams.model_validate(
        {"secure_aggregation": {}, "client_level": {"adversary": "models"}, "statistics": "public"}
    )
    (refusal,) = refusals(privacy, **FITS | {"participation": "poisson"})
    assert "each other's keys" in refusal
    assert refusals(UNSEEN, **FITS | {"participation": "poisson"}) == []
    assert refusals(CLIENTS, **FITS | {"participation": "poisson", "max_norm": True}) == []


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"record_level": {}}, "exact ones reveal patients"),
        ({"client_level": {}}, "statistics: public"),
        ({"client_level": {}, "statistics": {"noise": 1}}, "hides patients, not clients"),
        ({"secure_aggregation": {}, "statistics": {"noise": 1}}, "counted by record_level"),
    ],
)
def test_what_leaves_before_training_is_stated(settings: dict[str, Any], reason: str) -> None:
    (refusal,) = refusals(PrivacyParams.model_validate(settings), **FITS)
    assert reason in refusal
    noised = PrivacyParams.model_validate(
        {"record_level": {}, "statistics": {"noise": 1, "bounds": {"LF": [0, 1]}}}
    )
    assert refusals(noised, **FITS) == []
    with pytest.raises(ValidationError, match="is not a range"):
        PrivacyParams.model_validate({"statistics": {"noise": 1, "bounds": {"LF": [1, 1]}}})


def test_params_and_combinations_are_light() -> None:
    code = (
        "import sys, equipoise.platform.federation.privacy.compatibility, equipoise.platform.federation.entries\n"
        "print([m for m in ('torch', 'ray', 'scipy', 'pandas', 'cryptography', 'dp_accounting') if m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "[]\n"
    )
