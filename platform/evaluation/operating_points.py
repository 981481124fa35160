"""Decisions at thresholds that were fixed on validation patients: 2x2 tables and the shares that are read from them.

Every patient is decided once: at the threshold of the model that did not train on it, or for an external cohort by
the mean score of the fold models against their mean threshold. Counts are therefore whole patients, and shares of
them differ a little from the means over folds in the metrics table. Intervals are Wilson's; the patients of a
cross-validation, who also trained the models of the other folds, count as fewer
(:attr:`~equipoise.platform.evaluation.pooled.Pooled.factor`). PPV and NPV hold at the share of positives of these
patients and at no other.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from equipoise.platform.evaluation.intervals import wilson
from equipoise.platform.evaluation.params import EvaluationParams, ThresholdParams
from equipoise.platform.evaluation.pooled import identity, variance_factor
from equipoise.platform.evaluation.predictions import kind_of, labelled
from equipoise.platform.evaluation.samples import Sample
from equipoise.platform.evaluation.thresholds import apply_cutoffs, fold_thresholds

#: ``point`` is the rule; ``headline`` marks that of ``evaluation.threshold``; ``threshold`` is the mean over folds;
#: ``successes`` of ``n`` patients are the ``value``.
OPERATING_COLUMNS = (
    "role", "cohort", "task", "class", "point", "headline", "threshold", "metric", "value", "low", "high",
    "successes", "n", "tp", "fp", "fn", "tn", "note",
)  # fmt: skip
#: Shares of a 2x2 table, in the order of tables.
SHARES = ("sensitivity", "specificity", "ppv", "npv", "accuracy")


@dataclass(frozen=True)
class TwoByTwo:
    """Whole patients: positives called positive, negatives called positive, and those called negative."""

    tp: int
    fp: int
    fn: int
    tn: int

    def share(self, name: str) -> tuple[int, int]:
        """Successes, and of how many patients.

        >>> TwoByTwo(8, 5, 2, 85).share("ppv")
        (8, 13)
        """
        return {
            "sensitivity": (self.tp, self.tp + self.fn),
            "specificity": (self.tn, self.tn + self.fp),
            "ppv": (self.tp, self.tp + self.fp),
            "npv": (self.tn, self.tn + self.fn),
            "accuracy": (self.tp + self.tn, self.tp + self.fp + self.fn + self.tn),
        }[name]

    @property
    def one_sided(self) -> str:
        """``nobody`` or ``everybody`` is called positive; empty if some are."""
        called, others = self.tp + self.fp, self.fn + self.tn
        return "nobody" if called == 0 and others else "everybody" if others == 0 and called else ""


def rules(params: EvaluationParams) -> list[ThresholdParams]:
    """The operating point of headlines first, then the others without repetition."""
    return [params.threshold, *(rule for rule in params.operating_points if rule != params.threshold)]


def operating_points(
    samples: Sequence[Sample], predictions: pd.DataFrame, params: EvaluationParams
) -> pd.DataFrame:
    """Every operating point of every binary task, in the test folds and each external cohort.

    Parameters
    ----------
    samples
        Result of :func:`~equipoise.platform.evaluation.pooled.pooled_samples` of the predictions.
    predictions
        The predictions table, whose validation rows thresholds are chosen on.
    params
        The operating points.

    Returns
    -------
    Columns ``OPERATING_COLUMNS``; a share of nobody, such as the PPV where nobody is called positive, is NaN and
    ``note`` says why.
    """
    lines: list[dict] = []
    decided: dict[tuple[str, str, str], pd.DataFrame] = {}
    for sample in samples:
        for rule in rules(params) if sample.kind == "binary" else ():
            key = (sample.task, rule.label, sample.role)
            if key not in decided:
                decided[key] = decisions(predictions[predictions["task"] == sample.task], rule, sample.role)
            lines += _of_rule(sample, decided[key], rule, params)
    return pd.DataFrame(lines, columns=list(OPERATING_COLUMNS))


def decisions(rows: pd.DataFrame, rule: ThresholdParams, role: str) -> pd.DataFrame:
    """The decision for every labelled patient of a role, from all rows of one binary task.

    Returns
    -------
    Index patient; columns ``score`` (mean over the models that predict the patient), ``margin`` (to the threshold),
    ``positive``, ``target``, ``cohort``, ``site``, ``threshold`` (mean over the folds). Patients of folds without a
    threshold are left out.
    """
    part, cutoffs = rows[(rows["role"] == role) & labelled(rows)], fold_thresholds(rows, rule)
    decided = apply_cutoffs(part, cutoffs, inclusive=True)
    decided["score"] = part.groupby("patient")["score"].mean()
    return decided.assign(threshold=cutoffs.mean()).dropna(subset=["margin"])


def _of_rule(
    sample: Sample, decided: pd.DataFrame, rule: ThresholdParams, params: EvaluationParams
) -> Iterator[dict]:
    everybody = set(sample.patients)
    here = decided[decided.index.astype(str).isin(everybody)]
    base = {
        **identity(sample, sample.classes[0]),
        "point": rule.label,
        "headline": rule == params.threshold,
        "threshold": float(here["threshold"].mean()),
    }
    positive, called = here["target"].to_numpy(float) == 1, here["positive"].to_numpy(bool)
    table = TwoByTwo(
        *(
            int(np.sum(t & c))
            for t, c in ((positive, called), (~positive, called), (positive, ~called), (~positive, ~called))
        )
    )
    notes = []
    if here.empty:
        notes.append("no threshold: no fold has validation patients of both classes")
    elif table.one_sided:
        notes.append(f"the threshold calls {table.one_sided} positive")
    if 0 < len(here) < len(everybody):
        notes.append(f"{len(everybody) - len(here)} patients of folds without a threshold are left out")
    for metric in SHARES:
        successes, n = table.share(metric)
        low, high = wilson(successes, n, params.confidence, variance_factor(sample))
        note = notes if n or here.empty else [*notes, f"not estimable: {_NOBODY[metric]}"]
        yield base | {
            "metric": metric, "value": successes / n if n else float("nan"), "low": low, "high": high,
            "successes": successes, "n": n, "tp": table.tp, "fp": table.fp, "fn": table.fn, "tn": table.tn,
            "note": "; ".join(note),
        }  # fmt: skip


_NOBODY = {
    "sensitivity": "no positive patient",
    "specificity": "no negative patient",
    "ppv": "nobody is called positive",
    "npv": "nobody is called negative",
    "accuracy": "no patient",
}


def misclassified(rows: pd.DataFrame, rule: ThresholdParams) -> pd.DataFrame:
    """Patients on the wrong side of the threshold, the most confident errors first.

    Parameters
    ----------
    rows
        All rows of one binary or multiclass task. In a multiclass task a patient is in the class with the highest
        mean score, and the margin is the distance to the score of the true class.

    Returns
    -------
    Columns ``patient``, ``role``, ``cohort``, ``actual``, ``called``, ``score`` (of the class that is called) and
    ``margin``, a probability by which the decision would have to move.
    """
    parts = [
        (_binary_errors if kind_of(rows) == "binary" else _class_errors)(rows, rule, role)
        for role in ("test", "external")
    ]
    table = pd.concat([p for p in parts if len(p)] or parts[:1], ignore_index=True)
    return table.sort_values(["margin", "patient"], ascending=[False, True], ignore_index=True)


def _binary_errors(rows: pd.DataFrame, rule: ThresholdParams, role: str) -> pd.DataFrame:
    decided = decisions(rows, rule, role)
    name = str(rows["class"].iloc[0])
    wrong = decided[decided["positive"] != (decided["target"] == 1)]
    names = np.array([f"not {name}", name])
    called = wrong["positive"].to_numpy(int)
    return pd.DataFrame(
        {
            "patient": wrong.index, "role": role, "cohort": wrong["cohort"].to_numpy(),
            "actual": names[1 - called], "called": names[called],
            "score": np.where(called == 1, wrong["score"], 1 - wrong["score"]),
            "margin": wrong["margin"].abs().to_numpy(),
        }
    )  # fmt: skip


def _class_errors(rows: pd.DataFrame, rule: ThresholdParams, role: str) -> pd.DataFrame:
    part = rows[(rows["role"] == role) & labelled(rows)]
    scores = part.pivot_table(index="patient", columns="class", values="score", aggfunc="mean")
    labels = part.pivot_table(index="patient", columns="class", values="target", aggfunc="first")
    if scores.empty:
        return pd.DataFrame(columns=["patient", "role", "cohort", "actual", "called", "score", "margin"])
    said, true = scores.to_numpy().argmax(1), labels.to_numpy().argmax(1)
    wrong = np.flatnonzero(said != true)
    names = scores.columns.to_numpy(str)
    cohort = part.drop_duplicates("patient").set_index("patient")["cohort"]
    values = scores.to_numpy()
    return pd.DataFrame(
        {
            "patient": scores.index[wrong], "role": role, "cohort": cohort.loc[scores.index[wrong]].to_numpy(),
            "actual": names[true[wrong]], "called": names[said[wrong]], "score": values[wrong, said[wrong]],
            "margin": values[wrong, said[wrong]] - values[wrong, true[wrong]],
        }
    )  # fmt: skip
