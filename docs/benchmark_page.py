"""Writes ``docs/benchmarks.md``: every benchmark, what it measures, its command, and the figures of its last run.

All of it is read from the docstring of the benchmark and from ``benchmarks/results``; a test holds the page up to date.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

PAGES = Path(__file__).parent
ROOT = PAGES.parent
TARGET = PAGES / "benchmarks.md"

#: Keys of a result that say where and how it was measured.
CONDITIONS = (
    "load_before",
    "cores",
    "cpus",
    "python",
    "torch",
    "numpy",
    "scanpy",
    "versions",
    "seconds",
    "wall_s",
)
#: Values of a nested table that are shown; a result with more of them is read in its file.
SMALL = 12

HEAD = """# Benchmarks

Written by `make docs` from `benchmarks/` and `benchmarks/results`; do not edit. Each benchmark compares with a named
alternative in the same run, on medians and CPU seconds, and prints its figures as a last line of JSON.
`python -m benchmarks.<name>` measures again. Figures of SYNTHETIC cohorts say nothing about patients."""


def text() -> str:
    """The whole page."""
    found = {file.stem: ast.get_docstring(ast.parse(code)) or "" for file, code in programs()}
    measured = {name: result(name) for name in found}
    rows = [
        f"| [{name}](#{name}) | {inline(about.partition(chr(10) * 2)[0])} | {'yes' if measured[name] else 'not yet'} |"
        for name, about in found.items()
    ]
    listed = "\n".join(["| benchmark | what it asks | measured |", "|---|---|---|", *rows])
    sections = [section(name, about, measured[name]) for name, about in found.items()]
    return "\n\n".join([HEAD, listed, *sections]) + "\n"


def programs() -> Iterator[tuple[Path, str]]:
    """Files of ``benchmarks/`` that run, with their code."""
    for file in sorted((ROOT / "benchmarks").glob("*.py")):
        code = file.read_text(encoding="utf-8")
        if '__name__ == "__main__"' in code:
            yield file, code


def result(name: str) -> Mapping[str, Any] | None:
    """What a benchmark wrote; None if it has not run."""
    file = ROOT / "benchmarks" / "results" / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def section(name: str, about: str, found: Mapping[str, Any] | None) -> str:
    """One benchmark."""
    lead = [f"## {name}", prose(about), f"`python -m benchmarks.{name}`"]
    if pages := explained_on(name):
        lead[-1] += f" · explained in {', '.join(pages)}"
    if found is None:
        return "\n\n".join([*lead, "Not measured yet."])
    lead[-1] += f" · [results/{name}.json](../benchmarks/results/{name}.json)"
    rows = [f"| `{key}` | {value} |" for key, value in figures(found)]
    table = ["\n".join(["| figure | value |", "|---|---|", *rows])] if rows else []
    return "\n\n".join([*lead, *table, *conditions(found)])


def explained_on(name: str) -> list[str]:
    """Links to the pages that quote a benchmark."""
    pages = [page for page in sorted(PAGES.rglob("*.md")) if page != TARGET]
    quoting = [
        page for page in pages if re.search(rf"benchmarks\.{name}\b", page.read_text(encoding="utf-8"))
    ]
    return [f"[{page.stem}]({page.relative_to(PAGES)})" for page in quoting]


def figures(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Figures of a result in its order: numbers and words, and small tables of them."""
    for key, value in found.items():
        if key in CONDITIONS:
            continue
        if isinstance(value, Mapping):
            flat = {f"{key}.{name}": entry for name, entry in value.items()}
            if len(flat) <= SMALL and all(map(is_plain, flat.values())):
                yield from ((name, shown(entry)) for name, entry in flat.items())
        elif isinstance(value, list):
            if len(value) <= SMALL and all(map(is_plain, value)):
                yield key, ", ".join(map(shown, value)) or "none"
        else:
            yield key, shown(value)


def conditions(found: Mapping[str, Any]) -> list[str]:
    """A line that says where and how it was measured; empty if the result does not say."""
    flat: dict[str, Any] = {}
    for key in CONDITIONS:
        if key in found:
            flat |= found[key] if isinstance(found[key], Mapping) else {key: found[key]}
    return (
        ["*" + ", ".join(f"{key.replace('_', ' ')} {shown(value)}" for key, value in flat.items()) + "*"]
        if flat
        else []
    )


def is_plain(value: Any) -> bool:
    """A number, a word, or nothing."""
    return value is None or isinstance(value, bool | int | float | str)


def shown(value: Any) -> str:
    """A value in a cell."""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    if value is None or isinstance(value, bool):
        return {None: "–", True: "yes", False: "no"}[value]
    return f"{value:,}" if isinstance(value, int) else str(value).replace("|", "\\|")


def inline(line: str) -> str:
    """A line of a docstring as Markdown."""
    line = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", " ".join(line.split()))
    return line.replace("``", "`")


def prose(about: str) -> str:
    """A docstring as Markdown: paragraphs and lists as they are, indented code in a block."""
    parts = []
    for part in about.split("\n\n"):
        lines = part.splitlines()
        if lines and all(line.startswith("    ") for line in lines):
            code = "\n".join(line[4:] for line in lines)
            command = code.startswith("python ")
            mark = "<!-- not run: a benchmark takes minutes to hours -->\n```sh" if command else "```text"
            parts.append(f"{mark}\n{code}\n```")
        elif any(line.lstrip().startswith(("- ", "* ", "|")) for line in lines):
            parts.append(
                "\n".join(re.sub(r":\w+:`~?([^`]+)`", r"`\1`", line).replace("``", "`") for line in lines)
            )
        else:
            parts.append(inline(part).removesuffix("::"))
    return "\n\n".join(parts)
