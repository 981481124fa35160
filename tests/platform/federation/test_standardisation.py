"""Fits from sums of sites equal central fits, except for medians and extremes."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from equipoise.datasets.cohorts.cases import Case
from equipoise.datasets.omics.params import TableParams
from equipoise.datasets.tables.tasks import RegressionTask, SurvivalTask, Task
from equipoise.platform.errors import DataError, DataWarning
from equipoise.platform.federation.standardisation import GRID, federated_targets
from equipoise.platform.training.batches import CaseList, collate
from equipoise.platform.training.targets import fit_targets

COLUMNS = ("AGE", "STAGE=I", "STAGE=II")
TABLES = TableParams.model_validate(
    {"clinical": [{"column": "AGE", "type": "number"}, {"column": "STAGE", "type": "category"}]}
)
OS: Task = SurvivalTask(
    name="OS",
    time={"column": "t", "unit": "days"},  # type: ignore[arg-type]
    event={"column": "e", "event_value": "dead"},  # type: ignore[arg-type]
    likelihood="discrete_hazard",
    bins=4,
    main=True,
)
TASKS: tuple[Task, ...] = (OS, RegressionTask(name="LF", column="LF"))


def patients(count: int, seed: int = 0) -> dict[str, Case]:
    rng = np.random.default_rng(seed)
    made = {}
    for i in range(count):
        name, second = f"P{i:03d}", float(rng.random() < 0.4)
        clinical = np.array([rng.normal(60, 9), 1 - second, second], np.float32)
        omics = {"clinical": clinical, "rna": rng.normal(5, 2, 3).astype(np.float32)}
        if i % 11 == 3:
            clinical[0] = np.nan
        labels: dict[str, Any] = {
            "OS": (float(rng.exponential(900) + 1), float(i % 3 > 0)),
            "LF": rng.normal(3, 2),
        }
        bag = np.zeros((0, 0), np.float16)
        made[name] = Case(
            name,
            "SYN",
            f"S{i % 4}",
            bag,
            np.zeros((0, 2), np.int32),
            (),
            (),
            omics,
            labels,
            {"clinical": COLUMNS},
        )
    return made


def split(cases: dict[str, Case], parts: int) -> dict[str, CaseList]:
    names = list(cases)
    return {f"C{k}": CaseList(cases, tuple(names[k::parts])) for k in range(parts)}


@pytest.mark.parametrize("parts", [1, 5])
def test_sums_fix_what_rows_fix(parts: int) -> None:
    cases = patients(80)
    federated = federated_targets(TASKS, split(cases, parts), tables=TABLES, scaling="standard")
    central = fit_targets(TASKS, cases.values(), tables=TABLES, scaling="standard")
    assert federated.sites == central.sites
    assert federated.shape == central.shape
    assert federated.tasks[1].scaler is not None
    assert central.tasks[1].scaler is not None
    assert federated.tasks[1].scaler.shift == pytest.approx(central.tasks[1].scaler.shift)
    assert federated.tasks[1].scaler.scale == pytest.approx(central.tasks[1].scaler.scale)
    assert federated.tables["rna"].shift == pytest.approx(central.tables["rna"].shift, rel=1e-5)  # type: ignore[union-attr]
    assert federated.tables["rna"].spread == pytest.approx(central.tables["rna"].spread, rel=1e-5)  # type: ignore[union-attr]
    clinical, other = federated.tables["clinical"], central.tables["clinical"]
    assert clinical.names == other.names == ("AGE", "AGE missing", "STAGE=I", "STAGE=II")
    assert clinical.categories == other.categories  # type: ignore[union-attr]
    ages = [case.omics["clinical"][0] for case in cases.values()]
    assert clinical.numbers.fill == pytest.approx([np.nanmean(ages)])  # type: ignore[union-attr]
    batch = collate(list(cases.values()), federated)
    assert batch.omics["rna"].mean(dim=0).numpy() == pytest.approx(np.zeros(3), abs=1e-5)
    assert batch.omics["rna"].std(dim=0, correction=0).numpy() == pytest.approx(np.ones(3), abs=1e-5)


def test_edges_of_discrete_time_come_from_counts() -> None:
    cases = patients(400)
    federated = federated_targets(TASKS, split(cases, 3), tables=TABLES).heads[0].edges
    exact = fit_targets(TASKS, cases.values(), tables=TABLES).heads[0].edges
    assert federated is not None
    assert federated == pytest.approx(exact, rel=0.03)


@pytest.mark.parametrize(("count", "bins"), [(7, 2), (40, 4), (61, 7), (400, 10)])
def test_edges_are_the_central_ones_on_days_of_the_grid(count: int, bins: int) -> None:
    """Quantiles of tied and of few event times, at every rank."""
    task = OS.model_copy(update={"bins": bins})
    for seed in range(4):
        days = np.random.default_rng(seed).choice(GRID[60:300:7] if seed % 2 else GRID, count)
        cases = {
            name: replace(case, targets={"OS": (float(days[i]), float(i % 3 > 0))})
            for i, (name, case) in enumerate(patients(count, seed).items())
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DataWarning)  # ties give fewer intervals
            federated = federated_targets([task], split(cases, 3), min_n=1).heads[0].edges
            central = fit_targets([task], cases.values()).heads[0].edges
        assert federated == central
        assert central


def test_counts_of_rna_are_put_on_one_scale() -> None:
    cases = {
        name: replace(case, omics={"rna": np.floor(np.exp(case.omics["rna"])).astype(np.float32) + 60})
        for name, case in patients(60).items()
    }
    federated = federated_targets(TASKS, split(cases, 4)).tables["rna"]
    central = fit_targets(TASKS, cases.values()).tables["rna"]
    assert federated.scale == central.scale == "log_cpm"  # type: ignore[union-attr]
    assert federated.logarithm.share == pytest.approx(central.logarithm.share, rel=1e-5)  # type: ignore[union-attr]
    logs = {name: replace(case, omics={"rna": case.omics["rna"]}) for name, case in patients(9, 1).items()}
    mixed = split(cases, 2) | {"Z": CaseList(logs, tuple(logs))}
    with pytest.raises(DataError, match="different scales"):
        federated_targets(TASKS, mixed)


def test_the_logarithm_above_the_floor_and_components_come_from_sums() -> None:
    cases = patients(90)
    for case in cases.values():  # many patients share the floor, as a gene's zeros do
        case.omics["rna"] = np.maximum(np.exp(case.omics["rna"]) - 60, 0).astype(np.float32)
    tables = TableParams.model_validate({"rna": {"transform": "log", "clip": None, "components": 2}})
    federated = federated_targets(TASKS, split(cases, 4), tables=tables).tables["rna"]
    central = fit_targets(TASKS, cases.values(), tables=tables).tables["rna"]
    ours, theirs = federated.before, central.before  # type: ignore[union-attr]
    assert ours.logarithm.floor == pytest.approx(theirs.logarithm.floor, abs=1e-4)
    # An order statistic beside one that lies between two.
    assert ours.logarithm.unit == pytest.approx(theirs.logarithm.unit, rel=0.05)
    names = ("0", "1", "2")
    scores = [[t.apply(case.omics["rna"], names) for case in cases.values()] for t in (federated, central)]
    assert np.abs(np.corrcoef(np.concatenate(scores, axis=1).T)[[0, 1], [2, 3]]).min() > 0.999


def test_scores_of_gene_sets_come_from_sums() -> None:
    cases = patients(90)
    sets = {"sets": {"first": ["0", "2"], "second": ["1", "2"]}, "use": "scores"}
    tables = TableParams.model_validate({"rna": {"gene_sets": sets, "transform": "none", "clip": None}})
    federated = federated_targets(TASKS, split(cases, 4), tables=tables).tables["rna"]
    central = fit_targets(TASKS, cases.values(), tables=tables).tables["rna"]
    assert federated.names == central.names == ("first", "second")
    rows = [(case.omics["rna"], ("0", "1", "2")) for case in cases.values()]
    np.testing.assert_allclose(
        [federated.apply(*row) for row in rows], [central.apply(*row) for row in rows], atol=1e-4
    )


def test_what_a_federation_does_not_fit_is_refused() -> None:
    clients = split(patients(30), 2)
    tables = TableParams.model_validate({"rna": {"standardise": "per_cohort"}})
    with pytest.raises(DataError, match="a federation standardises over the patients of all clients"):
        federated_targets(TASKS, clients, tables=tables)


def test_small_sites_send_nothing() -> None:
    cases, far = patients(40), patients(4, 5)
    far = {f"Q{name}": replace(case, patient=f"Q{name}", site="far") for name, case in far.items()}
    clients = split(cases, 2)
    both = clients | {"far": CaseList(far, tuple(far))}
    assert federated_targets(TASKS, both, tables=TABLES) == federated_targets(TASKS, clients, tables=TABLES)
    with pytest.raises(DataError, match="5 training patients"):
        federated_targets(TASKS, {"far": both["far"]})


def test_what_cannot_be_learned_is_said() -> None:
    cases = patients(30)
    silent = {n: replace(c, targets={"OS": c.targets["OS"], "LF": np.nan}) for n, c in cases.items()}
    with pytest.warns(DataWarning, match="LF: no training patient has a label"):
        federated_targets(TASKS, split(silent, 2), tables=TABLES)
    alive = {n: replace(c, targets={"OS": (9.0, 0.0), "LF": 1.0}) for n, c in cases.items()}
    with pytest.raises(DataError, match="none of 30 training patients has an event"):
        federated_targets(TASKS, split(alive, 2), tables=TABLES)
