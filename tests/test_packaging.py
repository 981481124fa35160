"""The four folders are installed as ``equipoise.*`` and shadow nothing; a wheel holds all of them and runs."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

TOP_FOLDERS = ("platform", "jobs", "datasets", "models")

#: What lies beside the links in ``.src/equipoise``.
PACKAGE_FILES = ("__init__.py", "api.py", "py.typed")


IMPORTS = """
import equipoise.api, equipoise.platform.registry, equipoise.datasets.errors as errors
print(equipoise.api.__file__, equipoise.platform.registry.__file__, errors.__file__)
"""


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
    for top in TOP_FOLDERS:
        assert not (root / top / "__init__.py").exists(), top
        below = {file.parent for file in files_of(root / top) if file.suffix == ".py"} - {root / top}
        assert below or top == "jobs"
        missing = [str(folder) for folder in below if not (folder / "__init__.py").exists()]
        assert missing == [], "coverage would leave out what no test imports"


def test_links_are_relative(root: Path) -> None:
    package = root / ".src" / "equipoise"
    entries = {entry.name for entry in package.iterdir() if entry.name != "__pycache__"}
    assert entries == {*TOP_FOLDERS, *PACKAGE_FILES}
    for top in TOP_FOLDERS:
        assert os.readlink(package / top) == f"../../{top}"
        assert (package / top).resolve() == root / top


def test_package_states_the_version_and_nothing_else(root: Path) -> None:
    """One place for the number; what a person cites has the same."""
    import equipoise

    body = ast.parse((root / ".src" / "equipoise" / "__init__.py").read_text()).body
    assert [type(statement) for statement in body] == [ast.Expr, ast.Assign], "a docstring and __version__"
    project = tomllib.loads((root / "pyproject.toml").read_text())
    assert "version" not in project["project"]
    assert f"\nversion: {equipoise.__version__}\n" in (root / "CITATION.cff").read_text()
    versions = re.findall(r"^## (\d+\.\d+\.\d+)", (root / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == equipoise.__version__, "the newest version comes first"


def test_product_does_not_import_its_own_interface(root: Path) -> None:
    """``equipoise.api`` stands above all layers."""
    files = [file for top in TOP_FOLDERS for file in files_of(root / top) if file.suffix == ".py"]
    assert len(files) > 300
    importing = re.compile(
        r"^\s*(from equipoise import .*\bapi\b|from equipoise\.api|import equipoise\.api)", re.MULTILINE
    )
    assert [file for file in files if importing.search(file.read_text(encoding="utf-8"))] == []


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
def checkout(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what a build needs, so that nothing is left in the checkout."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(root / name, copy / name)
    skip = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in (*TOP_FOLDERS, ".src"):
        shutil.copytree(root / name, copy / name, symlinks=True, ignore=skip)
    return copy


@pytest.fixture(scope="module")
def distribution(checkout: Path) -> Path:
    """The folder with source archive and wheel, as ``make dist`` makes them: the wheel from the archive."""
    run(sys.executable, "-m", "build", "--no-isolation", cwd=checkout, timeout=300)
    return checkout / "dist"


@pytest.fixture(scope="module")
def wheel(distribution: Path) -> Path:
    """The wheel."""
    [built] = distribution.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with the wheel; it uses the dependencies of this environment."""
    return environment_with(tmp_path_factory.mktemp("environment"), str(wheel))


@pytest.fixture(scope="module")
def linked(wheel: Path, checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment with an editable install. After the wheel: both write into the same build folder."""
    return environment_with(tmp_path_factory.mktemp("linked"), "--editable", str(checkout))


def environment_with(folder: Path, *requirement: str) -> Path:
    """Make an environment, install there without dependencies, and add those of this environment."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index"]
    if "--editable" in requirement:  # pip runs setuptools in the new environment then
        pip.append("--no-build-isolation")
        borrow_packages(python, folder)
    run(*pip, *requirement, cwd=folder, timeout=300)
    borrow_packages(python, folder)
    return folder


