"""What every model eats and what it is asked to predict: :class:`CaseBatch` and :class:`TaskHead`.

Shape letters used in all model code: B cases, N tiles, D features of a tile, G genes, T tasks, K outputs of a
head.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

TaskKind = Literal["binary", "multiclass", "regression", "survival"]


@dataclass(frozen=True)
class TaskHead:
    """One prediction target, as a model sees it.

    Parameters
    ----------
    name
        Name of the task; the key of its output, target and label mask.
    kind
        What is predicted. It decides the loss and the meaning of the outputs.
    outputs
        Width K of the head. A binary task has **two** logits under cross-entropy, as in the published joint
        model (384→2), not one; survival has one log risk (higher is worse).
    main
        Whether this is the target the study is about; the others are auxiliary.

    Raises
    ------
    ValueError
        If kind and width do not fit.
    """

    name: str
    kind: TaskKind
    outputs: int
    main: bool = False

    def __post_init__(self) -> None:
        if self.kind not in get_args(TaskKind):
            raise ValueError(
                f"task {self.name!r}: kind {self.kind!r} is not one of {', '.join(get_args(TaskKind))}"
            )
        fits = {
            "binary": self.outputs == 2,
            "multiclass": self.outputs >= 2,
            "regression": self.outputs >= 1,
            "survival": self.outputs == 1,
        }[self.kind]
        if not fits:
            raise ValueError(f"task {self.name!r}: a {self.kind} head cannot have {self.outputs} outputs")


@dataclass(frozen=True)
class CaseShape:
    """Widths of a case's parts, all that a model needs to know about the data before it is built."""

    features: int
    omics: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class CaseBatch:
    """Tensors of B cases.

    Parameters
    ----------
    bags
        ``[B, N, D]`` float32 tile features, zero where there is no tile.
    mask
        ``[B, N]`` bool, True where a tile exists. A case has at least one tile.
    coords
        ``[B, N, 2]`` int32, x and y of a tile's top left corner in level-0 pixels.
    omics
        modality → ``[B, G]`` float32, zero where the modality is absent, NaN where a single value is missing.
    present
        modality → ``[B]`` bool, whether the case has it.
    targets
        task → ``[B]`` float32 (0/1, class index or scaled value) or, for survival, ``[B, 2]`` (days, event).
        Zero where the label is missing: only ``label_mask`` tells.
    label_mask
        task → ``[B]`` bool, whether the case has a label.
    site
        ``[B]`` int64 index of the site, -1 if it is none of the training sites.
    padded
        Whether any tile is missing in ``mask``. Worked out here, once and where the tensors are made, because
        asking a GPU would stall it in every step.

    Raises
    ------
    ValueError
        If shapes disagree or a case has no tile.
    """

    bags: Tensor
    mask: Tensor
    coords: Tensor
    omics: Mapping[str, Tensor]
    present: Mapping[str, Tensor]
    targets: Mapping[str, Tensor]
    label_mask: Mapping[str, Tensor]
    site: Tensor
    padded: bool | None = None

    def __post_init__(self) -> None:
        if self.padded is not None:  # a copy of a checked batch
            return
        b, n, _ = self.bags.shape
        if self.mask.shape != (b, n) or self.coords.shape != (b, n, 2):
            raise ValueError(
                f"shapes do not fit: bags {(b, n)}, mask {tuple(self.mask.shape)}, "
                f"coords {tuple(self.coords.shape)}"
            )
        if not bool(self.mask.any(dim=1).all()):
            raise ValueError("a case of the batch has no tile")
        parts = [("site", self.site)]
        for part in (self.omics, self.present, self.targets, self.label_mask):
            parts += part.items()
        if wrong := [name for name, tensor in parts if tensor.shape[0] != b]:
            raise ValueError(f"{', '.join(wrong)}: not {b} rows as the bags have")
        object.__setattr__(self, "padded", not bool(self.mask.all()))

    def __len__(self) -> int:
        return self.bags.shape[0]

    @property
    def key_mask(self) -> Tensor | None:
        """``mask`` if it says anything, None if every tile exists (attention is cheaper without one)."""
        return self.mask if self.padded else None

    def to(self, device: torch.device | str) -> CaseBatch:
        """The same batch on another device."""
        moved: dict[str, Any] = {}
        for part in dataclasses.fields(self):
            value = getattr(self, part.name)
            if isinstance(value, Tensor):
                moved[part.name] = value.to(device, non_blocking=True)
            elif isinstance(value, Mapping):
                moved[part.name] = {k: v.to(device, non_blocking=True) for k, v in value.items()}
        return dataclasses.replace(self, **moved)
