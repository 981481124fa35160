"""Trackers write the trials of a search to dashboards: their data, and how they are opened.

A tracker is called with every trial that has ended, also with those of earlier sessions when a search is resumed, and
writes each of them once. The records stay authoritative; a deleted dashboard is written again from them.
Everything lies inside the run folder; MLflow and W&B are extras, imported only when asked for.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

from equipoise.platform.errors import ResourceError
from equipoise.platform.federation.params import FederationParams
from equipoise.platform.registry import entries, resolve
from equipoise.platform.search.configuration import config_from_study, merge_config
from equipoise.platform.search.federated_space import REPLACED_BY
from equipoise.platform.search.params import MEAN, SCORES
from equipoise.platform.search.space import COMPONENTS, LOSS_WEIGHTS, SLOTS, Arm, Config, Dimension, Space
from equipoise.platform.search.trial_records import FoldScore, Trial, Value
from equipoise.platform.training.params import TrainingParams

if TYPE_CHECKING:
    from types import TracebackType

    from equipoise.platform.study.schema import Study

#: Name of a tracker → its class, and the extra that installs its package.
TRACKERS = {
    "tensorboard": ("equipoise.platform.search.tensorboard:TensorBoardTracker", ""),
    "mlflow": ("equipoise.platform.search.mlflow_tracker:MlflowTracker", "mlflow"),
    "wandb": ("equipoise.platform.search.wandb_tracker:WandbTracker", "wandb"),
}

#: The column that names weighting and aggregator together.
METHOD = "balancing"

#: The first column where data are generated.
SYNTHETIC = "SYNTHETIC"

#: Settings of ``training`` that say where and how often something runs, not what is learned.
_NOT_LEARNED = frozenset(("workers", "threads", "device", "amp", "probe"))


class CurvePoint(NamedTuple):
    """One number of a curve."""

    tag: str
    step: int
    value: float


class Tracker(Protocol):
    """Writes trials to a dashboard."""

    def __call__(self, trial: Trial) -> None:
        """Write a trial that has ended, unless it was written before."""
        ...

    def close(self) -> None:
        """Close files and connections."""
        ...


@dataclass(frozen=True)
class TrackedSearch:
    """Description of a search for trackers.

    Parameters
    ----------
    name
        Name of the study.
    run
        The run folder.
    settings
        The study, resolved.
    metrics
        Names of the study's metrics, the one that is maximised first.
    columns
        Every parameter that a trial of this search can have → a value that shows its kind: the method of balancing,
        what varies, then what is constant.
    varied
        Those that differ between trials.
    """

    name: str
    run: Path
    settings: dict[str, Any] = field(repr=False)
    metrics: tuple[str, ...]
    columns: dict[str, Value] = field(repr=False)
    varied: frozenset[str] = frozenset()

    @classmethod
    def from_study(cls, study: Study, space: Space, metric: str, run: Path) -> Self:
        """Description of a search before its first trial; columns do not depend on the trials.

        Parameters
        ----------
        study, space
            The study and its search space.
        metric
            ``search.metric``.
        run
            The run folder.
        """
        settings = study.resolved()
        names = [f"val/{task.name}/{score}" for task in study.tasks for score in SCORES[task.type]]
        values: dict[str, Value] = {}
        varied = [d.name for d in space.dimensions if len(d.choices) != 1]
        varied += [f"{LOSS_WEIGHTS}.{task}" for task in space.tasks]
        slots = (*COMPONENTS, "strategy")
        varied += [SLOTS[slot] for slot in slots if len({getattr(arm, slot) for arm in space.arms}) > 1]
        for config in (config_from_study(study, space), *(example_config(space, arm) for arm in space.arms)):
            values |= {k: v for k, v in parameters_of(settings, config).items() if v is not None}
        order = [SYNTHETIC, METHOD, *varied, *values]
        columns = {name: values[name] for name in dict.fromkeys(order) if name in values}
        metrics = tuple(dict.fromkeys([metric, MEAN, *names]))
        return cls(study.name, run, settings, metrics, columns, frozenset([SYNTHETIC, METHOD, *varied]))

    def parameters(self, trial: Trial) -> dict[str, Value]:
        """Parameters that a trial has, in the order and of the kind of the columns; nothing is None."""
        values = parameters_of(self.settings, trial.config)
        values = {name: values[name] for name in [*self.columns, *values] if values.get(name) is not None}
        return {k: str(v) if isinstance(self.columns.get(k), str) else v for k, v in values.items()}


def open_trackers(names: Sequence[str], tracked: TrackedSearch) -> TrackerList:
    """The trackers of these names.

    Raises
    ------
    ResourceError
        If the package of a tracker is not installed; the message names the extra.
    """
    opened: list[Tracker] = []
    for name in names:
        target, extra = TRACKERS[name]
        try:
            opened.append(resolve(target)(tracked))
        except ModuleNotFoundError as missing:
            if not extra or missing.name != extra:
                raise
            raise ResourceError(
                f"tracking by {name} needs the package {extra}, which is not installed",
                fix=f"pip install -e '.[{extra}]', or leave {name} out",
            ) from missing
    return TrackerList(tuple(opened))


@dataclass(frozen=True)
class TrackerList:
    """Several trackers as one; use as a context manager."""

    opened: tuple[Tracker, ...]

    def __call__(self, trial: Trial) -> None:
        """Pass the trial to all of them."""
        for tracker in self.opened:
            tracker(trial)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with ExitStack() as closing:
            for tracker in self.opened:
                closing.callback(tracker.close)


def parameters_of(settings: dict[str, Any], config: Config) -> dict[str, Value]:
    """All parameters of a trial as plain values: the method, what was searched, then what was constant.

    ``balancing`` names weighting and aggregator together (``uncertainty+pcgrad``). Constants are the settings of
    model, training and methods, with defaults for those that the study does not name, and the seed. Settings of where a
    trial ran are left out. ``SYNTHETIC`` marks generated data.
    """
    merged = merge_config(settings, config)
    balancing, model = merged["balancing"], merged["model"]
    result: dict[str, Value] = {METHOD: f"{balancing['weighting']}+{balancing['aggregation']}"}
    result |= {SYNTHETIC: True} if merged["synthetic"] else {}
    result |= {k: v for k, v in config.items() if k not in ("balancing.weighting", "balancing.aggregation")}
    searched = {name.replace(f"model.{model['kind']}.", "model.") for name in config}
    constants: dict[str, Any] = {"model": {"kind": model["kind"]} | _complete("models", model["kind"], model)}
    constants["training"] = {k: v for k, v in merged["training"].items() if k not in _NOT_LEARNED}
    if merged["federation"] is not None:
        searched |= set(REPLACED_BY)  # clients ignore them
        training = TrainingParams.model_validate(merged["training"])
        section = FederationParams.model_validate(merged["federation"]).in_training(training)
        constants["federation"] = _federation(section.model_dump(mode="json"))
    methods: dict[str, Any] = {key: balancing[key] for key in ("rescale", "at", "every")}
    for slot, registry in (("weighting", "weightings"), ("aggregation", "aggregators")):
        methods[balancing[slot]] = _complete(registry, balancing[slot], balancing[f"{slot}_params"])
    if any(name.startswith(f"{LOSS_WEIGHTS}.") for name in config):
        methods.pop(balancing["weighting"], None)  # the shares hold the same information
    constants["balancing"] = methods
    constants["seed"] = merged["seed"]
    return result | {k: v for k, v in _flat(constants) if k not in searched}


def example_config(space: Space, arm: Arm) -> Config:
    """A configuration of an arm with a value of the right kind in every dimension."""
    config = arm.config() | {dimension.name: _typical(dimension) for dimension in space.dimensions_of(arm)}
    if space.has_loss_weights(arm):
        config |= {f"{LOSS_WEIGHTS}.{task}": 1 / len(space.tasks) for task in space.tasks}
    return config


def curve_points(trial: Trial) -> Iterator[CurvePoint]:
    """Curves of a trial.

    ``fold/<task>/<metric>`` over the trainings (inner folds, seed by seed); then per training and over epochs, with its
    name last: ``weight/<task>``, ``conflict_rate``, ``cosine/<task>|<task>``, ``train_loss/<task>``,
    ``val_loss/<task>``, ``lr``, ``monitor`` (of a federation, over rounds: ``train_loss/<task>`` of clients, ``lr``,
    ``update_norm``); and ``setting/<dimension>`` where settings changed during training. Unknown values are left out.
    """
    for k, fold in enumerate(trial.folds):
        for name, value in fold.values.items():
            if math.isfinite(value):
                yield CurvePoint(name.replace("val/", "fold/", 1), k, value)
        yield from _epochs(fold)
    for change in trial.changes:
        for name, value in change.items():
            if name != "epoch" and isinstance(value, int | float):
                yield CurvePoint(f"setting/{name}", int(change["epoch"]), value)


def metrics_of(trial: Trial) -> dict[str, float]:
    """Known means over folds."""
    return {name: value for name, value in trial.means.items() if math.isfinite(value)}


def record_digest(trial: Trial) -> str:
    """Hash of a record, twelve characters."""
    return hashlib.sha256(json.dumps(asdict(trial), sort_keys=True).encode()).hexdigest()[:12]


def to_timestamp(stamp: str) -> float | None:
    """Time of a record (ISO 8601 with zone) in seconds since 1970; None for an empty text."""
    from datetime import datetime

    return datetime.strptime(stamp, "%Y-%m-%dT%H:%M:%S%z").timestamp() if stamp else None


def _epochs(fold: FoldScore) -> Iterator[CurvePoint]:
    for row in fold.history:
        for name, value in row.items():
            if name != "epoch" and math.isfinite(value):
                head, slash, rest = name.partition("/")
                head = {"train": "train_loss", "val": "val_loss"}.get(head, head)
                yield CurvePoint(f"{head}{slash}{rest}/{fold.fold}", int(row["epoch"]), value)


def _complete(registry: str, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters of an entry with its defaults; invalid ones (of a trial that failed for it) are returned as given."""
    values = {key: value for key, value in given.items() if key != "kind"}
    try:
        params = entries(registry)[name].params
        kind = {"kind": name} if "kind" in params.model_fields else {}
        complete: dict[str, Any] = params.model_validate(values | kind).model_dump(mode="json")
    except (KeyError, ValueError):
        return values
    complete.pop("kind", None)
    return complete


def _federation(section: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that decide the weights of a federation: strategy, aggregation, parameters, rounds, local training."""
    result = {
        name: section[name] for name in ("rounds", "strategy", "server_aggregation", "weights", "local")
    }
    result[section["strategy"]] = _complete("strategies", section["strategy"], section["strategy_params"])
    result["server_aggregation_params"] = _complete(
        "server_aggregations", section["server_aggregation"], section["server_aggregation_params"]
    )
    return result


def _flat(settings: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Value]]:
    """Dotted key → plain value; a list becomes the text of its items."""
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{key}.")
        else:
            plain = isinstance(value, str | int | float | bool) or value is None
            yield before + key, value if plain else ", ".join(str(item) for item in value)


def _typical(dimension: Dimension) -> Value:
    texts = [value for value in dimension.choices if isinstance(value, str)]
    known = [value for value in dimension.choices if value is not None]
    return (texts or known or [None])[0] if dimension.choices else dimension.value_at(0.5)
