"""What a text encoder is, and sentences encoded once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np


class TextEncoder(Protocol):
    """Sentences to vectors.

    Attributes
    ----------
    dim
        Length E of a vector.
    fingerprint
        SHA-256 of everything that the vectors are a function of, beside the sentences.
    """

    dim: int
    fingerprint: str

    def encode(self, sentences: Sequence[str]) -> np.ndarray:
        """``[n, E]`` float32, every row of length 1."""


_KNOWN: dict[tuple[str, str], np.ndarray] = {}


def encode_once(encoder: TextEncoder, sentences: Sequence[str]) -> np.ndarray:
    """``[n, E]`` as of the encoder, which sees a sentence once per process: vectors are kept by its fingerprint.

    Raises
    ------
    ValueError
        If the encoder returns other shapes, values that are not finite, or rows that are not of length 1.
    """
    new = [s for s in dict.fromkeys(sentences) if (encoder.fingerprint, s) not in _KNOWN]
    if new:
        rows = np.asarray(encoder.encode(new), np.float32)
        if rows.shape != (len(new), encoder.dim) or not np.allclose(
            np.linalg.norm(rows, axis=1), 1, atol=1e-4
        ):
            raise ValueError(
                f"a text encoder returns [{len(new)}, {encoder.dim}] rows of length 1, not {rows.shape}"
            )
        _KNOWN.update({(encoder.fingerprint, s): row for s, row in zip(new, rows, strict=True)})
    return np.stack([_KNOWN[encoder.fingerprint, s] for s in sentences])
