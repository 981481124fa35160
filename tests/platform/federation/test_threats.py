"""One test per row of the threat table in docs/security.md, through the engine as it runs."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from equipoise.platform.federation.messages import ClientUpdate
from equipoise.platform.federation.objective import weight_table
from equipoise.platform.federation.params import UpdateValidatorParams
from equipoise.platform.federation.result import FederationResult
from equipoise.platform.registry import get

LOCAL = {"steps": 4, "optimizer": "sgd", "lr": 0.3, "batch": 32}
SMALL = {"site0": 24, "site1": 20, "site2": 16, "site3": 16, "site4": 16, "site5": 12}


def loaded(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"
diagnostics = loaded(BENCHMARKS / "update_directions.py")
directions, leave_one_out_gains = diagnostics.directions, diagnostics.leave_one_out_gains


@pytest.fixture(scope="module")
def cases() -> ModuleType:
    """Problems and attacks of benchmarks/threats.py."""
    return loaded(BENCHMARKS / "threat_cases.py")


@pytest.fixture(scope="module")
def problem(cases: ModuleType) -> Any:
    return cases.survival(0)


def verdicts(result: FederationResult, client: str) -> list[str]:
    return [row["verdict"] for row in result.audit_log.rows if row["client"] == client]


def reasons(result: FederationResult, client: str) -> list[str]:
    return [row.get("reason", "") for row in result.audit_log.rows if row["client"] == client]


@pytest.mark.parametrize(
    ("value", "reason"), [(np.nan, "finite"), (np.inf, "finite"), (3e9, "norm"), (1e30, "norm")]
)
def test_not_finite_or_overflowing(cases: ModuleType, problem: Any, value: float, reason: str) -> None:
    def change(update: ClientUpdate, request: object) -> ClientUpdate:
        return dataclasses.replace(update, delta=np.full_like(update.delta, value))

    result, _ = cases.train(problem, change=change, rounds=1, local=LOCAL)
    assert verdicts(result, cases.EVIL) == ["quarantined"]
    assert all(text.startswith(reason) for text in reasons(result, cases.EVIL))
    assert np.isfinite(result.vector).all()
    assert result.history[-1]["accepted"] == 5
    # What the others did is what they would have done alone.
    others = dataclasses.replace(
        problem, train={c: patients for c, patients in problem.train.items() if c != cases.EVIL}
    )
    alone, _ = cases.train(others, rounds=1, local=LOCAL)
    np.testing.assert_allclose(result.vector, alone.vector, rtol=1e-6)


FORMS: dict[str, dict[str, Any]] = {
    "schema": {"schema_hash": "another model"},
    "shape": {"delta": np.zeros(3, np.float32)},
    "shape: dtype": {"delta": np.zeros(13, np.float64)},
    "arrays": {"arrays": {"patients": np.zeros(13, np.float32)}},
    "metrics": {"metrics": {"name of patient 7": 1.0}},
}


@pytest.mark.parametrize("name", FORMS)
def test_wrong_schema_dtype_shape_or_extra_keys(cases: ModuleType, problem: Any, name: str) -> None:
    result, _ = cases.train(
        problem, change=lambda update, _: dataclasses.replace(update, **FORMS[name]), rounds=1, local=LOCAL
    )
    assert reasons(result, cases.EVIL)[0].startswith(name.partition(":")[0])
    assert result.history[0]["accepted"] == 5


def test_replay_stale_round_duplicate_and_wrong_client(cases: ModuleType, problem: Any) -> None:
    kept: list[ClientUpdate] = []

    def replay(update: ClientUpdate, request: object) -> ClientUpdate:
        kept.append(update)
        return kept[0]

    result, _ = cases.train(problem, change=replay, rounds=3, local=LOCAL)
    assert verdicts(result, cases.EVIL) == ["accepted", "quarantined", "quarantined"]
    assert reasons(result, cases.EVIL)[1].startswith("identity")
    for changes, kind in [
        ({"client": "site1"}, "identity"),
        ({"round": 7}, "identity"),
        ({"request_id": "0"}, "replay"),
    ]:
        one, _ = cases.train(
            problem,
            change=lambda update, _, c=changes: dataclasses.replace(update, **c),
            rounds=1,
            local=LOCAL,
        )
        assert reasons(one, cases.EVIL)[0].startswith(kind)
        assert one.history[0]["accepted"] == 5


def test_sign_flip_and_model_replacement(cases: ModuleType, problem: Any) -> None:
    def c_index(**settings: Any) -> float:
        return float(cases.concordance(cases.train(problem, local=LOCAL, rounds=3, **settings)[0], problem))

    clean = c_index()
    for change, falls in [(cases.sign_flip(10), 0.15), (cases.boost(60), 0.02)]:
        assert c_index(change=change) < clean - falls
        assert c_index(change=change, server_aggregation="norm_clip") > clean - 0.04
        assert c_index(change=change, server_aggregation="geometric_median") > clean - 0.04


def test_the_validator_alone_holds_long_updates_back(cases: ModuleType, problem: Any) -> None:
    clean, _ = cases.train(problem, local=LOCAL, rounds=3)
    bounds = UpdateValidatorParams(norm_factor=3.0, max_norm=3 * clean.history[0]["update_norm"], window=5)
    result, _ = cases.train(problem, local=LOCAL, rounds=3, change=cases.sign_flip(10), validation=bounds)
    assert verdicts(result, cases.EVIL) == ["quarantined"] * 3 + ["benched"]
    assert result.excluded == {cases.EVIL}
    assert cases.concordance(result, problem) > cases.concordance(clean, problem) - 0.04


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_label_flip_points_against_the_other_sites(cases: ModuleType, seed: int) -> None:
    flipped = cases.reversed_times(cases.survival(seed))
    result, wire = cases.train(flipped, local=LOCAL, rounds=1)
    assert "quarantined" not in verdicts(result, cases.EVIL)  # every check of form is passed
    schema = flipped.schema()
    weights = weight_table([dict.fromkeys(schema.groups, 1.0)] * len(wire.seen), schema.groups)
    rows = directions(wire.seen, schema, weights)
    assert min(rows, key=lambda row: row.cosine).client == cases.EVIL
    assert min(row.cosine for row in rows) < 0


def test_gains_without_a_site_are_those_of_the_mean_of_the_others(cases: ModuleType, problem: Any) -> None:
    _, wire = cases.train(problem, local=LOCAL, rounds=1)
    schema = problem.schema()
    weights = weight_table([dict.fromkeys(schema.groups, 1.0)] * len(wire.seen), schema.groups)
    mean = get("server_aggregations", "mean")

    def evaluate(vector: np.ndarray) -> dict[str, float]:
        return {site: float(vector[place]) for place, site in enumerate(problem.train)}

    gains = leave_one_out_gains(wire.seen, schema, weights, mean.load()(mean.params()), evaluate)
    deltas = {update.client: update.delta for update in wire.seen}
    everyone = np.mean(list(deltas.values()), axis=0)
    for client, of_sites in gains.items():
        others = np.mean([delta for name, delta in deltas.items() if name != client], axis=0)
        for place, site in enumerate(problem.train):
            if site in of_sites:
                assert of_sites[site] == pytest.approx(float(others[place] - everyone[place]), abs=1e-6)


def test_backdoor_trigger_in_tiles(cases: ModuleType) -> None:
    problem = cases.bags(0)
    poisoned = cases.with_trigger(problem)
    success = {}
    for rule in ("mean", "geometric_median"):
        result, wire = cases.train(
            poisoned, server_aggregation=rule, local=LOCAL | {"steps": 8}, change=cases.boost(6)
        )
        success[rule] = cases.trigger_success(result.model, problem)
        assert cases.accuracy(result.model, problem) > 0.8  # nothing to be seen in the clean test
    assert success["mean"] > 0.9
    assert success["geometric_median"] < 0.3
    schema, first = problem.schema(), wire.seen[:6]
    rows = directions(
        first, schema, weight_table([dict.fromkeys(schema.groups, 1.0)] * len(first), schema.groups)
    )
    assert min(rows, key=lambda row: row.cosine).client == cases.EVIL


def test_false_number_of_patients(cases: ModuleType, problem: Any) -> None:
    def claim(update: ClientUpdate, request: object) -> ClientUpdate:
        return dataclasses.replace(update, n=10**9, counts=dict.fromkeys(update.counts, 10**9))

    result, _ = cases.train(problem, change=claim, rounds=1, local=LOCAL)
    assert reasons(result, cases.EVIL)[0] == "count: 1000000000 patients declared, 100 in the manifest"

    def share(**settings: Any) -> float:
        """How far the model moves when an update of the site moves by 1 in every coordinate."""
        further = lambda update, _: dataclasses.replace(update, delta=update.delta + np.float32(1))  # noqa: E731
        moved, plain = (
            cases.train(problem, change=change, rounds=1, local=LOCAL, **settings)[0].vector
            for change in (further, None)
        )
        return float(np.mean(moved - plain))

    assert share() > 0.25
    assert share(server_aggregation_params={"max_share": 0.2}) == pytest.approx(0.2, abs=1e-4)


def test_free_riders_by_silence_and_by_echo(cases: ModuleType, problem: Any) -> None:
    silent, _ = cases.train(
        problem,
        change=lambda update, _: dataclasses.replace(update, delta=np.zeros_like(update.delta)),
        rounds=1,
        local=LOCAL,
    )
    assert reasons(silent, cases.EVIL)[0].startswith("free_rider: no weight moved")
    broadcast: list[np.ndarray] = []

    def echo(update: ClientUpdate, request: Any) -> ClientUpdate:
        broadcast.append(request.vector.copy())
        if len(broadcast) < 2:
            return update
        return dataclasses.replace(update, delta=0.7 * (broadcast[-1] - broadcast[-2]))

    echoed, _ = cases.train(problem, change=echo, rounds=3, local=LOCAL)
    assert verdicts(echoed, cases.EVIL) == ["accepted", "quarantined", "quarantined"]
    assert "the server's last step" in reasons(echoed, cases.EVIL)[1]


def one_round(cases: ModuleType, problem: Any, steps: int, **settings: Any) -> ClientUpdate:
    privacy = cases.private(problem, size=1, steps=steps, seed=0, **settings) if settings else None
    local = {"steps": steps, "optimizer": "sgd", "lr": 0.1, "batch": 1}
    _, wire = cases.train(problem, local=local, rounds=1, privacy=privacy)
    update: ClientUpdate = next(sent for sent in wire.seen if sent.client == cases.EVIL)
    return update


@pytest.mark.parametrize("head", ["linear", "abmil"])
def test_gradient_inversion(cases: ModuleType, head: str) -> None:
    if head == "linear":
        problem, layer = cases.binary(0, sizes=SMALL, width=30), "heads.0"
    else:
        problem, layer = cases.bags(0, sizes=SMALL, tiles=1), "project.0"
    schema, patients = problem.schema(), cases.inputs_of(problem, cases.EVIL)

    def best(update: ClientUpdate) -> float:
        return float(cases.likeness(cases.inverted(update, schema, layer), patients))

    bare = one_round(cases, problem, 1)
    assert best(bare) > 0.9999
    reconstructed = cases.inverted(bare, schema, layer)
    assert np.abs(patients - reconstructed).max(axis=1).min() < 1e-3  # the patient, number by number
    if head == "abmil":
        return  # six features: random directions are like one of the patients, too
    draws = np.random.default_rng([0, 99]).normal(size=(200, patients.shape[1]))
    chance = max(cases.likeness(draw, patients) for draw in draws)
    record = {"clip": 1.0, "noise": 1.0, "delta": 1e-2}
    assert best(one_round(cases, problem, 10, record_level=record)) < chance
    assert best(one_round(cases, problem, 1, secure_aggregation={})) < chance


@pytest.mark.parametrize("layer", ["heads.0"])
def test_gradient_inversion_of_the_slide_vector(cases: ModuleType, layer: str) -> None:
    """The head of ABMIL gives away the pooled vector of a whole slide."""
    import torch

    from equipoise.platform.training.batches import collate

    problem = cases.bags(0, sizes=SMALL)
    update = one_round(cases, problem, 1)
    model = problem.build()
    with torch.no_grad():
        pooled = (
            model.latents(collate(list(problem.train[cases.EVIL]), problem.targets))["MSI"].double().numpy()
        )
    reconstructed = cases.inverted(update, problem.schema(), layer)
    assert np.abs(pooled - reconstructed).max(axis=1).min() < 1e-3


def test_membership_inference(cases: ModuleType) -> None:
    problem = cases.binary(0, sizes=dict.fromkeys(SMALL, 20), width=200)
    everyone = {case.patient: case for patients in problem.train.values() for case in patients}
    pooled = dataclasses.replace(problem, train={"pooled": cases.CaseList(everyone, tuple(everyone))})
    local = {"steps": 20, "optimizer": "sgd", "lr": 0.7, "batch": 40}
    bare, _ = cases.train(pooled, local=local, rounds=3)
    privacy = cases.private(
        problem, size=5, steps=20, seed=0, record_level={"clip": 1.0, "noise": 4.0, "delta": 1e-2}
    )
    private, _ = cases.train(problem, local=local | {"batch": 5}, rounds=2, privacy=privacy)
    assert cases.membership(bare.model, problem) > 0.75
    assert cases.membership(private.model, problem) < 0.6
    assert 0 < private.history[-1]["epsilon_patients"] < 3


def test_stragglers_and_dropouts(cases: ModuleType, problem: Any) -> None:
    """A worker that is killed, and resumption, are in test_identity.py."""
    clock = {"speed_sd": 1.0, "deadline": 1.5, "failures": 0.2}
    result, _ = cases.train(problem, rounds=3, local=LOCAL, clock=clock, exclude_after=99)
    outcomes = [row["verdict"] for row in result.audit_log.rows]
    assert "late" in outcomes
    assert "failed" in outcomes
    assert all(row["accepted"] >= 1 for row in result.history)
    assert len(result.history) == 3
    again, _ = cases.train(problem, rounds=3, local=LOCAL, clock=clock, exclude_after=99)
    np.testing.assert_array_equal(again.vector, result.vector)


def test_small_sites_send_no_scalars_and_nobody_is_on_two_sides(cases: ModuleType, problem: Any) -> None:
    result, wire = cases.train(problem, rounds=1, local=LOCAL, min_n=60)
    told = {update.client: bool(update.metrics) for update in wire.seen}
    assert told == {client: size >= 60 for client, size in cases.SIZES.items()}

    def tell(update: ClientUpdate, request: object) -> ClientUpdate:
        return dataclasses.replace(update, metrics={"loss/OS": 0.5})

    small = dataclasses.replace(problem, train=problem.train | {cases.EVIL: _first(cases, problem, 4)})
    result, _ = cases.train(small, change=tell, rounds=1, local=LOCAL)
    assert reasons(result, cases.EVIL)[0] == "metrics: loss/OS is over 4 patients, fewer than 5"
    from equipoise.platform.errors import DataError

    twice = dataclasses.replace(problem, train=problem.train | {"copy": _first(cases, problem, 4)})
    with pytest.raises(DataError, match="belongs to"):
        cases.train(twice, rounds=1, local=LOCAL)


def _first(cases: ModuleType, problem: Any, count: int) -> Any:
    everyone = problem.train[cases.EVIL]
    return cases.CaseList(everyone.source, everyone.patients[:count])


def test_every_row_of_the_table_names_a_test_that_exists(root: Path) -> None:
    page = (root / "docs" / "security.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_[a-z_]+)`", page))
    here = {name for name in globals() if name.startswith("test_")} - {
        "test_every_row_of_the_table_names_a_test_that_exists"
    }
    files = "\n".join(file.read_text(encoding="utf-8") for file in (root / "tests").rglob("test_*.py"))
    assert here <= named
    assert all(f"def {name}(" in files for name in named)
