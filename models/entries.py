"""Models a study can name, with their parameters and search ranges, without importing torch."""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import Field, model_validator

from equipoise.models.params import StrictParams
from equipoise.models.slide_encoders.hidden_states import HiddenStates


class Penalty(NamedTuple):
    """How a solver penalises the heads of a linear model."""

    #: 0 is ridge, 1 the lasso.
    l1_ratio: float = 0.0
    #: Inner folds on which the penalty is chosen, and penalties that are tried.
    folds: int = 4
    penalties: int = 20


class ModelParams(StrictParams):
    """Base of the parameters of models; the class attributes say what a model needs."""

    #: Modalities that the model reads: ``wsi`` for slides; ``clinical``, ``rna``, ``cnv`` and ``mutation`` are tables.
    reads: ClassVar[frozenset[str]] = frozenset({"wsi"})
    #: ``epochs``: the training loop fits the model; ``exact``: only a solver of convex problems does, so that balancing
    #: methods and federations, which work step by step, have nothing to act on.
    fit: ClassVar[Literal["epochs", "exact"]] = "epochs"
    #: Parameters that name an entry of another registry: parameter → kind. The entry's own parameters stand beside it
    #: under ``<parameter>_params``, and the model is built with a maker of each as a keyword argument.
    components: ClassVar[Mapping[str, str]] = {}
    #: Whether heads of the model may be on the text of labels; false for one that builds heads of its own.
    heads_on_text: ClassVar[bool] = True

    @property
    def convex(self) -> bool:
        """Whether the model is linear with these parameters, so that a solver finds its optimum."""
        return self.fit == "exact"

    @property
    def shares_parameters(self) -> bool:
        """Whether tasks share parameters, on which gradients can be compared; not where the model is linear."""
        return not self.convex

    @property
    def shares_representation(self) -> bool:
        """Whether all tasks are computed from one representation, where gradients may be compared instead."""
        return self.shares_parameters

    @property
    def penalty(self) -> Penalty:
        """How the solver penalises a linear model: ridge, unless the model has parameters for it."""
        return Penalty()

    @property
    def hidden_states(self) -> HiddenStates | None:
        """Hidden states of a slide encoder that the model reads from a store in place of tiles; None for none."""
        return None

    @property
    def needs_presence(self) -> bool:
        """Whether the model is told what share of the patients of each class has a modality."""
        return False


class MultiModalParams(ModelParams):
    """Base of the parameters of models that read any of the modalities."""

    reads: ClassVar[frozenset[str]] = frozenset({"wsi", "clinical", "rna", "cnv", "mutation"})

    modalities: tuple[Literal["wsi", "clinical", "rna", "cnv", "mutation"], ...] | None = Field(
        None, min_length=1, description="what to read; all that the study has if not given"
    )


class JointParams(ModelParams):
    """Parameters of the joint transformer; the defaults are the published ones."""

    reads: ClassVar[frozenset[str]] = frozenset({"wsi"})

    dim: int = Field(
        384, ge=1, description="width of tokens", json_schema_extra={"search": {"choice": [192, 384, 576]}}
    )
    heads: int = Field(6, ge=1, description="attention heads; must divide dim")
    encoder_layers: int = Field(2, ge=0, json_schema_extra={"search": {"choice": [1, 2, 3]}})
    decoder_layers: int = Field(2, ge=1, json_schema_extra={"search": {"choice": [1, 2]}})
    feedforward: int = Field(768, ge=1, description="width inside the feed-forward blocks")
    dropout: float = Field(0.1, ge=0, lt=1, json_schema_extra={"search": {"uniform": [0.0, 0.4]}})

    @model_validator(mode="after")
    def _heads_divide_dim(self) -> "JointParams":
        if self.dim % self.heads:
            raise ValueError(
                f"dim {self.dim} is not divisible by heads {self.heads}; for example dim: {self.heads * 64}"
            )
        return self


class MeanPoolParams(ModelParams):
    """Parameters of the mean-tile baseline."""

    reads: ClassVar[frozenset[str]] = frozenset({"wsi"})

    layers: int = Field(
        1,
        ge=0,
        description="hidden layers; 0 is linear in the mean tile, and tasks share no parameter then",
        json_schema_extra={"search": {"choice": [1, 2]}},
    )
    dim: int = Field(
        384,
        ge=1,
        description="width of the hidden layers",
        json_schema_extra={"search": {"choice": [192, 384, 768]}},
    )
    dropout: float = Field(0.1, ge=0, lt=1, json_schema_extra={"search": {"uniform": [0.0, 0.4]}})

    @property
    def convex(self) -> bool:
        """Without hidden layers."""
        return self.layers == 0


