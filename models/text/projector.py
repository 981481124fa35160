"""The random projector from text to embeddings of cases: Linear, LayerNorm, ReLU, Linear; never trained.

As in ModalTune, whose projector was neither stored nor tied to a seed, so that two runs had incompatible embeddings.
Ours is a function of seed and widths alone, and its hash is kept with everything that was made with it.
"""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Projector:
    """``[n, inputs]`` → ``[n, outputs]``, computed in float64.

    Weights are uniform in ± 1/√inputs, those of the second layer in ± 1/√outputs.
    """

    seed: int
    inputs: int
    outputs: int

    @cached_property
    def weights(self) -> tuple[np.ndarray, ...]:
        """W1, b1, W2, b2."""
        rng = np.random.default_rng([self.seed, self.inputs, self.outputs])
        first, second = self.inputs**-0.5, self.outputs**-0.5
        return (
            rng.uniform(-first, first, (self.inputs, self.outputs)),
            rng.uniform(-first, first, self.outputs),
            rng.uniform(-second, second, (self.outputs, self.outputs)),
            rng.uniform(-second, second, self.outputs),
        )

    @cached_property
    def sha256(self) -> str:
        """Of the weights."""
        return hashlib.sha256(b"".join(w.astype("<f4").tobytes() for w in self.weights)).hexdigest()

    def __call__(self, x_NE: np.ndarray) -> np.ndarray:
        """``[n, outputs]``, not yet of length 1."""
        w1, b1, w2, b2 = self.weights
        h = np.asarray(x_NE, np.float64) @ w1 + b1
        h = h - h.mean(axis=1, keepdims=True)
        h /= np.sqrt(h.var(axis=1, keepdims=True) + 1e-5)
        return np.maximum(h, 0) @ w2 + b2

    def to_json(self) -> dict[str, Any]:
        """Seed, widths and the hash of the weights."""
        return asdict(self) | {"sha256": self.sha256}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Projector:
        """The inverse.

        Raises
        ------
        ValueError
            If the weights are not those that were stored with.
        """
        made = cls(data["seed"], data["inputs"], data["outputs"])
        if made.sha256 != data["sha256"]:
            raise ValueError("the projector of labels is another one than that of the stored targets")
        return made
