r"""The objective of a federation: that of pooled training, written as a weighted mean of the clients' objectives.

Pooled training minimises :math:`\sum_t L_t` with :math:`L_t` the mean loss over the :math:`N_t` labels of a task (over
events, for Cox's model). A client k that holds :math:`n_{kt}` of them knows the mean :math:`L_{kt}` over its own, and

.. math:: \sum_t L_t = \sum_t \sum_k \frac{n_{kt}}{N_t} L_{kt} = \sum_k \frac{v_k}{V} F_k, \qquad
          F_k = \sum_t r_{kt} L_{kt}, \quad r_{kt} = \frac{n_{kt}}{N_t} \frac{V}{v_k},

whatever weights :math:`v_k` with sum V the server averages with. Every client tells its counts of labels once; the
server answers with their totals; each client then scales the losses of its tasks by :math:`r_{kt}`. Cox's likelihood
within clients is the likelihood stratified by client, exactly.

*Weights.* :math:`v_k` is the mean over tasks of the client's share of the labels, in units of patients: with complete
labels its number of patients, with one Cox task its number of events. Then :math:`\sum_t r_{kt}` is the number of
tasks at every client, so that learning rates, clipping norms and robust aggregations mean the same everywhere.

*Groups of parameters.* A group that only some clients train (the head of a task, the encoder of a modality) is averaged
over those, with weights :math:`v_{kg}` of its own: the labels of the task, or :math:`v_k` times the share of patients
with the modality. The gradient of the group is multiplied by :math:`\frac{v_k}{V} \frac{V_g}{v_{kg}}` at the client,
which makes the mean over those clients the pooled gradient, and the step of a head that of its own mean loss.

*Participation.* Totals are those of all clients that joined, not of the participants of a round: a task that few sites
know would otherwise count fully whenever one of them is drawn and not at all in other rounds, and lose against the
tasks that everybody knows. With totals of all, the expected step is the pooled one when clients are drawn alike (up to
the ratio of two means, as in every weighted FedAvg); clients drawn in proportion to their size are weighted by the
inverse of their probability (Horvitz and Thompson 1952).

*Mini-batches.* The factor of a task's summed loss in a batch of b of n patients is :math:`r_{kt} n / (b n_{kt})`,
whatever number of labels the batch holds, so that the expected step is that of a full batch. For the same reason a
client counts in the mean with all groups that it can train, also in rounds in which it drew no label of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from equipoise.platform.errors import FederationError
from equipoise.platform.federation.messages import ClientManifest, GroupWeights, Totals, Weighting
from equipoise.platform.federation.participation import sampling_plan
from equipoise.platform.federation.vector import SHARED

#: The weighting of clients under which each counts once, whatever its patients; no weighting of losses.
ALL_CLIENTS_EQUAL: Weighting = "equal"


class ClientShare(NamedTuple):
    """A client's part of the objective.

    Parameters
    ----------
    weights
        Group → the client's weight in the mean of its updates; 0 if it cannot train the group.
    fractions
        Group → the client's part of the weights of all clients, whether they take part or not.
    task_factors
        Task → :math:`r_{kt} n / n_{kt}`, the factor of a task's summed loss over a batch, per patient of the batch.
    group_factors
        Group → the factor of its gradient.
    """

    weights: Mapping[str, float]
    fractions: Mapping[str, float]
    task_factors: Mapping[str, float]
    group_factors: Mapping[str, float]


@dataclass(frozen=True)
class Objective:
    """The objective of all clients together; the same at the server and at every client.

    Parameters
    ----------
    totals
        What the server tells.
    epochs, steps
        Length of a round, which weights clients that are visited one after the other.
    """

    totals: Totals
    epochs: int = 1
    steps: int | None = None

    @classmethod
    def of(
        cls,
        manifests: Mapping[str, ClientManifest],
        groups: Sequence[str],
        *,
        weighting: Weighting = "labels",
        equal: bool = False,
        draw: float = 0.0,
        length: tuple[int, int | None] = (1, None),
    ) -> Objective:
        """The objective of the clients that joined.

        Parameters
        ----------
        manifests
            Client → what it declared.
        groups
            Of the schema.
        weighting, equal, draw
            As in :class:`~equipoise.platform.federation.messages.Totals`.
        length
            Epochs, or steps, of a round.

        Raises
        ------
        FederationError
            If a client has parameters to train and declares no label.
        """
        tasks: dict[str, float] = {}
        for client, manifest in sorted(manifests.items()):
            if manifest.learns and not any(manifest.labels.values()):
                raise FederationError(f"client {client} trains parameters and declares no label")
            for task, count in _masses(manifest, equal).items():
                tasks[task] = tasks.get(task, 0.0) + count
        first = cls(Totals(tasks, {}, weighting, equal, draw), *length)
        ordered = [manifest for _, manifest in sorted(manifests.items()) if manifest.learns]
        sums = {group: math.fsum(first._weight(m, group) for m in ordered) for group in {*groups, SHARED}}
        return cls(Totals(tasks, dict(sorted(sums.items())), weighting, equal, draw), *length)

    def share(self, manifest: ClientManifest) -> ClientShare:
        """The part of the client that declared this."""
        trunk, total = self._weight(manifest, SHARED), self.totals.groups[SHARED]
        inverse = 1 / self._probability(manifest)
        weights, fractions, factors = {}, {}, {}
        for group in manifest.counts:
            weight = self._weight(manifest, group)
            weights[group] = weight * inverse
            fractions[group] = weight / (self.totals.groups[group] or 1.0)
            if weight and self.totals.weighting != "steps":
                factors[group] = (
                    trunk * self.totals.groups[group] / (total * weight)
                )  # exactly 1 if all is known
        tasks = {
            task: count * total * manifest.n / (self.totals.tasks[task] * trunk * manifest.labels[task])
            for task, count in _masses(manifest, self.totals.equal).items()
            if trunk
        }
        return ClientShare(weights, fractions, tasks, factors)

    def _weight(self, manifest: ClientManifest, group: str) -> float:
        """Weight of a client in a group, before the correction for unequal probabilities."""
        if not (manifest.learns if group == SHARED else manifest.counts.get(group)):
            return 0.0
        if self.totals.weighting == ALL_CLIENTS_EQUAL:
            return 1.0
        if self.totals.weighting == "steps":
            return float(sampling_plan(manifest.n, manifest.batch, self.epochs, self.steps)[1])
        masses, totals = _masses(manifest, self.totals.equal), self.totals.tasks
        mean = math.fsum(totals.values()) / len(totals)  # labels of a task, so that weights are in patients
        task = group.removeprefix("task:")
        if task != group:
            return masses[task] * (mean / totals[task])
        weight = math.fsum(count * (mean / totals[name]) for name, count in masses.items()) / len(totals)
        if group == SHARED:
            return weight
        return weight * (manifest.counts[group] / (manifest.counts.get(SHARED) or manifest.n))

    def _probability(self, manifest: ClientManifest) -> float:
        """Relative probability with which the client is drawn for a round."""
        return min(1.0, self.totals.draw * manifest.n) if self.totals.draw else 1.0


def _masses(manifest: ClientManifest, equal: bool) -> dict[str, float]:
    """Task → what the client counts in it: its labels, or 1."""
    return {task: 1.0 if equal else float(count) for task, count in manifest.labels.items() if count}


def weight_table(weights: Sequence[Mapping[str, float]], groups: Sequence[str]) -> GroupWeights:
    """Group → ``[C]`` weights of C updates."""
    return {
        group: np.array([of_update.get(group, 0.0) for of_update in weights], np.float64) for group in groups
    }
