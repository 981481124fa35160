"""Parameters of aggregation rules: what they are, and where a search looks. Light: pydantic only."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

#: Aggregators of task balancing that cannot see sites as tasks, and why.
NOT_FOR_SITES = {
    "none": "it is the plain sum; use rule mean",
    "graddrop": "it works on gradients coordinate by coordinate, not on their products",
    "db_mtl": "it takes logarithms of losses and works on gradients coordinate by coordinate",
    "excess_mtl": "it keeps squares of gradients coordinate by coordinate",
    "sdmgrad": "it needs gradients on three batches of the same step",
}


class RuleParams(BaseModel):
    """What all rules have in common: unknown names are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class MeanParams(RuleParams):
    """Parameters of the weighted mean."""

    max_share: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="largest share of one site in a sum; the others keep their proportions",
    )


class NormClipParams(MeanParams):
    """Parameters of norm clipping."""

    factor: float = Field(
        default=1.0,
        gt=0,
        description="updates longer than so many median norms are scaled down to that",
        json_schema_extra={"search": {"choice": [1.0, 1.5, 2.0]}},
    )


class TrimmedMeanParams(RuleParams):
    """Parameters of the trimmed mean."""

    trim: float = Field(
        default=0.2,
        ge=0,
        lt=0.5,
        description="share of sites left out at either end, coordinate by coordinate; rounded down",
        json_schema_extra={"search": {"choice": [0.1, 0.2, 0.3]}},
    )


class GeometricMedianParams(RuleParams):
    """Parameters of the geometric median."""

    iterations: int = Field(default=100, ge=1, description="Weiszfeld steps at most")
    smoothing: float = Field(
        default=1e-6,
        gt=0,
        description="smallest distance in units of the median norm; a site cannot stop the steps",
    )


class KrumParams(RuleParams):
    """Parameters of Krum."""

    malicious: int = Field(
        default=1, ge=0, description="sites f that may be malicious; 2 f + 3 sites are needed"
    )


class MultiKrumParams(KrumParams):
    """Parameters of multi-Krum."""

    keep: int | None = Field(
        default=None, ge=1, description="sites that are averaged; all but f if not given"
    )


class BalancedParams(RuleParams):
    """Parameters of balanced aggregation."""

    aggregator: str = Field(
        default="upgrad",
        description="aggregator of models/balancing that works on products: upgrad, mgda, cagrad, pcgrad, …",
        json_schema_extra={"search": {"choice": ["upgrad", "mgda", "cagrad", "pcgrad"]}},
    )
    aggregator_params: dict[str, Any] = Field(
        default_factory=dict, description="parameters of the aggregator"
    )
    scale: Literal["shares", "mean_norm", "own"] = Field(
        default="shares",
        description="length of the result: coefficients as shares of 1, norm of the mean, or the aggregator's own",
    )

    @field_validator("aggregator")
    @classmethod
    def _can_see_sites(cls, name: str) -> str:
        if name in NOT_FOR_SITES:
            raise ValueError(f"aggregator {name} cannot balance sites: {NOT_FOR_SITES[name]}")
        return name
