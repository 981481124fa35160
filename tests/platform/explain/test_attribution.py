"""Tile scores of cases: slides apart, folds averaged, tiles in level-0 pixels, refusals."""

import math

import numpy as np
import pytest
import torch
from tests.platform.explain.cases import TASKS, Dot, case_of, model, targets
from tests.platform.explain.test_checks import Trained

from equipoise.models.batch import CaseShape
from equipoise.platform.errors import DataError, StudyError
from equipoise.platform.explain.attribution import Method, explain_case, tile_scores, tile_side
from equipoise.platform.training.targets import Targets

RNG = np.random.default_rng(0)


def test_slides_of_a_patient_have_maps_of_their_own() -> None:
    bag = RNG.normal(size=(5, 24))
    case = case_of(bag, slides=("P1-1", "P1-2"), tiles=(3, 2), mpp=(0.5, 0.25))
    w = np.arange(24.0)
    one, two = tile_scores(
        [Trained(Dot(torch.from_numpy(w)))], [case], "MSI", method="gradient_input", synthetic=True
    )
    own = bag.astype(np.float16).astype(np.float64) @ w
    np.testing.assert_allclose(one.score, ((own - own.mean()) / 5)[:3], rtol=1e-5)
    np.testing.assert_allclose(two.score, ((own - own.mean()) / 5)[3:], rtol=1e-5)
    assert (one.slide, two.slide, one.patient, one.cohort) == ("P1-1", "P1-2", "P1", "C")
    assert (one.side, two.side) == (200.0, 400.0)
    np.testing.assert_array_equal(one.x, [0, 200, 400])
    np.testing.assert_array_equal(two.x, [600, 800])
    assert (one.task, one.kind, one.class_name, one.method) == ("MSI", "binary", "MSI-H", "gradient_input")
    assert one.unit == "change of the log odds of MSI-H to first order"
    assert one.synthetic
    assert one.spread is None


def test_folds_are_averaged_with_their_spread() -> None:
    case = case_of(RNG.normal(size=(6, 24)))
    models = [Trained(Dot(torch.from_numpy(RNG.normal(size=24)))) for _ in range(3)]
    each = [tile_scores([one], [case], "MSI")[0].score for one in models]
    (together,) = tile_scores(models, [case], "MSI")
    np.testing.assert_allclose(together.score, np.mean(each, axis=0), rtol=1e-5)
    np.testing.assert_allclose(together.spread, np.std(each, axis=0, ddof=1), rtol=1e-5)


def test_every_class_has_a_map_unless_one_is_named() -> None:
    of = targets(24)
    trained = Trained(model("mean_pool", of).float())
    trained.targets = of
    case = case_of(RNG.normal(size=(4, 24)))
    assert [m.class_name for m in tile_scores([trained], [case], "subtype")] == ["a", "b", "c"]
    assert [m.class_name for m in tile_scores([trained], [case], "subtype", "b")] == ["b"]
    (risk,) = tile_scores([trained], [case], "OS", method="integrated_gradients")
    assert (risk.class_name, risk.unit) == ("", "share of the tile in the log risk")
    with pytest.raises(StudyError, match=r"no class 'd'; it has a, b, c"):
        tile_scores([trained], [case], "subtype", "d")
    with pytest.raises(StudyError, match=r"no task 'MSH'; it has MSI, .*Did you mean 'MSI'"):
        tile_scores([trained], [case], "MSH")


def test_what_cannot_be_explained_is_refused() -> None:
    trained = Trained(Dot(torch.ones(24, dtype=torch.float64)))
    with pytest.raises(DataError, match="has no tile to explain"):
        tile_scores([trained], [case_of(np.zeros((0, 24)), slides=(), tiles=(), mpp=())], "MSI")
    with pytest.raises(StudyError, match="unknown attributions entry 'gradcam'"):
        Method.named("gradcam")
    with pytest.raises(StudyError, match="steps"):
        Method.named("integrated_gradients", {"steps": 0})
    tables = Trained(trained.model)
    tables.targets = Targets(TASKS[:1], CaseShape(0, {"rna": 3}))
    with pytest.raises(StudyError, match="reads tables only"):
        explain_case([tables], case_of(np.zeros((2, 24))), "MSI", None, Method.named("single_tile"))


def test_tiles_of_unknown_resolution_are_as_large_as_their_distance() -> None:
    case = case_of(np.zeros((3, 24)), mpp=(math.nan,))
    assert tile_side(case, 0) == 200.0
    with pytest.raises(DataError, match="not known how large the tiles are"):
        tile_side(case_of(np.zeros((1, 24)), mpp=(math.nan,)), 0)
