"""Strategies and server aggregations that a study can name: their parameters, search spaces and what they can and need.

Light: pydantic only. Attributes without a field (``ClassVar``) say what an entry can and needs; engine, study, privacy
and search ask them through :meth:`equipoise.platform.registry.Entry.attribute`.
"""

from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, Field, field_validator, model_validator

from equipoise.datasets.params import StrictParams
from equipoise.platform.errors import StudyError
from equipoise.platform.registry import get


class StrategyParams(StrictParams):
    """Base of the parameters of strategies; the class attributes say what a strategy can and needs."""

    #: The server steps without waiting for a round.
    asynchronous: ClassVar[bool] = False
    #: One model passes from client to client; nothing is aggregated.
    sequential: ClassVar[bool] = False
    #: Clients must train with plain SGD (``local.optimizer: sgd``).
    needs_sgd: ClassVar[bool] = False
    #: Whether the strategy is defined for SGD with momentum.
    takes_momentum: ClassVar[bool] = True
    #: Clients send a second vector that reveals as much as the update, and is neither masked nor noised.
    sends_second_vector: ClassVar[bool] = False
    #: The server scales the update of each client by itself, before they are summed.
    rescales_updates: ClassVar[bool] = False
    #: The local loss has a term that compares features of single patients.
    compares_patients: ClassVar[bool] = False
    #: Why a search tries the strategy only where the study names it; empty: it is tried.
    searched_if_named: ClassVar[str] = ""


class ServerParams(StrategyParams):
    """Parameters of strategies with a step size at the server."""

    server_lr: float = Field(
        default=1.0,
        gt=0,
        description="step size of the server along the aggregated update",
        json_schema_extra={"search": {"loguniform": [1e-2, 2.0]}},
    )


class FedAvgMParams(ServerParams):
    """Parameters of FedAvgM."""

    momentum: float = Field(
        default=0.9, ge=0, lt=1, json_schema_extra={"search": {"choice": [0.0, 0.7, 0.9, 0.97]}}
    )


class FedProxParams(ServerParams):
    """Parameters of FedProx."""

    mu: float = Field(
        default=0.1,
        ge=0,
        description="weight of half the squared distance to the broadcast weights",
        json_schema_extra={"search": {"loguniform": [1e-3, 1.0]}},
    )


class ScaffoldParams(ServerParams):
    """Parameters of SCAFFOLD."""

    needs_sgd: ClassVar[bool] = True
    takes_momentum: ClassVar[bool] = False
    sends_second_vector: ClassVar[bool] = True

    variant: Literal["paper", "flamby"] = Field(
        default="paper",
        description="flamby: as FLamby computes it, with control variates at the clients only and server_lr 1",
    )

    @model_validator(mode="after")
    def _whole_step(self) -> Self:
        if self.variant == "flamby" and self.server_lr != 1:
            raise ValueError("the flamby variant is defined for server_lr: 1")
        return self


class AdaptiveParams(StrategyParams):
    """Parameters of FedAdam, FedYogi and FedAdagrad; defaults of Reddi et al. 2021."""

    server_lr: float = Field(default=0.1, gt=0, json_schema_extra={"search": {"loguniform": [1e-3, 1.0]}})
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.99, ge=0, lt=1, description="not used by FedAdagrad")
    tau: float = Field(
        default=1e-3,
        gt=0,
        description="floor of the denominator",
        json_schema_extra={"search": {"loguniform": [1e-8, 1e-2]}},
    )
    initial_second_moment: float | None = Field(
        default=None, ge=0, description="v before the first round; tau squared, as in the paper, if not given"
    )


class FedNovaParams(ServerParams):
    """Parameters of FedNova."""

    needs_sgd: ClassVar[bool] = True
    rescales_updates: ClassVar[bool] = True


class FedDynParams(StrategyParams):
    """Parameters of FedDyn."""

    alpha: float = Field(default=0.1, gt=0, json_schema_extra={"search": {"loguniform": [1e-3, 1.0]}})


class MoonParams(ServerParams):
    """Parameters of MOON."""

    compares_patients: ClassVar[bool] = True
    searched_if_named: ClassVar[str] = "needs a model whose heads read what other parameters compute"

    mu: float = Field(
        default=1.0,
        ge=0,
        description="weight of the contrastive loss",
        json_schema_extra={"search": {"loguniform": [1e-2, 10.0]}},
    )
    temperature: float = Field(default=0.5, gt=0)


