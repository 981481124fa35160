"""Parameters of privacy in a federation. Light: pydantic only."""

import math
from typing import Literal, Self

from pydantic import Field, model_validator

from equipoise.datasets.params import StrictParams


class ClientLevelParams(StrictParams):
    """Differential privacy of whole clients (DP-FedAvg): noise in every round, whoever took part."""

    clip: float = Field(
        1.0, gt=0, description="largest norm of a client's update; longer ones are scaled down"
    )
    noise: float = Field(
        1.0, gt=0, description="standard deviation of the noise on the sum, in units of clip"
    )
    delta: float = Field(1e-3, gt=0, lt=1, description="below 1 / number of clients")
    adversary: Literal["participation", "models"] = Field(
        "participation",
        description="what the adversary sees: the global models of all rounds and who took part in each "
        "(`participation`, no amplification by sampling), or those models and nothing else (`models`)",
    )
    epsilon: float | None = Field(None, gt=0, description="budget; the federation ends before it is exceeded")


class RecordLevelParams(StrictParams):
    """Differential privacy of patients within each client (DP-SGD)."""

    clip: float = Field(1.0, gt=0, description="largest norm of a patient's gradient")
    noise: float = Field(
        1.0, gt=0, description="standard deviation of the noise on the sum, in units of clip"
    )
    delta: float = Field(1e-3, gt=0, lt=1, description="below 1 / patients of the smallest client")
    epsilon: float | None = Field(
        None, gt=0, description="budget of every client; it stops before exceeding it"
    )
    chunk: int = Field(8, ge=1, description="patients whose gradients are held in memory at once")


class SecureAggregationParams(StrictParams):
    """Secure aggregation (Bonawitz et al. 2017), simulated: the server sees only the sum of updates."""

    threshold: float = Field(
        2 / 3,
        gt=0.5,
        le=1,
        description="share of a round's clients that have to answer; otherwise the round is lost",
    )


#: Name of a regression task, a table or ``<table>.<column>`` → public range of its values.
Bounds = dict[str, tuple[float, float]]


class NoisedStatistics(StrictParams):
    """Sums and counts that sites send before training, with noise: counted in the budget of their patients."""

    noise: float = Field(
        gt=0, description="standard deviation of the noise, in units of what one patient can add"
    )
    bounds: Bounds = Field(
        default_factory=dict,
        description="public range of every regression task, table or <table>.<column>, known without the data",
    )

    @model_validator(mode="after")
    def _ranges_are_ranges(self) -> Self:
        for name, (low, high) in self.bounds.items():
            if not -math.inf < low < high < math.inf:
                raise ValueError(f"bounds: {name}: {low:g} to {high:g} is not a range")
        return self


class PrivacyParams(StrictParams):
    """Protection of clients and patients; by default none beyond that only updates leave a client."""

    client_level: ClientLevelParams | None = Field(None, description="differential privacy of clients")
    record_level: RecordLevelParams | None = Field(None, description="differential privacy of patients")
    secure_aggregation: SecureAggregationParams | None = Field(None, description="masked sums")
    statistics: Literal["public"] | NoisedStatistics | None = Field(
        None,
        description="what becomes of the counts of labels and the sums for scalers that sites send before training: "
        "declared public, or noised and counted; needed with client_level and record_level",
    )

    @property
    def differential(self) -> bool:
        """Whether what leaves a client is noised, so that nothing may leave without noise."""
        return self.client_level is not None or self.record_level is not None
