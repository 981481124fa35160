"""Single-cell references: cells x genes on a linear scale with a type per cell, and pseudo-bulk samples of them.

Files are read by anndata (``.h5ad``) and scanpy (folders and ``.h5`` files of 10x Genomics). Cells can be mixed, and
gene values summed, on a linear scale only, so the scale of a file is declared or follows from what it says of
itself; it is never guessed from the look of its numbers.
"""

from __future__ import annotations

import hashlib
import math
import warnings
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from equipoise.datasets.errors import DataError
from equipoise.datasets.omics.expression import to_linear
from equipoise.datasets.omics.logarithms import LARGEST_LOG
from equipoise.datasets.params import TableSource
from equipoise.datasets.suggestions import nearest
from equipoise.datasets.tables.reading import MISSING, read_table

if TYPE_CHECKING:
    import anndata
    import pandas as pd
    from scipy.sparse import csr_matrix

#: ``counts``: whole numbers; ``tpm``: other linear abundances (CPM, TPM); ``log``: log(1 + abundance); ``auto``: whole
#: numbers are counts, and a file that scanpy's ``log1p`` has marked holds logarithms of the base that it names.
CellKind = Literal["auto", "counts", "tpm", "log"]


@dataclass(frozen=True, eq=False)
class SingleCells:
    """C cells and G genes on a linear scale.

    Attributes
    ----------
    values
        [C, G] float32, CSR: counts or abundances, none negative, no NaN, every cell with a total above 0.
    genes
        G names, each once.
    types
        K names of cell types, sorted; empty without labels.
    labels
        [C] index into ``types``; -1 without labels.
    notes
        What was decided while reading: where the values stood, their kind, what was left out.
    synthetic
        Whether the file says that no patient is behind it (``uns["notice"]`` begins with SYNTHETIC).
    """

    values: csr_matrix
    genes: tuple[str, ...]
    types: tuple[str, ...]
    labels: np.ndarray
    notes: tuple[str, ...] = ()
    synthetic: bool = False

    @cached_property
    def digest(self) -> str:
        """SHA-256 of values, genes, types and labels, hexadecimal."""
        total = hashlib.sha256("\n".join([*self.genes, "", *self.types]).encode())
        for array in (self.values.data, self.values.indices, self.values.indptr, self.labels):
            kind = np.float32 if array.dtype.kind == "f" else np.int64
            total.update(np.ascontiguousarray(array, kind).data)
        return total.hexdigest()

    def subset(self, rows: np.ndarray) -> SingleCells:
        """The cells at these indices, or where a mask is true; all types keep their index."""
        return replace(self, values=self.values[rows], labels=self.labels[rows])

    def with_equal_totals(self) -> SingleCells:
        """Every cell scaled to the mean total, so that a weight in a mixture is a share of its transcripts.

        Without it a cell that was sequenced ten times as deeply counts ten times as much as its weight says.
        """
        from scipy.sparse import diags

        totals = np.asarray(self.values.sum(axis=1), np.float64).ravel()
        scaled = (diags(totals.mean() / totals) @ self.values).astype(np.float32).tocsr()
        return replace(self, values=scaled)


