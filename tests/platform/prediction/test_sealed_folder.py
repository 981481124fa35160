"""A sealed folder is taken whole or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from equipoise.platform.errors import DataError
from equipoise.platform.prediction import sealed_folder
from equipoise.platform.prediction.sealed_folder import MANIFEST, seal, verify


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "model"
    (root / "models" / "0-0").mkdir(parents=True)
    (root / "config.json").write_text('{"a": 1}\n')
    (root / "models" / "0-0" / "model.safetensors").write_bytes(bytes(range(64)))
    seal(root)
    return root


def rewritten(folder: Path, change) -> None:
    """The list with a change, written as :func:`seal` writes it."""
    content = json.loads((folder / MANIFEST).read_text())
    change(content)
    (folder / MANIFEST).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")


def test_a_folder_is_what_it_says(folder: Path) -> None:
    sealed = verify(folder)
    assert sealed.files == ("config.json", "models/0-0/model.safetensors")
    assert verify(folder, sha256=sealed.sha256.upper()) == sealed
    with pytest.raises(DataError, match="not the expected"):
        verify(folder, sha256="0" * 64)


def test_every_single_byte_counts(folder: Path) -> None:
    """Also in the list itself: white space, digits, names."""
    for file in sorted(p for p in folder.rglob("*") if p.is_file()):
        before = file.read_bytes()
        for at in range(len(before)):
            file.write_bytes(before[:at] + bytes([before[at] ^ 1]) + before[at + 1 :])
            with pytest.raises(DataError):
                verify(folder)
        file.write_bytes(before)
    verify(folder)


@pytest.mark.parametrize("name", ["config.json", "models/0-0/model.safetensors", MANIFEST])
def test_missing(folder: Path, name: str) -> None:
    (folder / name).unlink()
    with pytest.raises(DataError, match=f"{name} is missing"):
        verify(folder)


@pytest.mark.parametrize("name", ["model.pkl", "models/more.json", "models/0-0/.hidden"])
def test_too_much(folder: Path, name: str) -> None:
    (folder / name).write_text("x")
    with pytest.raises(DataError, match="not part of the export"):
        verify(folder)


@pytest.mark.parametrize(
    "name",
    ["../outside.json", "/etc/passwd", "models/../../x", "a\\b", "C:x", "a//b", ".hidden", "x\u0000y", ""],
)
def test_names_stay_inside(folder: Path, name: str) -> None:
    (folder.parent / "outside.json").write_text('{"a": 1}\n')
    rewritten(folder, lambda c: c["files"].update({name: c["files"].pop("config.json")}))
    with pytest.raises(DataError, match="outside the folder|is missing"):
        verify(folder)


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_links_are_refused(folder: Path, kind: str) -> None:
    target = folder.parent / "elsewhere"
    if kind == "file":
        (folder / "config.json").rename(target)
        (folder / "config.json").symlink_to(target)
    else:
        (folder / "models").rename(target)
        (folder / "models").symlink_to(target)
    with pytest.raises(DataError, match="link"):
        verify(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format="equipoise-manifest/2"), "this release reads"),
        (lambda c: c.update(more=1), "not what was written"),
        (lambda c: c.update(files={}), "not what was written"),
        (lambda c: c.update(files=[1]), "not what was written"),
        (lambda c: c["files"]["config.json"].update(bytes=-1), "more than"),
        (lambda c: c["files"]["config.json"].update(bytes=1 << 40), "more than"),
        (lambda c: c["files"]["config.json"].update(bytes=True), "unknown way"),
        (lambda c: c["files"]["config.json"].update(bytes=8), "9 bytes, 8 are listed"),
        (lambda c: c["files"]["config.json"].update(sha256="0" * 64), "SHA-256 differs"),
        (lambda c: c["files"]["config.json"].update(mode=7), "unknown way"),
    ],
)
def test_lists_that_lie(folder: Path, change, message: str) -> None:
    rewritten(folder, change)
    with pytest.raises(DataError, match=message):
        verify(folder)


def test_a_huge_list_is_not_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed_folder, "MAX_MANIFEST", 10)
    with pytest.raises(DataError, match="larger than 10 bytes"):
        verify(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format": 1}', "[" * 100_000, "\xff"])
def test_a_damaged_list(folder: Path, text: str) -> None:
    (folder / MANIFEST).write_bytes(text.encode("latin-1"))
    with pytest.raises(DataError, match="damaged|this release reads"):
        verify(folder)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        verify(tmp_path / "nothing")
