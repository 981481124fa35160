r"""Differential privacy of whole clients: DP-FedAvg (McMahan et al., ICLR 2018, arXiv 1710.06963).

Every client takes part in a round with probability q, by itself. Its update is scaled down to norm S at most,
all count alike, and the sum gets one Gaussian noise:

.. math:: \Delta = \frac{1}{q N_g} \Big( \sum_i \min(1, S / \|\Delta_i\|) \Delta_i + \mathcal N(0, (z S)^2) \Big)

The denominator is fixed: dividing by how many happened to answer would need noise of its own. :math:`N_g` is the
number of clients that own the group of parameters, which everybody knows. With 6 to 24 hospitals, epsilons of
clients are too large to mean much; the report has to say so.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from equipoise.platform.errors import StudyError

Vector = NDArray[np.float32]

#: Stream of draws of noise, beside those of sampling and local training.
NOISE = 0x0015E


def clipped(delta: Vector, clip: float, *, fraction_bits: int | None = None) -> tuple[Vector, float]:
    """An update of norm ``clip`` at most, and the factor it was scaled by.

    Parameters
    ----------
    delta
        ``[P]``.
    clip
        Norm S.
    fraction_bits
        Of the fixed-point numbers that follow. Rounding to them can lengthen the update by half a unit in every
        coordinate; room for that is left, so that what is summed keeps within S.

    Raises
    ------
    StudyError
        If rounding alone can be longer than ``clip``.
    """
    room = clip * (1 - 1e-6)  # float32 rounds each coordinate by 6e-8 of itself
    if fraction_bits is not None:
        room -= 0.5 * math.sqrt(delta.size) * 2.0**-fraction_bits
    if room <= 0:
        raise StudyError(
            f"rounding {delta.size} numbers to {fraction_bits} bits is longer than the clipping norm {clip}",
            fix="use more bits or a larger norm",
        )
    norm = math.sqrt(float(np.square(delta, dtype=np.float64).sum()))
    if norm <= room:
        return delta, 1.0
    factor = room / norm
    return (delta * np.float64(factor)).astype(np.float32), factor


def noise(size: int, clip: float, multiplier: float, seed: int, round_: int) -> NDArray[np.float64]:
    """``[P]`` draws of N(0, (zS)²), a function of (seed, round); the seed of a real federation is a secret."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, round_, NOISE]))
    return rng.normal(0.0, multiplier * clip, size)


def private_mean(
    total: NDArray[np.float64],
    clip: float,
    multiplier: float,
    expected: NDArray[np.float64] | float,
    seed: int,
    round_: int,
) -> Vector:
    """Mean update of a round from the sum of clipped updates.

    Parameters
    ----------
    total
        ``[P]`` sum of the updates of all clients that answered; 0 if there was none, and noise still goes on it.
    expected
        q N, or ``[P]`` q N_g of each parameter's group; 0 where no client owns it, which then stays unchanged.
    """
    noisy = total + noise(total.size, clip, multiplier, seed, round_)
    share = np.broadcast_to(np.asarray(expected, dtype=np.float64), noisy.shape)
    return np.divide(noisy, share, out=np.zeros_like(noisy), where=share > 0).astype(np.float32)
