"""What kind of table a file holds: a matrix, gene sets, predictions, folds, codes of sites, or labels of patients."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from equipoise.datasets.omics.genes_in_rows import GENE_NAMES
from equipoise.datasets.tables.cells import MISSING
from equipoise.datasets.tables.columns import (
    FEW_VALUES,
    INDEX_NAMES,
    PREDICTION_WORDS,
    SPLIT_NAMES,
    plain_name,
)
from equipoise.datasets.tables.survival_columns import words_of

if TYPE_CHECKING:
    import pandas as pd

#: A table with at least this many columns, all numeric, is a matrix of genes and not a clinical table.
WIDE = 50
#: A gene symbol.
GENE = re.compile(r"[A-Z][A-Za-z0-9]*(?:[-.@/][A-Za-z0-9]+)*")


def is_matrix(table: pd.DataFrame) -> bool:
    """Whether a table has many columns, all of them numeric."""
    return len(table.columns) >= WIDE and all(numbers(table[column]) is not None for column in table.columns)


def numbers(column: pd.Series) -> pd.Series | None:
    """The known values of a column as numbers, ``None`` if one is text."""
    import pandas as pd

    values = pd.to_numeric(column[~column.isin(MISSING)], errors="coerce")
    return values if values.notna().all() else None


def count_label_columns(table: pd.DataFrame) -> int:
    """How many columns hold text or few values."""
    return sum(
        2 <= table[column].nunique() <= FEW_VALUES or numbers(table[column]) is None
        for column in table.columns
    )


def matrix_without_key(table: pd.DataFrame) -> bool | None:
    """Whether genes are the rows of a matrix that names no patient column; ``None`` for other tables."""
    first, rest = str(table.columns[0]), table[table.columns[1:]]
    if first in INDEX_NAMES and is_matrix(rest):
        return False
    turned = len(table) >= WIDE and first.casefold() in (*GENE_NAMES, *INDEX_NAMES)
    return True if turned and all(numbers(rest[column]) is not None for column in rest.columns) else None


def other_kind(table: pd.DataFrame, patient: str | None, shown: str) -> str:
    """What a table is that holds no labels of patients, with the place where a study uses it; else empty."""
    names = {plain_name(name): str(name) for name in table.columns if name}
    others = set(names) - {plain_name(patient or "")}
    if {"tss_code", "source_site"} <= set(names):
        return f"it names the institutions of site codes: site: {{institution: {shown}}} of a cohort"
    if (
        {"train"} < others
        and others & {"val", "test"}
        and len(others) <= 4
        and _no_flags(table, names["train"])
    ):
        return f"it holds published folds: splits: {{scheme: file, files: {shown}}}"
    if patient is not None and others and others <= SPLIT_NAMES | {"role", "part"}:
        return f"it holds published folds: splits: {{scheme: file, files: {shown}}}"
    written = [name for name in others if set(words_of(name)) & PREDICTION_WORDS]
    usual = {
        "std",
        "n",
        "observations",
        "time",
        "event",
        "censorship",
        "survival",
        "months",
        "days",
        "model",
        "fold",
    }
    usual |= {"slide", "or", "case", "id", "mean", "task", "class", "target", "cohort", "site", "role"}
    if written and all(set(words_of(name)) & (PREDICTION_WORDS | usual) for name in others):
        return f"it holds predictions of a model ({', '.join(sorted(written)[:3])}), no labels to learn from"
    if patient is None and _holds_gene_sets(table):
        return f"it holds gene sets: tables: {{rna: {{gene_sets: {shown}}}}}"
    return ""


def _no_flags(table: pd.DataFrame, train: str) -> bool:
    """Whether a column ``train`` holds names rather than a mark of a clinical table."""
    return table[train].nunique() > 2 or len(table.columns) <= 4


def _holds_gene_sets(table: pd.DataFrame) -> bool:
    """Columns of gene symbols, hardly one of them twice in a column."""
    cells = [cell for column in table.columns[:30] for cell in table[column] if cell]
    like_genes = sum(bool(GENE.fullmatch(cell)) and cell.upper() == cell for cell in cells)
    distinct = sum(len(set(table[column]) - {""}) for column in table.columns[:30])
    enough = len(table.columns) >= 2 and len(cells) >= 10
    return enough and min(like_genes, distinct) >= 0.8 * len(cells)
