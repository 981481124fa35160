"""Copies within a size limit: made once, least recently used removed first, copies in use stay, partial ones go."""

import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from equipoise.datasets.errors import DataError
from equipoise.datasets.remote import cache as cache_module
from equipoise.datasets.remote.cache import NodeCache, cache_limit, cache_root


def content(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir() if entry.is_dir()}


def put(cache: NodeCache, key: str, size: int = 40) -> cache_module.CacheLease:
    return cache.acquire(key, size, lambda folder: (folder / "slide").write_bytes(b"x" * size) and None)


def test_the_copy_not_used_for_longest_goes(tmp_path: Path) -> None:
    cache = NodeCache(tmp_path, limit=100)
    for key in ("a", "b"):
        put(cache, key).release()
    put(cache, "a").release()  # used again: now b is the oldest
    put(cache, "c").release()
    assert content(tmp_path) == {"a", "c"}
    put(cache, "big", 100).release()
    assert content(tmp_path) == {"big"}


def test_what_is_in_use_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = NodeCache(tmp_path, limit=100)
    leases = [put(cache, key) for key in ("a", "b")]
    again = put(cache, "a")
    put(cache, "c").release()
    assert content(tmp_path) == {"a", "b", "c"}
    assert "in use at the same time" in caplog.text
    for lease in leases:
        lease.release()
    put(cache, "d").release()
    assert content(tmp_path) == {"a", "d"}  # a is still lent to somebody
    again.release()


def test_many_at_once_make_one_copy(tmp_path: Path) -> None:
    cache = NodeCache(tmp_path, limit=1000)
    made = []

    def fill(folder: Path) -> None:
        made.append(folder)
        time.sleep(0.05)
        (folder / "slide").write_bytes(b"whole")

    def use(_: int) -> bytes:
        lease = cache.acquire("k", 5, fill)
        try:
            return (lease.path / "slide").read_bytes()
        finally:
            lease.release()

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(use, range(40))) == {b"whole"}
    assert len(made) == 1


CHILD = """
import sys, random, time
from pathlib import Path
from equipoise.datasets.remote.cache import NodeCache
cache, rng = NodeCache(Path(sys.argv[1]), limit=100), random.Random(int(sys.argv[2]))
for _ in range(60):
    key = rng.choice("abcdef")
    lease = cache.acquire(key, 40, lambda folder: (folder / "slide").write_bytes(key.encode() * 40) and None)
    time.sleep(0.001 * rng.random())
    assert (lease.path / "slide").read_bytes() == key.encode() * 40
    lease.release()
"""


def test_processes_that_crowd_each_other_out_read_whole_copies(tmp_path: Path) -> None:
    running = [subprocess.Popen([sys.executable, "-c", CHILD, tmp_path, str(seed)]) for seed in range(3)]
    assert [process.wait() for process in running] == [0, 0, 0]
    assert not list(tmp_path.glob(".*.part"))


def test_a_copy_that_is_finished_while_leftovers_are_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the listing and the lock its maker may have renamed it: that is no error."""
    remove = NodeCache._remove

    def finished_meanwhile(self: NodeCache, key: str, folder: Path) -> bool:
        folder.rename(self.folder / key)
        return remove(self, key, folder)

    monkeypatch.setattr(NodeCache, "_remove", finished_meanwhile)
    (tmp_path / ".other.40.part").mkdir()
    put(NodeCache(tmp_path, limit=100), "mine").release()
    assert content(tmp_path) == {"mine", "other"}


def test_failures_and_deaths_leave_nothing(tmp_path: Path) -> None:
    cache = NodeCache(tmp_path, limit=100)

    def fail(folder: Path) -> None:
        (folder / "slide").write_bytes(b"ha")
        raise OSError("the line is dead")

    with pytest.raises(OSError, match="the line is dead"):
        cache.acquire("a", 4, fail)
    assert content(tmp_path) == set()
    (tmp_path / ".b.90.part").mkdir()  # its maker was killed; nobody holds the lock of b
    put(cache, "a").release()
    assert content(tmp_path) == {"a"}


def test_where_and_how_much_is_the_node_s_affair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EQUIPOISE_CACHE", str(tmp_path / "here"))
    assert cache_root() == tmp_path / "here"
    assert cache_root().stat().st_mode & 0o077 == 0
    monkeypatch.setenv("EQUIPOISE_CACHE_GB", "1.5")
    assert cache_limit() == 1_500_000_000
    for wrong in ("many", "0", "inf"):
        monkeypatch.setenv("EQUIPOISE_CACHE_GB", wrong)
        with pytest.raises(DataError, match="not a number of gigabytes"):
            cache_limit()
