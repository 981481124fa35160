"""Folders at addresses that are committed as a whole: what readers see, who may write, and what a death leaves."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import fsspec
import pytest

from equipoise.datasets.errors import DataError, InUseError
from equipoise.datasets.remote import claims
from equipoise.datasets.remote.commits import Head, copy_of_last_commit, local_files, read_head
from equipoise.datasets.remote.folders import RemoteFolder
from equipoise.datasets.remote.working_copies import WorkingCopy


@pytest.fixture(params=["memory", "file"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """An empty folder, in memory or behind ``file://``."""
    if request.param == "file":
        yield f"file://{tmp_path}/share/run"
        return
    fs = fsspec.filesystem("memory")
    yield "memory://commits/run"
    if fs.exists("/commits"):
        fs.rm("/commits", recursive=True)


class Machine:
    """A machine: a cache of its own."""

    def __init__(self, root: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cache, self.address, self.patch = root, address, monkeypatch

    def copy(self) -> WorkingCopy:
        """Its working copy, fetched; later calls of other machines do not move it."""
        self.patch.setenv("EQUIPOISE_CACHE", str(self.cache))
        copy = WorkingCopy(self.address)
        copy.fetch()
        return copy

    def read(self) -> dict[str, bytes]:
        """The last commit as a reader sees it."""
        self.patch.setenv("EQUIPOISE_CACHE", str(self.cache))
        _, lease = copy_of_last_commit(RemoteFolder(self.address))
        if lease is None:
            return {}
        content = content_of(lease.path)
        lease.release()
        return content


@pytest.fixture
def machines(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Machine]:
    monkeypatch.setattr(claims, "RENEW_S", 0.02)
    monkeypatch.setattr(claims, "LEASE_S", 0.3)
    monkeypatch.setattr(claims, "_WATCH_S", 0.05)
    return [Machine(tmp_path / f"machine-{n}", address, monkeypatch) for n in range(3)]


def content_of(folder: Path) -> dict[str, bytes]:
    return {path: file.read_bytes() for path, file in local_files(folder).items()}


def write(copy: WorkingCopy, files: Mapping[str, str]) -> None:
    for name, text in files.items():
        (copy.root / name).parent.mkdir(parents=True, exist_ok=True)
        (copy.root / name).write_text(text)


def objects(address: str) -> set[str]:
    return set(RemoteFolder(address).names("objects"))


def test_a_commit_is_the_folder_and_nothing_else(address: str, machines: list[Machine]) -> None:
    one, two, reader = machines
    copy = one.copy()
    with copy.claimed("one"):
        write(copy, {"status.json": "1", "folds/0-0/a": "same", "folds/0-0/b": "same", ".x.tmp": "half"})
        (copy.root / "qc").mkdir()
        copy.commit()
        head = read_head(copy.folder)
        copy.commit()
        assert read_head(copy.folder).commit == head.commit  # nothing has changed
        write(copy, {"status.json": "2", "report.html": "page"})
        assert reader.read() == {"status.json": b"1", "folds/0-0/a": b"same", "folds/0-0/b": b"same"}
        (copy.root / "folds/0-0/a").unlink()
        copy.commit()
    expected = {"status.json": b"2", "folds/0-0/b": b"same", "report.html": b"page"}
    assert reader.read() == expected
    assert len(objects(address)) == len(expected) + 1  # those of the first commit are removed

    other = two.copy()
    assert content_of(other.root) == expected
    with other.claimed("two"):
        write(other, {"status.json": "3"})
        other.commit()
    write(copy, {"status.json": "not committed", "left/over": ""})
    assert content_of(one.copy().root) == expected | {"status.json": b"3"}
    assert not (copy.root / "left").exists()


def test_what_was_not_committed_stays_where_nobody_has_committed_since(machines: list[Machine]) -> None:
    copy = machines[0].copy()
    with copy.claimed("one"):
        write(copy, {"a": "1"})
        copy.commit()
        write(copy, {"b": "2"})
    assert content_of(machines[0].copy().root) == {"a": b"1", "b": b"2"}
    assert content_of(machines[1].copy().root) == {"a": b"1"}


class DiedError(Exception):
    """Stands for the end of a process."""


def die(*_: Any) -> None:
    raise DiedError


def abandoned(machine: Machine, monkeypatch: pytest.MonkeyPatch, at: str) -> WorkingCopy:
    """A working copy with one commit, whose writer dies in a function of :class:`RemoteFolder` during the second."""
    copy = machine.copy()
    send_all = RemoteFolder.send_all

    def send_first(folder: RemoteFolder, files: Mapping[str, Path]) -> None:
        first = next(iter(files))
        send_all(folder, {first: files[first]})
        die()

    with monkeypatch.context() as patch, pytest.raises(DiedError), copy.claimed("dead"):
        write(copy, {"a": "1", "b": "1"})
        copy.commit()
        write(copy, {"a": "2", "b": "3"})
        patch.setattr(claims.Claim, "release", lambda _: None)
        patch.setattr(RemoteFolder, at, send_first if at == "send_all" else die)
        copy.commit()
    return copy


@pytest.mark.parametrize("at", ["send_all", "names"])
def test_a_death_during_an_upload_changes_nothing_and_another_machine_takes_over(
    at: str, address: str, machines: list[Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two, reader = machines
    dead = abandoned(one, monkeypatch, at)
    before = reader.read()
    assert before == {"a": b"1", "b": b"1"}
    assert len(objects(address)) > 2  # what it had uploaded
    copy = two.copy()
    with copy.claimed("two"):
        assert content_of(copy.root) == before
        write(copy, {"a": "2", "b": "2"})
        copy.commit()
    assert reader.read() == {"a": b"2", "b": b"2"}
    assert len(objects(address)) == 2  # one content, and the list
    assert content_of(one.copy().root) == reader.read()
    assert dead.root == one.copy().root


def test_a_death_after_the_swap_leaves_the_new_commit(
    address: str, machines: list[Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    abandoned(machines[0], monkeypatch, "remove_all")
    assert machines[2].read() == {"a": b"2", "b": b"3"}
    for machine in (machines[0], machines[1]):
        copy = machine.copy()
        assert content_of(copy.root) == machines[2].read()
        with copy.claimed("next"):
            write(copy, {"c": str(machine.cache)})
            copy.commit()
    assert len(objects(address)) == 4  # three files and their list


def test_the_same_machine_takes_over_at_once_and_goes_on(
    machines: list[Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    abandoned(machines[0], monkeypatch, "send_all")
    monkeypatch.setattr(claims, "LEASE_S", 1e9)
    copy = machines[0].copy()
    with copy.claimed("again"):
        copy.commit()
    assert machines[2].read() == {"a": b"2", "b": b"3"}


def test_a_second_writer_is_refused(machines: list[Machine], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "LEASE_S", 1e9)  # only a renewal ends the watching
    first, second = machines[0].copy(), machines[1].copy()
    with first.claimed("the first"):
        for wait in (True, False):
            claimed = second.claimed("the second", wait=wait)
            with pytest.raises(InUseError, match=r"another job is writing .*\(the first\)"), claimed:
                pass
        write(first, {"a": "1"})
        first.commit()
    assert read_head(first.folder).writer is None
    with pytest.raises(InUseError, match="another job has committed"), second.claimed("the second"):
        pass
    second.fetch()
    with second.claimed("the second"):
        assert content_of(second.root) == {"a": b"1"}


def test_a_writer_that_was_only_slow_is_refused_and_overwrites_nothing(
    machines: list[Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "RENEW_S", 1e9)
    slow, other = machines[0].copy(), machines[1].copy()
    with slow.claimed("slow"):
        write(slow, {"a": "slow"})
        with other.claimed("other"):
            write(other, {"a": "other"})
            other.commit()
            with pytest.raises(InUseError, match=r"another job has taken over this run folder \(other\)"):
                slow.commit()
            assert machines[2].read() == {"a": b"other"}
        with pytest.raises(InUseError, match=r"taken over this run folder \(it has ended\)"):
            slow.commit()
    assert machines[2].read() == {"a": b"other"}
    assert read_head(slow.folder).writer is None


def test_a_request_that_is_answered_late_is_no_other_writer(
    machines: list[Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head is written, and the answer lost: the driver sends it again and is refused, or raises."""
    replace = RemoteFolder.replace

    def twice(folder: RemoteFolder, name: str, content: bytes, before: bytes | None) -> bool:
        assert replace(folder, name, content, before)
        return replace(folder, name, content, before)

    copy = machines[0].copy()
    with monkeypatch.context() as patch, copy.claimed("one"):
        patch.setattr(RemoteFolder, "replace", twice)
        write(copy, {"a": "1"})
        copy.commit()
        patch.setattr(RemoteFolder, "replace", replace)

        def lost(folder: RemoteFolder, name: str, content: bytes, before: bytes | None) -> bool:
            replace(folder, name, content, before)
            raise DataError("no answer")

        patch.setattr(claims, "RENEW_S", 1e9)
        patch.setattr(RemoteFolder, "replace", lost)
        write(copy, {"a": "2"})
        with pytest.raises(DataError, match="no answer"):
            copy.commit()
        patch.setattr(RemoteFolder, "replace", replace)
        copy.commit()
    assert machines[2].read() == {"a": b"2"}


def test_a_reader_reads_again_when_a_later_commit_has_removed_what_it_reads(
    machines: list[Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = machines[0].copy()
    receive_all = RemoteFolder.receive_all
    with copy.claimed("one"):
        write(copy, {"a": "1"})
        copy.commit()

        def late(folder: RemoteFolder, files: Mapping[str, Path]) -> None:
            monkeypatch.setattr(RemoteFolder, "receive_all", receive_all)
            write(copy, {"a": "2"})
            copy.commit()
            receive_all(folder, files)

        monkeypatch.setattr(RemoteFolder, "receive_all", late)
        assert machines[1].read() == {"a": b"2"}


def test_a_damaged_folder_is_an_error(address: str, machines: list[Machine]) -> None:
    copy = machines[0].copy()
    with copy.claimed("one"):
        write(copy, {"a": "1", "b": "2"})
        copy.commit()
    fs, root = fsspec.core.url_to_fs(address)
    commit = str(read_head(copy.folder).commit)
    files = json.loads(fs.cat_file(f"{root}/objects/{commit}"))
    fs.pipe_file(f"{root}/objects/{files['a'][0]}", b"3")
    with pytest.raises(DataError, match="does not have the content that its name says"):
        machines[1].read()
    fs.rm_file(f"{root}/objects/{files['a'][0]}")
    with pytest.raises(DataError, match="files of the commit .* are missing"):
        machines[1].read()
    fs.pipe_file(f"{root}/objects/{commit}", json.dumps({"../a": files["b"]}).encode())
    with pytest.raises(DataError, match="names a file outside its folder"):
        machines[1].read()
    fs.pipe_file(f"{root}/head.json", b"{}")
    with pytest.raises(DataError, match=r"head\.json is not one of Equipoise"):
        machines[1].copy()


def test_a_place_without_conditional_writes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Plain(fsspec.get_filesystem_class("memory")):  # type: ignore[misc]
        protocol = "plain"

    fsspec.register_implementation("plain", Plain, clobber=True)
    with pytest.raises(DataError, match="writes to plain:// have no condition here"):
        WorkingCopy("plain://bucket/run")


def test_heads_are_read_as_they_are_written() -> None:
    for head in (Head(), Head("c"), Head("c", claims.Writer("t", "o", 1.5))):
        assert Head.parse(head.content(), "memory://x") == head
