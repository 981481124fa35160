"""``equipoise evaluate``: predictions to metrics with intervals."""

from typing import Annotated

import typer

from equipoise.jobs.options import StudyOptions, local_path, study_job
from equipoise.jobs.outcome import JobResult


@study_job
def evaluate(
    options: StudyOptions,
    predictions: Annotated[
        list[str] | None,
        typer.Option(
            "--predictions",
            help="Evaluate this table alone, without a study: ours or STAMP's patient-preds.csv. Repeat it for folds.",
            metavar="FILE",
        ),
    ] = None,
    positive: Annotated[
        str | None,
        typer.Option(
            "--positive", help="Class whose score counts in a binary table of STAMP.", metavar="CLASS"
        ),
    ] = None,
) -> JobResult:
    """Predict external cohorts with the fold models and compute metrics with intervals."""
    if not predictions:
        if positive is not None:
            from equipoise.platform.errors import StudyError

            raise StudyError(
                "--positive is about tables of predictions",
                where="command line",
                fix="name a table with --predictions, or leave --positive out",
            )
        return options.run(options.study(), ["evaluate"])
    from pathlib import Path

    from equipoise.platform.report.predictions_report import evaluate_predictions, evaluation_params
    from equipoise.platform.study.reading import parse_overrides

    out = None if options.out is None else local_path(options.out)
    params = evaluation_params(parse_overrides(options.set or []))
    done = evaluate_predictions(predictions, params, positive, out, options.seed or 0)
    print(done.text)
    fields = {"metrics": len(done.metrics)}
    where = {} if done.page is None else {"out": Path(str(out)).resolve(), "report": done.page.resolve()}
    return JobResult(fields | where)


command = evaluate

if __name__ == "__main__":
    from equipoise.jobs.cli import run_module

    run_module("evaluate")
