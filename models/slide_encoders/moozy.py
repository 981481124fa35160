"""The slide encoder of MOOZY with weights from this machine; its transformer over the slides of a case is not here.

Atlas Analytics Lab, MOOZY: a grid transformer (:mod:`equipoise.models.slide_encoders.grid_vit`) whose vector is the
class token, over tiles of Lunit's ViT-S/8; tiles whose features are all zero are left out. Written from public
descriptions of the file, which name the layers of a block but not the module that holds it: names are matched by the
number of the block and the layer, and every tensor has to find its place.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from equipoise.models.slide_encoders.entries import GridWeightsParams
from equipoise.models.slide_encoders.grid_vit import GridEncoder, GridTransformer
from equipoise.models.slide_encoders.pretrained import load_published
from equipoise.models.slide_encoders.protocol import SlideTiles, SlideTokens

#: Raise when the same weights would give other numbers: it enters the fingerprint.
_VERSION = 1

_IN_BLOCK = re.compile(r"\w+\.(\d+)\.(?:\w+\.)?((?:norm[12]|[qkv]_proj|out_proj|fc[12])\.(?:weight|bias))")
_SLOPES = re.compile(r"(?:.+\.)?slopes")


class Moozy(GridEncoder):
    """The slide encoder; every block is a stage.

    Parameters
    ----------
    params
        Where the weights are.

    Raises
    ------
    FileNotFoundError
        If the weights are not on this machine, with how to get them.
    ValueError
        If they are other weights.
    """

    def __init__(self, params: GridWeightsParams) -> None:
        card = params.card
        super().__init__(card.name, card.shape.depth, params.device)
        self.network = GridTransformer(card.shape)
        weights = load_published(self.network, card, params.weights, params.sha256, named_as_ours)
        about = json.dumps([{"encoder": card.name, "version": _VERSION}, weights], sort_keys=True)
        self.fingerprint = hashlib.sha256(about.encode()).hexdigest()

    def stem(self, tiles: SlideTiles) -> SlideTokens:
        """Tokens of the tiles with any feature; of a slide that has none such, of all its tiles."""
        seen = tiles.mask & (tiles.features != 0).any(2)
        seen = torch.where(seen.any(1, keepdim=True), seen, tiles.mask)
        return super().stem(replace(tiles, mask=seen))


def named_as_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the published file under the names of the network; what no rule knows keeps its name.

    The slopes of the heads are stored several times, and once here.

    Raises
    ------
    ValueError
        If two tensors would have one name, or slopes differ.
    """
    ours: dict[str, Tensor] = {}
    for name, tensor in state.items():
        block = _IN_BLOCK.fullmatch(name)
        if _SLOPES.fullmatch(name):
            tensor = tensor.flatten()
            if not torch.equal(ours.setdefault("slopes", tensor), tensor):
                raise ValueError(
                    f"{name}: other slopes than those stored before\nname the published weights file"
                )
            continue
        new = f"blocks.{block[1]}.{block[2]}" if block else name
        if new in ours:
            raise ValueError(
                f"two tensors stand for {new}, one of them {name}\nname the published weights file"
            )
        ours[new] = tensor
    return ours
