"""Every check passes here, and warns or fails with a fix where something is missing."""

import builtins
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from equipoise.platform.cluster import doctor
from equipoise.platform.cluster.doctor import Check, checks


@pytest.fixture
def no_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def test_nothing_fails_in_the_test_environment(tmp_path: Path) -> None:
    result = checks("cpu", tmp_path)
    assert [check for check in result if check.status == "FAIL"] == []
    assert all(check.fix for check in result if check.status == "WARN")
    by_name = {check.name: check for check in result}
    assert "reads a slide" in by_name["openslide"].detail
    assert "ready: handcrafted" in by_name["weights"].detail
    assert "cluster.yaml" not in by_name
    assert len(by_name) == len(result)


def test_unknown_profile() -> None:
    with pytest.raises(ValueError, match="cpu, gpu, cluster"):
        checks("tpu")


def test_import_is_light(root: Path) -> None:
    heavy = "{'torch', 'ray', 'pandas', 'openslide'}"
    code = f"import equipoise.platform.cluster.doctor, sys; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_check_that_breaks_is_a_fail() -> None:
    def broken() -> doctor.Finding:
        raise OSError("no such\n  thing")

    result = doctor._run_check("thing", broken)
    assert result == Check("thing", "FAIL", "could not be checked: OSError: no such thing", doctor.INSTALL)


def test_missing_library_is_a_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: object, **more: object) -> object:
        if name == "openslide":
            raise ImportError("libopenslide.so.1: cannot open shared object file")
        return real(name, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", refuse)
    result = doctor._run_check("openslide", doctor.openslide_reads)
    assert result.status == "FAIL"
    assert "libopenslide.so.1" in result.detail


def test_python_too_old() -> None:
    assert doctor.python_version((3, 11, 0)).status == "PASS"
    old = doctor.python_version((3, 10, 14))
    assert (old.status, old.detail) == ("FAIL", "3.10.14")
    assert old.fix


@pytest.mark.parametrize(
    ("versions", "status", "word"),
    [
        ({}, "PASS", "pandas 2.3.3"),
        ({"pandas": "3.0.1"}, "FAIL", "pandas 3.0.1"),
        ({"ray": "2.61.0"}, "FAIL", "ray 2.61.0"),
        ({"pyarrow": ""}, "FAIL", "pyarrow is not installed"),
    ],
)
def test_versions(versions: dict[str, str], status: str, word: str) -> None:
    known = {"ray": "2.60.0", "pandas": "2.3.3", "numpy": "2.4.6", "pyarrow": "26.0.1"} | versions

    def lookup(name: str) -> str:
        if not known[name]:
            raise PackageNotFoundError(name)
        return known[name]

    result = doctor.installed_versions(lookup)
    assert result.status == status
    assert word in result.detail
    assert bool(result.fix) == (status == "FAIL")


def test_gpu_profile_needs_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert doctor.torch_device(needed=False).status == "PASS"
    result = doctor.torch_device(needed=True)
    assert result.status == "FAIL"
    assert "nvidia-smi" in (result.fix or "")


@pytest.mark.usefixtures("no_token")
def test_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert doctor.token(needed=False).status == "PASS"
    assert doctor.token(needed=True).status == "FAIL"
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "absent"))
    assert doctor.token(needed=False).status == "FAIL"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret-of-the-cluster")
    result = doctor.token(needed=True)
    assert result.status == "PASS"
    assert "secret" not in result.detail


def test_long_temporary_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/tmp")
    assert doctor.temporary_folder().status == "PASS"
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / ("x" * 60)))
    result = doctor.temporary_folder()
    assert result.status == "FAIL"
    assert "RAY_TMPDIR" in (result.fix or "")


def test_small_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "shared_memory_free", lambda: 64 * 2**20)
    result = doctor.shared_memory()
    assert result.status == "WARN"
    assert "kept on disk" in result.detail
    assert "--shm-size" in (result.fix or "")


@pytest.mark.parametrize(("size", "status"), [(2, "FAIL"), (4, "WARN"), (16, "PASS")])
def test_memory(monkeypatch: pytest.MonkeyPatch, size: int, status: str) -> None:
    monkeypatch.setattr(doctor, "memory_bytes", lambda: size * 2**30)
    assert doctor.memory().status == status


def test_one_cpu_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "cpu_count", lambda: 0.5)
    assert doctor.cpus().status == "WARN"


@pytest.mark.parametrize(("free", "status"), [(0.5, "FAIL"), (5, "WARN"), (500, "PASS")])
def test_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: float, status: str) -> None:
    usage = shutil_usage(total=1000, free=free)
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda _: usage)
    assert doctor.disk(tmp_path / "not" / "yet").status == status


def shutil_usage(total: float, free: float) -> "doctor.shutil._ntuple_diskusage":
    whole, left = int(total * 2**30), int(free * 2**30)
    return doctor.shutil._ntuple_diskusage(whole, whole - left, left)


def test_folder_that_refuses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert doctor.writable(tmp_path / "later").status == "PASS"

    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryFile", refuse)
    result = doctor.writable(tmp_path)
    assert result.status == "FAIL"
    assert "Permission denied" in result.detail
    assert list(tmp_path.iterdir()) == []


def test_weights_of_an_encoder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    result = doctor.weights()
    assert result.status == "PASS"
    assert result.detail.startswith("ready: handcrafted, random_conv; no weights here: ctranspath, ")
    assert "from_description" not in result.detail
    snapshot = tmp_path / "hub" / "models--MahmoodLab--uni" / "snapshots" / "1"
    snapshot.mkdir(parents=True)
    (snapshot / "pytorch_model.bin").touch()
    assert "ready: handcrafted, random_conv, uni;" in doctor.weights().detail


def test_cluster_profile(root: Path, tmp_path: Path) -> None:
    assert doctor.cluster_file(root / "cluster.yaml").status == "PASS"
    assert doctor.cluster_file(tmp_path / "cluster.yaml").status == "WARN"
    broken = tmp_path / "cluster.yaml"
    broken.write_text((root / "cluster.yaml").read_text().replace("127.0.0.1", "0.0.0.0"))
    result = doctor.cluster_file(broken)
    assert result.status == "FAIL"
    assert "listen on 0.0.0.0" in result.detail
