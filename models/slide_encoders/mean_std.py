"""Statistics over the tiles of a slide: the baseline of trained slide encoders."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from equipoise.models.slide_encoders.entries import MeanStdParams
from equipoise.models.slide_encoders.protocol import SlideTokens, WithoutStages

#: Raise with every change of the numbers: it enters the fingerprint, and with it the address of every store.
_VERSION = 1

#: Features processed together: the bag of a large slide is never converted as a whole.
_COLUMNS = 64


class MeanStd(WithoutStages):
    """Mean, standard deviation and quantiles of every tile feature; where tiles lie does not matter.

    Parameters
    ----------
    params
        Which quantiles.
    """

    def __init__(self, params: MeanStdParams) -> None:
        self._quantiles = np.array(params.quantiles, np.float64)
        identity = f"mean_std {_VERSION} {[float(q) for q in params.quantiles]}"
        self.fingerprint = hashlib.sha256(identity.encode()).hexdigest()

    def dim(self, tile_dim: int) -> int:
        """``(2 + Q) * D`` for Q quantiles."""
        return (2 + len(self._quantiles)) * tile_dim

    def readout(self, state: SlideTokens) -> Tensor:
        """Means ``[D]``, then standard deviations ``[D]`` (0 for a single tile), then each quantile ``[D]``."""
        bags, masks = state.tokens.cpu().numpy(), state.token_mask.cpu().numpy()
        vectors = np.stack([self._of(bag[mask]) for bag, mask in zip(bags, masks, strict=True)])
        return torch.from_numpy(vectors).to(state.tokens.device)

    def _of(self, bag: NDArray[np.floating]) -> NDArray[np.float32]:
        statistics = np.empty((2 + len(self._quantiles), bag.shape[1]), np.float32)
        for start in range(0, bag.shape[1], _COLUMNS):
            part = bag[:, start : start + _COLUMNS].astype(np.float64)
            columns = slice(start, start + _COLUMNS)
            statistics[0, columns] = part.mean(axis=0)
            statistics[1, columns] = part.std(axis=0)
            if len(self._quantiles):
                statistics[2:, columns] = np.quantile(part, self._quantiles, axis=0)
        return statistics.reshape(-1)
