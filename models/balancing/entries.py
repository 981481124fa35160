"""Loss weightings and gradient aggregators a study can name: their parameters, search spaces, what they can and need.

Imports no torch. Attributes without a field (``ClassVar``) say what a method can and needs; study, search, privacy and
federation ask them through :meth:`equipoise.platform.registry.Entry.attribute`, and never compare names.
"""

from typing import ClassVar, Literal, Self

from pydantic import Field, NonNegativeFloat, model_validator

from equipoise.models.params import StrictParams

#: What a method needs beyond the losses of the batch. ``gram``: products of the tasks' gradients.
#: ``validation``: the gradient of an inner validation loss after a virtual step. ``second_forward``: the
#: losses of the same batch after the step. ``samples``: gradients on two further training batches.
Need = Literal["gram", "validation", "second_forward", "samples"]
Needs = frozenset[Need]
Kind = Literal["none", "gram", "jacobian"]
Names = tuple[str, ...] | None


class WeightingParams(StrictParams):
    """Base of the parameters of loss weightings; the class attributes say what a weighting can and needs."""

    #: What it needs beyond the losses of the batch: ``validation``, ``second_forward`` or ``gram``.
    needs: ClassVar[Needs] = frozenset()
    #: Every loss counts once: it goes with any aggregator and need not be named beside one.
    neutral: ClassVar[bool] = False
    #: Weights depend on nothing that patients have: neither losses nor gradients.
    fixed: ClassVar[bool] = False
    #: It learns its weights step by step, so that they can end before they have converged.
    learns: ClassVar[bool] = False
    #: ``weights`` gives the weight of every task, so that a person or a search can choose them.
    takes_explicit_weights: ClassVar[bool] = False
    #: The method is defined for losses of at least 0 only.
    needs_nonnegative_losses: ClassVar[bool] = False
    #: Why no aggregator can follow: the weighting is a complete method from loss to update. Empty: one can.
    whole_objective: ClassVar[str] = ""
    #: Why gradients at the shared representation cannot replace those of the parameters. Empty: they can.
    needs_parameters: ClassVar[str] = ""


class AggregatorParams(StrictParams):
    """Base of the parameters of gradient aggregators; the class attributes say what an aggregator can and needs."""

    #: ``gram`` combines gradients by their products, ``jacobian`` coordinate by coordinate, ``none`` just sums them.
    kind: ClassVar[Kind] = "gram"
    #: What it needs beyond the gradients of the batch: ``samples``.
    needs: ClassVar[Needs] = frozenset()
    #: The method is defined for losses of at least 0 only.
    needs_nonnegative_losses: ClassVar[bool] = False
    #: Loss weightings that make sense with it beside the neutral ones; None: all. Others are refused for ``reason``.
    takes_weightings: ClassVar[Names] = None
    #: Why it takes no other weightings.
    reason: ClassVar[str] = ""
    #: It works on the logarithms of losses: every loss, also for a task's own parameters, is weighted by 1/L.
    log_losses: ClassVar[bool] = False
    #: Why gradients at the shared representation cannot replace those of the parameters. Empty: they can.
    needs_parameters: ClassVar[str] = ""


class EqualParams(WeightingParams):
    """Equal weights have no parameters."""

    neutral: ClassVar[bool] = True
    fixed: ClassVar[bool] = True


class GlsParams(WeightingParams):
    """The geometric loss strategy has no parameters."""

    needs_nonnegative_losses: ClassVar[bool] = True
    whole_objective: ClassVar[str] = (
        "gls is one scalar objective, the geometric mean of the losses, and has one gradient"
    )


class UncertaintyParams(WeightingParams):
    """Parameters of uncertainty weighting."""

    learns: ClassVar[bool] = True

    lr: float = Field(
        default=1e-3,
        gt=0,
        description="learning rate of the log variances",
        json_schema_extra={"search": {"loguniform": [1e-4, 1e-1]}},
    )
    reach: float = Field(
        default=8.0,
        ge=0,
        description="how far log variances can get in the whole training, at least; "
        "lr is raised to reach / steps where the training is too short for that; ours, 0 keeps lr",
    )
    init: float = Field(default=-0.7, description="log variance at the start; -0.7 is a weight of 1.007")


class ImtlLParams(WeightingParams):
    """Parameters of IMTL-L."""

    learns: ClassVar[bool] = True

    lr: float = Field(
        default=1e-3,
        gt=0,
        description="learning rate of the log scales",
        json_schema_extra={"search": {"loguniform": [1e-4, 1e-1]}},
    )
    reach: float = Field(
        default=8.0,
        ge=0,
        description="how far log scales can get in the whole training, at least; "
        "lr is raised to reach / steps where the training is too short for that; ours, 0 keeps lr",
    )


class DwaParams(WeightingParams):
    """Parameters of dynamic weight average."""

    needs_nonnegative_losses: ClassVar[bool] = True

    temperature: float = Field(
        default=2.0,
        gt=0,
        description="of the softmax over loss ratios; higher is closer to equal weights",
        json_schema_extra={"search": {"uniform": [0.5, 5.0]}},
    )


