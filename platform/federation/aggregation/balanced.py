"""Balanced aggregation: sites are the tasks of a balancing method, so that no site's objective gets worse.

An update is, up to a step size, the negative gradient of its site's objective over the round. The methods of
:mod:`equipoise.models.balancing` that work on products of gradients therefore apply unchanged: with ``upgrad``
or ``mgda`` the result points along every site's own update, :math:`\\Delta_i \\cdot d \\ge 0`, so that to first order
no site's loss rises; the mean does not guarantee that. FedMGDA+ (Hu et al. 2020, arXiv 2006.11489) is ``mgda`` here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from equipoise.platform.errors import FederationError
from equipoise.platform.federation.aggregation.blocks import Block, blocks_of
from equipoise.platform.federation.aggregation.protocol import Array, Vector
from equipoise.platform.federation.entries import BalancedParams
from equipoise.platform.federation.messages import ClientUpdate, GroupWeights
from equipoise.platform.federation.vector import Schema

if TYPE_CHECKING:
    from equipoise.models.balancing.protocol import GramAggregator


class Balanced:
    r"""Coefficients c of a gram aggregator for the products of weighted updates :math:`w_i \Delta_i`.

    The weights are the sites' shares of labels times their number, 1 on average, or 1 where the study says
    ``weights: uniform``; without conflicts, ``upgrad`` is the weighted mean. ``scale: shares`` divides by
    :math:`\sum_i |c_i w_i|`: the result is never longer than the longest update. Every block of parameters is
    balanced separately among the sites that trained it, and the guarantees for blocks hold for their sum.

    Parameters
    ----------
    params
        Parameters of the aggregation.
    seed
        Of the federation; the order of projections in ``pcgrad`` is drawn from (seed, round, block).
    """

    streaming = False

    def __init__(self, params: BalancedParams, seed: int = 0) -> None:
        from equipoise.platform.registry import get

        entry = get("aggregators", params.aggregator)
        self.params = entry.params.model_validate(params.aggregator_params)
        self.kind: Any = entry.load()
        self.scale = params.scale
        self.seed = seed
        self.aggregators: dict[str, tuple[tuple[str, ...], GramAggregator]] = {}

    def aggregate(self, updates: Sequence[ClientUpdate], schema: Schema, weights: GroupWeights) -> Vector:
        """The balanced update."""
        result = np.zeros(schema.size, np.float32)
        for index, block in enumerate(blocks_of(updates, schema, weights)):
            block.write_weighted_sum(self._coefficients(block, updates[0].round, index), result)
        return result

    def state_dict(self) -> dict[str, Any]:
        """Block → its clients and the state of its aggregator, as plain data; empty for methods without state."""
        state = {}
        for key, (clients, aggregator) in self.aggregators.items():
            if memory := aggregator.state_dict():
                state[key] = {"clients": list(clients), "kept": {k: _plain(v) for k, v in memory.items()}}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`."""
        import torch

        self.aggregators = {}
        for key, row in state.items():
            aggregator = self._new(tuple(row["clients"]))
            memory = {
                k: torch.tensor(v, dtype=torch.float64) if isinstance(v, list) else v
                for k, v in row["kept"].items()
            }
            aggregator.load_state_dict(memory)
            self.aggregators[key] = (tuple(row["clients"]), aggregator)

    def _coefficients(self, block: Block, round_: int, index: int) -> Array:
        """``[c]`` coefficients of the updates in the result."""
        if len(block) == 1:
            return np.ones(1)
        import torch

        from equipoise.models.balancing.protocol import StepContext

        shares = block.shares()
        w = shares * len(block)
        gram = block.gram()
        context = StepContext(
            tasks=block.clients,
            present=torch.ones(len(block), dtype=torch.bool),
            epoch=round_,
            step=index,
            seed=self.seed,
            rows=tuple(range(len(block))),
        )
        unknown = torch.full((len(block),), torch.nan, dtype=torch.float64)
        coefficients = self._of(block).coefficients(torch.from_numpy(w[:, None] * gram * w), unknown, context)
        c: Array = w * coefficients.double().numpy()
        if not np.isfinite(c).all():
            raise FederationError(
                f"{self.kind.__name__} found no finite coefficients for {', '.join(block.groups)}"
            )
        return c * self._length(c, gram, shares)

    def _length(self, c: Array, gram: Array, shares: Array) -> float:
        if self.scale == "own" or not c.any():
            return 1.0
        if self.scale == "shares":
            return 1 / float(np.abs(c).sum())
        squared = float(c @ gram @ c)
        mean = max(float(shares @ gram @ shares), 0.0)
        return math.sqrt(mean / squared) if squared > 0 else 1.0

    def _of(self, block: Block) -> GramAggregator:
        """The aggregator of these groups and clients; a new one, without state, if the clients changed."""
        key = "+".join(block.groups)
        if key not in self.aggregators or self.aggregators[key][0] != block.clients:
            self.aggregators[key] = (block.clients, self._new(block.clients))
        return self.aggregators[key][1]

    def _new(self, clients: tuple[str, ...]) -> GramAggregator:
        from equipoise.models.batch import TaskHead

        aggregator: GramAggregator = self.kind(
            self.params, [TaskHead(client, "regression", 1) for client in clients]
        )
        return aggregator


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value
