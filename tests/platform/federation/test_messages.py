"""Messages hold named arrays of numbers only; anything else is refused."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.platform.federation.clients.runner import ClientState
from equipoise.platform.federation.messages import (
    MAGIC,
    ClientUpdate,
    MalformedError,
    TrainRequest,
    failure_text,
    pack,
    pack_failure,
    request_id_of,
    size_of,
    unpack,
)


def update(**changes: object) -> ClientUpdate:
    fields: dict[str, object] = {
        "schema_hash": "abc",
        "round": 3,
        "client": "Zürich",
        "request_id": "n",
        "delta": np.arange(4, dtype=np.float32),
        "counts": {"shared": 5},
        "n": 5,
        "steps": 2,
        "metrics": {"loss/MSI": 0.5},
        "arrays": {"control_change": np.ones(4, np.float32)},
    }
    return ClientUpdate(**(fields | changes))  # type: ignore[arg-type]


def crafted(header: object, tail: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return MAGIC + struct.pack("<I", len(text)) + text + tail


def test_an_update_survives_the_border() -> None:
    back = ClientUpdate.from_bytes(update().to_bytes())
    assert np.array_equal(back.delta, update().delta)
    assert np.array_equal(back.arrays["control_change"], np.ones(4))
    assert (back.client, back.counts, back.metrics) == ("Zürich", {"shared": 5}, {"loss/MSI": 0.5})
    assert not back.delta.flags.writeable
    assert back.to_bytes() == update().to_bytes()


def test_a_message_in_pieces_is_the_same_message() -> None:
    parts = update().to_parts()
    assert b"".join(parts) == update().to_bytes()
    assert size_of(parts) == len(update().to_bytes())
    back = ClientUpdate.from_bytes(parts)
    assert back.to_bytes() == update().to_bytes()
    assert not back.delta.flags.writeable  # what a client has sent is not changed by anybody


def test_pieces_that_do_not_fit_the_header() -> None:
    head, *arrays = update().to_parts()
    for wrong in (
        [head],
        [head, *arrays, arrays[0]],
        [head, arrays[0][:-4], *arrays[1:]],
        [memoryview(bytes(head) + b" "), *arrays],
    ):
        with pytest.raises(MalformedError):
            ClientUpdate.from_bytes(wrong)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x04K\x01.",  # a pickle
        update().to_bytes()[:-1],
        update().to_bytes() + b"x",
        crafted({"kind": "update", "header": {}, "arrays": [["delta", "object", 1]]}),
        crafted({"kind": "update", "header": {}, "arrays": [["delta", "float32", -1]]}),
        crafted({"kind": "update", "header": {}, "arrays": [["delta", "float32", 0]]}),
        crafted({"kind": "state", "header": {}, "arrays": []}),
        crafted([1]),
        MAGIC + struct.pack("<I", 1 << 30) + b"{}",
        MAGIC + struct.pack("<I", 14) + b'{"kind": NaN} ',
    ],
)
def test_what_is_no_update_is_refused(data: bytes) -> None:
    with pytest.raises(MalformedError):
        ClientUpdate.from_bytes(data)


@given(st.binary(max_size=200))
def test_any_bytes_are_refused_and_nothing_worse(data: bytes) -> None:
    with pytest.raises(MalformedError):
        unpack("update", MAGIC + data)


@pytest.mark.parametrize(
    ("field", "value"),
    [("n", "5"), ("round", True), ("counts", {"shared": 1.5}), ("metrics", {"loss/x": "text"})],
)
def test_fields_have_their_types(field: str, value: object) -> None:
    with pytest.raises(MalformedError, match=field):
        ClientUpdate.from_bytes(update(**{field: value}).to_bytes())


def test_objects_and_matrices_do_not_cross() -> None:
    for array in (np.array([object()]), np.ones((2, 2), np.float32), np.ones(2, np.float16)):
        with pytest.raises(MalformedError):
            pack("update", {}, {"delta": array})
    with pytest.raises(ValueError, match="JSON compliant"):
        update(metrics={"loss/x": float("nan")}).to_bytes()


def test_orders_states_and_failures_survive() -> None:
    request = TrainRequest(
        2, "fit", 7, 0.1, 1, None, np.ones(3, np.float32), {"control": np.zeros(3, np.float32)}, {"k": [1]}
    )
    back = TrainRequest.from_bytes(request.to_bytes())
    assert (back.round, back.lr, back.steps, back.privacy) == (2, 0.1, None, {"k": [1]})
    assert np.array_equal(back.vector, request.vector)
    state = ClientState({"own": np.ones(2, np.float32)}, b"bytes", 4)
    again = ClientState.from_bytes(state.to_bytes())
    assert (again.passes, again.memory) == (4, b"bytes")
    assert np.array_equal(again.vectors["own"], state.vectors["own"])
    assert "why\n" in (failure_text(pack_failure("why", "where")) or "")
    assert failure_text(update().to_bytes()) is None


def test_seeds_and_nonces_differ_by_round_and_client() -> None:
    requests = [
        TrainRequest(r, "fit", s, 0.1, 1, None, np.zeros(1, np.float32)) for r in range(2) for s in range(2)
    ]
    seeds = {request.local_seed(client) for request in requests for client in "AB"}
    assert len(seeds) == 8
    assert len({request_id_of(0, r, c, a) for r in range(2) for c in "AB" for a in range(2)}) == 8
