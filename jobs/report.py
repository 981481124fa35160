"""``equipoise report``: the run folder as one HTML page."""

from typing import Annotated, Any

import typer

from equipoise.jobs.options import StudyOptions, study_job


@study_job
def report(
    options: StudyOptions,
    show: Annotated[bool, typer.Option("--open", help="Open the page in a browser.")] = False,
) -> dict[str, Any]:
    """Write report.html; it reads nothing but the run folder."""
    from equipoise.platform.run import steps

    result = steps.run_steps(options.study(), options.folder, ["report"], dry_run=options.dry_run)
    if show and "report" in result:
        import webbrowser

        webbrowser.open(result["report"].as_uri())
    return result


command = report

if __name__ == "__main__":
    from equipoise.jobs.cli import run_module

    run_module("report")
