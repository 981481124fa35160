"""``equipoise report``: the run folder as one HTML page."""

from typing import Annotated

import typer

from equipoise.jobs.options import StudyOptions, study_job
from equipoise.jobs.outcome import JobResult


@study_job
def report(
    options: StudyOptions,
    show: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> JobResult:
    """Write report.html; it reads nothing but the run folder."""
    result = options.run(options.study(), ["report"])
    if show and "report" in result.fields:
        import webbrowser

        webbrowser.open(result.fields["report"].as_uri())
    return result


command = report

if __name__ == "__main__":
    from equipoise.jobs.cli import run_module

    run_module("report")
