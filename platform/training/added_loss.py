"""The loss that validation patients add to that of the training patients.

Source: Verweij and van Houwelingen, "Cross-validation in survival analysis", Statistics in Medicine 12 (1993) 2305-14:
Cox's partial likelihood of all patients minus that of the training patients. Every event is compared with all patients
at risk; among a handful of validation patients alone there would be few pairs, and none where only one has an event.
Losses of other tasks are sums over patients, and for them the difference is the validation loss.
"""

from __future__ import annotations

from equipoise.models.losses import LossSums, TaskLosses
from equipoise.platform.training.predict import Outputs, joined_outputs


def added_loss(losses: TaskLosses, train: Outputs, val: Outputs) -> float:
    """Sum over tasks of the mean loss that validation adds, per validation label (per event under Cox's model).

    Parameters
    ----------
    losses
        Of the tasks.
    train, val
        Outputs of one model for training and validation patients, without dropout.

    Returns
    -------
    float
        0 for a task without a validation label.
    """
    together, alone = (_sums(losses, outputs) for outputs in (joined_outputs([train, val]), train))
    added = LossSums(together.sums - alone.sums, together.counts - alone.counts)
    return float(added.means().where(added.counts > 0, 0).sum())


def _sums(losses: TaskLosses, outputs: Outputs) -> LossSums:
    double = {name: out.double() for name, out in outputs.outputs.items()}
    return losses(double, outputs.targets, outputs.label_mask, outputs.cohort)
