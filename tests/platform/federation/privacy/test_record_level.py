"""Gradients of single patients: clipping, noise, and accounting of executed steps."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from torch import nn

from equipoise.models.batch import CaseBatch, CaseShape, TaskHead
from equipoise.models.losses import TaskLosses
from equipoise.platform.errors import FederationError, StudyError
from equipoise.platform.federation.participation import sampling_plan
from equipoise.platform.federation.privacy.accountant import Accountant, SampledGaussian
from equipoise.platform.federation.privacy.record_level import (
    PrivateSteps,
    check_supported,
    clipped_sum,
    gradients_of_patients,
)
from equipoise.platform.training.build import build_model

HEADS = (
    TaskHead("msi", "binary", 2, main=True),
    TaskHead("tme", "regression", 1),
    TaskHead("os", "survival", 4, edges=(100.0, 300.0, 900.0)),
)
B, N, D = 6, 9, 8
SHAPE = CaseShape(D, {"rna": 5})
MODELS = {
    "abmil": {"dim": 8, "hidden": 4, "dropout": 0.0},
    "mean_pool": {"dim": 8, "dropout": 0.0},
    "omics": {"dim": 8, "dropout": 0.0},
    "concat": {"dim": 8, "hidden": 4, "dropout": 0.0},
    "gptomic": {
        "dim": 8,
        "dropout": 0.0,
        "image_params": {"dim": 8, "hidden": 4, "dropout": 0.0},
        "modulation": "none",
    },
    "joint": {
        "dim": 12,
        "heads": 2,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "feedforward": 8,
        "dropout": 0.0,
    },
    "transmil": {"dim": 16, "heads": 2, "landmarks": 4, "dropout": 0.0},
}


def batch(count: int = B) -> CaseBatch:
    g = torch.Generator().manual_seed(0)
    mask = torch.ones(B, N, dtype=torch.bool)
    mask[2, 5:], mask[4, 3:] = False, False
    whole = {
        "bags": torch.randn(B, N, D, generator=g) * mask[..., None],
        "mask": mask,
        "coords": torch.randint(0, 2000, (B, N, 2), generator=g, dtype=torch.int32),
        "omics": {"rna": torch.randn(B, 5, generator=g)},
        "present": {"rna": torch.tensor([1, 1, 0, 1, 1, 1]).bool()},
        "targets": {
            "msi": torch.tensor([0, 1, 1, 0, 1, 0.0]),
            "tme": torch.randn(B, generator=g),
            "os": torch.tensor([[50, 1], [200, 0], [1000, 1], [20, 0], [500, 1], [300.0, 1]]),
        },
        "label_mask": {
            "msi": torch.tensor([1, 1, 0, 1, 1, 0]).bool(),
            "tme": torch.tensor([1, 0, 0, 1, 1, 1]).bool(),
            "os": torch.tensor([1, 1, 0, 1, 1, 1]).bool(),
        },
        "site": torch.zeros(B, dtype=torch.long),
    }
    cut = {
        k: {n: t[:count] for n, t in v.items()} if isinstance(v, dict) else v[:count]
        for k, v in whole.items()
    }
    return CaseBatch(**cut)


def model_of(name: str) -> nn.Module:
    return build_model(name, MODELS[name], SHAPE, HEADS, seed=1)


@pytest.mark.filterwarnings("ignore:torch.searchsorted")
@pytest.mark.parametrize("name", [name for name in MODELS if name not in ("joint", "transmil")])
def test_one_pass_and_one_by_one_give_the_same_gradients(name: str) -> None:
    model, losses, weights = model_of(name), TaskLosses(HEADS), torch.tensor([1.0, 0.5, 2.0])
    one = gradients_of_patients(model, losses, weights, batch(), "loop")
    other = gradients_of_patients(model, losses, weights, batch(), "vmap")
    assert one.shape == (B, sum(p.numel() for p in model.parameters()))
    torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-6)
    assert one.norm(dim=1)[[0, 1, 3, 4, 5]].min() > 0
    assert one[2].norm() == 0  # no label at all


@pytest.mark.parametrize("name", list(MODELS))
def test_gradients_of_patients_sum_to_that_of_the_batch(name: str) -> None:
    model, losses, weights = model_of(name), TaskLosses(HEADS), torch.tensor([1.0, 0.5, 2.0])
    rows = gradients_of_patients(model, losses, weights, batch(), "loop")
    (losses(model(batch()), batch().targets, batch().label_mask, batch().cohort).sums @ weights).backward()
    whole = torch.cat(
        [(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in model.parameters()]
    )
    torch.testing.assert_close(rows.sum(0), whole, rtol=1e-3, atol=1e-5)


def steps_of(model: nn.Module, **changes: object) -> PrivateSteps:
    known = {"clip": 0.5, "noise": 1.0, "patients": B, "rate": 0.5, "accountant": Accountant(1e-3)}
    return PrivateSteps(model, TaskLosses(HEADS), **(known | changes))


@pytest.mark.filterwarnings("ignore:torch.searchsorted")
def test_the_way_is_chosen_by_what_the_model_does() -> None:
    for name, method in [("concat", "vmap"), ("transmil", "loop")]:
        steps = steps_of(model_of(name))
        steps.backward(range(B), lambda rows: batch(), np.random.default_rng(0))
        assert steps.method == method


@pytest.mark.filterwarnings("ignore:torch.searchsorted")
def test_no_patient_counts_for_more_than_the_clip() -> None:
    rows = gradients_of_patients(model_of("abmil"), TaskLosses(HEADS), torch.ones(3), batch(), "vmap")
    rows[1] *= 1e6
    whole = clipped_sum(rows, 0.5)
    for left_out in range(B):
        others = rows[[i for i in range(B) if i != left_out]]
        assert (whole - clipped_sum(others, 0.5)).norm() <= 0.5 * (1 + 1e-9)
    small = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-9) * 0.1
    torch.testing.assert_close(clipped_sum(small, 0.5), small.double().sum(0))


def test_a_gradient_that_is_not_finite_is_an_error() -> None:
    with pytest.raises(ValueError, match="not finite"):
        clipped_sum(torch.tensor([[1.0, math.inf]]), 1.0)


@pytest.mark.filterwarnings("ignore:torch.searchsorted")
def test_the_private_gradient_is_the_clipped_mean_and_noise_of_the_promised_size() -> None:
    model = model_of("mean_pool")
    rows = gradients_of_patients(model, TaskLosses(HEADS), torch.ones(3), batch(), "loop")
    expected = clipped_sum(rows, 0.5) / (0.5 * B)
    gradients = []
    for seed in range(40):
        steps = steps_of(model, chunk=4)
        steps.backward(range(B), lambda chosen: batch(len(chosen)) if chosen[0] == 0 else _tail(), _rng(seed))
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]).double())
    stack = torch.stack(gradients)
    assert abs(float((stack - expected).std()) / (1.0 * 0.5 / (0.5 * B)) - 1) < 0.03
    noise = 0.5 / (0.5 * B) / math.sqrt(40)
    assert float((stack.mean(0) - expected).norm()) < 1.3 * noise * math.sqrt(stack.shape[1])


def _tail() -> CaseBatch:
    whole = batch()
    parts = {}
    for field in dataclasses.fields(whole):
        value = getattr(whole, field.name)
        if isinstance(value, torch.Tensor):
            parts[field.name] = value[4:]
        elif isinstance(value, dict):
            parts[field.name] = {k: v[4:] for k, v in value.items()}
    return CaseBatch(**parts)


def _rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_a_step_with_nobody_is_a_step_with_noise_and_is_counted() -> None:
    model, account = model_of("omics"), Accountant(1e-3)
    steps = steps_of(model, accountant=account)
    steps.backward([], lambda rows: pytest.fail("nobody was drawn"), _rng(0))
    assert all(float(p.grad.norm()) > 0 for p in model.parameters())
    assert account.executed == {SampledGaussian(0.5, 1.0): 1}


def test_a_step_beyond_the_budget_is_not_taken() -> None:
    model = model_of("omics")
    steps = steps_of(model, accountant=Accountant(1e-3, epsilon=0.5))
    with pytest.raises(FederationError, match="would spend epsilon"):
        steps.backward([0], lambda rows: batch(1), _rng(0))
    assert all(p.grad is None for p in model.parameters())


def test_every_patient_is_drawn_with_the_rate() -> None:
    steps = steps_of(model_of("omics"), patients=50, rate=0.2)
    counts = np.zeros(50)
    sizes = set()
    for seed in range(600):
        rows = steps.draw(_rng(seed))
        counts[rows] += 1
        sizes.add(len(rows))
    assert np.abs(counts / 600 - 0.2).max() < 5 * math.sqrt(0.16 / 600)
    assert len(sizes) > 8  # Poisson samples differ in size; batches of a fixed size have another epsilon


@pytest.mark.parametrize(
    ("patients", "size", "epochs", "steps", "expected"),
    [
        (100, 10, 2, None, (0.1, 20)),
        (100, 10, 1, 7, (0.1, 7)),
        (5, 8, 3, None, (1.0, 3)),
        (9, 4, 1, None, (4 / 9, 3)),
    ],
)
def test_plan(patients: int, size: int, epochs: int, steps: int | None, expected: tuple[float, int]) -> None:
    assert sampling_plan(patients, size, epochs, steps) == pytest.approx(expected)


def test_cox_and_batch_norm_are_refused_with_a_way_out() -> None:
    cox = (TaskHead("OS", "survival", 1),)
    with pytest.raises(StudyError, match="discrete_hazard"):
        check_supported(nn.Linear(2, 1), cox)
    with pytest.raises(StudyError, match=r"1 normalise.*group normalisation"):
        check_supported(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), HEADS)
    with pytest.raises(StudyError, match="uncertainty learns"):
        check_supported(nn.Linear(2, 1), HEADS, weighting="uncertainty")
    with pytest.raises(StudyError, match="pcgrad uses the gradients of tasks"):
        check_supported(nn.Linear(2, 1), HEADS, aggregation="pcgrad")
    check_supported(
        nn.Sequential(nn.Linear(2, 2), nn.GroupNorm(1, 2), nn.LayerNorm(2)), HEADS, weighting="static"
    )


@pytest.mark.parametrize(
    ("fusion", "modulation", "refused"),
    [
        ("concat", "none", False),
        ("concat", "gradmod", True),
        ("late", "none", True),
        ("concat", "aux_losses", True),
    ],
)
def test_a_balance_between_branches_is_refused(fusion: str, modulation: str, refused: bool) -> None:
    parts = {"fusion": fusion, "modulation": modulation, "dim": 3, "image_params": {"dim": 3, "hidden": 2}}
    model = build_model("gptomic", parts, CaseShape(4, {"rna": 3}), HEADS, seed=0)
    if refused:
        with pytest.raises(StudyError, match="balance between branches looks at all patients of a step"):
            check_supported(model, HEADS)
    else:
        check_supported(model, HEADS)
