"""Nearly equal keys are counted with the way in which they differ; nobody is matched by a guess."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.datasets.cohorts.keys import near_fix, near_keys, similar_keys, similar_note


@pytest.mark.parametrize(
    ("listed", "patients", "said"),
    [
        (
            ["07", "07", "08"],
            ["7", "8"],
            "2 keys match|without leading zeros ('07' against '7', '08' against '8')",
        ),
        (["7"], ["007"], "1 key matches|without leading zeros ('7' against '007')"),
        (["1001.0"], ["1001"], "1 key matches|without '.0' at the end ('1001.0' against '1001')"),
        (["p001", "P002"], ["P001", "P002"], "1 key matches|in another case ('p001' against 'P001')"),
        (["P1\u200b"], ["P1"], "1 key matches|in another Unicode form or without invisible characters"),
        (["Mu\u0308ller"], ["M\u00fcller"], "1 key matches|in another Unicode form or without invisible"),
        (["TCGA.3C.AALI"], ["TCGA-3C-AALI"], "1 key matches|with other separators ('TCGA.3C.AALI' against"),
        (["A 1", "A_2"], ["A-1", "A-2"], "2 keys match|with other separators"),
        (["TCGA-3C-AALI-01Z-00-DX1"], ["TCGA-3C-AALI"], "1 key matches|as barcodes of samples or slides"),
    ],
)
def test_keys_that_differ_in_one_way(listed: list[str], patients: list[str], said: str) -> None:
    count, how = said.split("|")
    (near,) = near_keys(listed, patients)
    assert near.text().startswith(f"{count} the clinical table only {how}")
    assert near_fix([near]).endswith(near.spelling.remedy)


@pytest.mark.parametrize(
    ("listed", "patients"),
    [
        (["07", "7"], ["7"]),  # 7 has its own row: 07 is somebody else
        (["7"], ["7"]),
        (["70"], ["7"]),
        (["p1"], ["P1", "p1", "P-1"]),
        (["P1"], ["p2", "P2"]),
        (["10"], ["1.0.0"]),
    ],
)
def test_keys_that_are_other_keys(listed: list[str], patients: list[str]) -> None:
    near = near_keys(listed, patients)
    assert [n for n in near if n.spelling.differs != "with other separators"] == []


@given(st.lists(st.text(max_size=6), max_size=8), st.lists(st.text(max_size=6), max_size=8))
def test_only_strangers_are_near(listed: list[str], known: list[str]) -> None:
    for near in near_keys(listed, known):
        for one, two in near.pairs:
            assert one in listed
            assert one not in known
            assert two in known


def test_patients_under_several_keys_are_remarked() -> None:
    assert similar_keys(["P1", "P2", "p1", "P\u200b2", "7.0", "7", "07"]) == [
        ("P1", "p1"),
        ("P2", "P\u200b2"),
        ("7.0", "7"),
    ]
    owner = {"P1": "A", "p1": "A", "x": "A", "X": "B"}
    note = similar_note("cohorts", owner, across=True)
    assert note is not None
    assert note.startswith("cohorts: 1 patients seem to stand under several keys")
    assert "'x' and 'X'" in note
    assert similar_note("cohorts", {"P1": "A", "P2": "B"}) is None
