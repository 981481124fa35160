"""What leaves a client after a round, and what the server expects of it.

A :class:`ClientUpdate` is a difference of weights with a few counts and scalars; there is no field in which rows,
tensors or text about patients would fit, and :mod:`equipoise.platform.federation.gate` checks the rest.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from equipoise.platform.federation.wire import Data, MalformedError, pieces, unpack

KIND = "update"
#: Name of the difference of weights among the arrays of a message.
DELTA = "delta"
#: Scalars that may leave a client, by the beginning of their name: mean training loss of a task.
METRICS = ("loss/",)
#: group of the schema → ``[C]`` float64 weights of C updates; 0 where a client did not train the group.
GroupWeights = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class ClientUpdate:
    """The answer of a client to one order.

    Parameters
    ----------
    schema_hash
        Hash of the layout (:class:`~equipoise.platform.federation.vector.Schema`) that ``delta`` follows.
    round, client, nonce
        Which order it answers.
    delta
        ``[P]`` float32, local minus broadcast weights; 0 where the client has nothing to say.
    counts
        Group of the schema → labelled patients (of Cox's model: only where an event was seen) behind it; 0 = not
        trained here.
    n
        Training patients.
    steps
        Optimiser steps taken.
    metrics
        Scalars whose names begin as in :data:`METRICS`, of at least ``min_n`` patients each.
    arrays
        Named ``[P]`` float32 vectors that the strategy sends along, for example SCAFFOLD's change of control.
    """

    schema_hash: str
    round: int
    client: str
    nonce: str
    delta: np.ndarray
    counts: Mapping[str, int]
    n: int
    steps: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """The message that crosses the border."""
        return b"".join(self.pieces())

    def pieces(self) -> list[memoryview]:
        """The same without a copy of the vectors."""
        header = {name: getattr(self, name) for name in _SCALARS}
        header |= {"counts": dict(self.counts), "metrics": dict(self.metrics)}
        return pieces(KIND, header, {DELTA: self.delta, **self.arrays})

    @classmethod
    def from_bytes(cls, data: Data) -> ClientUpdate:
        """The inverse; arrays are read-only views of ``data``.

        Raises
        ------
        MalformedError
            If the bytes are no update, a field is missing, of another type, or one too many. What the values
            mean is left to the gate.
        """
        header, arrays = unpack(KIND, data)
        known = {*_SCALARS, "counts", "metrics"}
        if set(header) != known:
            odd = ", ".join(sorted(map(repr, set(header) ^ known)))
            raise MalformedError(f"update: fields missing or too many: {odd}")
        if DELTA not in arrays:
            raise MalformedError("update: no delta")
        for name, kind in _SCALARS.items():
            _require(type(header[name]) is kind, name)
        _require(_is_table(header["counts"], int), "counts")
        _require(_is_table(header["metrics"], float, int), "metrics")
        delta = arrays.pop(DELTA)
        return cls(**header, delta=delta, arrays=arrays)


_SCALARS: dict[str, type] = {
    "schema_hash": str,
    "round": int,
    "client": str,
    "nonce": str,
    "n": int,
    "steps": int,
}


@dataclass(frozen=True)
class Expected:
    """What the server knows about an answer before it comes, for the gate.

    Parameters
    ----------
    schema_hash, size
        Layout of the vector, and P.
    round, client, nonce
        The order that was given.
    n, counts
        Patients and labelled patients per group that the client declared when it joined.
    arrays
        Names of the vectors that the strategy sends along; no other may come.
    dtype
        Of ``delta``: ``float32``, or ``uint64`` where secure aggregation masks it.
    """

    schema_hash: str
    size: int
    round: int
    client: str
    nonce: str
    n: int
    counts: Mapping[str, int]
    arrays: frozenset[str] = frozenset()
    dtype: str = "float32"


def group_weights(updates: Sequence[ClientUpdate], groups: Sequence[str], *, uniform: bool) -> GroupWeights:
    """How much each update counts in each group: its labelled patients there, or 1 if it has any."""
    table = {group: np.array([u.counts.get(group, 0) for u in updates], np.float64) for group in groups}
    return {group: (row > 0).astype(np.float64) for group, row in table.items()} if uniform else table


def _is_table(value: Any, *kinds: type) -> bool:
    return isinstance(value, dict) and all(type(item) in kinds for item in value.values())


def _require(fits: bool, name: str) -> None:
    if not fits:
        raise MalformedError(f"update: {name} is of another type than it should be")
