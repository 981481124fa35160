"""What privacy adds to a federation, seen from the engine: the seams, and the shield that adds nothing.

A shield has a half at the client, which sees an update before it leaves, and a half at the server, which decides
what becomes of the sum. :mod:`equipoise.platform.federation.privacy` implements client-level and record-level
differential privacy and secure aggregation behind it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from equipoise.platform.federation.fixed_point import FixedPoint, WeightedMean
from equipoise.platform.federation.update import ClientUpdate
from equipoise.platform.federation.vector import Schema

if TYPE_CHECKING:
    from equipoise.platform.federation.client import Trainer
    from equipoise.platform.federation.manifest import Manifest
    from equipoise.platform.federation.order import Order


class Collector(Protocol):
    """Takes vectors one by one; :class:`~equipoise.platform.federation.fixed_point.WeightedMean` is one."""

    def add(
        self, values: np.ndarray, weights: Mapping[str, float], factor: float = 1.0, *, client: str = ""
    ) -> None:
        """Count a client's vector in; raises FederationError, with nothing added, if it cannot be."""
        ...

    def result(self) -> np.ndarray:
        """``[P]`` float32, what the strategy is given as the combined update; called once."""
        ...


class Shield(Protocol):
    """Client half, server half, and what has to be kept between rounds.

    Attributes
    ----------
    uniform
        Whether every client must count alike.
    rate
        Probability with which each client is drawn for a round (Poisson sampling), or None for the study's scheme.
    dtype
        Of the vector that leaves a client: ``float32``, or ``uint64`` where it is masked.
    trainer
        What trains at a client in place of the usual loop, or None.
    """

    uniform: bool
    rate: float | None
    dtype: str
    trainer: Trainer | None

    def enrol(self, manifests: Mapping[str, Manifest], plans: Mapping[str, tuple[float, int]]) -> None:
        """At the server, once: what clients declared, and client → rate of patients and steps of a round."""
        ...

    def guard(self, update: ClientUpdate, order: Order) -> ClientUpdate:
        """At the client: the update as it may leave; must not change anything of the shield's own."""
        ...

    def open_round(self, round_: int, clients: Sequence[str]) -> Mapping[str, Any]:
        """At the server, before a round: plain data that is broadcast to the participants."""
        ...

    def collector(self, schema: Schema, fixed: FixedPoint, clients: Sequence[str]) -> Collector:
        """At the server: where the vectors of these participants are summed."""
        ...

    def close_round(self, round_: int, steps: Mapping[str, int]) -> Mapping[str, float]:
        """At the server, after a round, with the steps that clients took: figures for the history (epsilon, …)."""
        ...

    def exhausted(self) -> str | None:
        """Why no further round may run, or None."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Plain data for the checkpoint."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        ...


class Open:
    """No shield: updates leave as they are, sums are what they are."""

    uniform = False
    rate: float | None = None
    dtype = "float32"
    trainer: Trainer | None = None

    def enrol(self, manifests: Mapping[str, Manifest], plans: Mapping[str, tuple[float, int]]) -> None:
        """Nothing."""

    def guard(self, update: ClientUpdate, order: Order) -> ClientUpdate:
        """Identity."""
        return update

    def open_round(self, round_: int, clients: Sequence[str]) -> Mapping[str, Any]:
        """Nothing."""
        return {}

    def collector(self, schema: Schema, fixed: FixedPoint, clients: Sequence[str]) -> Collector:
        """The mean."""
        return WeightedMean(schema, fixed)

    def close_round(self, round_: int, steps: Mapping[str, int]) -> Mapping[str, float]:
        """Nothing."""
        return {}

    def exhausted(self) -> str | None:
        """Never."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing."""
