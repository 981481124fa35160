"""Branches in the training loop: what is logged, what a coefficient acts on, workers, checkpoints, added tasks."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from equipoise.models.batch import CaseShape
from equipoise.models.gptomic.ratios import task_ratios
from equipoise.models.losses import TaskLosses
from equipoise.platform.errors import StudyError
from equipoise.platform.training.batches import CaseList
from equipoise.platform.training.build import build_balancer, build_model
from equipoise.platform.training.distributed import SINGLE_WORKER
from equipoise.platform.training.loop import fit
from equipoise.platform.training.modulation import (
    BRANCH,
    balanced_heads,
    modulation_warnings,
    parameter_groups,
)
from equipoise.platform.training.params import BalancingParams, Recipe, TrainingParams
from equipoise.platform.training.step import Epoch, TrainingState
from equipoise.platform.training.targets import fit_targets

SMALL = {
    "dim": 6,
    "layers": 1,
    "image": "mean_pool",
    "image_params": {"dim": 6, "dropout": 0.0},
    "dropout": 0.0,
}
TRAINING = TrainingParams(epochs=3, batch=8, lr=3e-3, weight_decay=0.0, patience=9)


@pytest.fixture(scope="module")
def data(tasks, make_cases):
    """Training and validation patients, and targets of a survival task and a binary one."""
    cases = make_cases(30, missing=False)
    names = sorted(cases)
    train, val = CaseList(cases, tuple(names[:20])), CaseList(cases, tuple(names[20:]))
    return train, val, fit_targets((tasks[3], tasks[0]), train)


def model_of(targets, **changes: Any):
    params = SMALL | changes
    return build_model("gptomic", params, targets.shape, targets.heads, seed=1)


def one_step(data, optimizer=torch.optim.AdamW, training=TRAINING, **changes: Any):
    """Weights before and after a step over all training patients, by branch; "" are the others."""
    train, val, targets = data
    model = model_of(targets, **changes)
    groups = parameter_groups(model)
    before = {g.get(BRANCH, ""): [p.detach().clone() for p in g["params"]] for g in groups}
    kwargs = {"weight_decay": training.weight_decay}
    state = TrainingState(
        model,
        TaskLosses(targets.heads, targets.class_weights),
        optimizer(groups, lr=training.lr, **kwargs),
        build_balancer(BalancingParams(), model, balanced_heads(model, targets.heads)),
        torch.device("cpu"),
        SINGLE_WORKER,
    )
    epoch = Epoch(state, targets, train, val, training, size=len(train), seed=0, epoch=0, lr=training.lr)
    epoch.step(range(len(train)))
    after = {
        g.get(BRANCH, ""): [p.detach().clone() for p in g["params"]] for g in state.optimizer.param_groups
    }
    moves = {
        name: torch.cat([(b - a).flatten() for a, b in zip(before[name], after[name], strict=True)])
        for name in before
    }
    return (
        moves,
        epoch.branch_row(),
        {n: torch.cat([p.flatten() for p in ps]) for n, ps in before.items()},
        state,
    )


def with_gradient(data) -> dict[str, torch.Tensor]:
    """Where the gradient is large beside Adam's epsilon; the bias of Cox's model has none but rounding."""
    moves, _, _, _ = one_step(data, torch.optim.SGD, modulation="none")
    return {name: move.abs() > 1e-5 * TRAINING.lr for name, move in moves.items()}


def constant(monkeypatch, factors: float) -> None:
    """A modulation that slows every branch by the same factor, whatever its ratio."""
    from equipoise.models.gptomic.modulations import GradMod

    monkeypatch.setattr(GradMod, "coefficient", lambda self, ratio: factors)


@pytest.mark.parametrize("fusion", ["concat", "kronecker", "late", "attention"])
@pytest.mark.parametrize(
    "modulation", ["none", "gradmod", "ogm_ge", "aux_losses", "modality_dropout", "rank_distillation"]
)
def test_every_epoch_logs_ratios_coefficients_and_branches(data, fusion, modulation) -> None:
    train, val, targets = data
    result = fit(
        model_of(targets, fusion=fusion, modulation=modulation), targets, train, val, TRAINING, seed=0
    )
    slows = modulation in ("gradmod", "ogm_ge")
    for row in result.history:
        assert row["rho/image"] * row["rho/omics"] == pytest.approx(1, rel=1e-6)
        for name in ("image", "omics"):
            assert 0 <= row[f"coefficient/{name}"] <= 1
            assert 0 <= row[f"c/OS/{name}"] <= 1
            assert 0 <= row[f"auroc/MSI/{name}"] <= 1
        moved = min(row["coefficient/image"], row["coefficient/omics"]) < 1
        assert moved is slows


def test_a_coefficient_on_the_learning_rate_scales_the_step_and_nothing_else(data, monkeypatch) -> None:
    plain, _, _, _ = one_step(data, modulation="none")
    constant(monkeypatch, 0.25)
    slowed, row, _, state = one_step(data, modulation_params={"acts_on": "lr"})
    assert row["coefficient/omics"] == 0.25
    known = with_gradient(data)
    assert torch.equal(slowed[""], plain[""])  # heads and covariates
    for name in ("image", "omics"):
        torch.testing.assert_close(slowed[name], 0.25 * plain[name], rtol=1e-4, atol=1e-7)
        assert plain[name][known[name]].abs().min() > 0.9 * TRAINING.lr
    assert {group["lr"] for group in state.optimizer.param_groups} == {TRAINING.lr}


def test_adam_divides_a_factor_of_the_gradient_out_again(data, monkeypatch) -> None:
    plain, _, _, _ = one_step(data, modulation="none")
    constant(monkeypatch, 0.25)
    under_adam, _, _, _ = one_step(data, modulation_params={"acts_on": "gradient"})
    known = with_gradient(data)
    for name in ("", "image", "omics"):
        worst = (under_adam[name] / plain[name] - 1)[known[name]].abs().max()
        assert worst < 1e-2
    sgd, _, _, _ = one_step(data, torch.optim.SGD, modulation="none")
    assert sgd["image"].abs().max() > 0
    for acts_on in ("gradient", "lr", "update"):
        slowed, _, _, _ = one_step(data, torch.optim.SGD, modulation_params={"acts_on": acts_on})
        torch.testing.assert_close(slowed["image"], 0.25 * sgd["image"], rtol=1e-3, atol=5e-8)
        torch.testing.assert_close(slowed[""], sgd[""])


def test_a_coefficient_on_the_update_leaves_weight_decay_alone(data, monkeypatch) -> None:
    training = TRAINING.model_copy(update={"weight_decay": 0.5})
    plain, _, before, _ = one_step(data, training=training, modulation="none")
    constant(monkeypatch, 0.25)
    shrink = training.lr * training.weight_decay
    for acts_on, decay in (("update", 1.0), ("lr", 0.25)):
        slowed, _, _, _ = one_step(data, training=training, modulation_params={"acts_on": acts_on})
        for name in ("image", "omics"):
            gradient_part = plain[name] + shrink * before[name]
            expected = 0.25 * gradient_part - decay * shrink * before[name]
            torch.testing.assert_close(slowed[name], expected, rtol=1e-3, atol=1e-6)


def test_noise_has_the_spread_of_each_gradient(data) -> None:
    """GE: Gaussian noise of each gradient's standard deviation, drawn from the seed; heads have none."""
    quiet = one_step(data, torch.optim.SGD, modulation="ogm_ge", modulation_params={"noise": False})
    loud = one_step(data, torch.optim.SGD, modulation="ogm_ge")
    again = one_step(data, torch.optim.SGD, modulation="ogm_ge")
    assert torch.equal(loud[0][""], quiet[0][""])
    for name in ("image", "omics"):
        assert torch.equal(loud[0][name], again[0][name])
        sizes = [p.numel() for p in loud[3].model.branches()[name]]
        off = (loud[0][name] - quiet[0][name]).split(sizes)
        factor = quiet[1][f"coefficient/{name}"]
        for noise, step in zip(off, quiet[0][name].split(sizes), strict=True):
            spread = float(step.std()) / factor if len(step) > 1 else 0.0
            if len(step) >= 36 and spread:
                assert float(noise.std()) / spread == pytest.approx(1, abs=0.35)


