"""Fusions of branches and modulations of their training, without importing torch."""

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from equipoise.models.params import StrictParams

#: How much of the evidence each branch carries (:mod:`equipoise.models.gptomic.ratios`).
Ratio = Literal["share_sum", "geometric", "as_printed"]
#: What a coefficient multiplies.
Place = Literal["lr", "gradient", "update"]


class FusionParams(StrictParams):
    """Base of the parameters of fusions; the class attributes say what the fused model is."""

    #: The prediction is a sum of one contribution per branch. Otherwise every branch gets a linear head of its own,
    #: which learns without moving the branch, so that it can be said what the branch knows.
    additive: ClassVar[bool] = False
    #: It reads the scores of heads that branches have of their own.
    needs_heads: ClassVar[bool] = False

    @property
    def branch_loss(self) -> float:
        """Weight of the losses of the branches' own heads in the objective."""
        return 0.0


class ConcatFusionParams(FusionParams):
    """Concatenation has no parameters."""

    additive: ClassVar[bool] = True


class KroneckerFusionParams(FusionParams):
    """Parameters of the gated Kronecker product; sizes of Pathomic Fusion where it has them."""

    dim: int = Field(
        32,
        ge=1,
        description="width of a branch before the product, which has (dim + 1) to the power of branches entries",
        json_schema_extra={"search": {"choice": [16, 32]}},
    )
    hidden: int = Field(64, ge=1, description="width behind the product")
    dropout: float = Field(0.25, ge=0, lt=1, json_schema_extra={"search": {"uniform": [0.0, 0.5]}})


class LateFusionParams(FusionParams):
    """Parameters of the sum of branch scores."""

    additive: ClassVar[bool] = True
    needs_heads: ClassVar[bool] = True

    train: Literal["apart", "together"] = Field(
        "apart",
        description="apart: every branch learns from its own loss, and the weights of their scores from the fused one; "
        "together: all from the fused loss",
    )

    @property
    def branch_loss(self) -> float:
        """1 where branches are trained apart."""
        return 1.0 if self.train == "apart" else 0.0


class AttentionFusionParams(FusionParams):
    """Parameters of gated attention over branches."""

    dim: int = Field(
        128,
        ge=1,
        description="width of the fused vector",
        json_schema_extra={"search": {"choice": [64, 128]}},
    )
    hidden: int = Field(64, ge=1, description="width inside the attention")
    dropout: float = Field(0.25, ge=0, lt=1, json_schema_extra={"search": {"uniform": [0.0, 0.5]}})


class ModulationParams(StrictParams):
    """Base of the parameters of modulations; the class attributes say what a modulation does and needs."""

    #: Nothing is changed: the model trains as if there were no modulation.
    neutral: ClassVar[bool] = False
    #: It slows branches down by coefficients that depend on the ratios of their evidence.
    slows: ClassVar[bool] = False
    #: Every branch needs a head of its own whose loss reaches the branch.
    needs_heads: ClassVar[bool] = False

    @property
    def branch_loss(self) -> float:
        """Weight of the losses of the branches' own heads in the objective."""
        return 0.0

    @property
    def adds_tasks(self) -> bool:
        """Whether losses of branches are tasks of the balancing method."""
        return False

    @property
    def hides(self) -> float:
        """How often a branch of a training case is hidden."""
        return 0.0


class NoModulationParams(ModulationParams):
    """Without parameters: branches learn at the same rate."""

    neutral: ClassVar[bool] = True


class _SlowingParams(ModulationParams):
    slows: ClassVar[bool] = True

    alpha: float = Field(
        1.0,
        gt=0,
        description="how fast a coefficient falls with the ratio",
        json_schema_extra={"search": {"loguniform": [0.1, 3.0]}},
    )
    ratio: Ratio = Field(
        "share_sum",
        description="which ratio of evidence; as_printed keeps the numerator of the paper's equation 5, which is not "
        "exponentiated",
        json_schema_extra={"search": {"choice": ["share_sum", "geometric"]}},
    )
    start: int = Field(0, ge=0, description="first epoch, from 0, in which it acts")
    stop: int | None = Field(None, ge=0, description="last epoch in which it acts; all if not given")

    @model_validator(mode="after")
    def _stops_after_start(self) -> "_SlowingParams":
        if self.stop is not None and self.stop < self.start:
            raise ValueError(f"stop {self.stop} is before start {self.start}")
        return self


