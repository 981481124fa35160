"""Is the predicted risk an independent predictor? Cox models of the risk alone and beside the study's covariates.

Hazard ratios are per standard deviation of the risk and of numeric covariates, and against the most frequent value of a
category. Baseline hazards are stratified by cohort; models are fitted through lifelines (Efron's ties). Risks of
several models are put on a common scale by their validation patients
(:func:`~equipoise.platform.evaluation.thresholds.standardise_risks`), then averaged.

Source: Cox (1972); for ten events per term Peduzzi, Concato, Kemper, Holford and Feinstein (1996), J Clin Epidemiol 49.
"""

import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from equipoise.datasets.errors import DataError
from equipoise.platform.evaluation.csv_tables import write_table
from equipoise.platform.evaluation.predictions import kind_of, labelled
from equipoise.platform.evaluation.thresholds import risk_scales, standardise_risks

#: One row per term of a model; ``model`` is ``risk alone`` or ``adjusted``, ``role`` test or external.
COX_COLUMNS = (
    "role", "task", "model", "term", "unit", "hr", "low", "high", "p", "n", "events", "strata", "note",
)  # fmt: skip
#: Name of the predicted risk among the terms.
RISK = "predicted risk"
#: Events per term below which a model is called unstable.
ENOUGH_EVENTS = 10


def cox_table(
    predictions: pd.DataFrame, covariates: pd.DataFrame | None = None, confidence: float = 0.95
) -> pd.DataFrame:
    """Hazard ratios of the predicted risk on test folds and on external cohorts, columns ``COX_COLUMNS``.

    Parameters
    ----------
    predictions
        The predictions table.
    covariates
        ``[patients, columns]`` numbers, ``COLUMN=VALUE`` of 0 and 1 for categories, NaN = missing; patients with a
        missing value are left out of the adjusted model, and the note says how many.
    confidence
        Level of the intervals.
    """
    rows: list[dict[str, object]] = []
    for task, of_task in predictions.groupby("task", sort=True):
        if kind_of(of_task) != "survival":
            continue
        for role in ("test", "external"):
            patients = _patients(of_task, role)
            if len(patients):
                key = {"role": role, "task": str(task)}
                rows += [key | row for row in _models(patients, covariates, confidence)]
    return pd.DataFrame(rows, columns=list(COX_COLUMNS)).astype({"n": "Int64", "events": "Int64"})


def write_cox_table(table: pd.DataFrame, folder: Path) -> Path:
    """Write ``cox.csv`` below ``folder``."""
    return write_table(table, folder / "cox.csv")


def read_cox_table(path: Path) -> pd.DataFrame:
    """Read ``cox.csv``.

    Raises
    ------
    DataError
        If columns are missing.
    """
    table = pd.read_csv(path, keep_default_na=False, na_values={c: [""] for c in ("hr", "low", "high", "p")})
    if missing := [c for c in COX_COLUMNS if c not in table]:
        raise DataError(
            f"the Cox table lacks the columns {', '.join(missing)}",
            where=str(path),
            fix="run 'equipoise evaluate'",
        )
    return table


def _patients(rows: pd.DataFrame, role: str) -> pd.DataFrame:
    """One row per labelled patient: ``risk`` on a common scale, ``time``, ``event``, ``cohort``."""
    scales = risk_scales(rows)
    part = rows[(rows["role"] == role) & labelled(rows)]
    if len(scales):
        part = standardise_risks(part, scales)
    of_patient = part.groupby("patient", sort=True)
    table = of_patient[["time", "event", "cohort"]].first()
    return table.assign(risk=of_patient["score"].mean())


def _models(
    patients: pd.DataFrame, covariates: pd.DataFrame | None, confidence: float
) -> Iterator[dict[str, object]]:
    risk = pd.DataFrame({RISK: patients["risk"]})
    yield from _fit("risk alone", patients, risk, confidence)
    if covariates is None or covariates.empty:
        return
    table = covariates.reindex(patients.index).astype(float)
    complete = table.dropna()
    terms = pd.concat([risk.loc[complete.index], _without_reference(complete)], axis=1)
    missing = len(patients) - len(complete)
    note = f"{missing} patients lack a covariate and are left out" if missing else ""
    yield from _fit("adjusted", patients.loc[complete.index], terms, confidence, note)


def _without_reference(table: pd.DataFrame) -> pd.DataFrame:
    """Numbers, and of each category all values but the most frequent; columns that do not vary are left out."""
    columns = list(table.columns)
    categories = {name.partition("=")[0] for name in columns if "=" in name}
    for category in categories:
        values = [name for name in columns if name.partition("=")[0] == category and "=" in name]
        columns.remove(max(values, key=lambda name: float(table[name].sum())))
    return table[[name for name in columns if table[name].nunique() > 1]]


def _fit(
    model: str, patients: pd.DataFrame, terms: pd.DataFrame, confidence: float, note: str = ""
) -> Iterator[dict[str, object]]:
    """Rows of one model, with the reason in place of numbers where it cannot be fitted."""
    events = int(patients["event"].sum())
    several = patients["cohort"].nunique() > 1
    base: dict[str, object] = {"model": model, "n": len(patients), "events": events}
    base["strata"] = "cohort" if several else ""
    unit = {name: "value" if "=" in name else "SD" for name in terms}
    spread = terms.std(ddof=1)
    scaled = terms / pd.Series({name: spread[name] if unit[name] == "SD" else 1.0 for name in terms})
    few = (
        f"fewer than {ENOUGH_EVENTS} events per term: unstable" if events < ENOUGH_EVENTS * len(unit) else ""
    )
    reason = "" if events and spread[RISK] > 0 else "no event, or every patient has the same risk"
    fitted = None if reason else fit_cox(patients, scaled, confidence, several=several)
    if fitted is None:
        reason = reason or "the fit did not converge"
    for position, name in enumerate(terms):
        values = dict.fromkeys(("hr", "low", "high", "p"), float("nan"))
        if fitted is not None:
            values = dict(zip(values, fitted[position], strict=True))
        said = "; ".join(part for part in (reason and f"not estimable: {reason}", note, few) if part)
        yield base | values | {"term": name, "unit": unit[name], "note": said}


def fit_cox(
    patients: pd.DataFrame, terms: pd.DataFrame, confidence: float, *, several: bool
) -> np.ndarray | None:
    """Cox's model through lifelines, Efron's ties.

    Parameters
    ----------
    patients
        Columns ``time``, ``event``, ``cohort``; rows as in ``terms``, whose columns are the covariates.
    several
        A baseline hazard per cohort.

    Returns
    -------
    ``[terms, 4]`` hazard ratio, bounds and p; None without convergence.
    """
    from lifelines import CoxPHFitter
    from lifelines.exceptions import ConvergenceError, ConvergenceWarning

    table = terms.set_axis([f"x{k}" for k in range(terms.shape[1])], axis=1)
    table = table.assign(time=patients["time"], event=patients["event"], cohort=patients["cohort"])
    fitter = CoxPHFitter(alpha=1 - confidence, strata=["cohort"] if several else None)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)
            fitter.fit(table if several else table.drop(columns="cohort"), "time", "event")
    except (ConvergenceError, ConvergenceWarning):
        return None
    interval = np.exp(fitter.confidence_intervals_.to_numpy())
    p = fitter.summary["p"].to_numpy()
    return np.column_stack([np.exp(fitter.params_.to_numpy()), interval, p])
