"""A model's state as one vector, and its groups."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from equipoise.models.batch import CaseShape, TaskHead
from equipoise.platform.errors import FederationError
from equipoise.platform.federation.vector import Schema, norm_of
from equipoise.platform.training.build import build_model

HEADS = (TaskHead("MSI", "binary", 2), TaskHead("LF", "regression", 1))


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        self.register_buffer("seen", torch.tensor([2.0]))
        self.fixed = nn.Parameter(torch.ones(1), requires_grad=False)


def concat() -> nn.Module:
    small = {"dim": 4, "hidden": 2, "layers": 1}
    return build_model("concat", small, CaseShape(5, {"rna": 3}), HEADS, seed=0)


def test_flatten_and_load_are_inverse() -> None:
    model, other = Normed(), Normed()
    schema = Schema.of(model, [])
    model.body(torch.randn(6, 2))  # moves the statistics and their counter
    schema.load(other, schema.flatten(model))
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
    vector = schema.flatten(model)
    assert np.array_equal(schema.from_named(schema.named(vector)), vector)


def test_kinds_and_what_an_optimiser_moves() -> None:
    schema = Schema.of(Normed(), [])
    kinds = {segment.name: segment.kind for segment in schema.segments}
    assert kinds["body.0.weight"] == "weight"
    assert kinds["body.1.weight"] == kinds["body.1.running_mean"] == "norm"
    assert kinds["seen"] == "buffer"
    assert schema.mask(["norm"]).sum() == 3 * 4 + 1
    assert schema.learned.sum() == 2 * 3 + 3 + 3 + 3


def test_groups_of_tasks_and_modalities() -> None:
    schema = Schema.of(concat(), ["MSI", "LF"])
    groups = {segment.name: segment.group for segment in schema.segments}
    assert groups["heads.0.weight"] == "task:MSI"
    assert groups["heads.1.bias"] == "task:LF"
    assert groups["encoders.rna.network.layers.0.0.weight"] == "modality:rna"
    assert groups["tokens.rna"] == "absent:rna"
    assert groups["fusion.network.0.weight"] == "shared"
    assert np.array_equal(schema.mask(["task"]), schema.mask(["task:MSI", "task:LF"]))
    assert np.array_equal(schema.mask(["re:^heads"]), schema.mask(["task"]))
    values = schema.expand({"task:LF": 2.0}, default=1.0)
    assert np.array_equal(values == 2, schema.mask(["task:LF"]))
    assert sum(span.stop - span.start for _, span in schema.spans) == schema.size


def test_the_hash_tells_layouts_apart() -> None:
    schema = Schema.of(concat(), ["MSI", "LF"])
    assert schema.hash == Schema.of(concat(), ["MSI", "LF"]).hash
    assert schema.hash != Schema.of(concat(), ["MSI"]).hash


def test_refuses_other_lengths_and_numbers() -> None:
    schema = Schema.of(Normed(), [])
    with pytest.raises(FederationError, match="a model of"):
        schema.load(Normed(), np.zeros(3, np.float32))
    with pytest.raises(FederationError, match="weights: fixed"):
        schema.from_named({})
    with pytest.raises(FederationError, match="float64"):
        Schema.of(Normed().double(), [])


def test_norm_is_taken_in_double_precision() -> None:
    assert norm_of(np.full(4, 1e30, np.float32)) == pytest.approx(2e30)
    assert np.isnan(norm_of(np.array([np.nan], np.float32)))
