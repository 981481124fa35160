"""Personal models: FedBN and FedPer keep parameters at the client; Ditto and fine-tuning train a second model there."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from equipoise.platform.errors import StudyError
from equipoise.platform.federation.entries import DittoParams, FedPerParams, FedProxParams, FineTuneParams
from equipoise.platform.federation.params import LocalParams
from equipoise.platform.federation.strategies.local_objectives import FedProx
from equipoise.platform.federation.strategies.strategy import PERSONAL_PART, Strategy
from equipoise.platform.federation.vector import Schema


class Personal(Strategy):
    """FedAvg over the rest; each client trains the selected parameters for itself."""

    selectors: tuple[str, ...] = ()

    def personal_mask(self, schema: Schema) -> np.ndarray:
        """The selected parameters.

        Raises
        ------
        StudyError
            If the selectors match no parameter of this model, or all of them.
        """
        mask = schema.mask(self.selectors)
        if not mask.any() or mask.all():
            what = "nothing" if not mask.any() else "everything"
            raise StudyError(
                f"{', '.join(self.selectors)} selects {what} of this model",
                where="federation.strategy_params",
                fix=f"its groups are {', '.join(schema.groups)}, its kinds weight, norm and buffer",
            )
        return mask

    def personal_weights(
        self, schema: Schema, vector: np.ndarray, state: Mapping[str, np.ndarray]
    ) -> np.ndarray:
        """The global model with the client's part."""
        if PERSONAL_PART not in state:
            return vector
        vector = vector.copy()
        vector[self.personal_mask(schema)] = state[PERSONAL_PART]
        return vector


class FedBN(Personal):
    """Normalisation layers, parameters and statistics, stay at the client.

    Li et al. 2021, "FedBN: federated learning on non-IID features via local batch normalization" (arXiv 2102.07623).
    """

    selectors = ("norm",)


class FedPer(Personal):
    """The heads, or the parameters that the study names, stay at the client.

    Arivazhagan et al. 2019, "Federated learning with personalization layers" (arXiv 1912.00818).
    """

    def __init__(self, params: FedPerParams, local: LocalParams | None = None) -> None:
        super().__init__(params, local)
        self.selectors = params.personal


class Ditto(Strategy):
    """FedAvg, and beside it a model v_i per client that minimises L_i(v) + λ/2 ‖v − w_server‖² and never leaves it.

    Li et al. 2021, "Ditto: fair and robust federated learning through personalization" (arXiv 2012.04221).
    """

    def __init__(self, params: DittoParams, local: LocalParams | None = None) -> None:
        super().__init__(params, local)
        self.personal_strategy = FedProx(FedProxParams(mu=params.lam), local)


class FineTune(Strategy):
    """FedAvg, then ``steps`` local steps of every client from the final weights; the result never leaves the client."""

    def __init__(self, params: FineTuneParams, local: LocalParams | None = None) -> None:
        super().__init__(params, local)
        self.personal_steps = params.steps