class AutoLambdaParams(WeightingParams):
    """Parameters of Auto-Lambda."""

    learns: ClassVar[bool] = True
    needs: ClassVar[Needs] = frozenset({"validation"})
    needs_parameters: ClassVar[str] = (
        "auto_lambda compares training and validation gradients, and the two batches have representations of their own"
    )

    lr: float = Field(
        default=1e-4,
        gt=0,
        description="learning rate of the weights",
        json_schema_extra={"search": {"loguniform": [1e-5, 1e-2]}},
    )
    reach: float = Field(
        default=1.0,
        ge=0,
        description="how far weights can get in the whole training, at least; "
        "lr is raised to reach / steps where the training is too short for that; ours, 0 keeps lr",
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


class FamoParams(WeightingParams):
    """Parameters of FAMO."""

    learns: ClassVar[bool] = True
    needs: ClassVar[Needs] = frozenset({"second_forward"})
    needs_nonnegative_losses: ClassVar[bool] = True
    whole_objective: ClassVar[str] = (
        "famo measures the effect of its own update on the losses, which an aggregator would distort"
    )

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


class StchParams(WeightingParams):
    """Parameters of smooth Tchebycheff scalarisation."""

    needs_nonnegative_losses: ClassVar[bool] = True
    whole_objective: ClassVar[str] = (
        "stch is one scalar objective, the smooth maximum of the losses, and has one gradient"
    )

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


class GradNormParams(WeightingParams):
    """Parameters of GradNorm."""

    learns: ClassVar[bool] = True
    needs: ClassVar[Needs] = frozenset({"gram"})
    needs_nonnegative_losses: ClassVar[bool] = True

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


class AutoScaleParams(WeightingParams):
    """Parameters of AutoScale."""

    needs: ClassVar[Needs] = frozenset({"gram"})

    explore_epochs: int = Field(
        default=4,
        ge=1,
        description="epochs of the first phase, in which weights follow the gradients; fixed afterwards; ours",
        json_schema_extra={"search": {"choice": [2, 4, 8]}},
    )


class StaticParams(WeightingParams):
    """Hand-tuned weights."""

    fixed: ClassVar[bool] = True
    takes_explicit_weights: ClassVar[bool] = True

    weights: dict[str, NonNegativeFloat] = Field(description="task: weight, of every task; 0 leaves one out")

    @model_validator(mode="after")
    def _something_is_learned(self) -> Self:
        if not any(self.weights.values()):
            raise ValueError("at least one weight must be positive")
        return self


class NoAggregationParams(AggregatorParams):
    """The plain sum has no parameters."""

    kind: ClassVar[Kind] = "none"


class ImtlGParams(AggregatorParams):
    """IMTL-G has no parameters; IMTL as published is both its halves, ``imtl_l+imtl_g``."""

    takes_weightings: ClassVar[Names] = ("imtl_l",)
    reason: ClassVar[str] = (
        "imtl_g does not depend on the norms of gradients, so that weights of the losses are lost"
    )


class GradDropParams(AggregatorParams):
    """Parameters of GradDrop."""

    kind: ClassVar[Kind] = "jacobian"

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


class ConicGradParams(AggregatorParams):
    """Parameters of ConicGrad."""

    c: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="cosine of the largest angle to the mean gradient; 1 is its direction, 0 half the space",
        json_schema_extra={"search": {"uniform": [0.1, 0.9]}},
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

    takes_weightings: ClassVar[Names] = ()
    reason: ClassVar[str] = (
        "nash_mtl does not depend on the norms of gradients, so that weights of the losses are lost"
    )

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

    needs_nonnegative_losses: ClassVar[bool] = True
    kind: ClassVar[Kind] = "jacobian"
    takes_weightings: ClassVar[Names] = ()
    reason: ClassVar[str] = (
        "db_mtl takes logarithms of losses and equalises norms of gradients, so that a weight cancels"
    )
    log_losses: ClassVar[bool] = True
    needs_parameters: ClassVar[str] = (
        "db_mtl averages gradients over steps, and every batch has a representation of its own"
    )

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

    kind: ClassVar[Kind] = "jacobian"
    takes_weightings: ClassVar[Names] = ("static",)
    reason: ClassVar[str] = "excess_mtl learns the weights of the losses itself"
    needs_parameters: ClassVar[str] = (
        "excess_mtl adds up squared gradients over steps, and every batch has a representation of its own"
    )

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

    needs: ClassVar[Needs] = frozenset({"samples"})
    takes_weightings: ClassVar[Names] = ("static",)
    reason: ClassVar[str] = (
        "sdmgrad chooses its weights on further batches, where losses are not weighted again"
    )
    needs_parameters: ClassVar[str] = (
        "sdmgrad compares gradients of three batches, which have representations of their own"
    )

    pull: float = Field(
        default=0.3,
        ge=0,
        description="λ, how strongly towards the mean gradient",
        json_schema_extra={"search": {"loguniform": [0.1, 10.0]}},
    )
    lr: float = Field(default=10.0, gt=0, description="step size of the inner iterations on weights")
    momentum: float = Field(default=0.5, ge=0, lt=1, description="of the inner iterations")
    iterations: int = Field(default=20, ge=1, description="inner iterations a step")


_HERE = "equipoise.models.balancing"

WEIGHTINGS = {
    "equal": ("every task loss counts once", EqualParams, f"{_HERE}.equal:Equal"),
    "static": (
        "weights chosen by hand: the baseline of every comparison",
        StaticParams,
        f"{_HERE}.static:Static",
    ),
    "uncertainty": (
        "learned variance of every task (Kendall 2018)",
        UncertaintyParams,
        f"{_HERE}.uncertainty:Uncertainty",
    ),
    "dwa": ("tasks whose loss falls slowly count more (Liu 2019)", DwaParams, f"{_HERE}.dwa:Dwa"),
    "auto_lambda": (
        "weights learned on inner validation data (Liu 2022)",
        AutoLambdaParams,
        f"{_HERE}.auto_lambda:AutoLambda",
    ),
    "rlw": (
        "random weights in every step, the test for all others (Lin 2022)",
        WeightingParams,
        f"{_HERE}.rlw:Rlw",
    ),
    "gls": ("gradient of the geometric mean of the losses (Chennupati 2019)", GlsParams, f"{_HERE}.gls:Gls"),
    "gradnorm": (
        "gradient norms in step with training rates (Chen 2018)",
        GradNormParams,
        f"{_HERE}.gradnorm:GradNorm",
    ),
    "autoscale": (
        "fixed weights for gradients of similar size, found in a first phase (Yang 2025)",
        AutoScaleParams,
        f"{_HERE}.autoscale:AutoScale",
    ),
    "imtl_l": ("learned scales that bring all losses to 1 (Liu 2021)", ImtlLParams, f"{_HERE}.imtl_l:ImtlL"),
    "stch": ("smooth maximum of the losses (Lin 2024)", StchParams, f"{_HERE}.stch:Stch"),
    "famo": (
        "all losses fall at one rate; a second forward pass (Liu 2023)",
        FamoParams,
        f"{_HERE}.famo:Famo",
    ),
}

AGGREGATORS = {
    "none": (
        "one backward pass over the weighted sum of the losses",
        NoAggregationParams,
        f"{_HERE}.none:NoAggregation",
    ),
    "graddrop": (
        "every coordinate takes one sign at random (Chen 2020)",
        GradDropParams,
        f"{_HERE}.graddrop:GradDrop",
    ),
    "pcgrad": (
        "conflicting parts of gradients are projected away (Yu 2020)",
        AggregatorParams,
        f"{_HERE}.pcgrad:PcGrad",
    ),
    "cagrad": (
        "near the mean gradient, best for the worst-off task (Liu 2021)",
        CaGradParams,
        f"{_HERE}.cagrad:CaGrad",
    ),
    "conicgrad": (
        "in a cone around the mean gradient, best for the worst-off task (Hassanpour 2025)",
        ConicGradParams,
        f"{_HERE}.conicgrad:ConicGrad",
    ),
    "gradvac": (
        "gradients turned to their usual cosines (Wang 2021)",
        GradVacParams,
        f"{_HERE}.gradvac:GradVac",
    ),
    "mgda": ("shortest vector of the convex hull (Désidéri 2012)", AggregatorParams, f"{_HERE}.mgda:Mgda"),
    "imtl_g": ("equal projections on all gradients (Liu 2021)", ImtlGParams, f"{_HERE}.imtl_g:ImtlG"),
    "nash_mtl": ("bargaining solution (Navon 2022)", NashMtlParams, f"{_HERE}.nash_mtl:NashMtl"),
    "aligned_mtl": (
        "principal components of one length (Senushkin 2023)",
        AlignedMtlParams,
        f"{_HERE}.aligned_mtl:AlignedMtl",
    ),
    "db_mtl": (
        "averaged gradients of log losses at one norm (Lin 2023)",
        DbMtlParams,
        f"{_HERE}.db_mtl:DbMtl",
    ),
    "fairgrad": ("α-fair gains (Ban 2024)", FairGradParams, f"{_HERE}.fairgrad:FairGrad"),
    "excess_mtl": (
        "tasks far above what they can reach count more (He 2024)",
        ExcessMtlParams,
        f"{_HERE}.excess_mtl:ExcessMtl",
    ),
    "upgrad": (
        "mean of gradients projected to where nothing conflicts (Quinton 2024)",
        AggregatorParams,
        f"{_HERE}.upgrad:UpGrad",
    ),
    "sdmgrad": (
        "minimum norm towards the mean, on three batches a step (Xiao 2023)",
        SdmGradParams,
        f"{_HERE}.sdmgrad:SdmGrad",
    ),
}
