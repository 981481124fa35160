"""``equipoise explain``: which tiles, genes and modalities predictions come from, and whether a map means something."""

from typing import Annotated, Any

import typer

from equipoise.jobs.options import StudyOptions, study_job
from equipoise.jobs.outcome import JobResult


@study_job
def explain(
    options: StudyOptions,
    slides: Annotated[
        str | None,
        typer.Option(
            "--slides", help="Patients per cohort, or names of slides: 6 or A-1,B-2.", metavar="N|NAMES"
        ),
    ] = None,
    method: Annotated[
        list[str] | None,
        typer.Option("--method", help="Attribution: equipoise ls attributions. Repeatable.", metavar="NAME"),
    ] = None,
    tasks: Annotated[
        str | None, typer.Option("--tasks", help="Tasks: MSI,OS; all if not given.", metavar="NAMES")
    ] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", help="Tiles at either end of a map.", min=1)] = None,
) -> JobResult:
    """Explain predictions of an evaluated run from its stored features; maps that are there are kept."""
    overrides: dict[str, Any] = {}
    if slides is not None:
        overrides["explain.slides"] = int(slides) if slides.isdecimal() else names(slides)
    if method:
        overrides["explain.methods"] = list(method)
    if tasks is not None:
        overrides["explain.tasks"] = names(tasks)
    if top_k is not None:
        overrides["explain.top_k"] = top_k
    study = options.study(overrides)
    if study.explain is None:  # a study without the section is explained with the defaults
        study = options.study({"explain": {}} | overrides)
    return options.run(study, ["explain", "report"])


def names(text: str) -> list[str]:
    """Names between commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


command = explain

if __name__ == "__main__":
    from equipoise.jobs.cli import run_module

    run_module("explain")
