"""TITAN as it is published: a model whose network is code in its own folder, run only where a study allows it.

Ding et al., arXiv 2411.19666. The names in its weights file are not public, so that its network is not written here:
``transformers`` runs the code that lies beside the weights. That code may do anything, and is therefore never run
unless the study says ``trust_remote_code: true``. Nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from equipoise.models.encoders.weights import check_file, find_hub_weights
from equipoise.models.slide_encoders.entries import HubModelParams
from equipoise.models.slide_encoders.protocol import SlideTokens, WithoutStages

_VERSION = 1
_SIDE = 512  # of a tile in the units of its coordinates: it divides by it


class Titan(WithoutStages):
    """The slide encoder: no stages, since the published code gives the vector alone.

    Parameters
    ----------
    params
        Where the folder is, and whether its code may be run.

    Raises
    ------
    FileNotFoundError
        If the weights are not on this machine, with how to get them.
    ValueError
        If they are other weights, the study does not allow to run the folder's code, or ``transformers`` is missing.
    """

    def __init__(self, params: HubModelParams) -> None:
        self._card = card = params.card
        weights = find_hub_weights(card, params.weights)
        check_file(weights, params.sha256 or card.sha256, card.name, card.section)
        folder = weights.parent
        if not params.trust_remote_code:
            raise ValueError(
                f"slide encoder {card.name!r} is run by code in {folder}, which this study does not allow\n"
                f"read its *.py, then write features: {{{card.section}: {{trust_remote_code: true}}}}"
            )
        try:
            from transformers import AutoModel
        except ModuleNotFoundError as error:
            raise ValueError(
                f"slide encoder {card.name!r} needs a package: pip install -e '.[text]'"
            ) from error
        about = {"encoder": card.name, "version": _VERSION, "weights": params.sha256 or card.sha256}
        total = json.dumps([about, _digests(folder)], sort_keys=True)
        self.fingerprint = hashlib.sha256(total.encode()).hexdigest()
        self._device = params.device
        model: Any = AutoModel.from_pretrained(str(folder), trust_remote_code=True, local_files_only=True)
        self.model = model.eval().requires_grad_(False)

    @property
    def device(self) -> str:  # type: ignore[override]
        """Where slides are encoded."""
        if self._device != "auto":
            return self._device
        return "cuda" if torch.cuda.is_available() else "cpu"

    def dim(self, tile_dim: int) -> int:
        """768."""
        if tile_dim != self._card.tile_dim:
            raise ValueError(
                f"slide encoder {self._card.name!r} takes {self._card.tile_dim} features per tile, not {tile_dim}"
            )
        return self._card.dim

    def readout(self, state: SlideTokens) -> Tensor:
        """One slide after the other, without padding."""
        tiles = state.tiles
        self.dim(tiles.features.shape[2])
        self.model.to(tiles.features.device)
        rows = []
        for features, mask, corners, extent in zip(
            tiles.features.float(), tiles.mask, tiles.corners.double(), tiles.extent.double(), strict=True
        ):
            places = (corners[mask] / extent * _SIDE).round().long()
            rows.append(
                self.model.encode_slide_from_patch_features(features[mask][None], places[None], _SIDE)
            )
        return torch.cat([row.reshape(1, -1).float() for row in rows])


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of what decides the numbers beside the weights: code and configuration."""
    files = sorted(folder.rglob("*.py")) + sorted(folder.glob("*.json"))
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files
    }
