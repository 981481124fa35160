"""scGPT: a transformer over genes and their binned values, pre-trained on 33 million cells (Cui et al., 2024).

A profile becomes ``<cls>`` and its expressed genes; the vector is the output at ``<cls>``, of length 1. A cell has a
few hundred to a few thousand expressed genes, a bulk profile about 17,000: more than the 1200 tokens that the network
has seen. What is done about that is the bulk policy. As published one random draw is taken, another at every call.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from equipoise.models.rna.binning import quantile_bins
from equipoise.models.rna.entries import ScGptParams
from equipoise.models.rna.folders import fingerprint, read_genes, require_tensors, sha256
from equipoise.models.rna.protocol import Identity, check_profiles, sample_generator
from equipoise.models.rna.scgpt_files import (
    CLS,
    PAD,
    ScGptFolder,
    read_folder,
    read_state,
    warn_of_other_files,
)
from equipoise.models.rna.transformer import Transformer

if TYPE_CHECKING:
    from equipoise.models.rna.scgpt_files import ScGptConfig

#: Raise with every change of the vectors.
_VERSION = 1
#: Largest value that enters the value encoder.
_MAX_VALUE = 512.0


class GeneEncoder(nn.Module):
    """Layer norm of a gene's embedding."""

    def __init__(self, tokens: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, dim)
        self.enc_norm = nn.LayerNorm(dim)

    def forward(self, tokens_BL: Tensor) -> Tensor:
        """``[B, L, D]``."""
        return self.enc_norm(self.embedding(tokens_BL))


