"""Privacy accounting: the accountant counts executed steps, not planned ones.

A step is a Gaussian mechanism on a Poisson sample. While a federation runs, its loss is bounded by Rényi
divergences (Mironov 2017; Mironov, Talwar and Zhang 2019), which add up and cost one multiplication a step; at
the end the privacy loss distribution gives the tight value (Koskela et al. 2020; Doroshenko et al. 2022). Both
are those of dp-accounting, for neighbours that differ by one unit added or removed.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.platform.errors import FederationError, StudyError

#: Upper limit of the search for the last step that a budget allows.
MAX_STEPS = 10**9


@dataclass(frozen=True, order=True)
class SampledGaussian:
    """One noisy sum over a Poisson sample of units.

    Parameters
    ----------
    rate
        Probability q with which a unit takes part.
    noise
        Standard deviation z of the noise, in units of the clipping norm.

    Raises
    ------
    StudyError
        If q is not in (0, 1] or z is not positive.
    """

    rate: float
    noise: float

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise StudyError(f"a sampling rate of {self.rate} is not in (0, 1]")
        if not 0 < self.noise < math.inf:
            raise StudyError(f"a noise multiplier of {self.noise} gives no privacy", fix="use one above 0")


@dataclass
class Accountant:
    """The privacy account of all clients, or of the patients of one client.

    Parameters
    ----------
    delta
        Probability with which the guarantee may fail; below 1 / number of units.
    epsilon
        Budget, or None for no limit.
    executed
        Mechanism → steps so far.
    """

    delta: float
    epsilon: float | None = None
    executed: dict[SampledGaussian, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not 0 < self.delta < 1:
            raise StudyError(f"delta {self.delta} is not in (0, 1)")
        if self.epsilon is not None and not self.epsilon > 0:
            raise StudyError(f"a budget epsilon of {self.epsilon} is spent before the first step")

    def spend(self, mechanism: SampledGaussian, steps: int = 1) -> None:
        """Account for steps that are about to be executed.

        Raises
        ------
        FederationError
            If they would exceed the budget; then nothing is counted, and the steps must not be executed.
        """
        if steps < 0:
            raise ValueError(f"{steps} steps cannot be executed")
        if not self.allows(mechanism, steps):
            raise FederationError(
                f"{steps} more steps would spend epsilon {self.after(mechanism, steps):.3g} of {self.epsilon:g}",
                fix="train fewer rounds or steps, add noise, or raise the budget",
            )
        self.executed[mechanism] = self.executed.get(mechanism, 0) + steps

    def allows(self, mechanism: SampledGaussian, steps: int = 1) -> bool:
        """Whether the budget covers this many further steps."""
        return self.epsilon is None or self.after(mechanism, steps) <= self.epsilon

    def max_steps(self, mechanism: SampledGaussian) -> int:
        """How many further steps the budget covers; :data:`MAX_STEPS` without a budget."""
        if self.allows(mechanism, MAX_STEPS):
            return MAX_STEPS
        low, high = 0, 1
        while self.allows(mechanism, high):
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.allows(mechanism, middle) else (low, middle)
        return low

    def spent(self) -> float:
        """Epsilon of the executed steps, by Rényi divergences: an upper bound that is fast to compute."""
        return self._epsilon(self.executed)

    def after(self, mechanism: SampledGaussian, steps: int) -> float:
        """The value of :meth:`spent` after this many further steps."""
        return self._epsilon({**self.executed, mechanism: self.executed.get(mechanism, 0) + steps})

    def tight_epsilon(self) -> float:
        """Epsilon of the executed steps, by the privacy loss distribution: for the report, takes seconds."""
        from dp_accounting import SelfComposedDpEvent, pld

        accountant = pld.PLDAccountant()
        for mechanism, steps in sorted(self.executed.items()):
            if steps:
                accountant.compose(SelfComposedDpEvent(_event(mechanism), steps))
        return float(accountant.get_epsilon(self.delta)) if any(self.executed.values()) else 0.0

    def state(self) -> dict[str, Any]:
        """Plain data for a checkpoint."""
        rows = [[m.rate, m.noise, steps] for m, steps in sorted(self.executed.items())]
        return {"delta": self.delta, "epsilon": self.epsilon, "executed": rows}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Accountant:
        """The inverse of :meth:`state`."""
        executed = {SampledGaussian(rate, noise): int(steps) for rate, noise, steps in state["executed"]}
        return cls(state["delta"], state["epsilon"], executed)

    def _epsilon(self, executed: dict[SampledGaussian, int]) -> float:
        from dp_accounting.rdp.rdp_privacy_accountant import DEFAULT_RDP_ORDERS, compute_epsilon

        done = {mechanism: steps for mechanism, steps in executed.items() if steps}
        if not done:
            return 0.0
        total = sum(steps * _renyi(m) for m, steps in sorted(done.items()))
        return float(compute_epsilon(DEFAULT_RDP_ORDERS, total, self.delta)[0])


def together(states: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Epsilon of several federations over the same clients and patients, one after the other.

    Parameters
    ----------
    states
        Of every federation, ``clients`` (the state of an account, or None) and ``patients`` (client → state).

    Returns
    -------
    ``clients`` and ``patients`` → epsilon; of the client whose patients have the largest one.
    """
    accounts: dict[tuple[str, str], Accountant] = {}
    for state in states:
        rows = {("patients", client): row for client, row in state["patients"].items()}
        if state["clients"] is not None:
            rows["clients", ""] = state["clients"]
        for key, row in rows.items():
            account = accounts.setdefault(key, Accountant(row["delta"]))
            for mechanism, steps in Accountant.from_state(dict(row)).executed.items():
                account.spend(mechanism, steps)
    result: dict[str, float] = {}
    for (unit, _), account in accounts.items():
        result[unit] = max(result.get(unit, 0.0), account.spent())
    return result


def noise_for(rate: float, steps: int, epsilon: float, delta: float, *, precision: float = 1e-3) -> float:
    """The smallest noise multiplier, to a relative precision, with which this many steps stay within the budget.

    Rounded towards more noise; by Rényi divergences, like the limit of the accountant.
    """
    low, high = 0.0, 1.0
    while Accountant(delta).after(SampledGaussian(rate, high), steps) > epsilon:
        low, high = high, 2 * high
    while high - low > precision * high:
        middle = (low + high) / 2
        enough = Accountant(delta).after(SampledGaussian(rate, middle), steps) <= epsilon
        low, high = (low, middle) if enough else (middle, high)
    return high


def _event(mechanism: SampledGaussian) -> Any:
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent

    return PoissonSampledDpEvent(mechanism.rate, GaussianDpEvent(mechanism.noise))


@functools.lru_cache(maxsize=1024)  # a site's accountant asks for it after every round
def _renyi(mechanism: SampledGaussian) -> NDArray[np.float64]:
    """Divergences of one step at all orders. The public interface recomputes them for every composition; they are
    additive, so that those of one step suffice, and dp-accounting keeps them in ``_rdp``."""
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant()
    with _without_order_warnings():
        accountant.compose(_event(mechanism))
    return np.array(accountant._rdp, dtype=np.float64)


@contextlib.contextmanager
def _without_order_warnings() -> Iterator[None]:
    """Silence dp-accounting's warning for every order whose series does not converge. Leaving such an order out can
    only make epsilon larger, and the best orders converge."""
    logger = logging.getLogger("absl")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)