class AbmilParams(ModelParams):
    """Parameters of gated attention pooling."""

    reads: ClassVar[frozenset[str]] = frozenset({"wsi"})

    dim: int = Field(
        512,
        ge=1,
        description="width of projected tiles",
        json_schema_extra={"search": {"choice": [256, 384, 512]}},
    )
    hidden: int = Field(
        128,
        ge=1,
        description="width inside the attention",
        json_schema_extra={"search": {"choice": [64, 128, 256]}},
    )
    branches: Literal["shared", "task"] = Field(
        "shared",
        description="one attention for all tasks, or one for each",
        json_schema_extra={"search": {"choice": ["shared", "task"]}},
    )
    dropout: float = Field(
        0.25,
        ge=0,
        lt=1,
        description="on projected tiles",
        json_schema_extra={"search": {"uniform": [0.0, 0.5]}},
    )


class TransmilParams(ModelParams):
    """Parameters of TransMIL; the defaults are the published ones."""

    reads: ClassVar[frozenset[str]] = frozenset({"wsi"})

    dim: int = Field(
        512, ge=1, description="width of tokens", json_schema_extra={"search": {"choice": [256, 384, 512]}}
    )
    heads: int = Field(8, ge=1, description="attention heads; must divide dim")
    landmarks: int = Field(
        256,
        ge=1,
        description="landmarks of Nyström's approximation; smaller bags get exact attention",
        json_schema_extra={"search": {"choice": [128, 256]}},
    )
    pinv_iterations: int = Field(6, ge=1, description="steps of the iterative pseudo-inverse")
    dropout: float = Field(0.1, ge=0, lt=1, json_schema_extra={"search": {"uniform": [0.0, 0.4]}})

    @model_validator(mode="after")
    def _heads_divide_dim(self) -> "TransmilParams":
        if self.dim % self.heads:
            raise ValueError(
                f"dim {self.dim} is not divisible by heads {self.heads}; for example dim: {self.heads * 64}"
            )
        return self


class ClinicalParams(ModelParams):
    """Parameters of the linear model of covariates: there are none."""

    reads: ClassVar[frozenset[str]] = frozenset({"clinical"})

    @property
    def convex(self) -> bool:
        """Always."""
        return True


class OmicsParams(ModelParams):
    """Parameters of the omics baseline: linear, a self-normalising network, or a small one with ReLU."""

    reads: ClassVar[frozenset[str]] = frozenset({"rna", "cnv", "mutation"})

    modalities: tuple[Literal["rna", "cnv", "mutation"], ...] | None = Field(
        None, min_length=1, description="tables to read; all that the cohorts have if not given"
    )
    network: Literal["linear", "snn", "relu"] = Field(
        "snn",
        description="linear shares no parameter among tasks; relu is for few patients",
        json_schema_extra={"search": {"choice": ["linear", "snn", "relu"]}},
    )
    dim: int = Field(
        256, ge=1, description="width of the layers", json_schema_extra={"search": {"choice": [64, 128, 256]}}
    )
    layers: int = Field(2, ge=1, json_schema_extra={"search": {"choice": [1, 2, 3]}})
    dropout: float = Field(
        0.25,
        ge=0,
        lt=1,
        description="behind every layer, alpha dropout for snn",
        json_schema_extra={"search": {"uniform": [0.0, 0.5]}},
    )
    input_dropout: float = Field(0.0, ge=0, lt=1, description="on the columns that a network reads")
    output_scale: float = Field(
        1.0, gt=0, description="factor of the heads' initial weights: 0.1 starts near zero"
    )

    @property
    def convex(self) -> bool:
        """Without a network."""
        return self.network == "linear"


class ModalityDropoutParams(MultiModalParams):
    """Base of the parameters of models that hide modalities while they train."""

    class_balanced_dropout: bool = Field(
        False,
        description="hide modalities such that training shows each equally often in every class of the main task, so "
        "that a missing one does not give the class away; nothing is made to stay",
    )

    @property
    def needs_presence(self) -> bool:
        """With dropout that is balanced by class."""
        return self.class_balanced_dropout


class ElasticNetParams(MultiModalParams):
    """Parameters of the penalised linear model."""

    fit: ClassVar[Literal["epochs", "exact"]] = "exact"

    fusion: Literal["early", "late"] = Field(
        "early",
        description="early: one model of all columns; late: one of each modality, summed with weights that inner folds "
        "choose",
        json_schema_extra={"search": {"choice": ["early", "late"]}},
    )
    l1_ratio: float = Field(
        0.5,
        ge=0,
        le=1,
        description="0 is ridge, 1 is the lasso",
        json_schema_extra={"search": {"choice": [0.0, 0.1, 0.5, 1.0]}},
    )
    clinical_factor: float = Field(
        0.03,
        gt=0,
        description="penalty of covariates, relative to that of genes and tile features",
        json_schema_extra={"search": {"choice": [0.03, 0.3, 1.0]}},
    )
    folds: int = Field(4, ge=2, description="inner folds on which the penalty is chosen")
    penalties: int = Field(20, ge=1, description="penalties that are tried")

    @property
    def penalty(self) -> Penalty:
        """As the parameters say."""
        return Penalty(self.l1_ratio, self.folds, self.penalties)


