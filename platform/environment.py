"""The environment of a result: code, packages and machine of this process."""

import hashlib
import platform as standard_platform
import subprocess
import sys
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

from equipoise import __version__
from equipoise.datasets.redaction import masked


def environment() -> dict[str, Any]:
    """Versions, machine and code of this process."""
    return {
        "equipoise": __version__,
        "code": code_version(),
        "python": sys.version.split()[0],
        "system": f"{standard_platform.system()} {standard_platform.release()} {standard_platform.machine()}",
        "versions": {
            name: version(name) for name in ("ray", "torch", "numpy", "pandas", "pyarrow", "scikit-learn")
        },
        "command": masked(" ".join(sys.argv)),
    }


def code_version() -> dict[str, str]:
    """Commit and cleanliness of the checkout the code runs from; empty for an installed release."""
    checkout = Path(__file__).resolve().parents[1]

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
