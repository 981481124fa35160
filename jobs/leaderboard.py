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
    """Compare runs: order, all pairs, paired differences; leaderboard.csv and .html.

    Runs without a common patient are several data sets: one leaderboard each, and ranks over them.
    """
    from pathlib import Path

    from equipoise.platform.report.leaderboard import leaderboard_text, write_leaderboard
    from equipoise.platform.report.leaderboard_datasets import (
        dataset_leaderboards_text,
        group_by_patients,
        write_dataset_leaderboards,
    )

    groups = group_by_patients([Path(run) for run in runs])
    if len(groups) > 1 and min(map(len, groups)) > 1:
        several = write_dataset_leaderboards(groups, Path(out), baseline)
        print(dataset_leaderboards_text(several))
        result = {"best": several.best} | ({"synthetic": True} if several.synthetic else {})
        return {"out": Path(out).resolve(), "page": several.page.resolve(), **result}
    written = write_leaderboard([Path(run) for run in runs], Path(out), baseline)
    print(leaderboard_text(written))
    result = {"best": written.board.best} | ({"synthetic": True} if written.synthetic else {})
    return {"out": Path(out).resolve(), "page": written.page.resolve(), **result}


command = leaderboard

if __name__ == "__main__":
    from equipoise.jobs.cli import run_module

    run_module("leaderboard")
