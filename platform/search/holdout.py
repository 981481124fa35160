"""The winner and the study as written, measured on patients that no trial ever saw.

Both are trained on the search patients by the study's own cross-validation, across the sites where the study
federates. Their fold models then predict the hold-out and the external cohorts: mean score, metric, interval, and the
paired difference between the two. Inner validation is reported beside them: it chose the winner and is biased in its
favour; the difference between the two columns is the cost of selection. The number of looks at the hold-out is
counted, because patients that measure many winners take part in the selection.
"""

from __future__ import annotations

import dataclasses
import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equipoise.datasets.atomic_io import read_json, write_json
from equipoise.platform.errors import StudyError
from equipoise.platform.search.configuration import study_from_config
from equipoise.platform.search.context import SearchContext
from equipoise.platform.search.params import SCORES
from equipoise.platform.search.search import prepare
from equipoise.platform.search.selection import select_winner
from equipoise.platform.search.trial import trials_folder
from equipoise.platform.search.trial_records import Trial, read_trials

if TYPE_CHECKING:
    import pandas as pd

    from equipoise.platform.study.schema import Study
    from equipoise.platform.training.inputs import StudyInputs

log = logging.getLogger("equipoise")

#: Name of the hold-out among cohorts.
HOLDOUT_COHORT = "hold-out"


def measure(study: Study, data: StudyInputs, run: Path) -> dict[str, Any]:
    """Train and measure both, write ``search/test.json``; returns metadata for the result line.

    ``test.json`` holds ``looks`` (how many winners these patients have measured), ``winner``, ``default``, and rows
    of ``who, part, task, metric, value, low, high, n`` (labelled patients): part ``inner validation`` (with twice the
    standard error over folds on either side), ``hold-out``, or the name of an external cohort; and ``differences`` of
    the winner against the study as written. Metrics in full stand in ``search/final/<trial>/``.

    Raises
    ------
    StudyError
        If there is no winner yet, or there are no patients to measure it on.
    """
    search_context = prepare(study, data)
    folder = run / "search"
    trials = read_trials(trials_folder(folder))
    if not any(trial.ok for trial in trials) or trials[0].index != 0:
        raise StudyError(
            "there is no winner to measure", where=str(folder), fix="run `equipoise search` first"
        )
    winner, default = select_winner(trials, search_context.params), trials[0]
    earlier = read_json(folder / "test.json", {"looks": 0, "winner": None})
    if earlier["winner"] == winner.name:
        log.info("search test: %s was measured already", winner.name)
        return {"winner": winner.name, "looks": earlier["looks"]}
    both = {trial.name: trial for trial in (default, winner)}
    predictions = {name: _predict(data, run, search_context, trial) for name, trial in both.items()}
    rows, differences = _results(study, predictions, default.name)
    rows = [*(row for trial in both.values() for row in inner_validation_rows(trial, search_context)), *rows]
    looks = earlier["looks"] + 1
    if looks > 1:
        log.warning(
            "the hold-out has now measured %d winners; the value of the best one is biased upwards", looks
        )
    metadata = {"winner": winner.name, "default": default.name, "looks": looks}
    write_json(folder / "test.json", metadata | {"rows": rows, "differences": differences})
    for row in rows:
        log.info(
            "search test: %(who)s %(part)s %(task)s %(metric)s=%(value).4f [%(low).4f, %(high).4f]",
            {key: float("nan") if value is None else value for key, value in row.items()},
        )
    return {"winner": winner.name, "looks": looks}


def _predict(data: StudyInputs, run: Path, search_context: SearchContext, trial: Trial) -> pd.DataFrame:
    """Train the folds of a trial's study, predict the patients that no trial saw, write predictions and metrics."""
    import pandas as pd

    from equipoise.platform.evaluation.evaluate import evaluate
    from equipoise.platform.evaluation.metrics_table import write_metrics
    from equipoise.platform.evaluation.predictions import write_predictions
    from equipoise.platform.search.federated_trial import final_predictions

    if not search_context.held_out and not (data.cohorts.patients["role"] == "external").any():
        raise StudyError(
            "there are no patients to measure the winner on: no hold-out and no external cohort",
            where="search.holdout",
            fix="write search.holdout: 0.2 in a new run folder, or add a cohort with role: external",
        )
    study = study_from_config(search_context.inputs.settings, trial.config)
    folder = final_folder(run / "search", trial)
    tables = (
        _central_predictions(data, search_context, study, folder, run / "tb" / "final" / trial.name)
        if study.federation is None
        else final_predictions(data, search_context, study, folder, HOLDOUT_COHORT)
    )
    predictions = pd.concat(tables, ignore_index=True)
    write_predictions(predictions, folder / "predictions.parquet")
    write_metrics(evaluate(predictions, study.evaluation, study.seed), folder, study.evaluation)
    return predictions


