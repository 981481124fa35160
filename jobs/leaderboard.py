"""``equipoise leaderboard``: several runs over the same patients side by side."""

from typing import Annotated, Any

import typer

from equipoise.jobs.options import plain_job


@plain_job
def leaderboard(
    runs: Annotated[
        list[str], typer.Argument(help="Two run folders or more, or addresses.", metavar="RUN...")
    ],
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
    """Compare runs: order, all pairs, paired differences; leaderboard.csv and .html.

    Runs without a common patient are several data sets: one leaderboard each, and ranks over them.
    """
    from pathlib import Path

    from equipoise.platform.report.leaderboard_datasets import compare_runs
    from equipoise.platform.run.remote_folder import run_paths

    with run_paths(runs) as paths:
        written = compare_runs(paths, Path(out), baseline)
    print(written.text)
    result = {"best": written.best} | ({"synthetic": True} if written.synthetic else {})
    return {"out": Path(out).resolve(), "page": written.page.resolve(), **result}


command = leaderboard

if __name__ == "__main__":
    from equipoise.jobs.cli import run_module

    run_module("leaderboard")