class ConcatParams(ModalityDropoutParams):
    """Parameters of late fusion by concatenation."""

    dim: int = Field(
        256,
        ge=1,
        description="width of the embeddings",
        json_schema_extra={"search": {"choice": [128, 256, 384]}},
    )
    hidden: int = Field(
        128,
        ge=1,
        description="width inside the attention over tiles",
        json_schema_extra={"search": {"choice": [64, 128, 256]}},
    )
    layers: int = Field(
        2, ge=1, description="layers of a table's network", json_schema_extra={"search": {"choice": [1, 2]}}
    )
    dropout: float = Field(0.25, ge=0, lt=1, json_schema_extra={"search": {"uniform": [0.0, 0.5]}})
    modality_dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="how often a modality of a training case is hidden; one always stays",
        json_schema_extra={"search": {"uniform": [0.0, 0.5]}},
    )


class GptomicParams(MultiModalParams):
    """Parameters of stage 2 of Path-GPTOmic; sizes of the omics branch as published where they are."""

    heads_on_text: ClassVar[bool] = False  # a prediction is a sum of what its branches say

    components: ClassVar[Mapping[str, str]] = {
        "image": "models",
        "fusion": "fusions",
        "modulation": "modulations",
    }

    image: str = Field("abmil", description="model of slides whose vectors are the image branch")
    image_params: dict[str, Any] = Field(default_factory=dict, description="its parameters")
    dim: int = Field(
        128,
        ge=1,
        description="width of the omics branch",
        json_schema_extra={"search": {"choice": [32, 64, 128]}},
    )
    layers: int = Field(
        3,
        ge=1,
        description="layers of the MLP over RNA and the SNN",
        json_schema_extra={"search": {"choice": [1, 2, 3]}},
    )
    snn_layers: int = Field(2, ge=1, description="layers of the SNN over CNV and mutations")
    dropout: float = Field(
        0.25,
        ge=0,
        lt=1,
        description="in the omics branch, behind every layer",
        json_schema_extra={"search": {"uniform": [0.0, 0.5]}},
    )
    input_dropout: float = Field(0.0, ge=0, lt=1, description="on what the MLP reads")
    output_scale: float = Field(
        1.0, gt=0, description="factor of the heads' initial weights: 0.1 starts near zero"
    )
    fusion: str = Field(
        "concat", description="how the branches become one prediction (`equipoise ls fusions`)"
    )
    fusion_params: dict[str, Any] = Field(default_factory=dict, description="parameters of the fusion")
    modulation: str = Field(
        "gradmod", description="how their training is kept in balance (`equipoise ls modulations`)"
    )
    modulation_params: dict[str, Any] = Field(
        default_factory=dict, description="parameters of the modulation"
    )


