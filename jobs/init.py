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
        typer.Option("--tables", help="Folder with your tables; columns are guessed.", metavar="DIR"),
    ] = None,
    out: Annotated[str, typer.Option("-o", "--out", help="File to write.", metavar="PATH")] = "study.yaml",
) -> dict[str, Any]:
    """Write a commented study file, columns guessed from your tables."""
    from pathlib import Path

    from equipoise.platform.errors import StudyError
    from equipoise.platform.registry import get

    file = Path(out)
    if file.exists():
        raise StudyError(
            "exists already and is not overwritten", where=out, fix="choose another name with -o"
        )
    text = get("templates", template).load()(Path(tables) if tables else None, file)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    print(f"wrote {file}; next: equipoise validate -c {file}")
    return {"study": file}


command = init

if __name__ == "__main__":
    from equipoise.jobs.cli import run_module

    run_module("init")
