"""What the server tells clients: train from these weights, so long, with this seed."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from equipoise.platform.federation.wire import Data, pieces, unpack

KIND = "order"
#: The broadcast weights among the arrays of a message.
WEIGHTS = "weights"


@dataclass(frozen=True)
class Order:
    """One broadcast, the same for all participants.

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
        How long; ``steps`` wins where it is given.
    vector
        ``[P]`` float32, the weights to start from.
    arrays
        Further vectors of the strategy, for example SCAFFOLD's control.
    shield
        What the server's half of privacy tells clients, as plain data.
    """

    round: int
    kind: Literal["fit", "personalise"]
    seed: int
    lr: float
    epochs: int
    steps: int | None
    vector: np.ndarray
    arrays: Mapping[str, np.ndarray] = field(default_factory=dict)
    shield: Mapping[str, Any] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """The message that workers are sent."""
        return b"".join(self.pieces())

    def pieces(self) -> list[memoryview]:
        """The same without a copy of the vectors."""
        header = {name: getattr(self, name) for name in _SCALARS} | {"shield": dict(self.shield)}
        return pieces(KIND, header, {WEIGHTS: self.vector, **self.arrays})

    @classmethod
    def from_bytes(cls, data: Data) -> Order:
        """The inverse; arrays are read-only views of ``data``."""
        header, arrays = unpack(KIND, data)
        return cls(**header, vector=arrays.pop(WEIGHTS), arrays=arrays)

    def local_seed(self, client: str) -> int:
        """Seed of everything random at a client in this round: a function of (seed, round, client)."""
        sequence = np.random.SeedSequence([self.seed, self.round, client_number(client)])
        return int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1))  # torch takes signed 64 bit


_SCALARS = tuple(f.name for f in dataclasses.fields(Order) if f.name not in ("vector", "arrays", "shield"))


def client_number(client: str) -> int:
    """A client's name as a number for seeds."""
    return int.from_bytes(hashlib.blake2b(client.encode(), digest_size=8).digest(), "big")


def nonce_of(seed: int, round_: int, client: str, attempt: int = 0) -> str:
    """What an answer must repeat, so that an old or foreign one is known; repeatable, for resuming."""
    text = f"{seed}/{round_}/{client}/{attempt}"
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
