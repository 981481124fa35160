"""Monitors: metrics within cohorts on a common scale, losses relative to a constant, and what takes their place."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from lifelines.utils import concordance_index
from sklearn.metrics import log_loss, roc_auc_score
from torch import Tensor

from equipoise.datasets.tables.tasks import BinaryTask
from equipoise.models.batch import TaskHead
from equipoise.models.losses import LossSums, TaskLosses
from equipoise.platform.errors import DataError
from equipoise.platform.training.monitor import (
    ValidationMonitor,
    constant_losses,
    mean_metric,
    metrics_of,
    relative_loss,
)
from equipoise.platform.training.predict import Outputs
from equipoise.platform.training.targets import Targets, fit_targets


@pytest.fixture(scope="module")
def targets(tasks, make_cases) -> Targets:
    return fit_targets(tasks, make_cases(24).values())


def outcome(n: int = 40, seed: int = 0, cohorts: int = 3) -> Outputs:
    """Random outputs and labels of n patients; every seventh label is missing."""
    rng = torch.Generator().manual_seed(seed)
    cohort = torch.arange(n) % cohorts
    out = {"MSI": 2, "grade": 3, "LF": 1, "OS": 1}
    outputs = {name: torch.randn(n, k, generator=rng, dtype=torch.float64) for name, k in out.items()}
    days = torch.randint(1, 30, (n,), generator=rng)
    labels = {
        "MSI": torch.randint(0, 2, (n,), generator=rng).double(),
        "grade": torch.randint(0, 3, (n,), generator=rng).double(),
        "LF": torch.rand(n, generator=rng, dtype=torch.float64),
        "OS": torch.stack([days, torch.randint(0, 2, (n,), generator=rng)], dim=1).double(),
    }
    mask = {name: torch.arange(n) % 7 != 3 for name in out}
    return Outputs((), outputs, labels, mask, cohort)


def known(result: Outputs, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    mask = result.label_mask[name]
    return (
        result.outputs[name][mask].numpy(),
        result.targets[name][mask].numpy(),
        result.cohort[mask].numpy(),
    )


def test_metrics_are_those_of_scikit_learn_and_lifelines_within_cohorts(targets) -> None:
    result = outcome()
    metrics = metrics_of(targets, result)
    out, label, cohort = known(result, "MSI")
    pairs, right = 0.0, 0.0
    for k in range(3):
        y, s = label[cohort == k], out[cohort == k, 1] - out[cohort == k, 0]
        count = float(y.sum() * (1 - y).sum())
        pairs, right = pairs + count, right + count * roc_auc_score(y, s)
    assert metrics["MSI"]["auroc"] == pytest.approx(right / pairs)
    out, label, cohort = known(result, "LF")
    dx, dy = (
        v - np.array([v[cohort == k].mean() for k in range(3)])[cohort]
        for v in (out[:, 0].astype(float), label)
    )
    assert metrics["LF"]["pearson"] == pytest.approx(float(np.corrcoef(dx, dy)[0, 1]))
    out, label, cohort = known(result, "OS")
    first = cohort == 0
    expected = concordance_index(label[first, 0], -out[first, 0], label[first, 1])
    only = dataclasses.replace(
        result, label_mask={**result.label_mask, "OS": result.label_mask["OS"] & (result.cohort == 0)}
    )
    assert metrics_of(targets, only)["OS"]["c_index"] == pytest.approx(expected)
    mean = (
        metrics["MSI"]["auroc"] + metrics["grade"]["auroc"]
        + (1 + metrics["LF"]["pearson"]) / 2 + metrics["OS"]["c_index"]
    ) / 4  # fmt: skip
    assert mean_metric(targets, metrics) == pytest.approx(mean)


def test_a_score_of_the_cohort_alone_is_worth_one_half(targets) -> None:
    """Cohorts differ in every label, and the outputs know the cohort only."""
    result = outcome(120)
    rng = np.random.default_rng(1)
    cohort = result.cohort.numpy()
    positive = torch.tensor((rng.random(120) < 0.15 + 0.3 * cohort).astype(float))
    level = result.cohort.double()
    labels = {
        "MSI": positive,
        "grade": result.targets["grade"],
        "LF": torch.tensor(cohort + 0.3 * rng.normal(size=120)),
        "OS": torch.stack([torch.tensor(rng.exponential(40 - 15 * cohort) + 1), torch.ones(120)], 1).double(),
    }
    outputs = {name: level[:, None] * torch.arange(k) if k > 1 else level[:, None] for name, k in
               (("MSI", 2), ("grade", 3), ("LF", 1), ("OS", 1))}  # fmt: skip
    knows = dataclasses.replace(result, targets=labels, outputs=outputs)
    pooled = metrics_of(targets, dataclasses.replace(knows, cohort=torch.zeros(120, dtype=torch.int64)))
    assert pooled["MSI"]["auroc"] > 0.65
    assert pooled["OS"]["c_index"] > 0.6
    assert pooled["LF"]["pearson"] > 0.8
    within = metrics_of(targets, knows)
    assert within["MSI"]["auroc"] == 0.5
    assert within["OS"]["c_index"] == 0.5
    assert within["LF"]["pearson"] == 0.0
    assert within["LF"]["r2"] < 0.1
    assert mean_metric(targets, within) == pytest.approx(0.5)


def constant_by_search(losses: TaskLosses, result: Outputs) -> LossSums:
    """The smallest losses of one output for all patients, by Newton's method on the losses themselves."""
    constants = {
        head.name: torch.zeros(head.outputs, dtype=torch.float64, requires_grad=True) for head in losses.heads
    }
    solver = torch.optim.LBFGS(
        list(constants.values()), lr=1, max_iter=400, tolerance_grad=1e-10, line_search_fn="strong_wolfe"
    )

    def sums() -> LossSums:
        n = len(result.cohort)
        outputs = {name: value.expand(n, -1) for name, value in constants.items()}
        return losses(outputs, result.targets, result.label_mask, result.cohort)

    def closure() -> Tensor:
        solver.zero_grad()
        total = sums().sums.sum()
        total.backward()
        return total

    solver.step(closure)  # type: ignore[arg-type]
    return sums()


