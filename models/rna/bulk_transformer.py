"""A transformer over a fixed list of genes for bulk RNA, as BulkRNABert is described: its file's layout is declared.

Every gene is a token: the embedding of the gene plus that of its bin, where bins are equal parts of
log(1 + TPM) / divisor. The vector is the mean of the outputs over genes. BulkRNABert (Gélard et al., 2024): 19,062
Ensembl genes, log10(1 + TPM) / 5.547 in 64 bins, 4 layers of 8 heads, 256 columns, 512 in the feed-forward part.

Its code and weights are under a non-commercial licence and were not read: how the tensors of a file are called, and the
details that no paper gives (activation, place of the layer norms, number of the first bin), stand in ``config.json``.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator
from torch import Tensor, nn

from equipoise.models.params import StrictParams
from equipoise.models.rna.binning import fixed_bins
from equipoise.models.rna.entries import BulkTransformerParams
from equipoise.models.rna.folders import (
    CONFIG,
    GENES,
    WEIGHTS,
    existing_folder,
    fingerprint,
    read_config,
    read_genes,
    require_tensors,
)
from equipoise.models.rna.protocol import Identity, check_profiles
from equipoise.models.rna.transformer import Transformer

_VERSION = 1
#: Share of its genes below which the encoder warns.
_FEW_GENES = 0.5
_ENSEMBL = re.compile(r"(ENS[A-Z]*G\d+)\.\d+$")


class BulkConfig(StrictParams):
    """``config.json`` of the folder.

    Attributes
    ----------
    dim, heads, hidden, layers
        Of the transformer.
    bins, first_bin
        Bins of expression, and the row of the table of bins that the lowest one has.
    bin_rows
        Rows of that table, if there are more than bins (mask, padding).
    log_base, divisor
        Of log(1 + TPM) / divisor, which is cut into bins from 0 to 1.
    activation, norm
        Of the layers; layer norm before (``pre``) or after (``post``) each part.
    final_norm
        Whether a layer norm follows the last layer.
    tensors
        Our name → name in the file, or the names of query, key and value; ``{i}`` is the number of a layer. Names that
        are not listed are ours.
    transposed
        Our names of matrices that the file holds as [inputs, outputs].
    """

    dim: int = Field(ge=1)
    heads: int = Field(ge=1)
    hidden: int = Field(ge=1)
    layers: int = Field(ge=1)
    bins: int = Field(ge=2)
    first_bin: int = Field(default=0, ge=0)
    bin_rows: int | None = None
    log_base: float = Field(default=10.0, gt=1)
    divisor: float = Field(default=5.547, gt=0)
    activation: str = Field(pattern="^(relu|gelu)$")
    norm: str = Field(pattern="^(pre|post)$")
    final_norm: bool = False
    tensors: Mapping[str, str | tuple[str, str, str]] = {}
    transposed: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _fits(self) -> BulkConfig:
        if self.dim % self.heads:
            raise ValueError(f"dim {self.dim} is no multiple of heads {self.heads}")
        if self.bin_rows is not None and self.bin_rows < self.first_bin + self.bins:
            raise ValueError(f"bin_rows {self.bin_rows} are fewer than first_bin + bins")
        return self


class BulkNetwork(nn.Module):
    """The network; its parameter names are those of ``tensors``.

    Parameters
    ----------
    config, genes
        Of the folder; number of genes.
    """

    def __init__(self, config: BulkConfig, genes: int) -> None:
        super().__init__()
        rows = config.bin_rows or config.first_bin + config.bins
        self.gene_embedding = nn.Embedding(genes, config.dim)
        self.bin_embedding = nn.Embedding(rows, config.dim)
        shape = (config.dim, config.heads, config.hidden, config.layers)
        activation: Any = config.activation
        norm: Any = config.norm
        self.transformer = Transformer(*shape, activation, norm)
        self.final_norm = nn.LayerNorm(config.dim) if config.final_norm else nn.Identity()

    def forward(self, genes_L: Tensor, bins_L: Tensor) -> Tensor:
        """``[D]`` mean over the genes of one sample."""
        tokens = self.gene_embedding(genes_L) + self.bin_embedding(bins_L)
        return self.final_norm(self.transformer(tokens[None]))[0].mean(dim=0)


@dataclass(frozen=True)
class _Folder:
    path: Path
    config: BulkConfig
    genes: tuple[str, ...]

    @property
    def fingerprint(self) -> str:
        files = [self.path / name for name in (CONFIG, GENES, WEIGHTS)]
        return fingerprint({"encoder": "bulk_transformer", "version": _VERSION}, files)


class BulkTransformer:
    """Vectors of bulk profiles; the genes that a sample lacks are left out.

    Parameters
    ----------
    params
        Which folder.

    Raises
    ------
    FileNotFoundError, ValueError
        If files are missing or do not belong together.
    """

    name = "bulk_transformer"
    accepts = BulkTransformerParams.accepts

    def __init__(self, params: BulkTransformerParams) -> None:
        folder = _read(params.folder)
        self._config, self._genes = folder.config, {gene: i for i, gene in enumerate(folder.genes)}
        self.dim, self.fingerprint = folder.config.dim, folder.fingerprint
        on_gpu = params.device == "cuda" or (params.device == "auto" and torch.cuda.is_available())
        self._device = torch.device("cuda" if on_gpu else "cpu")
        self._network = _load(folder).to(self._device)

    @classmethod
    def identify(cls, params: BulkTransformerParams) -> Identity:
        """See :class:`~equipoise.models.rna.protocol.Identity`."""
        folder = _read(params.folder)
        return Identity(folder.config.dim, folder.fingerprint)

    def knows(self, genes: Sequence[str]) -> NDArray[np.bool_]:
        """Genes of the list; Ensembl ids also with a version."""
        return self._rows_of(genes) >= 0

    @torch.no_grad()
    def encode(
        self, values: NDArray[np.float32], genes: Sequence[str], *, kind: str, seed: int = 0
    ) -> NDArray[np.float32]:
        """See :class:`~equipoise.models.rna.protocol.RnaEncoder`; nothing is random.

        Warns
        -----
        UserWarning
            If fewer than half of the encoder's genes are among these.
        """
        check_profiles(self.name, self.accepts, values, genes, kind)
        rows = self._rows_of(genes)
        known = np.flatnonzero(rows >= 0)
        if not len(known):
            raise ValueError(
                f"none of the {len(genes)} genes is known to the encoder: {', '.join(map(str, genes[:3]))} here, "
                f"{', '.join(list(self._genes)[:3])} there\nuse the encoder's naming of genes"
            )
        known = known[np.argsort(rows[known])]
        if len(np.unique(rows[known])) < len(known):
            raise ValueError(
                "two columns mean one gene (versions of an Ensembl id)\nadd such columns up, or keep one"
            )
        if len(known) < _FEW_GENES * len(self._genes):
            share = f"{len(known)} of the {len(self._genes)} genes of {self.name} are in the table"
            warnings.warn(f"{share}: its vectors are of another input than it was trained on", stacklevel=2)
        tpm = values[:, known].astype(np.float64)
        tpm = np.expm1(tpm) if kind == "log" else tpm
        scaled = np.log1p(tpm) / np.log(self._config.log_base) / self._config.divisor
        vectors = np.full((len(values), self.dim), np.nan, np.float32)
        for i, row in enumerate(scaled):
            measured = np.flatnonzero(~np.isnan(row))
            if not np.nansum(row) > 0:
                continue
            bins = fixed_bins(row[measured], self._config.bins) + self._config.first_bin
            inputs = (torch.from_numpy(rows[known[measured]]), torch.from_numpy(bins))
            vectors[i] = self._network(*(part.to(self._device) for part in inputs)).cpu().numpy()
        return vectors

    def _rows_of(self, genes: Sequence[str]) -> NDArray[np.int64]:
        """``[G]`` rows of genes in the list, -1 where it has none."""
        rows = (self._genes.get(gene, self._genes.get(_ENSEMBL.sub(r"\1", gene), -1)) for gene in genes)
        return np.array(list(rows), np.int64)


def _read(folder: str | Path) -> _Folder:
    path = existing_folder("bulk_transformer", folder)
    try:
        config = BulkConfig.model_validate(read_config(path / CONFIG))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise ValueError(
            f"{path / CONFIG}: {f'{key}: ' if key else ''}{first['msg']}\n"
            "describe the network as docs/path-gptomic.md says under RNA encoders"
        ) from error
    return _Folder(path, config, read_genes(path / GENES))


def _load(folder: _Folder) -> BulkNetwork:
    """The network with all of its weights, under the names that the configuration declares."""
    from safetensors.torch import load_file

    where = str(folder.path / WEIGHTS)
    with torch.device("meta"):
        network = BulkNetwork(folder.config, len(folder.genes))
    wanted = {name: list(tensor.shape) for name, tensor in network.state_dict().items()}
    stored = load_file(folder.path / WEIGHTS)
    names = {name: _stored_names(name, folder.config) for name in wanted}
    if missing := [part for parts in names.values() for part in parts if part not in stored]:
        raise ValueError(
            f"{where}: {len(missing)} tensors of config.json are missing ({', '.join(missing[:4])})\n"
            f"it holds {', '.join(sorted(stored)[:6])}, …: correct `tensors` in {CONFIG}"
        )
    state = {
        name: _joined(name, [stored[part] for part in parts], folder.config) for name, parts in names.items()
    }
    require_tensors(wanted, state, where)
    network.load_state_dict(state, strict=True, assign=True)
    return network.eval().requires_grad_(False)


def _stored_names(name: str, config: BulkConfig) -> tuple[str, ...]:
    """Names in the file of the parts of one of our tensors."""
    layer = re.match(r"(transformer\.layers\.)(\d+)(\..+)", name)
    pattern = f"{layer[1]}{{i}}{layer[3]}" if layer else name
    stored = config.tensors.get(pattern, pattern)
    parts = (stored,) if isinstance(stored, str) else stored
    return tuple(part.replace("{i}", layer[2] if layer else "") for part in parts)


def _joined(name: str, parts: Sequence[Tensor], config: BulkConfig) -> Tensor:
    """One of our tensors out of its parts, in float32."""
    pattern = re.sub(r"(?<=^transformer\.layers\.)\d+", "{i}", name)
    turned = [part.T if pattern in config.transposed else part for part in parts]
    return torch.cat([part.float() for part in turned]).contiguous()
