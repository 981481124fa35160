"""Evidence of branches against loops written from the definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from equipoise.models.batch import TaskHead
from equipoise.models.gptomic.ratios import cox_log_shares, log_likelihoods, mean_ratios, task_ratios

COX = TaskHead("OS", "survival", 1)


def draw(n: int = 40, seed: int = 0, scale: float = 2.0):
    rng = np.random.default_rng(seed)
    score = torch.tensor(rng.normal(scale=scale, size=n))
    time = torch.tensor(rng.integers(1, 12, n).astype(float))  # heavily tied
    event = torch.tensor((rng.random(n) < 0.6).astype(float))
    strata = torch.tensor(rng.integers(0, 3, n))
    return score, time, event, strata


def loop_shares(score, time, event, strata) -> list[float]:
    shares = []
    for k in range(len(score)):
        if event[k]:
            risk_set = [j for j in range(len(score)) if strata[j] == strata[k] and time[j] >= time[k]]
            shares.append(math.exp(score[k]) / sum(math.exp(score[j]) for j in risk_set))
    return shares


@pytest.mark.parametrize("stratified", [False, True])
def test_cox_shares_equal_a_loop(stratified: bool) -> None:
    score, time, event, strata = draw()
    groups = strata if stratified else torch.zeros_like(strata)
    shares = cox_log_shares(score, time, event, strata if stratified else None).exp()
    expected = loop_shares(score.tolist(), time.tolist(), event.tolist(), groups.tolist())
    assert sorted(shares.tolist()) == pytest.approx(sorted(expected), rel=1e-12)


def test_share_sum_and_geometric_equal_their_definitions() -> None:
    score, time, event, _ = draw()
    other = draw(seed=1)[0]
    target = torch.stack([time, event], dim=1)
    zeros = torch.zeros(len(score))
    values = {
        name: log_likelihoods(COX, s[:, None], target, zeros) for name, s in (("G", score), ("P", other))
    }
    shares = {
        name: loop_shares(s.tolist(), time.tolist(), event.tolist(), zeros.tolist())
        for name, s in (("G", score), ("P", other))
    }
    summed = sum(shares["G"]) / sum(shares["P"])
    assert task_ratios("share_sum", values)["G"] == pytest.approx(summed)
    losses = {name: -np.mean(np.log(rows)) for name, rows in shares.items()}
    expected = math.exp(losses["P"] - losses["G"])
    assert task_ratios("geometric", values)["G"] == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["share_sum", "geometric", "as_printed"])
def test_ratios_of_two_branches_are_reciprocal(kind: str) -> None:
    score, time, event, _ = draw()
    target, zeros = torch.stack([time, event], dim=1), torch.zeros(len(score))
    printed = kind == "as_printed"
    values = {
        name: log_likelihoods(COX, s[:, None], target, zeros, printed=printed)
        for name, s in (("G", score), ("P", draw(seed=1)[0]))
    }
    ratios = task_ratios(kind, values)
    assert ratios["G"] * ratios["P"] == pytest.approx(1)


def test_the_bias_changes_the_printed_ratio_only() -> None:
    score, time, event, _ = draw()
    other = draw(seed=1)[0]
    target, zeros = torch.stack([time, event], dim=1), torch.zeros(len(score))
    for kind in ("share_sum", "geometric", "as_printed"):
        found = []
        for bias in (0.0, 1.5):
            values = {
                name: log_likelihoods(
                    COX, (s + bias / 2)[:, None], target, zeros, printed=kind == "as_printed"
                )
                for name, s in (("G", score), ("P", other))
            }
            found.append(task_ratios(kind, values)["G"])
        assert (found[0] == pytest.approx(found[1], rel=1e-9)) is (kind != "as_printed")


def test_the_printed_ratio_is_equation_5() -> None:
    score, time, event, _ = draw(12)
    other = draw(12, seed=1)[0]

    def numerators(s: list[float]) -> float:
        total = 0.0
        for k in range(len(s)):
            if event[k]:
                total += s[k] / sum(math.exp(s[j]) for j in range(len(s)) if time[j] >= time[k])
        return total

    target, zeros = torch.stack([time, event], dim=1), torch.zeros(len(score))
    values = {
        name: log_likelihoods(COX, s[:, None], target, zeros, printed=True)
        for name, s in (("G", score), ("P", other))
    }
    expected = numerators(score.tolist()) / numerators(other.tolist())
    assert task_ratios("as_printed", values)["G"] == pytest.approx(expected)


def test_classification_has_the_shares_of_ogm_ge() -> None:
    """Equation 8: sums of the softmax of the true class."""
    rng = torch.Generator().manual_seed(0)
    a, v = torch.randn(9, 3, generator=rng), torch.randn(9, 3, generator=rng)
    label = torch.tensor([0, 1, 2, 2, 1, 0, 1, 1, 0])
    head = TaskHead("grade", "multiclass", 3)
    values = {n: log_likelihoods(head, s, label.float(), torch.zeros(9)) for n, s in (("a", a), ("v", v))}
    score = {n: sum(float(s[i].softmax(0)[label[i]]) for i in range(9)) for n, s in (("a", a), ("v", v))}
    assert task_ratios("share_sum", values)["v"] == pytest.approx(score["v"] / score["a"], rel=1e-5)


def test_other_tasks_have_likelihoods() -> None:
    regression = TaskHead("LF", "regression", 1)
    score, target = torch.tensor([[0.5], [1.0]]), torch.tensor([0.0, 1.0])
    assert log_likelihoods(regression, score, target, torch.zeros(2)).tolist() == [-0.25, 0.0]
    hazards = TaskHead("PFS", "survival", 2, edges=(10.0,))
    logits = torch.tensor([[0.3, -1.0]])
    h = torch.sigmoid(logits[0])
    event_later = log_likelihoods(hazards, logits, torch.tensor([[20.0, 1.0]]), torch.zeros(1))
    assert event_later.exp().item() == pytest.approx(float((1 - h[0]) * h[1]), rel=1e-6)


def test_three_branches_have_a_product_of_one() -> None:
    rng = torch.Generator().manual_seed(0)
    values = {name: -torch.rand(20, generator=rng).double() * 3 for name in "abc"}
    for kind in ("share_sum", "geometric"):
        ratios = task_ratios(kind, values)
        assert math.prod(ratios.values()) == pytest.approx(1)
    sums = {name: float(rows.exp().sum()) for name, rows in values.items()}
    expected = sums["a"] / math.sqrt(sums["b"] * sums["c"])
    assert task_ratios("share_sum", values)["a"] == pytest.approx(expected)


def test_tasks_are_averaged_so_that_ratios_stay_reciprocal() -> None:
    tasks = [{"G": 4.0, "P": 0.25}, {"G": 1.0, "P": 1.0}, {"G": math.nan, "P": math.nan}]
    mean = mean_ratios("share_sum", tasks)
    assert mean["G"] == pytest.approx(2)
    assert mean["G"] * mean["P"] == pytest.approx(1)
    assert math.isnan(mean_ratios("share_sum", tasks[2:])["G"])


def test_scores_of_any_size_are_safe() -> None:
    score = torch.tensor([5000.0, -5000.0, 0.0])
    target = torch.tensor([[3.0, 1.0], [2.0, 1.0], [1.0, 1.0]])
    values = {
        "G": log_likelihoods(COX, score[:, None], target, torch.zeros(3)),
        "P": log_likelihoods(COX, -score[:, None], target, torch.zeros(3)),
    }
    for kind in ("share_sum", "geometric"):
        ratios = task_ratios(kind, values)
        assert all(math.isfinite(ratio) and ratio > 0 for ratio in ratios.values())
