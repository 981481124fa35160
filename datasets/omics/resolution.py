"""What the tables section of a study means for a fold: settings that depend on the cohorts are filled in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from equipoise.datasets.omics.gene_sets import read_gene_sets
from equipoise.datasets.omics.params import SCALES, TableParams, declared_kind
from equipoise.datasets.params import CohortSource


def resolve_tables(tables: TableParams, sources: Sequence[CohortSource], base: Path) -> TableParams:
    """The same parameters without anything that only the study's files say.

    The transform of the declared kind of RNA stands in place of ``auto`` (development cohorts that declare different
    kinds are refused when they are read, :func:`~equipoise.datasets.omics.expression.consistency_notes`), and gene sets
    in place of their file. Vectors of an encoder have no transform.

    Raises
    ------
    DataError
        If the file of gene sets cannot be read.
    """
    update: dict[str, Any] = {}
    kind = declared_kind(sources)
    if tables.rna.encoder is not None:
        update["transform"] = "none"
    elif kind is not None and tables.rna.transform == "auto":
        update["transform"] = SCALES[kind]
    chosen = tables.rna.gene_sets
    if chosen is not None and chosen.file is not None:
        sets = {name: list(genes) for name, genes in read_gene_sets(chosen.file, base).items()}
        update["gene_sets"] = chosen.model_copy(update={"file": None, "sets": sets})
    return tables.model_copy(update={"rna": tables.rna.model_copy(update=update)}) if update else tables


def without_encoder(tables: TableParams) -> TableParams:
    """The same parameters for RNA as the tables hold it."""
    return tables.model_copy(update={"rna": tables.rna.model_copy(update={"encoder": None, "adapter": None})})
