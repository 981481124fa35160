"""Attention and layers against PyTorch's own, and their memory."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

from equipoise.models.joint.attention import DecoderLayer, EncoderLayer, attend

DIM, HEADS, FEEDFORWARD = 24, 3, 40


def bags(b: int = 2, n: int = 7) -> tuple[torch.Tensor, torch.Tensor]:
    mask = torch.ones(b, n, dtype=torch.bool)
    mask[-1, n - 3 :] = False
    return torch.randn(b, n, DIM), mask


def test_encoder_layer_is_pytorchs() -> None:
    ours = EncoderLayer(DIM, HEADS, FEEDFORWARD, 0.0)
    theirs = nn.TransformerEncoderLayer(DIM, HEADS, FEEDFORWARD, 0.0, batch_first=True)
    ours.load_state_dict(theirs.state_dict())
    x, mask = bags()
    expected = theirs(x, src_key_padding_mask=~mask)
    torch.testing.assert_close(ours(x, mask)[mask], expected[mask])
    torch.testing.assert_close(ours(x, None), theirs(x))


def test_decoder_layer_is_pytorchs() -> None:
    ours = DecoderLayer(DIM, HEADS, FEEDFORWARD, 0.0)
    theirs = nn.TransformerDecoderLayer(DIM, HEADS, FEEDFORWARD, 0.0, batch_first=True)
    ours.load_state_dict(theirs.state_dict())
    x, mask = bags()
    tokens = torch.randn(2, 4, DIM)
    torch.testing.assert_close(ours(tokens, x, mask), theirs(tokens, x, memory_key_padding_mask=~mask))


def test_layers_have_pytorchs_number_of_parameters() -> None:
    count = lambda m: sum(p.numel() for p in m.parameters())  # noqa: E731
    assert count(EncoderLayer(384, 6, 768, 0.1)) == count(nn.TransformerEncoderLayer(384, 6, 768, 0.1))
    assert count(DecoderLayer(384, 6, 768, 0.1)) == count(nn.TransformerDecoderLayer(384, 6, 768, 0.1))


def test_heads_do_not_mix() -> None:
    """Attention in blocks of E numbers: a change in one head's values stays in its slice."""
    q, k, v = torch.randn(3, 1, 2, 5, 4).unbind(0)
    changed = v.clone()
    changed[:, 1] += 1
    before, after = attend(q, k, v, None, 0.0), attend(q, k, changed, None, 0.0)
    torch.testing.assert_close(before[:, 0], after[:, 0])
    assert (before[:, 1] != after[:, 1]).all()


@pytest.mark.parametrize(
    ("tiles", "training"),
    [(50_000, False), (8_000, True)],
    ids=["50,000 tiles evaluated", "8,000 tiles trained with dropout"],
)
def test_memory_is_linear_in_tiles(tiles: int, training: bool) -> None:
    """One weight matrix of these bags takes 10 GB and 256 MB, and training would hold several of them."""
    code = f"""
        import resource, torch
        from equipoise.models.batch import CaseBatch, CaseShape, TaskHead
        from equipoise.models.entries import JointParams
        from equipoise.models.joint.model import JointTransformer

        torch.set_num_threads(1)
        peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        params = JointParams(dim=8, heads=1, encoder_layers=1, decoder_layers=1, feedforward=8)
        model = JointTransformer(params, CaseShape(4), [TaskHead("MSI", "binary", 2)])

        def step(n):
            mask, site = torch.ones(1, n, dtype=torch.bool), torch.zeros(1, dtype=torch.int64)
            batch = CaseBatch(torch.randn(1, n, 4), mask, torch.zeros(1, n, 2), {{}}, {{}}, {{}}, {{}}, site)
            model.train({training})
            with torch.set_grad_enabled({training}):
                out = model(batch)["MSI"].sum()
            if {training}:
                out.backward()

        step(64)  # libraries are loaded by now
        before = peak()
        step({tiles})
        print(peak() - before)
    """
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert float(run.stdout) < 150, "MiB"
