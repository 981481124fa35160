"""``equipoise run``: the whole way from slides to report."""

from typing import Any

from equipoise.jobs.options import StudyOptions, study_job


@study_job
def run(options: StudyOptions) -> dict[str, Any]:
    """Everything from slides to report; what is done is skipped, what was interrupted goes on."""
    from equipoise.platform import steps
    from equipoise.platform.workspace import STEPS

    return steps.perform(options.study(), options.folder, STEPS, dry_run=options.dry_run)


command = run

if __name__ == "__main__":
    from equipoise.jobs.cli import run_module

    run_module("run")
