"""The provenance of a run: study, code, packages, machine and inputs.

Written at the start of every command. A resumed run checks its inputs against those of the first command, because
predictions must not mix old and new tables.
"""

import hashlib
import json
import platform as standard_platform
import subprocess
import sys
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

import yaml

from equipoise.datasets.atomic_io import read_json, write_json, write_text
from equipoise.datasets.tables.reading import locate
from equipoise.platform.errors import DataError
from equipoise.platform.run.folder import RunFolder
from equipoise.platform.study.schema import Study, json_schema


def record(study: Study, folder: RunFolder) -> None:
    """Write ``provenance/``; ``environment.json`` is that of the first command, ``environments.jsonl`` has them all.

    Raises
    ------
    DataError
        If a table changed since the run began.
    """
    inputs = input_hashes(study)
    earlier = read_json(folder.provenance / "inputs.json")
    if earlier is not None and earlier != inputs:
        changed = sorted(name for name in {*earlier, *inputs} if earlier.get(name) != inputs.get(name))
        raise DataError(
            f"changed since this run began: {', '.join(changed)}",
            where=str(folder.root),
            fix="restore the tables, choose another folder with -o, or --resume never to start again",
        )
    write_text(folder.provenance / "study.yaml", study.file.read_text(encoding="utf-8"))
    write_text(folder.provenance / "resolved.yaml", yaml.safe_dump(study.resolved(), sort_keys=False))
    write_json(folder.provenance / "schema.json", json_schema())
    write_json(folder.provenance / "inputs.json", inputs)
    now = environment()
    if not (folder.provenance / "environment.json").exists():
        write_json(folder.provenance / "environment.json", now)
    with (folder.provenance / "environments.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(now) + "\n")
    write_text(folder.provenance / "packages.txt", "\n".join(packages()) + "\n")


def input_hashes(study: Study) -> dict[str, str]:
    """SHA-256 of every table of the study, by the path written in the study.

    Raises
    ------
    DataError
        If a table does not exist.
    """
    named = [
        path
        for cohort in study.cohorts
        for path in (
            cohort.clinical.path,
            cohort.slides.path if cohort.slides else None,
            cohort.site.institution,
            *(source.path for source in cohort.omics.values()),
        )
        if path is not None
    ]
    return {
        path: hashlib.sha256(locate(path, study.base).read_bytes()).hexdigest()
        for path in dict.fromkeys(named)
    }


def environment() -> dict[str, Any]:
    """Versions, machine and code of this process."""
    return {
        "equipoise": version("equipoise"),
        "code": code_version(),
        "python": sys.version.split()[0],
        "system": f"{standard_platform.system()} {standard_platform.release()} {standard_platform.machine()}",
        "versions": {
            name: version(name) for name in ("ray", "torch", "numpy", "pandas", "pyarrow", "scikit-learn")
        },
        "command": " ".join(sys.argv),
    }


def code_version() -> dict[str, str]:
    """Commit and cleanliness of the checkout the code runs from; empty for an installed release."""
    checkout = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(checkout), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != checkout:
            return {}  # a package installed inside somebody else's repository
        commit, changed = git("rev-parse", "HEAD"), git("diff", "HEAD") + git("status", "--porcelain")
    except (OSError, subprocess.SubprocessError):
        return {}
    tree = "clean" if not changed else hashlib.sha256(changed.encode()).hexdigest()[:12]
    return {"commit": commit, "tree": tree}


def packages() -> list[str]:
    """``name==version`` of every installed package, sorted."""
    return sorted({f"{d.metadata['Name']}=={d.version}" for d in distributions() if d.metadata["Name"]})
