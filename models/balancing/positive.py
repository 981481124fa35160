"""Losses for methods that take logarithms of them."""

from __future__ import annotations

from torch import Tensor

#: Where a loss counts as zero. A Cox loss without anybody else at risk is exactly 0 and must not end in inf.
SMALLEST = 1e-8


def positive(losses: Tensor, method: str) -> Tensor:
    """``losses``, at least :data:`SMALLEST`.

    Raises
    ------
    ValueError
        If a loss is negative; the method is not defined for it.
    """
    if bool((losses < 0).any()):
        raise ValueError(f"{method} needs losses of at least 0, not {losses.min().item():.4g}")
    return losses.clamp(min=SMALLEST)
