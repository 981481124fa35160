"""A model of ``equipoise pretrain`` as a slide encoder: what its heads would read.

Pre-trained attention models beat published slide encoders at a fraction of their size (FEATHER, arXiv 2506.09022).
"""

from __future__ import annotations

import hashlib
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from equipoise.models.base import MultiTaskModel
from equipoise.models.batch import CaseBatch, CaseShape, TaskHead
from equipoise.models.encoders.weights import load_weights
from equipoise.models.entries import ENTRIES
from equipoise.models.pretrained_folder import PretrainedFolder, read_pretrained
from equipoise.models.slide_encoders.entries import PretrainedModelParams
from equipoise.models.slide_encoders.protocol import SlideTokens, WithoutStages

_HEADS = "heads."


class PretrainedModelEncoder(WithoutStages):
    """The pooled representation of a pre-trained model, before its heads.

    Parameters
    ----------
    params
        The folder; how vectors of several tasks become one, for models that have one vector for each.

    Raises
    ------
    FileNotFoundError
        If the folder is not there.
    ValueError
        If it holds something else, or a model that Equipoise does not bring along.
    """

    def __init__(self, params: PretrainedModelParams) -> None:
        folder = read_pretrained(params.folder)
        self._tiles = folder.tiles
        self._readout = params.readout
        self.network = body_of(folder)
        identity = f"{folder.fingerprint} {params.readout}"
        self.fingerprint = hashlib.sha256(identity.encode()).hexdigest()
        one = torch.ones(1, 1, dtype=torch.bool)
        with torch.inference_mode():
            blank = torch.zeros(1, 1, folder.tiles.dim), one, torch.zeros(1, 1, 2), torch.ones(1)
            self._dim = self._pooled(*blank).shape[1]

    def dim(self, tile_dim: int) -> int:
        """Width of the representation."""
        if tile_dim != self._tiles.dim:
            raise ValueError(
                f"the pre-trained model takes {self._tiles.dim} features per tile, not {tile_dim}"
            )
        return self._dim

    def readout(self, state: SlideTokens) -> Tensor:
        """The vector that the heads would read; of several, their mean, or one behind the other."""
        tiles = state.tiles
        return self._pooled(tiles.features, tiles.mask, tiles.corners, tiles.extent)

    def _pooled(self, features_BND: Tensor, mask_BN: Tensor, corners_BN2: Tensor, extent_B: Tensor) -> Tensor:
        nobody = torch.full((len(mask_BN),), -1, dtype=torch.int64)
        batch = CaseBatch(
            bags=features_BND.float().masked_fill(~mask_BN[..., None], 0.0),
            mask=mask_BN,
            coords=corners_BN2.to(torch.int32),
            omics={},
            present={},
            targets={},
            label_mask={},
            site=nobody,
            cohort=nobody,
            corners=corners_BN2.float(),
            extent=extent_B.float(),
        )
        vectors = self.network.pool(batch)
        if all(vector is vectors[0] for vector in vectors):
            return vectors[0]
        return (
            torch.cat(list(vectors), dim=1)
            if self._readout == "joined"
            else torch.stack(list(vectors)).mean(0)
        )


def body_of(folder: PretrainedFolder) -> MultiTaskModel:
    """The model of a folder with its weights and without its heads, frozen and in evaluation mode.

    Raises
    ------
    ValueError
        If the model is one of another package, or the weights do not fit.
    """
    if folder.model not in ENTRIES:
        raise ValueError(
            f"model {folder.model!r} in {folder.path} is of another package, and no slide encoder\n"
            "name the folder as training.start of a study with that model"
        )
    entry: tuple[str, Any, str] = ENTRIES[folder.model]
    _, params, target = entry
    module, _, name = target.partition(":")
    # What the heads predicted does not matter: there has to be one for each task.
    heads = [TaskHead(task, "regression", 1) for task in folder.tasks]
    shape = CaseShape(folder.tiles.dim)
    with torch.random.fork_rng(devices=[]):
        model = getattr(import_module(module), name)(params.model_validate(folder.model_params), shape, heads)
    assert isinstance(model, MultiTaskModel)
    model.heads = nn.ModuleList()
    state = {name: tensor for name, tensor in folder.tensors().items() if not name.startswith(_HEADS)}
    load_weights(model, state, str(folder.path))
    model.eval().requires_grad_(False)
    return model
