"""Base of encoders on torch: from uint8 tiles to float16 vectors, on a GPU or a CPU.

Tiles travel to the device as bytes and become numbers there. On a GPU, matrix products run in half precision
(autocast: norms and sums stay in float32); on a CPU everything is float32. Vectors leave as float16. A vector depends
on its own tile alone, up to the rounding of sums, which libraries order by the size of a batch.
"""

from __future__ import annotations

import hashlib
import json
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from equipoise.models.encoders.card import Fit, Precision, Triple
from equipoise.models.encoders.protocol import Identity, require_tiles
from equipoise.models.encoders.weights import digest, digest_unloaded, load_weights

#: Raise when the same weights and settings would give other numbers: it enters every hash.
VERSION = 1

_WARM_UP = 2  # batches: the first one chooses kernels, the second one shows that they are chosen


@dataclass(frozen=True)
class Preparation:
    """From pixels to the input that a network was trained on.

    Attributes
    ----------
    px
        Side of the network's input.
    mean, std
        Per channel, of pixels between 0 and 1.
    fit
        How a tile is resized, with antialiasing.
    crop_from
        Side that every tile is resized to before the input is cut out of its centre; ``None``: tiles are resized to
        the input.
    """

    px: int
    mean: Triple
    std: Triple
    fit: Fit
    crop_from: int | None = None

    def __post_init__(self) -> None:
        if self.crop_from is not None and self.crop_from < self.px:
            raise ValueError(f"an input of {self.px} px cannot be cut out of {self.crop_from} px")

    def __call__(self, tiles: Tensor) -> Tensor:
        """uint8 ``[B, H, W, 3]`` to float32 ``[B, 3, px, px]`` on the same device."""
        pixels = tiles.permute(0, 3, 1, 2).float() / 255
        side = self.px if self.crop_from is None else self.crop_from
        if pixels.shape[2:] != (side, side):
            pixels = functional.interpolate(
                pixels, (side, side), mode=self.fit, align_corners=False, antialias=True
            ).clamp(0, 1)  # bicubic overshoots at edges; images cannot
        edge = (side - self.px) // 2
        pixels = pixels[:, :, edge : edge + self.px, edge : edge + self.px]
        mean, std = (torch.tensor(v, device=tiles.device).view(1, 3, 1, 1) for v in (self.mean, self.std))
        return (pixels - mean) / std

    def to_dict(self) -> dict[str, Any]:
        """What is set, for a hash: a setting that does not apply leaves it as it was before there was one."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class EncoderSpec:
    """A torch encoder before it is built.

    Attributes
    ----------
    network
        Names and shapes of its weights; on the device ``meta`` or not.
    state, where
        Its weights by name, as :func:`~equipoise.models.encoders.weights.read_weights` gives them, and their origin.
    preparation, dim, identity, precision, on_cpu, batch_size, device
        As for :class:`TorchEncoder`.
    """

    network: nn.Module
    state: dict[str, Tensor]
    where: str
    preparation: Preparation
    dim: int
    identity: dict[str, Any]
    precision: Precision
    on_cpu: Precision
    batch_size: int
    device: Literal["auto", "cpu", "cuda"]

    def to_identity(self) -> Identity:
        """The identity of the built encoder; raises :class:`ValueError` for weights of another encoder."""
        weights = digest_unloaded(self.network, self.state, self.where)
        total = _hash(self.identity, self.preparation, (self.precision, self.on_cpu), weights)
        return Identity(self.dim, total, self.batch_size)


class TorchEncoder:
    """A network as an :class:`~equipoise.models.encoders.protocol.Encoder`.

    The network moves to the device at the first call and warms up there: reading ``dim`` and ``hash`` only, as the
    driver of an extraction does, touches no GPU.

    Parameters
    ----------
    network
        From ``[B, 3, px, px]`` to ``[B, dim]``, with its weights, on the CPU.
    preparation
        For its input.
    dim
        Length of a vector.
    identity
        Further things that decide the vectors, for the hash: JSON-like.
    precision
        Of matrix products on a GPU; ``on_cpu`` the same on a CPU.
    on_cpu
        See ``precision``.
    batch_size
        Tiles per pass.
    device
        ``auto``: a GPU where one is visible.
    """

    def __init__(
        self,
        network: nn.Module,
        preparation: Preparation,
        dim: int,
        identity: dict[str, Any],
        *,
        precision: Precision = "float32",
        on_cpu: Precision = "float32",
        batch_size: int = 32,
        device: Literal["auto", "cpu", "cuda"] = "auto",
    ) -> None:
        self.dim: int = dim
        self.batch_size: int = batch_size
        self.hash: str = _hash(identity, preparation, (precision, on_cpu), digest(network))
        self._network = network.eval().requires_grad_(False)
        self._preparation = preparation
        self._precisions = {"cuda": precision, "cpu": on_cpu}
        self._requested_device = device
        self._device: torch.device | None = None

    def __call__(self, tiles: NDArray[np.uint8]) -> NDArray[np.float16]:
        """Encode RGB tiles ``[B, H, W, 3]`` into ``[B, dim]``.

        Raises
        ------
        ValueError
            For another shape or dtype, or if numbers leave the range of the precision.
        """
        require_tiles(tiles)
        vectors = np.empty((len(tiles), self.dim), np.float16)
        with torch.inference_mode():
            device = self._device or self._start(tiles.shape[1:])
            for start in range(0, len(tiles), self.batch_size):
                batch = np.require(tiles[start : start + self.batch_size], requirements=("C", "W"))
                encoded = self._encode(torch.from_numpy(batch).to(device))
                vectors[start : start + len(batch)] = encoded.to(torch.float16).cpu().numpy()
        if not np.isfinite(vectors).all():
            raise ValueError(
                "the encoder gave numbers beyond float16; set `precision` in features.encoder_params to bfloat16"
            )
        return vectors

    def _encode(self, tiles: Tensor) -> Tensor:
        prepared = self._preparation(tiles)
        with self._autocast(tiles.device):
            vectors = self._network(prepared)
        if vectors.shape != (len(tiles), self.dim):
            raise ValueError(
                f"the network gave {list(vectors.shape)} for {len(tiles)} tiles of dim {self.dim}"
            )
        return vectors

    def _autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        precision = self._precisions[device.type]
        if precision == "float32":
            return nullcontext()
        return torch.autocast(device.type, dtype=getattr(torch, precision))

    def _start(self, tile: tuple[int, ...]) -> torch.device:
        """Choose the device, move there, warm up."""
        on_gpu = self._requested_device == "cuda" or (
            self._requested_device == "auto" and torch.cuda.is_available()
        )
        device = torch.device("cuda" if on_gpu else "cpu")
        self._network = self._network.to(device)
        if on_gpu:
            blank = torch.zeros((self.batch_size, *tile), dtype=torch.uint8, device=device)
            for _ in range(_WARM_UP):
                self._encode(blank)
            torch.cuda.synchronize()
        self._device = device
        return device


class PretrainedEncoder(TorchEncoder):
    """A :class:`TorchEncoder` with weights from a file; its spec gives its identity without building it.

    Parameters
    ----------
    params
        Parameters of the encoder.

    Raises
    ------
    FileNotFoundError
        If the weights are not on this machine, with how to get them.
    ValueError
        If they are the weights of another encoder.
    """

    def __init__(self, params: Any) -> None:
        spec = self.spec(params)
        load_weights(spec.network, spec.state, spec.where)
        super().__init__(
            spec.network,
            spec.preparation,
            spec.dim,
            spec.identity,
            precision=spec.precision,
            on_cpu=spec.on_cpu,
            batch_size=spec.batch_size,
            device=spec.device,
        )

    @staticmethod
    def spec(params: Any) -> EncoderSpec:
        """What the parameters mean; finds the weights and maps them, reads no number."""
        raise NotImplementedError

    @classmethod
    def identify(cls, params: Any) -> Identity:
        """As :class:`~equipoise.models.encoders.protocol.Identity` describes; raises as the constructor."""
        return cls.spec(params).to_identity()


def _hash(
    identity: dict[str, Any], preparation: Preparation, precisions: tuple[Precision, Precision], weights: str
) -> str:
    """Of everything that decides the vectors; ``weights`` is their digest."""
    about = {"version": VERSION, "preparation": preparation.to_dict(), "precision": list(precisions)}
    return hashlib.sha256(json.dumps([identity, about, weights], sort_keys=True).encode()).hexdigest()