class GradModParams(_SlowingParams):
    """Parameters of GradMod, the modulation of Path-GPTOmic."""

    acts_on: Place = Field(
        "lr",
        description="learning rate of the branch, its gradient (which Adam divides out again), or the optimiser's "
        "update without weight decay",
        json_schema_extra={"search": {"choice": ["lr", "gradient"]}},
    )


class OgmGeParams(_SlowingParams):
    """Parameters of OGM-GE; acts on gradients between two epochs, as published."""

    acts_on: Place = Field("gradient", description="as for gradmod; gradient as published, for SGD")
    stop: int | None = Field(50, ge=0, description="last epoch in which it acts, 50 as published")
    noise: bool = Field(
        True, description="add Gaussian noise of each gradient's own standard deviation (GE); false is OGM"
    )


class AuxLossesParams(ModulationParams):
    """Parameters of auxiliary losses."""

    needs_heads: ClassVar[bool] = True

    weight: float = Field(
        0.5,
        gt=0,
        description="of every branch's loss as a term of its task's loss",
        json_schema_extra={"search": {"loguniform": [0.1, 1.0]}},
    )
    enter: Literal["terms", "tasks"] = Field(
        "terms",
        description="terms of the task's loss, or tasks of the balancing method, which weighs them itself",
    )

    @property
    def branch_loss(self) -> float:
        """The weight; 1 as tasks."""
        return self.weight if self.enter == "terms" else 1.0

    @property
    def adds_tasks(self) -> bool:
        """As chosen."""
        return self.enter == "tasks"


class ModalityDropoutParams(ModulationParams):
    """Parameters of modality dropout."""

    rate: float = Field(
        0.2,
        gt=0,
        lt=1,
        description="how often a branch of a training case is hidden; one always stays",
        json_schema_extra={"search": {"uniform": [0.05, 0.5]}},
    )

    @property
    def hides(self) -> float:
        """The rate."""
        return self.rate


class RankDistillationParams(ModulationParams):
    """Parameters of rank distillation; the defaults are inverse PAL's."""

    needs_heads: ClassVar[bool] = True

    teacher: str = Field("omics", description="branch whose own head teaches")
    student: Literal["fused", "branches"] = Field(
        "fused", description="fused: inverse PAL; branches: the heads of the other branches, classical PAL"
    )
    aux_weight: float = Field(0.5, gt=0, description="of the losses of the branches' own heads")
    weight: float = Field(
        0.3,
        gt=0,
        description="of the distillation",
        json_schema_extra={"search": {"loguniform": [0.03, 1.0]}},
    )

    @property
    def branch_loss(self) -> float:
        """``aux_weight``."""
        return self.aux_weight


FUSIONS = {
    "concat": (
        "side by side into the linear heads: a sum of one term per branch (the published fusion)",
        ConcatFusionParams,
        "equipoise.models.gptomic.fusions:ConcatFusion",
    ),
    "kronecker": (
        "gated vectors with a 1 appended, their Kronecker product (Pathomic Fusion, Chen et al. 2020)",
        KroneckerFusionParams,
        "equipoise.models.gptomic.kronecker:KroneckerFusion",
    ),
    "late": (
        "weighted sum of the scores of heads that branches have of their own; an absent branch adds nothing",
        LateFusionParams,
        "equipoise.models.gptomic.fusions:LateFusion",
    ),
    "attention": (
        "gated attention over the branches that a patient has",
        AttentionFusionParams,
        "equipoise.models.gptomic.fusions:AttentionFusion",
    ),
}

MODULATIONS = {
    "none": (
        "branches learn at the same rate; ratios are still logged",
        NoModulationParams,
        "equipoise.models.gptomic.modulations:Modulation",
    ),
    "gradmod": (
        "slows the branch that carries more of the evidence, continuous at 1 (Path-GPTOmic 2024)",
        GradModParams,
        "equipoise.models.gptomic.modulations:GradMod",
    ),
    "ogm_ge": (
        "scales its gradient with a jump at 1 and adds noise (Peng et al. 2022)",
        OgmGeParams,
        "equipoise.models.gptomic.modulations:OgmGe",
    ),
    "aux_losses": (
        "every branch also predicts alone; terms of the loss or tasks of the balancing method",
        AuxLossesParams,
        "equipoise.models.gptomic.modulations:Modulation",
    ),
    "modality_dropout": (
        "hides branches of training cases at random",
        ModalityDropoutParams,
        "equipoise.models.gptomic.modulations:Modulation",
    ),
    "rank_distillation": (
        "one branch's own head teaches differences of risks (HyPAL-Surv, inverse PAL)",
        RankDistillationParams,
        "equipoise.models.gptomic.distillation:RankDistillation",
    ),
}
