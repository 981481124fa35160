"""Participant flow: everybody is either in or a row with a reason."""

from hypothesis import given
from hypothesis import strategies as st

from equipoise.datasets.cohorts.flow import Flow, exclusion_table, flow_text


@given(
    owners=st.lists(st.integers(0, 5), max_size=12),
    lost_slides=st.sets(st.integers(0, 11)),
    lost_patients=st.sets(st.integers(0, 6)),
)
def test_nobody_disappears(owners: list[int], lost_slides: set[int], lost_patients: set[int]) -> None:
    patients = [f"p{i}" for i in range(6)]
    flow = Flow("A", patients, {f"s{i}": f"p{owner}" for i, owner in enumerate(owners)})
    flow.drop_slides({f"s{i}": "unreadable" for i in lost_slides}, "readable")
    flow.drop_patients({f"p{i}": "no label" for i in lost_patients}, "has label")
    flow.close("has label")
    flow.drop_slideless("used", "no slide left")
    flow.close("used")
    gone_patients = [row["patient"] for row in flow.exclusions if row["slide"] == ""]
    gone_slides = [row["slide"] for row in flow.exclusions if row["slide"]]
    assert sorted([*flow.patients, *gone_patients]) == patients
    assert sorted([*(flow.slides or {}), *gone_slides]) == sorted(f"s{i}" for i in range(len(owners)))
    assert set((flow.slides or {}).values()) == set(flow.patients)
    first, last = flow.counts
    assert first["patients"] + first["excluded"] == 6
    assert last["patients"] + last["excluded"] == first["patients"]
    assert last["slides"] + last["excluded_slides"] == first["slides"]
    assert all(row["reason"] for row in flow.exclusions)


def test_slides_leave_with_their_patient() -> None:
    flow = Flow("A", ["p1", "p2"], {"s1": "p1", "s2": "p2"})
    flow.drop_patients({"p1": "contradicts", "stranger": "not here"}, "unique")
    flow.close("unique")
    assert flow.exclusions == [
        {"cohort": "A", "patient": "p1", "slide": "", "stage": "unique", "reason": "contradicts"},
        {
            "cohort": "A",
            "patient": "p1",
            "slide": "s1",
            "stage": "unique",
            "reason": "its patient is left out: contradicts",
        },
    ]
    assert flow.counts == [
        {"cohort": "A", "stage": "unique", "patients": 1, "slides": 1, "excluded": 1, "excluded_slides": 1}
    ]
    assert flow_text(flow.counts) == "A: unique 1"


def test_no_exclusions_is_a_table_too() -> None:
    assert list(exclusion_table([]).columns) == ["cohort", "patient", "slide", "stage", "reason"]
