"""The winner and the study as written, measured on patients that no trial ever saw.

Both are trained on the search patients by the study's own cross-validation, across the sites where the study federates.
Their fold models then predict the hold-out and the external cohorts: mean score, metric, interval, and the paired
difference between the two. What stands beside them as inner validation is what chose the winner and flatters it; the
difference between the two columns is the price of searching. Looking is counted, because patients that are looked at
often choose too.
"""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equipoise.datasets.whole_files import read_json, write_json
from equipoise.platform.errors import StudyError
from equipoise.platform.search.configuration import configured
from equipoise.platform.search.params import SCORES
from equipoise.platform.search.search import Prepared, prepare
from equipoise.platform.search.selection import choose
from equipoise.platform.search.trial import trials_folder
from equipoise.platform.search.trials import Trial, read_trials

if TYPE_CHECKING:
    import pandas as pd

    from equipoise.platform.study import Study
    from equipoise.platform.work import Work

log = logging.getLogger("equipoise")

#: Name of the hold-out among cohorts.
HOLDOUT = "hold-out"


def measure(work: Work) -> dict[str, Any]:
    """Train both, measure both, write ``search/test.json``; facts for the result line.

    ``test.json`` holds ``looks`` (how many winners these patients have measured), ``winner``, ``default``, and rows
    of ``who, part, task, metric, value, low, high, n``: part ``inner validation`` (with twice the standard error over
    folds on either side), ``hold-out``, or the name of an external cohort; and ``differences`` of the winner against
    the study as written. Metrics in full stand in ``search/final/<trial>/``.

    Raises
    ------
    StudyError
        If there is no winner yet, or nobody to measure it on.
    """
    prepared = prepare(work)
    folder = work.folder.search
    trials = read_trials(trials_folder(folder))
    if not any(trial.ok for trial in trials) or trials[0].index != 0:
        raise StudyError(
            "there is no winner to measure", where=str(folder), fix="run `equipoise search` first"
        )
    winner, default = choose(trials, prepared.params), trials[0]
    earlier = read_json(folder / "test.json", {"looks": 0, "winner": None})
    if earlier["winner"] == winner.name:
        log.info("search test: %s was measured already", winner.name)
        return {"winner": winner.name, "looks": earlier["looks"]}
    both = {trial.name: trial for trial in (default, winner)}
    predictions = {name: _predict(work, prepared, trial) for name, trial in both.items()}
    rows, differences = _results(work, predictions, default.name)
    rows = [*(row for trial in both.values() for row in _inner(trial, prepared)), *rows]
    looks = earlier["looks"] + 1
    if looks > 1:
        log.warning("the hold-out has now measured %d winners; the best of them is flattered by it", looks)
    facts = {"winner": winner.name, "default": default.name, "looks": looks}
    write_json(folder / "test.json", facts | {"rows": rows, "differences": differences})
    for row in rows:
        log.info(
            "search test: %(who)s %(part)s %(task)s %(metric)s=%(value).4f [%(low).4f, %(high).4f]",
            {key: float("nan") if value is None else value for key, value in row.items()},
        )
    return {"winner": winner.name, "looks": looks}


def _predict(work: Work, prepared: Prepared, trial: Trial) -> pd.DataFrame:
    """Train the folds of a trial's study, predict who was never seen, write predictions and metrics."""
    import pandas as pd

    from equipoise.platform.evaluation.evaluate import evaluate
    from equipoise.platform.evaluation.metrics_table import write_metrics
    from equipoise.platform.evaluation.predictions import write_predictions
    from equipoise.platform.search.federated import final_predictions

    if not prepared.held_out and not (work.usable.patients["role"] == "external").any():
        raise StudyError(
            "nobody is left to measure the winner on: no hold-out and no external cohort",
            where="search.holdout",
            fix="write search.holdout: 0.2 in a new run folder, or add a cohort with role: external",
        )
    study = configured(prepared.material.settings, trial.config)
    folder = final_folder(work.folder.search, trial)
    tables = (
        _trained_in_one_place(work, prepared, study, trial, folder)
        if study.federation is None
        else final_predictions(work, prepared, study, folder, HOLDOUT)
    )
    predictions = pd.concat(tables, ignore_index=True)
    write_predictions(predictions, folder / "predictions.parquet")
    write_metrics(evaluate(predictions, study.evaluation, study.seed), folder, study.evaluation)
    return predictions


