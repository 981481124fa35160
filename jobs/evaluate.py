"""``equipoise evaluate``: predictions to metrics with intervals."""

from equipoise.jobs.options import StudyOptions, study_job
from equipoise.jobs.outcome import JobResult


@study_job
def evaluate(options: StudyOptions) -> JobResult:
    """Predict external cohorts with the fold models and compute metrics with intervals."""
    return options.run(options.study(), ["evaluate"])


command = evaluate

if __name__ == "__main__":
    from equipoise.jobs.cli import run_module

    run_module("evaluate")
