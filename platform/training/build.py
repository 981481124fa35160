"""Builds models, balancers and devices from the names in a study.

The recipe of a study: everything that decides the weights after training on given patients. Light.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from equipoise.models.balancing.balancer import Balancer
from equipoise.models.balancing.protocol import Reduce, identity_reduce
from equipoise.models.batch import CaseShape, TaskHead
from equipoise.platform.errors import ResourceError, StudyError
from equipoise.platform.registry import get
from equipoise.platform.training.params import BalancingParams, Recipe, entry_params

if TYPE_CHECKING:
    from equipoise.platform.study.schema import Study


def build_model(
    name: str, params: dict[str, Any], shape: CaseShape, heads: Sequence[TaskHead], *, seed: int
) -> nn.Module:
    """A model of the registry with initial weights that depend on nothing but the seed.

    Modules of torch draw from its global generator; it is seeded here and its state is restored afterwards.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return get("models", name).load()(entry_params("models", name, params), shape, heads)


def build_balancer(
    balancing: BalancingParams, model: nn.Module, heads: Sequence[TaskHead], reduce: Reduce = identity_reduce
) -> Balancer:
    """The balancer that a study names, for a model that is already on its device.

    Raises
    ------
    StudyError
        If the model has no parameters that the method could balance.
    """
    slots = (
        ("weightings", balancing.weighting, balancing.weighting_params),
        ("aggregators", balancing.aggregation, balancing.aggregation_params),
    )
    weighting, aggregator = (
        get(kind, name).load()(entry_params(kind, name, p), heads) for kind, name, p in slots
    )
    tasks = [head.name for head in heads]
    try:
        return Balancer(model, tasks, weighting, aggregator, reduce=reduce, rescale=balancing.rescale)
    except ValueError as error:
        raise StudyError(f"{balancing.name}: {error}", where="balancing") from error


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
    """Model, balancing, training parameters, tables and seed of a study."""
    params = study.model.model_dump()
    return Recipe(
        model=params.pop("kind"),
        model_params=params,
        balancing=study.balancing,
        training=study.training,
        tables=study.tables,
        seed=study.seed,
    )
