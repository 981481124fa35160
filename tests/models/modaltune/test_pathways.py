"""Networks of pathways against a loop, and the parameters of the published configuration."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch.nn import functional

from equipoise.models.batch import CaseShape, TaskHead
from equipoise.models.entries import ModalTuneParams
from equipoise.models.modaltune.entries import PathwayTokensParams
from equipoise.models.modaltune.model import ModalTune
from equipoise.models.modaltune.pathways import PathwayNetworks, PathwayTokens
from equipoise.models.slide_encoders.card import LONGNET
from equipoise.models.slide_encoders.longnet import LongNet
from equipoise.models.slide_encoders.protocol import SlideTokens


def random_sets(sizes: list[int], genes: int, seed: int = 0) -> tuple[tuple[int, ...], ...]:
    rng = np.random.default_rng(seed)
    return tuple(tuple(rng.choice(genes, size, replace=False).tolist()) for size in sizes)


def by_loop(module: PathwayNetworks, sets, x: torch.Tensor) -> torch.Tensor:
    """One pathway after the other."""
    out, start = [], 0
    for at, genes in enumerate(sets):
        weight = module.first[start : start + len(genes)]
        start += len(genes)
        h = functional.elu(x[:, list(genes)] @ weight + module.first_bias[at])
        out.append(functional.elu(h @ module.second[at] + module.second_bias[at]))
    return torch.stack(out, dim=1)


@pytest.mark.parametrize("sizes", [[1], [3, 1, 8, 2, 9, 1, 31, 4, 5], [7] * 5])
def test_grouped_networks_equal_a_loop(sizes) -> None:
    torch.manual_seed(0)
    sets = random_sets(sizes, 40)
    module = PathwayNetworks(sets, 6, 0.25).eval()
    for bias in (module.first_bias, module.second_bias):
        torch.nn.init.normal_(bias)
    x = torch.randn(5, 40)
    grouped, looped = module(x), by_loop(module, sets, x)
    torch.testing.assert_close(grouped, looped, rtol=0, atol=1e-6)
    target = torch.randn_like(grouped)
    gradients = [
        torch.autograd.grad((out * target).sum(), list(module.parameters())) for out in (grouped, looped)
    ]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_a_pathway_reads_its_genes_only() -> None:
    sets = ((0, 1), (1, 2, 3))
    networks = PathwayNetworks(sets, 4, 0.0)
    x = torch.randn(1, 5, requires_grad=True)
    for at, genes in enumerate(sets):
        grad = torch.autograd.grad(networks(x)[0, at].sum(), x)[0][0]
        assert set(grad.nonzero()[:, 0].tolist()) == set(genes)


def test_outputs_start_on_the_scale_of_their_inputs() -> None:
    """Of large and of small pathways: weights have variance 1 / genes."""
    torch.manual_seed(0)
    module = PathwayNetworks(random_sets([2] * 200 + [128] * 20, 500), 32, 0.0)
    layer = []
    handle = module.dropout.register_forward_pre_hook(lambda _, args: layer.append(args[0]))
    module(torch.randn(64, 500))
    handle.remove()
    spread = layer[0].var(dim=(1, 2))
    assert abs(spread[:200].mean() / spread[200:].mean() - 1) < 0.1


def test_tokens_without_gene_sets_are_refused() -> None:
    with pytest.raises(ValueError, match="need gene sets of the rna table"):
        PathwayTokens(PathwayTokensParams(), CaseShape(0, {"rna": 5}), "rna", 8)


class Stub:
    """The published encoder's stages and width, without its weights."""

    fingerprint, stages, device = "stub", 12, "cpu"

    def dim(self, tile_dim: int) -> int:
        return 768

    def stem(self, tiles) -> SlideTokens:
        return SlideTokens(torch.zeros(1, 2, 768), 1, tiles)


def test_parameters_of_the_published_configuration() -> None:
    """331 pathways of 4,987 genes with 9,731 memberships, three tasks, 64 tokens of RNA: 33,524,890 are trained."""
    sizes = [29] * 199 + [30] * 132
    assert (len(sizes), sum(sizes)) == (331, 9731)
    shape = CaseShape(1536, {"rna": 4987}, {"rna": tuple(tuple(range(size)) for size in sizes)})
    heads = [TaskHead(name, "regression", 1) for name in ("general", "diagnosis", "survival")]
    params = ModalTuneParams(rna="pathways", rna_params={"tokens": 64})
    rna = partial(PathwayTokens, PathwayTokensParams(tokens=64))
    model = ModalTune(params, shape, heads, slide_encoder=Stub, rna=rna)
    # Ours: the published model has no heads and drops patients without RNA.
    heads_of_ours, tokens_of_ours = 3 * 257, 2 * 768
    trained = sum(p.numel() for p in model.parameters())
    assert trained - heads_of_ours - tokens_of_ours == 33_524_890
    with torch.device("meta"):
        frozen = LongNet(LONGNET["gigapath_slide"])
    assert sum(p.numel() for p in frozen.parameters()) == 86_330_880