def read_single_cells(
    path: Path,
    labels: str | None = None,
    *,
    labels_table: Path | None = None,
    kind: CellKind = "auto",
    base: float | None = None,
    layer: str = "auto",
    gene_column: str | None = None,
) -> SingleCells:
    """Read a reference and bring it to a linear scale.

    Parameters
    ----------
    path
        ``.h5ad``, a 10x folder (``matrix.mtx``, ``barcodes.tsv``, ``features.tsv``, gzipped or not) or a 10x ``.h5``.
    labels
        Column with the cell type, of ``obs`` or of ``labels_table``; cells without one are left out and counted. None:
        no labels.
    labels_table
        Table of cells, its first column the barcode; 10x files need one, because they know no cell types.
    kind
        What the values are, see :data:`CellKind`. A declared kind that the values contradict is refused.
    base
        Base of the logarithm (``kind="log"``); None: what the file says, else e.
    layer
        ``X``, ``raw`` or the name of a layer; ``auto``: ``X``, or ``raw`` where X has negative values.
    gene_column
        Column of ``var`` with gene names; None: the index.

    Raises
    ------
    DataError
        For z-scores, values that contradict their kind or have none, missing columns, and files that cannot be read.

    Examples
    --------
    >>> cells = read_single_cells(Path("pbmc.h5ad"), "cell_type")  # doctest: +SKIP
    >>> cells.values.shape, cells.types  # doctest: +SKIP
    """
    if kind not in get_args(CellKind):
        raise DataError(f"unknown kind {kind!r}{nearest(kind, get_args(CellKind))}", where=str(path))
    data = _read(path)
    table, matrix, notes = _layer(data, layer, path)
    linear, note = _linear(matrix, kind, base, data, path)
    linear, genes, gene_notes = _genes_once(linear, _gene_names(table, gene_column, path))
    synthetic = str(data.uns.get("notice", "")).startswith("SYNTHETIC")
    unlabelled = np.full(linear.shape[0], -1)
    cells = SingleCells(linear, genes, (), unlabelled, (*notes, note, *gene_notes), synthetic)
    if labels is not None:
        cells = _labelled(cells, _label_column(data, labels, labels_table, path))
    elif labels_table is not None:
        raise DataError(
            "a table of labels without the name of its column", fix="name the column of cell types"
        )
    return _without_empty(cells, path)


def _read(path: Path) -> anndata.AnnData:
    import anndata

    if not path.exists():
        raise DataError("there is no such file or folder", where=str(path))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of formats of earlier versions, which are read all the same
            if path.is_dir() or path.suffix == ".h5":
                import scanpy  # slow to import

                if path.is_dir():
                    return scanpy.read_10x_mtx(path, var_names="gene_symbols", make_unique=False)
                return scanpy.read_10x_h5(path)
            return anndata.read_h5ad(path)
    except Exception as error:  # both libraries raise a dozen kinds for files that are not theirs
        reason = (str(error).strip() or type(error).__name__).partition("\n")[0]
        raise DataError(
            f"cannot be read as a single-cell reference: {reason}",
            where=str(path),
            fix="give an .h5ad file, a 10x folder with matrix.mtx, barcodes.tsv and features.tsv, or a 10x .h5 file",
        ) from error


def _layer(data: anndata.AnnData, layer: str, path: Path) -> tuple[pd.DataFrame, csr_matrix, tuple[str, ...]]:
    """Genes and values as they stand in the file, and what to say about where they stood."""
    from scipy.sparse import csr_matrix

    known = [*(["X"] if data.X is not None else []), *(["raw"] if data.raw is not None else []), *data.layers]
    chosen = layer
    if layer == "auto":
        if not known:
            raise DataError("the file holds no values", where=str(path))
        negative = data.X is not None and data.X.min() < 0
        chosen = "raw" if data.raw is not None and (data.X is None or negative) else known[0]
    elif layer not in known:
        raise DataError(
            f"no layer {layer!r}{nearest(layer, known)}",
            where=str(path),
            fix=f"name one of {', '.join(known)}",
        )
    source = {"X": lambda: data.X, "raw": lambda: data.raw.X}.get(chosen, lambda: data.layers[chosen])()
    table = data.raw.var if chosen == "raw" else data.var
    reason = (
        ", because X has negative values"
        if layer == "auto" and chosen == "raw" and data.X is not None
        else ""
    )
    matrix = csr_matrix(source, dtype=np.float32)
    matrix.sum_duplicates()
    return table, matrix, (f"values of {'.raw' if chosen == 'raw' else chosen}{reason}",)


