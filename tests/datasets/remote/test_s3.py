"""Slides and stores at ``s3://``, against a server on this machine; and what is said when nothing answers there."""

import io
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from tests.s3_server import s3_server

from equipoise.datasets.errors import DataError
from equipoise.datasets.remote.addresses import connect, require_answers
from equipoise.datasets.remote.folders import RemoteFolder

pytest.importorskip("s3fs", reason="make test-s3 installs it")
pytest.importorskip("moto", reason="make test-s3 installs it")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A server of buckets; its address and keys are in the environment."""
    with s3_server() as url:
        yield url


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EQUIPOISE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_an_unknown_bucket_is_one_error(server: str, cache: Path) -> None:
    with pytest.raises(DataError, match=r"s3://nowhere: there is no such bucket"):
        require_answers(["s3://nowhere/a.svs", "s3://nowhere/b.svs"])
    with pytest.raises(DataError, match="there is no such bucket"):
        RemoteFolder("s3://nowhere/store").replace("index.parquet", b"1", None)
    require_answers(["s3://here/absent.svs", "/plain/path.svs"])  # others beside it may be there


def test_a_closed_endpoint_is_one_error(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()
    try:
        with pytest.raises(DataError, match="s3://here: does not answer") as caught:
            require_answers([f"s3://here/{n}.svs" for n in range(1000)])
        assert "AWS_ENDPOINT_URL" in str(caught.value)
    finally:
        S3FileSystem.clear_instance_cache()


def test_the_server_compares_and_writes_in_one_request(server: str, cache: Path) -> None:
    """Two machines, each with its mirror: who comes second is refused, whatever it has read before."""
    folder = RemoteFolder("s3://here/compare")
    assert folder.replace("index", b"one", None)
    assert not folder.replace("index", b"other", None)
    assert folder.replace("index", b"two", b"one")
    assert folder.read("index") == b"two"

    # The second compares, and before it writes the first has written.
    late = RemoteFolder("s3://here/compare")

    def read_early(name: str) -> bytes | None:
        content = folder.read(name)
        assert folder.replace(name, b"three", content)
        return content

    object.__setattr__(late, "read", read_early)
    assert not late.replace("index", b"late", b"two")
    assert folder.read("index") == b"three"


def equipoise(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "equipoise.jobs.cli", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def tiny(server: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny study, its slides in the bucket, too."""
    folder = tmp_path_factory.mktemp("s3")
    done = equipoise(folder, "synthesize", "--preset", "tiny", "--out", "tiny")
    assert done.returncode == 0, done.stderr
    fs, _ = connect("s3://here")
    for slides in sorted((folder / "tiny").rglob("slides")):
        fs.put(str(slides), f"here/{slides.relative_to(folder)}", recursive=True)
    return folder


def overrides(folder: Path, store: str) -> list[str]:
    """Settings that put the slides of every cohort and the store into the bucket."""
    import yaml

    study = yaml.safe_load((folder / "tiny" / "study.yaml").read_text())
    words = ["-s", f"features.store={store}"]
    for n, cohort in enumerate(study["cohorts"]):
        words += ["-s", f"cohorts.{n}.slides_dir=s3://here/tiny/{cohort['slides_dir']}"]
    return words


def files(fs: object, root: str) -> dict[str, bytes]:
    found = fs.find(root)  # type: ignore[attr-defined]
    return {path.removeprefix(root).lstrip("/"): fs.cat_file(path) for path in found}  # type: ignore[attr-defined]


#: The command line, killed with all its processes when the first slide is staged and nothing is recorded.
KILLED = """
import os, signal, sys
from equipoise.datasets.store.feature_store import FeatureStore
from equipoise.jobs.cli import main

FeatureStore.record = lambda self, rows: os.killpg(0, signal.SIGKILL)
sys.argv[0] = "equipoise"
main()
"""


def test_a_killed_extraction_resumes_and_the_store_is_that_of_this_machine(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EQUIPOISE_CACHE", str(tmp_path / "one"))
    study = ["-c", "tiny/study.yaml", "--max-cpus", "2"]
    local = equipoise(
        tiny, "extract", *study, "-o", str(tmp_path / "a"), "-s", f"features.store={tmp_path}/store"
    )
    assert local.returncode == 0, local.stderr
    fs, _ = connect("s3://here")

    command = [sys.executable, "-c", KILLED, "extract", *study, "-o", str(tmp_path / "b")]
    with subprocess.Popen(
        [*command, *overrides(tiny, "s3://here/store")],
        cwd=tiny, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    ) as process:  # fmt: skip
        _, said = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL, said
    staged = [path for path in fs.find("here/store") if "staging" in path and path.endswith(".arrow")]
    assert staged, said

    monkeypatch.setenv("EQUIPOISE_CACHE", str(tmp_path / "two"))  # another machine
    again = equipoise(tiny, "extract", *study, "-o", str(tmp_path / "c"), *overrides(tiny, "s3://here/store"))
    assert again.returncode == 0, again.stderr
    theirs = files(fs, "here/store")
    root = tmp_path / "store"
    mine = {
        str(f.relative_to(root)): f.read_bytes()
        for f in root.rglob("*")
        if f.is_file() and f.name != "writer.lock"
    }
    assert set(mine) == set(theirs)
    differing = [name for name in mine if mine[name] != theirs[name]]
    assert [Path(name).name for name in differing] == ["index.parquet"]
    tables = [pd.read_parquet(io.BytesIO(side[differing[0]])) for side in (mine, theirs)]
    unlike = [column for column in tables[0] if not tables[0][column].equals(tables[1][column])]
    assert unlike == ["path"]

    # No bucket, no slides: one error, of data.
    lost = overrides(tiny, "s3://nowhere/store")
    done = equipoise(tiny, "extract", *study, "-o", str(tmp_path / "d"), *lost)
    assert done.returncode == 3, done.stderr
    assert "there is no such bucket" in done.stderr
    assert json.loads(done.stderr.splitlines()[-1].partition(" ")[2])["code"] == 3
