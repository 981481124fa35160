"""Drift against the training slides: closed forms, scipy's energy distance, uniform p values, what raises a flag."""

import json

import numpy as np
import pytest
from scipy.spatial.distance import mahalanobis
from scipy.stats import energy_distance as of_scipy
from scipy.stats import f as f_distribution
from scipy.stats import kstest

from equipoise.platform.errors import DataError
from equipoise.platform.prediction.drift import (
    DriftReference,
    SlideSet,
)
from equipoise.platform.prediction.reference import Centre, ValueReference, VectorReference
from equipoise.platform.prediction.two_samples import energy_distance, energy_test, location_test


def names(n, letter="P"):
    return [f"{letter}{i:04d}" for i in range(n)]


def slides(vectors, *, cohort="A", letter="P", stain=None, **values):
    """Slides of one patient each."""
    n = len(vectors)
    known = {"mpp": np.full(n, 0.5), "tissue_mm2": np.full(n, 40.0), "tiles": np.full(n, 300.0)} | values
    both = {"embedding": np.asarray(vectors, float)} | ({} if stain is None else {"stain": stain})
    return SlideSet(names(n, letter), names(n, letter), [cohort] * n, both, known)


def test_distance_is_that_of_mahalanobis_where_components_are_complete() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 4)) @ rng.normal(size=(4, 4)) * [1, 10, 0.1, 1] + 5
    reference = VectorReference.fit(x, names(300), ["A"] * 300)
    inverse = np.linalg.inv(np.cov(x.T))
    new = rng.normal(size=(6, 4)) * 8
    expected = [mahalanobis(row, x.mean(axis=0), inverse) for row in new]
    np.testing.assert_allclose(reference.distance(new), expected, rtol=1e-4)
    # the distances kept are those from the patients of the other nine parts
    part = np.arange(300) % 10 == 3
    rest = x[~part]
    inverse = np.linalg.inv(np.cov(rest.T))
    left_out = [mahalanobis(row, rest.mean(axis=0), inverse) for row in x[part]]
    kept = reference.distances.values
    assert np.abs(kept[:, None] - left_out).min(axis=0).max() < 1e-3


def test_distance_of_few_components_is_that_of_the_shrunk_covariance() -> None:
    """More dimensions than components: the inverse of V diag(variances) V' + rest (1 - V V')."""
    rng = np.random.default_rng(1)
    for n, dim in ((60, 12), (40, 90)):
        x = rng.normal(size=(n, dim)) * np.linspace(4, 1, dim)
        reference = VectorReference.fit(x, names(n), ["A"] * n)
        z = (x - x.mean(axis=0)) / x.std(axis=0, ddof=1)
        values, vectors = np.linalg.eigh(np.cov(z.T))
        q = n // 10
        top, v = values[::-1][:q], vectors[:, ::-1][:, :q]
        rest = (values.sum() - top.sum()) / (dim - q)
        covariance = v @ np.diag(top) @ v.T + rest * (np.eye(dim) - v @ v.T)
        new = (rng.normal(size=(5, dim)) * 3 - x.mean(axis=0)) / x.std(axis=0, ddof=1)
        expected = np.sqrt(np.einsum("vd,de,ve->v", new, np.linalg.inv(covariance), new))
        np.testing.assert_allclose(
            reference.distance(new * x.std(axis=0, ddof=1) + x.mean(axis=0)), expected, rtol=1e-4
        )
        assert reference.components.shape == (q, dim)


def test_energy_distance_equals_that_of_scipy() -> None:
    """scipy's is the square root, of one dimension."""
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=30), rng.normal(1, 2, size=45)
    assert energy_distance(a, b) == pytest.approx(of_scipy(a, b) ** 2)
    assert energy_distance(a, a) == pytest.approx(0, abs=1e-12)
    # two points in the plane: 2 * 5 - 0 - 0
    assert energy_distance([[0.0, 0.0]], [[3.0, 4.0]]) == pytest.approx(10)


