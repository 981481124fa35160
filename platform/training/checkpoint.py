"""Checkpoints of a training after every epoch: written atomically, read with ``weights_only``.

A checkpoint belongs to one training and is refused by any other. It holds neither a random generator nor a learning
rate schedule: both are functions of (seed, epoch), see :mod:`equipoise.platform.training.loop`.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from equipoise.datasets.atomic_io import atomic_path
from equipoise.models.base import frozen_digests
from equipoise.models.gptomic.protocol import BranchedModel
from equipoise.platform.errors import DataError
from equipoise.platform.fingerprints import content_hash, require_same
from equipoise.platform.training.batches import CaseList
from equipoise.platform.training.params import BalancingParams, TrainingParams
from equipoise.platform.training.start import training_record
from equipoise.platform.training.targets import Targets

log = logging.getLogger("equipoise")

#: Stands before the SHA-256 at the end of a checkpoint.
_SEAL = b"equipoise-sha256"
_SEALED = len(_SEAL) + 32


class Stateful(Protocol):
    """Anything whose state changes during training: a model, an optimiser, a balancer."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any: ...


@dataclass
class TrainingProgress:
    """Epochs done so far and the best weights among them."""

    history: list[dict[str, float]] = field(default_factory=list)
    best_epoch: int = 0
    best_weights: dict[str, Tensor] = field(default_factory=dict)

    def add(self, row: dict[str, float], model: nn.Module) -> None:
        """Append an epoch; copy the weights if no earlier epoch was equally good or better."""
        self.history.append(row)
        if not self.best_epoch or monitored(row) < monitored(self.history[self.best_epoch - 1]):
            self.best_epoch = len(self.history)
            self.best_weights = {
                name: value.detach().cpu().clone() for name, value in model.state_dict().items()
            }


def monitored(row: Mapping[str, float]) -> tuple[float, float]:
    """What epochs are ordered by, smaller is better: the monitored value, then the relative loss.

    >>> monitored({"monitor": 0.1, "monitor/mean_loss": 0.8}) < monitored({"monitor": 0.1, "monitor/mean_loss": 0.9})
    True
    """
    loss = row.get(
        "monitor/mean_loss", math.nan
    )  # not in rows of earlier versions, nor where nothing can be explained
    return row["monitor"], 0.0 if math.isnan(loss) else loss


def training_fingerprint(
    model: nn.Module,
    targets: Targets,
    train: CaseList,
    val: CaseList,
    params: TrainingParams,
    balancing: BalancingParams,
    seed: int,
) -> dict[str, Any]:
    """What must be equal for a training to continue from a checkpoint, as plain data."""
    fixed = targets.training_json()
    # A table has thousands of numbers; their hash is enough to notice a change.
    fixed["tables"] = {name: content_hash([json.dumps(table)]) for name, table in fixed["tables"].items()}
    branches = (
        {"modulation": f"{type(model.modulation).__name__} with {model.modulation.params!r}"}
        if isinstance(model, BranchedModel)
        else {}
    )
    frozen = frozen_digests(model)
    return (
        branches
        | ({"frozen": frozen} if frozen else {})
        | {
            "model": f"{type(model).__name__} with parameters {[list(p.shape) for p in model.parameters()]}",
            "targets": fixed,
            "training patients": content_hash(train.patients),
            "validation patients": content_hash(val.patients),
            "training": training_record(params),
            "balancing": balancing.model_dump(mode="json"),
            "seed": seed,
        }
    )


def save(
    path: Path, fingerprint: dict[str, Any], progress: TrainingProgress, parts: Mapping[str, Stateful]
) -> None:
    """Replace the checkpoint atomically: a reader sees either the old one or the new one."""
    state = {
        "identity": json.dumps(fingerprint),
        "history": json.dumps(
            progress.history
        ),  # thousands of numbers, pickled one by one, would take longest
        "best_epoch": progress.best_epoch,
        "best_weights": progress.best_weights,
        "parts": {name: part.state_dict() for name, part in parts.items()},
    }
    write_state(path, state)


def load(path: Path, fingerprint: dict[str, Any], parts: Mapping[str, Stateful]) -> TrainingProgress:
    """Restore the state after the last finished epoch.

    Raises
    ------
    StudyError
        If the checkpoint belongs to another training; the message names what differs.
    DataError
        If it is damaged.
    """
    state = read_state(path)
    require_same(
        json.loads(state["identity"]),
        fingerprint,
        "the checkpoint belongs to another training",
        where=path,
        fix="delete it to train again, or undo the change",
    )
    for name, part in parts.items():
        part.load_state_dict(state["parts"][name])
    history = state["history"]  # a list in checkpoints of earlier versions
    rows = json.loads(history) if isinstance(history, str) else history
    return TrainingProgress(rows, state["best_epoch"], state["best_weights"])


def resume(path: Path, fingerprint: dict[str, Any], parts: Mapping[str, Stateful]) -> TrainingProgress:
    """As :func:`load`; nothing done yet where there is no checkpoint, or a damaged one, which is removed.

    Raises
    ------
    StudyError
        If the checkpoint belongs to another training.
    """
    if not path.exists():
        return TrainingProgress()
    try:
        return load(path, fingerprint, parts)
    except DataError as error:
        log.warning("%s: %s; this training starts again", path, error.what)
        path.unlink()
        return TrainingProgress()


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Write plain data and tensors atomically, followed by the SHA-256 of the file."""
    content = io.BytesIO()
    torch.save(dict(state), content)
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(content.getbuffer())
        file.write(_SEAL + hashlib.sha256(content.getbuffer()).digest())


def read_state(path: Path) -> dict[str, Any]:
    """Read a file of :func:`write_state`; those of earlier versions have no SHA-256.

    Raises
    ------
    DataError
        If the file is not what was written.
    """
    content = path.read_bytes()
    body, seal, digest = content[:-_SEALED], content[-_SEALED:-32], content[-32:]
    if seal != _SEAL:
        body = content
    elif hashlib.sha256(body).digest() != digest:
        raise DataError("the checkpoint is damaged: its SHA-256 differs", where=str(path))
    try:
        state = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
        if not {"identity", "history", "best_epoch", "best_weights", "parts"} <= set(state):
            raise ValueError("parts of it are missing")
        json.loads(state["identity"])
    except Exception as error:  # a zip archive of pickles can be damaged in many ways
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise DataError(f"the checkpoint is damaged: {reason[0]}", where=str(path)) from error
    return dict(state)
