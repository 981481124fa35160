"""``equipoise leaderboard``: several runs over the same patients side by side."""

from typing import Annotated, Any

import typer

from equipoise.jobs.options import plain_job


@plain_job
def leaderboard(
    runs: Annotated[list[str], typer.Argument(help="Two run folders or more.", metavar="RUN...")],
    out: Annotated[
        str, typer.Option("-o", "--out", help="Folder to write to.", metavar="DIR")
    ] = "leaderboard",
    baseline: Annotated[
        str | None,
        typer.Option(
            "--baseline", help="Run to compare the others with, by its folder name.", metavar="NAME"
        ),
    ] = None,
) -> dict[str, Any]:
    """Compare runs: order, all pairs, paired differences; leaderboard.csv and .html."""
    from pathlib import Path

    from equipoise.platform.report.leaderboard import leaderboard_text, write_leaderboard

    written = write_leaderboard([Path(run) for run in runs], Path(out), baseline)
    print(leaderboard_text(written))
    result = {"best": written.board.best} | ({"synthetic": True} if written.synthetic else {})
    return {"out": Path(out).resolve(), "page": written.page.resolve(), **result}


command = leaderboard

if __name__ == "__main__":
    from equipoise.jobs.cli import run_module

    run_module("leaderboard")