def _linear(
    matrix: csr_matrix, kind: CellKind, base: float | None, data: anndata.AnnData, path: Path
) -> tuple[csr_matrix, str]:
    """The matrix on a linear scale, and what it was. A logarithm of 0 is 0, so that only stored values change."""
    values = matrix.data
    if not np.isfinite(values).all():
        raise DataError("the matrix holds NaN or infinite values", where=str(path))
    if len(values) and values.min() < 0:
        raise DataError(
            f"the values are z-scores or otherwise centred (smallest {values.min():.4g}): no linear scale can be "
            "recovered from them",
            where=str(path),
            fix="name the layer that holds counts or log1p values (often 'raw' or 'counts')",
        )
    whole = np.array_equal(values, np.floor(values))
    marked = data.uns.get("log1p")
    if kind == "auto":
        if not whole and marked is None:
            raise DataError(
                "the values are no whole numbers, and the file does not say what they are",
                where=str(path),
                fix="declare their kind: 'log' with its base for log(1 + x), 'tpm' for linear abundances; "
                "or name the layer that holds counts",
            )
        kind = "counts" if whole else "log"
    if kind == "counts" and not whole:
        odd = values[values != np.floor(values)][0]
        raise DataError(
            f"declared as counts, but there are values like {odd:.4g}",
            where=str(path),
            fix="declare 'log' or 'tpm'",
        )
    if kind != "log":
        if base is not None:
            raise DataError(
                f"a base belongs to logarithms, and the values are of kind {kind!r}", where=str(path)
            )
        return matrix, f"kind {kind}"
    if len(values) and values.max() > LARGEST_LOG:
        raise DataError(
            f"declared as logarithms, but there are values of {values.max():.4g}",
            where=str(path),
            fix="declare 'counts' or 'tpm'",
        )
    recorded = marked.get("base") if marked is not None else None
    base = base if base is not None else recorded if recorded is not None else math.e
    if not base > 1:
        raise DataError(f"the base of a logarithm is above 1, not {base}", where=str(path))
    linear = matrix.copy()
    linear.data = to_linear(values, "log", base)
    return linear, f"kind log, base {'e' if base == math.e else f'{base:g}'}, undone"


def _gene_names(table: pd.DataFrame, column: str | None, path: Path) -> list[str]:
    if column is None:
        return [str(name) for name in table.index]
    if column not in table.columns:
        raise DataError(
            f"no column {column!r} among the genes{nearest(column, table.columns)}", where=str(path)
        )
    return [str(name) for name in table[column]]


def _genes_once(matrix: csr_matrix, names: list[str]) -> tuple[csr_matrix, tuple[str, ...], tuple[str, ...]]:
    """Columns of equal names are summed, as transcripts of one gene are."""
    from scipy.sparse import csr_matrix

    first = list(dict.fromkeys(names))
    if len(first) == len(names):
        return matrix, tuple(names), ()
    at = {name: index for index, name in enumerate(first)}
    summing = csr_matrix(
        (np.ones(len(names), np.float32), (np.arange(len(names)), [at[name] for name in names])),
        shape=(len(names), len(first)),
    )
    return (
        (matrix @ summing).tocsr(),
        tuple(first),
        (f"{len(names) - len(first)} repeated gene names summed",),
    )


def _label_column(data: anndata.AnnData, column: str, labels_table: Path | None, path: Path) -> list[str]:
    """A text per cell; empty where there is none."""
    if labels_table is None:
        if column not in data.obs.columns:
            fix = "give a table of cell types with the barcode in its first column"
            known = f"name one of {', '.join(map(str, data.obs.columns))}, or {fix}"
            raise DataError(
                f"no column {column!r} among the cells{nearest(column, data.obs.columns)}",
                where=str(path),
                fix=known if len(data.obs.columns) else fix,
            )
        texts = data.obs[column].astype(object).where(data.obs[column].notna(), "")
        return ["" if str(text).strip() in MISSING else str(text).strip() for text in texts]
    table = read_table(TableSource(path=str(labels_table)), Path())
    if column not in table.columns:
        raise DataError(f"no column {column!r}{nearest(column, table.columns)}", where=str(labels_table))
    barcodes = table.iloc[:, 0].str.strip()
    if barcodes.duplicated().any():
        raise DataError(
            f"barcode {barcodes[barcodes.duplicated()].iloc[0]!r} stands twice", where=str(labels_table)
        )
    text = dict(zip(barcodes, table[column].str.strip(), strict=True))
    texts = [text.get(str(name), "") for name in data.obs_names]
    if not any(texts):
        raise DataError(
            f"no barcode of the table is among the cells ({data.obs_names[0]!r}, …)", where=str(labels_table)
        )
    return ["" if text in MISSING else text for text in texts]