def test_the_ratio_is_that_of_the_patients_with_all_branches(data) -> None:
    """Against the definition, from the scores of the model."""
    train, _, targets = data
    model = model_of(targets, modulation="none")
    _, row, _, _ = one_step(data, modulation="none")
    from equipoise.platform.training.batches import collate

    model.train()
    batch = collate(list(train), targets)
    forward = model.forward_with_branches(batch)
    both = forward.present["image"] & forward.present["omics"]
    assert 0 < both.sum() < len(batch)
    per_task = []
    days, event = batch.targets["OS"][both].unbind(1)
    cohort = batch.cohort[both]  # Cox's model is stratified by cohort
    values = {}
    for name in ("image", "omics"):
        s = forward.scores["OS"][name][both, 0].detach().double()
        values[name] = torch.stack(
            [
                s[k] - torch.logsumexp(s[(days >= days[k]) & (cohort == cohort[k])], 0)
                for k in range(len(s))
                if event[k]
            ]
        )
    per_task.append(task_ratios("share_sum", values))
    label = batch.targets["MSI"][both].long()
    values = {
        name: forward.scores["MSI"][name][both].detach().double().log_softmax(1)[range(len(label)), label]
        for name in ("image", "omics")
    }
    per_task.append(task_ratios("share_sum", values))
    expected = math.sqrt(per_task[0]["image"] * per_task[1]["image"])
    assert row["rho/image"] == pytest.approx(expected, rel=1e-5)


