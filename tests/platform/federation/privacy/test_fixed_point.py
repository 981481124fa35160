"""The ring of secure aggregation: rounding, masks that cancel, refusal before a sum could overflow 64 bits."""

from __future__ import annotations

import math

import numpy as np
import pytest

from equipoise.platform.errors import FederationError
from equipoise.platform.federation.privacy.fixed_point import FixedPoint, SaturationError


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
def test_saturation_is_refused(bad: float) -> None:
    fixed = FixedPoint(bits=32, summands=3)
    with pytest.raises(SaturationError, match="finite|up to"):
        fixed.encode(np.array([1, bad, 1, 1], np.float64))
    fixed.encode(np.full(4, np.nextafter(2.0**31 / 3, 0)))  # the largest that fits
    with pytest.raises(FederationError):
        FixedPoint(bits=0)


def test_sums_of_the_largest_values_stay_within_the_ring() -> None:
    fixed = FixedPoint(bits=30, summands=7)
    largest = np.full(1, np.nextafter(fixed.largest, 0))
    total = sum(int(fixed.encode(largest)[0]) for _ in range(7))
    assert total < 2**63
    assert math.isclose(total * 2.0**-30, 7 * fixed.largest)
