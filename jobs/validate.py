"""``equipoise validate``: study, tables and slides, before anything expensive starts."""

from typing import Annotated

import typer

from equipoise.jobs.options import StudyOptions, study_job
from equipoise.jobs.outcome import JobResult


@study_job
def validate(
    options: StudyOptions,
    config_only: Annotated[bool, typer.Option("--config-only", help="Check the study file alone.")] = False,
    check_slides: Annotated[
        bool,
        typer.Option("--check-slides", help="Open every slide and check pixel size and resolution."),
    ] = False,
    json_schema: Annotated[
        bool, typer.Option("--json-schema", help="Print the JSON Schema of a study, for editors.")
    ] = False,
) -> JobResult:
    """Check study, tables and slides; write manifest, exclusions, participant flow and folds."""
    if json_schema:
        import json

        from equipoise.platform.study.schema import json_schema as schema

        print(json.dumps(schema(), indent=2))
        return JobResult()
    study = options.study()
    if config_only:
        print(f"{options.config}: valid ({len(study.cohorts)} cohorts, {len(study.tasks)} tasks)")
        return JobResult({"study": study.name})
    return options.run(study, ["validate"], check_slides=check_slides)


command = validate

if __name__ == "__main__":
    from equipoise.jobs.cli import run_module

    run_module("validate")
