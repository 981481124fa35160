"""Numbers for readers: fixed decimals, a true minus sign, narrow spaces between thousands."""

import math
from collections.abc import Mapping
from typing import Any

#: Metric → label in tables and sentences.
LABELS = {
    "auroc": "AUROC",
    "auprc": "AUPRC",
    "balanced_accuracy": "Balanced accuracy",
    "sensitivity": "Sensitivity",
    "specificity": "Specificity",
    "threshold": "Threshold",
    "ppv": "PPV",
    "npv": "NPV",
    "accuracy": "Accuracy",
    "calibration_slope": "Calibration slope",
    "calibration_intercept": "Calibration intercept",
    "ece": "Calibration error (ECE)",
    "brier": "Brier score",
    "pearson": "Pearson r",
    "r2": "R²",
    "mae": "MAE",
    "c_index": "Harrell C",
    "c_stratified": "C, pairs within strata",
    "c_uno": "Uno C",
    "auc_dynamic": "Time-dependent AUC",
    "ibs": "Integrated Brier score (lower is better)",
    "silhouette_cosine": "Silhouette, cosine",
    "silhouette_euclidean": "Silhouette, Euclidean",
}
NOT_ESTIMABLE = "not estimable"
_THIN = "\u202f"
_MINUS = "\u2212"


def label(metric: str) -> str:
    """Name of a metric for readers."""
    return LABELS.get(metric, metric)


def number(value: float | None, decimals: int = 3) -> str:
    """``0.873``, ``−1.20``; "not estimable" for NaN. Large values get fewer decimals."""
    if value is None or not math.isfinite(value):
        return NOT_ESTIMABLE
    if abs(value) >= 1000:
        return count(round(value))
    if abs(value) >= 10:
        decimals = min(decimals, 1)
    text = f"{value:.{decimals}f}"
    if float(text) == 0:
        text = text.lstrip("-")
    return text.replace("-", _MINUS)


def count(value: float | int | None) -> str:
    """``12 345`` with narrow spaces; an en dash if unknown."""
    if value is None or not math.isfinite(float(value)):
        return "–"
    return f"{int(value):,}".replace(",", _THIN).replace("-", _MINUS)


def interval(low: float, high: float, decimals: int = 3) -> str:
    """``0.81–0.92``; with a minus sign in it, ``−0.10 to 0.20``."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return NOT_ESTIMABLE
    joint = " to " if low < 0 else "–"
    return f"{number(low, decimals)}{joint}{number(high, decimals)}"


def estimate(row: Mapping[str, Any], decimals: int = 3) -> str:
    """``0.87 (0.81–0.92)`` of a row of the metrics table."""
    if not math.isfinite(row["value"]):
        return NOT_ESTIMABLE
    if not math.isfinite(row["low"]):
        return number(row["value"], decimals)
    return f"{number(row['value'], decimals)} ({interval(row['low'], row['high'], decimals)})"


def procedure_interval(row: Mapping[str, Any], decimals: int = 3) -> str:
    """``0.79–0.93``, the bounds for the procedure that trained the models; empty if the row has none."""
    low, high = (row.get(name) for name in ("low_procedure", "high_procedure"))
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return ""
    return interval(low, high, decimals)


def estimand_of(row: Mapping[str, Any]) -> str:
    """``these 5 models``: what the interval of a row is for; empty if the row does not say so."""
    return str(row.get("estimand") or "").partition(";")[0]


def p_value(p: float) -> str:
    """``p = 0.032``, ``p < 0.001``."""
    if not math.isfinite(p):
        return f"p {NOT_ESTIMABLE}"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def percent(share: float) -> str:
    """``12 %``; below one percent one decimal."""
    if not math.isfinite(share):
        return "–"
    return f"{share:.1%}".replace("%", " %") if 0 < share < 0.01 else f"{share:.0%}".replace("%", " %")


def plural(n: int, one: str, many: str | None = None) -> str:
    """``1 slide``, ``3 slides``."""
    return f"{count(n)} {one if n == 1 else many or one + 's'}"


def listed(items: list[str], most: int = 4) -> str:
    """``a, b and c``; the items beyond ``most`` are counted."""
    if len(items) > most:
        return f"{', '.join(items[:most])} and {len(items) - most} more"
    return " and ".join([", ".join(items[:-1]), items[-1]]) if len(items) > 1 else "".join(items)
