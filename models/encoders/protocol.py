"""The protocol of tile encoders."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


def require_tiles(tiles: NDArray[np.uint8], least_px: int = 1) -> None:
    """Check for a stack of RGB tiles ``[B, H, W, 3]``, uint8, with sides of at least ``least_px``.

    Raises
    ------
    ValueError
        For another shape or dtype, or smaller tiles.
    """
    if tiles.ndim != 4 or tiles.shape[3] != 3 or tiles.dtype != np.uint8:
        raise ValueError(f"tiles must be uint8 [B, H, W, 3], not {tiles.dtype} {tiles.shape}")
    if min(tiles.shape[1:3]) < least_px:
        raise ValueError(f"tiles must have at least {least_px} px a side, not {tiles.shape[1:3]}")


@dataclass(frozen=True)
class Identity:
    """What identifies an encoder, available without building it.

    An encoder class may have a class method ``identify(params) -> Identity`` that costs no more than reading the
    weights once; without one, the encoder is built instead. Both give the same values.

    Attributes
    ----------
    dim, hash, batch_size
        As of :class:`Encoder`.
    """

    dim: int
    hash: str
    batch_size: int


class Encoder(Protocol):
    """A function from tiles to vectors, with a hash that identifies it.

    Built from its parameter model: ``Encoder(params)``. An encoder may keep weights and a device, but no
    state that changes with use: a tile's vector depends on that tile alone, not on its neighbours in the
    batch.

    Attributes
    ----------
    dim
        Length D of a vector.
    hash
        Hexadecimal digest of everything that decides the vectors: definition, weights, normalisation.
    batch_size
        Tiles per call at which the encoder works well.
    """

    dim: int
    hash: str
    batch_size: int

    def __call__(self, tiles: NDArray[np.uint8]) -> NDArray[np.float16]:
        """Encode RGB tiles ``[B, H, W, 3]`` into ``[B, D]``."""
        ...
