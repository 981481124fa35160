"""Atomic files and folders: complete or absent, nothing left behind, readable by others."""

import os
import stat
from pathlib import Path

import pytest

from equipoise.datasets.atomic_io import atomic_path, read_json, remove_leftovers, write_json, write_text


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_failed_write_leaves_nothing_and_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "file.txt"
    with pytest.raises(RuntimeError), atomic_path(target) as path:
        path.write_text("half")
        raise RuntimeError
    assert names(target.parent) == []
    with atomic_path(target) as path:
        path.write_text("whole")
        assert not target.exists()
    with pytest.raises(RuntimeError), atomic_path(target) as path:
        path.write_text("half")
        raise RuntimeError
    assert names(target.parent) == ["file.txt"]
    assert target.read_text() == "whole"


def test_a_writer_that_wrote_nothing_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "file"):
        pass
    assert names(tmp_path) == []


def test_folders_replace_folders(tmp_path: Path) -> None:
    target = tmp_path / "slide"
    for content in (["a", "b"], ["c"]):
        with atomic_path(target) as path:
            path.mkdir()
            for name in content:
                (path / name).touch()
    assert names(target) == ["c"]
    with pytest.raises(RuntimeError), atomic_path(target) as path:
        path.mkdir()
        (path / "d").touch()
        raise RuntimeError
    assert names(target) == ["c"]
    assert names(tmp_path) == ["slide"]


@pytest.mark.parametrize(("umask", "mode"), [(0o077, 0o600), (0o002, 0o664)])
def test_files_follow_the_umask(tmp_path: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        write_text(tmp_path / "file", "shared")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == mode


def test_leftovers_of_dead_writers_are_swept_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a" / ".part.1-2.tmp").mkdir(parents=True)
    (tmp_path / "a" / ".part.1-2.tmp" / "x").touch()
    for name in (".b.1-2.tmp", "c.tmp", ".d", "a/.0-1.partial"):
        (tmp_path / name).touch()
    assert [path.name for path in remove_leftovers(tmp_path)] == [".b.1-2.tmp"]
    assert [path.name for path in remove_leftovers(tmp_path, below=True)] == [".part.1-2.tmp"]
    assert sorted(path.name for path in tmp_path.rglob("*")) == [".0-1.partial", ".d", "a", "c.tmp"]


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    target = tmp_path / "file"
    with atomic_path(target) as first:
        first.write_text("first")
        with atomic_path(target) as second:
            assert second != first
            second.write_text("second")
        assert target.read_text() == "second"
    assert target.read_text() == "first"
    assert names(tmp_path) == ["file"]


def test_json_and_line_ends(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"path": tmp_path, "µ": 1})
    assert read_json(tmp_path / "a.json") == {"path": str(tmp_path), "µ": 1}
    assert read_json(tmp_path / "none.json", {"new": True}) == {"new": True}
    write_text(tmp_path / "b", "1\n2\n")
    assert (tmp_path / "b").read_bytes() == b"1\n2\n"
