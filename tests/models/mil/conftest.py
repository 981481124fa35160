"""Small models of every kind, and batches of bags of several sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from equipoise.models.base import MultiTaskModel
from equipoise.models.batch import CaseBatch, CaseShape, TaskHead
from equipoise.models.entries import AbmilParams, MeanPoolParams, TransmilParams
from equipoise.models.mil.abmil import Abmil
from equipoise.models.mil.mean_pool import MeanPool
from equipoise.models.mil.transmil import TransMIL

HEADS = (
    TaskHead("MSI", "binary", 2, main=True),
    TaskHead("keys", "multiclass", 3),  # a name that a module dictionary would refuse
    TaskHead("L.F", "regression", 1),
    TaskHead("OS", "survival", 4, edges=(100.0, 200.0, 300.0)),
)
FEATURES = 10

#: Eight landmarks, so that bags of nine tiles and more are approximated.
KINDS = {
    "mean_pool": (MeanPool, MeanPoolParams(layers=2, dim=16)),
    "mean_pool linear": (MeanPool, MeanPoolParams(layers=0)),
    "abmil": (Abmil, AbmilParams(dim=16, hidden=8)),
    "abmil per task": (Abmil, AbmilParams(dim=16, hidden=8, branches="task")),
    "transmil": (TransMIL, TransmilParams(dim=16, heads=2, landmarks=8)),
}


@pytest.fixture(params=list(KINDS))
def model(request: pytest.FixtureRequest) -> MultiTaskModel:
    return build(request.param)


@pytest.fixture
def make() -> Callable[..., MultiTaskModel]:
    return build


@pytest.fixture
def bags() -> Callable[..., list[torch.Tensor]]:
    def draw(*sizes: int, seed: int = 0) -> list[torch.Tensor]:
        rng = torch.Generator().manual_seed(seed)
        return [torch.randn(n, FEATURES, generator=rng) for n in sizes]

    return draw


@pytest.fixture
def batch_of() -> Callable[..., CaseBatch]:
    def collate(bags: Sequence[torch.Tensor], padding: int = 0, fill: float = 0.0) -> CaseBatch:
        most = max(len(bag) for bag in bags) + padding
        x = torch.full((len(bags), most, bags[0].shape[1]), fill, dtype=bags[0].dtype)
        mask = torch.zeros(len(bags), most, dtype=torch.bool)
        for i, bag in enumerate(bags):
            x[i, : len(bag)], mask[i, : len(bag)] = bag, True
        site = torch.zeros(len(bags), dtype=torch.int64)
        return CaseBatch(x, mask, torch.zeros(len(bags), most, 2), {}, {}, {}, {}, site)

    return collate


def build(kind: str, heads: tuple[TaskHead, ...] = HEADS, seed: int = 0) -> MultiTaskModel:
    maker, params = KINDS[kind]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return maker(params, CaseShape(FEATURES), heads)
