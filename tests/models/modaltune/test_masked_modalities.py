"""Every kind of table with every maker of tokens: what a masked one holds is never read, what a shown one holds is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from equipoise.models.batch import CaseShape
from equipoise.models.entries import ModalTuneParams
from equipoise.models.modaltune.entries import MODAL_TOKENS

KINDS = ("clinical", "rna", "cnv", "mutation")
WIDTHS = {"clinical": 2, "rna": 5, "cnv": 3, "mutation": 4}
SHAPE = CaseShape(6, WIDTHS, sets=dict.fromkeys(KINDS, ((0, 1), (1,))))


def test_every_kind_of_table_can_become_tokens() -> None:
    named = ModalTuneParams.components
    assert {name for name, kind in named.items() if kind == "modal_tokens"} == set(KINDS)


def batch(make_batch):
    """Three cases with slides; the second has no tables, the third every other one."""
    rng = torch.Generator().manual_seed(2)
    blank = make_batch(((4, 1, 1, 1), (3, 0, 0, 0), (2, 1, 1, 1)))
    omics = {name: torch.randn(3, width, generator=rng) for name, width in WIDTHS.items()}
    present = {name: torch.tensor([True, False, i % 2 == 0]) for i, name in enumerate(KINDS)}
    return replace(blank, omics=omics, present=present)


@torch.no_grad()
@pytest.mark.parametrize("missing", ["token", "mask"])
@pytest.mark.parametrize("maker", list(MODAL_TOKENS))
@pytest.mark.parametrize("kind", KINDS)
def test_predictions_do_not_depend_on_what_is_masked(make_model, make_batch, kind, maker, missing) -> None:
    own = {"tokens": 2} | ({} if maker == "projection" else {"hidden": 4})
    changes = {kind: maker, f"{kind}_params": own}
    model = make_model(SHAPE, gamma=0.4, missing=missing, **changes).eval()
    cases = batch(make_batch)
    before, here = model(cases), cases.present[kind]
    for content in (torch.nan, torch.inf, 1e6, 0.0, 3.0):
        rows = torch.where(here[:, None], cases.omics[kind], content)
        after = model(replace(cases, omics=cases.omics | {kind: rows}))
        for task, out in before.items():
            assert torch.isfinite(out).all()
            assert torch.equal(out, after[task])
    other = torch.where(here[:, None], cases.omics[kind] + 1.0, cases.omics[kind])
    after = model(replace(cases, omics=cases.omics | {kind: other}))
    assert torch.equal((after["OS"] - before["OS"])[:, 0].abs() > 1e-6, here)
