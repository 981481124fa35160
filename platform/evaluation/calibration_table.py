"""Tables of calibration: how probabilities compare with what happened, for every class, test folds and external cohort.

``calibration.csv`` has slope, intercept, Brier score and expected calibration error with intervals,
``calibration_curves.csv`` the curves behind them (:mod:`~.probability_calibration`).
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import pandas as pd

from equipoise.platform.evaluation.params import EvaluationParams
from equipoise.platform.evaluation.pooled import Pooled, pooled_classes
from equipoise.platform.evaluation.probability_calibration import (
    Estimate,
    brier_score,
    calibration_curve,
    calibration_intercept,
    calibration_slope,
    expected_calibration_error,
)
from equipoise.platform.evaluation.samples import Sample

#: ``reference`` is the value of a perfectly calibrated model; of the Brier score that of the share of positives.
CALIBRATION_COLUMNS = (
    "role", "cohort", "task", "class", "metric", "value", "low", "high", "reference", "n", "n_pos", "note",
)  # fmt: skip
CURVE_COLUMNS = (
    "role", "cohort", "task", "class", "kind", "predicted", "observed", "low", "high", "n", "n_pos",
)  # fmt: skip
#: Metric → what computes it, in the order of tables.
METRICS: Mapping[str, Callable[[Pooled, float], Estimate]] = MappingProxyType(
    {
        "calibration_slope": calibration_slope,
        "calibration_intercept": calibration_intercept,
        "ece": expected_calibration_error,
        "brier": brier_score,
    }
)


def calibration_table(samples: Sequence[Sample], params: EvaluationParams) -> pd.DataFrame:
    """Calibration of every class; columns ``CALIBRATION_COLUMNS``. What is not estimable is NaN with a reason."""
    lines = []
    for about, rows in pooled_classes(samples):
        counts = {"n": rows.patients, "n_pos": rows.events}
        for metric, compute in METRICS.items():
            lines.append({**about, "metric": metric, **compute(rows, params.confidence)._asdict(), **counts})
    return pd.DataFrame(lines, columns=list(CALIBRATION_COLUMNS))


def calibration_curves(samples: Sequence[Sample], params: EvaluationParams) -> pd.DataFrame:
    """Binned and smooth calibration curves of every class; columns ``CURVE_COLUMNS``."""
    curves = [
        calibration_curve(rows, params.confidence).assign(**about) for about, rows in pooled_classes(samples)
    ]
    parts = [curve for curve in curves if len(curve)]
    empty = pd.DataFrame(columns=list(CURVE_COLUMNS))
    return pd.concat(parts, ignore_index=True)[list(CURVE_COLUMNS)] if parts else empty
