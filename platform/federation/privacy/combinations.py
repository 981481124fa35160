"""Which settings of a federation exclude each other, and why. Light: no torch, no NumPy."""

from __future__ import annotations

from collections.abc import Sequence

from equipoise.platform.federation.privacy.params import PrivacyParams

#: Rules that need nothing of an update but its share in a sum.
LINEAR_RULES = frozenset({"mean"})

#: Strategies whose client sends a second vector beside its update, of the same kind and as telling.
SENDS_MORE = frozenset({"scaffold"})

#: Loss weightings that are known before the first patient is seen.
FIXED_WEIGHTINGS = frozenset({"equal", "static"})


def refusals(
    privacy: PrivacyParams,
    *,
    rule: str,
    strategy: str,
    uniform_weights: bool,
    norm_gate: bool,
    asynchronous: bool = False,
    max_share: float | None = None,
) -> list[str]:
    """Reasons why a federation cannot run as asked for, known without data; empty if it can.

    Parameters
    ----------
    privacy
        The ``privacy`` section.
    rule
        Name of the aggregation rule.
    strategy
        Name of the strategy.
    uniform_weights
        Whether all clients count alike.
    norm_gate
        Whether the server bounds the norm of single updates.
    asynchronous
        Whether updates are taken up one by one as they come.
    max_share
        Of rule ``mean``: a bound on shares needs the whole round before it can be summed.
    """
    found = []
    if max_share is not None and (privacy.secure_aggregation or privacy.client_level):
        found.append(
            "a bound on shares (`max_share`) is applied to single updates that are held, and these are only summed "
            "here: use weights: uniform in its place"
        )
    if privacy.secure_aggregation is not None:
        found += _secure(rule, strategy, norm_gate=norm_gate, asynchronous=asynchronous)
    if privacy.client_level is not None:
        found += _client_level(rule, strategy, uniform_weights=uniform_weights, asynchronous=asynchronous)
    if privacy.record_level is not None:
        found += _record_level(strategy)
    return found


def record_level_refusals(
    cox_tasks: Sequence[str],
    batch_norms: Sequence[str],
    *,
    weighting: str = "equal",
    aggregation: str = "none",
) -> list[str]:
    """Reasons against differential privacy of patients that only model and tasks can tell.

    Parameters
    ----------
    cox_tasks
        Survival tasks with Cox's likelihood.
    batch_norms
        Names of modules that normalise over the patients of a batch.
    weighting, aggregation
        The balancing method inside clients.
    """
    found = []
    if cox_tasks:
        found.append(
            f"record-level privacy bounds what one patient adds to a gradient, and Cox's likelihood of "
            f"{', '.join(cox_tasks)} compares patients with each other: a patient is in the terms of all who had "
            "an event before. Use `likelihood: discrete_hazard` for the task, where a patient's term is his own"
        )
    if batch_norms:
        found.append(
            f"record-level privacy needs a gradient per patient, and {', '.join(batch_norms)} normalise over the "
            "patients of a batch: use layer or group normalisation"
        )
    if weighting not in FIXED_WEIGHTINGS:
        found.append(
            f"weighting {weighting} learns from losses of patients without noise: use equal or static with "
            "record-level privacy"
        )
    if aggregation != "none":
        found.append(
            f"aggregation {aggregation} looks at the tasks' gradients without noise: use none with record-level "
            "privacy; sites can still be balanced (`rule: balanced`)"
        )
    return found


def _secure(rule: str, strategy: str, *, norm_gate: bool, asynchronous: bool) -> list[str]:
    found = []
    if rule not in LINEAR_RULES:
        found.append(
            f"rule {rule} looks at single updates, which secure aggregation hides from the server: use rule mean"
        )
    if norm_gate:
        found.append(
            "the gate cannot measure the norm of an update that secure aggregation hides: switch its norm bound "
            "off; clients clip their updates themselves (`client_level.clip`, or the strategy's clip)"
        )
    if asynchronous:
        found.append(
            "masks cancel within a round, and an asynchronous federation has none: use a strategy with rounds"
        )
    if strategy in SENDS_MORE:
        found.append(
            f"{strategy} sends a second vector beside the update, which is not masked: use another strategy"
        )
    if strategy == "fednova":
        found.append(
            "fednova scales single updates at the server, which does not see them: use another strategy"
        )
    if strategy == "cyclic":
        found.append(
            "cyclic transfer sums nothing, each client sees the weights of the one before: nothing to mask"
        )
    return found


def _client_level(rule: str, strategy: str, *, uniform_weights: bool, asynchronous: bool) -> list[str]:
    found = []
    if not uniform_weights:
        found.append(
            "client-level privacy bounds what any client can add, and weights by number of patients break the bound: "
            "use uniform weights"
        )
    if rule not in LINEAR_RULES:
        found.append(
            f"client-level privacy is proven for a sum with noise; how far one client can move the result of rule "
            f"{rule} is not bounded by the clipping norm: use rule mean"
        )
    if strategy in SENDS_MORE:
        found.append(
            f"{strategy} sends a second vector beside the update, which gets no noise: use another strategy"
        )
    if strategy == "fednova":
        found.append(
            "fednova scales updates by their number of steps, and all have to count alike: use fedavg"
        )
    if asynchronous:
        found.append(
            "client-level privacy is accounted for Poisson samples of clients: use a strategy with rounds"
        )
    if strategy == "cyclic":
        found.append("cyclic transfer hands one client's weights to the next without a sum to add noise to")
    return found


def _record_level(strategy: str) -> list[str]:
    if strategy != "moon":
        return []
    return [
        "moon contrasts the features of patients with those of other models, a term that the clipped gradients of "
        "patients do not hold: use fedprox, whose pull towards the server needs no patient"
    ]
