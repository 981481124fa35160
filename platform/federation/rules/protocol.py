"""What an aggregation rule is: updates of sites in, one update out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from equipoise.platform.federation.rules.params import RuleParams
from equipoise.platform.federation.update import ClientUpdate, GroupWeights
from equipoise.platform.federation.vector import Schema

Array = NDArray[np.float64]
Vector = NDArray[np.float32]


class SiteRule(Protocol):
    """Combines the updates of a round.

    ``streaming`` says that the rule is the weighted mean, so that updates may be summed as they come
    (:class:`~equipoise.platform.federation.fixed_point.WeightedMean`) and need not be held. Results do not depend
    on the order of the updates.
    """

    streaming: bool

    def combine(self, updates: Sequence[ClientUpdate], schema: Schema, weights: GroupWeights) -> Vector:
        """``[P]`` combined update.

        Parameters
        ----------
        updates
            C of them, finite, one per client.
        schema
            Their layout.
        weights
            Group → ``[C]``; a client with 0 takes no part in what is made of the group. Where nobody does, the
            result is 0.
        """
        ...

    def state_dict(self) -> dict[str, Any]:
        """What has to be kept between rounds, as plain data."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        ...


class Rule:
    """What rules without state share.

    Parameters
    ----------
    params
        Of the rule.
    seed
        Of the federation, for rules that draw.
    """

    streaming = False

    def __init__(self, params: RuleParams, seed: int = 0) -> None:
        """Takes nothing from either."""

    def state_dict(self) -> dict[str, Any]:
        """Empty: there is no state."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Refuses state, which can only be another rule's."""
        if state:
            raise ValueError(
                f"{type(self).__name__} has no state, the checkpoint holds {', '.join(map(str, state))}"
            )
