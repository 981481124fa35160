"""The ``federation:`` section of a study. Light: pydantic only."""

import math
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from equipoise.datasets.params import StrictParams
from equipoise.platform.federation.privacy.compatibility import refusals
from equipoise.platform.federation.privacy.params import PrivacyParams
from equipoise.platform.registry import Entry, get
from equipoise.platform.training.params import TrainingParams, entry_params

#: Sections of the study whose settings a candidate may change.
OF_RECIPE = ("tables", "training")
#: Rounds of a federation outside a study.
DEFAULT_ROUNDS = 20
#: Settings that do not change the result of a federation of given clients and patients.
FREE = (
    "backend",
    "workers",
    "worker_cpus",
    "worker_gpus",
    "timeout_s",
    "checkpoints",
    "sites",
    "evaluation",
)


class ClientScheme(StrictParams):
    """Which patients belong to which client."""

    scheme: str = "cohort"
    """``cohort``; ``institution`` and ``region`` of the TCGA tissue source site through ``table``; ``tss``, the code
    itself; ``site``, the cohorts' ``site:``; controls: ``iid`` and ``dirichlet`` (skewed labels); others:
    ``equipoise ls client_schemes``."""
    table: str | None = None
    """Table of tissue source sites, relative to the study file: ``TSS Code`` and ``Source Site``, or for regions
    ``column``."""
    column: str = "Region"
    """Column of ``table`` that names the region."""
    min_patients: int = Field(default=20, ge=1)
    """Sites with fewer development patients are merged."""
    merge: Literal["other", "region"] = "other"
    """How small sites are merged: all together, or with the others of their region (``table`` with ``column``)."""
    guard: Literal["patients", "institutions"] = "patients"
    """What two clients, or a client and an external cohort, may not share. They never share patients;
    ``institutions`` forbids shared hospitals as well."""
    clients: int = Field(default=6, ge=2, le=10_000)
    """Number of clients (``iid``, ``dirichlet``)."""
    alpha: float = Field(default=0.5, gt=0)
    """Concentration of ``dirichlet``: small is skewed, large is ``iid``."""
    params: dict[str, Any] | None = None
    """Parameters of a scheme of another package."""

    @model_validator(mode="before")
    @classmethod
    def _in_short(cls, data: Any) -> Any:
        return {"scheme": data} if isinstance(data, str) else data

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        entry_params("client_schemes", self.scheme, self.params or {})
        by_region = self.merge == "region"
        if self.table is None and (by_region or self.says("needs_table")):
            what = "merge: region" if by_region else self.scheme
            raise ValueError(
                f"{what} needs a table of tissue source sites: write table: tissueSourceSite.tsv"
            )
        if by_region and not self.says("merges_by_region"):
            raise ValueError(f"scheme {self.scheme!r} has no small sites to merge by region")
        return self

    def says(self, attribute: str) -> Any:
        """What the entry of the scheme says of itself."""
        return get("client_schemes", self.scheme).attribute(attribute)


Plan = Literal["folds", "leave_one_site_out", "leave_one_cohort_out"]


class PlanParams(StrictParams):
    """What is trained and on which patients it is evaluated, always beside pooled, local and ensemble training."""

    plans: list[Plan] = Field(default=["folds"], min_length=1)
    """``folds``: those of ``splits``, every client with training, inner validation and test patients;
    ``leave_one_site_out``: each client is the test part once; ``leave_one_cohort_out``: each development cohort is.
    External cohorts are predicted in the plan ``folds``."""
    folds: int | None = Field(default=None, ge=1)
    """Use only the first folds of each plan, up to this number; all of them if not given."""
    linear_baselines: list[Literal["ridge", "elastic_net"]] = Field(default_factory=list)
    """Penalised linear models on the same tables, tiles and folds, fitted exactly with penalties from inner
    cross-validation: each on all patients together (``pooled ridge``) and at every site alone (``local ridge``)."""
    clean_costs: bool = True
    """Show what each server aggregation costs without an attack; needs one further round of local training."""

    @model_validator(mode="after")
    def _once(self) -> Self:
        if len(set(self.plans)) < len(self.plans):
            raise ValueError("evaluation.plans names a plan twice")
        return self


