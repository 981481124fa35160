"""Whether a fit converged: what the log and the report warn of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from equipoise.platform.training.loop import FitResult
from equipoise.platform.training.params import TrainingParams

#: A loss that changed by a smaller part of itself over all epochs did not move.
STILL = 0.01


def convergence_warnings(result: FitResult, params: TrainingParams, tasks: Sequence[str]) -> list[str]:
    """Sentences about a fit that cannot be taken for converged; none for one that can.

    Parameters
    ----------
    result
        The fit. An exact one is at its optimum; only a task in which no column helped is named.
    params
        How many epochs it had.
    tasks
        Names of the tasks.

    Notes
    -----
    A fit that took a single epoch is not asked whether it moved: its one row is a mean over that epoch's steps.
    """
    if result.exact:
        return [text for task in tasks if (text := _about_penalty(result.history[0], task))]
    found = []
    epochs = len(result.history)
    if result.best_epoch == epochs and not result.stopped_early:
        found.append(
            f"the last of {epochs} epochs was the best: training stopped while it still improved; raise "
            "training.epochs or training.lr"
        )
    if epochs > 1:
        losses = {task: _losses(result, task) for task in tasks}
        known = {task: values for task, values in losses.items() if len(values) > 1}
        still = [task for task, values in known.items() if max(values) - min(values) < STILL * abs(values[0])]
        if still and len(still) == len(known):
            found.append(
                f"no loss changed by more than {STILL:.0%} over {epochs} epochs: the weights are about where they were "
                f"initialised; raise training.lr (now {params.lr:g}) or training.epochs"
            )
        elif still:
            found.append(
                f"the loss of {', '.join(still)} changed by less than {STILL:.0%} over {epochs} epochs"
            )
    return found


def _losses(result: FitResult, task: str) -> list[float]:
    """Validation losses, which no batch and no dropout disturbs; training losses where there are none."""
    for part in ("val", "train"):
        values = [row.get(f"{part}/{task}", math.nan) for row in result.history]
        if known := [value for value in values if not math.isnan(value)]:
            return known
    return []


def _about_penalty(row: Mapping[str, float], task: str) -> str:
    """What is to be said of the penalty of a task that a solver fitted."""
    gain = row.get(f"gain/{task}", math.nan)
    of_modalities = [value for key, value in row.items() if key.startswith(f"penalty/{task}/")]
    if of_modalities:  # a late fusion
        if all(math.isnan(value) for value in of_modalities):
            return f"{task}: no modality has enough labels for inner folds; nothing was fitted"
    elif math.isnan(row.get(f"penalty/{task}", math.nan)):
        return f"{task}: no training patient has a label (an event); nothing was fitted"
    if math.isnan(gain):
        return f"{task}: too few labels to choose a penalty by inner folds; the largest was taken"
    if gain <= 0:
        return f"{task}: no penalty was better in inner cross-validation than a model without any column"
    return ""
