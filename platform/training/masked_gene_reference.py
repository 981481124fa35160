"""A single-cell reference as the pre-training of the RNA encoder ``masked_gene`` reads it.

Cells are split into training, validation and test cells; genes are chosen, and their moments taken, from training cells
alone. Which genes a cell shows and which are hidden is a function of seed, epoch and cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from pydantic import Field, model_validator

from equipoise.datasets.params import StrictParams
from equipoise.models.rna.masked_gene import TOTAL, GeneStatistics, MaskedGeneConfig, log_profiles
from equipoise.platform.errors import DataError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from equipoise.datasets.omics.single_cell import SingleCells

#: Fewest cells of a reference.
MIN_CELLS = 50
#: Validation or test cells at most: all genes of each are read at once.
MAX_HELD_OUT = 500
#: What the draws of the split, of epochs, of validation and of test cells are numbered by beside their cell.
SPLIT, TRAIN, VAL, TEST = range(4)


class PretrainingParams(StrictParams):
    """How the encoder is trained; the defaults are for one CPU and some thousand cells."""

    genes: int = Field(default=2000, ge=2)
    """Genes of the encoder at most, those of largest variance of ln(1 + x) among training cells."""
    genes_per_cell: int = Field(default=192, ge=1)
    """Genes that a training cell shows in an epoch at most, drawn at random."""
    mask_share: float = Field(default=0.4, gt=0, lt=1)
    """Share of a cell's genes that is hidden at least."""
    dim: int = Field(default=64, ge=1)
    """Width, and length of the embedding."""
    layers: int = Field(default=2, ge=1)
    """Layers."""
    heads: int = Field(default=4, ge=1)
    """Attention heads; must divide dim."""
    hidden: int = Field(default=128, ge=1)
    """Width of the feed-forward parts."""
    epochs: int = Field(default=40, ge=1)
    """Epochs at most."""
    patience: int = Field(default=10, ge=1)
    """Epochs without a smaller loss on validation cells after which training stops."""
    batch: int = Field(default=32, ge=1)
    """Cells per step."""
    lr: float = Field(default=3e-3, gt=0)
    """Learning rate of AdamW at the start; it falls along half a cosine."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Decoupled weight decay of AdamW."""
    seed: int = Field(default=0, ge=0)
    """Of initial weights, splits, drawn and hidden genes."""
    workers: int = Field(default=1, ge=1)
    """Workers of Ray Train that share every batch."""
    threads: int = Field(default=1, ge=1)
    """CPU threads of each worker."""

    @model_validator(mode="after")
    def _fit_together(self) -> PretrainingParams:
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} is not divisible by heads {self.heads}")
        if self.workers > self.batch:
            raise ValueError(
                f"{self.workers} workers share batches of {self.batch} cells: write a larger batch"
            )
        return self

    def shown(self, genes: int, training: bool) -> int:
        """Genes that a cell shows of these; where nothing is learned, all but those that are hidden."""
        most = min(max(round(genes * (1 - self.mask_share)), 1), genes - 1)
        return min(self.genes_per_cell, most) if training else most

    @property
    def config(self) -> MaskedGeneConfig:
        """Size of the network."""
        return MaskedGeneConfig(self.dim, self.layers, self.heads, self.hidden)


@dataclass(frozen=True, eq=False)
class Reference:
    """Cells of a reference, restricted to the genes of the encoder.

    Attributes
    ----------
    values
        [C, G] linear, CSR.
    genes
        [G] names.
    statistics
        Of the genes among training cells.
    train, val, test
        Indices of cells.
    digest
        Of the file's content.
    """

    values: csr_matrix
    genes: tuple[str, ...]
    statistics: GeneStatistics
    train: np.ndarray
    val: np.ndarray
    test: np.ndarray
    digest: str

    def rows(self, cells: Sequence[int] | np.ndarray) -> np.ndarray:
        """[N, G] float32: ln(1 + x)."""
        return log_profiles(self.values[np.asarray(cells)].toarray())


