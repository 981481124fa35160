"""AutoScale: similar magnitudes in the first phase, fixed weights and single passes afterwards."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from equipoise.models.balancing.autoscale import AutoScale, most_similar
from equipoise.models.balancing.entries import AutoScaleParams
from equipoise.models.balancing.protocol import Feedback, StepContext
from equipoise.models.batch import TaskHead

HEADS = tuple(TaskHead(name, "regression", 1) for name in "abc")
ALL = StepContext(tuple("abc"), torch.tensor([True] * 3), 0, 0)
LOSSES = torch.ones(3, dtype=torch.float64)


def gram(*norms: float) -> Feedback:
    return Feedback(gram=torch.diag(torch.tensor(norms, dtype=torch.float64) ** 2))


def similarity(weights: np.ndarray, norms: np.ndarray) -> float:
    """Mean over epochs and pairs, as defined by Yu et al."""
    sizes = weights * norms
    a, b = np.triu_indices(sizes.shape[1], 1)
    return float(np.mean(2 * sizes[:, a] * sizes[:, b] / (sizes[:, a] ** 2 + sizes[:, b] ** 2)))


def test_one_epoch_gives_gradients_of_one_length() -> None:
    weights = most_similar(np.array([[1.0, 2.0, 8.0]]))
    assert weights * [1, 2, 8] == pytest.approx([weights[0]] * 3)
    assert weights.sum() == pytest.approx(3)


def test_two_epochs_of_two_tasks_meet_in_the_geometric_mean() -> None:
    """sech(x + r) + sech(x + s) has its maximum at x = −(r + s)/2 for r and s that are not far apart."""
    weights = most_similar(np.array([[1.0, 2.0], [1.0, 3.0]]))
    assert weights[0] / weights[1] == pytest.approx(math.sqrt(6), rel=1e-6)


def test_no_other_weights_are_more_similar() -> None:
    rng = np.random.default_rng(0)
    norms = np.exp(rng.normal(size=(5, 4)))
    best = similarity(most_similar(norms), norms)
    assert all(similarity(np.exp(rng.normal(size=4)), norms) <= best for _ in range(2000))


def test_two_phases() -> None:
    weighting = AutoScale(AutoScaleParams(explore_epochs=2), HEADS)
    assert weighting.weights(LOSSES, ALL).tolist() == [1, 1, 1]
    for norms in ((1, 2, 4), (1, 2, 16)):
        assert weighting.needs == {"gram"}
        for _ in range(3):
            weighting.learn(LOSSES, ALL, gram(*norms))
        weighting.on_epoch_end(LOSSES)
    assert weighting.needs == frozenset()
    fixed = weighting.weights(LOSSES, ALL)
    assert fixed.numpy() == pytest.approx(most_similar(np.array([[1.0, 2, 4], [1, 2, 16]])))
    weighting.on_epoch_end(LOSSES)
    assert torch.equal(weighting.weights(LOSSES, ALL), fixed)
    again = AutoScale(AutoScaleParams(explore_epochs=2), HEADS)
    again.load_state_dict(weighting.state_dict())
    assert again.needs == frozenset()
    assert torch.equal(again.weights(LOSSES, ALL), fixed)


def test_tasks_without_gradients_in_some_steps_or_all() -> None:
    weighting = AutoScale(AutoScaleParams(explore_epochs=1), HEADS)
    for norms in ((2, 0, 0), (2, 4, 0), (2, 4, 0)):
        weighting.learn(LOSSES, ALL, gram(*norms))
    weighting.on_epoch_end(LOSSES)
    weights = weighting.weights(LOSSES, ALL)
    assert float(weights[0] / weights[1]) == pytest.approx(2)
    assert float(weights[2]) == pytest.approx(1)
