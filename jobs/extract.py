"""``equipoise extract``: slides to features on Ray Data."""

from typing import Annotated

import typer

from equipoise.jobs.options import StudyOptions, study_job
from equipoise.jobs.outcome import JobResult


@study_job
def extract(
    options: StudyOptions,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try failed slides again.")] = False,
    max_fail: Annotated[
        float | None, typer.Option("--max-fail", help="Share of slides that may fail.", metavar="SHARE")
    ] = None,
) -> JobResult:
    """Tile slides and extract features on Ray Data; slides already in the store are skipped."""
    overrides = {"features.retry": retry_failed or None, "features.max_fail": max_fail}
    study = options.study({key: value for key, value in overrides.items() if value is not None})
    return options.run(study, ["extract"])


command = extract

if __name__ == "__main__":
    from equipoise.jobs.cli import run_module

    run_module("extract")
