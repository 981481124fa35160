"""Initial models of a training: random weights, or those of a pre-trained model with new heads."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from equipoise.models.base import MultiTaskModel
from equipoise.models.pretrained_folder import PretrainedFolder, TrainedTiles, read_pretrained
from equipoise.platform.errors import DataError, StudyError
from equipoise.platform.training.build import build_model
from equipoise.platform.training.params import Recipe, TrainingParams, entry_params
from equipoise.platform.training.targets import Targets, fit_targets

if TYPE_CHECKING:
    from equipoise.datasets.cohorts.cases import Case
    from equipoise.datasets.tables.tasks import Task

log = logging.getLogger("equipoise")

_KEY = "training.start"
_SHOWN = 6


@dataclass(frozen=True)
class Start:
    """Which tensors a model got from a pre-trained one.

    Attributes
    ----------
    folder
        Where they come from.
    taken
        Names of the tensors that were taken.
    left
        Tensors of the pre-trained model that were not: its tasks' own.
    new
        Tensors of the model that keep their random weights: its tasks' own.
    """

    folder: PretrainedFolder
    taken: tuple[str, ...]
    left: tuple[str, ...]
    new: tuple[str, ...]

    def __str__(self) -> str:
        tasks = ", ".join(self.folder.tasks)
        return (
            f"start from {self.folder.path} (pre-trained on {tasks}): {_listed('taken', self.taken)}; "
            f"{_listed('not taken', self.left)}; {_listed('new here', self.new)}"
        )


def recipe_targets(recipe: Recipe, tasks: Sequence[Task], train: Iterable[Case]) -> Targets:
    """What a recipe fits to training patients before its model: scalers, class weights, heads, columns of tables.

    Parameters
    ----------
    recipe
        Its settings of targets and tables.
    tasks
        Of the study.
    train
        Training patients, read once, one at a time.
    """
    return fit_targets(
        tasks,
        train,
        class_weights=recipe.training.class_weights,
        scaling=recipe.training.target_scaling,
        tables=recipe.tables,
        text=recipe.training.text,
        presence=recipe.needs_presence,
    )


def initial_model(recipe: Recipe, targets: Targets, *, seed: int) -> nn.Module:
    """The model of a recipe before its training: what tasks share from ``training.start``, if given, the rest random.

    Parameters
    ----------
    recipe
        Its paths are absolute.
    targets
        Widths of the data, and tasks.
    seed
        Of the random weights.

    Raises
    ------
    StudyError
        If the model cannot be built, or the pre-trained one is another.
    DataError
        If the folder of the pre-trained model is missing or damaged.
    """
    model = build_model(recipe.model, recipe.model_params, targets.shape, targets.heads, seed=seed)
    if recipe.training.start is not None:
        start_from(model, recipe)
    return model


def start_from(model: nn.Module, recipe: Recipe) -> Start:
    """Put what the tasks of a pre-trained model share into a model.

    Raises
    ------
    StudyError, DataError
        As :func:`initial_model`.
    """
    folder = pretrained_at(str(recipe.training.start))
    params = entry_params("models", recipe.model, recipe.model_params).model_dump(mode="json")
    different = [
        f"{key}: {value!r} there, {params.get(key)!r} here"
        for key, value in folder.model_params.items()
        if params.get(key) != value
    ]
    if folder.model != recipe.model:
        raise StudyError(
            f"the pre-trained model is a {folder.model}, the study trains a {recipe.model}",
            where=f"{_KEY}: {folder.path}",
            fix=f"write model: {{kind: {folder.model}, …}}",
        )
    if not isinstance(model, MultiTaskModel) or not model.shared_parameters():
        raise StudyError(
            f"tasks of this {recipe.model} share no parameter, so there is nothing to start from",
            where=_KEY,
            fix="leave it out, or take a model with hidden layers",
        )
    try:
        tensors = folder.tensors()
    except ValueError as error:
        raise _as_data_error(error) from error
    own = model.state_dict()
    new = own_of_tasks(model)
    shared = [name for name in own if name not in new]
    problems = [f"{name} is missing" for name in shared if name not in tensors]
    problems += [
        f"{name} is {list(tensors[name].shape)} there, {list(own[name].shape)} here"
        for name in shared
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    if problems:
        raise StudyError(
            f"the pre-trained {folder.model} does not fit: {'; '.join(problems[:_SHOWN])}"
            + (f"; … {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""),
            where=f"{_KEY}: {folder.path}",
            fix=f"give the model the parameters it was pre-trained with ({'; '.join(different)})"
            if different
            else "extract the tiles with the encoder it was pre-trained on",
        )
    with torch.no_grad():
        for name in shared:
            own[name].copy_(tensors[name])
    left = tuple(name for name in tensors if name not in shared)
    start = Start(folder, tuple(shared), left, tuple(sorted(new)))
    log.info("%s", start)
    return start


def own_of_tasks(model: MultiTaskModel) -> set[str]:
    """Names in the state dictionary that belong to single tasks: heads, tokens, attentions of their own."""
    ids: set[int] = set()
    for index in range(len(model.task_heads)):
        for part in model.task_modules(index):
            tensors = [part] if isinstance(part, nn.Parameter) else [*part.parameters(), *part.buffers()]
            ids.update(id(tensor) for tensor in tensors)
    # Not those of the state dictionary itself, which are other objects over the same memory.
    named = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    own = {name for name, tensor in named if id(tensor) in ids}
    return own & model.state_dict().keys()


def pretrained_at(folder: str | Path) -> PretrainedFolder:
    """What the folder of a pre-trained model says.

    Raises
    ------
    DataError
        If it is missing, or holds something else.
    """
    try:
        return read_pretrained(folder)
    except (FileNotFoundError, ValueError) as error:
        raise _as_data_error(error) from error


def check_start_tiles(start: str | Path, tiles: TrainedTiles) -> None:
    """Refuse to start on other tile features than the model was pre-trained on: nothing would fail, but what it learned
    would mean nothing.

    Raises
    ------
    StudyError
        Naming everything that differs.
    """
    folder = pretrained_at(start)
    if differences := folder.tiles.differences(tiles):
        raise StudyError(
            f"the model was pre-trained on {'; '.join(differences)}",
            where=f"{_KEY}: {folder.path}",
            fix="extract the tiles of this study as those of the pre-training",
        )


def training_record(params: TrainingParams) -> dict[str, Any]:
    """Settings of a training as plain data for a fingerprint: where it starts is known by its content, not its path."""
    record = params.model_dump(mode="json")
    if params.start is not None:
        record["start"] = pretrained_at(params.start).fingerprint
    return record


def recipe_record(recipe: Recipe) -> dict[str, Any]:
    """A recipe as plain data for a fingerprint, see :func:`training_record`."""
    return recipe.model_dump(mode="json") | {"training": training_record(recipe.training)}


def _as_data_error(error: Exception) -> DataError:
    what, _, fix = str(error).partition("\n")
    return DataError(what, where=_KEY, fix=fix or None)


def _listed(what: str, names: Sequence[str]) -> str:
    shown = ", ".join(names[:_SHOWN]) + (", …" if len(names) > _SHOWN else "")
    return f"{len(names)} tensors {what} ({shown})" if names else f"0 tensors {what}"
