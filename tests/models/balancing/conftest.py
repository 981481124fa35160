"""Task gradients with special cases (zero, parallel, opposite, graded), and aggregators built from the registry.

Tests go through all gradients inside one case; messages name the special case and the number of tasks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from equipoise.models.balancing.entries import AGGREGATORS
from equipoise.models.balancing.protocol import StepContext
from equipoise.models.batch import TaskHead

Build = Callable[..., Any]
Combine = Callable[..., Tensor]


def _resolve(target: str) -> Any:
    module, _, name = target.partition(":")
    return getattr(__import__(module, fromlist=[name]), name)


@pytest.fixture(scope="session")
def build() -> Build:
    """``build(name, tasks, **params)``: an aggregator from its entry."""

    def build(name: str, tasks: int = 2, **params: Any) -> Any:
        _, schema, target = AGGREGATORS[name]
        heads = [TaskHead(f"task {i}", "regression", 1) for i in range(tasks)]
        return _resolve(target)(schema(**params), heads)

    return build


@pytest.fixture(scope="session")
def at() -> Callable[..., StepContext]:
    """``at(tasks, step, rows=...)``: a step, with all tasks present unless told otherwise."""

    def at(tasks: int, step: int = 0, rows: tuple[int, ...] | None = None, **more: Any) -> StepContext:
        rows = tuple(range(tasks)) if rows is None else rows
        present = torch.tensor([i in rows for i in range(tasks)])
        names = tuple(f"task {i}" for i in range(tasks))
        return StepContext(names, present, 0, step, seed=5, rows=rows, **more)

    return at


@pytest.fixture(scope="session")
def combine(build: Build, at: Callable[..., StepContext]) -> Combine:
    """``combine(name or aggregator, J)``: the direction for gradients ``[t, P]``, losses of 1."""

    def combine(method: Any, J: Tensor, context: StepContext | None = None, **params: Any) -> Tensor:
        if isinstance(method, str):
            method = build(method, len(J), **params)
        context = at(len(J)) if context is None else context
        losses = torch.ones(len(J), dtype=torch.float64)
        if method.kind == "jacobian":
            return method.direction(J.clone(), losses, context)
        gram = J @ J.T
        if "samples" in method.needs and context.cross_gram is None:
            context = replace(context, cross_gram=gram)
        coefficients = method.coefficients(gram.double(), losses, context)
        assert coefficients.shape == (len(J),)
        assert coefficients.dtype == torch.float64
        return J.T @ coefficients.to(J)

    return combine


def _gradients(kind: str, tasks: int) -> Tensor:
    torch_seed = torch.Generator().manual_seed(100 * tasks + len(kind))
    J = torch.randn(tasks, tasks + 4, dtype=torch.float64, generator=torch_seed)
    if kind == "zero":
        J[-1] = 0
    elif kind == "parallel":
        J[1] = 3 * J[0]
    elif kind == "opposite":
        J[1] = -2 * J[0]
    elif kind == "graded":
        J *= torch.logspace(0, -4, tasks, dtype=torch.float64)[:, None]
    return J


class Gradients(NamedTuple):
    """``J`` is ``[tasks, P]`` float64; ``kind`` says what is special about it."""

    kind: str
    tasks: int
    J: Tensor

    @property
    def name(self) -> str:
        """For messages."""
        return f"{self.kind} gradients of {self.tasks} tasks"


@pytest.fixture(scope="session")
def matrices() -> list[Gradients]:
    """Gradients of 2 to 6 tasks, each random and with every special case: 25."""
    kinds = ("random", "zero", "parallel", "opposite", "graded")
    return [Gradients(kind, tasks, _gradients(kind, tasks)) for kind in kinds for tasks in range(2, 7)]
