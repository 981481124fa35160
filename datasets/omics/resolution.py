"""What the tables section of a study means for a fold: settings that depend on the cohorts are filled in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from equipoise.datasets.omics.params import LONG_NAMES, SCALES, TableParams
from equipoise.datasets.params import CohortSource, ExpressionKind


def resolve_tables(tables: TableParams, sources: Sequence[CohortSource], base: Path) -> TableParams:
    """The same parameters without anything that only the study's files say.

    The transform of the declared kind of RNA stands in place of ``auto`` (development cohorts that declare different
    kinds are refused when they are read, :func:`~equipoise.datasets.omics.expression.consistency_notes`), and gene sets
    in place of their file.

    Raises
    ------
    DataError
        If the file of gene sets cannot be read.
    """
    update: dict[str, Any] = {}
    kind = _declared_kind(sources)
    if kind is not None and tables.rna.transform == "auto":
        update["transform"] = SCALES[kind]
    chosen = tables.rna.gene_sets
    if chosen is not None and chosen.file is not None:
        from equipoise.datasets.omics.gene_sets import read_gene_sets

        sets = {name: list(genes) for name, genes in read_gene_sets(chosen.file, base).items()}
        update["gene_sets"] = chosen.model_copy(update={"file": None, "sets": sets})
    return tables.model_copy(update={"rna": tables.rna.model_copy(update=update)}) if update else tables


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
