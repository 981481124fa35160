"""The four folders are installed as ``equipoise.*`` and shadow nothing; a wheel holds all of them and runs."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

TOP_FOLDERS = ("platform", "jobs", "datasets", "models")


def files_of(top: Path) -> list[Path]:
    """All files of a folder but caches."""
    return [
        file
        for file in top.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts and not file.name.startswith(".")
    ]


def run(*command: str | Path, cwd: Path, timeout: int = 120, **environ: str) -> str:
    """Standard output of a command that must succeed, without the paths of this process."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=clean | environ,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("start", [["-c", "import platform; print(platform.__file__)"], ["-m", "platform"]])
def test_standard_library_platform_is_not_shadowed(root: Path, start: list[str]) -> None:
    output = run(sys.executable, *start, cwd=root)
    if start[0] == "-c":
        assert Path(output).is_relative_to(sysconfig.get_path("stdlib"))
    else:
        assert sys.platform.casefold() in output.casefold()


def test_other_peoples_datasets_is_not_shadowed(root: Path, tmp_path: Path) -> None:
    """A regular package wins over our folder, although the root comes first on the path."""
    package = tmp_path / "datasets"
    package.mkdir()
    (package / "__init__.py").write_text("")
    output = run(
        sys.executable, "-c", "import datasets; print(datasets.__file__)", cwd=root, PYTHONPATH=str(tmp_path)
    )
    assert output == str(package / "__init__.py")


def test_rooms_are_namespaces_and_folders_below_are_packages(root: Path) -> None:
    assert not (root / ".src" / "equipoise" / "__init__.py").exists()
    for top in TOP_FOLDERS:
        assert not (root / top / "__init__.py").exists(), top
        below = {file.parent for file in files_of(root / top) if file.suffix == ".py"} - {root / top}
        assert below or top == "jobs"
        missing = [str(folder) for folder in below if not (folder / "__init__.py").exists()]
        assert missing == [], "coverage would leave out what no test imports"


def test_links_are_relative(root: Path) -> None:
    package = root / ".src" / "equipoise"
    assert sorted(entry.name for entry in package.iterdir() if entry.name != "__pycache__") == sorted(
        TOP_FOLDERS
    )
    for top in TOP_FOLDERS:
        assert os.readlink(package / top) == f"../../{top}"
        assert (package / top).resolve() == root / top


@pytest.mark.cluster
@pytest.mark.usefixtures("ray_session")
def test_worker_imports_the_package(root: Path) -> None:
    import ray

    @ray.remote(num_cpus=1)
    def look() -> tuple[str, str, str | None]:
        import os

        import equipoise.platform.registry as registry

        return registry.__file__, __import__("platform").__file__, os.environ.get("OMP_NUM_THREADS")

    package, standard, threads = ray.get(look.remote(), timeout=120)
    assert package == str(root / ".src" / "equipoise" / "platform" / "registry.py")
    assert not Path(standard).is_relative_to(root)
    assert threads == "1"


@pytest.fixture(scope="module")
def wheel(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel, built in a copy of the checkout so that nothing is left in it."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(root / name, copy / name)
    skip = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in (*TOP_FOLDERS, ".src"):
        shutil.copytree(root / name, copy / name, symlinks=True, ignore=skip)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", cwd=copy, timeout=300)
    [built] = (copy / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel; it uses the dependencies of this environment."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index"]
    run(*pip, str(wheel), cwd=folder)
    # Written after the installation, lest pip find the editable install. A .pth of a folder that is itself only on
    # the path is not read, so the dependencies come along and the editable install does not.
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder)
    Path(site, "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder


def test_wheel_holds_every_file_of_the_rooms(root: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith("equipoise/")}
        licences = {Path(name).name for name in archive.namelist() if "/licenses/" in name}
    expected = {f"equipoise/{file.relative_to(root)}" for top in TOP_FOLDERS for file in files_of(root / top)}
    assert held == expected
    assert {Path(name).suffix for name in held} >= {".py", ".html", ".css", ".js", ".json", ".yaml"}
    assert licences == {"LICENSE", "NOTICE"}


def test_wheel_is_what_a_new_environment_imports(root: Path, installed: Path) -> None:
    code = "import equipoise.platform.registry as a, equipoise.datasets.errors as b; print(a.__file__, b.__file__)"
    for file in run(installed / "bin" / "python", "-c", code, cwd=installed).split():
        assert Path(file).is_relative_to(installed)
    assert run(installed / "bin" / "equipoise", "--version", cwd=installed).startswith("equipoise ")


@pytest.mark.slow
@pytest.mark.cluster
def test_demo_runs_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    command = [installed / "bin" / "equipoise", "demo", "--preset", "tiny", "--out", tmp_path / "demo"]
    output = run(*command, "--max-cpus", "2", cwd=tmp_path, timeout=540)
    last = output.splitlines()[-1]
    assert last.startswith("EQUIPOISE-RESULT ")
    assert json.loads(last.removeprefix("EQUIPOISE-RESULT "))["status"] == "ok"
    assert list(tmp_path.rglob("report.html"))
