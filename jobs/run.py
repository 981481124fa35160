"""``equipoise run``: all steps from slides to report."""

from equipoise.jobs.options import FoldsFrom, StudyOptions, study_job
from equipoise.jobs.outcome import JobResult


@study_job
def run(options: StudyOptions, folds_from: FoldsFrom = None) -> JobResult:
    """Run all steps from slides to report; finished steps are skipped, interrupted ones resume."""
    from equipoise.platform.run.folder import STEPS

    return options.run(options.study(), STEPS, folds_from=folds_from or ())


command = run

if __name__ == "__main__":
    from equipoise.jobs.cli import run_module

    run_module("run")
