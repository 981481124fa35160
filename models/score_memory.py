r"""Cox's likelihood over all training patients, from batches of a few of them.

A batch of 32 patients holds a handful of events, each of which it compares with a handful of patients; the gradient of
its own partial likelihood is not that of the likelihood of all patients, on average neither. :class:`ScoreMemory`
keeps the last known score of every training patient. The likelihood is taken over all of them, and its gradient flows
through the patients of the batch alone: with scores s, events e and risk sets R, for a patient j of the batch

.. math:: \partial \ell / \partial s_j
          = e_j - \sum_{k: e_k = 1, t_k \le t_j} \frac{e^{s_j}}{\sum_{R(t_k)} e^s}

(Breslow's form; Efron's likewise), which a patient without an event has, too. This is the exact gradient with respect
to a block of coordinates, at scores of which those outside the block are up to an epoch old. Times the number of
batches of an epoch it is the full-batch gradient in the mean over these batches, exactly where the weights stand still.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from equipoise.models.batch import TaskHead
from equipoise.models.cox import Ties, cox_partial_likelihood


@dataclass
class _TaskScores:
    """``[N]`` of one task over all training patients: last score, time, event, stratum; ``known``: has a label."""

    score: Tensor
    time: Tensor
    event: Tensor
    stratum: Tensor
    known: Tensor


class ScoreMemory:
    """The last known score of every training patient, for each task under Cox's model.

    Parameters
    ----------
    steps
        Batches of an epoch.
    ties
        As in :func:`~equipoise.models.cox.cox_partial_likelihood`.
    device
        Where scores are kept.
    """

    def __init__(self, steps: int, *, ties: Ties = "efron", device: torch.device | str = "cpu") -> None:
        self.steps = steps
        self.ties: Ties = ties
        self.device = device
        self._tasks: dict[str, _TaskScores] = {}
        self._seen: dict[str, tuple[Tensor, Tensor]] = {}

    def start(
        self,
        heads: Sequence[TaskHead],
        outputs: Mapping[str, Tensor],
        targets: Mapping[str, Tensor],
        label_mask: Mapping[str, Tensor],
        cohort: Tensor,
    ) -> None:
        """Take the scores of all training patients as they are before the first step.

        Without them the first epoch would compare with patients of unknown score: leaving those out makes its first
        batches what memory is to replace, and any constant would be off by the model's own constant.

        Parameters
        ----------
        heads
            Tasks; those that compare no patients are passed over.
        outputs, targets, label_mask, cohort
            Of all training patients, ``[N, …]``, as in :class:`~equipoise.models.losses.TaskLosses`.
        """
        for head in heads:
            if not head.compares_patients:
                continue
            time, event = targets[head.name].double().unbind(dim=1)
            stratum = cohort if head.stratified else torch.zeros_like(cohort)
            score = outputs[head.name][:, 0].detach().double()
            parts = (score, time, event, stratum, label_mask[head.name])
            self._tasks[head.name] = _TaskScores(*(part.clone().to(self.device) for part in parts))

    def __contains__(self, task: str) -> bool:
        return task in self._tasks

    def loss(self, task: str, risk: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Negative log partial likelihood of all training patients, and the number of their events.

        Its value is that of the sum over all events; its gradient with respect to ``risk`` is ``steps`` times that of
        the sum, so that sum / events has a gradient of the same size in a small batch as in a full one.

        Parameters
        ----------
        risk
            ``[b]`` scores of the labelled patients of the batch, of all workers, with gradient.
        position
            ``[b]`` int64, which training patients they are.

        Returns
        -------
        Tensor, Tensor
            Both 0 if the batch has no labelled patient: nothing is learned from it.
        """
        part = self._tasks[task]
        self._seen[task] = (position, risk.detach().double())
        if len(risk) == 0:
            return risk.sum(), risk.new_zeros(())
        score = part.score.index_put((position,), risk.double())[part.known]
        time, event, stratum = (values[part.known] for values in (part.time, part.event, part.stratum))
        strata = stratum if bool((stratum != stratum[0]).any()) else None
        total = cox_partial_likelihood(score, time, event, ties=self.ties, strata=strata)
        total = total.detach() + self.steps * (total - total.detach())
        return total.to(risk.dtype), event.sum().to(risk.dtype)

    def keep(self) -> None:
        """Remember the scores that the last :meth:`loss` of every task was computed from."""
        for task, (position, score) in self._seen.items():
            self._tasks[task].score[position] = score
        self._seen = {}

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        """Task → its tensors."""
        return {task: asdict(part) for task, part in self._tasks.items()}

    def load_state_dict(self, state_dict: dict[str, Any], /) -> None:
        """Take over what :meth:`state_dict` gave."""
        self._tasks = {
            task: _TaskScores(**{name: values.to(self.device) for name, values in part.items()})
            for task, part in state_dict.items()
        }
        self._seen = {}
