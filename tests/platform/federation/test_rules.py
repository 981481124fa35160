"""Aggregation rules: closed forms, properties all share, and what they promise under attack."""

import dataclasses
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.platform.errors import FederationError
from equipoise.platform.federation.rules import blocks as blocks_module
from equipoise.platform.federation.rules.blocks import blocks_of
from equipoise.platform.federation.rules.clean_cost import clean_cost
from equipoise.platform.federation.rules.protocol import SiteRule
from equipoise.platform.federation.rules.shares import capped
from equipoise.platform.federation.rules.suspects import directions, without_each
from equipoise.platform.registry import entries, get

_SPEC = importlib.util.spec_from_file_location("rule_case", Path(__file__).with_name("rule_case.py"))
rule_case = importlib.util.module_from_spec(_SPEC)
sys.modules["rule_case"] = rule_case
_SPEC.loader.exec_module(rule_case)
cloud, schema_of, update, weights_of = (
    rule_case.cloud,
    rule_case.schema_of,
    rule_case.update,
    rule_case.weights_of,
)

RULES = list(entries("site_rules"))
GRAM = ["upgrad", "mgda", "cagrad", "pcgrad", "gradvac", "imtl_g", "nash_mtl", "fairgrad", "aligned_mtl"]


def rule_of(name: str, seed: int = 0, **params: object) -> SiteRule:
    entry = get("site_rules", name)
    return entry.load()(entry.params.model_validate(params), seed)


def combined(name: str, schema, updates, *, uniform: bool = False, **params: object) -> np.ndarray:
    found = rule_of(name, **params).combine(updates, schema, weights_of(updates, schema, uniform=uniform))
    assert found.dtype == np.float32
    assert found.shape == (schema.size,)
    return found


def rows(schema, *deltas: list[float], counts: list[int] | None = None) -> list:
    counts = counts or [10] * len(deltas)
    return [update(schema, f"s{i}", d, c) for i, (d, c) in enumerate(zip(deltas, counts, strict=True))]


def test_values_by_hand() -> None:
    schema = schema_of(shared=2)
    five = rows(schema, [0, 0], [1, 2], [2, 4], [3, 6], [100, -100], counts=[10, 20, 30, 40, 100])
    mean = (
        np.array([1, 2]) * 20 + np.array([2, 4]) * 30 + np.array([3, 6]) * 40 + np.array([100, -100]) * 100
    ) / 200
    np.testing.assert_allclose(combined("mean", schema, five), mean, atol=1e-7)
    np.testing.assert_array_equal(combined("median", schema, five), [2, 2])
    np.testing.assert_allclose(combined("trimmed_mean", schema, five, trim=0.2), [2, 2])
    np.testing.assert_array_equal(combined("krum", schema, five, malicious=1), [1, 2])
    kept = combined("multi_krum", schema, five, malicious=1)
    np.testing.assert_allclose(
        kept, (np.array([1, 2]) * 20 + [60, 120] + np.array([120, 240])) / 100, rtol=1e-6
    )


def test_norm_clip_brings_long_updates_to_the_median_norm() -> None:
    schema = schema_of(shared=2)
    three = rows(schema, [1, 0], [0, 2], [-300, 0])
    np.testing.assert_allclose(combined("norm_clip", schema, three), [(1 - 2) / 3, 2 / 3], rtol=1e-6)


def test_geometric_median_closed_forms() -> None:
    schema = schema_of(shared=2)
    # On a line it is the weighted median; of an equilateral triangle, its centre.
    line = rows(schema, [0, 0], [1, 0], [10, 0])
    np.testing.assert_allclose(combined("geometric_median", schema, line), [1, 0], atol=1e-3)
    heavy = rows(schema, [0, 0], [1, 0], [10, 0], counts=[10, 10, 30])
    np.testing.assert_allclose(combined("geometric_median", schema, heavy), [10, 0], atol=1e-3)
    triangle = rows(schema, [1, 0], [-0.5, np.sqrt(0.75)], [-0.5, -np.sqrt(0.75)])
    np.testing.assert_allclose(combined("geometric_median", schema, triangle), [0, 0], atol=1e-6)