class LocalParams(StrictParams):
    """What a client does in a round."""

    epochs: int | None = Field(default=None, ge=1)
    """Passes over the client's patients in a round; 1 if ``steps`` is not given either."""
    steps: int | None = Field(default=None, ge=1)
    """Optimiser steps in a round, in place of ``epochs``."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """Its state starts afresh in every round, so that nothing of it has to be kept or averaged."""
    lr: float | None = Field(default=None, gt=0, json_schema_extra={"search": {"loguniform": [1e-5, 1e-1]}})
    """Learning rate; that of ``training`` if not given."""
    schedule: Literal["constant", "cosine"] | None = None
    """Learning rate over the rounds: constant, or half a cosine down to 0; that of ``training`` if not given, and
    constant outside a study."""
    momentum: float = Field(default=0.0, ge=0, lt=1)
    """Of ``sgd``."""
    weight_decay: float | None = Field(default=None, ge=0)
    """Decoupled for ``adamw``, added to the gradient for ``sgd``. If not given that of ``training`` with ``adamw``, and
    none with ``sgd`` or outside a study."""
    batch: int | Literal["auto", "full"] = "auto"
    """Patients per step. ``full``: all of the client, so that Cox's risk sets are those of the site. ``auto``: that
    of ``training``, and ``full`` for Cox's model without tiles."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("a round is measured in epochs or in steps; write one of them")
        if self.batch not in ("auto", "full") and self.batch < 1:  # type: ignore[operator]
            raise ValueError(f"batch is a number of patients of 1 or more, auto or full, not {self.batch}")
        if self.momentum and self.optimizer != "sgd":
            raise ValueError("momentum is a parameter of optimizer: sgd")
        return self

    @property
    def length(self) -> tuple[int, int | None]:
        """Epochs, and steps or None."""
        return (1 if self.epochs is None else self.epochs), self.steps


class Participation(StrictParams):
    """Which clients take part in a round; a function of (seed, round)."""

    scheme: Literal["all", "uniform", "size", "round_robin", "poisson"] = "all"
    """``uniform`` and ``size`` draw without replacement (``size``: in proportion to patients), ``round_robin`` takes
    turns, ``poisson`` draws every client independently."""
    fraction: float = Field(default=1.0, gt=0, le=1)
    """Share of the clients in a round; for ``poisson`` the probability of each."""
    min_clients: int = Field(default=1, ge=1)
    """A round with fewer accepted updates changes nothing; three such rounds in a row are an error. Not with privacy of
    clients, where every round takes its noisy step."""


class ClockParams(StrictParams):
    """Virtual time: how long clients take, which are late, which fail. No real clock is read."""

    speed_sd: float = Field(default=0.0, ge=0)
    """Standard deviation of the log of a client's slowness, drawn once per client."""
    jitter_sd: float = Field(default=0.0, ge=0)
    """The same, drawn for every round."""
    deadline: float | None = Field(default=None, gt=0)
    """A client that takes longer than this many times the median client is late and left out of the round."""
    failures: float = Field(default=0.0, ge=0, lt=1)
    """Probability with which a client drops out of a round, to simulate failures."""


class UpdateValidatorParams(StrictParams):
    """Which well-formed updates the server rejects."""

    norm_factor: float | None = Field(
        10.0,
        gt=1,
        description="updates longer than this many median norms of the last rounds are rejected; no bound if null",
    )
    max_norm: float | None = Field(
        None, gt=0, description="longest update accepted in any round, including the first"
    )
    window: int = Field(5, ge=1, description="number of rounds whose norms are remembered")


