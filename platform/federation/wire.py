"""The one form in which anything crosses the border of a client: a JSON header and raw little-endian arrays.

Nothing in it can be executed: no pickle, no type that is not a number. Layout: magic, length of the header
(uint32), header, filled up with spaces so that the first array is aligned, arrays one behind the other in the order
in which the header lists them.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from equipoise.platform.errors import FederationError

MAGIC = b"EQUIPOISE-FED/1\n"
#: Types of numbers that may cross.
DTYPES = ("float32", "float64", "int64", "uint64", "uint8")
#: Kind of the answer of a client that failed.
FAILURE = "failure"
#: A header is names and scalars.
MOST_HEADER = 1 << 20
#: Bytes of which the place of the first array is a multiple: NumPy is slow where numbers are not aligned.
ALIGNMENT = 64
#: A message: in one piece, or its beginning and its arrays one by one, so that large ones are never copied.
Data = bytes | memoryview | list[memoryview]


class MalformedError(FederationError):
    """Bytes that are not what they should be (exit code 1)."""


def pack(kind: str, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bytes:
    """A message in one piece; see :func:`pieces`."""
    return b"".join(pieces(kind, header, arrays))


def pieces(kind: str, header: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> list[memoryview]:
    """A message as its beginning and read-only views of its arrays.

    Parameters
    ----------
    kind
        What it is; :func:`unpack` must be asked for the same.
    header
        Plain data, no NaN or infinity.
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
    if len(text) > MOST_HEADER:
        raise MalformedError(f"{kind}: a header of {len(text)} bytes")
    return [memoryview(b"".join([MAGIC, struct.pack("<I", len(text)), text])), *parts]


def size_of(data: Data) -> int:
    """Bytes of a message."""
    return sum(map(len, data)) if isinstance(data, list) else len(data)


def unpack(kind: str, data: Data) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Header and arrays of a message; the arrays are read-only views of ``data``.

    Raises
    ------
    MalformedError
        If it is not a message of this kind, or has a byte too few or too many.
    """
    head: bytes | memoryview
    head, rest = (data[0], data[1:]) if isinstance(data, list) else (data, None)
    header, listed, at = _header(kind, head)
    arrays: dict[str, np.ndarray] = {}
    if rest is not None and (len(rest) != len(listed) or at != len(head)):
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
        if at + length > len(head):
            raise MalformedError(f"{kind}: array {name!r} is cut off")
        arrays[name] = np.frombuffer(head, kept, count, at)
        at += length
    if at != len(head):
        raise MalformedError(f"{kind}: {len(head) - at} bytes behind the last array")
    return header, arrays


def _header(kind: str, head: bytes | memoryview) -> tuple[dict[str, Any], list[tuple[str, str, int]], int]:
    """Header, arrays that it lists (name, type, count), and where they begin."""
    start = len(MAGIC) + 4
    if len(head) < start or bytes(head[: len(MAGIC)]) != MAGIC:
        raise MalformedError(f"not {kind}: {len(head)} bytes without the mark of this format")
    (length,) = struct.unpack_from("<I", head, len(MAGIC))
    if length > min(MOST_HEADER, len(head) - start):
        raise MalformedError(f"{kind}: a header of {length} bytes")
    try:
        whole = json.loads(bytes(head[start : start + length]), parse_constant=_refuse)
        listed = [(str(name), str(dtype), int(count)) for name, dtype, count in whole["arrays"]]
        header, found = dict(whole["header"]), whole["kind"]
    except (ValueError, KeyError, TypeError) as error:
        raise MalformedError(f"{kind}: the header cannot be read ({type(error).__name__})") from None
    if found != kind:
        raise MalformedError(f"not {kind} but {found!r}")
    return header, listed, start + length


def pack_failure(reason: str, trace: str) -> bytes:
    """The answer of a client that could not do what it was asked to."""
    return pack(FAILURE, {"reason": reason[:2000], "traceback": trace[-8000:]}, {})


def failure_text(data: Data) -> str | None:
    """Reason and traceback, if the answer of a client is that it failed."""
    try:
        header, _ = unpack(FAILURE, data)
    except MalformedError:
        return None
    return f"{header.get('reason')}\n{header.get('traceback')}"


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} in a header")
