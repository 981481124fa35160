"""Performance of a federation, pooled and per site, beside pooled, local and ensemble training.

Everything is computed from predictions tables by the same estimates as every other table of a run; in the test
part the client replaces the cohort. One row per (plan, method, role, scope, client, task); scopes:

- ``pooled``: all patients together (not for local models, because scores of different models do not compare);
- ``client``: the patients of one site, or one external cohort;
- ``mean``, ``weighted``, ``worst``: over the sites for which every method has a value: unweighted mean, mean weighted
  by labelled patients, smallest value.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd

from equipoise.platform.evaluation.estimates import metric_results
from equipoise.platform.evaluation.evaluate import all_samples
from equipoise.platform.evaluation.metric_definitions import PRIMARY
from equipoise.platform.evaluation.params import EvaluationParams
from equipoise.platform.evaluation.samples import ALL, MODEL, Sample
from equipoise.platform.federation.simulation.sites import Client

if TYPE_CHECKING:
    from equipoise.platform.federation.simulation.baselines import LocalModels

METHODS = ("federated", "pooled", "local", "ensemble")
#: Columns of ``federated/sites.csv``.
SITE_COLUMNS = (
    "plan", "method", "role", "scope", "client", "task", "kind", "metric",
    "value", "low", "high", "n", "n_pos", "note",
)  # fmt: skip
OVER_SITES = ("mean", "weighted", "worst")


@dataclass(frozen=True)
class PlanPredictions:
    """Predictions of one plan.

    Parameters
    ----------
    predictions
        Method → rows of all folds (``local``: each test patient predicted by the model of its own site).
    local
        Local models of every fold, for patients whose site has no local model.
    """

    predictions: Mapping[str, pd.DataFrame]
    local: Sequence[LocalModels]


def site_table(
    plan: str,
    predictions_of_plan: PlanPredictions,
    clients: Sequence[Client],
    params: EvaluationParams,
    seed: int,
) -> pd.DataFrame:
    """Rows of ``sites.csv`` for one plan.

    Parameters
    ----------
    plan
        Name of the plan.
    predictions_of_plan
        Predictions of each method.
    clients
        Clients and their patients.
    params, seed
        Bootstrap, confidence, smallest site; the same draws for all methods.
    """
    owner = {patient: client.name for client in clients for patient in client.patients}
    of_method: dict[str, list[dict[str, Any]]] = {}
    for method in METHODS:
        predictions = predictions_of_plan.predictions.get(method)
        rows: list[dict[str, Any]] = []
        if predictions is not None and len(predictions):
            rows = _estimates(of_clients(predictions, owner), params, seed, pooled=method != "local")
        if method == "local":
            known = {(row["role"], row["client"], row["task"]) for row in rows}
            rows += _on_other_sites(predictions_of_plan.local, owner, known, params, seed)
        if rows:
            of_method[method] = rows
    shared = _with_all_methods(of_method.values())
    rows = [
        {"plan": plan, "method": method} | row
        for method, rows in of_method.items()
        for row in (*rows, *_over_sites(rows, shared))
    ]
    table = pd.DataFrame(rows, columns=list(SITE_COLUMNS))
    return table.astype({"n": "Int64", "n_pos": "Int64", "value": float, "low": float, "high": float})


def of_clients(predictions: pd.DataFrame, owner: Mapping[str, str]) -> pd.DataFrame:
    """The table with the client as cohort and site; external patients keep their cohort."""
    client = predictions["patient"].map(owner).where(predictions["role"] != "external")
    client = client.fillna(predictions["cohort"])
    return predictions.assign(cohort=client, site=client)


def _estimates(
    predictions: pd.DataFrame, params: EvaluationParams, seed: int, *, pooled: bool
) -> list[dict[str, Any]]:
    """The primary metric of every task, for all patients and by client."""
    several = predictions.groupby("role")["cohort"].nunique()
    rows = []
    for sample in all_samples(predictions, params):
        if sample.role == "val" or sample.site != ALL or sample.predictor != MODEL:
            continue
        if sample.cohort == ALL:
            if pooled and sample.role == "test":
                rows.append(_row(sample, "pooled", params, seed))
        else:
            rows.append(_row(sample, "client", params, seed))
        if sample.cohort == ALL and sample.role == "test" and several["test"] == 1:
            # all_samples makes no sample per cohort for a role with a single one.
            only = str(predictions.loc[predictions["role"] == "test", "cohort"].iloc[0])
            rows.append(_row(sample, "client", params, seed) | {"client": only})
    return rows


def _row(sample: Sample, scope: str, params: EvaluationParams, seed: int) -> dict[str, Any]:
    metric = PRIMARY[sample.kind]
    keys = {"role": sample.role, "scope": scope, "client": sample.cohort if scope == "client" else ALL}
    row = keys | {"task": sample.task, "kind": sample.kind, "metric": metric, "n": len(sample.strata)}
    row |= {"n_pos": _positives(sample), "value": math.nan, "low": math.nan, "high": math.nan}
    if scope == "client" and len(sample.strata) < params.min_site:
        return row | {
            "note": f"{len(sample.strata)} labelled patients; sites below {params.min_site} get no metric"
        }
    result = next(
        r for r in metric_results(sample, params, seed, [metric]) if r.class_name == "" and r.metric == metric
    )
    interval = result.interval
    return row | {
        "value": result.estimate.value,
        "low": interval.low,
        "high": interval.high,
        "note": result.note,
    }


def _positives(sample: Sample) -> int | None:
    """Number of patients of the positive class, or with an event; None for other tasks."""
    if sample.kind not in ("binary", "survival"):
        return None
    positive: set[int] = set()
    for group in sample.groups:
        truth = group.event if sample.kind == "survival" else group.target[:, 0]
        positive.update(group.patient[truth == 1].tolist())
    return len(positive)


def _on_other_sites(
    folds: Sequence[LocalModels],
    owner: Mapping[str, str],
    known: set[tuple[str, str, str]],
    params: EvaluationParams,
    seed: int,
) -> list[dict[str, Any]]:
    """Local models on patients whose site has no local model: the mean of the values of the single models."""
    quick = params.model_copy(update={"bootstrap": 50})  # intervals of single models are not reported
    by_key: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for models in folds:
        for client, rows in models.predictions.items():
            rows_of_others = of_clients(rows[rows["role"] != "val"], owner)
            keys = zip(rows_of_others["role"], rows_of_others["cohort"], rows_of_others["task"], strict=True)
            rows_of_others = rows_of_others[[key not in known and key[1] != client for key in keys]]
            for row in _estimates(rows_of_others, quick, seed, pooled=False) if len(rows_of_others) else ():
                by_key.setdefault((row["role"], row["client"], row["task"]), []).append(row)
    rows = []
    for same in by_key.values():
        values = [row["value"] for row in same if not math.isnan(row["value"])]
        note = f"mean of {len(values)} models of other sites" if values else same[0]["note"]
        blank = {
            "value": math.fsum(values) / len(values) if values else math.nan,
            "low": math.nan,
            "high": math.nan,
        }
        rows.append(same[0] | blank | {"note": note})
    return rows


def _with_all_methods(of_method: Iterable[Sequence[dict[str, Any]]]) -> set[tuple[str, str]]:
    """(task, client) with a value for every method that has the task, over which means can be compared."""
    values: dict[tuple[str, str], int] = {}
    methods: dict[str, int] = {}
    for rows in of_method:
        known = {(r["task"], r["client"]) for r in rows if _is_site(r) and not math.isnan(r["value"])}
        for key in known:
            values[key] = values.get(key, 0) + 1
        for task in {task for task, _ in known}:
            methods[task] = methods.get(task, 0) + 1
    return {key for key, count in values.items() if count == methods[key[0]]}


def _is_site(row: Mapping[str, Any]) -> bool:
    return row["role"] == "test" and row["scope"] == "client"


def _over_sites(rows: Sequence[dict[str, Any]], shared: set[tuple[str, str]]) -> list[dict[str, Any]]:
    """Mean, weighted mean and worst value of every task over the sites with a value for all methods."""
    result = []
    for task in dict.fromkeys(row["task"] for row in rows if _is_site(row)):
        site_rows = [row for row in rows if _is_site(row) and row["task"] == task]
        known = [row for row in site_rows if (task, row["client"]) in shared and not math.isnan(row["value"])]
        if not known:
            continue
        n = sum(row["n"] for row in known)
        worst = min(known, key=lambda row: (row["value"], row["client"]))
        values = {
            "mean": math.fsum(row["value"] for row in known) / len(known),
            "weighted": math.fsum(row["n"] * row["value"] for row in known) / n,
            "worst": worst["value"],
        }
        left = f"{len(known)} of {len(site_rows)} sites" if len(known) < len(site_rows) else ""
        for scope in OVER_SITES:
            fields = {"scope": scope, "client": worst["client"] if scope == "worst" else ALL, "note": left}
            blank = {"low": math.nan, "high": math.nan, "n": n, "n_pos": None}
            result.append(site_rows[0] | fields | blank | {"value": values[scope]})
    return result
