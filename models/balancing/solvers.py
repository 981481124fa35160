"""Small exact solvers on products of gradients, shared by the aggregators.

NumPy float64 throughout: T is 2 to 10, where a call into torch costs more than the arithmetic. Two conventions
hold for all methods:

*Zero gradients are left out.* A batch can carry no information on a task that is present (censored cases only, a
weight of 0). The minimum-norm point would then be 0 and the worst-off task could never gain, so that one such
task would stop all others. These tasks get coefficient 0 and the method is applied to the rest.

*Unit gradients.* Problems are stated in cosines C and norms n, G = diag(n) C diag(n), and solved for y = n ∘ x:
tasks whose gradients differ by orders of magnitude stay equally well conditioned, and tolerances mean the same
for all. Products come from float32 gradients, so that parallel or opposite ones leave eigenvalues around 0 of
either sign; a multiple of the identity brings the smallest to :data:`FLOOR`; C is unchanged where it is above.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls
from torch import Tensor

Array = NDArray[np.float64]

#: Smallest eigenvalue of a matrix of cosines. Coefficients of unit gradients stay below 1e4 times their
#: combination; results of well-conditioned problems are not touched.
FLOOR = 1e-8

#: Products of float32 gradients are known to about this relative precision.
PRECISION = float(np.finfo(np.float32).eps)


def as_array(gram: Tensor) -> Array:
    """``[t, t]`` products as NumPy.

    Raises
    ------
    ValueError
        If one is infinite or NaN: no method can combine such gradients.
    """
    array: Array = gram.double().numpy()
    if not np.isfinite(array).all():
        raise ValueError("gradients of the tasks are not finite; a loss overflowed or is NaN")
    return array


@dataclass(frozen=True)
class UnitGradients:
    """The m of t tasks whose gradient is not zero, by direction and length.

    Parameters
    ----------
    cosines
        ``[m, m]``, made positive definite.
    norms
        ``[m]``, positive.
    rows
        ``[m]`` their indices among the t tasks.
    size
        t.
    """

    cosines: Array
    norms: Array
    rows: NDArray[np.intp]
    size: int

    @classmethod
    def of(cls, gram: Tensor) -> UnitGradients:
        """From the products ``[t, t]`` of gradients."""
        array = as_array(gram)
        squares = array.diagonal()
        rows = np.flatnonzero(squares > 0)
        norms = np.sqrt(squares[rows])
        inner = array if len(rows) == len(array) else array[np.ix_(rows, rows)]
        return cls(regularised(inner / norms / norms[:, None]), norms, rows, len(array))

    def __len__(self) -> int:
        return len(self.rows)

    def expand(self, values: Array) -> Tensor:
        """``[t]`` coefficients from the ``[m]`` of tasks with a gradient; 0 for the others."""
        whole = np.zeros(self.size)
        whole[self.rows] = values
        return torch.from_numpy(whole)


def regularised(cosines: Array) -> Array:
    """The matrix plus the multiple of the identity that brings its smallest eigenvalue to :data:`FLOOR`; itself
    where it is there already."""
    if not len(cosines):
        return cosines
    shift = FLOOR - np.linalg.eigvalsh(cosines)[0]
    return cosines + shift * np.eye(len(cosines)) if shift > 0 else cosines


def project_on_simplex(values: Array) -> Array:
    """The nearest ``[t]`` weights that are not negative and sum to 1 (Held, Wolfe and Crowder, 1974)."""
    falling = np.sort(values)[::-1]
    excess = (np.cumsum(falling) - 1) / np.arange(1, len(values) + 1)
    last = np.flatnonzero(falling > excess)[-1]
    return np.maximum(values - excess[last], 0)


def nonnegative_qp(A: Array, b: Array) -> Array:
    """argmin ½ xᵀAx − bᵀx over x ≥ 0, for positive definite A.

    With A = LLᵀ it is the least squares of Lᵀx = L⁻¹b over x ≥ 0, whose active-set method (Lawson and Hanson, 1974)
    finds which coordinates are positive; one solve on these brings them to the precision of A.
    """
    if not len(b):  # SciPy's code ends the process
        return np.zeros(0)
    L = np.linalg.cholesky(A)
    x: Array = nnls(L.T, np.linalg.solve(L, b))[0]
    free = np.flatnonzero(x)
    x[free] = np.linalg.solve(A[np.ix_(free, free)], b[free])
    return np.maximum(x, 0)


def min_norm(unit: UnitGradients) -> Array:
    r"""``[m]`` weights w of the shortest vector :math:`\sum w_k g_k` of the convex hull.

    For two gradients :math:`w_1 = (\|g_2\|^2 - g_1 g_2) / \|g_1 - g_2\|^2`, cut to [0, 1]. For more, the
    minimum of :math:`\|J^\top x\|^2 + \varepsilon^2 (1^\top x - 1)^2` over x ≥ 0 lies in the direction of w for every
    ε: with x = s w it is :math:`s^2 \|J^\top w\|^2 + \varepsilon^2 (s - 1)^2`, whose minimum over s grows with the
    norm. ε is the smallest norm of a gradient.
    """
    C, n = unit.cosines, unit.norms
    if len(unit) == 2:
        ratio = n / n.max()
        cross = C[0, 1] * ratio[0] * ratio[1]
        apart = ratio @ ratio - 2 * cross
        first = 0.5 if apart <= 0 else min(max((ratio[1] ** 2 - cross) / apart, 0.0), 1.0)
        return np.array([first, 1 - first])
    q = n.min(initial=np.inf) / n
    x = q * nonnegative_qp(C + np.outer(q, q), q)
    return x / x.sum()


def equilibrium(C: Array, pull: Array, power: float) -> Array:
    r"""z > 0 with :math:`(Cz)_k = h_k z_k^{-p}`, for positive definite C and positive h (``pull``).

    It is where the convex :math:`\tfrac12 z^\top C z - \sum_k h_k z_k^{1-p} / (1-p)` (:math:`\log z_k` at p = 1) is
    least; Newton's method with backtracking, from the point that solves it for C = 1 and fits the length.
    """
    z = pull ** (1 / (1 + power))
    z = z * ((pull * z ** (1 - power)).sum() / (z @ C @ z)) ** (1 / (1 + power))
    before = np.inf
    for _ in range(200):
        force = pull * z**-power
        residual = C @ z - force
        step = np.linalg.solve(C + np.diag(power * force / z), residual)
        decrement, energy = residual @ step, z @ force
        near = decrement < 1e-4 * energy  # full steps converge quadratically, until rounding of C z ends it
        # Far from quadratic, steps grow or shrink z by a constant factor and gain less than four times each.
        rounding = decrement <= 1e-12 * energy and decrement > before / 4
        if decrement <= 1e-20 * energy or rounding:
            break
        before = decrement
        size = min(1.0, 0.95 / max(float((step / z).max()), 0.95))
        if not near:  # energies of opposite gradients are differences too small to be compared at the end
            value = _energy(C, pull, power, z)
            while size > 1e-6 and _energy(C, pull, power, z - size * step) > value - 1e-4 * size * decrement:
                size /= 2
        z = z - size * step
    return z


def _energy(C: Array, pull: Array, power: float, z: Array) -> float:
    gained = np.log(z) if power == 1 else z ** (1 - power) / (1 - power)
    return float(0.5 * (z @ C @ z) - pull @ gained)


def dual_of_many(C: Array, norms: Array, b: Array, s: float) -> Array:
    r"""x = s w/‖g_w‖ for the simplex weights w that minimise :math:`b_w + s \|g_w\|`, y = n ∘ x inside.

    The dual of the worst-off task's largest gain by a vector of length s on top of given gains b, as in
    :class:`~equipoise.models.balancing.cagrad.CaGrad`.
    """
    beta, r = b / norms, 1 / norms
    worst = int((b + s * norms).argmin())
    low, high = float(b.min()), math.inf
    mu = float(b[worst] + s * norms[worst])
    y = np.zeros_like(b)
    for _ in range(60):
        y = nonnegative_qp(C, mu * r - beta)
        length = math.sqrt(max(float(y @ C @ y), 0.0))
        if abs(length - s) <= 1e-10 * s:
            break
        low, high = (mu, high) if length < s else (low, mu)
        guess = _multiplier_of(C, r, beta, y > 0, s)
        if not low < guess < high:
            guess = (low + high) / 2 if high < math.inf else mu + s * norms.max()
        mu = guess
    return y / norms


def _multiplier_of(C: Array, r: Array, beta: Array, support: np.ndarray, s: float) -> float:
    """μ at which the solution with this support has length s; NaN if it has it nowhere."""
    index = np.flatnonzero(support)
    if not len(index):
        return math.nan
    p, q = np.linalg.solve(C[np.ix_(index, index)], np.stack([r[index], beta[index]], axis=1)).T
    rp, rq, rest = r[index] @ p, r[index] @ q, beta[index] @ q - s * s
    root = rq * rq - rp * rest
    return float((rq + math.sqrt(root)) / rp) if root >= 0 else math.nan
