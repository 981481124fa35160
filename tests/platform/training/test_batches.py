"""From cases to tensors: padding, masks, drawn tiles."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from equipoise.platform.errors import DataError
from equipoise.platform.training.batches import CaseList, collate, draw_order, draw_tiles
from equipoise.platform.training.targets import fit_targets


@pytest.fixture
def cases(make_cases):
    return list(make_cases(8).values())


@pytest.fixture
def targets(tasks, cases):
    return fit_targets(tasks, cases)


def test_bags_are_padded_and_masked(cases, targets) -> None:
    batch = collate(cases, targets)
    sizes = [len(case.bag) for case in cases]
    assert batch.bags.shape == (8, max(sizes), 8)
    assert batch.bags.dtype == torch.float32
    assert batch.mask.sum(1).tolist() == sizes
    assert batch.padded
    assert len(cases) > 0
    for i, case in enumerate(cases):
        assert np.array_equal(batch.bags[i, : sizes[i]], case.bag.astype(np.float32))
        assert np.array_equal(batch.coords[i, : sizes[i]], case.coords)
        assert not batch.bags[i, sizes[i] :].any()


def test_one_case_has_no_padding(cases, targets) -> None:
    assert collate(cases[:1], targets).key_mask is None


def test_cohorts_are_counted_from_those_of_training(cases, targets) -> None:
    assert collate(cases, targets).cohort.tolist() == [1 if c.cohort == "SYN-B" else 0 for c in cases]
    elsewhere = dataclasses.replace(cases[0], cohort="ELSEWHERE")
    assert collate([elsewhere, cases[1]], targets).cohort.tolist() == [-1, 0]


def test_labels_are_scaled_or_masked(cases, targets) -> None:
    batch = collate(cases, targets)
    missing = [math.isnan(case.targets["LF"]) for case in cases]
    assert any(missing)
    for name in ("LF", "OS"):
        assert batch.label_mask[name].tolist() == [not m for m in missing]
        assert torch.isfinite(batch.targets[name]).all()
        assert not batch.targets[name][missing].any()
    assert batch.targets["LF"][batch.label_mask["LF"]].min() == 0
    assert batch.targets["LF"].max() == 1
    assert batch.targets["OS"].shape == (8, 2)
    assert batch.targets["OS"][0].tolist() == pytest.approx(cases[0].targets["OS"])
    assert batch.targets["grade"].tolist() == [c.targets["grade"] for c in cases]


def test_a_label_that_a_case_does_not_carry_is_missing(cases, targets) -> None:
    external = dataclasses.replace(cases[0], targets={"MSI": 1.0})
    batch = collate([external], targets)
    assert batch.label_mask["MSI"].tolist() == [True]
    assert not any(batch.label_mask[name] for name in ("grade", "LF", "OS"))


def test_absent_modalities_are_zero_and_flagged(cases, targets) -> None:
    batch = collate(cases, targets)
    assert batch.present["rna"].tolist() == ["rna" in case.omics for case in cases]
    assert not batch.omics["rna"][4].any()
    assert np.array_equal(
        batch.omics["rna"][0], targets.tables["rna"].apply(cases[0].omics["rna"], ("0", "1", "2"))
    )


def test_sites_count_in_training_sites(cases, targets) -> None:
    elsewhere = dataclasses.replace(cases[1], site="elsewhere")
    assert collate([cases[3], elsewhere], targets).site.tolist() == [3, -1]


def test_only_the_tiles_asked_for(cases, targets) -> None:
    batch = collate(cases[:2], targets, [np.array([1, 3]), None])
    assert np.array_equal(batch.bags[0, :2], cases[0].bag[[1, 3]].astype(np.float32))
    assert batch.mask[0].sum() == 2


def test_what_does_not_fit_names_the_patient(cases, targets) -> None:
    case = cases[0]
    empty = np.empty((0, 0), np.float16)
    with pytest.raises(DataError, match="patient P00 of SYN-B: the patient has no tile and no row in rna"):
        collate([dataclasses.replace(case, bag=empty, coords=empty, omics={})], targets)
    with pytest.raises(DataError, match=r"P00.*5 features, the model was prepared for 8"):
        collate([dataclasses.replace(case, bag=case.bag[:, :5])], targets)
    with pytest.raises(
        DataError, match=r"P00 of SYN-B: rna: the table has 1 of the 3 columns that the model"
    ):
        collate([dataclasses.replace(case, omics={"rna": np.zeros(1, np.float32)})], targets)


def test_cases_without_tiles_are_rows_of_false(cases, targets) -> None:
    bare = dataclasses.replace(cases[1], bag=np.empty((0, 0), np.float16), coords=np.empty((0, 2), np.int32))
    batch = collate([cases[0], bare], targets)
    assert batch.tileless
    assert batch.mask.any(1).tolist() == [True, False]
    assert not batch.bags[1].any()
    assert collate([bare], targets).bags.shape == (1, 0, 8)


@given(st.integers(1, 60), st.integers(1, 9), st.integers(0, 5), st.integers(0, 3))
def test_an_epoch_shows_everybody_once(count: int, size: int, seed: int, epoch: int) -> None:
    batches = list(draw_order(count, size, seed, epoch))
    assert sorted(i for batch in batches for i in batch) == list(range(count))
    assert all(len(batch) == size for batch in batches[:-1])


def test_epochs_and_seeds_differ_in_order() -> None:
    orders = {tuple(next(draw_order(20, 20, seed, epoch))) for seed in (0, 1) for epoch in (0, 1)}
    assert len(orders) == 4


@given(st.integers(1, 200), st.integers(1, 50), st.text(min_size=1, max_size=8))
def test_drawn_tiles_are_distinct_and_ascending(count: int, most: int, patient: str) -> None:
    rows = draw_tiles(count, most, 0, 0, patient)
    if count <= most:
        assert rows is None
    else:
        assert rows is not None
        assert len(rows) == most
        assert (np.diff(rows) > 0).all()
        assert rows[0] >= 0
        assert rows[-1] < count


def test_a_draw_depends_on_seed_epoch_and_patient_alone() -> None:
    draw = lambda *key: draw_tiles(1000, 20, *key).tolist()  # noqa: E731
    assert draw(0, 0, "P1") == draw(0, 0, "P1")
    assert len({tuple(draw(*key)) for key in ((0, 0, "P1"), (1, 0, "P1"), (0, 1, "P1"), (0, 0, "P2"))}) == 4


def test_all_tiles_and_no_limit_draw_nothing() -> None:
    assert draw_tiles(50, None, 0, 0, "P1") is None


def test_a_case_list_reads_its_patients_only_when_asked() -> None:
    class Recorder(dict):
        def __init__(self) -> None:
            super().__init__(a=1, b=2, c=3)
            self.read = []

        def __getitem__(self, patient):
            self.read.append(patient)
            return super().__getitem__(patient)

    source = Recorder()
    cases = CaseList(source, ("c", "a"))  # type: ignore[arg-type]
    assert len(cases) == 2
    assert source.read == []
    assert cases[1] == 1
    assert list(cases) == [3, 1]
    assert source.read == ["a", "c", "a"]
