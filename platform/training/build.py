"""Models, balancers and devices from the names in a study, and the recipe of a study."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import ValidationError
from torch import nn

from equipoise.datasets.omics.resolution import resolve_tables
from equipoise.models.balancing.balancer import Balancer
from equipoise.models.balancing.loss_balancer import LossBalancer
from equipoise.models.balancing.protocol import GradAggregator, LossWeighting, Reduce, identity_reduce
from equipoise.models.base import SharedRepresentation
from equipoise.models.batch import CaseShape, TaskHead
from equipoise.models.text.head import TextHead
from equipoise.platform.errors import ResourceError, StudyError
from equipoise.platform.registry import get
from equipoise.platform.training.params import BalancingParams, Recipe, entry_params

if TYPE_CHECKING:
    from equipoise.platform.study.schema import Study


def build_model(
    name: str, params: dict[str, Any], shape: CaseShape, heads: Sequence[TaskHead], *, seed: int
) -> nn.Module:
    """A model of the registry with initial weights that depend on nothing but the seed.

    Modules of torch draw from its global generator; it is seeded here and its state is restored afterwards. A model of
    components gets a maker of each by keyword.

    Raises
    ------
    StudyError
        If a model of components does not fit the data or the tasks.
    """
    entry, own = get("models", name), entry_params("models", name, params)
    makers = {
        field: _maker(kind, getattr(own, field), getattr(own, f"{field}_params"))
        for field, kind in getattr(entry.params, "components", {}).items()
    }
    with seeded(seed, torch.device("cpu")):
        try:
            model = entry.load()(own, shape, heads, **makers)
        except ValueError as error:
            if not makers:
                raise
            raise StudyError(f"{name}: {error}", where="model") from error
    own_heads = [part.target for part in model.modules() if isinstance(part, TextHead)]
    if missing := [head.name for head in heads if head.text is not None and head.text not in own_heads]:
        raise StudyError(
            f"{name} builds heads of its own, which cannot be on text: {', '.join(missing)}",
            where="training.text",
            fix="take another model, or leave training.text out",
        )
    return model


def _maker(kind: str, name: str, params: dict[str, Any]) -> Callable[..., Any]:
    """Makes the object behind an entry, which gets its parameters first."""
    return partial(get(kind, name).load(), entry_params(kind, name, params))


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed torch's global generators, from which dropout draws, and restore their state afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            torch.cuda.manual_seed(seed)
        yield


def build_balancer(
    balancing: BalancingParams,
    model: nn.Module,
    heads: Sequence[TaskHead],
    reduce: Reduce = identity_reduce,
    workers: int = 1,
) -> Balancer:
    """The balancer that a study names, for a model that is already on its device.

    Raises
    ------
    StudyError
        If the model has no parameters that the method could balance.
    """
    tasks = [head.name for head in heads]
    if balancing.at == "representation" and not isinstance(
        getattr(model, "representation", None), SharedRepresentation
    ):
        raise StudyError(
            f"a {type(model).__name__} does not say what its tasks share (SharedRepresentation)",
            where="balancing.at",
            fix="write at: parameters",
        )
    try:
        return Balancer(
            model,
            tasks,
            *_slots(balancing, heads),
            reduce=reduce,
            workers=workers,
            rescale=balancing.rescale,
            at=balancing.at,
            every=balancing.every,
        )
    except ValueError as error:
        raise StudyError(f"{balancing.name}: {error}", where="balancing") from error


def build_loss_balancer(
    model: nn.Module,
    losses: Iterable[str] | Mapping[str, Any] | Sequence[Any],
    method: str | Mapping[str, Any] = "equal",
    *,
    main: Iterable[str] = (),
    shared: Iterable[nn.Parameter] | None = None,
    seed: int = 0,
    reduce: Reduce = identity_reduce,
    workers: int = 1,
    total_steps: int | None = None,
) -> LossBalancer:
    """The balancer of one's own training loop over any module.

    Parameters
    ----------
    model
        The bare module, on its device.
    losses
        What is balanced: names of the losses, a dictionary by name, or a list, whose names are then 0, 1, …
    method
        As ``balancing:`` of a study: ``uncertainty+pcgrad``, or a dictionary with ``weighting``, ``aggregation``,
        ``weighting_params``, ``aggregation_params``, ``rescale``, ``at`` and ``every``.
    main
        Names of the losses that the others serve, for ``auto_lambda``; the first one if not given.
    shared, seed, reduce, workers, total_steps
        As in :class:`~equipoise.models.balancing.loss_balancer.LossBalancer`.

    Raises
    ------
    StudyError
        If a name or a parameter is unknown, or the two slots cannot be combined.
    ValueError
        If there is no loss, a name comes twice, or ``main`` names no loss.
    """
    names = [name if isinstance(name, str) else str(i) for i, name in enumerate(losses)]
    mains = set(main)
    if unknown := mains - set(names):
        raise ValueError(f"main: no loss {', '.join(sorted(unknown))}; losses are {', '.join(names)}")
    try:
        balancing = BalancingParams.model_validate(method)
    except ValidationError as error:
        reasons = "; ".join(line["msg"].removeprefix("Value error, ") for line in error.errors())
        raise StudyError(reasons, where=f"balancing method {method!r}") from error
    heads = [TaskHead(name, "regression", 1, main=name in mains) for name in names]
    return LossBalancer(
        model,
        names,
        *_slots(balancing, heads),
        name=balancing.name,
        shared=shared,
        nonnegative=any(
            get(kind, name).attribute("needs_nonnegative_losses")
            for kind, name in (("weightings", balancing.weighting), ("aggregators", balancing.aggregation))
        ),
        rescale=balancing.rescale,
        at=balancing.at,
        every=balancing.every,
        seed=seed,
        reduce=reduce,
        workers=workers,
        total_steps=total_steps,
    )


def _slots(balancing: BalancingParams, heads: Sequence[TaskHead]) -> tuple[LossWeighting, GradAggregator]:
    weighting = entry_params("weightings", balancing.weighting, balancing.weighting_params)
    aggregator = entry_params("aggregators", balancing.aggregation, balancing.aggregation_params)
    return (
        get("weightings", balancing.weighting).load()(weighting, heads),
        get("aggregators", balancing.aggregation).load()(aggregator, heads),
    )


def pick_device(device: str) -> torch.device:
    """``auto`` is a GPU where torch sees one.

    Raises
    ------
    ResourceError
        If a GPU is asked for and there is none.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise ResourceError(
            "no CUDA device is visible", where="training.device", fix="write device: auto or cpu"
        )
    return torch.device(device, torch.cuda.current_device()) if device == "cuda" else torch.device(device)


def recipe_of(study: Study) -> Recipe:
    """Model, balancing, training parameters, tables and seed of a study; its paths are absolute."""
    params = study.model.model_dump()
    training = study.training
    if training.start is not None:
        training = training.model_copy(
            update={"start": str((study.base / Path(training.start).expanduser()).resolve())}
        )
    return Recipe(
        model=params.pop("kind"),
        model_params=params,
        balancing=study.balancing,
        training=training,
        tables=resolve_tables(study.tables, study.cohorts, study.base),
        seed=study.seed,
    )