@pytest.mark.parametrize("name", RULES)
def test_equal_updates_are_kept(name: str) -> None:
    schema = schema_of(shared=3, task_os=2)
    same = rows(schema, *[[1, -2, 3, 0.5, 0]] * 5, counts=[10, 20, 30, 40, 50])
    np.testing.assert_allclose(combined(name, schema, same), same[0].delta, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", RULES)
def test_result_does_not_depend_on_order_or_chunks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    schema, updates = cloud(6, 101)
    whole = combined(name, schema, updates)
    np.testing.assert_array_equal(combined(name, schema, updates[::-1]), whole)
    np.testing.assert_array_equal(combined(name, schema, [updates[i] for i in (3, 0, 5, 1, 4, 2)]), whole)
    monkeypatch.setattr(blocks_module, "CHUNK", 7)
    np.testing.assert_allclose(combined(name, schema, updates), whole, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", [n for n in RULES if not n.endswith("krum")])
def test_who_did_not_train_a_group_takes_no_part_in_it(name: str) -> None:
    schema = schema_of(shared=2, task_msi=2, task_hrd=1)
    part = {"shared": 10, "task:msi": 10}
    updates = [
        update(schema, "a", [1, 1, 2, 2, 99], part),
        update(schema, "b", [1, 1, 2, 2, 99], part),
        update(schema, "c", [1, 1, 77, 77, 99], {"shared": 10, "task:msi": 0, "task:hrd": 0}),
    ]
    np.testing.assert_allclose(combined(name, schema, updates), [1, 1, 2, 2, 0], rtol=1e-5)


def test_krum_needs_a_majority_in_every_block() -> None:
    schema = schema_of(shared=2, task_hrd=1)
    updates = [update(schema, f"s{i}", [1, 1, 1], {"shared": 5, "task:hrd": 5 * (i < 2)}) for i in range(6)]
    with pytest.raises(FederationError, match="2 trained task:hrd"):
        combined("krum", schema, updates)


@pytest.mark.parametrize(
    "name", ["norm_clip", "median", "trimmed_mean", "geometric_median", "krum", "multi_krum"]
)
@pytest.mark.parametrize("bad", [-10.0, 1e8, 0.0])
def test_one_malicious_site_of_six_is_bounded(name: str, bad: float) -> None:
    schema, updates = cloud(6, 40)
    honest = np.mean([u.delta for u in updates[1:]], axis=0)
    noise = np.random.default_rng(1).normal(size=40)
    attack = bad * updates[0].delta if bad else (50 * noise).astype(np.float32)
    attacked = [dataclasses.replace(updates[0], delta=attack), *updates[1:]]
    found = combined(name, schema, attacked, uniform=True)
    assert np.linalg.norm(found - honest) < 0.5 * np.linalg.norm(honest)
    if bad != 0.0:
        mean = combined("mean", schema, attacked, uniform=True)
        assert np.linalg.norm(mean - honest) > 1.5 * np.linalg.norm(honest)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_updates_that_are_not_finite_are_refused(name: str, bad: float) -> None:
    schema, updates = cloud(6, 5)
    broken = [dataclasses.replace(updates[0], delta=np.array([1, 1, bad, 1, 1], np.float32)), *updates[1:]]
    with pytest.raises(FederationError, match="not finite"):
        combined(name, schema, broken)


@pytest.mark.parametrize("aggregator", GRAM)
def test_every_gram_aggregator_combines_sites(aggregator: str) -> None:
    schema, updates = cloud(4, 30, spread=1.5)
    found = combined("balanced", schema, updates, uniform=True, aggregator=aggregator)
    assert np.isfinite(found).all()
    assert 0 < np.linalg.norm(found) <= max(np.linalg.norm(u.delta) for u in updates) * (1 + 1e-6)


@given(st.integers(0, 10_000), st.integers(2, 8), st.booleans())
def test_balanced_by_upgrad_or_mgda_sacrifices_no_site(seed: int, sites: int, uniform: bool) -> None:
    rng = np.random.default_rng(seed)
    schema = schema_of(shared=12)
    updates = [update(schema, f"s{i}", rng.normal(size=12), int(rng.integers(1, 200))) for i in range(sites)]
    for aggregator in ("upgrad", "mgda"):
        found = combined("balanced", schema, updates, uniform=uniform, aggregator=aggregator).astype(float)
        gains = np.array([u.delta.astype(float) @ found for u in updates])
        longest = max(np.linalg.norm(u.delta) for u in updates)
        assert gains.min() >= -2e-6 * longest**2


def test_the_mean_sacrifices_a_site_where_balanced_does_not() -> None:
    schema = schema_of(shared=2)
    updates = rows(schema, [4, 1], [4, 0.5], [-1, 1], counts=[100, 100, 20])
    assert updates[2].delta @ combined("mean", schema, updates) < 0
    assert updates[2].delta @ combined("balanced", schema, updates) >= 0


def test_balanced_without_conflict_is_the_weighted_mean() -> None:
    schema = schema_of(shared=3)
    updates = rows(schema, [1, 0.2, 0], [0.1, 1, 0.3], [0, 0.4, 1], counts=[10, 20, 70])
    found = combined("balanced", schema, updates)
    np.testing.assert_allclose(found, combined("mean", schema, updates), rtol=1e-5)


def test_balanced_holds_within_and_across_groups() -> None:
    rng = np.random.default_rng(3)
    schema = schema_of(shared=6, task_msi=4, task_hrd=4)
    updates = [
        update(
            schema,
            f"s{i}",
            rng.normal(size=14),
            {"shared": 9, "task:msi": 9 * (i < 3), "task:hrd": 9 * (i > 1)},
        )
        for i in range(5)
    ]
    found = combined("balanced", schema, updates)
    for u in updates:
        own = u.delta * schema.expand({group: float(count > 0) for group, count in u.counts.items()})
        assert own @ found >= -1e-5


def test_scale_of_balanced_updates() -> None:
    schema, updates = cloud(4, 30, spread=1.5)
    mean = combined("mean", schema, updates)
    rescaled = combined("balanced", schema, updates, aggregator="pcgrad", scale="mean_norm")
    np.testing.assert_allclose(np.linalg.norm(rescaled), np.linalg.norm(mean), rtol=1e-5)
    own = combined("balanced", schema, updates, aggregator="pcgrad", scale="own")
    shares = combined("balanced", schema, updates, aggregator="pcgrad")
    assert np.linalg.norm(own) > 3 * np.linalg.norm(shares)


@pytest.mark.parametrize("name", ["none", "graddrop", "db_mtl", "excess_mtl", "sdmgrad", "upgard"])
def test_aggregators_that_cannot_see_sites_are_refused(name: str) -> None:
    from pydantic import ValidationError

    from equipoise.platform.errors import StudyError

    with pytest.raises((ValidationError, StudyError)):
        rule_of("balanced", aggregator=name)


def test_the_lists_of_gram_aggregators_are_complete() -> None:
    from equipoise.platform.federation.rules.params import NOT_FOR_SITES

    assert {*GRAM, *NOT_FOR_SITES} == set(entries("aggregators"))


def test_memory_of_a_balancing_method_survives_a_checkpoint() -> None:
    import json

    schema, updates = cloud(4, 30, spread=2.0, centre=0.2)
    _, later = cloud(4, 30, seed=1, spread=2.0, centre=0.2)
    going, weights = rule_of("balanced", aggregator="gradvac"), weights_of(updates, schema)
    going.combine(updates, schema, weights)
    resumed = rule_of("balanced", aggregator="gradvac")
    resumed.load_state_dict(json.loads(json.dumps(going.state_dict())))
    fresh = rule_of("balanced", aggregator="gradvac")
    expected = going.combine(later, schema, weights)
    np.testing.assert_array_equal(resumed.combine(later, schema, weights), expected)
    assert not np.array_equal(fresh.combine(later, schema, weights), expected)


def test_clean_cost_of_rules() -> None:
    schema, updates = cloud(6, 200, spread=1.0)
    weights = weights_of(updates, schema)
    costs = {name: clean_cost(updates, schema, weights, rule_of(name)) for name in RULES}
    assert costs["mean"].distance < 1e-6
    assert costs["mean"].cosine == pytest.approx(1)
    assert costs["krum"].distance > costs["multi_krum"].distance > costs["geometric_median"].distance > 0
    assert costs["norm_clip"].cosine > 0.99


def test_clean_cost_by_hand_and_without_memory() -> None:
    schema = schema_of(shared=2)
    three = rows(schema, [0, 3], [3, 0], [0, 0])
    cost = clean_cost(three, schema, weights_of(three, schema), rule_of("median"))
    assert cost == pytest.approx((1.0, 0.0, 0.0))
    rule = rule_of("balanced", aggregator="gradvac")
    clean_cost(three, schema, weights_of(three, schema), rule)
    assert rule.state_dict() == {}


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=9), st.floats(0.05, 1.0))
def test_no_site_is_more_than_its_share(counts: list[int], most: float) -> None:
    row = np.array(counts, float)
    cut = capped({"shared": row}, most)["shared"]
    assert ((cut > 0) == (row > 0)).all()
    if row.any():
        allowed = max(most, 1 / (row > 0).sum())
        assert cut.max() <= allowed * cut.sum() * (1 + 1e-9)
        order = np.argsort(row)
        assert (np.diff(cut[order]) >= -1e-9).all()