class ValueEncoder(nn.Module):
    """A value as a vector: two linear layers and layer norm."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear1, self.linear2 = nn.Linear(1, dim), nn.Linear(dim, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, values_BL: Tensor) -> Tensor:
        """``[B, L, D]``."""
        first = self.linear1(values_BL.clamp(max=_MAX_VALUE)[..., None])
        return self.norm(self.linear2(functional.relu(first)))


class ScGptNetwork(nn.Module):
    """The part of scGPT that makes embeddings, with the parameter names of the official model.

    Parameters
    ----------
    config, tokens
        Of the network; size of the vocabulary.
    """

    def __init__(self, config: ScGptConfig, tokens: int) -> None:
        super().__init__()
        self.encoder = GeneEncoder(tokens, config.dim)
        self.value_encoder = ValueEncoder(config.dim)
        self.transformer_encoder = Transformer(config.dim, config.heads, config.hidden, config.layers)

    def forward(self, tokens_BL: Tensor, values_BL: Tensor, visible_BL: Tensor | None = None) -> Tensor:
        """``[B, D]`` outputs at the first token.

        Parameters
        ----------
        tokens_BL, values_BL
            Numbers of the tokens, ``<cls>`` first, and their binned values.
        visible_BL
            False where a position is padding; ``None``: nothing is.
        """
        h_BLD = self.encoder(tokens_BL) + self.value_encoder(values_BL)
        return self.transformer_encoder(h_BLD, visible_BL, queries=1)[:, 0]


class ScGpt:
    """scGPT from the official folder, as an encoder of single cells and bulk profiles.

    Values are binned over all expressed genes of the vocabulary; which of these the network then sees is the policy.

    Parameters
    ----------
    params
        Folder and policy.

    Raises
    ------
    FileNotFoundError, ValueError
        If files are missing, or are not the weights of this network.

    Warns
    -----
    UserWarning
        If the files are not the published ones.
    """

    name = "scgpt"
    accepts = ScGptParams.accepts

    def __init__(self, params: ScGptParams) -> None:
        folder = read_folder(params.folder)
        warn_of_other_files(folder)
        self._params, self._config, self._vocabulary = params, folder.config, folder.vocabulary
        self.dim, self.fingerprint = folder.config.dim, _fingerprint(params, folder)
        self._panel = None if params.panel is None else self._panel_tokens(Path(params.panel))
        self._device = _device(params.device)
        self._network = _load(folder).to(self._device)

    @classmethod
    def identify(cls, params: ScGptParams) -> Identity:
        """See :class:`~equipoise.models.rna.protocol.Identity`."""
        folder = read_folder(params.folder)
        return Identity(folder.config.dim, _fingerprint(params, folder))

    def knows(self, genes: Sequence[str]) -> NDArray[np.bool_]:
        """Genes of the vocabulary; with a panel, those of the panel."""
        tokens = self._tokens(genes)
        return tokens >= 0 if self._panel is None else np.isin(tokens, self._panel)

    @torch.no_grad()
    def encode(
        self, values: NDArray[np.float32], genes: Sequence[str], *, kind: str, seed: int
    ) -> NDArray[np.float32]:
        """See :class:`~equipoise.models.rna.protocol.RnaEncoder`.

        Vectors have length 1. Genes of the table are those of the vocabulary, letter by letter; others are not read.
        """
        check_profiles(self.name, self.accepts, values, genes, kind)
        tokens = self._tokens(genes)
        by_token = np.argsort(tokens)
        by_token = by_token[
            tokens[by_token] >= 0
        ]  # in the order of the vocabulary, whatever that of the table
        if not len(by_token):
            raise ValueError(
                f"none of the {len(genes)} genes is in the vocabulary of scGPT ({', '.join(map(str, genes[:3]))}, …)\n"
                "name genes by their symbols; Ensembl ids have to be mapped first"
            )
        known, tokens = np.nan_to_num(values[:, by_token]), tokens[by_token]
        vectors = np.full((len(values), self.dim), np.nan, np.float32)
        sequences: list[tuple[int, NDArray[np.int64], NDArray[np.float32]]] = []
        for start in range(0, len(values), self._params.batch):
            rows = range(start, min(start + self._params.batch, len(values)))
            sequences = [(row, *part) for row in rows for part in self._draws(known[row], tokens, seed)]
            if not sequences:
                continue
            outputs = self._forward([part[1] for part in sequences], [part[2] for part in sequences])
            owners = np.array([part[0] for part in sequences])
            for row in np.unique(owners):
                vectors[row] = outputs[owners == row].mean(axis=0)
        length = np.linalg.norm(vectors, axis=1, keepdims=True)
        return (vectors / np.where(length > 0, length, 1)).astype(np.float32)

    def _draws(
        self, row: NDArray[np.float32], tokens: NDArray[np.int64], seed: int
    ) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Tokens and binned values of every sequence of one sample, without ``<cls>``; none if nothing is expressed."""
        expressed = np.flatnonzero(row)
        generator = sample_generator(row, seed)
        if not len(expressed):
            return []
        bins = quantile_bins(row[expressed], self._config.bins, generator).astype(np.float32)
        chosen = tokens[expressed]
        if self._panel is not None:
            inside = np.isin(chosen, self._panel)
            return [(chosen[inside], bins[inside])] if inside.any() else []
        room = self._params.max_length - 1
        if self._params.policy == "all" or len(chosen) <= room:
            return [(chosen, bins)]
        draws = [np.sort(generator.permutation(len(chosen))[:room]) for _ in range(self._params.draws)]
        return [(chosen[draw], bins[draw]) for draw in draws]

    def _forward(
        self, tokens: Sequence[NDArray[np.int64]], values: Sequence[NDArray[np.float32]]
    ) -> NDArray[np.float32]:
        """``[S, D]`` outputs of sequences, padded to the longest of them."""
        lengths = [len(part) + 1 for part in tokens]
        shape = (len(tokens), max(lengths))
        padded = np.full(shape, self._vocabulary[PAD], np.int64)
        binned = np.full(shape, self._config.pad_value, np.float32)
        padded[:, 0] = self._vocabulary[CLS]
        for i, (part, bins) in enumerate(zip(tokens, values, strict=True)):
            padded[i, 1 : len(part) + 1], binned[i, 1 : len(part) + 1] = part, bins
        visible = None if min(lengths) == shape[1] else torch.from_numpy(padded != self._vocabulary[PAD])
        inputs = (torch.from_numpy(padded), torch.from_numpy(binned), visible)
        on_device = (None if part is None else part.to(self._device) for part in inputs)
        return self._network(*on_device).cpu().numpy()

    def _tokens(self, genes: Sequence[str]) -> NDArray[np.int64]:
        """``[G]`` numbers of genes, -1 where the vocabulary has none."""
        special = {number for token, number in self._vocabulary.items() if token.startswith("<")}
        numbers = (self._vocabulary.get(gene, -1) for gene in genes)
        return np.array([-1 if number in special else number for number in numbers], np.int64)

    def _panel_tokens(self, path: Path) -> NDArray[np.int64]:
        """Tokens of a panel; every gene of it must be in the vocabulary."""
        genes = read_genes(path)
        tokens = self._tokens(genes)
        if unknown := [gene for gene, token in zip(genes, tokens, strict=True) if token < 0]:
            raise ValueError(
                f"{path}: {len(unknown)} of {len(genes)} genes are not in the vocabulary of scGPT "
                f"({', '.join(unknown[:3])})\ntake them out of the panel, or correct their symbols"
            )
        return tokens


def _fingerprint(params: ScGptParams, folder: ScGptFolder) -> str:
    """Of what decides vectors: files and policy."""
    policy: dict[str, object] = {"policy": params.policy}
    if params.policy == "draws":
        policy |= {"draws": params.draws, "max_length": params.max_length}
    if params.panel is not None:
        policy |= {"panel": sha256(Path(params.panel))}
    return fingerprint({"encoder": "scgpt", "version": _VERSION, "files": folder.hashes, **policy})


def _load(folder: ScGptFolder) -> ScGptNetwork:
    """The network with all of its weights."""
    state = read_state(folder.path / "best_model.pt")
    with torch.device("meta"):
        network = ScGptNetwork(folder.config, len(folder.vocabulary))
    shapes = {name: tensor.shape for name, tensor in network.state_dict().items()}
    require_tensors(shapes, state, str(folder.path / "best_model.pt"))
    if extra := [name for name in state if name not in shapes]:
        raise ValueError(
            f"{folder.path / 'best_model.pt'}: {len(extra)} tensors have no place in the network of args.json "
            f"({', '.join(extra[:4])})\nname the folder whose args.json belongs to these weights"
        )
    network.load_state_dict(state, strict=True, assign=True)
    return network.eval().requires_grad_(False)


def _device(wanted: str) -> torch.device:
    if wanted != "auto":
        return torch.device(wanted)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
