"""Sums over groups of patients add up to the sums over all of them."""

from __future__ import annotations

import numpy as np
import pytest

from equipoise.datasets.omics.statistics import LocalTable, centre_and_fence_from_sums, moments
from equipoise.platform.federation.standardisation import statistics_of
from equipoise.platform.training.statistics import LocalStatistics, TrainingRows, label_sums


@pytest.mark.parametrize("groups", [1, 2, 5])
def test_groups_of_any_number_give_the_same_sums(tasks, make_cases, groups: int) -> None:
    cases = list(make_cases(23).values())
    central = LocalStatistics(TrainingRows.of(cases, tasks))
    clients = {f"C{k}": TrainingRows.of(cases[k::groups], tasks) for k in range(groups)}
    federated = statistics_of(clients)
    assert (federated.sites, federated.widths) == (central.sites, central.widths)
    expected, sums = label_sums(central, tasks), label_sums(federated, tasks)
    assert sums.keys() == expected.keys() == {task.name for task in tasks}
    for name, one in expected.items():
        assert (sums[name].n, sums[name].classes) == (one.n, one.classes)
        assert sums[name].mean == pytest.approx(one.mean, rel=1e-12)
        assert sums[name].spread == pytest.approx(one.spread, rel=1e-12)
    table, rows = federated.tables["rna"], central.tables["rna"]
    for ours, theirs in zip(
        centre_and_fence_from_sums(table, 2.0), centre_and_fence_from_sums(rows, 2.0), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_moments_are_those_of_numpy_inside_the_fence() -> None:
    rng = np.random.default_rng(0)
    rows = rng.normal(3, 2, (50, 4))
    rows[rng.random(rows.shape) < 0.1] = np.nan
    low, high, fill = np.full(4, 0.0), np.full(4, 5.0), np.full(4, 2.5)
    inside = np.clip(np.where(np.isnan(rows), fill, rows), low, high)
    table = LocalTable(rows, tuple("ABCD"))
    mean = moments(table, fill, low, high, fill).mean
    np.testing.assert_allclose(mean, inside.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(moments(table, mean, low, high, fill).spread, inside.std(axis=0), rtol=1e-12)
