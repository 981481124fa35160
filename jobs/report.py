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
    from equipoise.platform import steps

    facts = steps.perform(options.study(), options.folder, ["report"], dry_run=options.dry_run)
    if show and "report" in facts:
        import webbrowser

        webbrowser.open(facts["report"].as_uri())
    return facts


command = report

if __name__ == "__main__":
    from equipoise.jobs.cli import run_module

    run_module("report")
