r"""Sums over the patients of a site under differential privacy: what scalers and transforms are fitted from.

Exact sums reveal single patients: the sums of a site before and after a patient came differ by the patient's values.
Here a site answers once, with sums of bounded contributions and Gaussian noise (Dwork and Roth 2014, section A.1).
Every value is moved into its declared public range and mapped to u in [-1, 1]. A patient adds

- to a classification task a 1 in the count of the class;
- to a survival task a 1 in the count of censored patients or of events within an interval of days;
- to a regression task, and to each column of a table, 1, u and u².

One patient's contribution has a norm of at most :math:`\Delta = \sqrt{C + S + 3 R + 3 G}` with C classification, S
survival and R regression tasks and G columns, whatever the values, and every number gets noise of :math:`z \Delta`.
The server turns the noisy sums into rows that have these counts, means and standard deviations, and fits everything
from those rows: that is processing of a private answer and costs nothing more. A wide table has a large :math:`\Delta`;
its noise is as large as honesty requires.

Names of tasks, columns and sites, widths of tile features and numbers of patients are public.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from equipoise.datasets.omics.statistics import Sums
from equipoise.datasets.tables.tasks import Task
from equipoise.platform.errors import StudyError
from equipoise.platform.federation.messages import ClientManifest, client_number
from equipoise.platform.federation.privacy.noise import noise_source
from equipoise.platform.federation.privacy.params import Bounds, NoisedStatistics
from equipoise.platform.federation.vector import SHARED
from equipoise.platform.training.statistics import TableRows, TrainingRows, survival_labels

#: Last days of the intervals in which events are counted: half an octave each.
DAYS = np.unique(np.round(np.geomspace(1, 36500, 31)))
#: Random streams of the noise on sums and on declared counts.
ON_SUMS, ON_COUNTS = 0x5005, 0xC007
#: Separates a covariate from its value in the names of 0/1 columns.
VALUE = "="


def bounded_sums(rows: TrainingRows, tasks: Sequence[Task], bounds: Bounds) -> Sums:
    """At a site: sums of contributions whose norm per patient is at most :func:`sensitivity`.

    Parameters
    ----------
    rows
        Of the site's training patients.
    tasks
        Of the study.
    bounds
        Name of a regression task, ``<table>.<column>`` or a table → public range of its values.

    Raises
    ------
    StudyError
        If a range is missing.
    """
    sums: Sums = {}
    for task in tasks:
        labels = rows.labels[task.name]
        if task.type == "regression":
            u_N = to_unit(np.asarray(labels, np.float64), bounds_of(bounds, task.name))
            sums[f"label/{task.name}"] = np.array([len(u_N), u_N.sum(), (u_N * u_N).sum()])
        elif task.type == "survival":
            days, event = survival_labels(rows, task.name)
            interval = np.minimum(np.searchsorted(DAYS, days), len(DAYS) - 1) + 1
            cells = np.where(event > 0, interval, 0)
            sums[f"label/{task.name}"] = np.bincount(cells, minlength=len(DAYS) + 1).astype(np.float64)
        else:
            count = len(task.class_names) if task.type == "multiclass" else 2
            cells = np.asarray(labels, np.float64).astype(int)
            sums[f"label/{task.name}"] = np.bincount(cells, minlength=count).astype(np.float64)
    for modality, table in sorted(rows.tables.items()):
        x_NG = table.matrix(table.columns).astype(np.float64)
        ranges = np.array([bounds_of(bounds, modality, column) for column in table.columns]).reshape(-1, 2)
        u_NG = to_unit(x_NG, (ranges[:, 0], ranges[:, 1]))
        known = ~np.isnan(u_NG)
        u_NG = np.where(known, u_NG, 0.0)
        parts = [known.sum(axis=0), u_NG.sum(axis=0), (u_NG * u_NG).sum(axis=0)]
        sums[f"table/{modality}"] = np.concatenate(parts).astype(np.float64)
    return sums


def sensitivity(rows: TrainingRows, tasks: Sequence[Task]) -> float:
    """Largest norm of what one patient adds to :func:`bounded_sums`; depends on names only."""
    columns = sum(len(table.columns) for table in rows.tables.values())
    regressions = sum(task.type == "regression" for task in tasks)
    return math.sqrt(len(tasks) - regressions + 3 * regressions + 3 * columns)


def noised_rows(
    rows: TrainingRows, tasks: Sequence[Task], params: NoisedStatistics, *, seed: int, client: str
) -> TrainingRows:
    """Rows that stand for those of a site: made from its noisy sums alone, which is all that left it.

    Parameters
    ----------
    rows, tasks
        As for :func:`bounded_sums`.
    params
        Noise multiplier and ranges.
    seed, client
        Of the noise; in a real federation the seed is the site's secret.
    """
    scale = params.noise * sensitivity(rows, tasks)
    exact = bounded_sums(rows, tasks, params.bounds)
    values = np.concatenate([exact[name] for name in sorted(exact)])
    rng = noise_source(seed, client_number(client), ON_SUMS, data=values)
    noisy = {name: exact[name] + rng.normal(0.0, scale, len(exact[name])) for name in sorted(exact)}
    return stand_in(noisy, rows, tasks, params.bounds)


def stand_in(noisy: Sums, layout: TrainingRows, tasks: Sequence[Task], bounds: Bounds) -> TrainingRows:
    """Rows with these counts, means and standard deviations; of ``layout`` only names and widths are read."""
    labels: dict[str, list[object]] = {}
    for task in tasks:
        sums = noisy[f"label/{task.name}"]
        if task.type == "regression":
            values = two_valued(sums[0], sums[1:2], sums[2:3])[:, 0]
            labels[task.name] = from_unit(values, bounds_of(bounds, task.name)).tolist()
            continue
        counts = np.maximum(np.rint(sums), 0).astype(int)
        if task.type == "survival":
            cells = np.repeat(np.arange(len(counts)), counts)
            days = DAYS[np.maximum(cells, 1) - 1]
            labels[task.name] = [(float(d), float(c > 0)) for d, c in zip(days, cells, strict=True)]
        else:
            labels[task.name] = np.repeat(np.arange(len(counts), dtype=float), counts).tolist()
    tables = {}
    for modality, table in sorted(layout.tables.items()):
        n_G, sum_G, squares_G = noisy[f"table/{modality}"].reshape(3, -1)
        ranges = np.array([bounds_of(bounds, modality, column) for column in table.columns]).reshape(-1, 2)
        values_NG = from_unit(two_valued(n_G, sum_G, squares_G), (ranges[:, 0], ranges[:, 1]))
        start: dict[str, int] = {}
        for at, column in enumerate(table.columns):
            if VALUE not in column:
                continue
            covariate = column.partition(VALUE)[0]  # a patient has one of its values: as many ones as counted
            first = start.get(covariate, 0)
            start[covariate] = first + max(round((n_G[at] + sum_G[at]) / 2), 0)
            values_NG[:, at] = 0.0
            values_NG[first : start[covariate], at] = 1.0
        cohort = table.cohorts[0] if table.cohorts else ""
        made = [(table.columns, row.astype(np.float32)) for row in values_NG]
        tables[modality] = TableRows(table.columns, made, [cohort] * len(made))
    return replace(layout, labels=labels, tables=tables)


def two_valued(n: np.ndarray | float, sums: np.ndarray, squares: np.ndarray) -> np.ndarray:
    """``[N, G]`` values around the mean, a standard deviation below and above, NaN beyond a column's count."""
    n_G = np.maximum(np.rint(np.broadcast_to(np.asarray(n, np.float64), sums.shape)), 0)
    known = np.maximum(n_G, 1)
    mean_G = np.clip(sums / known, -1, 1)
    spread_G = np.sqrt(np.clip(squares / known - mean_G**2, 0, 1))
    pairs_G = n_G // 2
    # Of an odd count one value is the mean, and the others are a little further away.
    spread_G = spread_G * np.sqrt(known / np.maximum(2 * pairs_G, 1))
    at_N = np.arange(int(n_G.max()) if len(n_G) else 0)[:, None]
    sign_NG = np.where(at_N < 2 * pairs_G, np.where(at_N % 2, 1.0, -1.0), 0.0)
    return np.where(at_N < n_G, mean_G + sign_NG * spread_G, np.nan)