def test_own_losses_are_terms_with_their_weight(data) -> None:
    """The step of an objective L + w Σ L_m, by hand."""
    train, _, targets = data
    weight = 0.7
    changes = {"modulation": "aux_losses", "modulation_params": {"weight": weight}}
    moves, _, _, _ = one_step(data, torch.optim.SGD, **changes)
    model = model_of(targets, **changes).train()
    from equipoise.platform.training.batches import collate

    batch = collate(list(train), targets)
    losses = TaskLosses(targets.heads, targets.class_weights)
    forward = model.forward_with_branches(batch)
    total = losses(forward.outputs, batch.targets, batch.label_mask, batch.cohort).means().sum()
    for name, own in forward.own.items():
        masks = {task: mask & forward.present[name] for task, mask in batch.label_mask.items()}
        total = total + weight * losses(own, batch.targets, masks, batch.cohort).means().sum()
    total.backward()
    for name, parameters in model.branches().items():
        gradient = torch.cat([p.grad.flatten() for p in parameters])
        torch.testing.assert_close(moves[name], -TRAINING.lr * gradient, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize(
    "balancing",
    ["uncertainty+pcgrad", "dwa+none", "equal+mgda", "famo+none", "equal+sdmgrad", "auto_lambda+none"],
)
def test_branches_are_tasks_of_any_balancing_method(data, balancing: str) -> None:
    train, val, targets = data
    model = model_of(targets, modulation="aux_losses", modulation_params={"enter": "tasks"})
    method = BalancingParams.model_validate(balancing)
    result = fit(model, targets, train, val, TRAINING, seed=0, balancing=method)
    added = {f"weight/{task}@{branch}" for task in ("OS", "MSI") for branch in ("image", "omics")}
    for row in result.history:
        assert added <= set(row)
        assert {key for key in row if key.startswith("train/")} == {"train/OS", "train/MSI"}
    assert "cosine/OS|OS@image" in row


def test_resumed_equals_uninterrupted(data, tmp_path) -> None:
    train, val, targets = data

    class InterruptedTrainingError(Exception):
        pass

    def stop(row):
        if row["epoch"] == 2:
            raise InterruptedTrainingError

    changes = {"modulation": "ogm_ge", "dropout": 0.3}
    whole = model_of(targets, **changes)
    expected = fit(whole, targets, train, val, TRAINING, seed=0)
    file = tmp_path / "checkpoint.pt"
    first = model_of(targets, **changes)
    with pytest.raises(InterruptedTrainingError):
        fit(first, targets, train, val, TRAINING, seed=0, checkpoint=file, report=stop)
    second = model_of(targets, **changes)
    resumed = fit(second, targets, train, val, TRAINING, seed=0, checkpoint=file)
    np.testing.assert_equal([dict(r) for r in resumed.history], [dict(r) for r in expected.history])
    for a, b in zip(whole.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_checkpoint_of_another_modulation_is_refused(data, tmp_path) -> None:
    train, val, targets = data
    file = tmp_path / "checkpoint.pt"
    short = TRAINING.model_copy(update={"epochs": 1})
    fit(model_of(targets, modulation="none"), targets, train, val, short, seed=0, checkpoint=file)
    with pytest.raises(StudyError, match="belongs to another training"):
        fit(model_of(targets, modulation="gradmod"), targets, train, val, short, seed=0, checkpoint=file)


def test_one_branch_has_nothing_to_balance(data) -> None:
    train, val, targets = data
    alone = replace(targets, shape=CaseShape(targets.shape.features), tables={})
    result = fit(model_of(alone), alone, train, val, TRAINING, seed=0)
    assert math.isnan(result.history[0]["rho/image"])
    assert result.history[0]["coefficient/image"] == 1
    assert "c/OS/image" in result.history[0]


def test_an_optimiser_without_groups_of_branches_is_refused(data) -> None:
    train, val, targets = data
    model = model_of(targets)
    state = TrainingState(
        model,
        TaskLosses(targets.heads),
        torch.optim.AdamW(model.parameters()),
        build_balancer(BalancingParams(), model, targets.heads),
        torch.device("cpu"),
        SINGLE_WORKER,
    )
    epoch = Epoch(state, targets, train, val, TRAINING, size=20, seed=0, epoch=0, lr=1e-3)
    with pytest.raises(ValueError, match="no parameter group for branch"):
        epoch.step(range(20))


def test_a_modulation_that_hardly_acted_is_said(data) -> None:
    row = {"rho/image": 1.001, "rho/omics": 0.999, "coefficient/image": 0.999, "coefficient/omics": 1.0}
    recipe = Recipe(model="gptomic", model_params={"modulation": "gradmod"})
    (said,) = modulation_warnings(recipe, [row, row])
    assert "gradmod hardly acted: the coefficients of image and omics never fell below 0.99" in said
    assert "at most 1" in said
    assert modulation_warnings(recipe, [row, row | {"coefficient/image": 0.8}]) == []
    alone = {"rho/image": math.nan, "coefficient/image": 1.0}
    assert "for want of a second branch" in modulation_warnings(recipe, [alone])[0]
    for quiet in ("none", "aux_losses"):
        other = Recipe(model="gptomic", model_params={"modulation": quiet})
        assert modulation_warnings(other, [row]) == []
    assert modulation_warnings(Recipe(model="abmil"), [{"epoch": 1}]) == []
