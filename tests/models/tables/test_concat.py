"""Late fusion: any set of modalities, tokens for what is missing, one replaceable encoder per modality."""

from __future__ import annotations

import pytest
import torch

from equipoise.models.batch import CaseBatch, CaseShape, TaskHead
from equipoise.models.entries import ConcatParams
from equipoise.models.tables.concat import Concat

HEADS = (TaskHead("MSI", "binary", 2, main=True), TaskHead("OS", "survival", 1))
SHAPE = CaseShape(10, {"clinical": 3, "rna": 6})
TINY = ConcatParams(dim=8, hidden=4)
#: tiles, clinical, rna of the cases.
KINDS = ((5, 1, 1), (3, 0, 1), (0, 1, 1), (4, 0, 0), (0, 0, 1))


def batch_of(kinds: tuple[tuple[int, int, int], ...] = KINDS, padding: int = 0, seed: int = 0) -> CaseBatch:
    rng = torch.Generator().manual_seed(seed)
    b, most = len(kinds), max(tiles for tiles, _, _ in kinds) + padding
    bags, mask = torch.zeros(b, most, 10), torch.zeros(b, most, dtype=torch.bool)
    omics = {"clinical": torch.zeros(b, 3), "rna": torch.zeros(b, 6)}
    for i, (tiles, clinical, rna) in enumerate(kinds):
        bags[i, :tiles], mask[i, :tiles] = torch.randn(tiles, 10, generator=rng), True
        omics["clinical"][i] = clinical * torch.randn(3, generator=rng)
        omics["rna"][i] = rna * torch.randn(6, generator=rng)
    present = {name: torch.tensor([bool(k[j]) for k in kinds]) for j, name in ((1, "clinical"), (2, "rna"))}
    coords, site = torch.zeros(b, most, 2, dtype=torch.int32), torch.zeros(b, dtype=torch.int64)
    return CaseBatch(bags, mask, coords, omics, present, {}, {}, site)


def build(shape: CaseShape = SHAPE, **changes: float) -> Concat:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Concat(TINY.model_copy(update=changes), shape, HEADS)


def test_every_set_of_modalities_gives_finite_outputs() -> None:
    outputs = build().eval()(batch_of())
    assert {name: tuple(out.shape) for name, out in outputs.items()} == {"MSI": (5, 2), "OS": (5, 1)}
    assert all(torch.isfinite(out).all() for out in outputs.values())


def test_missing_modalities_are_the_learned_token() -> None:
    model, batch = build().eval(), batch_of()
    embeddings = model.embeddings(batch)
    assert list(embeddings) == ["wsi", "clinical", "rna"]
    assert model.presence(batch).tolist() == [[bool(x) for x in kind] for kind in KINDS]
    for i, (name, x_BE) in enumerate(embeddings.items()):
        for row, kind in zip(x_BE, KINDS, strict=True):
            assert torch.equal(row, model.tokens[name]) == (not kind[i])


@torch.no_grad()
def test_what_stands_in_a_missing_modality_is_never_read() -> None:
    model, batch = build().eval(), batch_of()
    before = model(batch)
    batch.bags[2] = 1e3
    batch.bags[1, 3:] = 1e3
    batch.omics["clinical"][3] = 1e3
    assert before
    for name, out in model(batch).items():
        assert torch.equal(out, before[name])


@torch.no_grad()
def test_a_case_does_not_depend_on_its_batch() -> None:
    model = build().eval()
    together = model(batch_of(padding=2))
    batch = batch_of()
    for i, (tiles, _, _) in enumerate(KINDS):
        alone = CaseBatch(
            batch.bags[i : i + 1, :tiles],
            batch.mask[i : i + 1, :tiles],
            batch.coords[i : i + 1, :tiles],
            {name: x[i : i + 1] for name, x in batch.omics.items()},
            {name: x[i : i + 1] for name, x in batch.present.items()},
            {},
            {},
            batch.site[i : i + 1],
        )
        for name, out in model(alone).items():
            torch.testing.assert_close(out[0], together[name][i], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kinds", [KINDS, ((0, 1, 0),), ((4, 0, 0),), ((3, 1, 1), (2, 1, 1))])
def test_every_parameter_has_a_gradient_in_every_batch(kinds) -> None:
    model = build().eval()
    torch.cat(list(model(batch_of(kinds)).values()), dim=1).sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())


def test_shared_and_own_parameters_are_all_parameters_once() -> None:
    model = build()
    parts = model.shared_parameters() + [p for head in HEADS for p in model.task_parameters(head.name)]
    assert sorted(map(id, parts)) == sorted(map(id, model.parameters()))
    assert {id(p) for p in model.tokens.values()} <= {id(p) for p in model.shared_parameters()}


def test_there_is_an_encoder_for_what_the_study_has() -> None:
    assert list(build(CaseShape(0, {"rna": 6})).encoders) == ["rna"]
    assert list(build(CaseShape(10)).encoders) == ["wsi"]
    with pytest.raises(ValueError, match="neither tiles nor tables"):
        build(CaseShape(0))
    with pytest.raises(ValueError, match="tiles have 10 features, the model was built for 4"):
        build(CaseShape(4, {"rna": 6}))(batch_of())


def test_modality_dropout_hides_and_leaves_one() -> None:
    model, batch = build(modality_dropout=0.7), batch_of(KINDS * 40)
    present = model.presence(batch)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        shown = model.train()._shown(batch)
    assert not (shown & ~present).any()
    assert shown.any(dim=1).all()
    several = present.sum(dim=1) > 1
    assert 0.3 < shown[several].sum() / present[several].sum() < 0.7
    assert torch.equal(model.eval()._shown(batch), present)
    assert torch.equal(build().train()._shown(batch), present)


def test_another_fusion_takes_the_place_of_the_concatenation() -> None:
    """Modules of other models replace an encoder or the fusion, and nothing else changes."""

    class Mean(torch.nn.Module):
        def forward(self, embeddings):
            return torch.stack(list(embeddings.values())).mean(dim=0)

    model, batch = build().eval(), batch_of()
    model.fusion = Mean()
    expected = torch.stack(list(model.embeddings(batch).values())).mean(dim=0)
    torch.testing.assert_close(model.latents(batch)["OS"], expected)
