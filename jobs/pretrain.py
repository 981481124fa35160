"""``equipoise pretrain``: a model on many cohorts and tasks, as a start or a slide encoder for other studies."""

from equipoise.jobs.options import StudyOptions, study_job
from equipoise.jobs.outcome import JobResult, run_in_folder


@study_job
def pretrain(options: StudyOptions) -> JobResult:
    """Train the study's model on all patients of the cohorts of its pretrain section; an interrupted call resumes."""
    study = options.study()
    if study.pretrain is None:  # a study without the section is pre-trained on all development cohorts
        study = options.study({"pretrain": {}})
    if options.dry_run:
        return options.run(study, ["pretrain"])
    folder = options.folder(study)
    extracted = folder.status()["steps"].get("extract", {}).get("status") == "done"
    before = [] if extracted else ["validate", "extract"]
    result = run_in_folder(study, folder, [*before, "pretrain"])
    model = folder.pretrain / "model"
    return JobResult(dict(result.fields) | {"model": model}, result.folder)


command = pretrain

if __name__ == "__main__":
    from equipoise.jobs.cli import run_module

    run_module("pretrain")
