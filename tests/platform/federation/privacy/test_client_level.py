"""Clipping, noise and fixed denominators of DP-FedAvg."""

import numpy as np
import pytest

from equipoise.platform.errors import StudyError
from equipoise.platform.federation.privacy.client_level import clipped, noise, private_mean
from equipoise.platform.federation.privacy.fixed_point import FixedPoint
from equipoise.platform.federation.vector import norm_of


def test_short_updates_are_not_touched_and_long_ones_keep_their_direction() -> None:
    short = np.array([0.3, 0.4], np.float32)
    assert clipped(short, 1.0)[0] is short
    long, factor = clipped(np.array([30, 40], np.float32), 1.0)
    np.testing.assert_allclose(long, [0.6, 0.8], rtol=1e-5)
    assert factor == pytest.approx(0.02, rel=1e-5)


def test_what_is_summed_is_never_longer_than_the_clip() -> None:
    rng = np.random.default_rng(0)
    for size in (1, 10, 3000):
        for bits in (12, 16, 32):
            if size == 3000 and bits == 12:
                continue
            delta, _ = clipped((rng.normal(size=size) * 100).astype(np.float32), 0.7, fraction_bits=bits)
            fixed = FixedPoint(bits)
            assert norm_of(delta) <= 0.7
            assert norm_of(fixed.decode(fixed.encode(delta))) <= 0.7


def test_bits_too_coarse_for_the_clip_are_refused() -> None:
    with pytest.raises(StudyError, match="can exceed the clipping norm"):
        clipped(np.ones(100_000, np.float32), 0.01, fraction_bits=8)


def test_noise_is_of_the_promised_size_and_a_function_of_seed_round_and_sum() -> None:
    total = np.zeros(20_000)
    draws = noise(total, 0.5, 2.0, seed=1, round_=3)
    assert draws.std() == pytest.approx(1.0, rel=0.03)
    np.testing.assert_array_equal(draws, noise(total, 0.5, 2.0, seed=1, round_=3))
    assert not np.array_equal(draws, noise(total, 0.5, 2.0, seed=1, round_=4))


def test_two_runs_with_one_seed_do_not_differ_by_what_a_client_adds() -> None:
    """Noise that depends on the seed alone cancels in their difference."""
    total, added = np.zeros(1000), np.full(1000, 0.01)
    one, other = (private_mean(t, 1.0, 1.0, 1.0, seed=1, round_=0) for t in (total, total + added))
    assert np.std(other - one) == pytest.approx(np.sqrt(2), rel=0.1)


def test_the_denominator_is_fixed_and_groups_without_owners_stay() -> None:
    total = np.array([6.0, 6.0, 0.0])
    result = private_mean(total, 1e-9, 1.0, np.array([3.0, 2.0, 0.0]), seed=0, round_=0)
    np.testing.assert_allclose(result, [2, 3, 0], atol=1e-6)
    empty = private_mean(np.zeros(3), 1.0, 1.0, 2.0, seed=0, round_=0)
    assert np.abs(empty).min() > 0  # nobody answered: noise all the same