class FederationParams(StrictParams):
    """How sites train together."""

    sites: ClientScheme = ClientScheme()
    """Who the clients are; ``sites: cohort`` in short."""
    evaluation: PlanParams = PlanParams()
    """What is trained, and on which patients it is evaluated."""
    rounds: int | None = Field(default=None, ge=1)
    """Rounds at most; for an asynchronous strategy, steps of the server. If not given as many as make the passes of
    ``training.epochs``, so that federated and pooled training have the same budget; 20 outside a study."""
    keep: Literal["best", "last"] | None = None
    """Which weights are used in the end. ``best``: those of the round with the best inner validation, from sums that
    the sites send, as other trainings keep their best epoch; ``last``: those of the last round. If not given ``best``,
    but ``last`` under differential privacy, where validation sums would leave without noise, and for strategies that
    keep parameters at the clients."""
    patience: int | None = Field(default=None, ge=1)
    """Rounds without improvement after which a federation that keeps the best round ends; if not given as many as make
    the passes of ``training.patience``."""
    strategy: str = "fedavg"
    """What clients and server do beyond averaging: ``equipoise ls strategies``."""
    strategy_params: dict[str, Any] = Field(default_factory=dict)
    """Parameters of the strategy."""
    candidates: list[dict[str, Any]] = Field(default_factory=list)
    """Settings to choose among inside every fold, by the sums of inner validation that the sites send: each item
    replaces keys of this section (``strategy``, ``local``, …) and, under ``tables`` and ``training``, of those sections
    of the study. Pooled and local training of the fold use the ``tables`` and ``training`` that are chosen."""
    server_aggregation: str = "mean"
    """How updates are combined: ``equipoise ls server_aggregations``."""
    server_aggregation_params: dict[str, Any] = Field(default_factory=dict)
    """Parameters of the server aggregation."""
    weights: Literal["patients", "uniform"] = "patients"
    """``patients``: every label counts alike (every event, for Cox's model), as in pooled training; ``uniform``: every
    client with labels of a task."""
    local: LocalParams = LocalParams()
    """What a client does in a round."""
    participation: Participation = Participation()
    """Which clients take part."""
    clock: ClockParams = ClockParams()
    """Virtual time, late and failing clients."""
    validation: UpdateValidatorParams = Field(
        default_factory=lambda: UpdateValidatorParams.model_validate({})
    )
    """Which updates are rejected."""
    privacy: PrivacyParams = Field(default_factory=lambda: PrivacyParams.model_validate({}))
    """Differential privacy of clients or patients, masked sums."""
    exclude_after: int = Field(default=3, ge=1)
    """A client that failed or was quarantined in this many rounds is excluded from all later ones."""
    min_n: int = Field(default=5, ge=1)
    """Scalars computed from fewer patients than this do not leave a client."""
    fixed_point_bits: int = Field(default=32, ge=8, le=48)
    """Fractional bits of the fixed-point numbers in which secure aggregation sums updates."""
    backend: Literal["auto", "inline", "ray"] = "auto"
    """``inline`` runs the clients in this process one after the other, ``ray`` in workers; the results are identical.
    ``auto``: Ray where a session is open and the rounds are long enough to profit."""
    workers: int | None = Field(default=None, ge=1)
    """Workers that run the clients; if not given, as many as there are CPUs (GPUs), and no more than clients."""
    worker_cpus: float = Field(default=1.0, gt=0)
    """CPUs of a worker; may be a fraction."""
    worker_gpus: float = Field(default=0.0, ge=0)
    """GPUs of a worker; may be a fraction."""
    timeout_s: float | None = Field(default=None, gt=0)
    """Seconds without any reply after which the busy workers are given up; no limit if not given."""
    checkpoints: int = Field(default=2, ge=1)
    """Number of round checkpoints kept on disk."""

    def variant(self, candidate: Mapping[str, Any]) -> Self:
        """The section with the settings of a candidate."""
        changes = {key: value for key, value in candidate.items() if key not in OF_RECIPE}
        return type(self).model_validate(
            merged(self.model_dump(mode="json", exclude={"candidates"}), changes)
        )

    def in_training(self, training: TrainingParams | None = None) -> Self:
        """The section with a value for everything that it leaves to ``training``, or to defaults outside a study.

        A pass over the patients of a client counts as an epoch. Rounds measured in steps count as one pass.
        """
        local, (passes, _) = self.local, self.local.length
        if training is None:
            outside: dict[str, Any] = {"schedule": local.schedule or "constant"}
            outside["weight_decay"] = local.weight_decay or 0.0
            update: dict[str, Any] = {"rounds": self.rounds or DEFAULT_ROUNDS, "keep": self.keep or "last"}
            return self.model_copy(update=update | {"local": local.model_copy(update=outside)})
        decay = training.weight_decay if local.optimizer == "adamw" else 0.0
        inside: dict[str, Any] = {
            "lr": local.lr or training.lr,
            "schedule": local.schedule or training.schedule,
        }
        inside["weight_decay"] = decay if local.weight_decay is None else local.weight_decay
        update = {
            "local": local.model_copy(update=inside),
            "rounds": self.rounds or math.ceil(training.epochs / passes),
            "keep": self.keep or ("last" if self.privacy.differential else "best"),
            "patience": self.patience or math.ceil(training.patience / passes),
        }
        return self.model_copy(update=update)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        entry_params("strategies", self.strategy, self.strategy_params, "strategy")
        entry_params(
            "server_aggregations",
            self.server_aggregation,
            self.server_aggregation_params,
            "server_aggregation",
        )
        strategy = get("strategies", self.strategy)
        if self.local.optimizer != "sgd" and strategy.attribute("needs_sgd"):
            raise ValueError(f"{strategy.name} is defined for SGD; write local: {{optimizer: sgd}}")
        if self.local.momentum and not strategy.attribute("takes_momentum"):
            raise ValueError(f"{strategy.name} is defined for SGD without momentum")
        self._private(strategy)
        for candidate in self.candidates:
            if fixed := sorted({*candidate} & {"sites", "evaluation", "privacy", "candidates", "min_n"}):
                raise ValueError(f"candidates: {fixed[0]} is the same for all of them")
            if unknown := sorted({*candidate} - {*type(self).model_fields, *OF_RECIPE}):
                raise ValueError(f"candidates: no setting {unknown[0]!r}")
            self.variant(candidate)
        if strategy.attribute("sequential") and self.server_aggregation != type(self)().server_aggregation:
            raise ValueError(
                f"{strategy.name} passes one model from client to client and aggregates nothing; remove "
                f"server_aggregation {self.server_aggregation!r}"
            )
        if strategy.attribute("asynchronous") and (
            self.clock.deadline is not None or self.participation.scheme != "all"
        ):
            raise ValueError(
                f"{strategy.name} has no synchronous rounds: leave out clock.deadline and participation.scheme"
            )
        return self

    def _private(self, strategy: Entry) -> None:
        """Refuse privacy settings whose guarantee would not hold, with the reasons."""
        reasons = refusals(
            self.privacy,
            server_aggregation=get("server_aggregations", self.server_aggregation),
            strategy=strategy,
            uniform_weights=self.weights == "uniform",
            norm_factor=self.validation.norm_factor is not None,
            max_norm=self.validation.max_norm is not None,
            participation=self.participation.scheme,
            min_clients=self.participation.min_clients,
            max_share=self.server_aggregation_params.get("max_share"),
        )
        if self.candidates and self.privacy.differential:
            reasons.append("candidates are chosen by validation losses without noise: leave them out")
        if self.keep == "best" and self.privacy.differential:
            reasons.append(
                "keep: best asks the sites for validation losses in every round, without noise: write keep: last"
            )
        if reasons:
            raise ValueError("; ".join(reasons))


def merged(settings: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with changes; sections are merged key by key, parameters of another method replace those before."""
    result = dict(settings)
    for key, value in changes.items():
        before = result.get(key)
        if isinstance(value, Mapping) and isinstance(before, Mapping) and not key.endswith("_params"):
            result[key] = merged(before, value)
        else:
            result[key] = value
    for name in ("strategy", "server_aggregation"):
        if name in changes and f"{name}_params" not in changes and changes[name] != settings.get(name):
            result[f"{name}_params"] = {}
    local = changes.get("local")
    if isinstance(local, Mapping) and {"epochs", "steps"} & set(local):
        other = "steps" if "epochs" in local else "epochs"
        result["local"] = result["local"] | {other: local.get(other)}
    return result
