"""Performance of a federation, pooled and per site, beside pooled, local and ensemble training.

Everything is computed from predictions tables; in the test part the client replaces the cohort. One row per (plan,
method, role, scope, client, task); scopes:

- ``pooled``: all patients together (not for local models, because scores of different models do not compare);
- ``client``: the patients of one site, or one external cohort;
- ``mean``, ``weighted``, ``worst``: over all sites with labelled test patients: unweighted mean, mean weighted by
  labelled patients, smallest value. Sites without a value under this method are named in the note, with the reason;
- ``pairs``: survival only, all pairs of two patients of the same site.

Every site has a row for every method and task, also where there is no value: the note says why. Local models are
evaluated on the patients of their own site only. Rows whose method is ``federated - pooled`` or ``federated - local``
are paired differences, on the patients that both predict and over the sites for which both have a value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from equipoise.platform.evaluation.metric_definitions import PRIMARY
from equipoise.platform.evaluation.params import EvaluationParams, too_few_events
from equipoise.platform.evaluation.predictions import kind_of, labelled
from equipoise.platform.evaluation.samples import ALL
from equipoise.platform.federation.simulation.site_estimates import (
    KEYS,
    SiteEstimate,
    estimate_site,
    interval_of,
    interval_of_difference,
    interval_of_worst,
    pairs_within,
    positives_of,
    sample_of,
    weighted_mean,
)
from equipoise.platform.federation.simulation.sites import Client

METHODS = (
    "federated", "pooled", "local", "ensemble",
    "pooled ridge", "local ridge", "pooled elastic_net", "local elastic_net",
)  # fmt: skip
#: Methods whose models are trained at one site, on patients of their own.
LOCAL = frozenset(method for method in METHODS if method.split()[0] == "local")
#: Method → the methods it is compared with, patient by patient.
COMPARED = {"federated": ("pooled", "local")}
#: Columns of ``federated/sites.csv``.
SITE_COLUMNS = (
    "plan", "method", "role", "scope", "client", "task", "kind", "metric",
    "value", "low", "high", "n", "n_pos", "note",
)  # fmt: skip
OVER_SITES = ("mean", "weighted", "worst")
#: Interval of a site's estimate at a level.
Bounds = Callable[[SiteEstimate, float], tuple[float, float]]


@dataclass(frozen=True)
class PlanPredictions:
    """Predictions of one plan.

    Parameters
    ----------
    predictions
        Method → rows of all folds (``local``: each test patient predicted by the model of its own site).
    no_local
        Client → task → why it has no local model, in the folds where it has none; the task ``all`` stands for every
        task.
    """

    predictions: Mapping[str, pd.DataFrame]
    no_local: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


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
        Confidence, smallest site; seed of the study.
    """
    owner = {patient: client.name for client in clients for patient in client.patients}
    tables = {
        method: of_clients(table, owner)
        for method, table in predictions_of_plan.predictions.items()
        if len(table)
    }
    rows: list[dict[str, Any]] = []
    tasks = dict.fromkeys(task for table in tables.values() for task in sorted(table["task"].unique()))
    for task in sorted(tasks):
        of_task = {method: table[table["task"] == task] for method, table in tables.items()}
        evaluated = TaskEvaluation(
            task, {m: t for m, t in of_task.items() if len(t)}, predictions_of_plan.no_local, params, seed
        )
        rows += evaluated.rows()
    table = pd.DataFrame([{"plan": plan} | row for row in rows], columns=list(SITE_COLUMNS))
    return table.astype({"n": "Int64", "n_pos": "Int64", "value": float, "low": float, "high": float})


def of_clients(predictions: pd.DataFrame, owner: Mapping[str, str]) -> pd.DataFrame:
    """The table with the client as cohort and site; external patients keep their cohort."""
    client = predictions["patient"].map(owner).where(predictions["role"] != "external")
    client = client.fillna(predictions["cohort"])
    return predictions.assign(cohort=client, site=client)


