"""Federated standardisation: targets and transforms shared by all clients, from sums that leave the sites.

What :func:`~equipoise.platform.training.targets.fit_targets` takes from rows at hand that are values of single
patients, or need all rows together, is replaced here: means for medians, standard deviations for quartiles, mean ± two
standard deviations for the extremes of a regression target, and counts on a common grid for quantiles of event times.
Clipping needs centre and spread beforehand, so a table is queried three times: Σx; Σ(x − mean)²; and both again inside
the fences. Sites with fewer than ``min_n`` patients send nothing; they use what the others determined.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from equipoise.datasets.omics.expression import scale_of
from equipoise.datasets.omics.logarithms import Scale
from equipoise.datasets.omics.params import TableParams
from equipoise.datasets.omics.quantiles import order_statistic_from_counts
from equipoise.datasets.omics.statistics import (
    Fence,
    LocalTable,
    PrincipalAxes,
    RowMap,
    RowQuery,
    Sums,
    centre_and_fence_from_sums,
    principal_axes_from_sums,
    shares_from_sums,
)
from equipoise.datasets.tables.tasks import Task
from equipoise.models.text.params import TextParams
from equipoise.platform.errors import DataError, StudyError
from equipoise.platform.federation.messages import pack, unpack
from equipoise.platform.federation.privacy.compatibility import PRESENCE_REFUSAL, statistics_refusals
from equipoise.platform.federation.privacy.noised_statistics import noised_rows
from equipoise.platform.federation.privacy.params import NoisedStatistics
from equipoise.platform.training.batches import CaseList
from equipoise.platform.training.statistics import LifeTable, Query, TrainingRows, survival_labels
from equipoise.platform.training.targets import Targets, targets_from_statistics

SUMS_KIND = "sums"
#: Grid of days on which events are counted for the edges of discrete time; about 2 % apart.
GRID = np.unique(np.round(np.geomspace(1, 36500, 512)))
#: Rank of the value that stands for the smallest one of a column: fewer patients could be told apart by it.
FLOOR_RANK = 5
#: Most columns whose matrix of products clients send to fit principal components (128 MiB in double precision).
MAX_PRODUCT_COLUMNS = 4096
#: Half the width of a regression target's scale, in standard deviations.
HALF_WIDTH = 2.0


def federated_targets(
    tasks: Sequence[Task],
    clients: Mapping[str, CaseList],
    *,
    class_weights: Literal["balanced", "none"] = "balanced",
    scaling: Literal["minmax", "standard"] = "minmax",
    tables: TableParams | None = None,
    text: TextParams | None = None,
    presence: bool = False,
    min_n: int = 5,
    noised: NoisedStatistics | None = None,
    seed: int = 0,
) -> Targets:
    """Fit what :func:`~equipoise.platform.training.targets.fit_targets` fits, without any row leaving its site.

    Parameters
    ----------
    tasks, class_weights, scaling, tables, text, presence
        As there; ``minmax`` scales mean ± two standard deviations to [0, 1].
    clients
        Name → training patients.
    min_n
        Fewest patients of a site whose sums are used.
    noised
        Noise and public ranges: sites then answer once, with noisy sums
        (:mod:`~equipoise.platform.federation.privacy.noised_statistics`), and all is fitted from those. None sends
        exact sums.
    seed
        Of the noise.

    Raises
    ------
    DataError
        If no site is large enough, or as for
        :func:`~equipoise.platform.training.targets.targets_from_statistics`.
    """
    rows = {name: TrainingRows.of(cases, tasks) for name, cases in clients.items() if len(cases) >= min_n}
    if not rows:
        raise DataError(f"no client has {min_n} training patients", where="federated standardisation")
    if noised is not None:
        if refusals := statistics_refusals(noised, tasks, tables or TableParams()):
            raise StudyError("; ".join(refusals), where="federation.privacy.statistics")
        if presence:
            raise StudyError(PRESENCE_REFUSAL, where="federation.privacy.statistics")
        rows = {c: noised_rows(own, tasks, noised, seed=seed, client=c) for c, own in rows.items()}
    return targets_from_statistics(
        tasks,
        statistics_of(rows),
        class_weights=class_weights,
        scaling=scaling,
        tables=tables,
        text=text,
        presence=presence,
    )


#: A question about rows → the answers of the sites, in the order of their names.
Answers = Callable[[Query], Iterable[Sums]]


def statistics_of(clients: Mapping[str, TrainingRows]) -> FederatedStatistics:
    """Statistics of clients in this process; their answers travel as bytes, like every other message.

    Parameters
    ----------
    clients
        Name → rows, which only that client reads.
    """
    ordered = dict(sorted(clients.items()))
    described = {name: as_sent(description_of(rows), {})[0] for name, rows in ordered.items()}
    return FederatedStatistics(
        described, lambda query: [as_sent({}, query(rows))[1] for rows in ordered.values()]
    )


class FederatedStatistics:
    """Training patients of several clients, of which sums are seen.

    Implements :class:`~equipoise.platform.training.statistics.Statistics`.

    Parameters
    ----------
    described
        Client → what :func:`description_of` says of its rows.
    answers
        Asks the clients.
    """

    def __init__(self, described: Mapping[str, Mapping[str, Any]], answers: Answers) -> None:
        described = dict(sorted(described.items()))
        self._answers = answers
        self.sites = {site for header in described.values() for site in header["sites"]}
        self.cohorts = {cohort for header in described.values() for cohort in header["cohorts"]}
        self.widths = {width for header in described.values() for width in header["widths"]}
        self.tables = {
            modality: FederatedTable(
                self,
                modality,
                {name: d["tables"][modality] for name, d in described.items() if modality in d["tables"]},
            )
            for modality in sorted({m for header in described.values() for m in header["tables"]})
        }

    def total(self, query: Query) -> Sums:
        """Sums of the arrays of all answers, added in the order of names."""
        return added(self._answers(query))

    def extent(self, task: str, mean: float, spread: float) -> tuple[float, float]:
        """Mean ± two standard deviations."""
        return mean - HALF_WIDTH * spread, 2 * HALF_WIDTH * spread

    def edges(self, task: str, bins: int) -> tuple[float, ...]:
        """Days of the grid that split the events into equal parts.

        They equal those of :func:`~equipoise.datasets.tables.targets.interval_edges` where events are on days of the
        grid: the next observed day after a quantile, by its rank among the events.
        """
        events = self.total(lambda rows: _events_by_day(rows, task))["events"]
        if not events.sum():
            return ()
        ranks = np.ceil((events.sum() - 1) * (np.arange(1, bins) / bins))
        at = np.searchsorted(np.cumsum(events), ranks, side="right")
        edges = np.unique(
            GRID[np.minimum(at, len(GRID) - 1)]
        )  # counts with noise may end before the last rank
        return tuple(edges[edges > GRID[np.argmax(events > 0)]].tolist())

    def life_table(self, task: str) -> LifeTable:
        """Days of events belong to single patients and are not asked for.

        Raises
        ------
        StudyError
            Always.
        """
        raise StudyError(
            f"task {task}: survival on text needs a Kaplan-Meier curve, which a federation does not bring together",
            where="training.text.tasks",
            fix="leave the task out of training.text.tasks",
        )


@dataclass(frozen=True)
class FederatedTable:
    """A table of several clients, of which sums are seen.

    Implements :class:`~equipoise.datasets.omics.statistics.TableSums`.

    Parameters
    ----------
    statistics
        Of all tables.
    modality
        Name of the table.
    described
        Client → the names of its columns and the scale of its values.
    chosen
        Columns, if they are not all.
    transform
        What clients apply to their rows first.
    """

    statistics: FederatedStatistics
    modality: str
    described: Mapping[str, dict[str, Any]]
    chosen: tuple[str, ...] | None = None
    transform: RowMap = np.asarray

    @property
    def columns(self) -> tuple[str, ...]:
        """In the order in which clients name them."""
        names = dict.fromkeys(name for table in self.described.values() for name in table["columns"])
        return tuple(names) if self.chosen is None else self.chosen

    def total(self, query: RowQuery) -> Sums:
        """Sums over all clients that have the table."""
        columns = self.columns
        return self.statistics.total(
            lambda rows: (
                query(self.transform(rows.tables[self.modality].matrix(columns)))
                if self.modality in rows.tables
                else {}
            )
        )

    def select(self, columns: tuple[str, ...]) -> FederatedTable:
        """The table with these columns only."""
        return replace(self, chosen=columns)

    def mapped(self, function: RowMap) -> FederatedTable:
        """The table after a function of its rows."""
        before = self.transform
        return replace(self, transform=lambda rows: function(before(rows)))

    def cohorts_apart(self) -> Mapping[str, LocalTable]:
        """Refused: sums over the patients that a client has of one cohort may be those of few patients.

        Raises
        ------
        DataError
            Always.
        """
        raise DataError(
            f"{self.modality}: a federation standardises over the patients of all clients, not per cohort",
            where=f"tables.{self.modality}.standardise",
            fix="write standardise: training",
        )

    def scales(self) -> dict[str, Scale]:
        """Of every client."""
        return {f"client {name}": table["scale"] for name, table in self.described.items()}

    def shares(self) -> np.ndarray:
        """From sums."""
        return shares_from_sums(self)

    def floor_and_quartile(self) -> tuple[np.ndarray, np.ndarray]:
        """From counts below thresholds; the floor is the fifth smallest value, which no single patient determines."""
        floor = order_statistic_from_counts(self, FLOOR_RANK, share=False)
        return floor, np.maximum(order_statistic_from_counts(self, 0.25, share=True), floor)

    def principal_axes(self, count: int) -> PrincipalAxes:
        """From sums of products of columns.

        Raises
        ------
        DataError
            If they are more numbers than a client should send.
        """
        width = len(self.total(lambda rows: {"n": np.ones(rows.shape[1])})["n"])
        if width > MAX_PRODUCT_COLUMNS:
            raise DataError(
                f"{self.modality}: components of {width} columns would need a matrix of that many rows "
                "and columns from every client",
                where=f"tables.{self.modality}.components",
                fix=f"write genes: {MAX_PRODUCT_COLUMNS} or fewer, or leave out components",
            )
        return principal_axes_from_sums(self, count)

    def centre_and_fence(self, clip: float | None) -> Fence:
        """By means and standard deviations."""
        return centre_and_fence_from_sums(self, clip)


def added(answers: Iterable[Sums]) -> Sums:
    """The sum of all answers, array by array, in double precision."""
    sums: Sums = {}
    for answer in answers:
        for name, array in answer.items():
            sums[name] = sums[name] + array if name in sums else array.astype(np.float64)
    return sums


def as_sent(header: dict[str, Any], arrays: Sums) -> tuple[dict[str, Any], Sums]:
    """An answer as it arrives."""
    return unpack(SUMS_KIND, pack(SUMS_KIND, header, arrays))


def description_of(rows: TrainingRows) -> dict[str, Any]:
    """Names of sites, cohorts and columns, widths of tiles, and the scale of the values of every table."""
    tables = {
        modality: {"columns": list(table.columns), "scale": scale_of(table.matrix(table.columns))}
        for modality, table in sorted(rows.tables.items())
    }
    return {
        "sites": sorted(rows.sites),
        "cohorts": sorted(rows.cohorts),
        "widths": sorted(rows.widths),
        "tables": tables,
    }


def _events_by_day(rows: TrainingRows, task: str) -> Sums:
    days, event = survival_labels(rows, task)
    # The day before, so that an edge and the events that define it are in one interval, as in interval_edges.
    at = np.maximum(np.searchsorted(GRID, days[event > 0], side="right") - 1, 0)
    return {"events": np.bincount(at, minlength=len(GRID)).astype(np.float64)}
