"""Federated standardisation: targets and transforms shared by all clients, from sums that leave the sites.

Central training fills gaps with medians, clips at fences around medians by quartiles, and scales regression targets
by their extremes; these are values of single patients or need all rows together. Here means replace medians,
standard deviations replace quartiles, targets are scaled by mean ± two standard deviations, and edges of discrete
time come from counts on a common grid. Clipping needs centre and spread beforehand, so a table is queried three times:
Σx; Σ(x − mean)²; and both again inside the fences. Sites with fewer than ``min_n`` patients send nothing; they use
what the others determined.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from equipoise.datasets.omics.covariate_transform import CLIP, Category, CovariateTransform
from equipoise.datasets.omics.fitting import TableTransform, columns_of
from equipoise.datasets.omics.params import CLINICAL, OmicsParams, RnaParams, TableParams
from equipoise.datasets.omics.transforms import MatrixTransform, Scale, logarithm, scale_of
from equipoise.datasets.tables.targets import TargetScaler
from equipoise.datasets.tables.tasks import BINS, SurvivalTask, Task
from equipoise.models.batch import CaseShape, TaskHead
from equipoise.models.losses import balanced_weights
from equipoise.platform.errors import DataError, DataWarning
from equipoise.platform.federation.messages import pack, unpack
from equipoise.platform.training.batches import CaseList
from equipoise.platform.training.targets import Targets, TaskTarget, is_missing

SUMS_KIND = "sums"
#: Grid of days on which events are counted for the edges of discrete time; about 2 % apart.
GRID = np.unique(np.round(np.geomspace(1, 36500, 512)))
#: Half the width of a regression target's scale, in standard deviations.
HALF_WIDTH = 2.0

Answer = tuple[dict[str, Any], dict[str, np.ndarray]]
Query = Callable[[CaseList], Answer]


@dataclass(frozen=True)
class _Sites:
    """Sites that answer queries; their answers are sent as bytes, like every other message."""

    cases: Mapping[str, CaseList]

    def ask(self, query: Query) -> list[Answer]:
        """The answers of all sites, sorted by name."""
        return [unpack(SUMS_KIND, pack(SUMS_KIND, *query(cases))) for _, cases in sorted(self.cases.items())]

    def total(self, query: Query) -> dict[str, np.ndarray]:
        """Sums of the arrays of all answers, added in the order of names."""
        sums: dict[str, np.ndarray] = {}
        for _, arrays in self.ask(query):
            for name, array in arrays.items():
                sums[name] = sums[name] + array if name in sums else array.astype(np.float64)
        return sums


def federated_targets(
    tasks: Sequence[Task],
    clients: Mapping[str, CaseList],
    *,
    class_weights: Literal["balanced", "none"] = "balanced",
    scaling: Literal["minmax", "standard"] = "minmax",
    tables: TableParams | None = None,
    min_n: int = 5,
) -> Targets:
    """Fit what :func:`~equipoise.platform.training.targets.fit_targets` fits, without any row leaving its site.

    Parameters
    ----------
    tasks, class_weights, scaling, tables
        As there; ``minmax`` scales mean ± two standard deviations to [0, 1].
    clients
        Name → training patients.
    min_n
        Fewest patients of a site whose sums are used.

    Raises
    ------
    DataError
        If no site is large enough, tiles differ in width, RNA is on different scales, or the main task cannot be
        learned from the patients of all sites.
    """
    params = tables or TableParams()
    sites = _Sites({name: cases for name, cases in clients.items() if len(cases) >= min_n})
    if not sites.cases:
        raise DataError(f"no client has {min_n} training patients", where="federated standardisation")
    headers = [header for header, _ in sites.ask(lambda cases: _describe(cases, tasks))]
    widths = {header["width"] for header in headers} - {0}
    if len(widths) > 1:
        raise DataError(
            f"sites have tiles of {' and '.join(map(str, sorted(widths)))} features; they must have the same width"
        )
    transforms = _tables(sites, headers, params)
    if not widths and not transforms:
        raise DataError("no site has a tile or a table to learn from")
    shape = CaseShape(widths.pop() if widths else 0, {name: len(t.names) for name, t in transforms.items()})
    fitted = _tasks(sites, tasks, class_weights, scaling)
    names = sorted({name for header in headers for name in header["sites"]})
    return Targets(fitted, shape, tuple(names), transforms)


def _describe(cases: CaseList, tasks: Sequence[Task]) -> Answer:
    """Names of sites and columns, and the scale of the values."""
    sites: set[str] = set()
    widths: set[int] = set()
    rows: dict[str, list[np.ndarray]] = {}
    columns: dict[str, tuple[str, ...]] = {}
    for case in cases:
        sites.add(case.site)
        widths |= {case.bag.shape[1]} if len(case.bag) else set()
        for modality, values in case.omics.items():
            columns.setdefault(modality, columns_of(len(values), case.columns.get(modality)))
            rows.setdefault(modality, []).append(values)
    if len(widths) > 1:
        raise DataError(f"tiles of {' and '.join(map(str, sorted(widths)))} features at one site")
    tables = {m: {"columns": list(columns[m]), "scale": scale_of(np.stack(rows[m]))} for m in sorted(rows)}
    return {"sites": sorted(sites), "width": max(widths, default=0), "tables": tables}, {}


def _tables(
    sites: _Sites, headers: Sequence[dict[str, Any]], params: TableParams
) -> dict[str, TableTransform]:
    transforms: dict[str, TableTransform] = {}
    for modality in sorted({m for header in headers for m in header["tables"]}):
        described = [header["tables"][modality] for header in headers if modality in header["tables"]]
        columns = tuple(dict.fromkeys(name for table in described for name in table["columns"]))
        transform: TableTransform
        if modality == CLINICAL:
            transform = _covariates(sites, columns, params)
        else:
            settings: OmicsParams = getattr(params, modality)
            scale = _scale(settings, {row["scale"] for row in described}, modality)
            clip = settings.clip if isinstance(settings, RnaParams) else None
            transform = _matrix(
                sites,
                modality,
                columns,
                scale,
                clip,
                standardise=modality != "mutation",
                max_columns=settings.genes,
            )
        if transform.names:
            transforms[modality] = transform
        else:
            warnings.warn(f"{modality}: no column varies among patients; left out", DataWarning, stacklevel=3)
    return transforms


def _scale(settings: OmicsParams, seen: set[str], modality: str) -> Scale:
    if not isinstance(settings, RnaParams):
        return "none"
    if settings.transform != "auto":
        return settings.transform
    if len(seen) > 1:
        raise DataError(
            f"the sites' values are on different scales: {', '.join(sorted(seen))}",
            where=modality,
            fix="convert the tables to one scale, or name it (tables: {rna: {transform: log1p}})",
        )
    return seen.pop()  # type: ignore[return-value]


def _matrix(
    sites: _Sites,
    modality: str,
    columns: tuple[str, ...],
    scale: Scale,
    clip: float | None,
    *,
    standardise: bool,
    max_columns: int | None,
) -> MatrixTransform:
    """As :func:`~equipoise.datasets.omics.transforms.fit_matrix`, from three sums."""
    share = np.empty(0, np.float32)
    if scale == "log_cpm":
        sums = sites.total(lambda cases: _share_sums(_rows(cases, modality, columns)))
        share = (sums["share"] / np.maximum(sums["n"], 1)).astype(np.float32)
    zeros = np.zeros(len(columns))
    unbounded = (np.full(len(columns), -np.inf), np.full(len(columns), np.inf))

    def moments(centre: np.ndarray, fence: tuple[np.ndarray, np.ndarray], fill: np.ndarray | None) -> Moments:
        sums = sites.total(
            lambda cases: _moments(_rows(cases, modality, columns), scale, share, centre, fence, fill)
        )
        n = np.maximum(sums["n"], 1)
        return sums["n"], centre + sums["sum"] / n, np.sqrt(np.maximum(sums["squares"] / n, 0))

    known, mean, _ = moments(zeros, unbounded, None)
    mean = np.where(known > 0, mean, 0.0)
    _, _, spread = moments(mean, unbounded, None)
    fence = unbounded if clip is None else (mean - clip * spread, mean + clip * spread)
    _, shift, _ = moments(mean, fence, mean)
    _, _, spread = moments(shift, fence, mean)
    kept = np.flatnonzero(spread > 1e-6 * np.maximum(1.0, np.abs(shift)))
    if max_columns is not None and max_columns < len(kept):
        kept = np.sort(kept[np.argsort(-spread[kept], kind="stable")[:max_columns]])
    if not standardise:
        shift, spread = np.zeros_like(shift), np.ones_like(spread)
    parts = (part[kept].astype(np.float32) for part in (mean, *fence, shift, spread))
    return MatrixTransform(columns, scale, share, kept, *parts)


Moments = tuple[np.ndarray, np.ndarray, np.ndarray]


def _rows(cases: CaseList, modality: str, columns: tuple[str, ...]) -> np.ndarray:
    """``[n, G]`` float32 by name of column; NaN where a site lacks one."""
    rows = []
    for case in cases:
        if modality in case.omics:
            values = case.omics[modality]
            names = columns_of(len(values), case.columns.get(modality))
            if names == columns:
                rows.append(np.asarray(values, np.float32))
            else:
                known = dict(zip(names, values.tolist(), strict=True))
                rows.append(np.array([known.get(name, np.nan) for name in columns], np.float32))
    return np.stack(rows) if rows else np.empty((0, len(columns)), np.float32)


def _share_sums(rows: np.ndarray) -> Answer:
    total = np.maximum(np.nansum(rows, axis=1, keepdims=True), 1)
    parts = (rows / total).astype(np.float64)
    return {}, {"share": np.nansum(parts, axis=0), "n": (~np.isnan(parts)).sum(axis=0).astype(np.float64)}


def _moments(
    rows: np.ndarray,
    scale: Scale,
    share: np.ndarray,
    centre: np.ndarray,
    fence: tuple[np.ndarray, np.ndarray],
    fill: np.ndarray | None,
) -> Answer:
    """``n``, ``sum`` and ``squares`` of what differs from the centre, inside the fence."""
    x_NG = logarithm(rows, scale, share).astype(np.float64)
    if fill is not None:
        x_NG = np.where(np.isnan(x_NG), fill, x_NG)
    deviation = np.clip(x_NG, *fence) - centre
    counts = (~np.isnan(deviation)).sum(axis=0).astype(np.float64)
    return {}, {
        "n": counts,
        "sum": np.nansum(deviation, axis=0),
        "squares": np.nansum(deviation * deviation, axis=0),
    }


def _covariates(sites: _Sites, columns: tuple[str, ...], params: TableParams) -> CovariateTransform:
    """As :func:`~equipoise.datasets.omics.covariate_transform.fit_covariates`, from sums."""
    numeric = tuple(c.column for c in params.clinical if c.type == "number" and c.column in columns)
    counts = sites.total(lambda cases: _gaps(_rows(cases, CLINICAL, numeric)))
    numbers = (
        _matrix(sites, CLINICAL, numeric, "none", CLIP, standardise=True, max_columns=None)
        if numeric
        else None
    )
    some = (counts["missing"] > 0) & (counts["missing"] < counts["n"])
    gaps = tuple(name for name, gap in zip(numeric, some, strict=True) if gap)
    categories = []
    for covariate in params.clinical:
        if covariate.type == "category":
            names = tuple(name for name in columns if name.startswith(f"{covariate.column}="))
            seen = sites.total(lambda cases, names=names: _values(_rows(cases, CLINICAL, names)))  # type: ignore[misc]
            categories.append(_category(covariate.column, names, seen))
    varying = tuple(category for category in categories if len(category.names) > 1)
    return CovariateTransform(numbers if numbers is not None and numbers.names else None, gaps, varying)


def _gaps(rows: np.ndarray) -> Answer:
    return {}, {
        "missing": np.isnan(rows).sum(axis=0).astype(np.float64),
        "n": np.full(rows.shape[1], float(len(rows))),
    }


def _values(rows: np.ndarray) -> Answer:
    counts = np.nansum(rows.astype(np.float64), axis=0)
    unknown = float((np.nansum(rows, axis=1) == 0).sum()) if rows.shape[1] else float(len(rows))
    return {}, {"counts": counts, "unknown": np.array([unknown])}


def _category(column: str, columns: tuple[str, ...], seen: Mapping[str, np.ndarray]) -> Category:
    present = [(name, n) for name, n in zip(columns, seen["counts"].tolist(), strict=True) if n > 0]
    known = max(sum(n for _, n in present), 1)
    values = tuple(name.removeprefix(f"{column}=") for name, _ in present)
    return Category(column, values, bool(seen["unknown"][0] > 0), tuple(n / known for _, n in present))


def _tasks(
    sites: _Sites, tasks: Sequence[Task], class_weights: str, scaling: Literal["minmax", "standard"]
) -> tuple[TaskTarget, ...]:
    zero = {task.name: 0.0 for task in tasks}
    first = sites.total(lambda cases: _label_sums(cases, tasks, zero))
    means = {
        t.name: first[f"{t.name}/sum"][0] / max(first[f"{t.name}/n"][0], 1)
        for t in tasks
        if t.type == "regression"
    }
    second = sites.total(lambda cases: _label_sums(cases, tasks, zero | means))
    leading = next((task for task in tasks if task.main), tasks[0])
    targets = []
    for task in tasks:
        sums = {
            key.removeprefix(f"{task.name}/"): v
            for key, v in second.items()
            if key.startswith(f"{task.name}/")
        }
        if reason := _not_learnable(task, sums):
            if task is leading:
                raise DataError(reason, where=f"task {task.name}")
            warnings.warn(f"task {task.name}: {reason}; nothing of it is learned", DataWarning, stacklevel=3)
        targets.append(_target(task, sums, means.get(task.name, 0.0), class_weights, scaling))
    return tuple(targets)


def _label_sums(cases: CaseList, tasks: Sequence[Task], centres: Mapping[str, float]) -> Answer:
    """Per task: patients with a label, and counts of classes, sums around the centre, or events by day."""
    labels: dict[str, list[Any]] = {task.name: [] for task in tasks}
    for case in cases:
        for task in tasks:
            if not is_missing(case.targets.get(task.name)):
                labels[task.name].append(case.targets[task.name])
    sums: dict[str, np.ndarray] = {}
    for task in tasks:
        values = np.asarray(labels[task.name], np.float64)
        sums[f"{task.name}/n"] = np.array([float(len(values))])
        if task.type == "regression":
            deviation = values - centres[task.name]
            sums[f"{task.name}/sum"] = np.array([deviation.sum()])
            sums[f"{task.name}/squares"] = np.array([(deviation * deviation).sum()])
        elif task.type == "survival":
            days, event = values.reshape(-1, 2).T
            at = np.minimum(np.searchsorted(GRID, days[event > 0]), len(GRID) - 1)
            sums[f"{task.name}/events"] = np.bincount(at, minlength=len(GRID)).astype(np.float64)
        else:
            count = 2 if task.type == "binary" else len(task.class_names)
            sums[f"{task.name}/classes"] = np.bincount(values.astype(int), minlength=count).astype(np.float64)
    return {}, sums


def _not_learnable(task: Task, sums: Mapping[str, np.ndarray]) -> str:
    """Why a task cannot be learned from the labels of all sites together; empty if it can."""
    count = int(sums["n"][0])
    if not count:
        return "no training patient has a label"
    if task.type == "survival":
        return "" if sums["events"].sum() else f"none of {count} training patients has an event"
    same = not sums["squares"][0] if task.type == "regression" else (sums["classes"] > 0).sum() < 2
    return f"all {count} labelled training patients are alike" if same else ""


def _target(
    task: Task,
    sums: Mapping[str, np.ndarray],
    mean: float,
    class_weights: str,
    scaling: Literal["minmax", "standard"],
) -> TaskTarget:
    name, main = task.name, task.main
    if task.type == "survival":
        edges = _edges(task, sums["events"])
        return TaskTarget(TaskHead(name, "survival", 1 + len(edges or ()), main, edges))
    if task.type == "regression":
        spread = float(np.sqrt(sums["squares"][0] / max(sums["n"][0], 1))) or 1.0
        if scaling == "minmax":
            scaler = TargetScaler(scaling, mean - HALF_WIDTH * spread, 2 * HALF_WIDTH * spread)
        else:
            scaler = TargetScaler(scaling, mean, spread)
        return TaskTarget(TaskHead(name, "regression", 1, main), scaler=scaler)
    counts = [int(n) for n in sums["classes"]]
    weights = None
    if class_weights == "balanced":
        balanced = iter(balanced_weights([n for n in counts if n]) if any(counts) else ())
        weights = tuple(next(balanced) if n else 1.0 for n in counts)
    return TaskTarget(TaskHead(name, task.type, len(counts), main), tuple(task.class_names), weights)


def _edges(task: SurvivalTask, events: np.ndarray) -> tuple[float, ...] | None:
    """Days of the grid that split the events into equal parts; None for Cox's model."""
    if task.likelihood == "cox":
        return None
    bins, total = task.bins or BINS, events.sum()
    if not total:
        return ()
    passed = np.cumsum(events) / total
    at = np.searchsorted(passed, np.arange(1, bins) / bins - 1e-12)
    edges = np.unique(GRID[np.minimum(at, len(GRID) - 1)])
    return tuple(edges[edges > GRID[np.argmax(events > 0)]].tolist())
