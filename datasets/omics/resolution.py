"""What the tables section of a study means for a fold: settings that depend on the cohorts are filled in."""

from __future__ import annotations

from collections.abc import Sequence

from equipoise.datasets.omics.params import LONG_NAMES, SCALES, TableParams
from equipoise.datasets.params import CohortSource, ExpressionKind


def resolve_tables(tables: TableParams, sources: Sequence[CohortSource]) -> TableParams:
    """The same parameters with the transform of the declared kind of RNA in place of ``auto``.

    Development cohorts that declare different kinds are refused when they are read
    (:func:`~equipoise.datasets.omics.expression.consistency_notes`).
    """
    kind = _declared_kind(sources)
    if kind is None or tables.rna.transform != "auto":
        return tables
    return tables.model_copy(update={"rna": tables.rna.model_copy(update={"transform": SCALES[kind]})})


def transform_problems(tables: TableParams, sources: Sequence[CohortSource]) -> list[str]:
    """A transform that contradicts the declared kind of RNA, as a line of a study's problems."""
    kind = _declared_kind(sources)
    if kind not in ("log", "zscore") or tables.rna.transform not in ("log_cpm", "log1p"):
        return []
    remedy = "auto, log or none" if kind == "zscore" else "auto or none"
    return [
        f"tables.rna.transform: {tables.rna.transform} is for counts and abundances, and the cohorts declare "
        f"{LONG_NAMES[kind]} (kind: {kind}): write transform: {remedy}"
    ]


def _declared_kind(sources: Sequence[CohortSource]) -> ExpressionKind | None:
    """The first kind that a development cohort declares."""
    kinds = [s.omics["rna"].kind for s in sources if s.role == "develop" and "rna" in s.omics]
    return next((kind for kind in kinds if kind is not None), None)
