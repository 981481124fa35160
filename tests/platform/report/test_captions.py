"""Sentences of the verdict."""

import numpy as np
import pytest

from equipoise.platform.report.captions import compare_with_chance, verdict_caution, verdict_sentence


def row(value: float, low: float = np.nan, high: float = np.nan, **more: object) -> dict:
    base = {"value": value, "low": low, "high": high, "n": 400, "n_pos": 60, "kind": "binary", "note": ""}
    return {**base, "cohort": "all", **more}


def sentence(internal: dict | None, externals: list[dict], folds: int = 5) -> str:
    return verdict_sentence("MSI", "auroc", internal, externals, folds=folds, chance=0.5, confidence=0.95)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.6, 0.9, "above"), (0.2, 0.4, "below"), (0.4, 0.7, "unclear"), (np.nan, np.nan, "unknown")],
)
def test_standing(low: float, high: float, expected: str) -> None:
    assert compare_with_chance(row(0.5, low, high), 0.5) == expected
    assert compare_with_chance(row(0.5, low, high), None) == "unknown"


def test_a_good_result_that_carries_over() -> None:
    text = sentence(row(0.87, 0.82, 0.92), [row(0.84, 0.75, 0.9, cohort="CPTAC")])
    assert text == (
        "Over 5 test folds, AUROC for MSI is 0.87 (95 % CI 0.82–0.92), better than a predictor without "
        "information (0.50); externally, CPTAC reaches 0.84 (0.75–0.90)."
    )


def test_the_estimand_of_each_interval_is_said() -> None:
    models = "these 5 models; procedure trained on 80 % of the patients"
    both = row(0.87, 0.82, 0.92, estimand=models, low_procedure=0.8, high_procedure=0.93)
    assert (
        "0.87 (95 % CI 0.82–0.92 for these 5 models, 0.80–0.93 for the procedure that trained them)"
        in sentence(both, [])
    )
    one = row(0.87, 0.82, 0.92, estimand="this model", low_procedure=np.nan, high_procedure=np.nan)
    assert "0.87 (95 % CI 0.82–0.92 for this model), better" in sentence(one, [])


def test_a_loss_outside_is_named() -> None:
    text = sentence(row(0.87, 0.82, 0.92), [row(0.7, 0.6, 0.8, cohort="CPTAC")])
    assert "below the internal interval: expect lower performance elsewhere" in text


def test_an_external_interval_with_chance_is_named() -> None:
    text = sentence(row(0.7, 0.55, 0.85), [row(0.6, 0.4, 0.8, cohort="CPTAC")])
    assert "where the interval includes chance" in text


def test_no_external_cohort_is_a_finding() -> None:
    assert "there is no evidence that this generalises" in sentence(row(0.87, 0.82, 0.92), [])


def test_chance_is_called_chance() -> None:
    assert "does not differ significantly from a predictor without information" in sentence(
        row(0.6, 0.45, 0.74), []
    )
    assert "worse than a predictor without information" in sentence(row(0.3, 0.2, 0.4), [])


def test_what_is_not_estimable_is_said() -> None:
    text = sentence(row(np.nan, note="not estimable: all 9 patients are negative"), [])
    assert "AUROC for MSI is not estimable: not estimable: all 9 patients are negative" in text
    assert "without an estimable interval" in sentence(row(1.0), [])
    assert "it could not be estimated in any external cohort" in sentence(row(0.8, 0.7, 0.9), [row(np.nan)])
    assert "no cross-validation result" in sentence(None, [])


def test_cautions_by_gravity() -> None:
    good, external = row(0.9, 0.8, 0.95), [row(0.9, 0.8, 0.95)]
    assert "synthetic" in verdict_caution(good, external, synthetic=True)
    assert "12 positive patients" in verdict_caution({**good, "n_pos": 12}, external, synthetic=False)
    assert "12 events" in verdict_caution(
        {**good, "n_pos": 12, "kind": "survival"}, external, synthetic=False
    )
    assert "40 patients" in verdict_caution({**good, "n_pos": np.nan, "n": 40}, external, synthetic=False)
    assert "another hospital" in verdict_caution(good, [], synthetic=False)
    assert verdict_caution(good, external, synthetic=False) == ""
