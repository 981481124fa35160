"""Tables standardised per cohort, from training to the prediction of a cohort that training has not seen."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from pydantic import ValidationError

from equipoise.datasets.omics.params import TableParams
from equipoise.datasets.tables.tasks import RegressionTask
from equipoise.platform.errors import DataError
from equipoise.platform.study.schema import Study
from equipoise.platform.training.build import build_model
from equipoise.platform.training.predict import predict
from equipoise.platform.training.targets import Targets, fit_targets

LF = RegressionTask(name="LF", column="LF", main=True)
TABLES = TableParams.model_validate({"rna": {"standardise": "per_cohort", "clip": None}})


@pytest.fixture(scope="module")
def cases(make_cases):
    """40 patients of two cohorts without tiles."""
    return [
        dataclasses.replace(
            case,
            bag=np.zeros((0, 0), np.float16),
            coords=np.zeros((0, 2), np.int32),
            omics={"rna": np.random.default_rng(i).normal(size=3).astype(np.float32)},
        )
        for i, case in enumerate(make_cases(40, missing=False).values())
    ]


def moved(case, name: str):
    """The same patient measured elsewhere: another cohort, unit and offset."""
    return dataclasses.replace(
        case, cohort=name, patient=f"X{case.patient}", omics={"rna": 7 * case.omics["rna"] - 30}
    )


def test_a_cohort_of_another_unit_is_predicted_as_if_it_had_the_same(cases) -> None:
    targets = fit_targets([LF], cases, tables=TABLES)
    assert Targets.from_json(json.loads(json.dumps(targets.to_json()))) == targets
    model = build_model("omics", {"network": "linear"}, targets.shape, targets.heads, seed=0)
    own = [case for case in cases if case.cohort == "SYN-A"]
    away = [moved(case, "SYN-X") for case in own]
    here = predict(model, targets, own, role="test", repeat=0, fold=0)["score"]
    there = predict(model, targets, away, role="external", repeat=0, fold=0)["score"]
    np.testing.assert_allclose(there, here, atol=1e-4)
    # Labels of the other cohort are not looked at.
    blind = [dataclasses.replace(case, targets={"LF": np.nan}) for case in away]
    again = predict(model, targets, blind, role="external", repeat=0, fold=0)["score"]
    np.testing.assert_array_equal(again, there)
    with pytest.raises(DataError, match="3 patients of cohort SYN-X are too few to standardise it"):
        predict(model, targets, away[:3], role="external", repeat=0, fold=0)


def test_patients_of_training_cohorts_are_prepared_as_in_training(cases) -> None:
    targets = fit_targets([LF], cases, tables=TABLES)
    assert targets.with_cohorts_of(cases[:2]).tables == targets.tables
    plain = fit_targets([LF], cases)
    assert plain.with_cohorts_of([moved(cases[0], "SYN-X")]) is plain


def test_a_federation_refuses_it_before_it_starts() -> None:
    study = {
        "version": 1,
        "name": "s",
        "cohorts": [{"name": "A", "role": "develop", "clinical": "a.csv", "omics": {"rna": "r.csv"}}],
        "tasks": [{"name": "LF", "type": "regression", "column": "LF"}],
        "tables": {"rna": {"standardise": "per_cohort"}},
        "model": {"kind": "omics"},
    }
    assert Study.model_validate(study).tables.rna.standardise == "per_cohort"
    with pytest.raises(ValidationError, match="a federation standardises over the patients of all clients"):
        Study.model_validate(study | {"federation": {"sites": {"scheme": "cohort"}}})
