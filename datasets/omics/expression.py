"""Kinds of RNA values: what a study declares or a table looks like, what contradicts it, the way back to abundances.

A table does not say what its numbers are. Counts are scaled by library size, abundances are not; logarithms must not
be taken twice; a z-score has lost the abundance for good. So a study declares the kind beside the path of the table
(``kind: tpm``), and a declaration that the values contradict is an error. Without one the kind is detected, which
the notes of ``validate`` say.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from equipoise.datasets.errors import DataError, DataWarning
from equipoise.datasets.omics.logarithms import LARGEST_LOG, Scale
from equipoise.datasets.omics.params import LINEAR_KINDS, LONG_NAMES, SCALES
from equipoise.datasets.params import ExpressionKind, OmicsSource

#: Rounding of logarithms below which a value is not lower than that of an abundance of 0.
ROUNDING = 1e-3


@dataclass(frozen=True)
class Expression:
    """What the RNA values of a cohort are.

    Attributes
    ----------
    kind
        ``counts``, ``tpm``, ``log`` or ``zscore``.
    base, pseudocount
        Of logarithms: ``log_base(x + pseudocount)``; the base is ``None`` where nobody said it.
    declared
        Whether the study says so; otherwise the values look like it.
    """

    kind: ExpressionKind
    base: float | None = None
    pseudocount: float = 1.0
    declared: bool = True

    @property
    def scale(self) -> Scale:
        """The logarithm that ``transform: auto`` takes."""
        return SCALES[self.kind]

    @property
    def text(self) -> str:
        """``counts``, ``logarithms log2(x + 1)``, …"""
        if self.kind != "log" or self.base is None:
            return LONG_NAMES[self.kind]
        base = "ln" if np.isclose(self.base, np.e) else f"log{self.base:g}"
        return f"{LONG_NAMES['log']} {base}(x + {self.pseudocount:g})"

    def differs_from(self, other: Expression) -> bool:
        """Whether values of both cannot stand in one table; a base that nobody said differs from none."""
        bases = self.base is not None and other.base is not None and self.base != other.base
        return self.kind != other.kind or bases or self.pseudocount != other.pseudocount


def detect_kind(values: np.ndarray) -> ExpressionKind:
    """What values look like: negative ones are z-scores, small ones logarithms, whole ones counts, others abundances.

    NaN is missing. A table without any value counts as logarithms, which are left as they are.
    """
    known = values[~np.isnan(values)]
    if not len(known):
        return "log"
    if known.min() < 0:
        return "zscore"
    if known.max() <= LARGEST_LOG:
        return "log"
    return "counts" if np.array_equal(known, np.floor(known)) else "tpm"


def scale_of(rows: np.ndarray) -> Scale:
    """The logarithm that these values look as if they needed."""
    return SCALES[detect_kind(rows)]


def check_kind(
    values_NG: np.ndarray,
    declared: ExpressionKind,
    *,
    base: float | None = None,
    pseudocount: float = 1.0,
    where: str | None = None,
    patients: Sequence[str] | None = None,
    genes: Sequence[str] | None = None,
) -> None:
    """Refuse values that cannot be of the declared kind.

    Parameters
    ----------
    values_NG
        [N, G]; NaN = missing.
    declared
        What the study says they are.
    base, pseudocount
        Of logarithms.
    where
        Cohort and table, for the message.
    patients, genes
        [N] and [G] names, for the message.

    Raises
    ------
    DataError
        For negative or fractional counts, negative abundances, logarithms below that of 0 or above 50, and z-scores
        none of which is negative; with the first such value.

    Warns
    -----
    DataWarning
        For what is possible and rarely meant: abundances that are all whole, and counts or abundances none of which
        exceeds 50.
    """
    if declared not in SCALES:
        raise DataError(
            f"unknown kind of expression {declared!r}", where=where, fix=f"one of {', '.join(SCALES)}"
        )
    known = ~np.isnan(values_NG)
    if not known.any():
        return

    def refuse(wrong_NG: np.ndarray, problem: str, fix: str) -> None:
        if wrong_NG.any():
            row, column = np.argwhere(wrong_NG)[0].tolist()
            patient = patients[row] if patients is not None else f"row {row + 1}"
            gene = genes[column] if genes is not None else f"column {column + 1}"
            raise DataError(
                f"declared as {LONG_NAMES[declared]}, but {int(wrong_NG.sum())} values are {problem}, "
                f"the first {values_NG[row, column]:.6g} ({patient}, {gene})",
                where=where,
                fix=fix,
            )

    if declared in LINEAR_KINDS:
        refuse(values_NG < 0, "negative", f"write kind: zscore or kind: log, whichever they are{_OFFSET}")
    if declared == "counts":
        refuse(
            known & (values_NG != np.floor(values_NG)),
            "not whole",
            "write kind: tpm if they are TPM, FPKM or CPM; round the expected counts of RSEM",
        )
    if declared == "log":
        lowest = 0.0 if base is None else float(np.log(pseudocount) / np.log(base))
        refuse(
            values_NG < lowest - ROUNDING,
            f"below the logarithm of {pseudocount:g}",
            f"write kind: zscore if they were standardised{_OFFSET}",
        )
        refuse(
            values_NG > LARGEST_LOG,
            f"above {LARGEST_LOG:g}, which no logarithm of an abundance reaches",
            "write kind: counts or kind: tpm",
        )
    if declared == "zscore" and np.nanmin(values_NG) >= 0:
        raise DataError(
            f"declared as z-scores, but no value is negative (smallest {np.nanmin(values_NG):.6g})",
            where=where,
            fix=f"write kind: {detect_kind(values_NG)}, which they look like",
        )
    if problem := _improbable(values_NG[known], declared):
        warnings.warn(f"{where}: {problem}" if where else problem, DataWarning, stacklevel=2)


#: Remedy for tables such as those of UCSC Xena.
_OFFSET = "; for logarithms of x + 0.001 add log_base: 2 and pseudocount: 0.001"


def _improbable(known: np.ndarray, declared: ExpressionKind) -> str:
    if declared in LINEAR_KINDS and known.max() <= LARGEST_LOG:
        return f"declared as {LONG_NAMES[declared]}, and none exceeds {LARGEST_LOG:g}: are they logarithms?"
    if declared == "tpm" and np.array_equal(known, np.floor(known)):
        return f"declared as {LONG_NAMES['tpm']}, and all are whole: are they counts?"
    return ""


def to_linear(
    values: np.ndarray, kind: str, base: float | None = None, pseudocount: float = 1.0
) -> np.ndarray:
    """Values as counts or abundances: the space in which samples are mixed and encoders read.

    Parameters
    ----------
    values
        Any shape; NaN stays NaN.
    kind
        What they are.
    base, pseudocount
        Of logarithms: the result is ``base**x - pseudocount``, not below 0.

    Raises
    ------
    DataError
        For z-scores, which no longer hold the abundance, and for logarithms without a base.

    Examples
    --------
    >>> to_linear(np.log2(np.array([0.0, 7.0]) + 1), "log", base=2).tolist()
    [0.0, 7.0]
    """
    if kind in LINEAR_KINDS:
        return values
    if kind != "log":
        raise DataError(
            f"{LONG_NAMES.get(kind, kind)} cannot be turned into abundances: mean and spread of every gene are lost",  # type: ignore[call-overload]
            fix="use the table that they were made from: counts, TPM, FPKM or their logarithm",
        )
    if base is None:
        raise DataError(
            "logarithms can be undone only if their base is known",
            fix="write it beside the path of the table: kind: log, log_base: 2 (or e, or 10)",
        )
    linear = np.exp(values.astype(np.float64) * np.log(base)) - pseudocount
    return np.maximum(linear, 0).astype(np.float32)


def expression_of(
    values_NG: np.ndarray, source: OmicsSource, *, where: str, **names: Sequence[str]
) -> Expression:
    """What a cohort's RNA is: as declared and checked, or as it looks.

    Parameters
    ----------
    values_NG
        [N, G]; NaN = missing.
    source
        The table in the study.
    where, names
        For messages, as in :func:`check_kind`.
    """
    if source.kind is None:
        return Expression(detect_kind(values_NG), declared=False)
    declared = Expression(source.kind, source.base, source.pseudocount)
    check_kind(values_NG, source.kind, base=source.base, pseudocount=source.pseudocount, where=where, **names)
    return declared


def consistency_notes(cohorts: Mapping[str, Expression], develop: frozenset[str]) -> list[str]:
    """What the RNA of every cohort is, as notes; values of different kinds cannot be learned from together.

    Parameters
    ----------
    cohorts
        Name → what its RNA is.
    develop
        Names of the development cohorts.

    Raises
    ------
    DataError
        If two declared kinds differ, or a development cohort looks like another kind than one that is declared.

    Warns
    -----
    DataWarning
        If two kinds differ of which at most one is declared, and models do not learn from both.
    """
    if not cohorts:
        return []
    declared = {name: expression for name, expression in cohorts.items() if expression.declared}
    reference = next(iter(declared or {n: e for n, e in cohorts.items() if n in develop} or cohorts))
    expected = cohorts[reference]
    notes = []
    for name, expression in cohorts.items():
        said = "are declared as" if expression.declared else "look like"
        if not expression.differs_from(expected):
            continue
        note = (
            f"cohort {name}: rna values {said} {expression.text}, those of {reference} "
            f"{'are declared as' if expected.declared else 'look like'} {expected.text}; "
            "all cohorts must be on one scale"
        )
        if expected.declared and (expression.declared or name in develop):
            raise DataError(
                note,
                where=f"cohorts: omics.rna of {name}",
                fix="bring the tables to one kind"
                + ("" if expression.declared else f", or declare what {name} holds (kind: {expected.kind})"),
            )
        notes.append(note)
        warnings.warn(note, DataWarning, stacklevel=2)
    if notes:
        return notes
    names = ", ".join(cohorts)
    if declared:
        rest = [name for name in cohorts if name not in declared]
        looks = f" (declared for {', '.join(declared)}; {', '.join(rest)}: they look like it)" if rest else ""
        return [f"rna of {names}: {expected.text}{looks}"]
    return [f"rna of {names}: the values look like {expected.text}; declare them with kind: {expected.kind}"]
