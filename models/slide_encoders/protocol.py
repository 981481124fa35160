"""The protocol of slide encoders."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


def require_bag(bag: NDArray[np.float16], coords: NDArray[np.float32]) -> None:
    """Check for a bag ``[N, D]`` with corners ``[N, 2]`` and at least one tile.

    Raises
    ------
    ValueError
        For other shapes, or an empty bag.
    """
    if bag.ndim != 2 or not len(bag) or coords.shape != (len(bag), 2):
        raise ValueError(f"a bag is [N, D] with corners [N, 2] and N > 0, not {bag.shape} and {coords.shape}")


class SlideEncoder(Protocol):
    """A function from a bag of tile features to one vector, with a hash that identifies it.

    Built from its parameter model: ``SlideEncoder(params)``. A slide's vector depends on that slide alone.

    Attributes
    ----------
    hash
        Hexadecimal digest of everything that decides the vectors: definition, parameters, weights.
    """

    hash: str

    def dim(self, tile_dim: int) -> int:
        """Length E of a vector for tile features of length D.

        Raises
        ------
        ValueError
            If it was made for tile features of another length.
        """
        ...

    def __call__(self, bag: NDArray[np.float16], coords: NDArray[np.float32]) -> NDArray[np.float16]:
        """Encode a bag ``[N, D]`` whose tiles have their top-left corners at ``[N, 2]`` um into ``[E]``."""
        ...
