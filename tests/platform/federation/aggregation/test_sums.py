"""Weighted sums in float64: closed forms, and the same bits however updates are grouped into passes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from equipoise.platform.federation.aggregation.sums import CHUNK, HELD, WeightedMean
from equipoise.platform.federation.vector import Schema, Segment

SCHEMA = Schema(
    (
        Segment("w", (2,), "shared", "weight", 0, 2, True),
        Segment("h", (1,), "task:a", "weight", 2, 3, True),
        Segment("v", (1,), "shared", "weight", 3, 4, True),
    )
)


def test_the_mean_is_the_weighted_mean_per_group() -> None:
    mean = WeightedMean(SCHEMA)
    mean.add(np.array([1, 2, 3, 4], np.float32), {"shared": 1, "task:a": 0})
    mean.add(np.array([4, 5, 6, 8], np.float32), {"shared": 3, "task:a": 2}, 0.5)
    assert mean.result() == pytest.approx([(1 + 6) / 4, (2 + 7.5) / 4, 3, (4 + 12) / 4])
    assert mean.sums() == pytest.approx([7, 9.5, 6, 16])
    assert mean.weight("task:a") == 2


def test_what_nobody_trained_is_zero() -> None:
    mean = WeightedMean(SCHEMA)
    mean.add(np.ones(4, np.float32), {"shared": 2})
    assert mean.result().tolist() == [1, 1, 0, 1]
    assert WeightedMean(SCHEMA).result().tolist() == [0, 0, 0, 0]


def test_sums_are_those_of_one_addition_after_the_other() -> None:
    """Over several passes and chunks: bit for bit the plain loop in float64, and close to the exact sum."""
    size, count = 2 * CHUNK + 3, 2 * HELD + 3
    schema = Schema((Segment("w", (size,), "shared", "weight", 0, size, True),))
    rng = np.random.default_rng(0)
    vectors = [(rng.normal(size=size) * 10.0 ** rng.integers(-3, 3)).astype(np.float32) for _ in range(count)]
    weights = rng.integers(1, 300, count).astype(float).tolist()
    mean, plain = WeightedMean(schema), np.zeros(size)
    for vector, weight in zip(vectors, weights, strict=True):
        mean.add(vector, {"shared": weight})
        plain += vector.astype(np.float64) * weight
    assert np.array_equal(mean.sums(), plain)
    assert np.array_equal(mean.result(), (plain / math.fsum(weights)).astype(np.float32))
    exact = [math.fsum(w * float(v[i]) for v, w in zip(vectors, weights, strict=True)) for i in range(9)]
    assert mean.sums()[:9] == pytest.approx(exact, rel=1e-13, abs=1e-9)
