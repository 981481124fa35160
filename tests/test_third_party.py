"""A package of somebody else with one entry of every kind is installed, and studies run with each of them."""

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

from equipoise.platform.registry import KINDS

PACKAGE = Path(__file__).parent / "third_party_package"


def test_an_installed_package_takes_part_in_every_kind(tmp_path: Path) -> None:
    declared = tomllib.loads((PACKAGE / "pyproject.toml").read_text())["project"]["entry-points"]
    assert {group.removeprefix("equipoise.") for group in declared} == set(KINDS)
    source, installed = tmp_path / "source", tmp_path / "installed"
    shutil.copytree(PACKAGE, source)  # building writes beside the sources
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--disable-pip-version-check", "--quiet"]
    run(sys.executable, "-m", "pip", "install", *options, "--target", installed, source)
    work = tmp_path / "work"
    work.mkdir()
    out = run(sys.executable, PACKAGE / "run_everything.py", work, PYTHONPATH=str(installed))
    result = json.loads(out.splitlines()[-1])
    assert result["used"] == sorted([*KINDS, "state of a client"])
    assert result["greeted"]


def run(*command: str | Path, **environ: str) -> str:
    """Standard output of a command that must succeed."""
    done = subprocess.run(
        [str(part) for part in command], env=os.environ | environ, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
