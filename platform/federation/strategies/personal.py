"""Parts of the model that stay at the client: FedBN and FedPer.

Li et al. 2021, "FedBN: federated learning on non-IID features via local batch normalization" (arXiv 2102.07623);
Arivazhagan et al. 2019, "Federated learning with personalization layers" (arXiv 1912.00818).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from pydantic import BaseModel

from equipoise.platform.errors import StudyError
from equipoise.platform.federation.entries import FedPerParams
from equipoise.platform.federation.strategies.strategy import Strategy
from equipoise.platform.federation.vector import Schema

#: What a client keeps of its part of the model, in the order of the vector.
OWN = "own"


class Personal(Strategy):
    """FedAvg over the rest; what the selectors mean is trained by each client for itself."""

    def __init__(self, params: BaseModel, selectors: tuple[str, ...]) -> None:
        super().__init__(params)
        self.selectors = selectors

    def kept(self, schema: Schema) -> np.ndarray:
        """What stays.

        Raises
        ------
        StudyError
            If the selectors mean nothing of this model, or all of it.
        """
        mask = schema.mask(self.selectors)
        if not mask.any() or mask.all():
            what = "nothing" if not mask.any() else "everything"
            raise StudyError(
                f"{', '.join(self.selectors)} means {what} of this model",
                where="federation.strategy_params",
                fix=f"its groups are {', '.join(schema.groups)}, its kinds weight, norm and buffer",
            )
        return mask

    def personal(self, schema: Schema, vector: np.ndarray, kept: Mapping[str, np.ndarray]) -> np.ndarray:
        """The global model with the client's own part."""
        if OWN not in kept:
            return vector
        vector = vector.copy()
        vector[self.kept(schema)] = kept[OWN]
        return vector


class FedBN(Personal):
    """Normalisation layers, parameters and statistics, stay at the client."""

    def __init__(self, params: BaseModel) -> None:
        super().__init__(params, ("norm",))


class FedPer(Personal):
    """The heads, or what the study names, stay at the client."""

    def __init__(self, params: FedPerParams) -> None:
        super().__init__(params, params.personal)
