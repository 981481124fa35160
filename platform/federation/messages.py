"""All messages between the server and its clients, and their format.

Every message is a JSON header and raw little-endian arrays. Nothing in it can be executed: it holds no pickle and no
object arrays. Layout: magic bytes, length of the header (uint32), the header, padded with spaces so that the first
array is aligned, and the arrays in the order in which the header lists them.

A client declares its numbers of patients once (:class:`ClientManifest`). The server asks it to train from given weights
(:class:`TrainRequest`), and it answers (:class:`Reply`) with a difference of weights, a few counts and scalars
(:class:`ClientUpdate`). No message has a field for rows, tensors or text about patients, and
:mod:`equipoise.platform.federation.server.validator` checks the rest.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from equipoise.models.seeds import torch_seed
from equipoise.platform.errors import FederationError

MAGIC = b"EQUIPOISE-FED/1\n"
#: Types of arrays that a message may hold.
DTYPES = ("float32", "float64", "int64", "uint64", "uint8")
#: Kinds of messages; a failure is the answer of a client that failed.
REQUEST_KIND, UPDATE_KIND, FAILURE = "order", "update", "failure"
#: Names of the broadcast weights and of the difference of weights among the arrays of a message.
WEIGHTS, DELTA = "weights", "delta"
#: Prefixes of the names of scalars that may leave a client: the mean training loss of a task.
METRICS = ("loss/",)
#: Most bytes of a header, which holds names and scalars only.
MAX_HEADER_BYTES = 1 << 20
#: The first array starts at a multiple of this many bytes: NumPy is slow on unaligned numbers.
ALIGNMENT = 64
#: A message: as one buffer, or as its header and its arrays one by one, so that large arrays are never copied.
MessageData = bytes | memoryview | list[memoryview]
#: How clients are weighted: by labels, all alike, or by their optimiser steps (clients that are visited in turn).
Weighting = Literal["labels", "equal", "steps"]
#: group of the schema → ``[C]`` float64 weights of C updates; 0 where a client did not train the group.
GroupWeights = Mapping[str, np.ndarray]


class MalformedError(FederationError):
    """Bytes that are not a valid message (exit code 1)."""


def pack(kind: str, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    """A message as one buffer; see :func:`pack_parts`."""
    return b"".join(pack_parts(kind, header, arrays))


def pack_parts(kind: str, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> list[memoryview]:
    """A message as its header and read-only views of its arrays.

    Parameters
    ----------
    kind
        Kind of the message; :func:`unpack` must be given the same.
    header
        Plain data without NaN or infinity.
    arrays
        Name → one-dimensional array of one of :data:`DTYPES`.

    Raises
    ------
    MalformedError
        If an array is of another type or shape.
    """
    listed = []
    parts: list[memoryview] = []
    for name, array in arrays.items():
        if array.ndim != 1 or array.dtype.name not in DTYPES:
            raise MalformedError(f"{kind}: {name} is {array.dtype} of shape {array.shape}, not a vector")
        listed.append([name, array.dtype.name, len(array)])
        plain = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).view(np.uint8)
        parts.append(plain.data.toreadonly())
    text = json.dumps({"kind": kind, "arrays": listed, "header": dict(header)}, allow_nan=False).encode()
    text += b" " * (-(len(MAGIC) + 4 + len(text)) % ALIGNMENT)
    if len(text) > MAX_HEADER_BYTES:
        raise MalformedError(f"{kind}: a header of {len(text)} bytes")
    return [memoryview(b"".join([MAGIC, struct.pack("<I", len(text)), text])), *parts]


def size_of(data: MessageData) -> int:
    """Bytes of a message."""
    return sum(map(len, data)) if isinstance(data, list) else len(data)


def unpack(kind: str, data: MessageData) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Header and arrays of a message; the arrays are read-only views of ``data``.

    Raises
    ------
    MalformedError
        If it is not a message of this kind, or its length is wrong.
    """
    head: bytes | memoryview
    head, rest = (data[0], data[1:]) if isinstance(data, list) else (data, None)
    header, listed, offset = _header(kind, head)
    arrays: dict[str, np.ndarray] = {}
    if rest is not None and (len(rest) != len(listed) or offset != len(head)):
        raise MalformedError(f"{kind}: {len(rest)} arrays, {len(listed)} are listed")
    for number, (name, dtype, count) in enumerate(listed):
        if dtype not in DTYPES or count < 0 or name in arrays:
            raise MalformedError(f"{kind}: array {name!r} of {count} {dtype!r}")
        kept = np.dtype(dtype).newbyteorder("<")
        length = count * kept.itemsize
        if rest is not None:
            if len(rest[number]) != length:
                raise MalformedError(f"{kind}: array {name!r} of {len(rest[number])} bytes, not {length}")
            arrays[name] = np.frombuffer(rest[number], kept) if count else np.empty(0, kept)
            continue
        if offset + length > len(head):
            raise MalformedError(f"{kind}: array {name!r} is cut off")
        arrays[name] = np.frombuffer(head, kept, count, offset)
        offset += length
    if offset != len(head):
        raise MalformedError(f"{kind}: {len(head) - offset} bytes after the last array")
    return header, arrays


