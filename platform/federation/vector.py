"""The state of a model as one flat vector with named segments: what is broadcast, trained and averaged.

Every segment belongs to a group that determines which clients train it, so that a client without a task or a modality
neither moves nor dilutes parameters that only that task or modality uses:

- ``shared``: every client with any label;
- ``task:<name>``: clients with labels of the task;
- ``modality:<name>``: clients whose labelled patients have the modality;
- ``absent:<name>``: the token learned in place of a modality, clients with patients that lack it.

A name of several modalities, ``rna+cnv``, stands for patients that have any of them.

Its kind is ``weight``, ``norm`` (parameters and statistics of normalisation layers) or ``buffer``.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from equipoise.platform.errors import FederationError

if TYPE_CHECKING:
    from torch import nn

SHARED = "shared"
#: Numbers processed at once: they fit the cache, and BLAS uses threads, which would sum in another order, from 10,000.
_CHUNK = 9600
Kind = Literal["weight", "norm", "buffer"]
#: A group, the part of it before the colon, a kind, or ``re:`` and a pattern of names.
Selector = str


@dataclass(frozen=True)
class Segment:
    """One tensor of the model's state at ``[start, stop)`` of the vector."""

    name: str
    shape: tuple[int, ...]
    group: str
    kind: Kind
    start: int
    stop: int
    trained: bool

    @property
    def span(self) -> slice:
        """Its slice of the vector."""
        return slice(self.start, self.stop)

    def matches(self, selector: Selector) -> bool:
        """Whether a selector matches this segment."""
        if selector.startswith("re:"):
            return re.search(selector.removeprefix("re:"), self.name) is not None
        return selector in (self.group, self.group.partition(":")[0], self.kind)


