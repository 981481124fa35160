"""Fingerprints: stored hashes keep their values, and every value that differs is named."""

import hashlib
from pathlib import Path

import pytest

from equipoise.platform.errors import StudyError
from equipoise.platform.fingerprints import content_hash, differences, fingerprint, require_same


def test_content_hash_is_the_stored_one() -> None:
    """Runs of earlier versions hold these hashes: SHA-256 of the lines, sixteen digits."""
    expected = hashlib.sha256(b"patient-1\npatient-2").hexdigest()[:16]
    assert content_hash(["patient-1", "patient-2"]) == expected
    assert content_hash(name for name in ("patient-1", "patient-2")) == expected
    assert content_hash(["patient-2", "patient-1"]) != expected


def test_differences_name_leaves() -> None:
    assert differences({"a": [1, {"b": 2}]}, {"a": [1, {"b": 3}]}, "x") == ["x.a.1.b: 2 → 3"]
    assert differences({"a": 1}, {"a": 1, "c": None}, "x") == []
    assert differences({"a": {"b": 1}, "c": [1, 2]}, {"c": [1]}) == ["a: {'b': 1} → None", "c: [1, 2] → [1]"]


def test_a_new_setting_that_changes_nothing_is_no_difference() -> None:
    before = {"training": {"lr": 1e-3}, "tables": {"rna": {"clip": 5.0}}}
    as_then = {
        "training": {"lr": 1e-3, "members": 1},
        "tables": {"rna": {"clip": 5.0, "standardise": "training"}},
    }
    assert differences(before, as_then) == []
    otherwise = as_then | {"training": {"lr": 1e-3, "members": 5}}
    assert differences(before, otherwise) == ["training.members: None → 5"]
    assert differences(as_then, before) == [
        "training.members: 1 → None",
        "tables.rna.standardise: 'training' → None",
    ]


def test_a_fingerprint_equals_its_stored_form() -> None:
    made_from = fingerprint({"parts": (1, 2), "by": {3: "x"}})
    assert made_from == {"parts": [1, 2], "by": {"3": "x"}}
    require_same(made_from, {"parts": (1, 2), "by": {3: "x"}}, "another", where=Path("here"), fix="none")


def test_another_fingerprint_is_refused_with_what_differs() -> None:
    before = {f"key{i:02}": i for i in range(20)}
    with pytest.raises(StudyError) as caught:
        require_same(before, dict.fromkeys(before, -1), "another run", where=Path("here"), fix="choose -o")
    text = str(caught.value)
    assert "another run; it differs in\n  key00: 0 → -1\n" in text
    assert "key11: 11 → -1\n  … and 8 more" in text
    assert "key12" not in text
    assert "here" in text
    assert "choose -o" in text


def test_a_client_may_be_called_what_a_key_was_called_earlier() -> None:
    made_from = {"clients": {"gate": "4f", "rule": "a0"}, "federation": {"rounds": 2}}
    require_same(made_from, made_from, "another", where=Path("here"), fix="none")
    with pytest.raises(StudyError, match="4f"):
        require_same(
            made_from, {**made_from, "clients": {"gate": "55", "rule": "a0"}}, "x", where=Path("x"), fix="x"
        )
