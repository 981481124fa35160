"""Parameters of gradient aggregators: what they are, and where a search looks. Light: pydantic only."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class AggregatorParams(BaseModel):
    """What all of them have in common: unknown names are refused."""

    model_config = ConfigDict(extra="forbid")


class GradDropParams(AggregatorParams):
    """Parameters of GradDrop."""

    leak: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of the plain sum that passes the mask; 0 is the method, 1 no mask",
        json_schema_extra={"search": {"uniform": [0.0, 0.5]}},
    )


class CaGradParams(AggregatorParams):
    """Parameters of CAGrad."""

    c: float = Field(
        default=0.4,
        ge=0,
        description="how far from the mean gradient, in its norms; 0 is the mean itself",
        json_schema_extra={"search": {"uniform": [0.1, 0.9]}},
    )
    rescale: Literal[0, 1, 2] = Field(
        default=1,
        description="factor on the paper's direction: 0 none, 1 T/(1+c²) as in arXiv 2403.03891, 2 T/(1+c)",
    )


class GradVacParams(AggregatorParams):
    """Parameters of Gradient Vaccine."""

    beta: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="how fast targets follow seen cosines; the paper's experiments use 0.01",
        json_schema_extra={"search": {"loguniform": [0.01, 0.5]}},
    )


class NashMtlParams(AggregatorParams):
    """Parameters of Nash-MTL."""

    max_norm: float = Field(
        default=1.0,
        ge=0,
        description="largest norm of the direction, 0 for none; without it the norm is √T at any gradient",
        json_schema_extra={"search": {"loguniform": [0.1, 10.0]}},
    )
    every: int = Field(default=1, ge=1, description="steps for which a solution is kept")


class AlignedMtlParams(AggregatorParams):
    """Parameters of Aligned-MTL."""

    scale: Literal["min", "median", "rmse"] = Field(
        default="min",
        description="length all principal components are brought to",
        json_schema_extra={"search": {"choice": ["min", "median", "rmse"]}},
    )


class DbMtlParams(AggregatorParams):
    """Parameters of DB-MTL."""

    beta: float = Field(
        default=0.9,
        ge=0,
        lt=1,
        description="memory of the average of gradients",
        json_schema_extra={"search": {"choice": [0.1, 0.5, 0.9]}},
    )
    sigma: float = Field(
        default=0.0,
        ge=0,
        description="how memory fades, beta / step^sigma; the libraries' default is 0, the paper also uses 0.5",
        json_schema_extra={"search": {"choice": [0.0, 0.5]}},
    )


class FairGradParams(AggregatorParams):
    """Parameters of FairGrad."""

    alpha: float = Field(
        default=1.0,
        ge=0.2,
        le=20,
        description="fairness: 1 proportional, larger towards max-min",
        json_schema_extra={"search": {"uniform": [0.5, 2.5]}},
    )


class ExcessMtlParams(AggregatorParams):
    """Parameters of ExcessMTL."""

    step_size: float = Field(
        default=0.01,
        gt=0,
        description="of the exponentiated gradient on weights",
        json_schema_extra={"search": {"loguniform": [1e-4, 1e-1]}},
    )
    warmup: int = Field(
        default=1,
        ge=1,
        description="steps that set a task's baseline; the paper's appendix uses three epochs",
    )


class SdmGradParams(AggregatorParams):
    """Parameters of SDMGrad."""

    pull: float = Field(
        default=0.3,
        ge=0,
        description="λ, how strongly towards the mean gradient",
        json_schema_extra={"search": {"loguniform": [0.1, 10.0]}},
    )
    lr: float = Field(default=10.0, gt=0, description="step size of the inner iterations on weights")
    momentum: float = Field(default=0.5, ge=0, lt=1, description="of the inner iterations")
    iterations: int = Field(default=20, ge=1, description="inner iterations a step")