def _header(kind: str, head: bytes | memoryview) -> tuple[dict[str, Any], list[tuple[str, str, int]], int]:
    """Header, the arrays that it lists (name, type, count), and the offset of the first."""
    start = len(MAGIC) + 4
    if len(head) < start or bytes(head[: len(MAGIC)]) != MAGIC:
        raise MalformedError(f"not {kind}: {len(head)} bytes without the magic bytes of this format")
    (length,) = struct.unpack_from("<I", head, len(MAGIC))
    if length > min(MAX_HEADER_BYTES, len(head) - start):
        raise MalformedError(f"{kind}: a header of {length} bytes")
    try:
        whole = json.loads(bytes(head[start : start + length]), parse_constant=_refuse)
        listed = [(str(name), str(dtype), int(count)) for name, dtype, count in whole["arrays"]]
        header, actual = dict(whole["header"]), whole["kind"]
    except (ValueError, KeyError, TypeError) as error:
        raise MalformedError(f"{kind}: the header cannot be read ({type(error).__name__})") from None
    if actual != kind:
        raise MalformedError(f"not {kind} but {actual!r}")
    return header, listed, start + length


#: First bytes of the header of a failure.
_FAILURE_START = f'{{"kind": "{FAILURE}"'.encode()


def pack_failure(reason: str, trace: str) -> bytes:
    """The message of a client that failed."""
    return pack(FAILURE, {"reason": reason[:2000], "traceback": trace[-8000:]}, {})


def failure_text(data: MessageData) -> str | None:
    """Reason and traceback of a failure message; None for any other message."""
    head = data[0] if isinstance(data, list) else data
    start = len(MAGIC) + 4
    if bytes(head[start : start + len(_FAILURE_START)]) != _FAILURE_START:  # most messages are updates
        return None
    try:
        header, _ = unpack(FAILURE, data)
    except MalformedError:
        return None
    return f"{header.get('reason')}\n{header.get('traceback')}"


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} in a header")


@dataclass(frozen=True)
class Totals:
    """Sums over the clients, from which each computes its part of the common objective.

    See :mod:`equipoise.platform.federation.objective`.

    Parameters
    ----------
    tasks
        Task → labels of all clients (events under Cox's model); the number of clients with labels if ``equal``.
    groups
        Group, and ``shared`` → sum of the clients' weights.
    weighting
        What clients are weighted by.
    equal
        All labels of a task at a client count as one.
    draw
        Probability per patient with which clients are drawn, 1 at most; 0 if all are drawn alike.
    """

    tasks: Mapping[str, float]
    groups: Mapping[str, float]
    weighting: Weighting = "labels"
    equal: bool = False
    draw: float = 0.0


@dataclass(frozen=True)
class TrainRequest:
    """One request, the same for all participants of a round.

    Parameters
    ----------
    round
        From 0.
    kind
        ``fit`` asks for an update, ``personalise`` for a personal model that stays at the client.
    seed
        Of the federation.
    lr
        Learning rate of this round.
    epochs, steps
        How long to train; ``steps`` takes precedence over ``epochs``.
    vector
        ``[P]`` float32, the weights to start from.
    arrays
        Further vectors of the strategy, for example SCAFFOLD's control variate.
    privacy
        What the server's half of the privacy mechanism tells clients, as plain data.
    totals
        From which clients scale their losses; None for the client's own objective.
    """

    round: int
    kind: Literal["fit", "personalise"]
    seed: int
    lr: float
    epochs: int
    steps: int | None
    vector: np.ndarray
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    privacy: Mapping[str, Any] = field(default_factory=dict)
    totals: Totals | None = None

    def to_bytes(self) -> bytes:
        """The message that is sent to workers."""
        return b"".join(self.to_parts())

    def to_parts(self) -> list[memoryview]:
        """The message as header and arrays, without a copy of the vectors."""
        header = {name: getattr(self, name) for name in _REQUEST_FIELDS} | {"shield": dict(self.privacy)}
        header |= {"totals": None if self.totals is None else asdict(self.totals)}
        return pack_parts(REQUEST_KIND, header, {WEIGHTS: self.vector, **self.arrays})

    @classmethod
    def from_bytes(cls, data: MessageData) -> TrainRequest:
        """The inverse; arrays are read-only views of ``data``."""
        header, arrays = unpack(REQUEST_KIND, data)
        privacy, totals = header.pop("shield"), header.pop("totals")
        totals = None if totals is None else Totals(**totals)
        return cls(**header, privacy=privacy, totals=totals, vector=arrays.pop(WEIGHTS), arrays=arrays)

    def local_seed(self, client: str) -> int:
        """Seed of all randomness at a client in this round: a function of (seed, round, client)."""
        return torch_seed(self.seed, self.round, client_number(client))


_REQUEST_FIELDS = tuple(
    f.name
    for f in dataclasses.fields(TrainRequest)
    if f.name not in ("vector", "arrays", "privacy", "totals")
)


