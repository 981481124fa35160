"""``equipoise evaluate``: predictions to metrics with intervals."""

from typing import Any

from equipoise.jobs.options import StudyOptions, study_job


@study_job
def evaluate(options: StudyOptions) -> dict[str, Any]:
    """Predict external cohorts with the fold models and compute metrics with intervals."""
    from equipoise.platform.run import steps

    return steps.run_steps(options.study(), options.folder, ["evaluate"], dry_run=options.dry_run)


command = evaluate

if __name__ == "__main__":
    from equipoise.jobs.cli import run_module

    run_module("evaluate")
