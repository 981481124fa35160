"""What every aggregation rule would cost this federation although nobody attacks it.

One further round of plain local training from the final weights gives an honest update of each client; every
rule combines the same updates, and its result is set against their weighted mean. Nothing is stepped: the weights
that are kept and judged are those of the federation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from equipoise.platform.errors import FederationError
from equipoise.platform.federation.entries import ServerParams
from equipoise.platform.federation.order import Order, nonce_of
from equipoise.platform.federation.rules.clean_cost import clean_cost
from equipoise.platform.federation.shield import Open
from equipoise.platform.federation.strategies.strategy import Strategy
from equipoise.platform.federation.update import ClientUpdate, group_weights
from equipoise.platform.federation.wire import failure_text
from equipoise.platform.registry import entries

if TYPE_CHECKING:
    from equipoise.platform.federation.engine import Federation, FederationResult


def clean_costs(federation: Federation, result: FederationResult) -> list[dict[str, Any]]:
    """Rule → distance from the mean, cosine with it, length beside it; with a reason where a rule cannot be used.

    Parameters
    ----------
    federation, result
        One that was run, and what it left.

    Returns
    -------
    Records ``rule``, ``distance`` (in norms of the mean), ``cosine``, ``length``, ``note``, in the order of the
    registry; NaN is None. Empty where no client answers.
    """
    updates = honest_updates(federation, result)
    if not updates:
        return []
    uniform = federation.params.weights == "uniform"
    weights = group_weights(updates, result.schema.groups, uniform=uniform)
    found = []
    for name, entry in entries("site_rules").items():
        row: dict[str, Any] = {"rule": name, "distance": None, "cosine": None, "length": None, "note": ""}
        try:
            rule = entry.load()(entry.params.model_validate({}), seed=federation.seed)
            cost = clean_cost(updates, result.schema, weights, rule)
            row |= {key: None if np.isnan(value) else float(value) for key, value in cost._asdict().items()}
        except FederationError as error:  # Krum among four sites
            row["note"] = error.what
        found.append(row)
    return found


def honest_updates(federation: Federation, result: FederationResult) -> list[ClientUpdate]:
    """An update of every client that learns, from the final weights, without strategy and shield."""
    import dataclasses

    from equipoise.platform.federation.client import Workshop

    plain = dataclasses.replace(federation.setup, strategy=Strategy(ServerParams()), shield=Open())
    workshop = Workshop(plain, federation.members)
    round_ = len(result.history)
    epochs, steps = federation.params.local.length
    lr = federation.params.local.lr or federation.setup.training.lr
    order = Order(round_, "fit", federation.seed, lr, epochs, steps, result.vector)
    found = []
    for manifest in sorted(workshop.join(), key=lambda m: m.client):
        if not manifest.learns or manifest.client in result.benched:
            continue
        nonce = nonce_of(federation.seed, round_, manifest.client)
        data, _ = workshop.work(manifest.client, order, nonce, b"")
        if failure_text(data) is None:
            found.append(ClientUpdate.from_bytes(data))
    return found