@dataclass(frozen=True)
class Schema:
    """The layout of the vector, the same at the server and at every client.

    Parameters
    ----------
    segments
        In the order of the model's state dictionary.
    frozen_parts
        Digests of weights that the model uses and nobody trains or sends: an update of a client with others is not
        accepted.
    """

    segments: tuple[Segment, ...]
    frozen_parts: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: nn.Module, tasks: Sequence[str]) -> Schema:
        """The layout of a model.

        Raises
        ------
        FederationError
            If the state holds anything but float32 numbers and counters.
        """
        from equipoise.models.base import frozen_digests

        groups, norms = _groups(model, tasks), _norm_names(model)
        trained = {name for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
        known = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        segments, at = [], 0
        for name, value in model.state_dict(keep_vars=True).items():
            if value.is_complex() or (value.is_floating_point() and value.element_size() != 4):
                raise FederationError(f"{name} is {value.dtype}; a federated model has float32 weights")
            kind: Kind = "norm" if name in norms else "weight" if name in known else "buffer"
            group, stop = groups.get(id(value), SHARED), at + value.numel()
            segments.append(Segment(name, tuple(value.shape), group, kind, at, stop, name in trained))
            at = stop
        return cls(tuple(segments), tuple(frozen_digests(model)))

    @cached_property
    def size(self) -> int:
        """P, the length of the vector."""
        return self.segments[-1].stop if self.segments else 0

    @cached_property
    def hash(self) -> str:
        """Changes with any name, shape, group or kind, and with weights that are frozen outside the vector."""
        rows: list[Any] = [[s.name, list(s.shape), s.group, s.kind, s.trained] for s in self.segments]
        rows += self.frozen_parts
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()

    @cached_property
    def groups(self) -> tuple[str, ...]:
        """Names of the groups, in order of appearance."""
        return tuple(dict.fromkeys(segment.group for segment in self.segments))

    @cached_property
    def spans(self) -> tuple[tuple[str, slice], ...]:
        """Group and slice of the vector; adjacent segments of one group form one slice."""
        spans: list[tuple[str, slice]] = []
        for segment in self.segments:
            if spans and spans[-1][0] == segment.group:
                spans[-1] = (segment.group, slice(spans[-1][1].start, segment.stop))
            else:
                spans.append((segment.group, segment.span))
        return tuple(spans)

    @cached_property
    def learned(self) -> np.ndarray:
        """``[P]`` bool, parameters that an optimiser moves; the rest are statistics and frozen weights."""
        mask = np.zeros(self.size, bool)
        for segment in self.segments:
            mask[segment.span] = segment.trained
        return mask

    @cached_property
    def frozen(self) -> np.ndarray:
        """``[P]`` bool, weights that no client ever moves: those that are not trained; statistics do move."""
        mask = np.zeros(self.size, bool)
        for segment in self.segments:
            mask[segment.span] = segment.kind == "weight" and not segment.trained
        return mask

    def mask(self, selectors: Iterable[Selector]) -> np.ndarray:
        """``[P]`` bool, segments that match any of the selectors."""
        wanted, mask = tuple(selectors), np.zeros(self.size, bool)
        for segment in self.segments:
            if any(segment.matches(selector) for selector in wanted):
                mask[segment.span] = True
        return mask

    def expand(self, by_group: Mapping[str, float], default: float = 0.0) -> np.ndarray:
        """``[P]`` float64, the value of every segment's group."""
        values = np.full(self.size, default)
        for group, span in self.spans:
            values[span] = by_group.get(group, default)
        return values

    def flatten(self, model: nn.Module) -> np.ndarray:
        """``[P]`` float32, a copy of the model's state."""
        import torch

        values = [value.detach().reshape(-1).float() for value in model.state_dict(keep_vars=True).values()]
        return torch.cat(values).cpu().numpy() if values else np.zeros(0, np.float32)

    def difference(self, model: nn.Module, vector: np.ndarray) -> np.ndarray:
        """``[P]`` float32, the model's state minus a vector, in one pass over memory."""
        result = np.empty(self.size, np.float32)
        for segment, value in zip(self.segments, model.state_dict(keep_vars=True).values(), strict=True):
            state = value.detach().reshape(-1).float().cpu().numpy()
            np.subtract(state, vector[segment.span], out=result[segment.span])
        return result

    def load(self, model: nn.Module, vector: np.ndarray) -> None:
        """Copy a vector into the model.

        Raises
        ------
        FederationError
            If the vector has another length.
        """
        import torch

        self.require(vector)
        with torch.no_grad():
            for segment, value in zip(self.segments, model.state_dict(keep_vars=True).values(), strict=True):
                part = vector[segment.span].reshape(segment.shape)
                if value.device.type == "cpu" and value.dtype == torch.float32:
                    np.copyto(value.detach().numpy(), part)  # broadcast weights are read-only; torch warns
                else:
                    moved = torch.from_numpy(np.array(part))
                    value.copy_(moved if value.is_floating_point() else moved.round())

    def require(self, vector: np.ndarray) -> None:
        """Refuse a vector of another length."""
        if vector.shape != (self.size,):
            raise FederationError(f"a vector of shape {vector.shape} for a model of {self.size} numbers")

    def named(self, vector: np.ndarray) -> dict[str, np.ndarray]:
        """Name → array, views of the vector: the form of a weights file."""
        return {segment.name: vector[segment.span].reshape(segment.shape) for segment in self.segments}

    def from_named(self, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """The inverse of :meth:`named`.

        Raises
        ------
        FederationError
            If a name is missing or has another shape.
        """
        vector = np.empty(self.size, np.float32)
        for segment in self.segments:
            array = arrays.get(segment.name)
            if array is None or array.shape != segment.shape:
                seen = "nothing" if array is None else f"shape {array.shape}"
                raise FederationError(f"weights: {segment.name} of shape {segment.shape}, found {seen}")
            vector[segment.span] = np.asarray(array, np.float32).reshape(-1)
        return vector


def _groups(model: nn.Module, tasks: Sequence[str]) -> dict[int, str]:
    """id of a tensor → its group, for those that are not shared."""
    from torch import nn

    groups: dict[int, str] = {}
    parts: Any = model
    encoders, tokens = getattr(parts, "encoders", None), getattr(parts, "tokens", None)
    if isinstance(encoders, nn.ModuleDict):
        for name, module in encoders.items():
            state = [*module.parameters(), *module.buffers()]
            groups |= {id(value): f"modality:{name}" for value in state}
        if isinstance(tokens, nn.ParameterDict):
            groups |= {id(value): f"absent:{name}" for name, value in tokens.items()}
    if hasattr(parts, "modality_groups"):
        for group, state in parts.modality_groups():
            groups |= {id(value): group for value in state}
    if hasattr(parts, "task_parameters"):
        owners: dict[int, set[str]] = {}
        for task in tasks:
            for parameter in parts.task_parameters(task):
                owners.setdefault(id(parameter), set()).add(task)
        # Parameters of several tasks are shared.
        groups |= {key: f"task:{next(iter(names))}" for key, names in owners.items() if len(names) == 1}
    return groups


def _norm_names(model: nn.Module) -> set[str]:
    """Names in the state dictionary that belong to normalisation layers."""
    from torch import nn

    kinds = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, kinds)
        for name in module.state_dict()
    }


def dot_of(one: np.ndarray, other: np.ndarray) -> float:
    """Product of two vectors, summed in double precision, without copies of their size."""
    total, room = 0.0, np.empty((2, min(_CHUNK, len(one))))
    for start in range(0, len(one), _CHUNK):
        part = one[start : start + _CHUNK]
        left = right = room[0, : len(part)]
        np.copyto(left, part)
        if other is not one:
            right = room[1, : len(part)]
            np.copyto(right, other[start : start + _CHUNK])
        total += float(np.dot(left, right))
    return total


def norm_of(vector: np.ndarray) -> float:
    """Euclidean length, summed in double precision; NaN or infinite if any number is."""
    return math.sqrt(dot_of(vector, vector))
