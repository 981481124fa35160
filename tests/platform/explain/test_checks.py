"""Checks of maps: against closed forms of a linear model, and planted maps that show nothing."""

import hashlib

import numpy as np
import pytest
import torch
from scipy.stats import binom, spearmanr
from tests.platform.explain.cases import TASKS, Dot, case_of, explained
from torch import Tensor, nn

from equipoise.datasets.cohorts.cases import Case
from equipoise.models.batch import CaseShape
from equipoise.platform.explain.attribution import CaseScores, Method, explain_case
from equipoise.platform.explain.checks import (
    agreement_check,
    completeness_check,
    deletion_check,
    deletion_curves,
    randomisation_check,
    rank_correlation,
    reinitialised,
)
from equipoise.platform.explain.explained import Explained
from equipoise.platform.training.targets import Targets

FEATURES = 24


class Trained:
    """A model and its targets, as a fold has them."""

    def __init__(self, model: nn.Module) -> None:
        self.model, self.targets = model, Targets(TASKS[:1], CaseShape(FEATURES))


class Planted:
    """Scores that depend on the case alone, whatever the model."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def scores(self, case: Explained) -> Tensor:
        digest = hashlib.sha256(case.batch.bags.double().cpu().numpy().tobytes()).digest()
        rng = np.random.default_rng([self.seed, *digest[:8]])
        return torch.from_numpy(rng.normal(size=case.tiles))


def linear(seed: int = 0, tiles: int = 40) -> tuple[Trained, Case]:
    rng = np.random.default_rng(seed)
    trained = Trained(Dot(torch.from_numpy(rng.normal(size=FEATURES))))
    return trained, case_of(rng.normal(size=(tiles, FEATURES)))


def scored(method: Method, seed: int = 0, tiles: int = 40) -> CaseScores:
    trained, case = linear(seed, tiles)
    return explain_case([trained], case, "MSI", None, method)[0]


IG = Method.named("integrated_gradients", {"steps": 2})


def test_the_curve_is_the_mean_of_the_tiles_that_are_left() -> None:
    result = scored(IG)
    weights = next(iter(result.explained[0].model.parameters())).detach().numpy()
    own = result.case.bag.astype(np.float32) @ weights
    curves = deletion_curves(result, seed=1, orders=5)
    order = np.argsort(-result.mean)
    expected = [own.mean() - own[order[q:]].mean() for q in (4, 10, 20, 30)]
    np.testing.assert_allclose(curves.fractions, [0.1, 0.25, 0.5, 0.75])
    np.testing.assert_allclose(curves.ordered, expected, rtol=1e-5)
    assert curves.area == pytest.approx(np.mean(expected - curves.random.mean(axis=0)), rel=1e-6)


def test_a_map_of_the_model_passes_and_a_planted_one_fails_both_checks() -> None:
    for seed in range(3):
        good, bad = scored(IG, seed), scored(Method("planted", Planted()), seed)
        assert deletion_check(deletion_curves(good, seed=1)).passed
        assert randomisation_check(good, seed=1).passed
        failed = randomisation_check(bad, seed=1)
        assert (failed.passed, failed.value) == (False, pytest.approx(1.0))
        assert "an untrained model gives much the same map" in failed.reason
        assert not deletion_check(deletion_curves(bad, seed=1)).passed


def test_maps_that_show_nothing_pass_the_deletion_check_as_often_as_its_level_says() -> None:
    passed = 0
    for seed in range(120):
        result = scored(Method("planted", Planted(seed)), tiles=15)
        passed += deletion_check(deletion_curves(result, seed=seed, orders=19)).passed
    assert passed <= binom.ppf(0.999, 120, 0.05)
    assert passed >= 1


def test_a_reversed_map_fails_and_one_without_direction_is_judged_by_size() -> None:
    result = scored(IG)
    reverse = CaseScores(result.case, result.explained, result.method, -result.each)
    assert deletion_check(deletion_curves(reverse, seed=1)).value < 0
    assert not deletion_check(deletion_curves(reverse, seed=1)).passed
    unsigned = Method("size", result.method.attribution, signed=False)
    same = CaseScores(result.case, result.explained, unsigned, -result.each)
    assert deletion_check(deletion_curves(same, seed=1)).passed


def test_equal_scores_have_no_order() -> None:
    result = scored(IG)
    flat = CaseScores(result.case, result.explained, result.method, np.zeros_like(result.each))
    areas = [deletion_curves(flat, seed=seed, orders=9).area for seed in range(20)]
    assert np.std(areas) > 0
    assert abs(np.mean(areas)) < 3 * np.std(areas) / np.sqrt(20)


@pytest.mark.parametrize("kind", ["mean_pool", "joint", "elastic_net", "gptomic"])
def test_a_reinitialised_model_has_forgotten_and_the_original_has_not(kind: str) -> None:
    case = explained(kind)
    before = {name: value.clone() for name, value in case.model.state_dict().items()}
    fresh, again, other = (reinitialised(case.model, seed) for seed in (3, 3, 4))
    for name, value in case.model.state_dict().items():
        assert torch.equal(value, before[name])
    matrices = [(name, p) for name, p in fresh.named_parameters() if p.dim() > 1]
    learned = dict(case.model.named_parameters())
    assert matrices
    assert not any(torch.allclose(p, learned[name]) for name, p in matrices)
    for (_, a), (_, b) in zip(fresh.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(a, b)
    assert any(not torch.equal(a, b) for a, b in zip(fresh.parameters(), other.parameters(), strict=True))


def test_agreement_is_the_mean_rank_correlation_of_pairs() -> None:
    rng = np.random.default_rng(0)
    common = rng.normal(size=50)
    each = np.stack([common + rng.normal(size=50) for _ in range(3)])
    expected = [spearmanr(each[a], each[b]).statistic for a, b in ((0, 1), (0, 2), (1, 2))]
    check = agreement_check(each)
    assert check.value == pytest.approx(np.mean(expected))
    assert (check.low, check.high) == (pytest.approx(min(expected)), pytest.approx(max(expected)))
    assert check.passed
    assert "2 of them learned from this patient" in agreement_check(each, 2).reason
    assert not agreement_check(rng.normal(size=(3, 50))).passed


def test_rank_correlation_with_ties_and_constants() -> None:
    a, b = np.array([1.0, 1, 2, 5, 5, 7]), np.array([3.0, 1, 1, 4, 9, 9])
    assert rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert rank_correlation(a, np.ones(6)) == 0.0


def test_completeness_fails_where_the_rule_has_too_few_points() -> None:
    class Steep(Dot):
        def forward(self, batch: object) -> dict[str, Tensor]:
            return {name: torch.tanh(30 * out) for name, out in super().forward(batch).items()}  # type: ignore[arg-type]

    rng = np.random.default_rng(0)
    trained, case = (
        Trained(Steep(torch.from_numpy(rng.normal(size=FEATURES)))),
        case_of(rng.normal(size=(8, FEATURES))),
    )
    zero = {"baseline": "zero"}
    for steps, passes in ((1, False), (400, True)):
        method = Method.named("integrated_gradients", {"steps": steps, **zero})
        check = completeness_check(explain_case([trained], case, "MSI", None, method)[0])
        assert check is not None
        assert check.passed is passes
    assert completeness_check(scored(Method.named("gradient_input"))) is None
