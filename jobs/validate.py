"""``equipoise validate``: study, tables and slides, before anything expensive starts."""

from typing import Annotated, Any

import typer

from equipoise.jobs.options import StudyOptions, study_job


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
) -> dict[str, Any]:
    """Check study, tables and slides; write manifest, exclusions, participant flow and folds."""
    if json_schema:
        import json

        from equipoise.platform.study.schema import json_schema as schema

        print(json.dumps(schema(), indent=2))
        return {}
    study = options.study()
    if config_only:
        print(f"{options.config}: valid ({len(study.cohorts)} cohorts, {len(study.tasks)} tasks)")
        return {"study": study.name}
    from equipoise.platform.run import steps

    return steps.run_steps(
        study, options.folder, ["validate"], dry_run=options.dry_run, check_slides=check_slides
    )


command = validate

if __name__ == "__main__":
    from equipoise.jobs.cli import run_module

    run_module("validate")
