"""Provenance: commands that repeat the run, its environment, hashes of its inputs."""

import shlex
from typing import Any

import yaml

from equipoise.platform.report.blocks import Block, Cell, Code, Heading, Section, Table
from equipoise.platform.report.entries import SectionParams
from equipoise.platform.report.formatting import number
from equipoise.platform.report.run_files import RunFiles

_LONG = 240


def build(run: RunFiles, params: SectionParams) -> Section:
    """How to repeat the run."""
    blocks: list[Block] = [
        *run.missing("provenance/resolved.yaml", "provenance/environment.json", "provenance/inputs.json")
    ]
    command_line = str(run.environment.get("command") or "")
    blocks += [Heading("Commands"), Code(commands(run.folder.resolve().name, command_line))]
    if steps := _steps(run.status):
        blocks += [Heading("Steps"), steps]
    if run.environment:
        blocks += [
            Heading("Environment"),
            Table(["", ""], _flat(run.environment), "Versions, machine, code", folded=True),
        ]
    if run.inputs:
        blocks += [Heading("Inputs"), _inputs(run.inputs)]
    if run.study:
        text = yaml.safe_dump(run.study, sort_keys=False, allow_unicode=True, width=10**6)
        blocks += [Heading("Study"), Code(text, title="provenance/resolved.yaml", folded=True)]
    return Section(
        "Provenance", "Everything on this page is computed from the files of the run folder.", blocks
    )


def commands(folder: str, command_line: str) -> str:
    """Commands to copy; paths in a study are relative, so its copy must be in the folder of the original.

    Parameters
    ----------
    folder
        Name of the run folder.
    command_line
        The command line that created the run, as recorded; its program may be a path.
    """
    new_folder = shlex.quote(f"{folder}-again")
    lines = []
    if command_line:
        program, _, rest = command_line.partition(" ")
        lines += ["# created by", f"{program.rpartition('/')[2]} {rest}".strip()]
    return "\n".join(
        [
            *lines,
            "# repeat the run in a new folder; paths are relative: put the copy next to the study file",
            f"cp {shlex.quote(f'{folder}/provenance/resolved.yaml')} study-again.yaml",
            f"equipoise run -c study-again.yaml -o {new_folder}",
            "# only the metrics and this page",
            f"equipoise evaluate -c study-again.yaml -o {shlex.quote(folder)}",
            f"equipoise report -c study-again.yaml -o {shlex.quote(folder)}",
        ]
    )


def _steps(status: dict[str, Any]) -> Table | None:
    """Steps with their recorded results, without the report, which is being written."""
    steps = status.get("steps")
    if not isinstance(steps, dict):
        return None
    known = ("status", "seconds", "at")
    rows: list[list[str | Cell]] = []
    for name, record in steps.items():
        if name == "report" or not isinstance(record, dict):
            continue
        rest = ", ".join(f"{k} {v}" for k, v in record.items() if k not in known)
        status_cell = Cell(
            str(record.get("status", "")), tone="good" if record.get("status") == "done" else "warn"
        )
        seconds = record.get("seconds")
        shown = number(float(seconds), 1) if isinstance(seconds, int | float) else "–"
        rows.append([str(name), status_cell, shown, str(record.get("at", "")), rest])
    columns = ["Step", "Status", "Seconds", "At", "Results"]
    return Table(columns, rows, numeric=frozenset([2])) if rows else None


def _flat(value: Any, path: str = "") -> list[list[str]]:
    """Nested mappings as rows of dotted path and text."""
    if isinstance(value, dict):
        return [row for k, v in value.items() for row in _flat(v, f"{path}.{k}" if path else str(k))]
    if isinstance(value, list) and value and all(isinstance(v, dict) for v in value):
        return [row for i, v in enumerate(value) for row in _flat(v, f"{path}.{i}")]
    text = ", ".join(str(v) for v in value) if isinstance(value, list) else str(value)
    return [[path, text if len(text) <= _LONG else text[: _LONG - 1] + "…"]]


def _inputs(inputs: Any) -> Table:
    """A table of files, whether the run wrote a list of records or a mapping by path."""
    if isinstance(inputs, list) and inputs and all(isinstance(r, dict) for r in inputs):
        columns = list(dict.fromkeys(k for r in inputs for k in r))
        rows = [[str(r.get(c, "")) for c in columns] for r in inputs]
        return Table([str(c) for c in columns], rows, folded=len(rows) > 12)
    rows = _flat(inputs)
    return Table(["Input", "Value"], rows, folded=len(rows) > 12)
