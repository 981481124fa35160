"""Sentences about results, limited to what the interval supports."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from equipoise.platform.report.formatting import (
    estimand_of,
    estimate,
    interval,
    label,
    number,
    percent,
    plural,
    procedure_interval,
)

ChanceComparison = Literal["above", "below", "unclear", "unknown"]

#: Number of positives or events below which a result is called an indication.
FEW_CASES = 30

#: What the two intervals of a table of metrics are for.
ESTIMANDS = (
    "in brackets the interval for these models on new patients of the same kind (external: this ensemble), below it "
    "the interval for the procedure, trained on other patients."
)


def compare_with_chance(row: Mapping[str, Any], chance: float | None) -> ChanceComparison:
    """Position of a row's interval relative to a predictor without information."""
    if chance is None or not math.isfinite(row["low"]) or not math.isfinite(row["high"]):
        return "unknown"
    if row["low"] > chance:
        return "above"
    return "below" if row["high"] < chance else "unclear"


def few_cases(row: Mapping[str, Any]) -> str:
    """``12 events``: the little that a row rests on; empty if it is not little.

    Little is fewer than :data:`FEW_CASES` events, or patients of the rarer class, and fewer than twice as many patients
    where nothing is counted as positive (regression, all classes of a task together). The interval of so few is itself
    uncertain: neither words nor colours may claim what it seems to show.
    """
    n: Any = row["n"]
    cases: Any = row.get("n_pos")
    if not _known(cases):
        return plural(int(n), "patient") if _known(n) and n < 2 * FEW_CASES else ""
    if row["kind"] == "survival":
        return plural(int(cases), "event") if cases < FEW_CASES else ""
    negative = n - cases
    if min(cases, negative) >= FEW_CASES:
        return ""
    what = "positive" if cases <= negative else "negative"
    return plural(int(min(cases, negative)), f"{what} patient")


def verdict_sentence(
    task: str,
    metric: str,
    internal: Mapping[str, Any] | None,
    externals: Sequence[Mapping[str, Any]],
    *,
    folds: int,
    chance: float | None,
    confidence: float,
) -> str:
    """The main result and whether external cohorts confirm it, in one or two sentences.

    Parameters
    ----------
    internal, externals
        Rows of the metrics table for the main metric; internal is None if there are no test predictions.
    chance
        Value of a predictor without information on the internal test folds.
    """
    if internal is None:
        return f"There is no cross-validation result for {task} yet."
    if not math.isfinite(internal["value"]):
        return f"{label(metric)} for {task} is not estimable: {internal['note'] or 'no reason recorded'}."
    where = f"Over {plural(folds, 'test fold')}" if folds > 1 else "On the test patients"
    ci = f" ({percent(confidence)} CI {_intervals(internal)})" if _bounded(internal) else ""
    first = (
        f"{where}, {label(metric)} for {task} is {number(internal['value'], 2)}{ci}{_claim(internal, chance)}"
    )
    return f"{first}; {_external_clause(internal, externals, chance)}."


def verdict_caution(
    internal: Mapping[str, Any] | None, externals: Sequence[Mapping[str, Any]], *, synthetic: bool
) -> str:
    """The main limit of the verdict as evidence; empty if there is no obvious one."""
    if synthetic:
        return (
            "The data are synthetic: the numbers show that the software works and say nothing about patients."
        )
    if internal is not None and (few := few_cases(internal)):
        return f"It rests on {few}: an indication to follow up, not evidence."
    if not externals:
        return "Before use, the model must be tested on patients of another hospital."
    return ""


def _intervals(row: Mapping[str, Any]) -> str:
    """``0.82–0.92 for these 5 models, 0.80–0.93 for the procedure that trained them``."""
    text = interval(row["low"], row["high"], 2)
    if models := estimand_of(row):
        text += f" for {models}"
    if procedure := procedure_interval(row, 2):
        text += f", {procedure} for the procedure that trained them"
    return text


def _claim(row: Mapping[str, Any], chance: float | None) -> str:
    if chance is None:
        return ""
    claims = {
        "above": f", better than a predictor without information ({number(chance, 2)})",
        "below": f", worse than a predictor without information ({number(chance, 2)})",
        "unclear": f", which does not differ significantly from a predictor without information ({number(chance, 2)})",
        "unknown": ", without an estimable interval",
    }
    return claims[compare_with_chance(row, chance)]


def _external_clause(
    internal: Mapping[str, Any], externals: Sequence[Mapping[str, Any]], chance: float | None
) -> str:
    """External cohorts against the internal interval."""
    known = [r for r in externals if math.isfinite(r["value"])]
    if not externals:
        return (
            "no external cohort was tested, so there is no evidence that this generalises to another hospital"
        )
    if not known:
        return "it could not be estimated in any external cohort"
    parts = [f"{r['cohort']} reaches {estimate(r, 2)}" for r in known[:3]]
    rest = f" and {len(known) - 3} further cohorts are listed below" if len(known) > 3 else ""
    lower = [r for r in known if _bounded(internal) and r["value"] < internal["low"]]
    if lower:
        tail = ", below the internal interval: expect lower performance elsewhere"
    elif any(compare_with_chance(r, chance) in ("unclear", "below") for r in known):
        tail = ", where the interval includes chance"
    else:
        tail = ""
    return f"externally, {', '.join(parts)}{rest}{tail}"


def _bounded(row: Mapping[str, Any]) -> bool:
    return math.isfinite(row["low"]) and math.isfinite(row["high"])


def _known(value: Any) -> bool:
    try:
        return math.isfinite(float(value))
    except (TypeError, ValueError):
        return False