class TaskEvaluation:
    """All rows of one task.

    Parameters
    ----------
    task
        Its name.
    tables
        Method → predictions of the task, the client as cohort.
    no_local
        As in :class:`PlanPredictions`.
    params, seed
        As in :func:`site_table`.
    """

    def __init__(
        self,
        task: str,
        tables: Mapping[str, pd.DataFrame],
        no_local: Mapping[str, Mapping[str, str]],
        params: EvaluationParams,
        seed: int,
    ) -> None:
        self.task, self.tables, self.params, self.seed = task, tables, params, seed
        self.no_local = no_local
        self.kind = kind_of(next(iter(tables.values())))
        self.metric = PRIMARY[self.kind]
        # A multiclass task has a row per class; a patient counts once.
        known = pd.concat([table[labelled(table)] for table in tables.values()])
        patients = known.drop_duplicates(["role", "cohort", "patient"])
        self.labelled = {
            (str(role), str(client)): len(part)
            for (role, client), part in patients.groupby(["role", "cohort"])
        }
        everybody = pd.concat([table[["role", "cohort"]] for table in tables.values()]).drop_duplicates()
        self.clients = {
            role: sorted(everybody.loc[everybody["role"] == role, "cohort"]) for role in ("test", "external")
        }

    def rows(self) -> list[dict[str, Any]]:
        """Rows of every method, then those of the differences."""
        rows = []
        for method in METHODS:
            if method in self.tables or method == "local":
                rows += self._of_method(method)
        for method, others in COMPARED.items():
            for other in others:
                if method in self.tables and other in self.tables:
                    rows += self._of_difference(method, other)
        return rows

    def _of_method(self, method: str) -> list[dict[str, Any]]:
        table = self.tables.get(method)
        confidence = self.params.confidence
        rows = []
        if table is not None and method not in LOCAL:
            pooled = estimate_site(sample_of(table, "test", self.params), self.params, self.seed)
            rows.append(self._row(method, "test", "pooled", ALL, pooled))
        sites = {client: self._site(method, table, "test", client) for client in self.clients["test"]}
        rows += [self._row(method, "test", "client", client, site) for client, site in sites.items()]
        rows += self._over_sites(
            method, sites, lambda site, level: interval_of(site.mean, self.metric, level)
        )
        if table is not None and (pairs := pairs_within(self._known(table), confidence)) is not None:
            rows.append(self._row(method, "test", "pairs", ALL, pairs))
        for cohort in self.clients["external"]:
            site = self._site(method, table, "external", cohort)
            rows.append(self._row(method, "external", "client", cohort, site))
        return rows

    def _site(self, method: str, table: pd.DataFrame | None, role: str, client: str) -> SiteEstimate:
        """The metric of a site, or the reason why there is none."""
        n = self.labelled.get((role, client), 0)
        if not n:
            return _nothing("no labelled test patient")
        if method in LOCAL and role == "external":
            return _nothing("an external cohort trains no model of its own", n)
        few = f"{n} labelled patients; sites below {self.params.min_site} get no metric"
        reason = self._missing(method, client)
        part = None if table is None else table[(table["cohort"] == client) | (table["role"] == "val")]
        sample = None if part is None else sample_of(part, role, self.params)
        predicted = 0 if sample is None else len(sample.strata)
        if n < self.params.min_site:
            return _nothing(few, n)
        if not predicted:
            return _nothing(reason or "no patient has a prediction", n)
        if predicted < self.params.min_site:
            text = (
                f"{predicted} of {n} labelled patients have a prediction, {self.params.min_site} are needed"
            )
            return _nothing(_joined(text, reason), n)
        assert sample is not None  # somebody has a prediction
        if text := too_few_events(self.params, self.kind, positives_of(sample), predicted):
            return _nothing(_joined(text, reason), n)
        site = estimate_site(sample, self.params, self.seed)
        if predicted < n:
            site = site._replace(
                note=_joined(f"{predicted} of {n} labelled patients have a prediction", reason, site.note)
            )
        return site

    def _missing(self, method: str, client: str) -> str:
        """Why a site lacks predictions of a method."""
        if method not in LOCAL:
            return ""
        reasons = self.no_local.get(client, {})
        return reasons.get(self.task) or reasons.get(ALL, "")

    def _of_difference(self, method: str, other: str) -> list[dict[str, Any]]:
        """Rows of one paired difference."""
        first, second = self.tables[method], self.tables[other]
        first, second = _common(first, second), _common(second, first)
        name, confidence = f"{method} - {other}", self.params.confidence
        rows, sites = [], {}
        test = [part[part["role"] == "test"] for part in (first, second)]
        if not LOCAL & {method, other}:
            one, two = (
                estimate_site(sample_of(part, "test", self.params), self.params, self.seed) for part in test
            )
            rows.append(self._row(name, "test", "pooled", ALL, _minus(one, two, confidence)))
        for client in self.clients["test"]:
            if not self.labelled.get(("test", client), 0):
                continue
            one, two = (
                self._site(m, part, "test", client) for m, part in ((method, test[0]), (other, test[1]))
            )
            sites[client] = _minus(one, two, confidence)
            rows.append(self._row(name, "test", "client", client, sites[client]))
        rows += self._over_sites(
            name, sites, lambda site, level: interval_of_difference(site.mean, level), ("mean", "weighted")
        )
        rows += self._difference_of_worst(name, method, other, first, second)
        pairs = [pairs_within(self._known(part), confidence) for part in (first, second)]
        if pairs[0] is not None and pairs[1] is not None:
            rows.append(self._row(name, "test", "pairs", ALL, _minus(pairs[0], pairs[1], confidence)))
        return rows

    def _difference_of_worst(
        self, name: str, method: str, other: str, first: pd.DataFrame, second: pd.DataFrame
    ) -> list[dict[str, Any]]:
        """Smallest value of one method minus that of the other, which may belong to different sites.

        The interval comes from those of all sites: a difference of minima lies between the smallest and the largest
        difference of any site, and their intervals hold together.
        """
        both = {}
        for client in self.clients["test"]:
            one, two = (self._site(m, part, "test", client) for m, part in ((method, first), (other, second)))
            if not (math.isnan(one.value) or math.isnan(two.value)):
                both[client] = (one, two)
        if not both:
            return []
        worst = [min(both, key=lambda client: (both[client][i].value, client)) for i in (0, 1)]
        value = both[worst[0]][0].value - both[worst[1]][1].value
        level = self.params.confidence ** (1 / len(both))
        bounds = [interval_of_difference(_minus(one, two, level).mean, level) for one, two in both.values()]
        known = not any(math.isnan(bound) for pair in bounds for bound in pair)
        low, high = (min(b for b, _ in bounds), max(b for _, b in bounds)) if known else (math.nan, math.nan)
        where = worst[0] if worst[0] == worst[1] else f"{worst[0]}; {worst[1]}"
        n = sum(one.n for one, _ in both.values())
        row = self._row(name, "test", "worst", where, SiteEstimate(value, low, high, n, None, ""))
        return [row]

    def _over_sites(
        self,
        method: str,
        sites: Mapping[str, SiteEstimate],
        bounds: Bounds,
        scopes: Sequence[str] = OVER_SITES,
    ) -> list[dict[str, Any]]:
        """Mean, weighted mean and worst value over the sites with labelled patients."""
        with_labels = {client: site for client, site in sites.items() if site.n}
        known = {client: site for client, site in with_labels.items() if not math.isnan(site.value)}
        missing = [f"{client} ({site.note})" for client, site in with_labels.items() if client not in known]
        note = f"{len(known)} of {len(with_labels)} sites; without {', '.join(missing)}" if missing else ""
        if not known:
            empty = _nothing(note or "no site has a labelled test patient")
            return [self._row(method, "test", scope, ALL, empty) for scope in scopes] if with_labels else []
        n, confidence = sum(site.n for site in known.values()), self.params.confidence
        weights = {"mean": [1.0] * len(known), "weighted": [float(site.n) for site in known.values()]}
        rows = []
        for scope in scopes:
            client = ALL
            if scope == "worst":
                client = min(known, key=lambda name: (known[name].value, name))
                value = known[client].value
                low, high = interval_of_worst(list(known.values()), confidence, bounds)
            else:
                shares = weights[scope]
                value = math.fsum(
                    w * s.value for w, s in zip(shares, known.values(), strict=True)
                ) / math.fsum(shares)
                mean = weighted_mean(list(known.values()), shares)
                low, high = bounds(SiteEstimate(value, math.nan, math.nan, n, None, "", mean), confidence)
            rows.append(
                self._row(method, "test", scope, client, SiteEstimate(value, low, high, n, None, note))
            )
        return rows

    def _known(self, table: pd.DataFrame) -> pd.DataFrame:
        """Labelled test rows of sites that are large enough."""
        rows = table[(table["role"] == "test") & labelled(table)]
        large = [
            client
            for client in self.clients["test"]
            if self.labelled.get(("test", client), 0) >= self.params.min_site
        ]
        return rows[rows["cohort"].isin(large)]

    def _row(self, method: str, role: str, scope: str, client: str, site: SiteEstimate) -> dict[str, Any]:
        keys = {"method": method, "role": role, "scope": scope, "client": client}
        keys |= {"task": self.task, "kind": self.kind, "metric": self.metric}
        values = {"value": site.value, "low": site.low, "high": site.high, "n": site.n, "n_pos": site.n_pos}
        return keys | values | {"note": site.note}


def _nothing(note: str, n: int = 0) -> SiteEstimate:
    """No value, with the number of labelled patients and the reason."""
    return SiteEstimate(math.nan, math.nan, math.nan, n, None, note)


def _minus(first: SiteEstimate, second: SiteEstimate, confidence: float) -> SiteEstimate:
    """The difference of two methods on the same patients."""
    note = _joined(first.note, second.note) if math.isnan(first.value - second.value) else ""
    mean = first.mean.minus(second.mean) if first.mean is not None and second.mean is not None else None
    low, high = interval_of_difference(mean, confidence)
    return SiteEstimate(
        first.value - second.value, low, high, min(first.n, second.n), first.n_pos, note, mean
    )


def _common(table: pd.DataFrame, other: pd.DataFrame) -> pd.DataFrame:
    """Rows of patients that the other method predicts in the same test part, in a fixed order."""
    keys = pd.MultiIndex.from_frame(other[["role", *KEYS]].drop_duplicates())
    rows = table[pd.MultiIndex.from_frame(table[["role", *KEYS]]).isin(keys)]
    return rows.sort_values(["role", "repeat", "fold", "patient", "class"], kind="stable")


def _joined(*notes: str) -> str:
    return "; ".join(dict.fromkeys(note for note in notes if note))