def _trained_in_one_place(
    work: Work, prepared: Prepared, study: Study, trial: Trial, folder: Path
) -> list[pd.DataFrame]:
    """Predictions of the fold models for validation and test patients, hold-out and external cohorts."""
    from equipoise.datasets.cases import CaseReader
    from equipoise.datasets.splits import make_folds
    from equipoise.platform.evaluation.predictions import read_predictions
    from equipoise.platform.search.patients import only
    from equipoise.platform.steps import run_folds
    from equipoise.platform.tracking import EpochLog
    from equipoise.platform.training.batches import CaseList
    from equipoise.platform.training.build import pick_device
    from equipoise.platform.training.crossval import fold_folder, load_fold, train_fold
    from equipoise.platform.training.recipe import recipe_of

    folds = make_folds(prepared.cohorts.patients, study.splits, study.tasks, study.seed)
    given: dict[str, Any] = {"features": work.features, "contents": work.contents}
    jobs = []
    for fold in folds:
        if not fold_folder(folder / "folds", fold).exists():
            report = EpochLog(work.folder.tensorboard / "final" / trial.name / fold.name, fold.name)
            parts = (fold, study.tasks, prepared.material.cases, recipe_of(study), folder / "folds")
            jobs.append(partial(train_fold, *parts, **given, report=report))
    run_folds(study, jobs)
    unseen = (
        [CaseReader(only(work.usable, prepared.held_out), work.tiles, role="develop")]
        if prepared.held_out
        else []
    )
    unseen.append(CaseReader(work.usable, work.tiles, role="external"))
    tables = []
    for fold in folds:
        path = fold_folder(folder / "folds", fold)
        trained = load_fold(path, pick_device(study.training.device))
        tables.append(read_predictions(path / "preds.parquet"))
        for reader in unseen:
            if len(reader):
                table = trained.predict(CaseList(reader, tuple(reader)), "external")
                tables.append(table.assign(cohort=HOLDOUT) if reader.role == "develop" else table)
    return tables


def _results(
    work: Work, predictions: dict[str, pd.DataFrame], default: str
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """First metrics of every task on unseen patients, and the winner's paired differences in them."""
    from equipoise.platform.evaluation.paired import Contender, judge, paired_differences
    from equipoise.platform.evaluation.samples import ALL, MODEL

    study = work.study
    unseen = {
        name: table[table["role"].isin(("val", "external"))] for name, table in predictions.items()
    }  # cross-validated test parts are search patients: they chose the winner
    judged = {
        name: judge(Contender(name, table), study.evaluation, study.seed) for name, table in unseen.items()
    }
    leading = {task.name: SCORES[task.type][0] for task in study.tasks}
    rows = []
    for name, found in judged.items():
        for (_, cohort, task, of_class, metric, predictor), one in found.items():
            if cohort != ALL and predictor == MODEL and not of_class and metric == leading[task]:
                interval = one.result.interval
                rows.append(
                    {
                        "who": name,
                        "part": cohort,
                        "task": task,
                        "metric": metric,
                        "value": _known(one.result.estimate.value),
                        "low": _known(interval.low),
                        "high": _known(interval.high),
                        "n": len(one.sample.strata),
                    }
                )
    if len(judged) < 2:
        return rows, []
    table = paired_differences(judged, default, study.evaluation.confidence)
    mine = (
        (table["cohort"] != ALL)
        & (table["predictor"] == MODEL)
        & (table["class"] == "")
        & (table["metric"] == table["task"].map(leading))
    )
    kept = table.loc[mine, ["cohort", "task", "metric", "difference", "low", "high", "p", "p_holm", "method"]]
    return rows, [{key: _known(value) for key, value in row.items()} for row in kept.to_dict("records")]


def _inner(trial: Trial, prepared: Prepared) -> list[dict[str, Any]]:
    """What inner validation said, with two standard errors over folds on either side."""
    rows = []
    scored = {patient for fold in prepared.material.folds for patient in fold.test}
    for task in prepared.study.tasks:
        metric = SCORES[task.type][0]
        name = f"val/{task.name}/{metric}"
        centre, spread = trial.means.get(name, float("nan")), 2 * trial.spread(name)
        rows.append(
            {
                "who": trial.name,
                "part": "inner validation",
                "task": task.name,
                "metric": metric,
                "value": _known(centre),
                "low": _known(centre - spread),
                "high": _known(centre + spread),
                "n": len(scored),
            }
        )
    return rows


def _known(value: Any) -> Any:
    """JSON has no NaN."""
    return None if isinstance(value, float) and value != value else value


def final_folder(search: Path, trial: Trial) -> Path:
    """Where a trial that was measured keeps its folds, predictions and metrics."""
    return search / "final" / trial.name
