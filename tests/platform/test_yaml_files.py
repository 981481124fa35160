"""YAML from users: plain values, bounded; what is refused says where."""

from pathlib import Path

import pytest
import yaml

from equipoise.platform.errors import StudyError
from equipoise.platform.yaml_files import MAX_BYTES, parse, read_text

BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "text",
    ["a: 1", "- x\n- {b: [1.5, true, null]}", "a: &x {b: 1}\nc: *x\nd: {<<: *x, e: 2}", "~", "a: 'x: y'"],
)
def test_ordinary_documents_are_what_the_safe_loader_makes_of_them(text: str) -> None:
    value, node = parse(text, "s.yaml")
    assert value == yaml.safe_load(text)
    assert node is not None


def test_dates_stay_text_and_a_mark_is_no_part_of_the_text(tmp_path: Path) -> None:
    assert parse("a: 2024-01-01\nb: 2024-99-99", "")[0] == {"a": "2024-01-01", "b": "2024-99-99"}
    (tmp_path / "s.yaml").write_bytes(b"\xef\xbb\xbfa: 1")
    assert parse(read_text(tmp_path / "s.yaml"), "")[0] == {"a": 1}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (BOMB, "more than 100,000 values"),
        ("a: &a [*a]", "line 1, column 8: not valid: *a contains itself"),
        ("a: &a {<<: *a}", "contains itself"),
        ("[" * 4000, "nested more than 50 deep"),
        ("\n".join("  " * i + "k:" for i in range(3000)), "nested more than 50 deep"),
        ("a: " + "9" * 5000, "a number of 5000 characters"),
        ("a: !!python/name:os.system", "is not allowed"),
        ("a: !!set {b, c}", "is not allowed"),
        ("a: [1", "not valid YAML"),
        ("a: *b", "not valid YAML"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
    ],
)
def test_bombs_and_tags_are_refused_with_their_place(text: str, reason: str) -> None:
    with pytest.raises(StudyError) as caught:
        parse(text, "s.yaml")
    assert reason in str(caught.value)
    assert str(caught.value).startswith("s.yaml")


def test_only_regular_files_of_a_size_are_read(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b" " * (MAX_BYTES + 1))
    (tmp_path / "latin").write_bytes("a: 1\nb: ä".encode("latin-1"))
    for name, reason in {
        "pipe": "no regular file",
        "large": "larger than",
        "latin": "not UTF-8",
        ".": "",
    }.items():
        with pytest.raises(StudyError, match=reason):
            read_text(tmp_path / name)
    with pytest.raises(StudyError, match="no regular file"):
        read_text(Path("/dev/zero"))
    with pytest.raises(FileNotFoundError):
        read_text(tmp_path / "absent")
