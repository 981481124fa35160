"""Loss weightings and gradient aggregators a study can name, with all their parameters; imports no torch."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, model_validator


class NoParams(BaseModel):
    """A method without parameters, and the strict base of all the others."""

    model_config = ConfigDict(extra="forbid")


class UncertaintyParams(NoParams):
    """Parameters of uncertainty weighting."""

    lr: float = Field(
        default=1e-3,
        gt=0,
        description="learning rate of the log variances",
        json_schema_extra={"search": {"loguniform": [1e-4, 1e-1]}},
    )
    init: float = Field(default=-0.7, description="log variance at the start; -0.7 is a weight of 1.007")


class ImtlLParams(NoParams):
    """Parameters of IMTL-L."""

    lr: float = Field(
        default=1e-3,
        gt=0,
        description="learning rate of the log scales",
        json_schema_extra={"search": {"loguniform": [1e-4, 1e-1]}},
    )


class DwaParams(NoParams):
    """Parameters of dynamic weight average."""

    temperature: float = Field(
        default=2.0,
        gt=0,
        description="of the softmax over loss ratios; higher is closer to equal weights",
        json_schema_extra={"search": {"uniform": [0.5, 5.0]}},
    )


class AutoLambdaParams(NoParams):
    """Parameters of Auto-Lambda."""

    lr: float = Field(
        default=1e-4,
        gt=0,
        description="learning rate of the weights",
        json_schema_extra={"search": {"loguniform": [1e-5, 1e-2]}},
    )
    init: float = Field(default=0.1, gt=0, description="weight of every task at the start")
    positivity: Literal["clamp", "softplus", "unconstrained"] = Field(
        default="clamp",
        description="how weights are kept from below 0; unconstrained as published",
        json_schema_extra={"search": {"choice": ["clamp", "softplus"]}},
    )
    primary: Literal["main", "all"] = Field(
        default="main", description="tasks whose validation loss decides: the main ones or all"
    )


class FamoParams(NoParams):
    """Parameters of FAMO."""

    lr: float = Field(
        default=0.025,
        gt=0,
        description="learning rate of the logits",
        json_schema_extra={"search": {"loguniform": [1e-3, 1e-1]}},
    )
    weight_decay: float = Field(
        default=1e-3,
        ge=0,
        description="of the logits; towards equal shares",
        json_schema_extra={"search": {"loguniform": [1e-5, 1e-2]}},
    )
    lower_bound: float = Field(default=0.0, description="what no loss falls below")


class StchParams(NoParams):
    """Parameters of smooth Tchebycheff scalarisation."""

    mu: float = Field(
        default=1.0,
        gt=0,
        description="smoothness; small values follow the worst task alone",
        json_schema_extra={"search": {"loguniform": [0.1, 10.0]}},
    )
    warmup_epochs: int = Field(
        default=4, ge=1, description="epochs before the smooth maximum; the last one sets the scale of losses"
    )
    log: bool = Field(default=True, description="take logarithms of losses first, as the authors did")


class GradNormParams(NoParams):
    """Parameters of GradNorm."""

    alpha: float = Field(
        default=1.5,
        ge=0,
        description="how hard tasks that lag behind are pulled; 0 gives equal norms",
        json_schema_extra={"search": {"uniform": [0.0, 3.0]}},
    )
    lr: float = Field(
        default=0.025,
        gt=0,
        description="learning rate of the weights",
        json_schema_extra={"search": {"loguniform": [1e-3, 1e-1]}},
    )


class StaticParams(NoParams):
    """Hand-tuned weights."""

    weights: dict[str, NonNegativeFloat] = Field(description="task: weight, of every task; 0 leaves one out")

    @model_validator(mode="after")
    def _something_is_learned(self) -> Self:
        if not any(self.weights.values()):
            raise ValueError("at least one weight must be positive")
        return self


class GradDropParams(NoParams):
    """Parameters of GradDrop."""

    leak: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="share of the plain sum that passes the mask; 0 is the method, 1 no mask",
        json_schema_extra={"search": {"uniform": [0.0, 0.5]}},
    )


class CaGradParams(NoParams):
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


class GradVacParams(NoParams):
    """Parameters of Gradient Vaccine."""

    beta: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="how fast targets follow seen cosines; the paper's experiments use 0.01",
        json_schema_extra={"search": {"loguniform": [0.01, 0.5]}},
    )


class NashMtlParams(NoParams):
    """Parameters of Nash-MTL."""

    max_norm: float = Field(
        default=1.0,
        ge=0,
        description="largest norm of the direction, 0 for none; without it the norm is √T at any gradient",
        json_schema_extra={"search": {"loguniform": [0.1, 10.0]}},
    )
    every: int = Field(default=1, ge=1, description="steps for which a solution is kept")


class AlignedMtlParams(NoParams):
    """Parameters of Aligned-MTL."""

    scale: Literal["min", "median", "rmse"] = Field(
        default="min",
        description="length all principal components are brought to",
        json_schema_extra={"search": {"choice": ["min", "median", "rmse"]}},
    )


class DbMtlParams(NoParams):
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


class FairGradParams(NoParams):
    """Parameters of FairGrad."""

    alpha: float = Field(
        default=1.0,
        ge=0.2,
        le=20,
        description="fairness: 1 proportional, larger towards max-min",
        json_schema_extra={"search": {"uniform": [0.5, 2.5]}},
    )


class ExcessMtlParams(NoParams):
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


class SdmGradParams(NoParams):
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


WEIGHTINGS = {
    "equal": ("every task loss counts once", NoParams, "equipoise.models.balancing.equal:Equal"),
    "static": (
        "weights chosen by hand: the baseline of every comparison",
        StaticParams,
        "equipoise.models.balancing.static:Static",
    ),
    "uncertainty": (
        "learned variance of every task (Kendall 2018)",
        UncertaintyParams,
        "equipoise.models.balancing.uncertainty:Uncertainty",
    ),
    "dwa": (
        "tasks whose loss falls slowly count more (Liu 2019)",
        DwaParams,
        "equipoise.models.balancing.dwa:Dwa",
    ),
    "auto_lambda": (
        "weights learned on inner validation data (Liu 2022)",
        AutoLambdaParams,
        "equipoise.models.balancing.auto_lambda:AutoLambda",
    ),
    "rlw": (
        "random weights in every step, the test for all others (Lin 2022)",
        NoParams,
        "equipoise.models.balancing.rlw:Rlw",
    ),
    "gls": (
        "gradient of the geometric mean of the losses (Chennupati 2019)",
        NoParams,
        "equipoise.models.balancing.gls:Gls",
    ),
    "gradnorm": (
        "gradient norms in step with training rates (Chen 2018)",
        GradNormParams,
        "equipoise.models.balancing.gradnorm:GradNorm",
    ),
    "imtl_l": (
        "learned scales that bring all losses to 1 (Liu 2021)",
        ImtlLParams,
        "equipoise.models.balancing.imtl_l:ImtlL",
    ),
    "stch": ("smooth maximum of the losses (Lin 2024)", StchParams, "equipoise.models.balancing.stch:Stch"),
    "famo": (
        "all losses fall at one rate; a second forward pass (Liu 2023)",
        FamoParams,
        "equipoise.models.balancing.famo:Famo",
    ),
}

AGGREGATORS = {
    "none": (
        "one backward pass over the weighted sum of the losses",
        NoParams,
        "equipoise.models.balancing.none:NoAggregation",
    ),
    "graddrop": (
        "every coordinate takes one sign at random (Chen 2020)",
        GradDropParams,
        "equipoise.models.balancing.graddrop:GradDrop",
    ),
    "pcgrad": (
        "conflicting parts of gradients are projected away (Yu 2020)",
        NoParams,
        "equipoise.models.balancing.pcgrad:PcGrad",
    ),
    "cagrad": (
        "near the mean gradient, best for the worst-off task (Liu 2021)",
        CaGradParams,
        "equipoise.models.balancing.cagrad:CaGrad",
    ),
    "gradvac": (
        "gradients turned to their usual cosines (Wang 2021)",
        GradVacParams,
        "equipoise.models.balancing.gradvac:GradVac",
    ),
    "mgda": (
        "shortest vector of the convex hull (Désidéri 2012)",
        NoParams,
        "equipoise.models.balancing.mgda:Mgda",
    ),
    "imtl_g": (
        "equal projections on all gradients (Liu 2021)",
        NoParams,
        "equipoise.models.balancing.imtl_g:ImtlG",
    ),
    "nash_mtl": (
        "bargaining solution (Navon 2022)",
        NashMtlParams,
        "equipoise.models.balancing.nash_mtl:NashMtl",
    ),
    "aligned_mtl": (
        "principal components of one length (Senushkin 2023)",
        AlignedMtlParams,
        "equipoise.models.balancing.aligned_mtl:AlignedMtl",
    ),
    "db_mtl": (
        "averaged gradients of log losses at one norm (Lin 2023)",
        DbMtlParams,
        "equipoise.models.balancing.db_mtl:DbMtl",
    ),
    "fairgrad": (
        "α-fair gains (Ban 2024)",
        FairGradParams,
        "equipoise.models.balancing.fairgrad:FairGrad",
    ),
    "excess_mtl": (
        "tasks far above what they can reach count more (He 2024)",
        ExcessMtlParams,
        "equipoise.models.balancing.excess_mtl:ExcessMtl",
    ),
    "upgrad": (
        "mean of gradients projected to where nothing conflicts (Quinton 2024)",
        NoParams,
        "equipoise.models.balancing.upgrad:UpGrad",
    ),
    "sdmgrad": (
        "minimum norm towards the mean, on three batches a step (Xiao 2023)",
        SdmGradParams,
        "equipoise.models.balancing.sdmgrad:SdmGrad",
    ),
}
