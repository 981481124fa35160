"""A small transformer over genes, pre-trained to predict the values of genes that were hidden from it.

The task is that of scGPT (Cui et al., 2024) and Geneformer, brought to a size that trains on one CPU. A profile is a
set of tokens, each the sum of a gene's vector and its value's. The network sees some genes of a profile; from its
output at ``<cls>``, the embedding, and the vector of a gene that it does not see, the value of that gene is predicted
(in scGPT the "gene expression prediction for cell modelling"). Hidden genes are no tokens, as in masked autoencoders
(He et al., 2022): that is quicker, and a second head on tokens of hidden genes, as in scGPT, predicted no better when
we measured.

Values are ln(1 + x) of profiles scaled to one total. What is predicted is the deviation from the gene's mean, and it
starts at 0: training starts at the loss of predicting the mean. Vectors of genes start at their loadings on principal
components of the training cells, as those of scBERT (Yang et al., 2022) start at co-expression; from random ones the
loss falls more slowly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from equipoise.models.rna.entries import MaskedGeneParams
from equipoise.models.rna.folders import (
    CONFIG,
    GENES,
    WEIGHTS,
    existing_folder,
    fingerprint,
    read_config,
    read_genes,
    require_tensors,
    write_folder,
)
from equipoise.models.rna.protocol import Identity, check_profiles
from equipoise.models.rna.transformer import Transformer

#: What a profile of all genes of the encoder sums to.
TOTAL = 10_000.0
#: Raise with every change of the vectors.
_FORMAT = "masked genes, version 1"


@dataclass(frozen=True)
class MaskedGeneConfig:
    """Size of the network: width, layers, heads, and width of the feed-forward part."""

    dim: int = 64
    layers: int = 2
    heads: int = 4
    hidden: int = 128


@dataclass(frozen=True, eq=False)
class GeneStatistics:
    """What is known of every gene before training.

    Attributes
    ----------
    mean, spread
        [G] of ln(1 + x) over training cells.
    share
        [G] mean share of a cell's total: profiles that lack genes are scaled to the share of the others.
    loadings
        [G, D] of the standardised genes on principal components, columns of 0 where there are fewer than D: where the
        vectors of genes start.
    """

    mean: NDArray[np.float32]
    spread: NDArray[np.float32]
    share: NDArray[np.float32]
    loadings: NDArray[np.float32]


class MaskedGeneNetwork(nn.Module):
    """An embedding of the genes that are seen, and values of others that are expected from it.

    Parameters
    ----------
    config
        Size.
    genes
        Number G of genes.
    """

    mean: Tensor
    spread: Tensor
    share: Tensor

    def __init__(self, config: MaskedGeneConfig, genes: int) -> None:
        super().__init__()
        dim = config.dim
        self.gene = nn.Embedding(genes, dim)
        self.direction = nn.Embedding(genes, dim)
        self.value = nn.Sequential(nn.Linear(1, dim), nn.GELU(), nn.Linear(dim, dim))
        self.cls = nn.Parameter(torch.randn(dim) / dim**0.5)
        self.transformer = Transformer(dim, config.heads, config.hidden, config.layers, "gelu", "pre")
        self.norm = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim)
        for table in (self.gene, self.direction):
            nn.init.normal_(table.weight, std=dim**-0.5)
        nn.init.zeros_(self.query.weight)
        nn.init.zeros_(self.query.bias)
        for name in ("mean", "spread", "share"):
            self.register_buffer(name, torch.ones(genes))

    def set_statistics(self, statistics: GeneStatistics) -> None:
        """Fill in what is known of the genes."""
        for name in ("mean", "spread", "share"):
            getattr(self, name).copy_(torch.from_numpy(getattr(statistics, name)))
        loadings = torch.from_numpy(statistics.loadings)
        with torch.no_grad():
            for table in (self.gene, self.direction):
                table.weight.mul_(0.1).add_(loadings)

    def forward(self, values_BL: Tensor, genes_BL: Tensor, visible_BL: Tensor | None = None) -> Tensor:
        """``[B, D]`` embeddings.

        Parameters
        ----------
        values_BL, genes_BL
            ln(1 + x) and the numbers of the genes.
        visible_BL
            False where the gene was not measured; ``None``: all were.
        """
        z_BL = (values_BL - self.mean[genes_BL]) / self.spread[genes_BL]
        h_BLD = self.gene(genes_BL) + self.value(z_BL[..., None]) + z_BL[..., None] * self.direction(genes_BL)
        h_BLD = torch.cat([self.cls.expand(len(h_BLD), 1, -1), h_BLD], dim=1)
        if visible_BL is not None:
            visible_BL = torch.cat([visible_BL.new_ones(len(visible_BL), 1), visible_BL], dim=1)
        return self.norm(self.transformer(h_BLD, visible_BL, queries=1)[:, 0])

    def predict(self, embeddings_BD: Tensor, genes_BK: Tensor) -> Tensor:
        """``[B, K]`` values of ln(1 + x) that are expected of these genes."""
        deviation_BK = (self.query(embeddings_BD)[:, None] * self.gene(genes_BK)).sum(dim=-1)
        return self.mean[genes_BK] + self.spread[genes_BK] * deviation_BK


def log_profiles(linear_NG: NDArray[Any], share: NDArray[np.floating] | None = None) -> NDArray[np.float32]:
    """ln(1 + x) of profiles scaled to one total.

    Parameters
    ----------
    linear_NG
        Counts or abundances; NaN: not measured.
    share
        [G] of a profile's total that genes usually have; profiles with gaps are scaled to the share of the others.

    Returns
    -------
    ``[N, G]`` float32; gaps stay gaps, profiles without expression are 0.
    """
    linear = np.asarray(linear_NG, np.float64)
    total = np.nansum(linear, axis=1, keepdims=True)
    known = 1.0
    if share is not None:
        known = np.where(np.isnan(linear), 0, share).sum(axis=1, keepdims=True) / share.sum()
    return np.log1p(linear * (TOTAL * known / np.where(total > 0, total, 1.0))).astype(np.float32)


def save_masked_gene(
    network: MaskedGeneNetwork,
    config: MaskedGeneConfig,
    genes: Sequence[str],
    folder: str | Path,
    pretraining: dict[str, Any],
) -> str:
    """Write the folder that :class:`MaskedGeneEncoder` reads, and return the encoder's fingerprint.

    Parameters
    ----------
    network, config, genes
        What was trained.
    folder
        A new folder.
    pretraining
        How it was trained and what came out, as plain data for ``config.json``.

    Raises
    ------
    FileExistsError
        If there is such a folder already.
    """
    tensors = {name: value.detach().cpu().contiguous() for name, value in network.state_dict().items()}
    content = {"format": _FORMAT, "total": TOTAL, **asdict(config), "pretraining": pretraining}
    write_folder(folder, content, genes, tensors)
    return read_masked_gene(folder)[1].fingerprint


def read_masked_gene(folder: str | Path) -> tuple[MaskedGeneConfig, Identity]:
    """Size and identity of an encoder; builds no network.

    Raises
    ------
    FileNotFoundError, ValueError
        If the folder is missing or is not of such an encoder.
    """
    path = existing_folder("masked_gene", folder)
    content = read_config(path / CONFIG)
    sizes = {name: content.get(name) for name in asdict(MaskedGeneConfig())}
    whole = all(isinstance(size, int) and size > 0 for size in sizes.values())
    if (content.get("format"), content.get("total")) != (_FORMAT, TOTAL) or not whole:
        raise ValueError(
            f"{path / CONFIG}: not an encoder 'masked_gene' of this version\n"
            "name the folder that equipoise pretrain-rna wrote"
        )
    config = MaskedGeneConfig(**{name: int(size) for name, size in sizes.items() if size is not None})
    files = [path / file for file in (CONFIG, GENES, WEIGHTS)]
    return config, Identity(config.dim, fingerprint({"format": _FORMAT}, files))


class MaskedGeneEncoder:
    """The output at ``<cls>`` for the genes of the encoder that a profile has.

    Parameters
    ----------
    params
        Which folder, and how it is computed.

    Raises
    ------
    FileNotFoundError, ValueError
        If the folder is missing or is not of such an encoder.
    """

    name = "masked_gene"
    accepts = MaskedGeneParams.accepts

    def __init__(self, params: MaskedGeneParams) -> None:
        from safetensors.torch import load_file

        config, identity = read_masked_gene(params.folder)
        self.dim, self.fingerprint = identity.dim, identity.fingerprint
        folder = Path(params.folder).expanduser()
        self._genes = read_genes(folder / GENES)
        network = MaskedGeneNetwork(config, len(self._genes))
        state = load_file(folder / WEIGHTS)
        require_tensors(
            {name: list(value.shape) for name, value in network.state_dict().items()},
            state,
            str(folder / WEIGHTS),
        )
        network.load_state_dict(state)
        cuda = params.device == "cuda" or (params.device == "auto" and torch.cuda.is_available())
        self._device = torch.device("cuda" if cuda else "cpu")
        self._network, self._batch = network.eval().to(self._device), params.batch

    @classmethod
    def identify(cls, params: MaskedGeneParams) -> Identity:
        """See :class:`~equipoise.models.rna.protocol.Identity`."""
        return read_masked_gene(params.folder)[1]

    def knows(self, genes: Sequence[str]) -> NDArray[np.bool_]:
        """Genes of the reference that it was trained on."""
        known = set(self._genes)
        return np.array([gene in known for gene in genes], bool)

    def encode(
        self, values: NDArray[np.float32], genes: Sequence[str], *, kind: str, seed: int = 0
    ) -> NDArray[np.float32]:
        """See :class:`~equipoise.models.rna.protocol.RnaEncoder`; nothing is random."""
        check_profiles(self.name, self.accepts, values, genes, kind)
        at = {gene: i for i, gene in enumerate(genes)}
        present = [i for i, gene in enumerate(self._genes) if gene in at]
        if not present:
            raise ValueError(
                f"RNA encoder {self.name!r}: none of the {len(genes)} genes is in its reference: "
                f"{', '.join(genes[:3])} here, {', '.join(self._genes[:3])} there\nuse one naming of genes"
            )
        linear = np.full((len(values), len(self._genes)), np.nan, np.float32)
        linear[:, present] = values[:, [at[self._genes[i]] for i in present]]
        x_NG = log_profiles(np.expm1(linear) if kind == "log" else linear, self._network.share.cpu().numpy())
        out = np.full((len(values), self.dim), np.nan, np.float32)
        some = np.flatnonzero(np.nansum(linear, axis=1) > 0)
        numbers = torch.tensor(present, device=self._device)
        with torch.inference_mode():
            for start in range(0, len(some), self._batch):
                rows = some[start : start + self._batch]
                x_BL = torch.from_numpy(x_NG[rows][:, present]).to(self._device)
                measured = ~x_BL.isnan()
                visible = None if measured.all() else measured
                genes_BL = numbers.expand(len(rows), -1)
                out[rows] = self._network(x_BL.nan_to_num(), genes_BL, visible).float().cpu().numpy()
        return out
