"""What the product imports is what ``pyproject.toml`` declares, and the other way round."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

#: Declared, and not imported by name: reason.
NOT_IMPORTED = {
    "openslide-bin": "brings the compiled library that openslide-python loads",
}
#: Imported, and part of a distribution that a declared one always brings.
BROUGHT = {"pydantic_core": "pydantic"}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(root: Path) -> tuple[set[str], set[str]]:
    """Distributions of the core, and of the extras that users may install."""
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]

    def names(lines: list[str]) -> set[str]:
        return {canonical(re.match(r"[A-Za-z0-9._-]+", line)[0]) for line in lines}  # type: ignore[index]

    extras = [
        line for extra, lines in project["optional-dependencies"].items() if extra != "dev" for line in lines
    ]
    return names(project["dependencies"]), names(extras)


def imported(root: Path) -> dict[str, Path]:
    """Top-level module → a file that imports it, imports inside functions included."""
    modules: dict[str, Path] = {}
    for folder in ("platform", "jobs", "datasets", "models", ".src/equipoise"):
        for file in (root / folder).glob("*.py" if folder.startswith(".") else "**/*.py"):
            for node in ast.walk(ast.parse(file.read_text())):
                names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                    names = [node.module]
                modules |= {name.partition(".")[0]: file for name in names}
    return {
        name: file for name, file in modules.items() if name not in sys.stdlib_module_names | {"equipoise"}
    }


@pytest.fixture(scope="module")
def distributions() -> dict[str, set[str]]:
    """Module → distributions that hold it; those of extras that are not installed carry their own name."""
    known = {name: {canonical(d) for d in found} for name, found in packages_distributions().items()}
    return known | {
        name: {name}
        for name in (
            "mlflow",
            "wandb",
            "s3fs",
            "gcsfs",
            "geneicl",
            "transformers",
            "croma",
            "nvflare",
            "onnx",
            "onnxruntime",
            "onnxscript",
        )
        if name not in known
    }


def test_every_declared_dependency_is_imported(root: Path, distributions: dict[str, set[str]]) -> None:
    core, _ = declared(root)
    used = set().union(*(distributions.get(BROUGHT.get(name, name), set()) for name in imported(root)))
    assert len(used) > 15
    assert core - used == set(NOT_IMPORTED)


def test_every_import_is_declared(root: Path, distributions: dict[str, set[str]]) -> None:
    core, extras = declared(root)
    modules = imported(root)
    assert len(modules) > 20
    undeclared = {
        name: str(file.relative_to(root))
        for name, file in modules.items()
        if not distributions.get(BROUGHT.get(name, name), set()) & (core | extras)
    }
    assert not undeclared