def _labelled(cells: SingleCells, texts: list[str]) -> SingleCells:
    types = tuple(sorted({text for text in texts if text}))
    if len(types) < 2:
        raise DataError(
            f"the cells are of {len(types)} types", fix="name a column with two or more cell types"
        )
    at = {name: index for index, name in enumerate(types)}
    labels = np.array([at.get(text, -1) for text in texts])
    without = int((labels < 0).sum())
    notes = (*cells.notes, f"{without} cells without a type left out") if without else cells.notes
    return replace(replace(cells, types=types, labels=labels).subset(labels >= 0), notes=notes)


def _without_empty(cells: SingleCells, path: Path) -> SingleCells:
    empty = np.asarray(cells.values.sum(axis=1)).ravel() == 0
    if empty.all():
        raise DataError("no cell has a value", where=str(path))
    if not empty.any():
        return cells
    return replace(
        cells.subset(~empty),
        notes=(*cells.notes, f"{int(empty.sum())} cells without any transcript left out"),
    )


def hold_out(cells: SingleCells, share: float, seed: int, least: int = 1) -> tuple[SingleCells, SingleCells]:
    """Training and held-out cells, split at random within every type.

    Parameters
    ----------
    cells
        Labelled.
    share
        Part of every type's cells that is held out.
    seed
        Of the split.
    least
        Cells of a type that are held out at least, as long as one stays for training.

    Raises
    ------
    DataError
        If cells of fewer than two types can be held out.
    """
    rng = np.random.default_rng([seed, 1])
    chosen = np.zeros(len(cells.labels), bool)
    for kind in range(len(cells.types)):
        of_type = rng.permutation(np.flatnonzero(cells.labels == kind))
        count = min(max(least, round(share * len(of_type))), len(of_type) - 1)
        chosen[of_type[: max(count, 0)]] = True
    if len(np.unique(cells.labels[chosen])) < 2:
        raise DataError(
            "fewer than two cell types have two cells, so that none can be held out",
            fix="use a larger reference",
        )
    return cells.subset(~chosen), cells.subset(chosen)


def pseudo_bulk(
    cells: SingleCells, samples: int, *, seed: int, size: int = 100, concentration: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Bulk samples whose composition is known: means of cells drawn to a random composition.

    The composition of each sample is drawn from a symmetric Dirichlet distribution over the types that have cells;
    ``size`` cells are drawn to it with replacement.

    Parameters
    ----------
    cells
        Labelled. With :meth:`SingleCells.with_equal_totals` the fractions are shares of transcripts, otherwise of
        cells.
    samples, size
        Number of samples, and of cells in each.
    seed
        Decides everything.
    concentration
        Of the Dirichlet distribution: 1 draws every composition equally often, smaller values few types a sample.

    Returns
    -------
    values, fractions
        float32 [samples, G], linear; float32 [samples, K], the share of each type among the drawn cells.
    """
    from scipy.sparse import csr_matrix

    sizes = np.bincount(cells.labels[cells.labels >= 0], minlength=len(cells.types))
    present = np.flatnonzero(sizes)
    if not len(present):
        raise DataError("pseudo-bulk samples need cells with a type")
    rng = np.random.default_rng(seed)
    composition = rng.dirichlet(np.full(len(present), concentration), samples)
    drawn = np.zeros((samples, len(cells.types)), np.int64)
    drawn[:, present] = rng.multinomial(size, composition)
    type_of_draw = np.repeat(np.tile(np.arange(len(cells.types)), samples), drawn.ravel())
    by_type = np.argsort(cells.labels, kind="stable")[(cells.labels < 0).sum() :]
    start = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    within = (rng.random(len(type_of_draw)) * sizes[type_of_draw]).astype(np.int64)
    rows = by_type[start[type_of_draw] + within]
    weights = csr_matrix(
        (np.full(len(rows), 1 / size, np.float32), rows, np.arange(0, len(rows) + 1, size)),
        shape=(samples, cells.values.shape[0]),
    )
    values = (weights @ cells.values).toarray()
    return values.astype(np.float32), (drawn / size).astype(np.float32)
