"""The Kronecker product against einsum and autograd, attention against its formula, late fusion's absent branches."""

from __future__ import annotations

import pytest
import torch

from equipoise.models.batch import TaskHead
from equipoise.models.gptomic.entries import (
    FUSIONS,
    AttentionFusionParams,
    KroneckerFusionParams,
    LateFusionParams,
)
from equipoise.models.gptomic.fusions import AttentionFusion, LateFusion
from equipoise.models.gptomic.kronecker import KroneckerFusion, kronecker

HEAD = TaskHead("OS", "survival", 1)


def vectors(
    widths: dict[str, int], b: int = 4, dtype: torch.dtype = torch.float64
) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    return {
        name: torch.randn(b, width, generator=rng, dtype=dtype).requires_grad_()
        for name, width in widths.items()
    }


@pytest.mark.parametrize("widths", [(3,), (3, 4), (2, 3, 4)])
def test_kronecker_equals_einsum_and_its_gradients(widths: tuple[int, ...]) -> None:
    rng = torch.Generator().manual_seed(0)
    parts = [torch.randn(5, w, generator=rng, dtype=torch.float64).requires_grad_() for w in widths]
    letters = "ijk"[: len(widths)]
    equation = ",".join(f"b{letter}" for letter in letters) + "->b" + letters
    expected = torch.einsum(equation, *parts).flatten(1)
    product = kronecker(parts)
    torch.testing.assert_close(product, expected)
    weight = torch.randn(product.shape, generator=rng, dtype=torch.float64)
    ours = torch.autograd.grad((product * weight).sum(), parts, retain_graph=True)
    theirs = torch.autograd.grad((expected * weight).sum(), parts)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)
    assert torch.autograd.gradcheck(lambda *rows: kronecker(list(rows)), parts)


def test_the_product_holds_each_branch_alone_and_a_one() -> None:
    fusion = KroneckerFusion(KroneckerFusionParams(dim=3, hidden=5), {"image": 4, "omics": 6}).double().eval()
    a, b = fusion.appended(vectors({"image": 4, "omics": 6}))
    assert torch.equal(a[:, -1], torch.ones(4, dtype=torch.float64))
    product = kronecker([a, b]).reshape(4, 4, 4)
    torch.testing.assert_close(product[:, :-1, -1], a[:, :-1])
    torch.testing.assert_close(product[:, -1, :-1], b[:, :-1])
    torch.testing.assert_close(product[:, -1, -1], torch.ones(4, dtype=torch.float64))


def test_gates_see_all_branches() -> None:
    """The formulas of Pathomic Fusion, written out."""
    widths = {"image": 4, "omics": 6}
    fusion = KroneckerFusion(KroneckerFusionParams(dim=3, hidden=5), widths).double().eval()
    v = vectors(widths)
    together = torch.cat(list(v.values()), dim=1)
    expected = []
    for m, rows in enumerate(v.values()):
        h = torch.relu(rows @ fusion.content[m].weight.T + fusion.content[m].bias)
        z = 1 / (1 + torch.exp(-(together @ fusion.gate[m].weight.T + fusion.gate[m].bias)))
        expected.append(torch.relu((z * h) @ fusion.gated[m].weight.T + fusion.gated[m].bias))
    for part, o in zip(fusion.appended(v), expected, strict=True):
        torch.testing.assert_close(part[:, :-1], o)


def test_every_fusion_has_the_width_it_says() -> None:
    from importlib import import_module

    widths = {"image": 4, "omics": 6}
    present = {name: torch.ones(4, dtype=torch.bool) for name in widths}
    for name, (_, params, where) in FUSIONS.items():
        module, _, attribute = where.partition(":")
        fusion = getattr(import_module(module), attribute)(params(), widths).double().eval()
        for head in (HEAD, TaskHead("grade", "multiclass", 3)):
            scores = {n: torch.zeros(4, head.outputs, dtype=torch.float64) for n in widths}
            fused = fusion(vectors(widths), present, scores)
            assert fused.shape == (4, fusion.width(head)), name
            assert bool(fusion.columns(head)) is params.additive
            if params.additive:
                spans = list(fusion.columns(head).values())
                assert [s.start for s in spans] == [0, spans[0].stop]
                assert spans[-1].stop == fusion.width(head)


def test_attention_weighs_the_branches_that_are_there() -> None:
    widths = {"image": 4, "omics": 6}
    fusion = AttentionFusion(AttentionFusionParams(dim=5, hidden=3), widths).double().eval()
    v = vectors(widths)
    shown = {
        "image": torch.tensor([True, True, False, False]),
        "omics": torch.tensor([True, False, True, False]),
    }
    fused = fusion(v, shown, {})
    h = [layer(rows) for layer, rows in zip(fusion.project, v.values(), strict=True)]
    torch.testing.assert_close(fused[1], h[0][1])
    torch.testing.assert_close(fused[2], h[1][2])
    a = fusion.attention
    score = [
        (torch.tanh(a.content(x)) * torch.sigmoid(a.gate(x)) @ a.score.weight[0] + a.score.bias)[:1]
        for x in h
    ]
    weight = torch.softmax(torch.cat(score).float(), 0).double()
    torch.testing.assert_close(fused[0], weight[0] * h[0][0] + weight[1] * h[1][0], rtol=1e-6, atol=1e-8)
    assert torch.isfinite(fused[3]).all()  # no branch at all: both tokens


@pytest.mark.parametrize("train", ["apart", "together"])
def test_late_fusion_leaves_out_what_is_absent(train: str) -> None:
    fusion = LateFusion(LateFusionParams(train=train), {"image": 4, "omics": 6})
    scores = {"image": torch.tensor([[2.0], [3.0]]), "omics": torch.tensor([[5.0], [7.0]])}
    shown = {"image": torch.tensor([True, False]), "omics": torch.tensor([True, True])}
    scores = {name: rows.requires_grad_() for name, rows in scores.items()}
    fused = fusion({}, shown, scores)
    assert fused.tolist() == [[2.0, 5.0], [0.0, 7.0]]
    assert fused.requires_grad is (train == "together")
