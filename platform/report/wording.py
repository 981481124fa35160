"""Sentences about results: what the interval allows to say, and not more."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from equipoise.platform.report.formatting import count, estimate, label, number, percent, plural

Standing = Literal["above", "below", "unclear", "unknown"]

#: Positives or events below which a result is called an indication.
FEW_CASES = 30


def standing(row: Mapping[str, Any], chance: float | None) -> Standing:
    """Where the interval of a row lies relative to a predictor without information."""
    if chance is None or not math.isfinite(row["low"]) or not math.isfinite(row["high"]):
        return "unknown"
    if row["low"] > chance:
        return "above"
    return "below" if row["high"] < chance else "unclear"


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
    """What the main result says and how far it carries, in one or two sentences.

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
    ci = f" ({percent(confidence)} CI {estimate(internal, 2).partition('(')[2]}" if _bounded(internal) else ""
    first = (
        f"{where}, {label(metric)} for {task} is {number(internal['value'], 2)}{ci}{_claim(internal, chance)}"
    )
    return f"{first}; {_abroad(internal, externals, chance)}."


def caution(
    internal: Mapping[str, Any] | None, externals: Sequence[Mapping[str, Any]], *, synthetic: bool
) -> str:
    """The first thing that keeps the verdict from being evidence; empty if nothing obvious does."""
    if synthetic:
        return "The data are synthetic: the numbers show that the software works, nothing about patients."
    cases = None if internal is None else internal["n_pos"]
    if internal is not None and cases is not None and _known(cases) and cases < FEW_CASES:
        what = "events" if internal["kind"] == "survival" else "positive patients"
        return f"It rests on {count(cases)} {what}: an indication to follow up, not evidence."
    if internal is not None and internal["n"] < 2 * FEW_CASES:
        return f"It rests on {count(internal['n'])} patients: an indication to follow up, not evidence."
    if not externals:
        return "Before use, the model must be tested on patients of another hospital."
    return ""


def _claim(row: Mapping[str, Any], chance: float | None) -> str:
    if chance is None:
        return ""
    words = {
        "above": f", better than a predictor without information ({number(chance, 2)})",
        "below": f", worse than a predictor without information ({number(chance, 2)})",
        "unclear": f", which cannot be told apart from a predictor without information ({number(chance, 2)})",
        "unknown": ", with no interval that could be estimated",
    }
    return words[standing(row, chance)]


def _abroad(internal: Mapping[str, Any], externals: Sequence[Mapping[str, Any]], chance: float | None) -> str:
    """External cohorts against the internal interval."""
    known = [r for r in externals if math.isfinite(r["value"])]
    if not externals:
        return "no external cohort was tested, so nothing shows that this carries over to another hospital"
    if not known:
        return "in no external cohort could it be estimated"
    parts = [f"{r['cohort']} reaches {estimate(r, 2)}" for r in known[:3]]
    rest = f" and {len(known) - 3} further cohorts are listed below" if len(known) > 3 else ""
    lower = [r for r in known if _bounded(internal) and r["value"] < internal["low"]]
    if lower:
        tail = ", below the internal interval: expect a loss elsewhere"
    elif any(standing(r, chance) in ("unclear", "below") for r in known):
        tail = ", where chance is not excluded"
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
