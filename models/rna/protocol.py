"""The protocol of RNA encoders, and what all of them check before they encode."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

#: Kinds of expression: whole counts; linear abundances (TPM, FPKM, CPM); ln(1 + linear); z-scores.
KINDS = ("counts", "tpm", "log", "zscore")


@dataclass(frozen=True)
class Identity:
    """What identifies an encoder, available without building it.

    A class of an encoder may have a class method ``identify(params) -> Identity`` that reads its files and builds no
    network; without one, the encoder is built instead. Both give the same values.

    Attributes
    ----------
    dim, fingerprint
        As of :class:`RnaEncoder`.
    """

    dim: int
    fingerprint: str


class RnaEncoder(Protocol):
    """A function from expression profiles to vectors, with a fingerprint that identifies it.

    Built from its parameter model: ``RnaEncoder(params)``. It is frozen: it has learned from other data than the
    study's, so that a vector may be computed once and used in every fold. A sample's vector depends on that sample
    alone, not on its neighbours in the call; randomness comes from :func:`sample_generator`.

    Attributes
    ----------
    name
        Of its entry.
    dim
        Length D of a vector.
    accepts
        Kinds out of :data:`KINDS` that it can use.
    fingerprint
        Hexadecimal digest of everything that decides the vectors: definition, parameters, weights.
    """

    name: str
    dim: int
    accepts: frozenset[str]
    fingerprint: str

    def knows(self, genes: Sequence[str]) -> NDArray[np.bool_]:
        """``[G]``: which of these genes it reads."""
        ...

    def encode(
        self, values: NDArray[np.float32], genes: Sequence[str], *, kind: str, seed: int
    ) -> NDArray[np.float32]:
        """Encode samples.

        Parameters
        ----------
        values
            ``[N, G]``; NaN: the gene was not measured in this sample.
        genes
            Their ``[G]`` names, each once.
        kind
            What the values are; ``log`` is the natural ln(1 + linear).
        seed
            Of random draws, if the encoder has any: two calls with one seed give the same vectors.

        Returns
        -------
        ``[N, D]`` float32; a row of NaN where a sample has nothing that the encoder could read.

        Raises
        ------
        ValueError
            For a kind that it does not accept, values that contradict their kind, or genes that it does not know.
            Two lines: what is wrong, then what to do.
        """
        ...


def check_profiles(
    name: str, accepts: Collection[str], values: NDArray[np.float32], genes: Sequence[str], kind: str
) -> None:
    """What every encoder refuses.

    Raises
    ------
    ValueError
        For a kind that is not accepted, negative values of a kind that has none, infinite values, shapes that do not
        fit, or a gene that stands twice.
    """
    if values.ndim != 2 or values.shape[1] != len(genes):
        raise ValueError(f"values are [N, G] with G names of genes, not {values.shape} and {len(genes)}")
    check_kind_accepted(name, accepts, kind)
    if np.isinf(values).any():
        raise ValueError("the profiles hold infinite values\nleave such cells empty")
    if kind != "zscore" and (values < 0).any():
        row, column = (int(i) for i in np.argwhere(values < 0)[0])
        raise ValueError(
            f"values of the kind {kind!r} cannot be negative, but {genes[column]} of sample {row} is "
            f"{values[row, column]:g}: these look like z-scores\n{LINEAR_NEEDED}"
        )
    if twice := [gene for gene, count in Counter(genes).items() if count > 1]:
        raise ValueError(
            f"gene {twice[0]!r} stands twice among the columns\nadd such columns up, or keep one"
        )


#: What to do where an encoder was given z-scores.
LINEAR_NEEDED = (
    "give the encoder the table before it was standardised (counts, TPM or FPKM, or their logarithms), or read these "
    "values without an encoder: leave tables.rna.encoder out"
)


def check_kind_accepted(name: str, accepts: Collection[str], kind: str) -> None:
    """Refuse a kind of expression that an encoder cannot use.

    Raises
    ------
    ValueError
        With the kinds that it can use and the remedy.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind of expression {kind!r}; known: {', '.join(KINDS)}")
    if kind in accepts:
        return
    usable = ", ".join(known for known in KINDS if known in accepts)
    if kind == "zscore":
        raise ValueError(
            f"RNA encoder {name!r} cannot use z-scores: which genes are expressed is lost in them (it uses {usable})\n"
            f"{LINEAR_NEEDED}"
        )
    raise ValueError(f"RNA encoder {name!r} uses {usable}, not {kind!r}\ngive it a table of such values")


def sample_generator(row: NDArray[np.float32], seed: int) -> np.random.Generator:
    """Random numbers of one sample: a function of the seed and its values, not of where it stands among others."""
    digest = hashlib.sha256(np.ascontiguousarray(row, "<f4").tobytes()).digest()
    return np.random.default_rng([seed, int.from_bytes(digest[:8], "little")])
