"""What a federation promises about privacy, against whom, and what it does not: the text of the report.

Every sentence states a fact of the settings; none is written that the code does not keep. Light: no torch, no NumPy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from equipoise.platform.federation.params import FederationParams
from equipoise.platform.federation.privacy.params import (
    ClientLevelParams,
    NoisedStatistics,
    RecordLevelParams,
)


@dataclass(frozen=True)
class PrivacySpending:
    """What the federations of a run did.

    Parameters
    ----------
    clients, federations
        Number of clients, and of trainings (plans times folds).
    largest, together
        ``clients`` and ``patients`` → epsilon of the federation that spent most, and of all federations one after the
        other; of the site with the largest one.
    withheld
        Reason → rounds, of sums that were not revealed.
    searched
        Whether a search trained federations on these patients before.
    """

    clients: int
    federations: int
    largest: Mapping[str, float] = field(default_factory=dict)
    together: Mapping[str, float] = field(default_factory=dict)
    withheld: Mapping[str, int] = field(default_factory=dict)
    searched: bool = False


def privacy_statement(params: FederationParams, spent: PrivacySpending) -> list[str]:
    """The statement, a paragraph each: adversary, neighbours, what is released and how, and what is not covered."""
    privacy = params.privacy
    lines = [_what_left(params)]
    if privacy.client_level is not None:
        lines += _of_clients(params, privacy.client_level, spent)
    if privacy.record_level is not None:
        lines += _of_patients(params, privacy.record_level, spent)
    if privacy.secure_aggregation is not None:
        lines += _secure(spent)
    if privacy.client_level is None and privacy.record_level is None:
        lines.append(
            "No differential privacy: updates, their sums, losses and the sums for scalers can reveal information "
            "about single patients. Sites that need more write federation: {privacy: …}."
        )
    return [*lines, *_not_covered(params, spent)]


def _what_left(params: FederationParams) -> str:
    privacy = params.privacy
    private = privacy.client_level is not None or privacy.record_level is not None
    before = (
        "Before training every site sent its number of patients and counts of labels per task and group of parameters, "
        f"and sites of at least {params.min_n} patients sums over labels and tables for scalers and transforms"
    )
    update = "masked differences of weights" if privacy.secure_aggregation else "differences of weights"
    update += ", with further vectors of some strategies" if not privacy.secure_aggregation else ""
    rounds = f"In every round it took part in, a site sent {update}, and its counts"
    if not private:
        rounds += (
            f" and mean training losses of at least {params.min_n} patients; after the round, all sites may have sent "
            f"losses of the new model on at least {params.min_n} of their validation patients (of Cox's model of "
            "tables: what these add to the likelihood of their training patients)"
        )
    failures = (
        "a site that failed sent the kind of error only"
        if private
        else "a site that failed sent the text of the error"
    )
    return f"What left the sites. {before}. {rounds}; {failures}. No row of a table and no tile left."


def _of_clients(params: FederationParams, level: ClientLevelParams, spent: PrivacySpending) -> list[str]:
    poisson = params.participation.scheme == "poisson"
    rate = params.participation.fraction if poisson else 1.0
    if level.adversary == "models":
        sees = (
            "sees the global model after every round and nothing else: not who took part, no audit log, no status, no "
            f"message. Sites are drawn with probability {rate:g}, which counts in its favour"
        )
    else:
        sees = (
            "sees the global model after every round and who took part in it. That sites are drawn therefore does not "
            "lower epsilon"
        )
    return [
        f"Privacy of sites (differential privacy, DP-FedAvg). The adversary {sees}. It is not the server, which sees "
        + (
            "the sum of the updates of a round before noise is added."
            if params.privacy.secure_aggregation
            else "every update before noise is added."
        ),
        "Neighbours are two federations of the same sites in which all updates of one site are its own or zero. "
        f"Every update is clipped to a norm of {level.clip:g}; in every round, whoever took part, noise of standard "
        f"deviation {level.noise * level.clip:g} is added to the sum for every parameter that training can move.",
        *_epsilons("clients", "sites", level.delta, spent),
        f"With {spent.clients} sites such an epsilon says little about a single hospital.",
    ]


def _of_patients(params: FederationParams, level: RecordLevelParams, spent: PrivacySpending) -> list[str]:
    statistics = params.privacy.statistics
    before = ", and what it sent before training" if isinstance(statistics, NoisedStatistics) else ""
    lines = [
        "Privacy of patients (differential privacy, DP-SGD). The adversary is everybody outside a site, the server and "
        f"the other sites included; it sees every update of the site{before}, and all global models.",
        "Neighbours are two data sets of a site in which one patient's labels, slides and tables are there or missing; "
        f"the number of patients is public. The gradient of every patient is clipped to a norm of {level.clip:g}, and "
        f"noise of standard deviation {level.noise * level.clip:g} is added to the sum of every step. All steps of all "
        "requests to a site count, also those whose update was rejected, lost or late.",
    ]
    if isinstance(statistics, NoisedStatistics):
        lines.append(
            "Before training, values were moved into declared public ranges; noise of "
            f"{statistics.noise:g} times what one patient can add was added once to the sums and once to the counts, "
            "and both are part of epsilon."
        )
    return lines + _epsilons("patients", "the patients of the site with the largest one", level.delta, spent)


def _epsilons(unit: str, whose: str, delta: float, spent: PrivacySpending) -> list[str]:
    if unit not in spent.largest:
        return []
    text = f"Spent: epsilon {spent.largest[unit]:.3g} at delta {delta:g} for {whose}"
    if spent.federations > 1 and unit in spent.together:
        text += (
            f", in the federation that spent most; {spent.together[unit]:.3g} for all {spent.federations} federations "
            "of this run together, which train on the same patients"
        )
    return [text + "."]


def _secure(spent: PrivacySpending) -> list[str]:
    lines = [
        "Secure aggregation. The server saw masked updates and sums of at least three of them, for every group of "
        "parameters; counts of labels and the sums for scalers were not masked. Server and sites are assumed to follow "
        "the protocol, and not to tell each other what they know: sites that do, and two rounds that differ in one "
        "participant, are not covered."
    ]
    if spent.withheld:
        rows = "; ".join(f"{reason} ({count} rounds)" for reason, count in spent.withheld.items())
        lines.append(f"Sums that were not revealed, so that nothing was updated: {rows}.")
    return lines


def _not_covered(params: FederationParams, spent: PrivacySpending) -> list[str]:
    privacy = params.privacy
    private = privacy.client_level is not None or privacy.record_level is not None
    lines = []
    if private:
        gaps = []
        if privacy.statistics == "public":
            gaps.append(
                "everything that sites sent before training (counts of labels, sums for scalers and transforms), which "
                "the study declares public"
            )
        gaps += [
            "names of sites, tasks and columns, and numbers of patients",
            "whether and why a site failed or an update was rejected, and when messages arrived",
            "the pooled, local, ensemble and linear models, which were trained without noise",
            "predictions, metrics and figures of this report, which are computed from patients without noise",
            "what could be read from the last digits of noise drawn in floating point",
        ]
        if spent.searched:
            gaps.append(
                "the search, whose trials trained on the same patients and spent budgets of their own"
            )
        lines.append(
            "Not covered by the guarantee: "
            + "; ".join(gaps)
            + ". No losses on validation patients and no comparison "
            "of server aggregations were computed, since no noise would be on them."
        )
    lines.append(
        "This is a simulation on one machine or cluster: whoever can read its memory or the run folder can read "
        "patient data"
        + (
            ", and noise and keys are drawn from the study's seed, which must then stay secret."
            if private or privacy.secure_aggregation
            else "."
        )
    )
    return lines
