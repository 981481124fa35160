"""``equipoise run``: all steps from slides to report."""

from typing import Any

from equipoise.jobs.options import StudyOptions, study_job


@study_job
def run(options: StudyOptions) -> dict[str, Any]:
    """Run all steps from slides to report; finished steps are skipped, interrupted ones resume."""
    from equipoise.platform.run import steps
    from equipoise.platform.run.folder import STEPS

    return steps.run_steps(options.study(), options.folder, STEPS, dry_run=options.dry_run)


command = run

if __name__ == "__main__":
    from equipoise.jobs.cli import run_module

    run_module("run")
