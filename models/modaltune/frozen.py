"""A frozen slide encoder, cut into groups of stages between which something else may happen."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.models.batch import CaseBatch
from equipoise.models.encoders.weights import digest
from equipoise.models.slide_encoders.hidden_states import HiddenStates, stage_groups
from equipoise.models.slide_encoders.protocol import SlideEncoder, SlideTiles, SlideTokens, token_width


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
    kept
        Hidden states that batches may hold in place of tiles.

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

    def __init__(
        self,
        encoder: SlideEncoder,
        features: int,
        blocks: int,
        skipped: int = 0,
        kept: HiddenStates | None = None,
    ) -> None:
        encoder.dim(features)
        self.groups = stage_groups(encoder.stages, blocks, skipped)
        self.encoder, self.kept = encoder, kept
        self._networks = [
            part for part in (encoder, getattr(encoder, "network", None)) if isinstance(part, nn.Module)
        ]
        for part in self._networks:
            part.eval().requires_grad_(False)
        self.skipped = range(skipped)
        self._first_digest = self._digest()
        self.width, self.prefix = token_width(encoder, features)

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
        # A gradient goes through it only where somebody asks for one to the tiles: to explain, never to train.
        with torch.set_grad_enabled(torch.is_grad_enabled() and batch.bags.requires_grad):
            return self.run(self.skipped, self.encoder.stem(tiles))

    def run(self, stages: range, state: SlideTokens) -> SlideTokens:
        """Consecutive stages."""
        for at in stages:
            state = self.encoder.run_stage(at, state)
        return state

    def start(self, batch: CaseBatch) -> SlideTokens:
        """Tokens in front of the first group: from the batch where it holds hidden states, else computed.

        Raises
        ------
        ValueError
            If hidden states do not belong to the tiles of the batch, or prototypes were not stored.
        """
        if self.kept is not None and batch.states is not None:
            return self._stored(batch, 0)
        if self.kept is not None and self.kept.prototypes is not None and batch.mask.any():
            raise ValueError("prototypes of tiles are read from a feature store: run `equipoise extract`")
        return self.stem(batch)

    def behind(self, at: int, state: SlideTokens, batch: CaseBatch) -> SlideTokens:
        """Tokens behind a group: stored ones where nothing could have changed them, else computed."""
        if self.kept is not None and not self.kept.injected and batch.states is not None:
            return self._stored(batch, at)
        return self.run(self.groups[at], state)

    def counts(self, batch: CaseBatch) -> Tensor | None:
        """``[B, N]`` how many tiles stand behind each token; None where each stands for one."""
        if self.kept is None or self.kept.prototypes is None or batch.state_counts is None:
            return None
        counts = batch.state_counts[:, self.prefix :]
        return counts if counts.shape[1] else counts.new_zeros(len(batch), 1)

    def _stored(self, batch: CaseBatch, at: int) -> SlideTokens:
        assert batch.states is not None
        counts = self.counts(batch)
        if counts is None:
            tiles = tiles_of(batch)
        else:
            mask = counts > 0
            mask[:, 0] |= ~mask.any(dim=1)
            blank = counts.new_zeros(*mask.shape, 1)
            tiles = SlideTiles(blank, mask, blank.expand(-1, -1, 2), counts.new_ones(len(batch)))
        length, wanted = batch.states.shape[1], self.prefix + tiles.mask.shape[1]
        if length not in (0, wanted) or batch.states.shape[2] % self.width:
            raise ValueError(
                f"hidden states {tuple(batch.states.shape)} do not fit {wanted} tokens of width {self.width}"
            )
        tokens = batch.states[..., at * self.width : (at + 1) * self.width].to(batch.bags.dtype)
        if not length:  # no case has a tile
            tokens = tokens.new_zeros(len(batch), wanted, self.width)
        return SlideTokens(tokens, self.prefix, tiles)

    def slide_vector(self, state: SlideTokens, counts_BN: Tensor | None = None) -> Tensor:
        """``[B, W]`` the class token, without a norm; the mean of the tiles' tokens where there is none."""
        if state.prefix:
            return state.tokens[:, 0]
        mask = state.tiles.mask[..., None]
        weights = mask if counts_BN is None else counts_BN[..., None]
        total = (state.tokens.masked_fill(~mask, 0.0) * weights).sum(1)
        return total / weights.sum(1).clamp(min=1)


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
