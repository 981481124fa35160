"""Stored hidden states in place of tiles: the same outputs and gradients to the precision of float16."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from equipoise.models.entries import ModalTuneParams
from equipoise.models.modaltune.interaction import Extractor
from equipoise.models.slide_encoders.state_encoding import encode_states

CACHED = [
    {"mode": "ladder", "cache": True},
    {"mode": "ladder", "cache": True, "skipped": 1, "blocks": 2},
    {"mode": "joint", "cache": True, "skipped": 2, "blocks": 2, "gamma": 0.5},
    {"mode": "full", "cache": True, "skipped": 1, "blocks": 1, "gamma": 0.5},
]


def with_states(batch, model, prototypes: int | None = None):
    """The batch with states as a store gives them; its tiles are zeros then, as in training."""
    kept = replace(model.frozen.kept, prototypes=prototypes)
    parts = []
    for bag, mask, corners in zip(batch.bags, batch.mask, batch.corners, strict=True):
        if mask.any():
            made = encode_states(
                model.frozen.encoder, kept, *(t[mask].numpy() for t in (bag, corners)), 112.0
            )
        else:
            made = np.zeros((0, 0), np.float16), np.zeros(0, np.int32)
        parts.append(made)
    most, width = max(len(x) for x, _ in parts), max(x.shape[1] for x, _ in parts)
    states, counts = torch.zeros(len(batch), most, width, dtype=torch.float16), torch.zeros(len(batch), most)
    for i, (x, n) in enumerate(parts):
        states[i, : len(x), : x.shape[1]], counts[i, : len(n)] = torch.from_numpy(x), torch.from_numpy(n)
    return replace(batch, bags=torch.zeros_like(batch.bags), states=states, state_counts=counts)


def changed(model, std: float = 0.3):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(std * torch.randn_like(parameter))
    return model


def gradients(model, batch):
    model.zero_grad()
    outputs = model(batch)
    sum(out.square().sum() for out in outputs.values()).backward()
    return outputs, {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("changes", CACHED)
def test_outputs_and_gradients_are_those_without_a_store(make_model, make_batch, changes) -> None:
    """Padding and a case without tiles included; the encoder itself is not run (ladder)."""
    model, batch = changed(make_model(**changes)).eval(), make_batch()
    assert model.reads_states
    outputs, wanted = gradients(model, batch)
    stored = with_states(batch, model)
    if changes["mode"] == "ladder":
        model.frozen.encoder.run_stage = None  # would fail
    found, grads = gradients(model, stored)
    for task, out in outputs.items():
        torch.testing.assert_close(found[task], out, rtol=5e-3, atol=5e-3)
    for name, grad in wanted.items():
        scale = grad.abs().max().clamp(min=1.0)
        torch.testing.assert_close(grads[name] / scale, grad / scale, rtol=0, atol=1e-2, msg=name)


@torch.no_grad()
def test_no_case_with_tiles(make_model, make_batch) -> None:
    model = changed(make_model(mode="ladder", cache=True)).eval()
    batch = make_batch(((0, 1, 1, 1), (0, 0, 1, 0)))
    empty = replace(batch, states=torch.zeros(2, 0, 48, dtype=torch.float16), state_counts=torch.zeros(2, 0))
    for task, out in model(batch).items():
        torch.testing.assert_close(model(empty)[task], out)


@torch.no_grad()
def test_as_many_prototypes_as_tiles_change_nothing(make_model, make_batch) -> None:
    batch = make_batch()
    every = changed(make_model(mode="ladder", cache=True)).eval()
    few = changed(make_model(mode="ladder", cache=True, prototypes=4)).eval()
    wanted = every(with_states(batch, every))
    for task, out in few(with_states(batch, few, 4)).items():
        torch.testing.assert_close(out, wanted[task], rtol=1e-4, atol=1e-5)
    other = changed(make_model(mode="ladder", cache=True, prototypes=2)).eval()
    assert (other(with_states(batch, other, 2))["OS"] - wanted["OS"]).abs().max() > 1e-3


@torch.no_grad()
def test_a_tile_with_a_count_is_that_many_equal_tiles() -> None:
    torch.manual_seed(0)
    extractor = Extractor(16, 8, 2)
    c, place, x = torch.randn(2, 3, 16), torch.randn(3, 16), torch.randn(2, 4, 16)
    counts = torch.tensor([[3.0, 1, 2, 0], [1, 5, 0, 0]])
    found = extractor(c, place, x, counts > 0, counts)
    for i in range(2):
        repeated = torch.repeat_interleave(x[i], counts[i].long(), dim=0)[None]
        wanted = extractor(c[i : i + 1], place, repeated, torch.ones(1, repeated.shape[1], dtype=torch.bool))
        torch.testing.assert_close(found[i : i + 1], wanted)


def test_what_cannot_be_stored_is_refused(make_model, make_batch) -> None:
    for params, words in (
        ({"cache": True}, "mode joint injects before the first stage"),
        ({"prototypes": 4}, "mode: ladder and cache: true"),
        ({"prototypes": 4, "cache": True, "skipped": 2}, "mode: ladder and cache: true"),
    ):
        with pytest.raises(ValidationError, match=words):
            ModalTuneParams(**params)
    assert ModalTuneParams(mode="ladder").hidden_states is None
    assert ModalTuneParams(mode="ladder", cache=True, modalities=("rna",)).hidden_states is None
    with pytest.raises(ValueError, match="run `equipoise extract`"):
        make_model(mode="ladder", cache=True, prototypes=2)(make_batch())
    model, batch = make_model(mode="ladder", cache=True), make_batch()
    with pytest.raises(ValueError, match="do not fit 5 tokens"):
        model(replace(with_states(batch, model), states=torch.zeros(6, 3, 48, dtype=torch.float16)))