def _central_predictions(
    data: StudyInputs, search_context: SearchContext, study: Study, folder: Path, tensorboard: Path
) -> list[pd.DataFrame]:
    """Predictions of the fold models for validation and test patients, hold-out and external cohorts."""
    from equipoise.datasets.cohorts.splits import make_folds
    from equipoise.platform.evaluation.predictions import read_predictions
    from equipoise.platform.search.patients import restrict_to
    from equipoise.platform.training.batches import CaseList
    from equipoise.platform.training.build import pick_device, recipe_of
    from equipoise.platform.training.crossval import fold_folder, load_fold, train_fold
    from equipoise.platform.training.epoch_log import EpochLog
    from equipoise.platform.training.folds import run_folds

    searched = search_context.cohorts
    folds = make_folds(searched.patients, study.split_scheme, study.tasks, study.seed, searched.slides)
    given: dict[str, Any] = {"features": data.features, "content_keys": data.content_keys}
    jobs = []
    for fold in folds:
        if not fold_folder(folder / "folds", fold).exists():
            report = EpochLog(tensorboard / fold.name, fold.name, study.training.epochs)
            parts = (fold, study.tasks, search_context.inputs.cases, recipe_of(study), folder / "folds")
            jobs.append(partial(train_fold, *parts, **given, report=report))
    run_folds(jobs, study.training, study.resources)
    unseen = [data.cases("external")]
    if search_context.held_out:
        held_out = restrict_to(data.cohorts, search_context.held_out)
        unseen.insert(0, dataclasses.replace(data, cohorts=held_out).cases("develop"))
    tables = []
    for fold in folds:
        path = fold_folder(folder / "folds", fold)
        trained = load_fold(path, pick_device(study.training.device))
        tables.append(read_predictions(path / "preds.parquet"))
        for reader in unseen:
            if len(reader):
                table = trained.predict(CaseList(reader, tuple(reader)), "external")
                tables.append(table.assign(cohort=HOLDOUT_COHORT) if reader.role == "develop" else table)
    return tables


def _results(
    study: Study, predictions: dict[str, pd.DataFrame], default: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """First metrics of every task on unseen patients, and the winner's paired differences in them."""
    from equipoise.platform.evaluation.paired import Candidate, evaluate_candidate, paired_differences
    from equipoise.platform.evaluation.samples import ALL, MODEL, POOLED

    unseen = {
        name: table[table["role"].isin(("val", "external"))] for name, table in predictions.items()
    }  # the test parts of cross-validation are search patients: they chose the winner
    evaluated = {
        name: evaluate_candidate(Candidate(name, table), study.evaluation, study.seed)
        for name, table in unseen.items()
    }
    leading = {task.name: SCORES[task.type][0] for task in study.tasks}
    rows = []
    for name, results in evaluated.items():
        for (_, cohort, task, of_class, metric, predictor), one in results.items():
            if (
                cohort not in (ALL, POOLED)
                and predictor == MODEL
                and not of_class
                and metric == leading[task]
            ):
                interval = one.result.interval
                rows.append(
                    {
                        "who": name,
                        "part": cohort,
                        "task": task,
                        "metric": metric,
                        "value": _json_value(one.result.estimate.value),
                        "low": _json_value(interval.low),
                        "high": _json_value(interval.high),
                        "n": len(one.sample.strata),
                    }
                )
    if len(evaluated) < 2:
        return rows, []
    table = paired_differences(evaluated, default, study.evaluation.confidence)
    mask = (
        ~table["cohort"].isin((ALL, POOLED))
        & (table["predictor"] == MODEL)
        & (table["class"] == "")
        & (table["metric"] == table["task"].map(leading))
    )
    kept = table.loc[
        mask, ["cohort", "task", "metric", "difference", "low", "high", "p", "p_joint", "method"]
    ]
    return rows, [{key: _json_value(value) for key, value in row.items()} for row in kept.to_dict("records")]


def inner_validation_rows(trial: Trial, search_context: SearchContext) -> list[dict[str, Any]]:
    """Values of a trial on inner validation, with two standard errors over folds on either side; ``n`` is labelled."""
    rows = []
    scored = {patient for fold in search_context.inputs.folds for patient in fold.test}
    patients = search_context.cohorts.patients
    patients = patients[patients["patient"].isin(scored)]
    for task in search_context.study.tasks:
        metric = SCORES[task.type][0]
        name = f"val/{task.name}/{metric}"
        centre, spread = trial.means.get(name, float("nan")), 2 * trial.spread(name)
        rows.append(
            {
                "who": trial.name,
                "part": "inner validation",
                "task": task.name,
                "metric": metric,
                "value": _json_value(centre),
                "low": _json_value(centre - spread),
                "high": _json_value(centre + spread),
                "n": int(patients[list(task.frame_columns)].notna().all(axis=1).sum()),
            }
        )
    return rows


def _json_value(value: Any) -> Any:
    """JSON has no NaN."""
    return None if isinstance(value, float) and value != value else value


def final_folder(search: Path, trial: Trial) -> Path:
    """Folder with folds, predictions and metrics of a trial that was measured."""
    return search / "final" / trial.name
