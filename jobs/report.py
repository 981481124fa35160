"""``equipoise report``: the run folder as one HTML page."""

from typing import Any

from equipoise.jobs.options import StudyOptions, study_job


@study_job
def report(options: StudyOptions) -> dict[str, Any]:
    """Write report.html; it reads nothing but the run folder."""
    from equipoise.platform import steps

    return steps.perform(options.study(), options.folder, ["report"], dry_run=options.dry_run)


command = report

if __name__ == "__main__":
    from equipoise.jobs.cli import run_module

    run_module("report")