class CyclicParams(StrategyParams):
    """Parameters of cyclic transfer."""

    sequential: ClassVar[bool] = True

    order: Literal["shuffled", "fixed"] = Field(
        default="shuffled", description="visiting order of the clients: drawn for every round, or by name"
    )


class FedBNParams(ServerParams):
    """Parameters of FedBN."""

    searched_if_named: ClassVar[str] = "needs a model with normalisation layers"


class FedPerParams(ServerParams):
    """Parameters of FedPer."""

    searched_if_named: ClassVar[str] = "needs a model with parameters that tasks share"

    personal: tuple[str, ...] = Field(
        default=("task",),
        min_length=1,
        description="what stays at the client: groups (task, task:OS, modality:rna), kinds (norm), re:PATTERN of names",
    )


class DittoParams(ServerParams):
    """Parameters of Ditto."""

    lam: float = Field(
        default=0.1,
        ge=0,
        description="strength of the pull of personal models towards the global one",
        json_schema_extra={"search": {"loguniform": [1e-3, 1.0]}},
    )


class FineTuneParams(ServerParams):
    """Parameters of fine-tuning."""

    steps: int = Field(default=3, ge=1, description="local steps of every client after the last round")


class FedBuffParams(ServerParams):
    """Parameters of FedBuff."""

    asynchronous: ClassVar[bool] = True
    searched_if_named: ClassVar[str] = "needs at least as many clients as its buffer holds updates"

    buffer: int = Field(default=4, ge=1, description="updates per step of the server")
    concurrency: int | None = Field(
        default=None, ge=1, description="clients training at the same time; all if not given"
    )
    staleness: float = Field(
        default=0.5,
        ge=0,
        description="an update that is s server steps old is weighted by (1 + s) to the power of minus this",
    )


_STRATEGIES = "equipoise.platform.federation.strategies"

STRATEGIES: dict[str, tuple[str, type[BaseModel], str]] = {
    "fedavg": (
        "average of the clients' weights (McMahan et al. 2017)",
        ServerParams,
        f"{_STRATEGIES}.averaging:FedAvg",
    ),
    "fedavgm": (
        "momentum at the server (Hsu et al. 2019)",
        FedAvgMParams,
        f"{_STRATEGIES}.averaging:FedAvgM",
    ),
    "fedprox": (
        "clients stay near the broadcast weights (Li et al. 2020)",
        FedProxParams,
        f"{_STRATEGIES}.local_objectives:FedProx",
    ),
    "scaffold": (
        "control variates against client drift (Karimireddy et al. 2020)",
        ScaffoldParams,
        f"{_STRATEGIES}.local_objectives:Scaffold",
    ),
    "fedadam": ("Adam at the server (Reddi et al. 2021)", AdaptiveParams, f"{_STRATEGIES}.averaging:FedAdam"),
    "fedyogi": ("Yogi at the server (Reddi et al. 2021)", AdaptiveParams, f"{_STRATEGIES}.averaging:FedYogi"),
    "fedadagrad": (
        "Adagrad at the server (Reddi et al. 2021)",
        AdaptiveParams,
        f"{_STRATEGIES}.averaging:FedAdagrad",
    ),
    "fednova": (
        "updates per local step, for unequal numbers of steps (Wang et al. 2020)",
        FedNovaParams,
        f"{_STRATEGIES}.averaging:FedNova",
    ),
    "feddyn": (
        "dynamic regularisation towards the common optimum (Acar et al. 2021)",
        FedDynParams,
        f"{_STRATEGIES}.local_objectives:FedDyn",
    ),
    "moon": (
        "contrast of representations with the global and the last local model (Li et al. 2021)",
        MoonParams,
        f"{_STRATEGIES}.local_objectives:Moon",
    ),
    "cyclic": (
        "one model passed from client to client (Chang et al. 2018)",
        CyclicParams,
        f"{_STRATEGIES}.averaging:Cyclic",
    ),
    "fedbn": (
        "normalisation layers stay at the client (Li et al. 2021)",
        FedBNParams,
        f"{_STRATEGIES}.personal:FedBN",
    ),
    "fedper": (
        "heads stay at the client (Arivazhagan et al. 2019)",
        FedPerParams,
        f"{_STRATEGIES}.personal:FedPer",
    ),
    "ditto": (
        "a personal model per client beside the global one (Li et al. 2021)",
        DittoParams,
        f"{_STRATEGIES}.personal:Ditto",
    ),
    "finetune": (
        "FedAvg, then a few local steps at every client",
        FineTuneParams,
        f"{_STRATEGIES}.personal:FineTune",
    ),
    "fedbuff": (
        "asynchronous: the server steps whenever its buffer of updates is full (Nguyen et al. 2022)",
        FedBuffParams,
        f"{_STRATEGIES}.averaging:FedBuff",
    ),
}


