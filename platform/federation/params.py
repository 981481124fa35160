"""The ``federation:`` section of a study. Light: pydantic only."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from equipoise.datasets.specs import Spec
from equipoise.platform.federation.gate import GateParams
from equipoise.platform.federation.privacy.combinations import refusals
from equipoise.platform.federation.privacy.params import PrivacyParams
from equipoise.platform.federation.setting import ClientScheme, PlanParams
from equipoise.platform.training.params import entry_params

#: Settings that change no number of a federation of given clients and patients.
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


class LocalParams(Spec):
    """What a client does in a round."""

    epochs: int | None = Field(default=None, ge=1)
    """Passes over the client's patients in a round; 1 if ``steps`` is not given either."""
    steps: int | None = Field(default=None, ge=1)
    """Optimiser steps in a round, in place of ``epochs``."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """Begins anew in every round, so that nothing of it has to be kept or averaged."""
    lr: float | None = Field(default=None, gt=0, json_schema_extra={"search": {"loguniform": [1e-5, 1e-1]}})
    """Learning rate; that of ``training`` if not given."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Learning rate over the rounds: constant, or half a cosine down to 0."""
    momentum: float = Field(default=0.0, ge=0, lt=1)
    """Of ``sgd``."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled for ``adamw``, added to the gradient for ``sgd``."""
    batch: int | Literal["auto", "full"] = "auto"
    """Patients per step. ``full``: all of the client, so that Cox's risk sets are those of the site. ``auto``: that
    of ``training``, and ``full`` for Cox's model without tiles."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.epochs is not None and self.steps is not None:
            raise ValueError("a round is so many epochs or so many steps; write one of them")
        if self.batch not in ("auto", "full") and self.batch < 1:  # type: ignore[operator]
            raise ValueError(f"batch is a number of patients of 1 or more, auto or full, not {self.batch}")
        if self.momentum and self.optimizer != "sgd":
            raise ValueError("momentum is a parameter of optimizer: sgd")
        return self

    @property
    def length(self) -> tuple[int, int | None]:
        """Epochs, and steps or None."""
        return (1 if self.epochs is None else self.epochs), self.steps


class Participation(Spec):
    """Who takes part in a round; a function of (seed, round)."""

    scheme: Literal["all", "uniform", "size", "round_robin", "poisson"] = "all"
    """``uniform`` and ``size`` draw without repetition (``size``: in proportion to patients), ``round_robin`` takes
    turns, ``poisson`` draws every client by itself."""
    fraction: float = Field(default=1.0, gt=0, le=1)
    """Share of the clients in a round; for ``poisson`` the probability of each."""
    min_clients: int = Field(default=1, ge=1)
    """A round with fewer accepted updates changes nothing; three such rounds in a row are an error."""


class ClockParams(Spec):
    """Virtual time: how long clients take, who is late, who fails. No real clock is read."""

    speed_sd: float = Field(default=0.0, ge=0)
    """Standard deviation of the log of a client's slowness, drawn once per client."""
    jitter_sd: float = Field(default=0.0, ge=0)
    """The same, drawn for every round."""
    deadline: float | None = Field(default=None, gt=0)
    """A client that takes longer than so many times the median client is late and left out of the round."""
    failures: float = Field(default=0.0, ge=0, lt=1)
    """Probability with which a client drops out of a round, to rehearse it."""


class FederationParams(Spec):
    """How sites train together."""

    sites: ClientScheme = ClientScheme()
    """Who the clients are; ``sites: cohort`` in short."""
    evaluation: PlanParams = PlanParams()
    """What is trained, and on whom it is judged."""
    rounds: int = Field(default=20, ge=1)
    """Rounds; of an asynchronous strategy, steps of the server."""
    strategy: str = "fedavg"
    """What clients and server do beyond averaging: ``equipoise ls strategies``."""
    strategy_params: dict[str, Any] = Field(default_factory=dict)
    """Parameters of the strategy."""
    rule: str = "mean"
    """How updates are combined: ``equipoise ls site_rules``."""
    rule_params: dict[str, Any] = Field(default_factory=dict)
    """Parameters of the rule."""
    weights: Literal["patients", "uniform"] = "patients"
    """How much a client counts: by its labelled patients, group of parameters by group, or like any other."""
    local: LocalParams = LocalParams()
    """What a client does in a round."""
    participation: Participation = Participation()
    """Who takes part."""
    clock: ClockParams = ClockParams()
    """Virtual time, late and failing clients."""
    gate: GateParams = Field(default_factory=lambda: GateParams.model_validate({}))
    """What updates are turned away."""
    privacy: PrivacyParams = Field(default_factory=lambda: PrivacyParams.model_validate({}))
    """Differential privacy of clients or patients, masked sums."""
    bench_after: int = Field(default=3, ge=1)
    """Rounds in which a client failed or was quarantined after which it is left out for good."""
    min_n: int = Field(default=5, ge=1)
    """Scalars over fewer patients than this do not leave a client."""
    fixed_point_bits: int = Field(default=32, ge=8, le=48)
    """Binary digits behind the point in sums of updates."""
    backend: Literal["auto", "inline", "ray"] = "auto"
    """``inline`` runs clients here one after the other, ``ray`` in workers; the results are identical. ``auto``:
    Ray where a session is open and the work is worth it."""
    workers: int | None = Field(default=None, ge=1)
    """Workers that clients live in; as many as there are CPUs (GPUs), and no more than clients, if not given."""
    worker_cpus: float = Field(default=1.0, gt=0)
    """CPUs of a worker; may be a fraction."""
    worker_gpus: float = Field(default=0.0, ge=0)
    """GPUs of a worker; may be a fraction."""
    timeout_s: float | None = Field(default=None, gt=0)
    """Seconds without any reply after which the workers that are still at work are given up; never if not given."""
    checkpoints: int = Field(default=2, ge=1)
    """Rounds that are kept on disk."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        entry_params("strategies", self.strategy, self.strategy_params)
        self._sgd_only()
        self._private()
        if self.strategy == "cyclic" and self.rule != "mean":
            raise ValueError(
                f"cyclic passes one model on and has nothing to combine; rule {self.rule!r} is of no use"
            )
        if self.strategy == "fedbuff" and (
            self.clock.deadline is not None or self.participation.scheme != "all"
        ):
            raise ValueError(
                "fedbuff has no rounds that close: leave out clock.deadline and participation.scheme"
            )
        return self

    def _private(self) -> None:
        """Privacy that could not be kept as promised is refused, with the reasons."""
        reasons = refusals(
            self.privacy,
            rule=self.rule,
            strategy=self.strategy,
            uniform_weights=self.weights == "uniform",
            norm_gate=self.gate.norm_factor is not None or self.gate.max_norm is not None,
            asynchronous=self.strategy == "fedbuff",
            max_share=self.rule_params.get("max_share"),
        )
        if self.privacy.client_level and self.participation.scheme != "poisson":
            reasons.append(
                "client-level privacy counts on clients drawn by themselves: write participation: {scheme: poisson}"
            )
        if reasons:
            raise ValueError("; ".join(reasons))

    def _sgd_only(self) -> None:
        if self.strategy not in ("scaffold", "fednova"):
            return
        if self.local.optimizer != "sgd":
            raise ValueError(f"{self.strategy} is defined for plain steps; write local: {{optimizer: sgd}}")
        if self.strategy == "scaffold" and self.local.momentum:
            raise ValueError("scaffold is defined for steps without momentum")