def prepare_reference(cells: SingleCells, params: PretrainingParams) -> Reference:
    """Split the cells and choose the genes, by training cells alone.

    Raises
    ------
    DataError
        If there are fewer than fifty cells, or fewer than two genes that vary.
    """
    count = cells.values.shape[0]
    if count < MIN_CELLS:
        raise DataError(
            f"a reference of {count} cells is too small; {MIN_CELLS} are needed",
            fix="use a larger reference",
        )
    order = np.random.default_rng([params.seed, SPLIT]).permutation(count)
    held_out = min(max(count // 10, 1), MAX_HELD_OUT)
    val, test, train = np.split(order, [held_out, 2 * held_out])
    mean, spread = _moments(log_csr(cells.values[train]))
    varies = int((spread > 1e-6 * np.maximum(1, mean)).sum())
    if varies < 2:
        raise DataError(f"{varies} genes of the reference vary; two are needed")
    chosen = np.sort(np.argsort(-spread, kind="stable")[: min(params.genes, varies)])
    values = cells.values[:, chosen].tocsr()
    expressed = np.asarray(values.sum(axis=1)).ravel() > 0
    train, val, test = (part[expressed[part]] for part in (train, val, test))
    if not (len(train) and len(val) and len(test)):
        raise DataError("no cell expresses the most variable genes", fix="choose more genes")
    mean, spread = _moments(log_csr(values[train]))
    total = np.asarray(values[train].sum(axis=1)).ravel()
    share = np.asarray(values[train].multiply(1 / total[:, None]).mean(axis=0)).ravel()
    spread = np.maximum(spread, 1e-3)
    loadings = _loadings(log_csr(values[train]), mean, spread, params.dim)
    statistics = GeneStatistics(*(part.astype(np.float32) for part in (mean, spread, share, loadings)))
    genes = tuple(cells.genes[i] for i in chosen)
    return Reference(values, genes, statistics, np.sort(train), np.sort(val), np.sort(test), cells.digest)


def log_csr(values: csr_matrix) -> csr_matrix:
    """:func:`~equipoise.models.rna.masked_gene.log_profiles` of a sparse matrix, which stays sparse."""
    from scipy.sparse import diags

    total = np.asarray(values.sum(axis=1), np.float64).ravel()
    return (diags(TOTAL / np.where(total > 0, total, 1.0)) @ values).log1p().tocsr()


def _moments(values: csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """[G] means and standard deviations of the columns of a sparse matrix."""
    mean = np.asarray(values.mean(axis=0)).ravel()
    square = np.asarray(values.multiply(values).mean(axis=0)).ravel()
    return mean, np.sqrt(np.maximum(square - mean * mean, 0))


def _loadings(values: csr_matrix, mean: np.ndarray, spread: np.ndarray, count: int) -> np.ndarray:
    """[G, count] correlations of genes with principal components, scaled to a mean square length of 1."""
    products = (values.T @ values).toarray() / values.shape[0] - np.outer(mean, mean)
    variances, axes = np.linalg.eigh(products / np.outer(spread, spread))
    kept = np.flatnonzero(variances > 1e-6)[::-1][:count]
    axes = axes[:, kept]
    axes *= np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(len(kept))])
    loadings = np.zeros((len(mean), count))
    loadings[:, : len(kept)] = axes * np.sqrt(variances[kept])
    return loadings / np.sqrt((loadings**2).sum(axis=1).mean())


def drawn_genes(reference: Reference, cells: np.ndarray, key: Sequence[int]) -> np.ndarray:
    """[N, G] numbers of all genes in random order, one draw per cell; the first of them are shown, the rest hidden."""
    width = len(reference.genes)
    draws = [np.random.default_rng([*key, int(cell)]).permutation(width) for cell in cells]
    return np.stack(draws) if draws else np.zeros((0, width), np.int64)
