"""Strategies and aggregation rules a study can name, without importing torch."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from equipoise.platform.federation.rules.params import (
    BalancedParams,
    GeometricMedianParams,
    KrumParams,
    MeanParams,
    MultiKrumParams,
    NormClipParams,
    RuleParams,
    TrimmedMeanParams,
)


class NoParams(BaseModel):
    """An entry without parameters."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ServerParams(NoParams):
    """Parameters of strategies whose server takes a step."""

    server_lr: float = Field(
        default=1.0,
        gt=0,
        description="how far the server goes along the combined update",
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

    variant: Literal["paper", "flamby"] = Field(
        default="paper",
        description="flamby: as FLamby computes it, with controls at the clients only and server_lr 1",
    )

    @model_validator(mode="after")
    def _whole_step(self) -> Self:
        if self.variant == "flamby" and self.server_lr != 1:
            raise ValueError("the flamby variant is defined for server_lr: 1")
        return self


class AdaptiveParams(NoParams):
    """Parameters of FedAdam, FedYogi and FedAdagrad (Reddi et al. 2021)."""

    server_lr: float = Field(default=0.1, gt=0, json_schema_extra={"search": {"loguniform": [1e-3, 1.0]}})
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.999, ge=0, lt=1, description="not used by FedAdagrad")
    tau: float = Field(
        default=1e-8,
        gt=0,
        description="floor of the denominator",
        json_schema_extra={"search": {"loguniform": [1e-8, 1e-2]}},
    )


class FedDynParams(NoParams):
    """Parameters of FedDyn."""

    alpha: float = Field(default=0.1, gt=0, json_schema_extra={"search": {"loguniform": [1e-3, 1.0]}})


class MoonParams(ServerParams):
    """Parameters of MOON."""

    mu: float = Field(
        default=1.0,
        ge=0,
        description="weight of the contrastive loss",
        json_schema_extra={"search": {"loguniform": [1e-2, 10.0]}},
    )
    temperature: float = Field(default=0.5, gt=0)


class CyclicParams(NoParams):
    """Parameters of cyclic transfer."""

    order: Literal["shuffled", "fixed"] = Field(
        default="shuffled", description="sequence of clients: drawn for every round, or by name"
    )


class FedPerParams(ServerParams):
    """Parameters of FedPer."""

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
        description="how strongly personal models are drawn to the global one",
        json_schema_extra={"search": {"loguniform": [1e-3, 1.0]}},
    )


class FineTuneParams(ServerParams):
    """Parameters of fine-tuning."""

    steps: int = Field(default=3, ge=1, description="local steps of every client after the last round")


class FedBuffParams(ServerParams):
    """Parameters of FedBuff."""

    buffer: int = Field(default=4, ge=1, description="updates per step of the server")
    concurrency: int | None = Field(
        default=None, ge=1, description="clients at work at a time; all if not given"
    )
    staleness: float = Field(
        default=0.5,
        ge=0,
        description="an update that is s steps old counts (1 + s) to the power of minus this",
    )


_STRATEGIES = "equipoise.platform.federation.strategies"

STRATEGIES: dict[str, tuple[str, type[BaseModel], str]] = {
    "fedavg": (
        "average of the clients' weights (McMahan et al. 2017)",
        ServerParams,
        f"{_STRATEGIES}.fedavg:FedAvg",
    ),
    "fedavgm": ("momentum at the server (Hsu et al. 2019)", FedAvgMParams, f"{_STRATEGIES}.fedavgm:FedAvgM"),
    "fedprox": (
        "clients are held near the broadcast weights (Li et al. 2020)",
        FedProxParams,
        f"{_STRATEGIES}.fedprox:FedProx",
    ),
    "scaffold": (
        "control variates against client drift (Karimireddy et al. 2020)",
        ScaffoldParams,
        f"{_STRATEGIES}.scaffold:Scaffold",
    ),
    "fedadam": ("Adam at the server (Reddi et al. 2021)", AdaptiveParams, f"{_STRATEGIES}.adaptive:FedAdam"),
    "fedyogi": ("Yogi at the server (Reddi et al. 2021)", AdaptiveParams, f"{_STRATEGIES}.adaptive:FedYogi"),
    "fedadagrad": (
        "Adagrad at the server (Reddi et al. 2021)",
        AdaptiveParams,
        f"{_STRATEGIES}.adaptive:FedAdagrad",
    ),
    "fednova": (
        "updates per local step, for unequal numbers of steps (Wang et al. 2020)",
        ServerParams,
        f"{_STRATEGIES}.fednova:FedNova",
    ),
    "feddyn": (
        "dynamic regularisation towards the common optimum (Acar et al. 2021)",
        FedDynParams,
        f"{_STRATEGIES}.feddyn:FedDyn",
    ),
    "moon": (
        "contrast of representations with the global and the last local model (Li et al. 2021)",
        MoonParams,
        f"{_STRATEGIES}.moon:Moon",
    ),
    "cyclic": (
        "one model handed from client to client (Chang et al. 2018)",
        CyclicParams,
        f"{_STRATEGIES}.cyclic:Cyclic",
    ),
    "fedbn": (
        "normalisation layers stay at the client (Li et al. 2021)",
        ServerParams,
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
        f"{_STRATEGIES}.ditto:Ditto",
    ),
    "finetune": (
        "FedAvg, then a few local steps at every client",
        FineTuneParams,
        f"{_STRATEGIES}.finetune:FineTune",
    ),
    "fedbuff": (
        "asynchronous: the server steps whenever so many updates have come (Nguyen et al. 2022)",
        FedBuffParams,
        f"{_STRATEGIES}.fedbuff:FedBuff",
    ),
}

_RULES = "equipoise.platform.federation.rules"

SITE_RULES: dict[str, tuple[str, type[BaseModel], str]] = {
    "mean": ("weighted mean; one site can bend it (McMahan 2017)", MeanParams, f"{_RULES}.mean:Mean"),
    "norm_clip": (
        "mean of updates no longer than the median one (Sun 2019)",
        NormClipParams,
        f"{_RULES}.norm_clip:NormClip",
    ),
    "median": ("median of every coordinate (Yin 2018)", RuleParams, f"{_RULES}.median:Median"),
    "trimmed_mean": (
        "mean of every coordinate without the extremes (Yin 2018)",
        TrimmedMeanParams,
        f"{_RULES}.trimmed_mean:TrimmedMean",
    ),
    "geometric_median": (
        "point nearest to all updates (Pillutla 2022)",
        GeometricMedianParams,
        f"{_RULES}.geometric_median:GeometricMedian",
    ),
    "krum": ("the update with the nearest neighbours (Blanchard 2017)", KrumParams, f"{_RULES}.krum:Krum"),
    "multi_krum": (
        "mean of those with the nearest neighbours (Blanchard 2017)",
        MultiKrumParams,
        f"{_RULES}.krum:MultiKrum",
    ),
    "balanced": (
        "a balancing method over sites: no site's objective is sacrificed",
        BalancedParams,
        f"{_RULES}.balanced:Balanced",
    ),
}
