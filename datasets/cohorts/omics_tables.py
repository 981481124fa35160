"""Omics matrices of all cohorts: read, held against the clinical tables, one column per gene, aligned by gene."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from equipoise.datasets.cohorts.cohort_tables import RawCohort
from equipoise.datasets.cohorts.keys import near_fix, near_keys
from equipoise.datasets.errors import DataError
from equipoise.datasets.omics.alignment import align
from equipoise.datasets.omics.expression import Expression, consistency_notes, expression_of
from equipoise.datasets.omics.gene_symbols import COLUMNS, GeneTable, changes_note, harmonised, rule_for
from equipoise.datasets.omics.matrix import read_matrix
from equipoise.datasets.params import Columns, OmicsSource
from equipoise.datasets.tables.reading import table_label

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class OmicsTables:
    """What was read.

    Attributes
    ----------
    tables
        Modality → float32 [patients, genes] over all cohorts, with the genes that every development cohort has.
    expression
        Cohort → what its RNA is.
    gene_names
        Columns cohort, modality, name, symbol, change, result: names of genes that are others in the tables.
    notes
        Remarks for terminal and report.
    """

    tables: dict[str, pd.DataFrame]
    expression: Mapping[str, Expression]
    gene_names: pd.DataFrame
    notes: list[str]


def load_omics(
    cohorts: Sequence[RawCohort],
    columns: Columns | None,
    base: Path,
    reads: frozenset[str] | None = None,
    labels: Iterable[str] = (),
) -> OmicsTables:
    """Read the omics of all cohorts.

    Parameters
    ----------
    cohorts, columns, base
        As in :func:`~equipoise.datasets.cohorts.cohort.load_cohorts`.
    reads
        Modalities to read, all if ``None``.
    labels
        Columns that tasks predict, which no matrix may hold.

    Raises
    ------
    DataError
        If a matrix holds no patient of its cohort or a column that a task predicts, the matrices share no gene, or
        RNA is of another kind than declared, or of several kinds.
    """
    import pandas as pd

    parts: dict[str, dict[str, pd.DataFrame]] = {}
    expression: dict[str, Expression] = {}
    gene_names = [pd.DataFrame(columns=["cohort", "modality", *COLUMNS], dtype=object)]
    gene_tables: dict[str, GeneTable] = {}
    notes: list[str] = []
    labels = set(labels)
    for raw in cohorts:
        cohort_columns = (raw.source.columns or Columns()).or_else(columns)
        for name, source in raw.source.omics.items():
            modality: str = name
            if reads is not None and modality not in reads:
                continue
            where = f"cohort {raw.source.name!r}, {table_label(source)}"
            matrix = read_matrix(source, base, cohort_columns, raw.labels.index)
            notes += [
                f"cohort {raw.source.name}, {modality}: {note}" for note in matrix.attrs.pop("notes", ())
            ]
            _refuse_labels(matrix, modality, labels, where)
            matrix, more = _of_known_patients(matrix, modality, raw, where)
            notes += more
            if modality == "rna":
                expression[raw.source.name] = _expression(matrix, source, where)
            matrix, changes, note = _harmonised(matrix, modality, raw, expression, gene_tables, base)
            _refuse_labels(matrix, modality, labels, where)
            gene_names.append(changes)
            notes += [note] if note else []
            parts.setdefault(modality, {})[raw.source.name] = matrix
    tables: dict[str, pd.DataFrame] = {}
    develop = frozenset(raw.source.name for raw in cohorts if raw.source.role == "develop")
    for modality, matrices in parts.items():
        aligned, more = align(modality, matrices, develop)
        notes += more
        if aligned is not None:
            tables[modality] = aligned
    if "rna" in tables:
        notes += consistency_notes(expression, develop)
    return OmicsTables(tables, expression, pd.concat(gene_names, ignore_index=True), notes)


def _harmonised(
    matrix: pd.DataFrame,
    modality: str,
    raw: RawCohort,
    expression: Mapping[str, Expression],
    gene_tables: dict[str, GeneTable],
    base: Path,
) -> tuple[pd.DataFrame, pd.DataFrame, str]:
    """One column per gene, what changed, and a note on it; ``gene_tables`` holds those that were read."""
    name, source = raw.source.name, raw.source.omics[modality]  # type: ignore[index]
    table = None
    if source.gene_table is not None:
        key = source.gene_table.model_dump_json()
        if key not in gene_tables:
            gene_tables[key] = GeneTable.read(source.gene_table, base)
        table = gene_tables[key]
    kind = expression[name].kind if modality == "rna" else None
    matrix, changes = harmonised(matrix, table, rule_for(modality, kind), source.unknown_genes)
    note = changes_note(changes, name, modality, table.label if table else None)
    changes.insert(0, "cohort", name)
    changes.insert(1, "modality", modality)
    return matrix, changes, note


def _expression(matrix: pd.DataFrame, source: OmicsSource, where: str) -> Expression:
    patients, genes = [list(map(str, names)) for names in (matrix.index, matrix.columns)]
    return expression_of(matrix.to_numpy(np.float32), source, where=where, patients=patients, genes=genes)


def _refuse_labels(matrix: pd.DataFrame, modality: str, labels: set[str], where: str) -> None:
    if leaked := sorted(set(matrix.columns) & labels):
        raise DataError(
            f"the {modality} matrix holds column {leaked[0]!r}, which a task predicts: that is leakage",
            where=where,
            fix="name the ending of the gene columns (suffix: _rnaseq), or 'rename' a gene of that name",
        )


def _of_known_patients(
    matrix: pd.DataFrame, modality: str, raw: RawCohort, where: str
) -> tuple[pd.DataFrame, list[str]]:
    """The rows of the cohort's patients, and what is remarkable about the others."""
    name, patients = raw.source.name, raw.labels.index
    known = matrix.index.intersection(patients, sort=False)
    near = near_keys(matrix.index, patients)
    if known.empty:
        turned = (
            " (patients are in the columns: transpose the table)"
            if set(matrix.columns) & set(patients)
            else ""
        )
        raise DataError(
            f"no patient of the {modality} matrix is in the clinical table{turned}: "
            f"{', '.join(map(repr, matrix.index[:3]))} there, {', '.join(map(repr, patients[:3]))} here",
            where=where,
            fix=near_fix(near),
        )
    notes = [f"cohort {name}: of the {modality} matrix, {one.text()}: {one.spelling.remedy}" for one in near]
    strangers = len(matrix) - len(known)
    if strangers or len(known) < len(patients):
        notes.append(
            f"cohort {name}: {modality} of {len(known)} of {len(patients)} patients"
            + (f"; {strangers} rows belong to nobody" if strangers else "")
        )
    return matrix.loc[known], notes
