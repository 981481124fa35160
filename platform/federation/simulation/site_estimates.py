"""The primary metric of one site, with the influence of every patient on it, and means and differences over sites.

Sites share no patient, so that the influences of a weighted mean over sites are those of its sites times their weights,
and the influences of a difference of two methods are differences, patient by patient
(:mod:`~equipoise.platform.evaluation.influence`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import ndtri

from equipoise.platform.evaluation.estimates import metric_results
from equipoise.platform.evaluation.influence import Cell, CellMean, concordance_influence
from equipoise.platform.evaluation.intervals import (
    AUROC_INFLATION,
    CONCORDANCE_INFLATION,
    FISHER,
    LOGIT,
    PAIR_FACTOR,
    PEARSON_INFLATION,
    Inflation,
    Scale,
    influence_interval,
)
from equipoise.platform.evaluation.metric_definitions import PRIMARY
from equipoise.platform.evaluation.params import EvaluationParams
from equipoise.platform.evaluation.predictions import kind_of
from equipoise.platform.evaluation.samples import ALL, MODEL, Sample, samples

#: Metric → scale and growth of the variance of its intervals.
INTERVALS: dict[str, tuple[Scale, Inflation]] = {
    "auroc": (LOGIT, AUROC_INFLATION),
    "pearson": (FISHER, PEARSON_INFLATION),
    "c_index": (LOGIT, CONCORDANCE_INFLATION),
}
#: One patient in one test part: what two methods must share to be compared.
KEYS = ["patient", "repeat", "fold"]


class SiteEstimate(NamedTuple):
    """A metric of some patients under one method.

    ``mean`` is None, and ``low`` and ``high`` are NaN, where the influence of a patient cannot be told; ``value`` is
    NaN where the metric does not exist, and ``note`` says why.
    """

    value: float
    low: float
    high: float
    n: int
    n_pos: int | None
    note: str
    mean: CellMean | None = None


def sample_of(rows: pd.DataFrame, role: str, params: EvaluationParams) -> Sample | None:
    """All patients of one task in one role as one sample, whatever their cohorts; None without any row.

    Validation rows of the task may be among ``rows``; an external ensemble scales its risks by them.
    """
    if not (rows["role"] == role).any():
        return None
    table = rows.assign(cohort=ALL, site=ALL)
    return next(s for s in samples(table, role, params) if s.predictor == MODEL and s.site == ALL)


def estimate_site(sample: Sample | None, params: EvaluationParams, seed: int) -> SiteEstimate:
    """The primary metric of a sample."""
    if sample is None or not len(sample.strata):
        return SiteEstimate(math.nan, math.nan, math.nan, 0, None, "no labelled patient has a prediction")
    metric = PRIMARY[sample.kind]
    result = next(r for r in metric_results(sample, params, seed, [metric]) if r.class_name == "")
    interval = result.interval
    return SiteEstimate(
        result.estimate.value,
        interval.low,
        interval.high,
        len(sample.strata),
        positives_of(sample),
        result.note,
        result.estimate.mean,
    )


def positives_of(sample: Sample) -> int | None:
    """Number of patients of the positive class, or with an event; None for other tasks."""
    if sample.kind not in ("binary", "survival"):
        return None
    positive: set[int] = set()
    for group in sample.groups:
        truth = group.event if sample.kind == "survival" else group.target[:, 0]
        positive.update(group.patient[truth == 1].tolist())
    return len(positive)


def pairs_within(rows: pd.DataFrame, confidence: float) -> SiteEstimate | None:
    """Concordance over all pairs of two patients of the same site and the same test part; None but for survival.

    A site counts by its pairs, where in a mean over sites one with a single event counts like the largest.

    Parameters
    ----------
    rows
        Labelled test rows of one task, the client as ``site``.
    confidence
        Level of the interval.
    """
    if rows.empty or kind_of(rows) != "survival":
        return None
    patients = pd.Index(rows["patient"].unique())
    cells = []
    for repeat, part in rows.groupby("repeat", sort=True):
        strata = part.groupby(["fold", "site"], sort=False).ngroup().to_numpy()
        influence = concordance_influence(part["time"], part["event"], part["score"], strata)
        cells.append(
            Cell(float(influence.value), influence.influence, patients.get_indexer(part["patient"]), int(str(repeat)))
        )  # fmt: skip
    n, n_pos = len(patients), int(rows.drop_duplicates("patient")["event"].sum())
    mean = None if any(math.isnan(cell.value) for cell in cells) else CellMean.of(cells, n)
    if mean is None:
        return SiteEstimate(math.nan, math.nan, math.nan, n, n_pos, "no comparable pair within a site")
    mean = dataclasses.replace(mean, folds=int(rows.groupby("repeat")["fold"].nunique().max()))
    interval = influence_interval(mean, confidence, *INTERVALS["c_index"])
    return SiteEstimate(mean.value, interval.low, interval.high, n, n_pos, interval.note, mean)


def weighted_mean(sites: Sequence[SiteEstimate], weights: Sequence[float]) -> CellMean | None:
    """A mean over sites, whose patients are disjoint; None if no influence can be told.

    A site whose patients' influence cannot be told (a single event) has the deviation of its value from the mean of the
    others for it, as a lonely patient has in a mean over folds (:mod:`~equipoise.platform.evaluation.influence`).
    """
    total = math.fsum(weights)
    shares = [weight / total for weight in weights]
    repeats = {site.mean.repeats for site in sites if site.mean is not None}
    if len(repeats) != 1 or (len(sites) < 2 and sites[0].mean is None):
        return None
    (count,) = repeats
    parts = []
    for i, (site, share) in enumerate(zip(sites, shares, strict=True)):
        if site.mean is not None:
            parts.append(share * site.mean.by_repeat)
            continue
        others = [other.value for j, other in enumerate(sites) if j != i]
        apart = (site.value - math.fsum(others) / len(others)) * math.sqrt((len(sites) - 1) / len(sites))
        parts.append(np.full((count, 1), share * apart))
    known = [site.mean for site in sites if site.mean is not None]
    return CellMean(
        math.fsum(share * site.value for site, share in zip(sites, shares, strict=True)),
        np.concatenate(parts, axis=1),
        np.full(count, math.nan),  # a site may lack a repeat
        np.full(1, math.nan),  # sites are tested in different folds
        max(mean.folds for mean in known),
        sum(mean.cells for mean in known),
    )


def interval_of(mean: CellMean | None, metric: str, confidence: float) -> tuple[float, float]:
    """Interval of a mean over sites for these models; NaN where it cannot be told."""
    if mean is None:
        return math.nan, math.nan
    interval = influence_interval(mean, confidence, *INTERVALS[metric])
    return interval.low, interval.high


def interval_of_difference(mean: CellMean | None, confidence: float) -> tuple[float, float]:
    """Interval of a difference of two methods trained on the same folds."""
    if mean is None or not mean.variance > 0:
        return math.nan, math.nan
    factor = PAIR_FACTOR if mean.folds > 1 or mean.repeats > 1 else 1.0
    half = float(ndtri(0.5 + confidence / 2)) * math.sqrt(factor * mean.variance)
    return mean.value - half, mean.value + half


def interval_of_worst(
    estimates: Sequence[SiteEstimate],
    confidence: float,
    bounds: Callable[[SiteEstimate, float], tuple[float, float]],
) -> tuple[float, float]:
    """Interval of the smallest of several true values: each site's interval at the level at which all of them hold.

    The sites are independent, so that k intervals of level ``confidence ** (1 / k)`` hold together with ``confidence``
    (Sidak 1967); the smallest true value then lies between their smallest lower and smallest upper bound.
    """
    level = confidence ** (1 / len(estimates))
    pairs = [bounds(estimate, level) for estimate in estimates]
    if any(math.isnan(bound) for pair in pairs for bound in pair):
        return math.nan, math.nan
    return min(low for low, _ in pairs), min(high for _, high in pairs)