def borrow_packages(python: Path, folder: Path) -> None:
    """Put the packages of this environment on the path of another.

    A .pth of a folder that is itself only on the path is not read, so the dependencies come along and the editable
    install does not.
    """
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder)
    folders = [path for path in sys.path if Path(path).name == "site-packages"]
    Path(site, "borrowed.pth").write_text("\n".join(folders) + "\n")


def test_wheel_holds_every_file_of_the_rooms(root: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith("equipoise/")}
        licences = {Path(name).name for name in archive.namelist() if "/licenses/" in name}
    expected = {f"equipoise/{file.relative_to(root)}" for top in TOP_FOLDERS for file in files_of(root / top)}
    assert held == expected | {f"equipoise/{name}" for name in PACKAGE_FILES}
    assert {Path(name).suffix for name in held} >= {".py", ".html", ".css", ".js", ".json", ".yaml"}
    assert licences == {"LICENSE", "NOTICE"}


def test_source_archive_holds_the_files_of_the_wheel(distribution: Path, wheel: Path) -> None:
    """Files, not links: an archive without what the links lead to builds an empty wheel."""
    import equipoise

    [archive] = distribution.glob("*.tar.gz")
    top = f"equipoise-{equipoise.__version__}"
    assert archive.name == f"{top}.tar.gz"
    with tarfile.open(archive) as packed:
        members = packed.getmembers()
    assert all(member.isfile() or member.isdir() for member in members)
    files = {member.name for member in members if member.isfile()}
    with zipfile.ZipFile(wheel) as held:
        names = {name for name in held.namelist() if name.startswith("equipoise/")}
    assert {f"{top}/.src/{name}" for name in names} <= files
    assert {f"{top}/{name}" for name in ("LICENSE", "NOTICE", "README.md", "pyproject.toml")} <= files
    assert not any(name.startswith((f"{top}/tests/", f"{top}/.venv/")) for name in files)


def test_wheel_is_what_a_new_environment_imports(root: Path, installed: Path) -> None:
    import equipoise

    for file in run(installed / "bin" / "python", "-c", IMPORTS, cwd=installed).split():
        assert Path(file).is_relative_to(installed)
    version = run(installed / "bin" / "equipoise", "--version", cwd=installed)
    assert version == f"equipoise {equipoise.__version__}"


def test_editable_install_follows_the_links(checkout: Path, linked: Path) -> None:
    package = checkout / ".src" / "equipoise"
    files = run(linked / "bin" / "python", "-c", IMPORTS, cwd=linked).split()
    assert files == [str(package / name) for name in ("api.py", "platform/registry.py", "datasets/errors.py")]
    # A file that comes later is found without another installation.
    (checkout / "models" / "newcomer.py").write_text("VALUE = 3\n")
    code = "from equipoise.models.newcomer import VALUE; print(VALUE)"
    assert run(linked / "bin" / "python", "-c", code, cwd=linked) == "3"
    start = "import platform; print(platform.__file__)"
    assert Path(run(linked / "bin" / "python", "-c", start, cwd=checkout)).is_relative_to(
        sysconfig.get_path("stdlib")
    )


@pytest.mark.slow
@pytest.mark.cluster
def test_demo_runs_from_the_wheel(installed: Path, tmp_path: Path) -> None:
    equipoise = installed / "bin" / "equipoise"
    assert "handcrafted" in run(equipoise, "ls", "encoders", cwd=tmp_path)
    assert "FAIL" not in run(equipoise, "doctor", cwd=tmp_path)
    command = [equipoise, "demo", "--preset", "tiny", "--out", tmp_path / "demo"]
    output = run(*command, "--max-cpus", "2", cwd=tmp_path, timeout=540)
    assert output.splitlines()[-2].startswith("report: ")
    (status,) = tmp_path.rglob("status.json")
    assert json.loads(status.read_text())["status"] == "ok"
    assert (status.parent / "report.html").exists()