def test_p_values_of_the_same_distribution_are_uniform() -> None:
    rng = np.random.default_rng(3)
    p = [energy_test(rng.normal(size=12), rng.normal(size=20), rng, 99)[1] for _ in range(150)]
    assert kstest(p, "uniform").pvalue > 0.01
    assert energy_test(rng.normal(size=30), rng.normal(2, size=30), rng, 99)[1] == 0.01
    found = []
    for _ in range(200):
        training, new = rng.normal(size=(60, 3)), rng.normal(size=(15, 3))
        whitening = np.linalg.inv(np.linalg.cholesky(np.cov(training.T))).T
        centre = Centre(60, np.zeros(3), ValueReference.of([]))
        found.append(location_test((new - training.mean(axis=0)) @ whitening, centre, np.eye(3), 59).p)
    assert kstest(found, "uniform").pvalue > 0.01  # exact for Gaussian vectors


def test_location_is_hotelling_s_test_of_two_samples() -> None:
    """Against the textbook's formula with the covariance of the training patients."""
    rng = np.random.default_rng(12)
    x, new = rng.normal(size=(90, 2)) @ [[2, 1], [0, 1]], rng.normal(0.3, 1, size=(25, 2))
    reference = DriftReference.fit(slides(x))
    found = reference.batch(slides(new), rng).iloc[0]
    apart = new.mean(axis=0) - x.mean(axis=0)
    t2 = 90 * 25 / 115 * apart @ np.linalg.inv(np.cov(x.T)) @ apart
    assert found["p_location"] == pytest.approx(f_distribution.sf(t2 * 88 / (2 * 89), 2, 88), rel=1e-4)
    assert found["nearest"] == "A"


def test_p_values_of_slides_like_those_of_training_are_uniform() -> None:
    """Of heavy-tailed vectors in more dimensions than components, as features are."""
    rng = np.random.default_rng(4)
    mix = rng.normal(size=(40, 40))
    x = rng.standard_t(5, size=(400, 40)) @ mix
    reference = DriftReference.fit(slides(x))
    found = reference.slides(slides(rng.standard_t(5, size=(800, 40)) @ mix, letter="N"))
    p = found.loc[found["check"] == "embedding", "p"]
    assert kstest(p, "uniform").statistic < 0.08
    assert found.loc[found["check"] == "embedding", "flagged"].mean() < 0.025
    np.testing.assert_allclose(found.loc[found["check"] == "embedding", "percentile"], 1 - p, atol=0.01)


def test_conformal_p_values_of_numbers_by_hand() -> None:
    reference = ValueReference.of([4.0, 1.0, 2.0, 3.0, np.nan])
    np.testing.assert_allclose(reference.upper_p([0, 2, 9]), [1, 4 / 5, 1 / 5])
    np.testing.assert_allclose(reference.lower_p([0, 2, 9]), [1 / 5, 3 / 5, 1])
    np.testing.assert_allclose(reference.two_sided_p([0, 2, 9]), [2 / 5, 1, 2 / 5])
    np.testing.assert_allclose(reference.percentile([0, 2, 9]), [0, 3 / 8, 1])
    assert len(ValueReference.of(np.arange(5000.0)).values) == 1000


def test_what_differs_is_flagged_with_its_reason() -> None:
    rng = np.random.default_rng(5)
    x, od = rng.normal(size=(150, 8)), rng.normal([0.2, 0.4, 0.3], 0.03, size=(150, 3))
    area, tiles = rng.uniform(20, 60, 150), rng.uniform(200, 400, 150)
    reference = DriftReference.fit(slides(x, stain=od, tissue_mm2=area, tiles=tiles))
    assert reference.checks == ("embedding", "stain", "tissue_mm2", "tiles", "mpp")
    new = slides(
        np.concatenate([x[:1] * 0.1, x[1:2] + 9, x[2:3] * 0.1]),
        letter="N",
        stain=np.array([[0.2, 0.4, 0.3], [0.2, 0.4, 0.3], [0.5, 0.3, 0.6]]),
        mpp=np.array([0.51, 0.5, 0.25]),
        tissue_mm2=np.array([40.0, np.nan, 0.5]),
        tiles=np.array([300.0, 300, 5]),
    )
    found = reference.slides(new)
    flagged = found[found["flagged"]].groupby("slide")["check"].agg(sorted).to_dict()
    assert flagged == {"N0001": ["embedding"], "N0002": ["mpp", "stain", "tiles", "tissue_mm2"]}
    assert len(found) == 14  # no tissue area of the second slide
    reason = found.set_index(["slide", "check"])["reason"]
    assert reason["N0002", "mpp"] == "pixel size 0.25 um/px; training slides have 0.5"
    assert "no training slide is as far out" in reason["N0001", "embedding"]
    assert reason["N0000", "embedding"].endswith("as training slides are")


