"""Messages of clients that no honest client sends."""

import random
from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.bad_input_template import damaged


def messages() -> Iterator[tuple]:
    """Updates that no honest client sends, as bytes: each must be refused or rejected with a reason."""
    size = 40
    values: dict[str, Any] = {
        "NaN": np.full(size, np.nan, np.float32),
        "infinite": np.full(size, np.inf, np.float32),
        "one infinite": np.where(np.arange(size) == 3, np.inf, 1).astype(np.float32),
        "too long": np.ones(size + 1, np.float32),
        "too short": np.ones(size - 1, np.float32),
        "no value": np.zeros(0, np.float32),
        "double": np.ones(size),
        "integers": np.ones(size, np.int64),
        "a matrix": np.ones((size, 1), np.float32),
        "huge": np.full(size, 3e38, np.float32),
        "half": np.ones(size, np.float16),
        "masked": np.ones(size, np.uint64),
        "zero": np.zeros(size, np.float32),
    }
    fields: dict[str, Any] = {f"delta: {name}": {"delta": value} for name, value in values.items()}
    fields |= {
        f"{field}: {name}": {field: value}
        for field, bad in {
            "schema_hash": {"other": "x", "nothing": None, "a number": 3},
            "round": {"earlier": 0, "later": 9, "negative": -1, "text": "one", "true": True},
            "client": {"other": "b", "empty": "", "nothing": None},
            "nonce": {"other": "zzz", "empty": "", "nothing": None},
            "n": {"negative": -4, "NaN": float("nan"), "huge": 10**12, "text": "many", "true": True},
            "steps": {"negative": -1, "NaN": float("nan"), "text": "few"},
            "counts": {
                "unknown group": {"zzz": 3},
                "negative": {"all": -2},
                "NaN": {"all": float("nan")},
                "more than n": {"all": 10**6},
                "text": {"all": "x"},
                "no mapping": [1],
            },
            "metrics": {
                "NaN": {"loss/a": float("nan")},
                "text": {"loss/a": "x"},
                "unknown": {"secret": 1.0},
                "a list": {"loss/a": [1.0] * 99},
                "a long name": {"loss/" + "a" * 500: 1.0},
                "no mapping": "x",
            },
            "arrays": {"unknown": {"zzz": np.zeros(size, np.float32)}},
            "further": {"a field": 1},
        }.items()
        for name, value in bad.items()
    }
    for name, changed in fields.items():
        yield name, lambda folder, template, changed=changed: lambda: _answer(_message(changed, size), size)
    draw = random.Random(23)
    for i in range(60):
        how, seed = draw.choice(["cut", "flip", "noise"]), draw.randrange(2**31)
        data = damaged(_message({}, size), how, random.Random(seed))
        # a changed bit of the vector is another update, which nobody can tell from an honest one
        must = "answered" if how == "flip" else "refused"
        yield f"{how} {i}", lambda folder, template, data=data: lambda: _answer(data, size), must


def _message(changed: dict[str, Any], size: int) -> bytes:
    """An update as a client packs it, with some fields changed."""
    from equipoise.platform.federation.messages import UPDATE_KIND, pack_parts

    changed = dict(changed)
    arrays = {"delta": changed.pop("delta", np.full(size, 0.01, np.float32))} | changed.pop("arrays", {})
    header = {
        "schema_hash": "h",
        "round": 3,
        "client": "a",
        "nonce": "r",
        "n": 20,
        "steps": 4,
        "counts": {"all": 20},
        "metrics": {},
    }
    return b"".join(pack_parts(UPDATE_KIND, header | changed, arrays))


def _answer(data: bytes, size: int) -> str:
    """What the server says to the bytes of an update; a ValueError if it refuses or rejects them."""
    from equipoise.platform.federation.messages import ClientUpdate
    from equipoise.platform.federation.server.validator import ExpectedUpdate, UpdateValidator

    expected = ExpectedUpdate("h", size, 3, "a", "r", 20, {"all": 20})
    if reason := UpdateValidator().check(ClientUpdate.from_bytes(_message({}, size)), expected):
        raise RuntimeError(f"an honest update is rejected: {reason}")
    if reason := UpdateValidator().check(ClientUpdate.from_bytes(data), expected):
        raise ValueError(f"rejected: {reason}")
    return "accepted"
