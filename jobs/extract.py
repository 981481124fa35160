"""``equipoise extract``: slides to features on Ray Data."""

from typing import Any

from equipoise.jobs.options import StudyOptions, study_job


@study_job
def extract(options: StudyOptions) -> dict[str, Any]:
    """Tile slides and extract features on Ray Data; slides already in the store are skipped."""
    from equipoise.platform import steps

    return steps.perform(options.study(), options.folder, ["extract"], dry_run=options.dry_run)


command = extract

if __name__ == "__main__":
    from equipoise.jobs.cli import run_module

    run_module("extract")
