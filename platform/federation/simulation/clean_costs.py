"""What every server aggregation costs a federation that nobody attacks.

One further round of plain local training from the final weights gives an honest update of each client. Every
server aggregation aggregates the same updates, and its result is compared with their weighted mean. The weights of
the federation are not changed. A robust aggregation that rejects honest sites loses accuracy in every round, whether
an attack happens or not; the report shows this cost.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from equipoise.platform.errors import FederationError
from equipoise.platform.federation.aggregation.mean import mean_of
from equipoise.platform.federation.aggregation.protocol import ServerAggregation, Vector
from equipoise.platform.federation.entries import ServerParams
from equipoise.platform.federation.messages import (
    ClientUpdate,
    GroupWeights,
    TrainRequest,
    failure_text,
    request_id_of,
)
from equipoise.platform.federation.objective import Objective, weight_table
from equipoise.platform.federation.privacy.mechanism import NoPrivacy
from equipoise.platform.federation.strategies.strategy import Strategy
from equipoise.platform.federation.vector import Schema, norm_of
from equipoise.platform.registry import entries

if TYPE_CHECKING:
    from equipoise.platform.federation.result import FederationResult
    from equipoise.platform.federation.simulation.simulation import Simulation


def clean_costs(simulation: Simulation, result: FederationResult) -> list[dict[str, Any]]:
    """Distance from the weighted mean, cosine and relative length of every server aggregation.

    Parameters
    ----------
    simulation, result
        A federation that has run, and its result.

    Returns
    -------
    Records ``server_aggregation``, ``distance`` (in norms of the mean), ``cosine``, ``length`` and ``note`` (why an
    aggregation cannot be used), in the order of the registry; NaN is None. Empty if no client answers, or if privacy
    forbids a look at single updates.
    """
    if simulation.privacy.sums_only or simulation.privacy.differential:
        return []  # single updates without noise are what the study hides
    updates, weights = honest_updates(simulation, result)
    if not updates:
        return []
    rows = []
    for name, entry in entries("server_aggregations").items():
        row: dict[str, Any] = {
            "server_aggregation": name,
            "distance": None,
            "cosine": None,
            "length": None,
            "note": "",
        }
        try:
            server_aggregation = entry.load()(entry.params.model_validate({}), seed=simulation.seed)
            cost = clean_cost(updates, result.schema, weights, server_aggregation)
            row |= {key: None if np.isnan(value) else float(value) for key, value in cost._asdict().items()}
        except FederationError as error:  # Krum among four sites
            row["note"] = error.what
        rows.append(row)
    return rows


def honest_updates(
    simulation: Simulation, result: FederationResult
) -> tuple[list[ClientUpdate], GroupWeights]:
    """An update of every client, from the final weights, without strategy and privacy; and their weights."""
    from equipoise.platform.federation.clients.runner import ClientRunner, join_all

    runner = ClientRunner(simulation.setup(Strategy(ServerParams()), NoPrivacy()), simulation.client_data)
    round_ = len(result.history)
    epochs, steps = simulation.params.local.length
    lr = simulation.params.local.lr or simulation.training.lr
    manifests, groups = join_all(runner.join()), result.schema.groups
    equal = simulation.params.weights == "uniform"
    objective = Objective.of(manifests, groups, equal=equal, length=(epochs, steps))
    request = TrainRequest(
        round_, "fit", simulation.seed, lr, epochs, steps, result.vector, totals=objective.totals
    )
    updates = []
    for manifest in manifests.values():
        if not manifest.learns or manifest.client in result.excluded:
            continue
        request_id = request_id_of(simulation.seed, round_, manifest.client)
        data, _ = runner.train(manifest.client, request, request_id, b"")
        if failure_text(data) is None:
            updates.append(ClientUpdate.from_bytes(data))
    known = [objective.share(manifests[update.client]).weights for update in updates]
    return updates, weight_table(known, groups)


class CleanCost(NamedTuple):
    """How an aggregated update differs from the weighted mean.

    ``distance`` is the distance of the two in norms of the mean (0: equal, 1: as far as no update), ``cosine`` that
    of their angle, ``length`` the ratio of their norms. All NaN if the mean is 0.
    """

    distance: float
    cosine: float
    length: float


def clean_cost(
    updates: Sequence[ClientUpdate],
    schema: Schema,
    weights: GroupWeights,
    server_aggregation: ServerAggregation,
) -> CleanCost:
    """The cost of a server aggregation on these updates; a copy is used, so that its state does not change."""
    return difference(
        copy.deepcopy(server_aggregation).aggregate(updates, schema, weights),
        mean_of(updates, schema, weights),
    )


def difference(aggregated: Vector, mean: Vector) -> CleanCost:
    """The cost of an aggregated update."""
    mean_norm, norm = norm_of(mean), norm_of(aggregated)
    if mean_norm == 0:
        return CleanCost(np.nan, np.nan, np.nan)
    product = float(aggregated.astype(np.float64) @ mean.astype(np.float64))
    cosine = product / (mean_norm * norm) if norm else 0.0
    return CleanCost(norm_of(aggregated.astype(np.float64) - mean) / mean_norm, cosine, norm / mean_norm)
