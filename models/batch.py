"""Inputs of every model and its prediction targets: :class:`CaseBatch` and :class:`TaskHead`.

Shape letters used in all model code: B cases, N tiles, D features of a tile, G genes, T tasks, K outputs of a
head.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from equipoise.models.text.target import TextTarget

TaskKind = Literal["binary", "multiclass", "regression", "survival"]


@dataclass(frozen=True)
class TaskHead:
    """One prediction target of a model.

    Parameters
    ----------
    name
        Name of the task; the key of its output, target and label mask.
    kind
        What is predicted. It decides the loss and the meaning of the outputs.
    outputs
        Width K of the head. A binary task has **two** logits under cross-entropy, as in the published joint
        model (384→2), not one; survival has one log risk (higher is worse) or, with ``edges``, K logits of
        hazards.
    main
        Whether this is the target the study is about; the others are auxiliary.
    edges
        Ascending edges in days between the K intervals of a discrete-time survival head, K - 1 of them
        (:mod:`equipoise.models.hazards`); None for Cox's model and for other kinds.
    stratified
        Whether Cox's likelihood compares patients of the same cohort only: every cohort is a stratum with a baseline
        hazard of its own.
    text
        The bank of label embeddings of a head on text, which has an output per label; None for a direct head. A
        survival task then has a label per interval of time, and ``edges``.

    Raises
    ------
    ValueError
        If kind, width and edges do not fit.
    """

    name: str
    kind: TaskKind
    outputs: int
    main: bool = False
    edges: tuple[float, ...] | None = None
    stratified: bool = False
    text: TextTarget | None = None

    def __post_init__(self) -> None:
        if self.kind not in get_args(TaskKind):
            raise ValueError(
                f"task {self.name!r}: kind {self.kind!r} is not one of {', '.join(get_args(TaskKind))}"
            )
        fits = {
            "binary": self.outputs == 2,
            "multiclass": self.outputs >= 2,
            "regression": self.outputs >= 1,
            "survival": self.outputs == 1 + len(self.edges or ()),
        }[self.kind]
        if not fits:
            cut = "" if self.edges is None else f" and {len(self.edges)} edges"
            raise ValueError(
                f"task {self.name!r}: a {self.kind} head cannot have {self.outputs} outputs{cut}"
            )
        if self.text is not None and (
            len(self.text.bank) != self.outputs or self.kind == "regression" or self.compares_patients
        ):
            raise ValueError(
                f"task {self.name!r}: {len(self.text.bank)} label embeddings for a {self.kind} head of "
                f"{self.outputs} outputs"
            )
        if self.edges is not None:
            self._check_edges(self.edges)
        if self.stratified and not self.compares_patients:
            raise ValueError(f"task {self.name!r}: only Cox's likelihood has strata, and the head has none")

    def _check_edges(self, edges: tuple[float, ...]) -> None:
        if self.kind != "survival":
            raise ValueError(f"task {self.name!r}: a {self.kind} head has no intervals of time")
        if any(not a < b for a, b in itertools.pairwise((0.0, *edges, math.inf))):
            raise ValueError(
                f"task {self.name!r}: edges are days above 0 in ascending order, not {list(edges)}"
            )

    @property
    def compares_patients(self) -> bool:
        """Whether the loss compares patients with each other (Cox's), so that batches of one carry no signal."""
        return self.kind == "survival" and self.edges is None


@dataclass(frozen=True)
class CaseShape:
    """Widths of the inputs: all that building a model requires of the data.

    ``features`` is 0 in a study without tiles; ``omics`` holds the tables (modality → columns) that the model
    reads, ``clinical`` among them. ``sets`` holds the gene sets of tables that have some: modality → the
    columns of each set. ``presence`` holds, for models that ask for it, modality → share of the training patients of
    each class of the main task that have it (for survival: without and with an event); ``wsi`` are tiles.
    """

    features: int
    omics: Mapping[str, int] = field(default_factory=dict)
    sets: Mapping[str, tuple[tuple[int, ...], ...]] = field(default_factory=dict)
    presence: Mapping[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class CaseBatch:
    """Tensors of B cases.

    Parameters
    ----------
    bags
        ``[B, N, D]`` float32 tile features, zero where there is no tile.
    mask
        ``[B, N]`` bool, True where a tile exists. A case without tiles has a row of False; N may be 0.
    coords
        ``[B, N, 2]`` int32, x and y of a tile's top left corner in level-0 pixels.
    omics
        modality → ``[B, G]`` float32, the tables as they were prepared, without gaps; zero where the
        modality is absent.
    present
        modality → ``[B]`` bool, whether the case has it.
    targets
        task → ``[B]`` float32 (0/1, class index or scaled value) or, for survival, ``[B, 2]`` (days, event).
        Zero where the label is missing: only ``label_mask`` tells.
    label_mask
        task → ``[B]`` bool, whether the case has a label.
    site
        ``[B]`` int64 index of the site, -1 if it is none of the training sites.
    cohort
        ``[B]`` int64 index of the cohort, the stratum of a stratified Cox loss; -1 if it is none of the training
        cohorts. None: not said.
    position
        ``[B]`` int64, which training patient each case is, for a
        :class:`~equipoise.models.score_memory.ScoreMemory`. None: not said.
    padded
        Whether any tile is missing in ``mask``. Worked out here, once and where the tensors are made, because
        asking a GPU would stall it in every step.
    tileless
        Whether a case has no tile at all; worked out with ``padded``.
    corners
        ``[B, N, 2]`` float32, x and y of a tile's top left corner in um, where a case's slides lie beside one another.
        None: not known.
    extent
        ``[B]`` float32, side of a tile in um. None: not known.
    states
        ``[B, T, S W]`` float16, hidden states of a frozen slide encoder in place of ``bags``, which are zeros then:
        S states of width W of the tokens of the slide as a whole, then of the tiles or of means of similar tiles.
        None: not read from a store.
    state_counts
        ``[B, T]`` float32, tiles behind each token of ``states``; 0 for padding.

    Raises
    ------
    ValueError
        If shapes disagree.
    """

    bags: Tensor
    mask: Tensor
    coords: Tensor
    omics: Mapping[str, Tensor]
    present: Mapping[str, Tensor]
    targets: Mapping[str, Tensor]
    label_mask: Mapping[str, Tensor]
    site: Tensor
    cohort: Tensor | None = None
    position: Tensor | None = None
    padded: bool | None = None
    tileless: bool | None = None
    corners: Tensor | None = None
    extent: Tensor | None = None
    states: Tensor | None = None
    state_counts: Tensor | None = None

    def __post_init__(self) -> None:
        if self.padded is not None:  # a copy of a checked batch
            return
        b, n, _ = self.bags.shape
        if self.mask.shape != (b, n) or self.coords.shape != (b, n, 2):
            raise ValueError(
                f"shapes do not fit: bags {(b, n)}, mask {tuple(self.mask.shape)}, "
                f"coords {tuple(self.coords.shape)}"
            )
        parts = [("site", self.site)]
        said = ("cohort", "position", "corners", "extent", "states", "state_counts")
        parts += [(name, value) for name in said if (value := getattr(self, name)) is not None]
        for part in (self.omics, self.present, self.targets, self.label_mask):
            parts += part.items()
        if wrong := [name for name, tensor in parts if tensor.shape[0] != b]:
            raise ValueError(f"{', '.join(wrong)}: not {b} rows as the bags have")
        object.__setattr__(self, "padded", not bool(self.mask.all()))
        object.__setattr__(self, "tileless", not bool(self.mask.any(dim=1).all()))

    def __len__(self) -> int:
        return self.bags.shape[0]

    @property
    def key_mask(self) -> Tensor | None:
        """``mask``, or None if every tile exists (attention is cheaper without a mask).

        Raises
        ------
        ValueError
            If a case has no tile: nothing can be pooled or attended to. Models that accept such cases use
            ``mask`` directly.
        """
        if self.tileless:
            raise ValueError("a case of the batch has no tile, and the model reads tiles only")
        return self.mask if self.padded else None

    def select(self, rows: Tensor) -> CaseBatch:
        """The cases at these ``[b]`` positions, padded as they were."""
        chosen: dict[str, Any] = {"padded": None, "tileless": None}
        for part in dataclasses.fields(self):
            value = getattr(self, part.name)
            if isinstance(value, Tensor):
                chosen[part.name] = value[rows]
            elif isinstance(value, Mapping):
                chosen[part.name] = {name: tensor[rows] for name, tensor in value.items()}
        return dataclasses.replace(self, **chosen)

    def to(self, device: torch.device | str) -> CaseBatch:
        """The same batch on another device; itself if it is there already."""
        if self.bags.device == torch.device(device):
            return self
        moved: dict[str, Any] = {}
        for part in dataclasses.fields(self):
            value = getattr(self, part.name)
            if isinstance(value, Tensor):
                moved[part.name] = value.to(device, non_blocking=True)
            elif isinstance(value, Mapping):
                moved[part.name] = {k: v.to(device, non_blocking=True) for k, v in value.items()}
        return dataclasses.replace(self, **moved)
