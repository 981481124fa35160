"""Batches of cases with any set of modalities, and small models of every fusion and modulation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch

from equipoise.models.batch import CaseBatch, CaseShape, TaskHead
from equipoise.models.entries import GptomicParams
from equipoise.models.gptomic.entries import FUSIONS, MODULATIONS
from equipoise.models.gptomic.model import Gptomic

HEADS = (TaskHead("OS", "survival", 1, main=True), TaskHead("MSI", "binary", 2))
SHAPE = CaseShape(6, {"clinical": 2, "rna": 5, "cnv": 3, "mutation": 2})
#: tiles, clinical, rna, cnv, mutation of the cases.
KINDS = (
    (4, 1, 1, 1, 1),
    (3, 0, 1, 0, 0),
    (0, 1, 1, 1, 0),
    (2, 1, 0, 0, 0),
    (0, 0, 0, 0, 1),
    (0, 1, 0, 0, 0),
)
SMALL_IMAGES: dict[str, dict[str, Any]] = {
    "mean_pool": {"dim": 7},
    "abmil": {"dim": 7, "hidden": 4},
    "joint": {"dim": 8, "heads": 2, "encoder_layers": 1, "decoder_layers": 1, "feedforward": 8},
    "transmil": {"dim": 8, "heads": 2, "landmarks": 4},
}


@pytest.fixture
def make_batch() -> Callable[..., CaseBatch]:
    return batch_of


@pytest.fixture
def make_model() -> Callable[..., Gptomic]:
    return build


def batch_of(kinds: Sequence[Sequence[int]] = KINDS, *, seed: int = 0, events: bool = True) -> CaseBatch:
    rng = torch.Generator().manual_seed(seed)
    b, most = len(kinds), max(kind[0] for kind in kinds)
    bags, mask = torch.zeros(b, most, 6), torch.zeros(b, most, dtype=torch.bool)
    for i, kind in enumerate(kinds):
        bags[i, : kind[0]], mask[i, : kind[0]] = torch.randn(kind[0], 6, generator=rng), True
    present = {
        name: torch.tensor([bool(kind[j]) for kind in kinds])
        for j, name in enumerate(("clinical", "rna", "cnv", "mutation"), start=1)
    }
    omics = {
        name: torch.randn(b, SHAPE.omics[name], generator=rng) * here[:, None]
        for name, here in present.items()
    }
    days = torch.rand(b, generator=rng) * 900 + 1
    event = torch.ones(b) if events else torch.zeros(b)
    targets = {"OS": torch.stack([days, event], dim=1), "MSI": torch.arange(b).float() % 2}
    labelled = {name: torch.ones(b, dtype=torch.bool) for name in targets}
    coords, site = torch.zeros(b, most, 2, dtype=torch.int32), torch.zeros(b, dtype=torch.int64)
    return CaseBatch(bags, mask, coords, omics, present, targets, labelled, site)


def load(where: str) -> Any:
    from importlib import import_module

    module, _, name = where.partition(":")
    return getattr(import_module(module), name)


def build(
    fusion: str = "concat",
    modulation: str = "gradmod",
    image: str = "abmil",
    *,
    shape: CaseShape = SHAPE,
    heads: Sequence[TaskHead] = HEADS,
    fusion_params: dict[str, Any] | None = None,
    modulation_params: dict[str, Any] | None = None,
    **changes: Any,
) -> Gptomic:
    from equipoise.models.entries import ENTRIES

    small = {"kronecker": {"dim": 3, "hidden": 4}, "attention": {"dim": 6, "hidden": 4}}.get(fusion, {})
    _, fusion_class, fusion_at = FUSIONS[fusion]
    _, modulation_class, modulation_at = MODULATIONS[modulation]
    _, image_class, image_at = ENTRIES[image]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Gptomic(
            GptomicParams(dim=6, layers=2, **changes),
            shape,
            heads,
            image=partial(load(image_at), image_class(**SMALL_IMAGES[image])),
            fusion=partial(load(fusion_at), fusion_class(**small | (fusion_params or {}))),
            modulation=partial(load(modulation_at), modulation_class(**modulation_params or {})),
        )
