"""``equipoise init``: a commented study file."""

from typing import Annotated, Any

import typer

from equipoise.jobs.options import plain_job


@plain_job
def init(
    template: Annotated[
        str, typer.Option("--template", help="One of `equipoise ls templates`.")
    ] = "biomarker",
    tables: Annotated[
        str | None,
        typer.Option(
            "--tables", help="Your tables: a folder or one file; columns are guessed.", metavar="PATH"
        ),
    ] = None,
    patient: Annotated[
        str | None, typer.Option("--patient", help="Column with the patient keys.", metavar="COLUMN")
    ] = None,
    sheet: Annotated[str | None, typer.Option("--sheet", help="Sheet of a workbook.", metavar="NAME")] = None,
    time: Annotated[
        str | None, typer.Option("--time", help="Column with the time of follow-up.", metavar="COLUMN")
    ] = None,
    event: Annotated[
        str | None,
        typer.Option("--event", help="Column that says whether it ended with the event.", metavar="COLUMN"),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option("--where", help="Rows to keep: Study=coad. Repeatable.", metavar="COLUMN=VALUE"),
    ] = None,
    out: Annotated[str, typer.Option("-o", "--out", help="File to write.", metavar="PATH")] = "study.yaml",
) -> dict[str, Any]:
    """Write a commented study file, columns guessed from your tables."""
    from pathlib import Path

    from equipoise.platform.errors import StudyError
    from equipoise.platform.registry import get
    from equipoise.platform.run.loading import check_draft
    from equipoise.platform.study.table_scan import Hints

    file = Path(out)
    if file.exists():
        raise StudyError(
            "exists already and is not overwritten", where=out, fix="choose another name with -o"
        )
    hints = Hints(patient, sheet, time, event, _rows(where or []), check_draft, print)
    entry = get("templates", template)
    given = [name for name, value in hints.__dict__.items() if value and not callable(value)]
    if given and not (tables and entry.attribute("takes_hints")):
        raise StudyError(
            f"--{given[0]} says something about tables, "
            + ("and none are given" if not tables else f"which template {template} does not ask"),
            fix="add --tables PATH" if not tables else f"leave out --{given[0]}",
        )
    options = (hints,) if entry.attribute("takes_hints") else ()
    text = entry.load()(Path(tables) if tables else None, file, *options)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    print(f"wrote {file}; next: equipoise validate -c {file}")
    return {"study": file}


def _rows(pairs: list[str]) -> dict[str, str]:
    """``COLUMN=VALUE`` → column and value."""
    from equipoise.platform.errors import StudyError

    if wrong := next((pair for pair in pairs if "=" not in pair[1:]), None):
        raise StudyError(f"--where {wrong!r} is not of the form COLUMN=VALUE")
    return {column.strip(): value.strip() for column, _, value in (pair.partition("=") for pair in pairs)}


command = init

if __name__ == "__main__":
    from equipoise.jobs.cli import run_module

    run_module("init")