def client_number(client: str) -> int:
    """A client's name as a number for seeds."""
    return int.from_bytes(hashlib.blake2b(client.encode(), digest_size=8).digest(), "big")


def request_id_of(seed: int, round_: int, client: str, attempt: int = 0) -> str:
    """The identifier that an answer must repeat, so that stale and foreign answers are recognised.

    A function of its arguments, so that a resumed federation expects the same identifiers.
    """
    text = f"{seed}/{round_}/{client}/{attempt}"
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@dataclass(frozen=True)
class ClientUpdate:
    """The answer of a client to one request.

    Parameters
    ----------
    schema_hash
        Hash of the layout (:class:`~equipoise.platform.federation.vector.Schema`) that ``delta`` follows.
    round, client, request_id
        Which request it answers.
    delta
        ``[P]`` float32, local minus broadcast weights; 0 where the client did not train.
    counts
        Group of the schema → number of labelled patients of the client that train it (for Cox's model, only where an
        event was observed); 0 if the client cannot train it, and 0 everywhere if no weight moved.
    n
        Training patients.
    steps
        Optimiser steps taken.
    metrics
        Scalars whose names begin as in :data:`METRICS`, of at least ``min_n`` patients each.
    arrays
        Named ``[P]`` float32 vectors that the strategy sends as well, for example SCAFFOLD's change of control.
    """

    schema_hash: str
    round: int
    client: str
    request_id: str
    delta: np.ndarray
    counts: Mapping[str, int]
    n: int
    steps: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """The message that leaves the client."""
        return b"".join(self.to_parts())

    def to_parts(self) -> list[memoryview]:
        """The message as header and arrays, without a copy of the vectors."""
        header = {key: getattr(self, _UPDATE_ATTRIBUTES.get(key, key)) for key in _UPDATE_FIELDS}
        header |= {"counts": dict(self.counts), "metrics": dict(self.metrics)}
        return pack_parts(UPDATE_KIND, header, {DELTA: self.delta, **self.arrays})

    @classmethod
    def from_bytes(cls, data: MessageData) -> ClientUpdate:
        """The inverse; arrays are read-only views of ``data``.

        Raises
        ------
        MalformedError
            If the bytes are not an update, or a field is missing, unexpected or of another type. The values
            themselves are checked by the validator.
        """
        header, arrays = unpack(UPDATE_KIND, data)
        known = {*_UPDATE_FIELDS, "counts", "metrics"}
        if set(header) != known:
            odd = ", ".join(sorted(map(repr, set(header) ^ known)))
            raise MalformedError(f"update: fields missing or too many: {odd}")
        if DELTA not in arrays:
            raise MalformedError("update: no delta")
        for name, kind in _UPDATE_FIELDS.items():
            _require(type(header[name]) is kind, name)
        _require(_is_table(header["counts"], int), "counts")
        _require(_is_table(header["metrics"], float, int), "metrics")
        fields = {_UPDATE_ATTRIBUTES.get(key, key): value for key, value in header.items()}
        delta = arrays.pop(DELTA)
        return cls(**fields, delta=delta, arrays=arrays)


_UPDATE_FIELDS: dict[str, type] = {
    "schema_hash": str,
    "round": int,
    "client": str,
    "nonce": str,
    "n": int,
    "steps": int,
}
#: Key of a message → attribute, where they differ.
_UPDATE_ATTRIBUTES = {"nonce": "request_id"}


@dataclass(frozen=True)
class Reply:
    """What arrives from a client: an update or a failure as a message, or the reason why there is none.

    Parameters
    ----------
    client
        Name of the client.
    data
        The message; empty if the worker died or the client did not answer.
    state
        Handle of the client's new state, for :meth:`~equipoise.platform.federation.backend.Backend.commit`.
    reason
        Why there is no message.
    """

    client: str
    data: MessageData
    state: Any = None
    reason: str = ""


@dataclass(frozen=True)
class ClientManifest:
    """What a client declares when it joins: counts of its training patients.

    Parameters
    ----------
    client
        Name of the client.
    n
        Training patients.
    labelled, events
        Task → patients with a label; survival task → events among them.
    counts
        Group of the schema → labelled patients that train it.
    flags
        Remarks for people.
    batch
        Patients per step.
    labels
        Task → labels that its mean loss is taken over: events under Cox's model, else patients with a label.
    """

    client: str
    n: int
    labelled: Mapping[str, int]
    events: Mapping[str, int]
    counts: Mapping[str, int]
    flags: tuple[str, ...] = ()
    batch: int = 1
    labels: Mapping[str, int] = field(default_factory=dict)

    @property
    def learns(self) -> bool:
        """Whether the client can train any group."""
        return any(self.counts.values())

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self) | {"flags": list(self.flags)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ClientManifest:
        """The inverse."""
        return cls(**{**data, "flags": tuple(data["flags"])})


def _is_table(value: Any, *kinds: type) -> bool:
    return isinstance(value, dict) and all(type(item) in kinds for item in value.values())


def _require(fits: bool, name: str) -> None:
    if not fits:
        raise MalformedError(f"update: {name} is of another type than it should be")
