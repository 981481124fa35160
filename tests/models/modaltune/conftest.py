"""Batches of cases with any set of modalities, and small models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch

from equipoise.models.batch import CaseBatch, CaseShape, TaskHead
from equipoise.models.entries import ModalTuneParams
from equipoise.models.modaltune.entries import MODAL_TOKENS
from equipoise.models.modaltune.model import ModalTune
from equipoise.models.slide_encoders.entries import RandomTransformerParams
from equipoise.models.slide_encoders.random_transformer import RandomTransformer

HEADS = (TaskHead("OS", "survival", 1, main=True), TaskHead("MSI", "binary", 2))
SHAPE = CaseShape(6, {"clinical": 2, "rna": 5, "cnv": 3})
#: tiles, clinical, rna, cnv of the cases.
KINDS = ((4, 1, 1, 1), (3, 0, 1, 0), (0, 1, 1, 1), (2, 1, 0, 0), (0, 0, 0, 1), (1, 0, 0, 0))


def batch_of(kinds: Sequence[Sequence[int]] = KINDS, *, seed: int = 0, features: int = 6) -> CaseBatch:
    rng = torch.Generator().manual_seed(seed)
    b, most = len(kinds), max(kind[0] for kind in kinds)
    bags, mask = torch.zeros(b, most, features), torch.zeros(b, most, dtype=torch.bool)
    for i, kind in enumerate(kinds):
        bags[i, : kind[0]], mask[i, : kind[0]] = torch.randn(kind[0], features, generator=rng), True
    names = ("clinical", "rna", "cnv")
    present = {name: torch.tensor([bool(kind[j]) for kind in kinds]) for j, name in enumerate(names, start=1)}
    omics = {
        name: torch.randn(b, SHAPE.omics[name], generator=rng) * here[:, None]
        for name, here in present.items()
    }
    corners = torch.randint(0, 40, (b, most, 2), generator=rng) * 112.0
    blank = (
        torch.zeros(b, most, 2, dtype=torch.int32),
        omics,
        present,
        {},
        {},
        torch.zeros(b, dtype=torch.int64),
    )
    return CaseBatch(bags, mask, *blank, corners=corners, extent=torch.full((b,), 112.0))


def makers(params: ModalTuneParams) -> dict[str, Any]:
    from equipoise.platform.registry import resolve

    found = {}
    for name in ("clinical", "rna", "cnv", "mutation"):
        _, own, at = MODAL_TOKENS[getattr(params, name)]
        found[name] = partial(resolve(at), own(**getattr(params, f"{name}_params")))
    return found


def build(
    shape: CaseShape = SHAPE, heads: Sequence[TaskHead] = HEADS, *, gamma: float = 0.0, **changes: Any
) -> ModalTune:
    small: dict[str, Any] = {"bottleneck": 8, "attention_heads": 2, "dim": 16, "embedding": 7}
    small |= {name: {"hidden": 4, "tokens": 2} for name in ("rna_params", "cnv_params")}
    params = ModalTuneParams(**small | changes)
    encoder = partial(RandomTransformer, RandomTransformerParams(width=16, depth=4, heads=2))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ModalTune(params, shape, heads, slide_encoder=encoder, **makers(params))
        for block in model.blocks:
            if block.injector is not None:
                block.injector.gamma.data += gamma
    return model


@pytest.fixture
def make_batch() -> Callable[..., CaseBatch]:
    return batch_of


@pytest.fixture
def make_model() -> Callable[..., ModalTune]:
    return build
