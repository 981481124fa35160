"""Sums before training under privacy of patients: no label can be recovered, and what is fitted is still of use."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from equipoise.datasets.cohorts.cases import Case
from equipoise.datasets.omics.params import TableParams
from equipoise.datasets.tables.tasks import BinaryTask, RegressionTask, SurvivalTask, Task
from equipoise.platform.errors import FederationError, StudyError
from equipoise.platform.federation.messages import ClientManifest
from equipoise.platform.federation.privacy.accountant import Accountant, SampledGaussian
from equipoise.platform.federation.privacy.combined import CombinedPrivacy
from equipoise.platform.federation.privacy.noised_statistics import (
    bounded_sums,
    noised_manifest,
    noised_rows,
    sensitivity,
    two_valued,
)
from equipoise.platform.federation.privacy.params import NoisedStatistics, PrivacyParams
from equipoise.platform.federation.standardisation import federated_targets
from equipoise.platform.federation.vector import Schema, Segment
from equipoise.platform.training.batches import CaseList
from equipoise.platform.training.statistics import TrainingRows

TASKS: tuple[Task, ...] = (
    BinaryTask(name="MSI", column="MSI", positive="MSI-H", negative="MSS", main=True),
    RegressionTask(name="LF", column="LF"),
    SurvivalTask.model_validate(
        {
            "name": "OS",
            "type": "survival",
            "time": {"column": "t", "unit": "days"},
            "event": {"column": "e", "event_value": "dead"},
            "likelihood": "discrete_hazard",
            "bins": 4,
        }
    ),
)
TABLES = TableParams.model_validate(
    {"clinical": [{"column": "AGE", "type": "number"}, {"column": "SEX", "type": "category"}]}
)
COLUMNS = ("AGE", "SEX=f", "SEX=m")
BOUNDS: dict[str, tuple[float, float]] = {"LF": (0.0, 10.0), "clinical.AGE": (0.0, 100.0)}


def cases(site: str, count: int, seed: int = 0) -> CaseList:
    rng = np.random.default_rng(seed)
    made = {}
    for i in range(count):
        female = float(rng.random() < 0.3)
        row = np.array([rng.normal(60, 10), female, 1 - female], np.float32)
        if rng.random() < 0.1:
            row[0] = np.nan
        labels: dict[str, Any] = {
            "MSI": float(rng.random() < 0.2),
            "LF": np.nan if rng.random() < 0.2 else float(np.clip(rng.normal(4, 1.5), 0, 10)),
            "OS": (float(rng.exponential(900) + 1), float(rng.random() < 0.6)),
        }
        key = f"{site}-{i}"
        made[key] = Case(
            key, "SYN", site, np.zeros((0, 0)), np.zeros((0, 2), np.int32), (), (), {"clinical": row}, labels,
            columns={"clinical": COLUMNS},
        )  # fmt: skip
    return CaseList(made, tuple(made))


def noised(noise: float) -> NoisedStatistics:
    return NoisedStatistics(noise=noise, bounds=BOUNDS)


def recovered(clients: dict[str, CaseList], **options: Any) -> float:
    """LF of the last patient of A, from the scalers before and after the patient came, as an attacker computes it."""
    fitted = []
    for drop in (1, 0):
        given = clients | {
            "A": CaseList(clients["A"].source, clients["A"].patients[: len(clients["A"]) - drop])
        }
        scaler = federated_targets(TASKS, given, scaling="standard", tables=TABLES, **options).tasks[1].scaler
        assert scaler is not None
        known = sum(not math.isnan(c.targets["LF"]) for part in given.values() for c in part)  # type: ignore[arg-type]
        fitted.append(known * scaler.shift)
    return fitted[1] - fitted[0]


def test_a_label_is_recovered_from_exact_sums_and_not_from_noised_ones() -> None:
    clients = {site: cases(site, 40, seed) for seed, site in enumerate("ABC")}
    last = clients["A"].source[clients["A"].patients[-1]]
    true = float(last.targets["LF"])  # type: ignore[arg-type]
    assert not math.isnan(true)
    assert recovered(clients) == pytest.approx(true, rel=1e-9)
    guesses = [recovered(clients, noised=noised(1.0), seed=seed) for seed in range(40)]
    # Further off than a guess of the middle of the range, which needs no data.
    assert np.median(np.abs(np.array(guesses) - true)) > 3.0


def test_no_patient_adds_more_than_the_sensitivity() -> None:
    """Whatever the values, also far outside the declared ranges."""
    whole = cases("A", 30)
    wild = dict(whole.source.items())  # type: ignore[attr-defined]
    for at, case in enumerate(wild.values()):
        case.omics["clinical"][0] = (-1) ** at * 1e6
        case.targets["LF"] = (-1) ** at * 1e9
    rows = TrainingRows.of(CaseList(wild, whole.patients), TASKS)
    everything, limit = bounded_sums(rows, TASKS, BOUNDS), sensitivity(rows, TASKS)
    assert limit == math.sqrt(1 + 1 + 3 + 3 * 3)
    for patient in whole.patients:
        left = tuple(p for p in whole.patients if p != patient)
        without = bounded_sums(TrainingRows.of(CaseList(wild, left), TASKS), TASKS, BOUNDS)
        added = np.concatenate([everything[name] - without[name] for name in everything])
        assert 0 < np.linalg.norm(added) <= limit + 1e-9


def test_without_noise_the_stand_in_has_the_sums_of_the_site() -> None:
    """With ever less noise the targets become those of exact sums."""
    clients = {site: cases(site, 41, seed) for seed, site in enumerate("ABC")}
    exact = federated_targets(TASKS, clients, scaling="standard", tables=TABLES)
    close = federated_targets(TASKS, clients, scaling="standard", tables=TABLES, noised=noised(1e-7), seed=1)
    assert close.tasks[0].class_weights == pytest.approx(exact.tasks[0].class_weights)
    a, b = close.tasks[1].scaler, exact.tasks[1].scaler
    assert a is not None
    assert b is not None
    assert (a.shift, a.scale) == pytest.approx((b.shift, b.scale), rel=1e-3)
    # Intervals of events are half an octave wide here.
    ratio = np.array(close.tasks[2].head.edges) / np.array(exact.tasks[2].head.edges)
    assert np.all(np.abs(np.log2(ratio)) < 0.55)
    assert close.tables["clinical"].names == exact.tables["clinical"].names
    row = np.array([70, 1, 0], np.float32)
    ours, theirs = (t.tables["clinical"].apply(row, COLUMNS) for t in (close, exact))
    np.testing.assert_allclose(ours, theirs, atol=0.05)


def test_noise_of_the_promised_size_and_other_noise_at_every_site() -> None:
    rows = TrainingRows.of(cases("A", 400), TASKS)
    count = len(rows.labels["MSI"])
    spread = [
        len(noised_rows(rows, TASKS, noised(2.0), seed=seed, client="A").labels["MSI"]) - count
        for seed in range(120)
    ]
    # The two classes have independent noise of z times the sensitivity each.
    expected = 2.0 * sensitivity(rows, TASKS) * math.sqrt(2)
    assert np.std(spread) == pytest.approx(expected, rel=0.2)
    one, other = (noised_rows(rows, TASKS, noised(2.0), seed=0, client=c) for c in "AB")
    assert one.labels["MSI"] != other.labels["MSI"]


def test_ranges_are_needed_and_transforms_of_single_rows_refused() -> None:
    clients = {site: cases(site, 20) for site in "AB"}
    with pytest.raises(StudyError, match="public range of LF"):
        federated_targets(TASKS, clients, tables=TABLES, noised=NoisedStatistics(noise=1.0))
    with pytest.raises(StudyError, match="transform: auto"):
        federated_targets(
            TASKS, clients, tables=TABLES, noised=NoisedStatistics(noise=1.0, bounds=BOUNDS | {"rna": (0, 9)})
        )
    with pytest.raises(StudyError, match="class_balanced_dropout: false"):
        federated_targets(TASKS, clients, tables=TABLES, noised=noised(1.0), presence=True)


def test_means_and_spreads_of_two_valued_rows() -> None:
    for n in (1, 2, 7, 40):
        mean, spread = 0.2, 0.0 if n == 1 else 0.5
        values = two_valued(n, np.array([n * mean]), np.array([n * (mean**2 + spread**2)]))[:, 0]
        assert len(values) == n
        assert (values.mean(), values.std()) == pytest.approx((mean, spread))
    assert two_valued(-3.0, np.array([0.1]), np.array([0.1])).shape == (0, 1)
    gaps = two_valued(np.array([2.0, 4.0]), np.array([0.0, 0.0]), np.array([1.0, 1.0]))
    assert np.isnan(gaps).sum(axis=0).tolist() == [2, 0]


def test_declared_counts_have_noise_and_fit_together() -> None:
    counts = {"shared": 40, "task:MSI": 38, "task:OS": 30, "modality:rna": 20}
    manifest = ClientManifest(
        "A", 40, {"MSI": 38, "OS": 30}, {"OS": 12}, counts, ("OS: …",), 8, {"MSI": 38, "OS": 30}
    )
    seen = [noised_manifest(manifest, noised(3.0), seed=seed) for seed in range(200)]
    assert {(m.n, m.batch, m.flags) for m in seen} == {(40, 8, ())}
    assert np.std([m.events["OS"] for m in seen]) == pytest.approx(3.0 * math.sqrt(5), rel=0.25)
    for m in seen:
        assert list(m.counts) == list(counts)
        assert m.labels == m.labelled == {task: m.counts[f"task:{task}"] for task in ("MSI", "OS")}
        assert all(
            0 <= value <= 40 for value in [*m.labelled.values(), *m.events.values(), *m.counts.values()]
        )
        assert m.counts["shared"] >= max(m.labelled.values())
        assert m.learns == any(m.labelled.values())


def test_what_was_sent_before_training_is_spent() -> None:
    schema = Schema((Segment("w", (2,), "shared", "weight", 0, 2, True),))
    known = {"A": ClientManifest("A", 40, {}, {}, {"shared": 40})}

    def mechanism(**record: Any) -> CombinedPrivacy:
        params = {"record_level": {"noise": 1.0, "delta": 1e-3} | record, "statistics": {"noise": 4.0}}
        made = CombinedPrivacy(PrivacyParams.model_validate(params), schema, seed=1, bits=32, uniform=False)
        made.register(known, {"A": (0.2, 5)})
        return made

    before = {SampledGaussian(1.0, 4.0): 2}
    private = mechanism()
    assert private.patients["A"].executed == before
    assert private.patients["A"].spent() == pytest.approx(Accountant(1e-3, None, before).spent())
    private.close_round(0, {"A": 1})
    assert private.patients["A"].executed == before | {SampledGaussian(0.2, 1.0): 5}
    with pytest.raises(FederationError, match="would spend"):
        mechanism(epsilon=0.5)
