"""Silhouettes against scikit-learn, and the effect of bootstrap multiplicities."""

import numpy as np
import pytest

from equipoise.platform.evaluation.silhouette import DISTANCES, Distance, distances, silhouette


@pytest.fixture
def points() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    label = rng.integers(0, 3, 50)
    return rng.normal(size=(50, 6)) + label[:, None] * [1.0, 0, 0, 0.5, 0, 0], label


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("classes", [2, 3])
def test_equals_scikit_learn(points: tuple, distance: Distance, classes: int) -> None:
    from sklearn.metrics import silhouette_score

    latent, label = points[0] + 1e3 * (distance == "euclidean"), points[1] % classes
    expected = silhouette_score(latent, label, metric=distance)
    assert float(silhouette(latent, label, distance)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("distance", DISTANCES)
def test_distances_equal_scikit_learn(points: tuple, distance: Distance) -> None:
    from sklearn.metrics import pairwise_distances

    result = distances(points[0], distance)
    np.testing.assert_allclose(result, pairwise_distances(points[0], metric=distance), atol=1e-9)
    assert (np.diag(result) == 0).all()


def test_a_patient_alone_in_a_class_scores_nothing() -> None:
    from sklearn.metrics import silhouette_score

    latent, label = np.array([[0.0], [1.0], [5.0]]), np.array([0, 0, 1])
    result = float(silhouette(latent, label, "euclidean"))
    assert result == pytest.approx(silhouette_score(latent, label))
    assert result == pytest.approx(((5 - 1) / 5 + (4 - 1) / 4 + 0) / 3)


def test_weights_leave_patients_out_and_count_copies(points: tuple) -> None:
    latent, label = points
    weight = np.random.default_rng(1).integers(0, 3, (4, 50))
    weight[0] = 1
    result = silhouette(latent, label, "euclidean", weight)
    assert result.shape == (4,)
    assert result[0] == pytest.approx(float(silhouette(latent, label, "euclidean")))
    keep = np.random.default_rng(2).random(50) < 0.7
    part = float(silhouette(latent[keep], label[keep], "cosine"))
    assert float(silhouette(latent, label, "cosine", keep.astype(float))) == pytest.approx(part)
    # By hand, copies of oneself left out of one's own neighbours.
    d, w = distances(latent, "euclidean"), weight[1]
    total = 0.0
    for i in range(50):
        mean = {}
        for c in range(3):
            in_class = (label == c) & (np.arange(50) != i)
            mean[c] = (w * d[i])[in_class].sum() / w[in_class].sum()
        a, b = mean[label[i]], min(v for c, v in mean.items() if c != label[i])
        total += w[i] * (b - a) / max(a, b)
    assert result[1] == pytest.approx(total / w.sum())


def test_drawing_everybody_twice_changes_nothing_much(points: tuple) -> None:
    latent, label = points
    once, twice = silhouette(latent, label, "euclidean", np.stack([np.ones(50), np.full(50, 2)]))
    assert twice == pytest.approx(once, abs=1e-12)


def test_one_class_is_nan_and_equal_points_are_zero(points: tuple) -> None:
    latent, label = points
    assert np.isnan(silhouette(latent, np.zeros(50), "cosine"))
    only_first = (label == 0).astype(float)
    assert np.isnan(silhouette(latent, label, "cosine", only_first))
    assert float(silhouette(np.ones((4, 2)), [0, 0, 1, 1], "euclidean")) == 0
    assert np.isfinite(silhouette(np.zeros((4, 2)), [0, 0, 1, 1], "cosine"))
