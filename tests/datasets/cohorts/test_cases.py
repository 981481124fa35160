"""Cases: what exists, what is missing, several slides in manifest order, one role only."""

from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter

from equipoise.datasets.cohorts.cases import CaseReader
from equipoise.datasets.cohorts.cohort import Cohorts, load_cohorts
from equipoise.datasets.errors import DataError
from equipoise.datasets.params import CohortSource
from equipoise.datasets.tables.tasks import Task

TASKS = [
    {"name": "MSI", "type": "binary", "column": "MSI", "positive": "MSI-H"},
    {
        "name": "OS",
        "type": "survival",
        "time": {"column": "days", "unit": "days"},
        "event": {"column": "dead", "event_value": 1},
    },
]


class Store:
    """Features that name their slide: the n-th slide has n tiles of value n."""

    def __init__(self, *slides: str) -> None:
        self.bags = {
            slide: (np.full((n, 4), n, np.float16), np.full((n, 2), 10 * n, np.int32))
            for n, slide in enumerate(slides, start=1)
        }

    def read(self, slide: str) -> tuple[np.ndarray, np.ndarray]:
        return self.bags[slide]

    def mpp(self, slide: str) -> float:
        return 0.25 * len(self.bags[slide][0])

    extent = 112.0


@pytest.fixture
def cohorts(tmp_path: Path) -> Cohorts:
    (tmp_path / "a.csv").write_text("PATIENT,MSI,days,dead\np1,MSI-H,10,1\np2,MSS,NA,0\np3,NA,5,0\n")
    (tmp_path / "s.csv").write_text("PATIENT,FILENAME\np1,y.svs\np2,z.svs\np1,x.svs\np3,w.svs\n")
    (tmp_path / "b.csv").write_text("PATIENT,MSI\nq1,MSS\n")
    (tmp_path / "rna.csv").write_text("PATIENT,G1,G2\np1,1,\np3,3,4\n")
    sources = [
        {"name": "A", "role": "develop", "clinical": "a.csv", "slides": "s.csv", "omics": {"rna": "rna.csv"}},
        {"name": "B", "role": "external", "clinical": "b.csv"},
    ]
    tasks = [TypeAdapter(Task).validate_python(task) for task in TASKS]
    return load_cohorts([CohortSource.model_validate(s) for s in sources], tasks, None, tmp_path)


def test_slides_of_a_patient_stand_in_manifest_order(cohorts: Cohorts) -> None:
    reader = CaseReader(cohorts, Store("x", "y", "z", "w"))
    assert list(reader) == ["p1", "p2", "p3", "q1"]
    case = reader["p1"]
    assert case.slides == ("y", "x")
    assert case.tiles == (2, 1)
    assert case.bag[:, 0].tolist() == [2, 2, 1]
    assert case.coords[:, 0].tolist() == [20, 20, 10]
    assert case.mpp == (0.5, 0.25)
    assert case.extent == 112
    assert (case.bag.dtype, case.coords.dtype) == (np.float16, np.int32)
    assert (case.cohort, case.site) == ("A", "A")


def test_one_slide_is_not_copied(cohorts: Cohorts) -> None:
    store = Store("x", "y", "z", "w")
    assert CaseReader(cohorts, store)["p2"].bag is store.bags["z"][0]


def test_targets_and_omics_say_what_is_missing(cohorts: Cohorts) -> None:
    reader = CaseReader(cohorts, Store("x", "y", "z", "w"))
    assert reader["p1"].targets == {"MSI": 1.0, "OS": (10.0, 1.0)}
    np.testing.assert_equal(reader["p2"].targets, {"MSI": 0.0, "OS": (np.nan, np.nan)})
    np.testing.assert_equal(reader["p3"].targets, {"MSI": np.nan, "OS": (5.0, 0.0)})
    np.testing.assert_array_equal(reader["p1"].omics["rna"], np.array([1, np.nan], np.float32))
    assert reader["p2"].omics == {}


def test_without_slides_bags_are_empty(cohorts: Cohorts) -> None:
    assert CaseReader(cohorts, None)["p1"].bag.shape == (0, 0)
    assert CaseReader(cohorts, Store("x", "y", "z", "w"))["q1"].bag.shape == (0, 0)


def test_a_reader_of_development_cannot_read_external_patients(cohorts: Cohorts) -> None:
    reader = CaseReader(cohorts, None, role="develop")
    assert list(reader) == ["p1", "p2", "p3"]
    with pytest.raises(DataError, match="'q1' is not among the develop patients"):
        reader["q1"]


def test_strangers_and_features_that_do_not_fit(cohorts: Cohorts) -> None:
    store = Store("x", "y", "z", "w")
    reader = CaseReader(cohorts, store)
    with pytest.raises(DataError, match="'p01' is not among the study patients; nearest: 'p1'"):
        reader["p01"]
    store.bags["z"] = (np.zeros((3, 4), np.float16), np.zeros((2, 2), np.int32))
    with pytest.raises(DataError, match="feature store, slide z"):
        reader["p2"]
    store.bags["x"] = (np.zeros((1, 5), np.float16), np.zeros((1, 2), np.int32))
    with pytest.raises(DataError, match="slide x"):
        reader["p1"]
