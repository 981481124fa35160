"""Writes ``docs/reference.md`` from the code; ``docs/benchmarks.md`` and tables of other pages from measured results.

Study sections, registries and commands stand on the reference page; :mod:`docs.benchmark_page` has the benchmarks,
:mod:`docs.tables` the tables. Tests hold all of them up to date.
"""

import inspect
import re
from importlib import import_module
from pathlib import Path
from typing import Any

from equipoise.jobs.cli import JOBS, module_of
from equipoise.jobs.options import StudyOptions
from equipoise.platform.registry import BASES, KINDS, entries, resolve
from equipoise.platform.study.schema import json_schema

TARGET = Path(__file__).parent / "reference.md"


def text() -> str:
    """The whole page."""
    parts = ["# Reference", "Written by `make docs` from the code; do not edit.", "## Commands", *_commands()]
    parts += ["## Study file", *_sections(), "## Registries", *_registries()]
    return "\n\n".join(parts) + "\n"


def _commands() -> list[str]:
    shared = set(StudyOptions.__dataclass_fields__)
    lines = [
        "Each is `equipoise <job>` and `python -m equipoise.jobs.<job>`, a hyphen of the job an underscore there."
    ]
    rows = ["| job | what it does | options |", "|---|---|---|"]
    for name, line in JOBS.items():
        command = import_module(module_of(name)).command
        parameters = inspect.signature(command).parameters
        takes_study = "config" in parameters
        extra = [p for p in parameters.values() if not (takes_study and p.name in shared)]
        own = [_option_names(p.annotation.__metadata__[0]) for p in extra]
        options = [f"`{names[-1]}`" for names in own if names] + (["shared"] if takes_study else [])
        rows.append(f"| `{name}` | {line} | {', '.join(options)} |")
    rows_shared = ["Shared options of jobs that take a study:", "| option | meaning |", "|---|---|"]
    for field in StudyOptions.__dataclass_fields__.values():
        option: Any = field.type.__metadata__[0]  # type: ignore[union-attr]
        rows_shared.append(f"| `{', '.join(_option_names(option))}` | {option.help} |")
    return [*lines, "\n".join(rows), rows_shared[0], "\n".join(rows_shared[1:])]


def _option_names(option: Any) -> list[str]:
    """``["-c", "--config"]``; empty for an argument. Typer keeps the first name of an annotation as the default."""
    first = [option.default] if isinstance(option.default, str) else []
    return [name for name in (*first, *(option.param_decls or ())) if name.startswith("-")]


def _sections() -> list[str]:
    schema = json_schema()
    blocks = [_table(schema["properties"], set(schema["required"]))]
    for name, definition in sorted(schema["$defs"].items()):
        if definition.get("properties"):
            lead = " ".join(definition.get("description", "").split())
            blocks += [
                f"### {name}",
                lead,
                _table(definition["properties"], set(definition.get("required", []))),
            ]
    return [block for block in blocks if block]


def _table(properties: dict[str, Any], required: set[str]) -> str:
    rows = ["| key | default | meaning |", "|---|---|---|"]
    for key, value in properties.items():
        default = "required" if key in required else f"`{value['default']}`" if "default" in value else ""
        rows.append(f"| `{key}` | {default} | {' '.join(value.get('description', '').split())} |")
    return "\n".join(rows)


def _registries() -> list[str]:
    blocks = []
    for kind in KINDS:
        rows = [f"| {entry.name} | {entry.summary} |" for entry in entries(kind).values()]
        blocks += [f"### {kind}", "\n".join(["| name | what it is |", "|---|---|", *rows])]
        if attributes := _attributes(kind):
            blocks += [
                "What an entry can say of itself (class attributes of its parameter model):",
                "\n".join(["| attribute | default | meaning |", "|---|---|---|", *attributes]),
            ]
    return blocks


def _attributes(kind: str) -> list[str]:
    """Rows of the class attributes that the base of a kind declares, with the comments above them."""
    if kind not in BASES:
        return []
    base, rows, comment = resolve(BASES[kind]), [], ""
    for line in inspect.getsource(base).splitlines():
        declared = re.match(r"    (\w+): ClassVar\[", line)
        if line.startswith("    #: "):
            comment += f" {line[7:].strip()}"
        elif declared:
            value = getattr(base, declared[1])
            shown = ", ".join(sorted(value)) if isinstance(value, frozenset) else value
            shown = "none" if value is None or shown in ("", ()) else shown
            rows.append(f"| `{declared[1]}` | {shown} | {comment.strip()} |")
            comment = ""
        else:
            comment = ""
    return rows


if __name__ == "__main__":
    TARGET.write_text(text(), encoding="utf-8")
    print(f"wrote {TARGET}")
    from docs import benchmark_page
    from docs.tables import pages, with_tables

    benchmark_page.TARGET.write_text(benchmark_page.text(), encoding="utf-8")
    print(f"wrote {benchmark_page.TARGET}")

    for page in pages():
        page.write_text(with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")
        print(f"wrote the tables of {page}")
