"""A text encoder without weights: hashed n-grams, and numbers that lie in their order.

Two sentences are near if they share words or parts of words, and if the numbers in them are near on a logarithmic
scale (digits, ``one`` to ``ten``, and ``I`` to ``IV`` behind the word stage). It knows no synonyms and no grammar:
``renal`` and ``kidney`` are unrelated, and a negation is one more word.

Hashing of features: Weinberger et al., ICML 2009.
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections.abc import Sequence

import numpy as np

from equipoise.models.text.entries import HashedParams

_WORDS = {
    w: float(n)
    for n, w in enumerate(
        ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    )
}
_ROMAN = {"i": 1.0, "ii": 2.0, "iii": 3.0, "iv": 4.0}
_TOKEN = re.compile(r"\d+(?:\.\d+)?|[a-z]+")
#: Centres of the bumps that a number is described by, on the scale of log(1 + value), up to about 20,000.
_CENTRES = np.linspace(0.0, 10.0, 64)
_WIDTH = 0.6


class HashedEncoder:
    """Signed hashed counts of words, pairs of words and letters, beside bumps on a logarithmic line of numbers."""

    def __init__(self, params: HashedParams) -> None:
        self.buckets, self.order = params.buckets, params.order
        self.dim = params.buckets + len(_CENTRES)
        text = f"hashed 1 {params.buckets} {params.order!r} {_CENTRES[-1]} {len(_CENTRES)} {_WIDTH}"
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()

    def encode(self, sentences: Sequence[str]) -> np.ndarray:
        """``[n, dim]`` float32 rows of length 1.

        Raises
        ------
        ValueError
            If a sentence has neither a word nor a number.
        """
        return np.stack([self._row(sentence) for sentence in sentences]).astype(np.float32)

    def _row(self, sentence: str) -> np.ndarray:
        tokens = _TOKEN.findall(sentence.casefold())
        if not tokens:
            raise ValueError(f"no word to encode in {sentence!r}")
        counts = np.zeros(self.buckets)
        for feature in _features(tokens):
            digest = hashlib.blake2b(feature.encode(), digest_size=8).digest()
            value = int.from_bytes(digest, "little")
            counts[(value >> 1) % self.buckets] += 1.0 if value & 1 else -1.0
        words = np.sign(counts) * np.sqrt(np.abs(counts))
        words /= max(float(np.linalg.norm(words)), 1e-12)
        line = np.zeros(len(_CENTRES))
        for number in _numbers(tokens):
            line += np.exp(-0.5 * ((math.log1p(number) - _CENTRES) / _WIDTH) ** 2)
        share = self.order if line.any() else 0.0
        line /= max(float(np.linalg.norm(line)), 1e-12)
        row = np.concatenate([math.sqrt(1 - share) * words, math.sqrt(share) * line])
        return row / np.linalg.norm(row)


def _features(tokens: Sequence[str]) -> list[str]:
    pairs = [f"2 {a} {b}" for a, b in itertools.pairwise(tokens)]
    letters = [
        f"3 {word[i : i + n]}"
        for word in (f"<{token}>" for token in tokens)
        for n in (3, 4, 5)
        for i in range(len(word) - n + 1)
    ]
    return [f"1 {token}" for token in tokens] + pairs + letters


def _numbers(tokens: Sequence[str]) -> list[float]:
    found = []
    for before, token in zip(["", *tokens], tokens, strict=False):
        if token[0].isdigit():
            found.append(float(token))
        elif token in _WORDS:
            found.append(_WORDS[token])
        elif before == "stage" and token in _ROMAN:
            found.append(_ROMAN[token])
    return found