def test_a_declared_billion_is_capped() -> None:
    schema = schema_of(shared=1)
    liar = rows(schema, [0], [0], [0.1], counts=[100, 100, 10**9])
    assert combined("mean", schema, liar)[0] > 0.0999
    assert combined("mean", schema, liar, max_share=0.4)[0] == pytest.approx(0.04)


def test_a_flipped_site_stands_apart_in_direction() -> None:
    schema, updates = cloud(6, 60)
    flipped = [dataclasses.replace(updates[0], delta=-updates[0].delta), *updates[1:]]
    assert not any(row.apart for row in directions(updates, schema, weights_of(updates, schema)))
    marked = [row for row in directions(flipped, schema, weights_of(flipped, schema)) if row.apart]
    assert [row.client for row in marked] == ["site0"]
    assert marked[0].cosine < -0.5


def test_leaving_a_harmful_site_out_is_a_gain_for_the_others() -> None:
    schema, updates = cloud(5, 20)
    goal = np.mean([u.delta for u in updates[1:]], axis=0)
    attacked = [dataclasses.replace(updates[0], delta=-5 * updates[0].delta), *updates[1:]]

    def evaluate(vector: np.ndarray) -> dict[str, float]:
        return {f"site{i}": -float(np.linalg.norm(vector - goal)) for i in range(1, 5)}

    gains = without_each(
        attacked, schema, weights_of(attacked, schema, uniform=True), rule_of("mean"), evaluate
    )
    assert min(gains["site0"].values()) > 1
    assert max(gain for client in gains if client != "site0" for gain in gains[client].values()) < 0


def test_blocks_check_what_they_are_given() -> None:
    schema = schema_of(shared=2)
    twice = [update(schema, "a", [1, 1]), update(schema, "a", [1, 1])]
    with pytest.raises(FederationError, match="came twice"):
        blocks_of(twice, schema, weights_of(twice, schema))
    with pytest.raises(FederationError, match="shape"):
        blocks_of([update(schema, "a", [1, 1, 1])], schema, {"shared": np.ones(1)})
    with pytest.raises(FederationError, match="weights"):
        blocks_of([update(schema, "a", [1, 1])], schema, {"shared": np.array([-1.0])})


def test_nobody_trained_anything() -> None:
    schema = schema_of(shared=2)
    for name in RULES:
        assert not rule_of(name).combine([], schema, {"shared": np.zeros(0)}).any()
