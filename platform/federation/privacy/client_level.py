r"""Differential privacy of whole clients: DP-FedAvg (McMahan et al., ICLR 2018, arXiv 1710.06963).

Every client takes part in a round independently with probability q (1 if all take part). Its update is scaled down to
norm S at most, all clients count equally, and Gaussian noise is added to the sum:

.. math:: \Delta = \frac{1}{q N_g} \Big( \sum_i \min(1, S / \|\Delta_i\|) \Delta_i + \mathcal N(0, (z S)^2) \Big)

The denominator is fixed: dividing by the number of clients that answered would need noise of its own. :math:`N_g`
is the number of clients that own the group of parameters, which is public. Every parameter gets its noise in every
round, also in one that nobody joined and in a group that no participant owns: a parameter that stands still, or moves
by an exact sum, would tell who took part.

Neighbours are two federations of the same clients in which the updates of one client are its own or zero. Sampling
amplifies the guarantee only against an adversary who cannot see who took part (``adversary: models``). With 6 to 24
hospitals, epsilons of clients are too large to mean much; the report says so.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from equipoise.platform.errors import StudyError
from equipoise.platform.federation.privacy.noise import noise_source

Vector = NDArray[np.float32]

#: Random stream of the noise, separate from those of sampling and local training.
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
        Fractional bits of the fixed-point numbers to which the update is rounded later. Rounding can lengthen it by
        half a unit in every coordinate; a margin for that is left, so that the rounded update keeps within S.

    Raises
    ------
    StudyError
        If the rounding error alone can be longer than ``clip``.
    """
    bound = clip * (1 - 1e-6)  # float32 rounds each coordinate by 6e-8 of itself
    if fraction_bits is not None:
        bound -= 0.5 * math.sqrt(delta.size) * 2.0**-fraction_bits
    if bound <= 0:
        raise StudyError(
            f"the error of rounding {delta.size} numbers to {fraction_bits} bits can exceed the clipping norm {clip}",
            fix="use more bits or a larger norm",
        )
    norm = math.sqrt(float(np.square(delta, dtype=np.float64).sum()))
    if norm <= bound:
        return delta, 1.0
    factor = bound / norm
    return (delta * np.float64(factor)).astype(np.float32), factor


def noise(
    total: NDArray[np.float64], clip: float, multiplier: float, seed: int, round_: int
) -> NDArray[np.float64]:
    """``[P]`` draws of N(0, (zS)²) for a sum, a function of (seed, round, sum)
    (:func:`~equipoise.platform.federation.privacy.noise.noise_source`)."""
    return noise_source(seed, round_, NOISE, data=total).normal(0.0, multiplier * clip, total.size)


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
        ``[P]`` sum of the updates of all clients that answered; 0 if there was none, to which noise is added as well.
    expected
        q N, or ``[P]`` q N_g of each parameter's group; 0 for parameters that no client can move, which stay.
    """
    noisy = total + noise(total, clip, multiplier, seed, round_)
    share = np.broadcast_to(np.asarray(expected, dtype=np.float64), noisy.shape)
    return np.divide(noisy, share, out=np.zeros_like(noisy), where=share > 0).astype(np.float32)
