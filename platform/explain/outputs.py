"""The one number of a prediction that is explained: log odds of a class, a value, or a risk."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from equipoise.models.hazards import hazard_risk
from equipoise.platform.errors import StudyError
from equipoise.platform.registry import nearest
from equipoise.platform.training.targets import Targets, TaskTarget


@dataclass(frozen=True)
class ExplainedOutput:
    """One number per case, differentiable in the outputs of a model.

    Attributes
    ----------
    task
        The task, as it was fitted.
    class_name
        The class whose log odds are explained: the positive one of a binary task; empty for other tasks.
    """

    task: TaskTarget
    class_name: str = ""

    @property
    def unit(self) -> str:
        """What the number is.

        >>> from equipoise.models.batch import TaskHead
        >>> ExplainedOutput(TaskTarget(TaskHead("MSI", "binary", 2), ("MSI-H",)), "MSI-H").unit
        'log odds of MSI-H'
        """
        head = self.task.head
        if self.class_name:
            return f"log odds of {self.class_name}"
        if head.kind == "regression":
            return head.name
        return "log risk" if head.compares_patients else "risk (minus the expected intervals survived)"

    def of(self, outputs: Mapping[str, Tensor]) -> Tensor:
        """``[B]`` from the outputs of a model.

        For classes :math:`z_k - \\log \\sum_{j \\ne k} e^{z_j}`, the logit of the probability of class k: unlike an
        output :math:`z_k` it does not change when a constant is added to all of them. A value is in the units of the
        table. A risk is that of the predictions table.
        """
        head, out_BK = self.task.head, outputs[self.task.head.name]
        if head.kind in ("binary", "multiclass"):
            at = self.task.classes.index(self.class_name) + (head.kind == "binary")
            others = torch.cat([out_BK[:, :at], out_BK[:, at + 1 :]], dim=1)
            return out_BK[:, at] - others.logsumexp(dim=1)
        if head.kind == "regression":
            scaler = self.task.scaler
            return out_BK[:, 0] if scaler is None else out_BK[:, 0] * scaler.scale + scaler.shift
        if head.text is not None:
            steps_K = torch.arange(head.outputs, device=out_BK.device, dtype=out_BK.dtype)
            return -(out_BK.softmax(dim=1) @ steps_K)
        return out_BK[:, 0] if head.edges is None else hazard_risk(out_BK)[:, 0]


def explained_outputs(targets: Targets, task: str, class_name: str | None = None) -> list[ExplainedOutput]:
    """The numbers of a task: one, or one per class of a multiclass task unless a class is named.

    Raises
    ------
    StudyError
        If the model has no such task, or the task no such class.
    """
    known = {target.head.name: target for target in targets.tasks}
    if task not in known:
        raise StudyError(f"the model has no task {task!r}; it has {', '.join(known)}{nearest(task, known)}")
    target = known[task]
    if class_name:
        if class_name not in target.classes:
            named = ", ".join(target.classes) or "no classes"
            raise StudyError(
                f"task {task} has no class {class_name!r}; it has {named}{nearest(class_name, target.classes)}"
            )
        return [ExplainedOutput(target, class_name)]
    return [ExplainedOutput(target, name) for name in target.classes or ("",)]