def test_a_batch_is_flagged_by_place_or_by_spread() -> None:
    """A small shift that no slide shows; a wider spread around the same mean; and neither."""
    rng = np.random.default_rng(6)
    reference = DriftReference.fit(slides(rng.normal(size=(300, 6))))
    same, shifted = rng.normal(size=(60, 6)), rng.normal(0.45, size=(60, 6))
    wider = rng.normal(0, 1.6, size=(60, 6))
    assert not reference.batch(slides(same), rng).iloc[0]["flagged"]
    found = reference.batch(slides(shifted), rng).iloc[0]
    assert found["flagged"]
    assert found["p_location"] < 0.001
    assert found["shift"] == pytest.approx(0.45, abs=0.15)
    assert reference.slides(slides(shifted)).query("check == 'embedding'")["flagged"].mean() < 0.2
    found = reference.batch(slides(wider - wider.mean(axis=0)), rng).iloc[0]
    assert found["p_location"] > 0.5
    assert found["p_spread"] < 0.005
    assert found["flagged"]
    few = reference.batch(slides(same[:3]), rng).iloc[0]
    assert not few["flagged"]
    assert "3 patients are too few" in few["reason"]


def test_one_of_several_training_hospitals_raises_no_flag() -> None:
    """Two cohorts far apart: their common mean is neither."""
    rng = np.random.default_rng(7)
    a, b = rng.normal(-2, 1, size=(150, 3)), rng.normal(2, 1, size=(150, 3))
    both = SlideSet(names(300), names(300), ["A"] * 150 + ["B"] * 150, {"embedding": np.r_[a, b]}, {})
    reference = DriftReference.fit(both)
    found = reference.batch(slides(rng.normal(2, 1, size=(50, 3))), rng).iloc[0]
    assert found["nearest"] == "B"
    assert found["p_location"] > 0.05
    assert not found["flagged"]
    # farther out than most, as this cohort is on one side of the mean; not farther than its own slides
    assert found["farther"] == pytest.approx(0.5, abs=0.12)
    assert reference.batch(slides(rng.normal([2, -2, 2], 1, size=(50, 3))), rng).iloc[0]["flagged"]


def test_the_state_holds_no_slide_and_gives_the_same_results() -> None:
    rng = np.random.default_rng(8)
    x = rng.normal(size=(120, 30))
    reference = DriftReference.fit(slides(x, stain=rng.normal(size=(120, 3))))
    state = json.loads(json.dumps(reference.to_dict()))
    again = DriftReference.from_dict(state)
    new = slides(rng.normal(size=(20, 30)) + 1, letter="N", stain=rng.normal(size=(20, 3)))
    for left, right in (
        (reference.slides(new), again.slides(new)),
        (reference.batch(new, np.random.default_rng(1)), again.batch(new, np.random.default_rng(1))),
    ):
        assert left.equals(right)
    assert "P0" not in json.dumps(state)
    # ten patients or more for each of the directions that are kept
    assert len(state["vectors"]["embedding"]["components"]) == 12
    with pytest.raises(DataError, match="do not fit together"):
        state["vectors"]["embedding"]["scale"].pop()
        DriftReference.from_dict(state)
    with pytest.raises(DataError, match="not the state"):
        DriftReference.from_dict({"vectors": {}})


def test_bad_input_is_refused() -> None:
    rng = np.random.default_rng(9)
    with pytest.raises(DataError, match="19 patients with slides are too few"):
        DriftReference.fit(slides(rng.normal(size=(19, 3))))
    x = rng.normal(size=(50, 3))
    x[3, 1] = np.inf
    with pytest.raises(DataError, match="not finite"):
        DriftReference.fit(slides(x))
    reference = DriftReference.fit(slides(rng.normal(size=(50, 3))))
    with pytest.raises(DataError, match="vectors have 4 numbers, those of the training slides 3"):
        reference.slides(slides(rng.normal(size=(5, 4))))
    # constant features have no unit of their own and are no reason to fail
    constant = DriftReference.fit(slides(np.c_[rng.normal(size=50), np.ones(50)]))
    assert not constant.slides(slides([[0.0, 1.0]]))["flagged"].any()
    assert constant.slides(slides([[0.0, 5.0]])).query("check == 'embedding'")["flagged"].all()