class AggregationParams(StrictParams):
    """Base of the parameters of server aggregations; the class attributes say what one can and needs."""

    #: Only the weighted sum of the updates is needed, so that they may be masked.
    linear: ClassVar[bool] = False


class MeanParams(AggregationParams):
    """Parameters of the weighted mean."""

    linear: ClassVar[bool] = True

    max_share: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="largest share of one site in a sum; the others keep their proportions",
    )


class NormClipParams(MeanParams):
    """Parameters of norm clipping."""

    linear: ClassVar[bool] = False

    factor: float = Field(
        default=1.0,
        gt=0,
        description="updates longer than this many median norms are scaled down to that length",
        json_schema_extra={"search": {"choice": [1.0, 1.5, 2.0]}},
    )


class TrimmedMeanParams(AggregationParams):
    """Parameters of the trimmed mean."""

    trim: float = Field(
        default=0.2,
        ge=0,
        lt=0.5,
        description="share of sites left out at each end of every coordinate; rounded down",
        json_schema_extra={"search": {"choice": [0.1, 0.2, 0.3]}},
    )


class GeometricMedianParams(AggregationParams):
    """Parameters of the geometric median."""

    iterations: int = Field(default=100, ge=1, description="Weiszfeld steps at most")
    smoothing: float = Field(
        default=1e-6,
        gt=0,
        description="smallest distance, in units of the median norm, so that no division by zero occurs",
    )


class KrumParams(AggregationParams):
    """Parameters of Krum."""

    malicious: int = Field(
        default=1, ge=0, description="sites f that may be malicious; 2 f + 3 sites are needed"
    )


class MultiKrumParams(KrumParams):
    """Parameters of multi-Krum."""

    keep: int | None = Field(
        default=None, ge=1, description="number of sites that are averaged; all but f if not given"
    )


class BalancedParams(AggregationParams):
    """Parameters of balanced aggregation."""

    aggregator: str = Field(
        default="upgrad",
        description="gradient aggregator that works on products of gradients: upgrad, mgda, cagrad, pcgrad, …",
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
    def _works_on_products(cls, name: str) -> str:
        try:
            entry = get("aggregators", name)
        except StudyError as unknown:
            raise ValueError(str(unknown)) from unknown
        kind, needs = entry.attribute("kind"), entry.attribute("needs")
        if kind == "none":
            raise ValueError(f"aggregator {name} cannot balance sites: it is the plain sum, as the mean is")
        if kind == "jacobian":
            raise ValueError(
                f"aggregator {name} cannot balance sites: it works on gradients coordinate by coordinate, not on their "
                "products"
            )
        if needs:
            raise ValueError(
                f"aggregator {name} cannot balance sites: it needs more than their updates of a round"
            )
        return name


_AGGREGATIONS = "equipoise.platform.federation.aggregation"

SERVER_AGGREGATIONS: dict[str, tuple[str, type[BaseModel], str]] = {
    "mean": (
        "weighted mean; one site can move it anywhere (McMahan 2017)",
        MeanParams,
        f"{_AGGREGATIONS}.mean:Mean",
    ),
    "norm_clip": (
        "mean of updates no longer than the median one (Sun 2019)",
        NormClipParams,
        f"{_AGGREGATIONS}.mean:NormClip",
    ),
    "median": (
        "median of every coordinate (Yin 2018)",
        AggregationParams,
        f"{_AGGREGATIONS}.robust:Median",
    ),
    "trimmed_mean": (
        "mean of every coordinate without the extremes (Yin 2018)",
        TrimmedMeanParams,
        f"{_AGGREGATIONS}.robust:TrimmedMean",
    ),
    "geometric_median": (
        "point nearest to all updates (Pillutla 2022)",
        GeometricMedianParams,
        f"{_AGGREGATIONS}.robust:GeometricMedian",
    ),
    "krum": (
        "the update with the nearest neighbours (Blanchard 2017)",
        KrumParams,
        f"{_AGGREGATIONS}.robust:Krum",
    ),
    "multi_krum": (
        "mean of the updates with the nearest neighbours (Blanchard 2017)",
        MultiKrumParams,
        f"{_AGGREGATIONS}.robust:MultiKrum",
    ),
    "balanced": (
        "a task-balancing method applied to sites: no site's objective gets worse",
        BalancedParams,
        f"{_AGGREGATIONS}.balanced:Balanced",
    ),
}
