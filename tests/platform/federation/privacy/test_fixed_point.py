"""Fixed-point sums: exact in any order, refused before they could overflow 64 bits."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.platform.errors import FederationError
from equipoise.platform.federation.privacy.fixed_point import FixedPoint, SaturationError, WeightedMean
from equipoise.platform.federation.vector import Schema, Segment

SCHEMA = Schema(
    (
        Segment("w", (2,), "shared", "weight", 0, 2, True),
        Segment("h", (1,), "task:a", "weight", 2, 3, True),
        Segment("v", (1,), "shared", "weight", 3, 4, True),
    )
)


@given(st.lists(st.lists(st.floats(-1e4, 1e4, width=32), min_size=4, max_size=4), min_size=2, max_size=4))
def test_the_mean_is_the_same_in_any_order(rows: list[list[float]]) -> None:
    vectors = [np.array(row, np.float32) for row in rows]
    results = set()
    for order in itertools.permutations(range(len(vectors))):
        mean = WeightedMean(SCHEMA, FixedPoint(summands=len(vectors)))
        for i in order:
            mean.add(vectors[i], {"shared": i + 0.1, "task:a": float(i % 2)})
        results.add(mean.result().tobytes())
    assert len(results) == 1


def test_the_mean_is_the_weighted_mean_per_group() -> None:
    mean = WeightedMean(SCHEMA, FixedPoint(summands=2))
    mean.add(np.array([1, 2, 3, 4], np.float32), {"shared": 1, "task:a": 0})
    mean.add(np.array([4, 5, 6, 8], np.float32), {"shared": 3, "task:a": 2}, 0.5)
    assert mean.result() == pytest.approx([(1 + 6) / 4, (2 + 7.5) / 4, 3, (4 + 12) / 4])
    assert mean.sums() == pytest.approx([7, 9.5, 6, 16])
    assert mean.weight("task:a") == 2


def test_what_nobody_trained_is_zero() -> None:
    mean = WeightedMean(SCHEMA, FixedPoint())
    mean.add(np.ones(4, np.float32), {"shared": 2})
    assert mean.result().tolist() == [1, 1, 0, 1]


def test_rounding_is_below_half_a_unit() -> None:
    fixed = FixedPoint(bits=20, summands=4)
    values = np.random.default_rng(0).normal(size=100_000).astype(np.float32)
    error = fixed.decode(fixed.encode(values, 3.0), 3.0) - values
    assert np.abs(error).max() <= 0.5 * 2.0**-20 / 3 * (1 + 1e-6)
    assert fixed.encode(np.array([0.5, 1.5], np.float32) * 2.0**-20).tolist() == [0, 2]


def test_the_ring_wraps_and_masks_cancel() -> None:
    fixed, rng = FixedPoint(summands=2), np.random.default_rng(1)
    mask = rng.integers(0, 2**64, 3, np.uint64)
    one, other = (fixed.encode(np.array(v, np.float32)).view(np.uint64) for v in ([1, -2, 3], [4, 5, -6]))
    with np.errstate(over="ignore"):
        total = (one + mask) + (other - mask)
    assert fixed.decode(total).tolist() == [5, 3, -3]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 2.0**31 / 3])
def test_saturation_is_refused_and_leaves_the_sum_alone(bad: float) -> None:
    mean = WeightedMean(SCHEMA, FixedPoint(bits=32, summands=3))
    mean.add(np.ones(4, np.float32), {"shared": 1})
    with pytest.raises(SaturationError, match="site B"):
        mean.add(np.array([1, bad, 1, 1], np.float64), {"shared": 1}, client="site B")
    assert mean.result().tolist() == [1, 1, 0, 1]
    mean.add(np.full(4, np.nextafter(2.0**31 / 3, 0)), {"shared": 1})  # the largest that fits


def test_no_more_summands_than_there_is_room_for() -> None:
    mean = WeightedMean(SCHEMA, FixedPoint(summands=1))
    mean.add(np.ones(4, np.float32), {"shared": 1})
    with pytest.raises(FederationError, match="more than 1"):
        mean.add(np.ones(4, np.float32), {"shared": 1})
    with pytest.raises(FederationError):
        FixedPoint(bits=0)


def test_sums_of_the_largest_values_stay_within_the_ring() -> None:
    fixed = FixedPoint(bits=30, summands=7)
    largest = np.full(1, np.nextafter(fixed.largest, 0))
    total = sum(int(fixed.encode(largest)[0]) for _ in range(7))
    assert total < 2**63
    assert math.isclose(total * 2.0**-30, 7 * fixed.largest)