def to_unit(values: np.ndarray, bounds: tuple[np.ndarray | float, np.ndarray | float]) -> np.ndarray:
    """Values clipped to their range and mapped to [-1, 1]."""
    low, high = bounds
    return (np.clip(values, low, high) - low) / (np.asarray(high) - low) * 2 - 1


def from_unit(values: np.ndarray, bounds: tuple[np.ndarray | float, np.ndarray | float]) -> np.ndarray:
    """The inverse of :func:`to_unit` within the range."""
    low, high = bounds
    return low + (values + 1) / 2 * (np.asarray(high) - low)


def bounds_of(bounds: Bounds, name: str, column: str | None = None) -> tuple[float, float]:
    """Range of a task, or of a column: its own, 0 to 1 for the value of a category, else that of the table.

    Raises
    ------
    StudyError
        If there is none.
    """
    wanted = name if column is None else f"{name}.{column}"
    if wanted in bounds:
        return bounds[wanted]
    if column is not None and VALUE in column:
        return (0.0, 1.0)
    if name in bounds:
        return bounds[name]
    raise StudyError(
        f"noised sums need the public range of {wanted}",
        where="federation.privacy.statistics.bounds",
        fix=f"write bounds: {{{wanted}: [lowest, highest]}}, from what is known without the data",
    )


def noised_manifest(manifest: ClientManifest, params: NoisedStatistics, *, seed: int) -> ClientManifest:
    """What a site declares, with noise on every count of labels; the number of patients is public.

    A patient adds at most 1 to each of k counts, so that the noise of each is :math:`z \\sqrt k`.
    """
    tasks, groups = list(manifest.labelled), [g for g in manifest.counts if not g.startswith("task:")]
    values = [*manifest.labelled.values(), *manifest.events.values(), *(manifest.counts[g] for g in groups)]
    exact = np.array(values, float)
    rng = noise_source(seed, client_number(manifest.client), ON_COUNTS, data=exact)
    noisy = np.rint(exact + rng.normal(0.0, params.noise * math.sqrt(len(values)), len(values)))
    known = np.clip(noisy, 0, manifest.n).astype(int).tolist()
    labelled = dict(zip(tasks, known, strict=False))
    events = dict(zip(manifest.events, known[len(tasks) :], strict=False))
    counts = dict(zip(groups, known[len(tasks) + len(events) :], strict=True))
    most = max(labelled.values(), default=0)
    # A site without any label takes no part, and one that trains a head trains the trunk.
    counts = {group: count if most else 0 for group, count in counts.items()}
    if most:
        counts[SHARED] = max(counts.get(SHARED, 0), most)
    heads = {g: labelled[g.removeprefix("task:")] for g in manifest.counts if g.startswith("task:")}
    ordered = {group: (counts | heads)[group] for group in manifest.counts}
    return ClientManifest(
        manifest.client, manifest.n, labelled, events, ordered, (), manifest.batch, dict(labelled)
    )
