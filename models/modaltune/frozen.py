"""A frozen slide encoder, cut into groups of stages between which something else may happen."""

from __future__ import annotations

import hashlib
import itertools
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.models.batch import CaseBatch
from equipoise.models.encoders.weights import digest
from equipoise.models.slide_encoders.protocol import SlideEncoder, SlideTiles, SlideTokens


class FrozenStages:
    """A slide encoder that nobody trains: no module of a model, so that neither optimisers nor checkpoints see it.

    Parameters
    ----------
    encoder
        With stages; it is put into evaluation mode and its parameters want no gradient.
    features
        Length of a tile's vector.
    blocks
        Groups of consecutive stages, as equal as they can be, longer ones first.
    skipped
        Stages before the first group.

    Attributes
    ----------
    width
        Width of a token.
    prefix
        Tokens that belong to no tile.
    groups
        Numbers of the stages of each group.

    Raises
    ------
    ValueError
        If the encoder was made for other features, or has fewer stages than groups.
    """

    def __init__(self, encoder: SlideEncoder, features: int, blocks: int, skipped: int = 0) -> None:
        encoder.dim(features)
        left = encoder.stages - skipped
        if left < blocks:
            raise ValueError(
                f"slide_encoder has {encoder.stages} stages, of which {max(left, 0)} are left for {blocks} blocks: "
                "choose fewer blocks, or an encoder with more stages"
            )
        self.encoder = encoder
        self._networks = [
            part for part in (encoder, getattr(encoder, "network", None)) if isinstance(part, nn.Module)
        ]
        for part in self._networks:
            part.eval().requires_grad_(False)
        self.skipped = range(skipped)
        ends = [skipped + -(-left * i // blocks) for i in range(blocks + 1)]
        self.groups = [range(a, b) for a, b in itertools.pairwise(ends)]
        self._first_digest = self._digest()
        blank = torch.zeros(1, 1, features)
        with torch.no_grad():
            state = encoder.stem(
                SlideTiles(blank, torch.ones(1, 1, dtype=torch.bool), torch.zeros(1, 1, 2), torch.ones(1))
            )
        self.width, self.prefix = int(state.tokens.shape[-1]), state.prefix

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenStages:
        return self  # it never changes

    def digest(self) -> str:
        """SHA-256 of the encoder's fingerprint and weights.

        Raises
        ------
        RuntimeError
            If the weights are no longer those that the encoder came with.
        """
        found = self._digest()
        if found != self._first_digest:
            raise RuntimeError("the weights of the frozen slide encoder have changed")
        return found

    def _digest(self) -> str:
        parts = [self.encoder.fingerprint, *map(digest, self._networks)]
        return hashlib.sha256(" ".join(parts).encode()).hexdigest()

    def stem(self, batch: CaseBatch) -> SlideTokens:
        """Tokens behind the stem and the skipped stages; of a case without tiles those of one blank tile.

        Raises
        ------
        ValueError
            If it is not known where the tiles lie.
        """
        tiles = tiles_of(batch)
        if isinstance(self.encoder, nn.Module):
            self.encoder.to(tiles.features.device)
        with torch.no_grad():
            return self.run(self.skipped, self.encoder.stem(tiles))

    def run(self, stages: range, state: SlideTokens) -> SlideTokens:
        """Consecutive stages."""
        for at in stages:
            state = self.encoder.run_stage(at, state)
        return state

    def slide_vector(self, state: SlideTokens) -> Tensor:
        """``[B, W]`` the class token, without a norm; the mean of the tiles' tokens where there is none."""
        if state.prefix:
            return state.tokens[:, 0]
        mask = state.tiles.mask[..., None]
        return state.tokens.masked_fill(~mask, 0.0).sum(1) / mask.sum(1)


def tiles_of(batch: CaseBatch) -> SlideTiles:
    """The tiles of a batch as slide encoders take them; one blank tile where a case has none.

    Raises
    ------
    ValueError
        If it is not known where the tiles lie.
    """
    mask, count = batch.mask, batch.bags.shape[1]
    if batch.corners is None or batch.extent is None:
        if count:
            raise ValueError(
                "it is not known where the tiles lie in um: slides or imported features say no mpp"
            )
        corners, extent = batch.bags.new_zeros(len(batch), 0, 2), batch.bags.new_ones(len(batch))
    else:
        corners, extent = batch.corners, batch.extent
    bags = batch.bags
    if count == 0:
        bags, corners = bags.new_zeros(len(batch), 1, bags.shape[2]), corners.new_zeros(len(batch), 1, 2)
        mask = mask.new_zeros(len(batch), 1)
    if batch.tileless:
        empty_B = ~mask.any(dim=1)
        first = torch.zeros_like(mask)
        first[:, 0] = True
        mask = mask | (first & empty_B[:, None])
        bags = torch.where(empty_B[:, None, None], 0.0, bags)
        corners = torch.where(empty_B[:, None, None], 0.0, corners)
        extent = torch.where(empty_B, 1.0, extent)
    return SlideTiles(bags, mask, corners, extent)
