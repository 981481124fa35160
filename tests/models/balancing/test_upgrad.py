"""UPGrad: projections by brute force, and no conflict with anybody."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import nnls
from torch import Tensor


def test_it_is_the_mean_of_projections(combine: Callable[..., Tensor], matrices: list) -> None:
    """The projection of g is g + Jᵀz: nobody in conflict with it, nothing added that a task did not need (Moreau)."""
    assert len(matrices) == 25
    for case in matrices:
        rows = case.J.numpy()
        projected = np.stack([g + rows.T @ nnls(rows.T, -g)[0] for g in rows])
        size = np.linalg.norm(rows, axis=1).max()
        assert (projected @ rows.T).min() >= -1e-9 * size**2, case.name
        assert np.abs(((projected - rows) * projected).sum(1)).max() <= 1e-9 * size**2, case.name
        assert combine("upgrad", case.J).numpy() == pytest.approx(projected.mean(0), abs=1e-6), case.name


def test_without_conflict_it_is_the_mean(combine: Callable[..., Tensor]) -> None:
    J = torch.rand(5, 7, dtype=torch.float64)
    assert torch.allclose(combine("upgrad", J), J.mean(0), atol=1e-12)


@given(
    matrix=arrays(
        np.float64,
        st.tuples(st.integers(2, 6), st.integers(1, 8)),
        elements=st.integers(-3, 3).map(float),
    )
)
def test_nobody_is_in_conflict(combine: Callable[..., Tensor], matrix: np.ndarray) -> None:
    J = torch.from_numpy(matrix)
    assert (J @ combine("upgrad", J)).min() >= -1e-5


def test_two_tasks_by_hand(combine: Callable[..., Tensor]) -> None:
    """(1, 0) and (−1, 1): projections (½, ½) and (0, 1)."""
    J = torch.tensor([[1.0, 0.0], [-1.0, 1.0]], dtype=torch.float64)
    assert combine("upgrad", J).tolist() == pytest.approx([0.25, 0.75])
