"""Slide encoders that pool by gated attention, with published weights: FEATHER and CHIEF.

Ilse et al., arXiv 1802.04712: with hidden vectors h_n = ReLU(W x_n + b), the weight of a tile is the softmax over
tiles of ``c(tanh(a(h_n)) * sigmoid(b(h_n)))``. FEATHER (arXiv 2506.09022) averages the hidden vectors with these
weights, CHIEF (Wang et al., Nature 634, 2024) the tile features themselves. Where tiles lie does not matter.
"""

from __future__ import annotations

import hashlib
import json

import torch
from torch import Tensor, nn

from equipoise.models.slide_encoders.card import GatedAttentionCard
from equipoise.models.slide_encoders.entries import GatedAttentionParams
from equipoise.models.slide_encoders.pretrained import load_published
from equipoise.models.slide_encoders.protocol import SlideTiles, SlideTokens

#: Raise when the same weights would give other numbers: it enters the fingerprint.
_VERSION = 1


class GatedAttentionEncoder:
    """The slide encoder of a card, with weights from this machine; one stem, no stages.

    Parameters
    ----------
    params
        Parameters of one encoder; their class names the card.

    Raises
    ------
    FileNotFoundError
        If the weights are not on this machine, with how to get them.
    ValueError
        If they are other weights.
    """

    stages = 0
    device = "cpu"

    def __init__(self, params: GatedAttentionParams) -> None:
        self._card = card = params.card
        self.network = GatedAttentionNetwork(card)
        weights = load_published(self.network, card, params.weights, params.sha256)
        about = {"encoder": card.name, "version": _VERSION, "pools": card.pools}
        total = json.dumps([about, weights], sort_keys=True)
        self.fingerprint = hashlib.sha256(total.encode()).hexdigest()

    def dim(self, tile_dim: int) -> int:
        """512 of FEATHER, 768 of CHIEF."""
        if tile_dim != self._card.tile_dim:
            raise ValueError(
                f"slide encoder {self._card.name!r} takes {self._card.tile_dim} features per tile, not {tile_dim}"
            )
        return self._card.dim

    def stem(self, tiles: SlideTiles) -> SlideTokens:
        """Hidden vectors ``[B, N, hidden]`` of the tiles."""
        self.dim(tiles.features.shape[2])
        return SlideTokens(self.network.hidden(tiles.features.float()), 0, tiles)

    def run_stage(self, at: int, state: SlideTokens) -> SlideTokens:
        """There is none; raises :class:`IndexError`."""
        raise IndexError(f"slide encoder {self._card.name!r} has no stage {at}")

    def readout(self, state: SlideTokens) -> Tensor:
        """The average by the attention's weights."""
        values = state.tokens if self._card.pools == "hidden" else state.tiles.features.float()
        return self.network.pool(state.tokens, values, state.token_mask)


class GatedAttentionNetwork(nn.Module):
    """The layers, under short names; see the module for what they do.

    Parameters
    ----------
    card
        Widths.
    """

    def __init__(self, card: GatedAttentionCard) -> None:
        super().__init__()
        self.embed = nn.Linear(card.tile_dim, card.hidden)
        self.attention = nn.ModuleDict(
            {
                "attention_a": nn.Sequential(nn.Linear(card.hidden, card.attention), nn.Tanh()),
                "attention_b": nn.Sequential(nn.Linear(card.hidden, card.attention), nn.Sigmoid()),
                "attention_c": nn.Linear(card.attention, 1),
            }
        )

    def hidden(self, features_BND: Tensor) -> Tensor:
        """``[B, N, hidden]``, none of it negative."""
        return self.embed(features_BND).relu()

    def pool(self, hidden_BNH: Tensor, values_BNV: Tensor, mask_BN: Tensor) -> Tensor:
        """Averages ``[B, V]`` of the values; tiles outside the mask have the weight 0, whatever they hold."""
        gates = self.attention["attention_a"](hidden_BNH) * self.attention["attention_b"](hidden_BNH)
        scores = self.attention["attention_c"](gates)[..., 0].masked_fill(~mask_BN, -torch.inf)
        values_BNV = values_BNV.masked_fill(~mask_BN[..., None], 0.0)  # 0 times NaN would be NaN
        return torch.einsum("bn,bnv->bv", scores.softmax(1), values_BNV)
