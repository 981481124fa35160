"""Server aggregations: closed forms, shared properties, and guarantees under attack."""

import dataclasses
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import equipoise.platform.federation.aggregation.blocks as blocks_module
from equipoise.platform.errors import FederationError
from equipoise.platform.federation.aggregation.blocks import blocks_of
from equipoise.platform.federation.aggregation.mean import capped
from equipoise.platform.federation.aggregation.protocol import ServerAggregation
from equipoise.platform.federation.simulation.clean_costs import clean_cost
from equipoise.platform.registry import entries, get


def _loaded(path: Path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


handmade_updates = _loaded(Path(__file__).with_name("handmade_updates.py"))
diagnostics = _loaded(Path(__file__).resolve().parents[4] / "benchmarks" / "update_directions.py")
directions, leave_one_out_gains = diagnostics.directions, diagnostics.leave_one_out_gains
cloud, schema_of, update, weights_of = (
    handmade_updates.cloud,
    handmade_updates.schema_of,
    handmade_updates.update,
    handmade_updates.weights_of,
)

RULES = list(entries("server_aggregations"))
GRAM = [
    "upgrad", "mgda", "cagrad", "conicgrad", "pcgrad", "gradvac", "imtl_g", "nash_mtl", "fairgrad", "aligned_mtl",
]  # fmt: skip


def rule_of(name: str, seed: int = 0, **params: object) -> ServerAggregation:
    entry = get("server_aggregations", name)
    return entry.load()(entry.params.model_validate(params), seed)


def aggregated(name: str, schema, updates, *, uniform: bool = False, **params: object) -> np.ndarray:
    result = rule_of(name, **params).aggregate(updates, schema, weights_of(updates, schema, uniform=uniform))
    assert result.dtype == np.float32
    assert result.shape == (schema.size,)
    return result


def rows(schema, *deltas: list[float], counts: list[int] | None = None) -> list:
    counts = counts or [10] * len(deltas)
    return [update(schema, f"s{i}", d, c) for i, (d, c) in enumerate(zip(deltas, counts, strict=True))]


def test_values_by_hand() -> None:
    schema = schema_of(shared=2)
    five = rows(schema, [0, 0], [1, 2], [2, 4], [3, 6], [100, -100], counts=[10, 20, 30, 40, 100])
    mean = (
        np.array([1, 2]) * 20 + np.array([2, 4]) * 30 + np.array([3, 6]) * 40 + np.array([100, -100]) * 100
    ) / 200
    np.testing.assert_allclose(aggregated("mean", schema, five), mean, atol=1e-7)
    np.testing.assert_array_equal(aggregated("median", schema, five), [2, 2])
    np.testing.assert_allclose(aggregated("trimmed_mean", schema, five, trim=0.2), [2, 2])
    np.testing.assert_array_equal(aggregated("krum", schema, five, malicious=1), [1, 2])
    kept = aggregated("multi_krum", schema, five, malicious=1)
    np.testing.assert_allclose(
        kept, (np.array([1, 2]) * 20 + [60, 120] + np.array([120, 240])) / 100, rtol=1e-6
    )


def test_norm_clip_brings_long_updates_to_the_median_norm() -> None:
    schema = schema_of(shared=2)
    three = rows(schema, [1, 0], [0, 2], [-300, 0])
    np.testing.assert_allclose(aggregated("norm_clip", schema, three), [(1 - 2) / 3, 2 / 3], rtol=1e-6)


def test_geometric_median_closed_forms() -> None:
    schema = schema_of(shared=2)
    # On a line it is the weighted median; of an equilateral triangle, its centre.
    line = rows(schema, [0, 0], [1, 0], [10, 0])
    np.testing.assert_allclose(aggregated("geometric_median", schema, line), [1, 0], atol=1e-3)
    heavy = rows(schema, [0, 0], [1, 0], [10, 0], counts=[10, 10, 30])
    np.testing.assert_allclose(aggregated("geometric_median", schema, heavy), [10, 0], atol=1e-3)
    triangle = rows(schema, [1, 0], [-0.5, np.sqrt(0.75)], [-0.5, -np.sqrt(0.75)])
    np.testing.assert_allclose(aggregated("geometric_median", schema, triangle), [0, 0], atol=1e-6)


@pytest.mark.parametrize("name", RULES)
def test_equal_updates_are_kept(name: str) -> None:
    schema = schema_of(shared=3, task_os=2)
    same = rows(schema, *[[1, -2, 3, 0.5, 0]] * 5, counts=[10, 20, 30, 40, 50])
    np.testing.assert_allclose(aggregated(name, schema, same), same[0].delta, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", RULES)
def test_result_does_not_depend_on_order_or_chunks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    schema, updates = cloud(6, 101)
    whole = aggregated(name, schema, updates)
    np.testing.assert_array_equal(aggregated(name, schema, updates[::-1]), whole)
    np.testing.assert_array_equal(aggregated(name, schema, [updates[i] for i in (3, 0, 5, 1, 4, 2)]), whole)
    monkeypatch.setattr(blocks_module, "CHUNK", 7)
    np.testing.assert_allclose(aggregated(name, schema, updates), whole, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", [n for n in RULES if not n.endswith("krum")])
def test_who_did_not_train_a_group_takes_no_part_in_it(name: str) -> None:
    schema = schema_of(shared=2, task_msi=2, task_hrd=1)
    part = {"shared": 10, "task:msi": 10}
    updates = [
        update(schema, "a", [1, 1, 2, 2, 99], part),
        update(schema, "b", [1, 1, 2, 2, 99], part),
        update(schema, "c", [1, 1, 77, 77, 99], {"shared": 10, "task:msi": 0, "task:hrd": 0}),
    ]
    np.testing.assert_allclose(aggregated(name, schema, updates), [1, 1, 2, 2, 0], rtol=1e-5)


def test_krum_needs_a_majority_in_every_block() -> None:
    schema = schema_of(shared=2, task_hrd=1)
    updates = [update(schema, f"s{i}", [1, 1, 1], {"shared": 5, "task:hrd": 5 * (i < 2)}) for i in range(6)]
    with pytest.raises(FederationError, match="2 trained task:hrd"):
        aggregated("krum", schema, updates)


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
    result = aggregated(name, schema, attacked, uniform=True)
    assert np.linalg.norm(result - honest) < 0.5 * np.linalg.norm(honest)
    if bad != 0.0:
        mean = aggregated("mean", schema, attacked, uniform=True)
        assert np.linalg.norm(mean - honest) > 1.5 * np.linalg.norm(honest)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_updates_that_are_not_finite_are_refused(name: str, bad: float) -> None:
    schema, updates = cloud(6, 5)
    broken = [dataclasses.replace(updates[0], delta=np.array([1, 1, bad, 1, 1], np.float32)), *updates[1:]]
    with pytest.raises(FederationError, match="not finite"):
        aggregated(name, schema, broken)


@pytest.mark.parametrize("aggregator", GRAM)
def test_every_gram_aggregator_combines_sites(aggregator: str) -> None:
    schema, updates = cloud(4, 30, spread=1.5)
    result = aggregated("balanced", schema, updates, uniform=True, aggregator=aggregator)
    assert np.isfinite(result).all()
    assert 0 < np.linalg.norm(result) <= max(np.linalg.norm(u.delta) for u in updates) * (1 + 1e-6)


@given(st.integers(0, 10_000), st.integers(2, 8), st.booleans())
def test_balanced_by_upgrad_or_mgda_sacrifices_no_site(seed: int, sites: int, uniform: bool) -> None:
    rng = np.random.default_rng(seed)
    schema = schema_of(shared=12)
    updates = [update(schema, f"s{i}", rng.normal(size=12), int(rng.integers(1, 200))) for i in range(sites)]
    for aggregator in ("upgrad", "mgda"):
        result = aggregated("balanced", schema, updates, uniform=uniform, aggregator=aggregator).astype(float)
        gains = np.array([u.delta.astype(float) @ result for u in updates])
        longest = max(np.linalg.norm(u.delta) for u in updates)
        assert gains.min() >= -2e-6 * longest**2


def test_the_mean_sacrifices_a_site_where_balanced_does_not() -> None:
    schema = schema_of(shared=2)
    updates = rows(schema, [4, 1], [4, 0.5], [-1, 1], counts=[100, 100, 20])
    assert updates[2].delta @ aggregated("mean", schema, updates) < 0
    assert updates[2].delta @ aggregated("balanced", schema, updates) >= 0


def test_balanced_without_conflict_is_the_weighted_mean() -> None:
    schema = schema_of(shared=3)
    updates = rows(schema, [1, 0.2, 0], [0.1, 1, 0.3], [0, 0.4, 1], counts=[10, 20, 70])
    result = aggregated("balanced", schema, updates)
    np.testing.assert_allclose(result, aggregated("mean", schema, updates), rtol=1e-5)


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
    result = aggregated("balanced", schema, updates)
    assert len(updates) > 0
    for u in updates:
        trained = u.delta * schema.expand({group: float(count > 0) for group, count in u.counts.items()})
        assert trained @ result >= -1e-5


def test_scale_of_balanced_updates() -> None:
    schema, updates = cloud(4, 30, spread=1.5)
    mean = aggregated("mean", schema, updates)
    rescaled = aggregated("balanced", schema, updates, aggregator="pcgrad", scale="mean_norm")
    np.testing.assert_allclose(np.linalg.norm(rescaled), np.linalg.norm(mean), rtol=1e-5)
    unscaled = aggregated("balanced", schema, updates, aggregator="pcgrad", scale="own")
    shares = aggregated("balanced", schema, updates, aggregator="pcgrad")
    assert np.linalg.norm(unscaled) > 3 * np.linalg.norm(shares)


@pytest.mark.parametrize("name", ["none", "graddrop", "db_mtl", "excess_mtl", "sdmgrad", "upgard"])
def test_aggregators_that_cannot_see_sites_are_refused(name: str) -> None:
    from pydantic import ValidationError

    with pytest.raises(ValidationError, match="cannot balance sites|Did you mean 'upgrad'"):
        rule_of("balanced", aggregator=name)


def test_all_aggregators_that_need_products_alone_can_balance_sites() -> None:
    fit = [
        e.name
        for e in entries("aggregators").values()
        if e.attribute("kind") == "gram" and not e.attribute("needs")
    ]
    assert set(GRAM) == set(fit)


def test_memory_of_a_balancing_method_survives_a_checkpoint() -> None:
    import json

    schema, updates = cloud(4, 30, spread=2.0, centre=0.2)
    _, later = cloud(4, 30, seed=1, spread=2.0, centre=0.2)
    going, weights = rule_of("balanced", aggregator="gradvac"), weights_of(updates, schema)
    going.aggregate(updates, schema, weights)
    resumed = rule_of("balanced", aggregator="gradvac")
    resumed.load_state_dict(json.loads(json.dumps(going.state_dict())))
    fresh = rule_of("balanced", aggregator="gradvac")
    expected = going.aggregate(later, schema, weights)
    np.testing.assert_array_equal(resumed.aggregate(later, schema, weights), expected)
    assert not np.array_equal(fresh.aggregate(later, schema, weights), expected)


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
    server_aggregation = rule_of("balanced", aggregator="gradvac")
    clean_cost(three, schema, weights_of(three, schema), server_aggregation)
    assert server_aggregation.state_dict() == {}


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
    assert aggregated("mean", schema, liar)[0] > 0.0999
    assert aggregated("mean", schema, liar, max_share=0.4)[0] == pytest.approx(0.04)


def test_a_flipped_site_stands_apart_in_direction() -> None:
    schema, updates = cloud(6, 60)
    flipped = [dataclasses.replace(updates[0], delta=-updates[0].delta), *updates[1:]]
    assert not any(row.outlier for row in directions(updates, schema, weights_of(updates, schema)))
    marked = [row for row in directions(flipped, schema, weights_of(flipped, schema)) if row.outlier]
    assert [row.client for row in marked] == ["site0"]
    assert marked[0].cosine < -0.5


def test_leaving_a_harmful_site_out_is_a_gain_for_the_others() -> None:
    schema, updates = cloud(5, 20)
    goal = np.mean([u.delta for u in updates[1:]], axis=0)
    attacked = [dataclasses.replace(updates[0], delta=-5 * updates[0].delta), *updates[1:]]

    def evaluate(vector: np.ndarray) -> dict[str, float]:
        return {f"site{i}": -float(np.linalg.norm(vector - goal)) for i in range(1, 5)}

    gains = leave_one_out_gains(
        attacked, schema, weights_of(attacked, schema, uniform=True), rule_of("mean"), evaluate
    )
    assert min(gains["site0"].values()) > 1
    assert max(gain for client in gains if client != "site0" for gain in gains[client].values()) < 0


def test_blocks_check_what_they_are_given() -> None:
    schema = schema_of(shared=2)
    twice = [update(schema, "a", [1, 1]), update(schema, "a", [1, 1])]
    with pytest.raises(FederationError, match="passed twice"):
        blocks_of(twice, schema, weights_of(twice, schema))
    with pytest.raises(FederationError, match="shape"):
        blocks_of([update(schema, "a", [1, 1, 1])], schema, {"shared": np.ones(1)})
    with pytest.raises(FederationError, match="weights"):
        blocks_of([update(schema, "a", [1, 1])], schema, {"shared": np.array([-1.0])})


def test_nobody_trained_anything() -> None:
    schema = schema_of(shared=2)
    for name in RULES:
        assert not rule_of(name).aggregate([], schema, {"shared": np.zeros(0)}).any()