@pytest.mark.parametrize("balanced", [True, False])
def test_constant_losses_are_the_smallest_of_a_constant(balanced: bool) -> None:
    heads = (
        TaskHead("MSI", "binary", 2),
        TaskHead("grade", "multiclass", 3),
        TaskHead("LF", "regression", 1),
        TaskHead("OS", "survival", 1, stratified=True),
    )
    result = outcome()
    losses = TaskLosses(heads, {"MSI": (0.6, 1.9), "grade": (0.5, 1.0, 1.5)} if balanced else None)
    expected = constant_by_search(losses, result)
    torch.testing.assert_close(
        constant_losses(losses, result).sums, expected.sums.detach(), rtol=1e-6, atol=1e-8
    )
    if not balanced:
        _, label, _ = known(result, "MSI")
        share = np.full(len(label), label.mean())
        assert float(constant_losses(losses, result).means()[0]) == pytest.approx(log_loss(label, share))
    hazards = (TaskHead("OS", "survival", 3, edges=(8.0, 20.0)),)
    of_time = dataclasses.replace(result, outputs={"OS": torch.zeros(40, 3, dtype=torch.float64)})
    losses = TaskLosses(hazards)
    torch.testing.assert_close(
        constant_losses(losses, of_time).sums,
        constant_by_search(losses, of_time).sums.detach(),
        rtol=1e-6,
        atol=1e-8,
    )


def test_relative_losses_add_up_over_sites() -> None:
    one = LossSums(torch.tensor([2.0, 9.0]), torch.tensor([4.0, 3.0]))
    two = LossSums(torch.tensor([1.0, 0.0]), torch.tensor([2.0, 0.0]))
    constant = LossSums(torch.tensor([6.0, 18.0]), torch.tensor([6.0, 3.0]))
    both = LossSums(one.sums + two.sums, one.counts + two.counts)
    assert relative_loss(both, constant) == pytest.approx((3 / 6 + 9 / 18) / 2)
    nothing = LossSums(
        torch.tensor([6.0, 0.0]), torch.tensor([6.0, 3.0])
    )  # a constant explains all of the second task
    assert relative_loss(both, nothing) == pytest.approx(0.5)
    assert math.isnan(relative_loss(both, LossSums(torch.zeros(2), torch.ones(2))))


def one_class(result: Outputs, *names: str) -> Outputs:
    """No label but those of binary tasks, all negative."""
    mask = {name: m & (name in names) for name, m in result.label_mask.items()}
    return dataclasses.replace(result, label_mask=mask, targets={**result.targets, "MSI": torch.zeros(40)})


def test_a_metric_that_validation_cannot_give_is_replaced_aloud_or_refused(targets, caplog) -> None:
    losses = TaskLosses(targets.heads, targets.class_weights)
    result = one_class(outcome(), "MSI")
    for name in ("main_metric", "mean_loss"):
        monitor = ValidationMonitor(name, targets, losses)
        with pytest.raises(DataError, match=rf"training\.monitor: {name} cannot be computed"):
            monitor.row(monitor.losses_of(result), result, first=True)
    monitor = ValidationMonitor("mean_metric", targets, losses)
    for first in (True, False):
        row = monitor.row(monitor.losses_of(result), result, first=first)
        assert row["monitor"] == row["monitor/val_loss"]
    assert caplog.text.count("training.monitor is val_loss instead of mean_metric") == 1
    alone = dataclasses.replace(outcome(), cohort=torch.arange(40))  # nobody to compare with within a cohort
    monitor = ValidationMonitor("mean_metric", targets, losses)
    row = monitor.row(monitor.losses_of(alone), alone, first=True)
    assert row["monitor"] == row["monitor/mean_loss"]
    assert "training.monitor is mean_loss instead of mean_metric" in caplog.text
    nobody = one_class(outcome())
    with pytest.raises(DataError, match="no validation patient has a label"):
        monitor.row(monitor.losses_of(nobody), nobody, first=True)


def test_a_task_without_its_metric_is_left_out_of_the_mean(targets) -> None:
    result = outcome()
    some = dataclasses.replace(result, targets={**result.targets, "MSI": torch.zeros(40)})
    metrics = metrics_of(targets, some)
    assert math.isnan(metrics["MSI"]["auroc"])
    rest = metrics["grade"]["auroc"], (1 + metrics["LF"]["pearson"]) / 2, metrics["OS"]["c_index"]
    assert mean_metric(targets, metrics) == pytest.approx(sum(rest) / 3)


def test_equal_predictions_have_no_information(make_cases) -> None:
    task = BinaryTask(name="MSI", column="MSI", positive="MSI-H", negative="MSS")
    targets = fit_targets([task], make_cases(12).values())
    result = outcome()
    flat = Outputs((), {"MSI": torch.zeros(40, 2)}, result.targets, result.label_mask, result.cohort)
    assert metrics_of(targets, flat)["MSI"]["auroc"] == 0.5
