"""Modal tokens of gene sets: a network per pathway, a mixer over pathways, fewer tokens.

Source: ModalTune (arXiv 2503.17564). Per pathway Linear(genes, 256) → ELU → alpha dropout → Linear(256, 256) → ELU →
alpha dropout; an MLP-Mixer (Tolstikhin et al., arXiv 2105.01601) of depth 3 whose hidden widths are half of what they
mix; LayerNorm → Linear to the width of a token → Linear from pathways to tokens. The networks of all pathways run as a
few grouped products in place of one after the other.

Shapes: B cases, G genes, P pathways, M memberships (the sizes of all pathways, summed), H hidden width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from equipoise.models.batch import CaseShape
from equipoise.models.modaltune.entries import PathwayTokensParams


class PathwayNetworks(nn.Module):
    """Two layers per pathway, each pathway with its own weights.

    Parameters
    ----------
    sets
        Columns of each pathway.
    hidden
        Width H of both layers.
    dropout
        Probability of alpha dropout behind each layer.
    """

    def __init__(self, sets: tuple[tuple[int, ...], ...], hidden: int, dropout: float) -> None:
        super().__init__()
        sizes = [len(genes) for genes in sets]
        scale = torch.repeat_interleave(torch.tensor(sizes), torch.tensor(sizes)).rsqrt()
        self.first = nn.Parameter(torch.randn(sum(sizes), hidden) * scale[:, None])
        self.first_bias = nn.Parameter(torch.zeros(len(sets), hidden))
        self.second = nn.Parameter(torch.randn(len(sets), hidden, hidden) * hidden**-0.5)
        self.second_bias = nn.Parameter(torch.zeros(len(sets), hidden))
        self.dropout = nn.AlphaDropout(dropout)
        self._groups = _groups(sets)
        order = [at for pathways, _, _ in self._groups for at in pathways]
        self._back = torch.tensor([order.index(at) for at in range(len(sets))])

    def forward(self, x_BG: Tensor) -> Tensor:
        """``[B, P, H]``."""
        parts = []
        for _, columns_PN, rows_PN in self._groups:
            columns, rows = columns_PN.to(x_BG.device), rows_PN.to(x_BG.device)
            there = rows >= 0
            genes_PBN = torch.where(there[:, None], x_BG[:, columns].transpose(0, 1), 0.0)
            parts.append(genes_PBN @ self.first[rows.clamp(min=0)])
        h_PBH = torch.cat(parts)[self._back.to(x_BG.device)] + self.first_bias[:, None]
        h_PBH = self.dropout(functional.elu(h_PBH))
        h_PBH = h_PBH @ self.second + self.second_bias[:, None]
        return self.dropout(functional.elu(h_PBH)).transpose(0, 1)


def _groups(sets: tuple[tuple[int, ...], ...]) -> list[tuple[list[int], Tensor, Tensor]]:
    """Pathways of 1, 2, 3-4, 5-8, … genes: their numbers, ``[P, N]`` columns and ``[P, N]`` rows of the weights.

    The last two are padded to the longest of the group; a row is -1 there.
    """
    starts, total = [], 0
    for genes in sets:
        starts.append(total)
        total += len(genes)
    by_size: dict[int, list[int]] = {}
    for at, genes in enumerate(sets):
        by_size.setdefault((len(genes) - 1).bit_length(), []).append(at)
    groups = []
    for _, pathways in sorted(by_size.items()):
        longest = max(len(sets[at]) for at in pathways)
        columns = torch.zeros(len(pathways), longest, dtype=torch.int64)
        rows = torch.full((len(pathways), longest), -1, dtype=torch.int64)
        for i, at in enumerate(pathways):
            columns[i, : len(sets[at])] = torch.tensor(sets[at])
            rows[i, : len(sets[at])] = torch.arange(len(sets[at])) + starts[at]
        groups.append((pathways, columns, rows))
    return groups


class MixerLayer(nn.Module):
    """Perceptron over pathways, then over the vector of each, pre-norm, added to what comes in."""

    def __init__(self, pathways: int, hidden: int, expansion: float, dropout: float) -> None:
        super().__init__()
        self.pathway_norm, self.vector_norm = nn.LayerNorm(hidden), nn.LayerNorm(hidden)
        self.over_pathways = _perceptron(pathways, expansion, dropout)
        self.over_vectors = _perceptron(hidden, expansion, dropout)

    def forward(self, h_BPH: Tensor) -> Tensor:
        """``[B, P, H]``."""
        h_BPH = h_BPH + self.over_pathways(self.pathway_norm(h_BPH).transpose(1, 2)).transpose(1, 2)
        return h_BPH + self.over_vectors(self.vector_norm(h_BPH))


def _perceptron(width: int, expansion: float, dropout: float) -> nn.Sequential:
    inner = max(int(width * expansion), 1)
    return nn.Sequential(
        nn.Linear(width, inner), nn.GELU(), nn.Dropout(dropout), nn.Linear(inner, width), nn.Dropout(dropout)
    )


class PathwayTokens(nn.Module):
    """Genes → pathways → mixer → tokens.

    Parameters
    ----------
    params
        Sizes.
    shape, modality
        Widths of the data; the table needs gene sets.
    width
        Width of a token.

    Raises
    ------
    ValueError
        If the table has no gene sets.
    """

    def __init__(self, params: PathwayTokensParams, shape: CaseShape, modality: str, width: int) -> None:
        super().__init__()
        sets = shape.sets.get(modality)
        if not sets:
            raise ValueError(
                f"tokens of pathways need gene sets of the {modality} table: write "
                "tables: {rna: {gene_sets: FILE}}, without components"
            )
        self.count, self.genes = params.tokens, shape.omics[modality]
        self.networks = PathwayNetworks(sets, params.hidden, params.dropout)
        self.mixer = nn.Sequential(
            *(MixerLayer(len(sets), params.hidden, 0.5, params.dropout) for _ in range(params.mixer_layers))
        )
        self.norm = nn.LayerNorm(params.hidden)
        self.widen = nn.Linear(params.hidden, width)
        self.compress = nn.Linear(len(sets), params.tokens)

    def forward(self, rows_BG: Tensor) -> Tensor:
        """``[B, count, width]``."""
        h_BPW = self.widen(self.norm(self.mixer(self.networks(rows_BG))))
        return self.compress(h_BPW.transpose(1, 2)).transpose(1, 2)
