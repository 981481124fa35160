"""Subsampled cohorts: few patients per site, every class still there, the same choice every time."""

import pandas as pd

from equipoise.datasets.cohorts.cohort import MIN_PER_CLASS, excluded_by_subsample
from equipoise.datasets.tables.tasks import BinaryTask


def table(sites: int, per_site: int, positives: int) -> pd.DataFrame:
    patients = [f"P{i:03d}" for i in range(sites * per_site)]
    frame = pd.DataFrame({"patient": patients, "cohort": "A"})
    frame["site"] = [f"S{i // per_site}" for i in range(len(frame))]
    frame["MSI"] = [1.0] * positives + [0.0] * (len(frame) - positives)
    return frame


TASK = BinaryTask(name="MSI", column="MSI", positive=["1"])


def test_a_site_keeps_no_more_than_asked_where_classes_allow() -> None:
    frame = table(sites=8, per_site=20, positives=80)
    kept = frame[~frame["patient"].isin(excluded_by_subsample(frame, 4, TASK))]
    assert kept.groupby("site").size().tolist() == [4] * 8


def test_one_big_site_keeps_enough_of_each_class_for_folds() -> None:
    frame = table(sites=1, per_site=60, positives=7)
    kept = frame[~frame["patient"].isin(excluded_by_subsample(frame, 4, TASK))]
    assert kept["MSI"].value_counts().to_dict() == {1.0: MIN_PER_CLASS, 0.0: MIN_PER_CLASS}


def test_the_choice_and_its_reasons_need_no_chance() -> None:
    frame = table(sites=3, per_site=10, positives=5)
    first = excluded_by_subsample(frame, 2, TASK)
    assert first == excluded_by_subsample(frame, 2, TASK)
    assert set(first.values()) == {"not in the subsample (patients_per_site: 2)"}
    assert excluded_by_subsample(frame, 100, TASK) == {}