class ModalTuneParams(ModalityDropoutParams):
    """Parameters of ModalTune; sizes of the adapter as published."""

    components: ClassVar[Mapping[str, str]] = {
        "slide_encoder": "slide_encoders",
        "clinical": "modal_tokens",
        "rna": "modal_tokens",
        "cnv": "modal_tokens",
        "mutation": "modal_tokens",
    }

    slide_encoder: str = Field("random_transformer", description="frozen slide encoder with stages")
    slide_encoder_params: dict[str, Any] = Field(default_factory=dict, description="its parameters")
    clinical: str = Field("projection", description="what makes tokens of the covariates")
    clinical_params: dict[str, Any] = Field(default_factory=dict, description="its parameters")
    rna: str = Field("self_normalising", description="what makes tokens of RNA")
    rna_params: dict[str, Any] = Field(default_factory=dict, description="its parameters")
    cnv: str = Field("self_normalising", description="what makes tokens of copy numbers")
    cnv_params: dict[str, Any] = Field(default_factory=dict, description="its parameters")
    mutation: str = Field("self_normalising", description="what makes tokens of mutations")
    mutation_params: dict[str, Any] = Field(default_factory=dict, description="its parameters")
    mode: Literal["joint", "full", "ladder"] = Field(
        "joint",
        description="joint: all tasks in one pass; full: a pass per task, as published; ladder: one pass that reads "
        "the slide encoder without changing its tiles, so that no gradient goes through it",
        json_schema_extra={"search": {"choice": ["joint", "ladder"]}},
    )
    blocks: int = Field(3, ge=1, description="interaction blocks, each around a part of the stages")
    skipped: int = Field(
        0,
        ge=0,
        description="stages of the slide encoder before the first block: no gradient goes through them",
    )
    cache: bool = Field(
        False,
        description="compute once, in `equipoise extract`, what the slide encoder gives before anything is injected, "
        "and read it from the feature store: all of it with mode: ladder, the skipped stages otherwise",
    )
    prototypes: int | None = Field(
        None,
        ge=1,
        description="with mode: ladder and cache: tokens look at that many means of similar tiles of a case, each "
        "with the weight of its tiles; all tiles if not given",
    )
    bottleneck: int = Field(
        192, ge=1, description="width inside attentions", json_schema_extra={"search": {"choice": [96, 192]}}
    )
    attention_heads: int = Field(12, ge=1, description="heads of attentions; must divide bottleneck")
    dim: int = Field(192, ge=1, description="width of tokens in a study without slides, else the encoder's")
    embedding: int = Field(256, ge=1, description="width of what the heads read")
    drop_path: float = Field(0.0, ge=0, lt=1, description="of the perceptrons, per case")
    missing: Literal["token", "mask"] = Field(
        "token",
        description="in place of tables that a case lacks: a learned token, or nothing that others may look at",
    )
    modality_dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="how often a modality of a training case is hidden; one always stays",
        json_schema_extra={"search": {"uniform": [0.0, 0.5]}},
    )

    reference_residual: bool = Field(
        False, description="add residuals twice, as the published code does by mistake"
    )

    @property
    def shares_representation(self) -> bool:
        """Not where every task has a pass of its own."""
        return self.mode != "full"

    @model_validator(mode="after")
    def _heads_divide_bottleneck(self) -> "ModalTuneParams":
        if self.bottleneck % self.attention_heads:
            raise ValueError(
                f"bottleneck {self.bottleneck} is not divisible by attention_heads {self.attention_heads}; "
                f"for example bottleneck: {self.attention_heads * 16}"
            )
        return self

    @model_validator(mode="after")
    def _something_to_cache(self) -> "ModalTuneParams":
        if self.prototypes is not None and not (self.cache and self.mode == "ladder"):
            raise ValueError("prototypes are made once and stored: write mode: ladder and cache: true")
        if self.cache and self.mode != "ladder" and not self.skipped:
            raise ValueError(
                f"mode {self.mode} injects before the first stage, so that nothing stays the same: write mode: ladder, "
                "or skipped: the number of stages to run before"
            )
        return self

    @property
    def hidden_states(self) -> HiddenStates | None:
        """Those of the frozen encoder that no injection changes, with ``cache``."""
        reads = self.modalities is None or "wsi" in self.modalities
        if not self.cache or not reads:
            return None
        return HiddenStates(
            self.slide_encoder,
            self.slide_encoder_params,
            blocks=self.blocks,
            skipped=self.skipped,
            injected=self.mode != "ladder",
            prototypes=self.prototypes,
        )


ENTRIES = {
    "joint": (
        "transformer over all tiles with one learned token per task (2024)",
        JointParams,
        "equipoise.models.joint.model:JointTransformer",
    ),
    "mean_pool": (
        "mean over tiles, a small network, linear heads: the simplest baseline",
        MeanPoolParams,
        "equipoise.models.mil.mean_pool:MeanPool",
    ),
    "abmil": (
        "gated attention pooling (Ilse et al. 2018), shared by the tasks or one per task",
        AbmilParams,
        "equipoise.models.mil.abmil:Abmil",
    ),
    "transmil": (
        "Nyström attention with position encoding on a grid (Shao et al. 2021)",
        TransmilParams,
        "equipoise.models.mil.transmil:TransMIL",
    ),
    "clinical": (
        "linear in the covariates of the clinical table",
        ClinicalParams,
        "equipoise.models.tables.model:Clinical",
    ),
    "omics": (
        "linear, self-normalising (Klambauer et al. 2017) or small ReLU network over RNA, CNV and mutation tables",
        OmicsParams,
        "equipoise.models.tables.model:Omics",
    ),
    "elastic_net": (
        "linear in tables and the mean tile, fitted exactly with ridge or L1 penalties (Zou and Hastie 2005)",
        ElasticNetParams,
        "equipoise.models.probes.elastic_net:elastic_net",
    ),
    "concat": (
        "slides and tables, one encoder each, concatenated; learned tokens for what is missing",
        ConcatParams,
        "equipoise.models.tables.concat:Concat",
    ),
    "gptomic": (
        "branches of slides and omics whose training is kept in balance (Path-GPTOmic 2024)",
        GptomicParams,
        "equipoise.models.gptomic.model:Gptomic",
    ),
    "modaltune": (
        "modal tokens that talk to a frozen slide encoder between its stages (ModalTune 2025)",
        ModalTuneParams,
        "equipoise.models.modaltune.model:ModalTune",
    ),
}
