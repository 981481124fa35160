r"""Rank distillation: the head of one branch teaches the fused risk, or the heads of the other branches.

Source: HyPAL-Surv (MachineVisionTeam/HyPAL-Surv, MIT). Over pairs in which i had the event before the time of j,

.. math:: L_\text{dist} = \frac{1}{|\mathcal P|} \sum_{(i, j) \in \mathcal P}
          \big[(s_i - s_j) - (t_i - t_j)\big]^2, \qquad
          L = L_\text{fused} + \lambda_\text{aux} \sum_m L_m + \lambda_\text{dist} L_\text{dist},

with the student s and the teacher t, through which no gradient flows. Inverse PAL (peer-assisted learning) has the
fused log risk as its student, classical PAL the own heads of the other branches. Tasks other than survival compare
all pairs with different labels, output by output.
"""

from __future__ import annotations

import torch
from torch import Tensor

from equipoise.models.batch import TaskHead
from equipoise.models.gptomic.entries import RankDistillationParams
from equipoise.models.gptomic.modulations import Modulation
from equipoise.models.gptomic.protocol import ObjectiveInputs


class RankDistillation(Modulation):
    """Distillation of differences between patients; the losses of the branches' heads are the model's to add."""

    def __init__(self, params: RankDistillationParams) -> None:
        super().__init__(params)
        self.teacher, self.weight, self.fused = params.teacher, params.weight, params.student == "fused"

    def term(self, inputs: ObjectiveInputs) -> Tensor | None:
        """``[T]`` weighted distillation losses; 0 for a task without pairs."""
        own, present, batch = inputs.forward.own, inputs.forward.present, inputs.batch
        if self.teacher not in own:
            return None  # the data lack the branch: the model says so when it is built
        terms = []
        for head in inputs.heads:
            name = head.name
            students = (
                {"": inputs.forward.outputs[name]}
                if self.fused
                else {branch: out[name] for branch, out in own.items() if branch != self.teacher}
            )
            total = own[self.teacher][name].new_zeros((), dtype=torch.float32)
            for branch, student in students.items():
                known = batch.label_mask[name] & present[self.teacher]
                known = known & present[branch] if branch else known
                total = total + self._distance(inputs, head, student, own[self.teacher][name].detach(), known)
            terms.append(self.weight * total)
        return torch.stack(terms)

    def _distance(
        self, inputs: ObjectiveInputs, head: TaskHead, student_BK: Tensor, teacher_BK: Tensor, known_B: Tensor
    ) -> Tensor:
        batch, k = inputs.batch, head.outputs
        target = batch.targets[head.name].float().reshape(len(batch), -1)
        parts = [student_BK.float(), teacher_BK.float(), target, known_B.float()[:, None]]
        rows = inputs.gather(torch.cat(parts, dim=1))
        rows = rows[rows[:, -1] > 0]
        return pair_distance(rows[:, :k], rows[:, k : 2 * k].detach(), rows[:, 2 * k : -1].detach(), head)


def pair_distance(student_nK: Tensor, teacher_nK: Tensor, target_n: Tensor, head: TaskHead) -> Tensor:
    """Mean over comparable pairs and outputs of the squared difference of differences; 0 without pairs.

    ``target_n`` is ``[n, 1]``, or ``[n, 2]`` days and events of a survival task.
    """
    label = target_n[:, 0]
    pairs = label[:, None] < label[None, :]
    if head.kind == "survival":
        pairs = pairs & (target_n[:, 1] > 0)[:, None]
    lag = student_nK - teacher_nK
    squares = (lag[:, None, :] - lag[None, :, :]).square().mean(dim=2)
    return (squares * pairs).sum() / pairs.sum().clamp(min=1)
