"""MLP-A: the network that is trained on mixed cells to smooth the vectors of a frozen RNA encoder.

Path-GPTOmic (arXiv 2403.11375, section 2.1): three layers of 128, then a linear classifier that predicts the fractions
of cell types in a mixture; what comes out before the classifier is the adapted vector. The paper names neither loss nor
activation; here MSE or cross-entropy, and ReLU.

The platform's training loop trains on patients with labels per task; here rows are mixtures without a patient and
targets are fractions over types, so that :func:`train_adapter` has a loop of its own.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from equipoise.models.gptomic.params import AdapterParams
from equipoise.models.rna.folders import (
    CONFIG,
    WEIGHTS,
    read_config,
    require_tensors,
)

#: Raise with every change of the numbers.
FORMAT = "adapter of an RNA encoder, version 1"
#: An adapter whose weights moved by less than this part of their norm has not been trained.
LEAST_MOVE = 1e-2
_ROWS = 8192


class SmoothingNetwork(nn.Module):
    """MLP-A with its classifier.

    Parameters
    ----------
    inputs
        Width D of the encoder's vectors.
    types
        Number K of cell types.
    params
        Layers, their width and what regularises them.
    """

    centre: Tensor
    scale: Tensor

    def __init__(self, inputs: int, types: int, params: AdapterParams) -> None:
        super().__init__()
        widths = [inputs, *[params.dim] * params.layers]
        self.variational = params.bottleneck == "variational"
        hidden = widths[:-1] if self.variational else widths
        self.layers = nn.Sequential(*(_layer(a, b, params) for a, b in pairwise(hidden)))
        if self.variational:
            self.mean = nn.Linear(widths[-2], params.dim)
            self.log_variance = nn.Linear(widths[-2], params.dim)
        self.classifier = nn.Linear(params.dim, types)
        # One scale for all columns: a column of its own unit would make noise as large as signal.
        self.register_buffer("centre", torch.zeros(inputs))
        self.register_buffer("scale", torch.ones(()))

    def scaled(self, x_ND: Tensor) -> Tensor:
        """The encoder's vectors, centred and in units of their spread over the mixtures."""
        return (x_ND - self.centre) / self.scale

    def adapt(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Adapted vectors ``[N, dim]``, and for each the divergence of the bottleneck ``[N]`` (0 without one)."""
        hidden = self.layers(self.scaled(x_ND))
        if not self.variational:
            return hidden, hidden.new_zeros(len(hidden))
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(dim=1)
        if self.training:
            mean = mean + torch.randn_like(mean) * (0.5 * log_variance).exp()
        return mean, divergence

    def forward(self, x_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Classifier's output ``[N, K]`` and divergence ``[N]``."""
        adapted, divergence = self.adapt(x_ND)
        return self.classifier(adapted), divergence


def _layer(inputs: int, outputs: int, params: AdapterParams) -> nn.Sequential:
    norm: list[nn.Module] = [nn.BatchNorm1d(outputs)] if params.batch_norm else []
    dropout: list[nn.Module] = [nn.Dropout(params.dropout)] if params.dropout else []
    return nn.Sequential(nn.Linear(inputs, outputs), *norm, nn.ReLU(), *dropout)


@dataclass(frozen=True, eq=False)
class Adapter:
    """A trained network, with what it belongs to.

    Attributes
    ----------
    network
        In evaluation mode.
    params
        Its parameters and those of its training.
    encoder, encoder_fingerprint
        Name and fingerprint of the encoder whose vectors it takes.
    types
        [K] names of cell types.
    moved
        Distance of the weights from their start, relative to the norm of the start.
    losses
        Mean loss of every epoch.
    record
        Plain data about the training, written to ``config.json``.
    """

    network: SmoothingNetwork
    params: AdapterParams
    encoder: str
    encoder_fingerprint: str
    types: tuple[str, ...]
    moved: float = np.nan
    losses: tuple[float, ...] = ()
    record: dict[str, Any] = field(default_factory=dict)

    @property
    def inputs(self) -> int:
        """Width of the encoder's vectors."""
        return len(self.network.centre)

    @property
    def dim(self) -> int:
        """Width of adapted vectors."""
        return self.params.dim + self.inputs * self.params.keep

    def __call__(self, vectors_ND: np.ndarray) -> np.ndarray:
        """Adapted vectors, float32 [N, dim]; a row with NaN becomes a row of NaN."""
        return self._rows(vectors_ND, self._adapted, self.dim)

    def _adapted(self, x_ND: Tensor) -> Tensor:
        adapted = self.network.adapt(x_ND)[0]
        return torch.cat([self.network.scaled(x_ND), adapted], dim=1) if self.params.keep else adapted

    def fractions(self, vectors_ND: np.ndarray) -> np.ndarray:
        """Predicted fractions of cell types, float32 [N, K], not negative and summing to 1."""
        output = self._rows(vectors_ND, lambda x: self.network(x)[0], len(self.types))
        if self.params.loss == "cross_entropy":
            return torch.from_numpy(output).softmax(dim=1).numpy()
        positive = np.maximum(output, 0)
        return positive / np.maximum(positive.sum(axis=1, keepdims=True), 1e-6)

    def _rows(self, vectors_ND: np.ndarray, function: Any, width: int) -> np.ndarray:
        x_ND = np.asarray(vectors_ND, np.float32)
        if x_ND.ndim != 2 or x_ND.shape[1] != self.inputs:
            raise ValueError(
                f"the adapter takes vectors of {self.inputs} numbers, not {list(x_ND.shape)}\n"
                "use it with the encoder that it was made for"
            )
        result = np.full((len(x_ND), width), np.nan, np.float32)
        known = np.flatnonzero(np.isfinite(x_ND).all(axis=1))
        with torch.inference_mode():
            for start in range(0, len(known), _ROWS):
                rows = known[start : start + _ROWS]
                result[rows] = function(torch.from_numpy(x_ND[rows])).numpy()
        return result

    def require_encoder(self, name: str, encoder_fingerprint: str) -> None:
        """Refuse an encoder other than the one that it was made for.

        Raises
        ------
        ValueError
            If the fingerprints differ.
        """
        if encoder_fingerprint == self.encoder_fingerprint:
            return
        other = (
            "not for one with other weights or parameters" if name == self.encoder else f"not for {name!r}"
        )
        raise ValueError(
            f"the adapter was made for RNA encoder {self.encoder!r} ({self.encoder_fingerprint[:12]}), {other} "
            f"({encoder_fingerprint[:12]})\n"
            "name the encoder that the adapter was made for, or adapt this one (equipoise adapt-rna)"
        )

    def save(self, folder: Path) -> None:
        """Write ``config.json`` and ``model.safetensors`` into an empty or new folder."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "format": FORMAT,
            "inputs": self.inputs,
            "dim": self.dim,
            "types": list(self.types),
            "encoder": self.encoder,
            "encoder_fingerprint": self.encoder_fingerprint,
            "params": self.params.model_dump(mode="json"),
            "moved": self.moved,
            "losses": list(self.losses),
            "record": self.record,
        }
        (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        save_file(self.network.state_dict(), folder / WEIGHTS)


def load_adapter(folder: str | Path) -> Adapter:
    """Read what :meth:`Adapter.save` wrote.

    Raises
    ------
    FileNotFoundError, ValueError
        Two lines, what is wrong and what to do: if files are missing, are not an adapter of this version, or the
        weights do not fit the configuration.
    """
    from safetensors.torch import load_file

    path, config = _files(folder)
    params = AdapterParams.model_validate(config["params"])
    network = SmoothingNetwork(config["inputs"], len(config["types"]), params)
    state = load_file(path / WEIGHTS)
    wanted = {name: tensor.shape for name, tensor in network.state_dict().items()}
    require_tensors(wanted, state, str(path / WEIGHTS))
    network.load_state_dict(state, strict=True)
    network.eval()
    return Adapter(
        network,
        params,
        config["encoder"],
        config["encoder_fingerprint"],
        tuple(config["types"]),
        config["moved"],
        tuple(config["losses"]),
        config["record"],
    )


def _files(folder: str | Path) -> tuple[Path, dict[str, Any]]:
    path = Path(folder).expanduser()
    if missing := [name for name in (CONFIG, WEIGHTS) if not (path / name).is_file()]:
        raise FileNotFoundError(
            f"adapter {path}: there is no {' and no '.join(missing)}\nname a folder that `equipoise adapt-rna` wrote"
        )
    config = read_config(path / CONFIG)
    if config.get("format") != FORMAT:
        raise ValueError(
            f"{path / CONFIG}: not an adapter of this version\nname a folder that `equipoise adapt-rna` wrote"
        )
    return path, config


def train_adapter(
    vectors_ND: np.ndarray,
    fractions_NK: np.ndarray,
    types: Sequence[str],
    params: AdapterParams,
    *,
    encoder: str,
    encoder_fingerprint: str,
    seed: int,
) -> Adapter:
    """Train MLP-A on the vectors of mixtures.

    Parameters
    ----------
    vectors_ND
        [N, D] vectors of the mixtures, encoded once; rows with NaN are left out.
    fractions_NK
        [N, K] true fractions.
    types
        [K] names.
    params
        Network and training.
    encoder, encoder_fingerprint
        What made the vectors.
    seed
        Of the start, the order of samples, dropout and the bottleneck's draws. The global generator is left as it was.

    Raises
    ------
    ValueError
        If fewer than two samples have a vector, or the loss is not finite.
    """
    known = np.isfinite(vectors_ND).all(axis=1)
    x_ND = torch.from_numpy(np.ascontiguousarray(vectors_ND[known], np.float32))
    y_NK = torch.from_numpy(np.ascontiguousarray(fractions_NK[known], np.float32))
    if len(x_ND) < 2:
        raise ValueError(
            "fewer than two mixtures have a vector\nuse a reference with genes that the encoder knows"
        )
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(1)  # so small a network is slower on several, and sums depend on their number
        try:
            network = SmoothingNetwork(x_ND.shape[1], len(types), params)
            network.centre.copy_(x_ND.mean(dim=0))
            network.scale.copy_((x_ND - network.centre).square().mean().sqrt().clamp(min=1e-12))
            start = _weights(network)
            losses = _fit(network, x_ND, y_NK, params)
        finally:
            torch.set_num_threads(threads)
    if not np.isfinite(losses).all():
        raise ValueError("the adapter's loss is not finite\nlower its learning rate")
    moved = float((_weights(network) - start).norm() / start.norm())
    network.eval()
    return Adapter(network, params, encoder, encoder_fingerprint, tuple(types), moved, tuple(losses))


def _fit(network: SmoothingNetwork, x_ND: Tensor, y_NK: Tensor, params: AdapterParams) -> list[float]:
    """Adam over shuffled batches; the mean loss of every epoch."""
    optimizer = torch.optim.Adam(
        network.parameters(), lr=params.lr, weight_decay=params.weight_decay, fused=True
    )
    network.train()
    losses = []
    for _ in range(params.epochs):
        total = torch.zeros(())
        # A last batch of one sample has no variance for batch normalisation.
        batches = [rows for rows in torch.randperm(len(x_ND)).split(params.batch) if len(rows) > 1]
        for rows in batches:
            output, divergence = network(x_ND[rows])
            loss = fraction_loss(output, y_NK[rows], params.loss)
            loss = loss + params.bottleneck_weight * divergence.mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            total += loss.detach()
        losses.append(float(total) / len(batches))
    return losses


def fraction_loss(output_NK: Tensor, fractions_NK: Tensor, kind: str) -> Tensor:
    """Mean squared error, or cross-entropy with soft targets."""
    if kind == "mse":
        return (output_NK - fractions_NK).square().mean()
    return -(fractions_NK * output_NK.log_softmax(dim=1)).sum(dim=1).mean()


def _weights(network: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten().clone() for parameter in network.parameters()])
