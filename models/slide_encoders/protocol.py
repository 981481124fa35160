"""The protocol of slide encoders: a stem, stages, a readout.

Other modules may look between the stages: they get the tokens of one and hand changed ones to the next. Encoding a
slide is the stem, all stages in turn, and the readout.

Shapes: B slides, N tiles of the longest, D features of a tile, T tokens, W width of a token, E length of a vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class SlideTiles:
    """The tiles of some slides, padded to the longest.

    Attributes
    ----------
    features
        What the tile encoder gave: ``[B, N, D]``; any numbers where a slide has no tile.
    mask
        Where there is a tile: ``[B, N]``.
    corners
        x and y of each tile's top-left corner in um: ``[B, N, 2]``.
    extent
        Side of a tile in um, per slide: ``[B]``; positions in units of tiles are ``corners / extent``.
    """

    features: Tensor
    mask: Tensor
    corners: Tensor
    extent: Tensor

    def __post_init__(self) -> None:
        shape = tuple(self.features.shape)
        if (
            len(shape) != 3
            or self.mask.shape != shape[:2]
            or self.corners.shape != (*shape[:2], 2)
            or self.extent.shape != shape[:1]
        ):
            given = (shape, *(tuple(t.shape) for t in (self.mask, self.corners, self.extent)))
            raise ValueError(f"tiles are [B, N, D], [B, N], [B, N, 2] and [B], not {given}")
        if not bool(self.mask.any(1).all()):
            raise ValueError("a slide without tiles cannot be encoded")
        if not bool((self.extent > 0).all()):
            raise ValueError(f"tiles have a side in um, not {self.extent.tolist()}")


@dataclass(frozen=True)
class SlideTokens:
    """What an encoder knows of some slides after the stem or a stage.

    Attributes
    ----------
    tokens
        ``[B, T, W]``: first ``prefix`` of the slide as a whole (class token, registers), then one per tile.
    prefix
        Tokens that belong to no tile.
    tiles
        Where they come from.
    """

    tokens: Tensor
    prefix: int
    tiles: SlideTiles

    @property
    def token_mask(self) -> Tensor:
        """Which tokens count, ``[B, T]``: those of the slide and of its tiles."""
        mask = self.tiles.mask
        return torch.cat([mask.new_ones(len(mask), self.prefix), mask], dim=1)


class SlideEncoder(Protocol):
    """A function from a bag of tile features to one vector, in stages, with a digest that identifies it.

    Built from its parameter model: ``SlideEncoder(params)``. A slide's vector depends on that slide alone, neither on
    others in the batch nor on its padding.

    Attributes
    ----------
    fingerprint
        Hexadecimal digest of everything that decides the vectors: definition, parameters, weights.
    stages
        Number of stages; 0: readout follows the stem.
    device
        Where it expects the tiles. Its network follows them there in ``stem``: tokens stay on the device of the tiles.

    Width of a token and number of leading tokens that belong to no tile are those of what ``stem`` gives
    (:func:`token_width`); every stage keeps both, and whoever works between stages leaves the leading tokens in front.
    """

    fingerprint: str
    stages: int

    @property
    def device(self) -> str: ...

    def dim(self, tile_dim: int) -> int:
        """Length E of a vector for tile features of length D.

        Raises
        ------
        ValueError
            If it was made for tile features of another length.
        """
        ...

    def stem(self, tiles: SlideTiles) -> SlideTokens:
        """Tiles to tokens."""
        ...

    def run_stage(self, at: int, state: SlideTokens) -> SlideTokens:
        """Stage ``at`` of 0 … ``stages - 1``, which keeps number and order of the tokens."""
        ...

    def readout(self, state: SlideTokens) -> Tensor:
        """Tokens to one vector per slide: ``[B, E]``."""
        ...


class WithoutStages:
    """Base of slide encoders that pool the tile features as they are: only ``readout`` is left to write."""

    stages = 0
    device = "cpu"

    def stem(self, tiles: SlideTiles) -> SlideTokens:
        """The features themselves."""
        return SlideTokens(tiles.features, 0, tiles)

    def run_stage(self, at: int, state: SlideTokens) -> SlideTokens:
        """There is none; raises :class:`IndexError`."""
        raise IndexError(f"{type(self).__name__} has no stage {at}")


@torch.no_grad()
def token_width(encoder: SlideEncoder, tile_dim: int) -> tuple[int, int]:
    """Width of a token, and tokens that belong to no tile, for tile features of length ``tile_dim``."""
    device = encoder.device
    state = encoder.stem(
        SlideTiles(
            torch.zeros(1, 1, tile_dim, device=device),
            torch.ones(1, 1, dtype=torch.bool, device=device),
            torch.zeros(1, 1, 2, device=device),
            torch.ones(1, device=device),
        )
    )
    return int(state.tokens.shape[-1]), state.prefix


def run_encoder(encoder: SlideEncoder, tiles: SlideTiles) -> Tensor:
    """Stem, all stages, readout: ``[B, E]``."""
    state = encoder.stem(tiles)
    for at in range(encoder.stages):
        state = encoder.run_stage(at, state)
    return encoder.readout(state)


def encode_slide(
    encoder: SlideEncoder, bag: NDArray[np.float16], corners: NDArray[np.float32], extent_um: float
) -> NDArray[np.float16]:
    """One slide's vector, as it is stored.

    Parameters
    ----------
    encoder
        The slide encoder.
    bag
        Tile features ``[N, D]`` with N > 0.
    corners
        Top-left corners of the tiles ``[N, 2]`` in um.
    extent_um
        Side of a tile in um.

    Returns
    -------
    float16 ``[E]``.

    Raises
    ------
    ValueError
        For other shapes, an empty bag, or numbers beyond float16.
    """
    if bag.ndim != 2 or not len(bag) or corners.shape != (len(bag), 2):
        raise ValueError(
            f"a bag is [N, D] with corners [N, 2] and N > 0, not {bag.shape} and {corners.shape}"
        )
    bag = np.require(bag, requirements=("C", "W"))  # torch wants memory that may be written to
    corners = np.require(corners, requirements=("C", "W"))
    device = encoder.device
    with torch.inference_mode():
        tiles = SlideTiles(
            torch.from_numpy(bag)[None].to(device),
            torch.ones(1, len(bag), dtype=torch.bool, device=device),
            torch.from_numpy(corners)[None].to(device),
            torch.tensor([extent_um], dtype=torch.float32, device=device),
        )
        vector = run_encoder(encoder, tiles)
    stored = vector[0].to(torch.float16).cpu().numpy()
    if not np.isfinite(stored).all():
        raise ValueError("the slide encoder gave numbers beyond float16, or none")
    return stored
