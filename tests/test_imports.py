"""No import cycle between modules of the product; imports inside functions and for types are counted."""

import ast
from collections.abc import Mapping
from pathlib import Path

import pytest

TOP_FOLDERS = ("platform", "jobs", "datasets", "models")


def modules_of(root: Path) -> dict[str, Path]:
    """Import path → file of every module of the product."""
    modules = {}
    for file in (file for top in TOP_FOLDERS for file in sorted((root / top).rglob("*.py"))):
        parts = file.relative_to(root).with_suffix("").parts
        modules[".".join(("equipoise", *(parts[:-1] if parts[-1] == "__init__" else parts)))] = file
    return modules


def import_graph(modules: Mapping[str, Path]) -> dict[str, set[str]]:
    """Module → modules of the product that it imports by name.

    ``from package import module`` is an import of the module, and of the package only if a name of its own is meant.
    """
    graph = {}
    for module, file in modules.items():
        targets = set()
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                targets |= {alias.name for alias in node.names if alias.name in modules}
            elif isinstance(node, ast.ImportFrom) and node.module:
                whole = {f"{node.module}.{alias.name}" for alias in node.names}
                targets |= whole & modules.keys()
                if whole - modules.keys() and node.module in modules:
                    targets.add(node.module)
        graph[module] = targets - {module}
    return graph


def find_cycle(graph: Mapping[str, set[str]]) -> list[str]:
    """A cycle as ``[a, b, …, a]``; empty if there is none. Without recursion: depth-first with a stack."""
    done: set[str] = set()
    for start in graph:
        path: list[str] = []
        stack = [(start, iter(sorted(graph[start])))] if start not in done else []
        path += [start] if stack else []
        while stack:
            node, targets = stack[-1]
            target = next(targets, None)
            if target is None:
                done.add(node)
                stack.pop()
                path.pop()
            elif target in path:
                return [*path[path.index(target) :], target]
            elif target not in done:
                path.append(target)
                stack.append((target, iter(sorted(graph[target]))))
    return []


def test_modules_import_each_other_in_one_direction(root: Path) -> None:
    modules = modules_of(root)
    assert len(modules) > 300
    graph = import_graph(modules)
    assert "equipoise.platform.study.schema" in graph["equipoise.platform.run.loading"]
    assert "equipoise.platform.run.steps" in graph["equipoise.jobs.outcome"], "imports inside functions count"
    cycle = find_cycle(graph)
    assert not cycle, "import cycle: " + " -> ".join(cycle)


@pytest.mark.parametrize(
    ("sources", "cycle"),
    [
        ({"a": "import equipoise.b", "b": "import equipoise.c", "c": "import json"}, []),
        (
            {"a": "import equipoise.b", "b": "def f():\n    from equipoise import c", "c": "from equipoise.b import x"},
            ["equipoise.b", "equipoise.c", "equipoise.b"],
        ),
        (
            {"a": "if TYPE_CHECKING:\n    from equipoise.b import B",
"b": "from equipoise import a"},
            ["equipoise.a", "equipoise.b", "equipoise.a"],
        ),
    ],
)  # fmt: skip
def test_the_check_finds_cycles(sources: dict[str, str], cycle: list[str], tmp_path: Path) -> None:
    modules = {}
    for name, source in sources.items():
        modules[f"equipoise.{name}"] = tmp_path / f"{name}.py"
        modules[f"equipoise.{name}"].write_text(source)
    assert find_cycle(import_graph(modules)) == cycle
