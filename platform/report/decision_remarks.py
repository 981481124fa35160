"""What a model decides at the cut-offs of validation: whether it tells anybody apart, in each set of patients.

A good ranking can hide that a cut-off is useless: with scores that lie higher elsewhere a model with an external AUROC
of .8 may call every patient positive. Binary tasks are read from the 2x2 tables of the evaluation, the groups of
survival from the predictions table, with the cut-offs of the Kaplan-Meier curves.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from equipoise.platform.evaluation.predictions import labelled
from equipoise.platform.evaluation.thresholds import (
    apply_cutoffs,
    ensemble,
    fold_risk_cutoffs,
    risk_scales,
    standardise_risks,
)
from equipoise.platform.report.datasets import datasets_of
from equipoise.platform.report.formatting import count, number, plural
from equipoise.platform.report.run_files import RunFiles, Task

#: A regression predicts the same for everybody if its predictions vary less than this share of what they should.
_CONSTANT = 0.01


@dataclass(frozen=True)
class Decisions:
    """How the labelled patients of one data set were decided on.

    Parameters
    ----------
    dataset
        ``the test folds``, or the name of an external cohort.
    patients, called
        Labelled patients, and how many of them the model calls positive (survival: high risk).
    positive, found
        Truly positive patients, and how many of them it calls so; None for survival.
    """

    dataset: str
    patients: int
    called: int
    positive: int | None = None
    found: int | None = None


def decisions(run: RunFiles, task: Task) -> list[Decisions]:
    """Decisions of a binary or survival task: test folds, then external cohorts; empty without a cut-off."""
    if task.kind == "binary":
        return [*_at_the_operating_point(run, task)]
    return [*_risk_groups(run, task)] if task.kind == "survival" else []


def _at_the_operating_point(run: RunFiles, task: Task) -> Iterator[Decisions]:
    """From the 2x2 tables of the operating point of headlines, as the evaluation wrote them."""
    for data in datasets_of(run.operating_points, task.name):
        headline = data.rows[data.rows["headline"].astype(str) == "True"]
        if headline.empty:
            continue
        tp, fp, fn, tn = (int(headline[cell].iloc[0]) for cell in ("tp", "fp", "fn", "tn"))
        if patients := tp + fp + fn + tn:
            yield Decisions(_name(data.role, data.cohort), patients, tp + fp, tp + fn, tp)


def _risk_groups(run: RunFiles, task: Task) -> Iterator[Decisions]:
    """The groups of the Kaplan-Meier curves; risks of several models are put on a common scale."""
    if run.predictions is None:
        return
    rows = run.predictions[run.predictions["task"] == task.name]
    known = rows[labelled(rows)]
    cutoffs, scales = fold_risk_cutoffs(rows), risk_scales(rows)
    outside, outside_cutoffs = known[known["role"] == "external"], cutoffs
    if len(scales):
        outside = standardise_risks(outside, scales)
        outside_cutoffs = fold_risk_cutoffs(standardise_risks(rows, scales))
    parts = [("test", "", known[known["role"] == "test"], cutoffs)]
    parts += [
        ("external", str(name), part, outside_cutoffs) for name, part in outside.groupby("cohort", sort=True)
    ]
    for role, cohort, part, chosen in parts:
        table = apply_cutoffs(part, chosen, inclusive=False).dropna(subset=["margin"])
        if len(table):
            yield Decisions(_name(role, cohort), len(table), int(table["positive"].to_numpy(bool).sum()))


def _name(role: str, cohort: str) -> str:
    return "the test folds" if role == "test" else cohort


def decision_remarks(run: RunFiles) -> list[str]:
    """A sentence for each task and set of patients in which a model does not tell anybody apart."""
    return [sentence for task in run.tasks for sentence in remarks_of(run, task)]


def remarks_of(run: RunFiles, task: Task) -> list[str]:
    """The sentences about one task."""
    return [sentence for _, sentence in _remarks(run, task)]


def not_separated(run: RunFiles, task: Task) -> list[str]:
    """The sets of patients in which the model does not tell anybody apart: ``the test folds``, names of cohorts."""
    return [dataset for dataset, _ in _remarks(run, task)]


def _remarks(run: RunFiles, task: Task) -> Iterator[tuple[str, str]]:
    """(data set, sentence) of a task."""
    if task.kind == "survival":
        for one in decisions(run, task):
            if one.patients > 1 and one.called in (0, one.patients):
                group = "high" if one.called else "low"
                yield (
                    one.dataset,
                    f"{task.name}: at the cut-off chosen on validation patients, all {count(one.patients)} patients of "
                    f"{one.dataset} are {group} risk: the groups have no meaning there.",
                )
    elif task.kind == "binary":
        for one in decisions(run, task):
            if one.patients > 1 and (sentence := _binary(one)):
                yield one.dataset, f"{task.name}: at the threshold chosen on validation patients, {sentence}"
    elif run.predictions is not None:
        rows = run.predictions[run.predictions["task"] == task.name]
        rows = rows[labelled(rows)]
        for name, part in _datasets(rows):
            sentence = _one_class(name, part) if task.kind == "multiclass" else _one_value(name, part)
            if sentence:
                yield name, f"{task.name}: {sentence}"


def _binary(one: Decisions) -> str:
    if one.called == 0:
        missed = f"; {_of_positive(one)} missed" if one.positive else ""
        return (
            f"the model calls none of the {count(one.patients)} patients of {one.dataset} positive{missed}."
        )
    if one.called == one.patients:
        return f"the model calls all {count(one.patients)} patients of {one.dataset} positive."
    if one.positive and not one.found:
        return (
            f"the model finds none of the {plural(one.positive, 'positive patient')} of {one.dataset} "
            f"(sensitivity 0), though it calls {plural(one.called, 'patient')} positive."
        )
    negative = one.patients - (one.positive or 0)
    if negative and one.called - (one.found or 0) == negative:
        return (
            f"the model calls every negative patient of {one.dataset} positive (specificity 0, "
            f"{plural(negative, 'negative patient')})."
        )
    return ""


def _of_positive(one: Decisions) -> str:
    positive = one.positive or 0
    return "its one positive patient is" if positive == 1 else f"all {count(positive)} positive ones are"


def _datasets(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Test rows, and the mean scores of each external cohort."""
    test = rows[rows["role"] == "test"]
    if len(test):
        yield "the test folds", test
    for name, part in rows[rows["role"] == "external"].groupby("cohort", sort=True):
        yield str(name), ensemble(part)


def _one_class(dataset: str, part: pd.DataFrame) -> str:
    """That one class has the highest probability for everybody, while the patients are of several."""
    wide = part.pivot_table(index=["patient", "repeat", "fold"], columns="class", values="score")
    truth = part[part["target"] == 1]["class"].nunique()
    chosen = wide.idxmax(axis=1).unique()
    if len(wide) < 2 or truth < 2 or len(chosen) > 1:
        return ""
    return f"every one of the {count(len(wide))} patients of {dataset} is predicted to be {chosen[0]}."


def _one_value(dataset: str, part: pd.DataFrame) -> str:
    """That the same value is predicted for everybody, while the patients differ."""
    inside = part.groupby(["repeat", "fold"])[["score", "target"]].std(ddof=0)
    spread, wanted = (float(np.sqrt((inside[name] ** 2).mean())) for name in ("score", "target"))
    if len(part) < 2 or not wanted > 0 or spread > _CONSTANT * wanted:
        return ""
    return (
        f"the model predicts nearly the same value for all {count(part['patient'].nunique())} patients of {dataset} "
        f"(standard deviation {number(spread)}, of the measured values {number(wanted)})."
    )
