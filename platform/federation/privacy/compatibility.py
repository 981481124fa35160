"""Which privacy settings are incompatible with which other settings, and why. Light: no torch, no NumPy.

Strategies and server aggregations say what they can and need (:meth:`equipoise.platform.registry.Entry.attribute`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from equipoise.platform.federation.privacy.params import NoisedStatistics, PrivacyParams
from equipoise.platform.registry import Entry, entries, get

if TYPE_CHECKING:
    from equipoise.datasets.omics.params import TableParams
    from equipoise.datasets.tables.tasks import Task


def refusals(
    privacy: PrivacyParams,
    *,
    server_aggregation: Entry,
    strategy: Entry,
    uniform_weights: bool,
    norm_factor: bool = False,
    max_norm: bool = False,
    participation: str = "all",
    min_clients: int = 1,
    max_share: float | None = None,
) -> list[str]:
    """Reasons, known without data, why the settings of a federation are incompatible; empty if they are not.

    Parameters
    ----------
    privacy
        The ``privacy`` section.
    server_aggregation, strategy
        Their entries.
    uniform_weights
        Whether all clients count equally.
    norm_factor, max_norm
        Whether the server bounds the norm of single updates, by those of other clients or by a number.
    participation, min_clients
        How clients are drawn, and the fewest for a step.
    max_share
        Of ``server_aggregation: mean``: a bound on shares needs all updates of a round before they can be summed.
    """
    reasons = []
    if max_share is not None and (privacy.secure_aggregation or privacy.client_level):
        reasons.append(
            "a bound on shares (`max_share`) needs the single updates of a round, and here only their sum is known: "
            "use weights: uniform instead"
        )
    if privacy.secure_aggregation is not None:
        reasons += _secure(server_aggregation, strategy, norm_bound=norm_factor or max_norm)
    if privacy.client_level is not None:
        reasons += _client_level(server_aggregation, strategy, uniform_weights=uniform_weights)
        reasons += _participation(privacy, participation, min_clients)
        # With secure aggregation a bound is refused already.
        if norm_factor and privacy.secure_aggregation is None:
            reasons.append(
                "with client-level privacy one client's update must not decide about another's, as it would in the "
                "median norm: write validation: {norm_factor: null}; updates are clipped anyway"
            )
    if privacy.record_level is not None:
        reasons += _record_level(strategy)
    return reasons + _statistics(privacy)


def balancing_refusals(privacy: PrivacyParams, weighting: str, aggregation: str) -> list[str]:
    """Reasons why clients cannot balance tasks with this method."""
    if privacy.record_level is None:
        return []
    return record_level_refusals((), (), weighting=weighting, aggregation=aggregation)


#: Why dropout that is balanced by class cannot be fitted from noisy sums.
PRESENCE_REFUSAL = (
    "sums with noise do not say how many patients of a class have a modality: write model: "
    "{class_balanced_dropout: false}"
)


def statistics_refusals(
    statistics: NoisedStatistics, tasks: Sequence[Task], tables: TableParams
) -> list[str]:
    """Reasons why tables and tasks of a study cannot be fitted from noised sums."""
    wanted = [task.name for task in tasks if task.type == "regression"]
    wanted += [f"clinical.{c.column}" for c in tables.clinical if c.type == "number"]
    reasons = [
        f"noised sums need the public range of {name}: write privacy: {{statistics: {{bounds: {{{name}: [lowest, "
        "highest]}}}"
        for name in wanted
        if name not in statistics.bounds and name.partition(".")[0] not in statistics.bounds
    ]
    if "rna" in statistics.bounds and tables.rna.transform != "none":
        reasons.append(
            f"noised sums are of RNA as the table holds it, and transform: {tables.rna.transform} needs the values of "
            "single patients: bring the table to its scale and write tables: {rna: {transform: none}}"
        )
    if tables.rna.gene_sets is not None and tables.rna.gene_sets.use == "scores":
        reasons.append(
            "scores of gene sets need products of columns, which noised sums do not hold: write "
            "tables: {rna: {gene_sets: {use: genes}}}"
        )
    for name in ("rna", "cnv", "mutation"):
        if getattr(tables, name).components is not None:
            reasons.append(
                f"components of {name} need products of columns, which noised sums do not hold: leave out "
                f"tables.{name}.components"
            )
    return reasons


def _statistics(privacy: PrivacyParams) -> list[str]:
    """What leaves before training: declared public, or noised."""
    noised = isinstance(privacy.statistics, NoisedStatistics)
    if privacy.statistics is None and (privacy.client_level or privacy.record_level):
        more = " or {noise: 1, bounds: {…}}" if privacy.client_level is None else ""
        return [
            "sites send counts of labels and sums for scalers before training, and exact ones reveal patients: say "
            f"what becomes of them, privacy: {{statistics: public}}{more}"
        ]
    if noised and privacy.client_level is not None:
        return [
            "noise on counts and sums hides patients, not clients: with client_level write "
            "privacy: {statistics: public}"
        ]
    if noised and privacy.record_level is None:
        return [
            "noise on counts and sums is counted by record_level: add it, or leave out privacy.statistics"
        ]
    return []


def record_level_refusals(
    cox_tasks: Sequence[str],
    batch_norms: Sequence[str],
    *,
    weighting: str = "equal",
    aggregation: str = "none",
    balances_branches: bool = False,
) -> list[str]:
    """Reasons, known from model and tasks, why differential privacy of patients is impossible.

    Parameters
    ----------
    cox_tasks
        Survival tasks with Cox's likelihood.
    batch_norms
        Names of modules that normalise over the patients of a batch.
    weighting, aggregation
        The balancing method inside clients.
    balances_branches
        Whether the model keeps its branches in balance, by coefficients or by losses of their own.
    """
    reasons = []
    if balances_branches:
        reasons.append(
            "the balance between branches looks at all patients of a step, and private gradients are those of the "
            "fused loss of single patients: write modulation: none, and another fusion than late"
        )
    if cox_tasks:
        reasons.append(
            f"record-level privacy bounds what one patient adds to a gradient, and Cox's likelihood of "
            f"{', '.join(cox_tasks)} compares patients with each other: a patient is in the terms of all patients with "
            "an earlier event. Use `likelihood: discrete_hazard` for the task, which has a separate term per patient"
        )
    if batch_norms:
        reasons.append(
            f"record-level privacy needs a gradient per patient, and {', '.join(batch_norms)} normalise over the "
            "patients of a batch: use layer or group normalisation"
        )
    if not get("weightings", weighting).attribute("fixed"):
        fixed = " or ".join(name for name, entry in entries("weightings").items() if entry.attribute("fixed"))
        reasons.append(
            f"weighting {weighting} learns from losses of patients, to which no noise is added: use {fixed} "
            "with record-level privacy"
        )
    if get("aggregators", aggregation).attribute("kind") != "none":
        reasons.append(
            f"aggregation {aggregation} uses the gradients of tasks, to which no noise is added: use none with "
            "record-level privacy; sites can still be balanced (`server_aggregation: balanced`)"
        )
    return reasons


def _secure(server_aggregation: Entry, strategy: Entry, *, norm_bound: bool) -> list[str]:
    reasons = []
    if not server_aggregation.attribute("linear"):
        reasons.append(
            f"server aggregation {server_aggregation.name} needs single updates, which secure aggregation hides from "
            "the server: use server_aggregation: mean"
        )
    if norm_bound:
        reasons.append(
            "the norm of an update that secure aggregation hides cannot be checked: write validation: "
            "{norm_factor: null}; clients clip their updates themselves (`client_level.clip`)"
        )
    if strategy.attribute("asynchronous"):
        reasons.append(
            "masks cancel within a round, and an asynchronous federation has none: use a strategy with rounds"
        )
    if strategy.attribute("sends_second_vector"):
        reasons.append(
            f"{strategy.name} sends a second vector with the update, which is not masked: use another strategy"
        )
    if strategy.attribute("rescales_updates"):
        reasons.append(
            f"{strategy.name} scales single updates at the server, which sees only their sum: use another strategy"
        )
    if strategy.attribute("sequential"):
        reasons.append(
            f"with {strategy.name} each client sees the weights of the previous one; there is no sum, and nothing to "
            "mask"
        )
    return reasons


def _client_level(server_aggregation: Entry, strategy: Entry, *, uniform_weights: bool) -> list[str]:
    reasons = []
    if not uniform_weights:
        reasons.append(
            "client-level privacy bounds what any client can add, and weights by number of patients break the bound: "
            "use uniform weights"
        )
    if not server_aggregation.attribute("linear"):
        reasons.append(
            f"client-level privacy is proven for a sum with noise; how far one client can move the result of "
            f"{server_aggregation.name} is not bounded by the clipping norm: use server_aggregation: mean"
        )
    if strategy.attribute("sends_second_vector"):
        reasons.append(
            f"{strategy.name} sends a second vector with the update, to which no noise is added: use another strategy"
        )
    if strategy.attribute("rescales_updates"):
        reasons.append(
            f"{strategy.name} scales single updates, and all have to count equally: use another strategy"
        )
    if strategy.attribute("asynchronous"):
        reasons.append(
            "client-level privacy is accounted for rounds, each with its noise: use a strategy with rounds"
        )
    if strategy.attribute("sequential"):
        reasons.append(
            f"{strategy.name} passes one client's weights to the next, without a sum to which noise could be added"
        )
    return reasons


def _participation(privacy: PrivacyParams, participation: str, min_clients: int) -> list[str]:
    assert privacy.client_level is not None
    reasons = []
    if participation not in ("all", "poisson"):
        reasons.append(
            f"the step of client-level privacy is divided by the number of clients that is expected, and participation "
            f"scheme {participation} gives clients different chances: use poisson or all"
        )
    if min_clients > 1:
        reasons.append(
            "with client-level privacy every round takes its noisy step, whoever took part, since a round that changes "
            "nothing would tell who did not: leave out participation.min_clients"
        )
    if privacy.client_level.adversary == "models":
        if participation != "poisson":
            reasons.append(
                "adversary: models claims that nobody sees who takes part, and without drawing everybody does: write "
                "participation: {scheme: poisson, fraction: …}"
            )
        if privacy.secure_aggregation is not None:
            reasons.append(
                "adversary: models claims that nobody sees who takes part, and secure aggregation tells the "
                "participants of a round each other's keys: use adversary: participation"
            )
    return reasons


def _record_level(strategy: Entry) -> list[str]:
    if not strategy.attribute("compares_patients"):
        return []
    return [
        f"{strategy.name} compares the features of patients with those of other models, a term that the clipped "
        "gradients of patients do not contain: use another strategy, for example fedprox, whose proximal term needs no "
        "patients"
    ]
