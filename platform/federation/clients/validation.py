"""Inner validation of a federation: every site sends sums of losses, and the sums choose the round and the settings.

A site answers with a sum of losses and a count per task; both are added over the sites, as in other trainings the
losses of validation patients are. Cox's loss is the exception: the few validation patients of a site alone hardly form
a risk set. Where models read tables only, a site therefore sends the loss of its training and validation patients
together minus that of its training patients, per event of the validation patients (Verweij and van Houwelingen 1993,
"Cross-validation in survival analysis", Statistics in Medicine 12, 2305-2314); of all other losses this difference is
the plain sum over the validation patients.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn

from equipoise.models.losses import TaskLosses
from equipoise.platform.federation.clients.study_trainer import ClientData
from equipoise.platform.training.batches import collate
from equipoise.platform.training.build import pick_device
from equipoise.platform.training.predict import run_model
from equipoise.platform.training.targets import Targets

if TYPE_CHECKING:
    from equipoise.models.batch import CaseBatch
    from equipoise.platform.training.params import TrainingParams

#: Task → sum of losses, and number of cases or events.
LossOfTasks = dict[str, tuple[float, float]]


@dataclass(frozen=True)
class SiteBatch:
    """Training patients, then validation patients of a site as one batch, and the number of the former."""

    batch: CaseBatch
    train: int


class SiteValidation:
    """Losses of models on the inner validation patients of the sites.

    Parameters
    ----------
    targets
        Tasks, scalers, tables.
    clients
        Client → its patients; a client without validation patients sends nothing.
    training
        Ties, and what is monitored.
    min_n
        Fewest patients from which a sum that leaves a site may be computed.
    """

    def __init__(
        self, targets: Targets, clients: Mapping[str, ClientData], training: TrainingParams, *, min_n: int
    ) -> None:
        self.targets, self.training, self.min_n = targets, training, min_n
        self.clients = {
            name: data for name, data in clients.items() if data.val is not None and len(data.val)
        }
        self.device = pick_device(training.device)
        self.losses = TaskLosses(targets.heads, targets.class_weights, ties=training.ties).to(self.device)
        self.batches: dict[str, SiteBatch] = {}
        if not targets.shape.features:  # tables fit in memory; bags stay in the store
            for name, data in self.clients.items():
                assert data.val is not None
                batch = collate([*data.train, *data.val], targets).to(self.device)
                self.batches[name] = SiteBatch(batch, len(data.train))

    def of_client(self, client: str, model: nn.Module) -> LossOfTasks:
        """What a site sends about a model: the tasks of which it has labels of enough patients."""
        if client not in self.clients:
            return {}
        with torch.inference_mode():
            return self._of_tables(client, model) if client in self.batches else self._of_bags(client, model)

    def monitor(self, model_of: Callable[[str], nn.Module]) -> dict[str, float]:
        """``val/<task>``, mean losses over all sites, and ``monitor``; without the latter if no site sent anything.

        Parameters
        ----------
        model_of
            Client → the model it predicts with.
        """
        answers = (self.of_client(client, model_of(client)) for client in self.clients)
        return monitored(answers, self.targets, self.training)

    def _of_tables(self, client: str, model: nn.Module) -> LossOfTasks:
        site = self.batches[client]
        batch, train = site.batch, slice(site.train)
        training = model.training
        outputs = model.to(self.device).eval()(batch)
        model.train(training)
        every = self.losses(outputs, batch.targets, batch.label_mask, batch.cohort)
        first = self.losses(
            *({name: values[train] for name, values in part.items()}
              for part in (outputs, batch.targets, batch.label_mask)),
            None if batch.cohort is None else batch.cohort[train],
        )  # fmt: skip
        result = {}
        rows = zip(self.targets.heads, every.sums - first.sums, every.counts - first.counts, strict=True)
        for head, total, count in rows:
            labelled = batch.label_mask[head.name]
            used = labelled if head.compares_patients else labelled[site.train :]
            if int(used.sum()) >= self.min_n and float(count) > 0:
                result[head.name] = (float(total), float(count))
        return result

    def _of_bags(self, client: str, model: nn.Module) -> LossOfTasks:
        val = self.clients[client].val
        assert val is not None
        seen = run_model(model.to(self.device), self.targets, val)
        sums = self.losses.cpu()(seen.outputs, seen.targets, seen.label_mask, seen.cohort)
        self.losses.to(self.device)
        labelled = [int(seen.label_mask[head.name].sum()) for head in self.targets.heads]
        rows = zip(self.targets.heads, sums.sums, sums.counts, labelled, strict=True)
        return {
            head.name: (float(total), float(count))
            for head, total, count, n in rows
            if n >= self.min_n and float(count) > 0
        }


def monitored(
    answers: Iterable[Mapping[str, Sequence[float]]], targets: Targets, training: TrainingParams
) -> dict[str, float]:
    """``val/<task>``, mean losses over all sites, and ``monitor``; without the latter if no site sent anything.

    The monitor is the sum of the mean losses or that of the main task; metrics cannot be computed from sums of losses.

    Parameters
    ----------
    answers
        What the sites sent: task → sum of losses, and number of cases or events.
    targets, training
        The tasks, and what is monitored.
    """
    sent: dict[str, list[Sequence[float]]] = {}
    for answer in answers:
        for task, values in answer.items():
            sent.setdefault(task, []).append(values)
    means = {
        task: math.fsum(total for total, _ in pairs) / count
        for task, pairs in sent.items()
        if (count := math.fsum(count for _, count in pairs)) > 0
    }
    row = {f"val/{task}": mean for task, mean in means.items()}
    if not means:
        return row
    if training.monitor in ("main_loss", "main_metric") and targets.main.name in means:
        return row | {"monitor": means[targets.main.name]}
    return row | {"monitor": math.fsum(means.values())}
