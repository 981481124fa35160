"""What excludes each other is refused with a reason; what goes together is not."""

import subprocess
import sys
from typing import Any

import pytest

from equipoise.platform.federation.privacy.combinations import refusals
from equipoise.platform.federation.privacy.params import PrivacyParams
from equipoise.platform.registry import entries

SECURE = PrivacyParams.model_validate({"secure_aggregation": {}})
CLIENTS = PrivacyParams.model_validate({"client_level": {}})
RECORDS = PrivacyParams.model_validate({"record_level": {}})
ALL = PrivacyParams.model_validate({"secure_aggregation": {}, "client_level": {}, "record_level": {}})
FITS: dict[str, Any] = {"rule": "mean", "strategy": "fedavg", "uniform_weights": True, "norm_gate": False}


@pytest.mark.parametrize("privacy", [PrivacyParams.model_validate({}), SECURE, CLIENTS, RECORDS, ALL])
def test_what_goes_together(privacy: PrivacyParams) -> None:
    assert refusals(privacy, **FITS) == []


@pytest.mark.parametrize(
    ("privacy", "changes", "reason"),
    [
        *(
            (SECURE, {"rule": rule}, "looks at single updates")
            for rule in entries("site_rules")
            if rule != "mean"
        ),
        *((CLIENTS, {"rule": rule}, "not bounded") for rule in entries("site_rules") if rule != "mean"),
        (SECURE, {"norm_gate": True}, "clients clip their updates themselves"),
        (SECURE, {"asynchronous": True}, "masks cancel within a round"),
        (SECURE, {"strategy": "cyclic"}, "nothing to mask"),
        (SECURE, {"strategy": "scaffold"}, "second vector"),
        (SECURE, {"strategy": "fednova"}, "at the server"),
        (CLIENTS, {"uniform_weights": False}, "use uniform weights"),
        (CLIENTS, {"strategy": "scaffold"}, "second vector"),
        (CLIENTS, {"strategy": "fednova"}, "number of steps"),
        (CLIENTS, {"asynchronous": True}, "Poisson samples"),
        (CLIENTS, {"strategy": "cyclic"}, "without a sum"),
        (SECURE, {"max_share": 0.3}, "only summed"),
        (CLIENTS, {"max_share": 0.3}, "only summed"),
        (RECORDS, {"strategy": "moon"}, "contrasts the features of patients"),
    ],
)
def test_what_excludes_each_other(privacy: PrivacyParams, changes: dict[str, Any], reason: str) -> None:
    (found,) = refusals(privacy, **(FITS | changes))
    assert reason in found


def test_all_reasons_are_given_at_once() -> None:
    assert len(refusals(ALL, rule="krum", strategy="fedavg", uniform_weights=False, norm_gate=True)) == 4


def test_params_and_combinations_are_light() -> None:
    code = (
        "import sys, equipoise.platform.federation.privacy.combinations, equipoise.platform.federation.rules.params\n"
        "print([m for m in ('torch', 'ray', 'scipy', 'pandas', 'cryptography', 'dp_accounting') if m in sys.modules])"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        == "[]\n"
    )
