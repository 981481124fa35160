"""Training, inner validation and test part of every fold.

Only development patients are split; the inner validation part is cut from the training part, so the test part
is touched once. Folds depend on the seed and on who takes part, not on the order of the tables.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from equipoise.datasets.cohorts.fold_parts import DevelopPatients, FoldParts
from equipoise.datasets.cohorts.preserved_sites import assign_sites, site_counts
from equipoise.datasets.errors import DataError
from equipoise.datasets.params import KFoldParams, MonteCarloParams, SplitParams
from equipoise.datasets.tables.tasks import RegressionTask, Task, main_task

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Fold",
    "FoldParts",
    "SplitScheme",
    "make_folds",
    "splits_from_json",
    "splits_to_json",
    "strata_of",
]

#: How far an inner validation part of whole sites may exceed the wanted share before patients are drawn.
MAX_INNER_EXCESS = 2.0


@dataclass(frozen=True)
class Fold:
    """Patients of one fold; the three parts do not overlap.

    ``title`` is the name that published folds have in their files, ``unknown`` what these name and the study has not.
    """

    repeat: int
    index: int
    train: tuple[str, ...]
    val: tuple[str, ...]
    test: tuple[str, ...]
    title: str = ""
    unknown: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """``repeat-index``, as in the run folder."""
        return f"{self.repeat}-{self.index}"


@dataclass(frozen=True)
class SplitScheme:
    """A split scheme with its parameters.

    Attributes
    ----------
    draw
        Test parts of one repeat, as positions of the sorted development patients, or :class:`FoldParts`; parts
        that overlap are repeats of one fold each.
    params
        Its parameters; a scheme with ``repeats`` among them is drawn that often.
    base
        Folder of the study file, from which relative paths start.
    """

    draw: Callable[[DevelopPatients, Any, np.random.Generator], Sequence[np.ndarray | FoldParts]]
    params: SplitParams
    base: Path = Path()


def strata_of(task: Task, patients: pd.DataFrame) -> np.ndarray:
    """[n] int stratum of each patient: class, event or quartile of the task; -1 without a label."""
    values = patients[task.frame_columns[-1]].to_numpy(dtype=float)
    strata = np.full(len(values), -1, dtype=np.int64)
    known = np.flatnonzero(~np.isnan(values))
    if isinstance(task, RegressionTask):
        ranks = np.argsort(np.argsort(values[known], kind="stable"), kind="stable")
        strata[known] = ranks * 4 // max(len(known), 1)
    else:
        strata[known] = values[known].astype(np.int64)
    return strata


def make_folds(
    patients: pd.DataFrame,
    scheme: SplitScheme,
    tasks: Sequence[Task],
    seed: int,
    slides: pd.DataFrame | None = None,
) -> list[Fold]:
    """Split the development patients.

    Parameters
    ----------
    patients
        Table of :class:`~equipoise.datasets.cohorts.cohort.Cohorts`; rows with another role than ``develop`` are
        ignored.
    scheme
        The scheme with its parameters.
    tasks
        Parts are stratified on the main task.
    seed
        Repeat r draws its test parts from ``SeedSequence([seed, r])``; fold i its inner validation from the
        i-th child.
    slides
        Columns slide and patient, for folds that name slides.

    Raises
    ------
    DataError
        If there are fewer patients, sites or cohorts than the scheme needs, or a training part has no patient
        of a class (no event) of the main task.
    """
    owners = {} if slides is None else dict(zip(slides["slide"], slides["patient"], strict=True))
    develop = replace(_develop_patients(patients, tasks), base=scheme.base, slides=owners)
    params = scheme.params
    repeats = getattr(params, "repeats", 1)
    folds = []
    for repeat in range(repeats):
        rng = np.random.default_rng(np.random.SeedSequence([seed, repeat]))
        drawn = [
            part if isinstance(part, FoldParts) else FoldParts(part)
            for part in scheme.draw(develop, params, rng)
        ]
        apart = repeats == 1 and _overlap(drawn)
        for index, parts in enumerate(drawn):
            place = (index, 0) if apart else (repeat, index)
            folds.append(_completed(develop, parts, params, place, seed, main_task(tasks)))
    return folds


def _overlap(drawn: Sequence[FoldParts]) -> bool:
    """Whether somebody is tested in two folds: they are then repeats, in each of which everybody is tested once."""
    return sum(len(parts.test) for parts in drawn) > len({i for parts in drawn for i in parts.test})


def _completed(
    develop: DevelopPatients,
    parts: FoldParts,
    params: SplitParams,
    place: tuple[int, int],
    seed: int,
    task: Task,
) -> Fold:
    """A fold with the parts that its scheme leaves open."""
    repeat, index = place
    # A child, not [seed, repeat, index]: NumPy pads with zeros, so [s, r, 0] would repeat [s, r].
    rng = np.random.default_rng(np.random.SeedSequence([seed, repeat], spawn_key=(index,)))
    everyone = np.arange(len(develop.patients))
    rest = np.setdiff1d(everyone if parts.train is None else parts.train, parts.test)
    val = _inner_validation(develop, rest, params, rng) if parts.val is None else parts.val
    train = np.setdiff1d(rest, val)
    _refuse_impossible(develop, train, parts.title or f"{repeat}-{index}", task)
    named = [tuple(develop.patients[part].tolist()) for part in (train, val, parts.test)]
    return Fold(repeat, index, named[0], named[1], named[2], parts.title, parts.unknown)


def _develop_patients(patients: pd.DataFrame, tasks: Sequence[Task]) -> DevelopPatients:
    if not tasks:
        raise DataError("no task to stratify the folds on", where="splits", fix="add a task to the study")
    develop = patients[patients["role"] == "develop"].sort_values("patient", kind="stable")
    if len(develop) < 3:
        raise DataError(
            f"{len(develop)} development patients cannot be split into training, validation and test part",
            where="splits",
            fix="give a cohort with role: develop; the participant flow shows where patients were lost",
        )
    task = main_task(tasks)
    return DevelopPatients(
        patients=develop["patient"].to_numpy(dtype=object),
        sites=develop["site"].to_numpy(dtype=object),
        cohorts=develop["cohort"].to_numpy(dtype=object),
        strata=strata_of(task, develop),
        required=not isinstance(task, RegressionTask),
    )


def _refuse_impossible(develop: DevelopPatients, train: np.ndarray, fold: str, task: Task) -> None:
    """A training part must show every class of the main task."""
    lacking = set(develop.strata[develop.strata >= 0]) - set(develop.strata[train])
    if develop.required and lacking:
        names = {"survival": ("censored patient", "event"), "binary": ("negative", "positive")}.get(
            task.type, task.class_names
        )
        raise DataError(
            f"the training part of fold {fold} has no {', '.join(names[i] for i in sorted(lacking))} "
            f"({len(train)} patients)",
            where=f"splits, task {task.name!r}",
            fix="use fewer folds, a smaller inner_val, or more patients of that class",
        )


def kfold(develop: DevelopPatients, params: KFoldParams, rng: np.random.Generator) -> list[np.ndarray]:
    """Assign patients to folds stratum by stratum: sizes, also of a stratum, differ by at most one."""
    n = len(develop.patients)
    if params.folds > n:
        raise DataError(
            f"{n} patients for {params.folds} folds", where="splits", fix=f"splits: {{folds: {max(n, 2)}}}"
        )
    order = np.lexsort((rng.random(n), develop.strata))
    names = rng.permutation(params.folds)
    fold = np.empty(n, dtype=np.int64)
    fold[order] = names[np.arange(n) % params.folds]
    return [np.flatnonzero(fold == index) for index in range(params.folds)]


def site_preserved(
    develop: DevelopPatients, params: KFoldParams, rng: np.random.Generator
) -> list[np.ndarray]:
    """Assign whole sites to folds (:mod:`equipoise.datasets.cohorts.preserved_sites`)."""
    names, counts = site_counts(develop.sites, develop.strata)
    if len(names) < params.folds:
        raise DataError(
            f"{len(names)} site(s) ({', '.join(names[:5])}) for {params.folds} site-preserved folds",
            where="splits",
            fix="use fewer folds or scheme: kfold, or say where sites come from (cohorts: site: tss)",
        )
    site_fold = assign_sites(counts, np.full(params.folds, 1 / params.folds), rng)
    fold = site_fold[np.searchsorted(names, develop.sites.astype(str))]
    return [np.flatnonzero(fold == index) for index in range(params.folds)]


def leave_one_cohort_out(
    develop: DevelopPatients, params: SplitParams, rng: np.random.Generator
) -> list[np.ndarray]:
    """Each development cohort is the test part once, in the order of their names."""
    cohorts = sorted(set(develop.cohorts))
    if len(cohorts) < 2:
        raise DataError(
            f"leave_one_cohort_out needs two development cohorts, the study has {', '.join(cohorts)}",
            where="splits",
            fix="use scheme: kfold or site_preserved, or add a cohort with role: develop",
        )
    return [np.flatnonzero(develop.cohorts == cohort) for cohort in cohorts]


def monte_carlo(
    develop: DevelopPatients, params: MonteCarloParams, rng: np.random.Generator
) -> list[np.ndarray]:
    """One random stratified test part."""
    return [draw_stratified(develop.strata, params.test_fraction, rng, required=develop.required)]


def draw_stratified(
    strata: np.ndarray, fraction: float, rng: np.random.Generator, *, required: bool
) -> np.ndarray:
    """Positions of a random part that holds about ``fraction`` of every stratum.

    Parameters
    ----------
    strata
        [n] int with n >= 2; -1 = no label.
    fraction
        Share of the n positions; at least one is drawn and one is left.
    rng
        Source of randomness.
    required
        Every labelled stratum of two or more gives at least one and keeps at least one, even if the part
        grows.

    Returns
    -------
    numpy.ndarray
        Sorted positions.
    """
    names, sizes = np.unique(strata, return_counts=True)
    wanted = fraction * sizes
    labelled = (names >= 0) & (sizes >= 2) & required
    take = np.maximum(np.floor(wanted).astype(np.int64), labelled.astype(np.int64))
    # A stratum keeps one of its own as long as others can give.
    spare = sizes - 1
    take = np.minimum(take, spare)
    target = int(np.clip(round(fraction * len(strata)), 1, len(strata) - 1))
    for limit in (spare, sizes):
        while take.sum() < target and (take < limit).any():
            need = np.where(take < limit, wanted - take, -np.inf)
            take[int(np.argmax(need))] += 1
    drawn = [
        rng.permutation(np.flatnonzero(strata == name))[:count]
        for name, count in zip(names, take, strict=True)
    ]
    return np.sort(np.concatenate(drawn))


def _inner_validation(
    develop: DevelopPatients, rest: np.ndarray, params: SplitParams, rng: np.random.Generator
) -> np.ndarray:
    """Positions of the inner validation part; whole sites where the scheme keeps them and that is possible."""
    if len(rest) < 2:
        raise DataError(
            f"{len(rest)} patient(s) are left for training and inner validation",
            where="splits",
            fix="use more patients, fewer folds or a smaller test_fraction",
        )
    strata = develop.strata[rest]
    if params.keeps_sites_whole:
        whole = _whole_sites(develop.sites[rest], strata, params.inner_val, rng, required=develop.required)
        if whole is not None:
            return rest[whole]
    return rest[draw_stratified(strata, params.inner_val, rng, required=develop.required)]


def _whole_sites(
    sites: np.ndarray, strata: np.ndarray, fraction: float, rng: np.random.Generator, *, required: bool
) -> np.ndarray | None:
    """Positions of whole sites with about ``fraction`` of every stratum, or ``None`` if none is good."""
    names, counts = site_counts(sites, strata)
    if len(names) < 2:
        return None
    chosen = assign_sites(counts, np.array([1 - fraction, fraction]), rng)
    inside = chosen[np.searchsorted(names, sites.astype(str))] == 1
    too_many = inside.sum() > MAX_INNER_EXCESS * fraction * len(sites) + 1
    incomplete = required and set(strata[inside & (strata >= 0)]) != set(strata[strata >= 0])
    emptied = required and set(strata[~inside & (strata >= 0)]) != set(strata[strata >= 0])
    return None if too_many or incomplete or emptied or not inside.any() else np.flatnonzero(inside)


def splits_to_json(
    folds: Iterable[Fold], params: SplitParams | None = None, seed: int | None = None
) -> dict[str, Any]:
    """What ``splits.json`` holds; parameters and seed say how the folds came about, if given."""
    return {
        "version": 1,
        "seed": seed,
        "params": None if params is None else params.model_dump(),
        "folds": [
            {
                key: list(v) if isinstance(v, tuple) else v
                for key, v in asdict(fold).items()
                if v or key not in ("title", "unknown")
            }
            for fold in folds
        ],
    }


def splits_from_json(data: Mapping[str, Any], patients: Iterable[str] | None = None) -> list[Fold]:
    """The folds of a ``splits.json``.

    Parameters
    ----------
    data
        Its content.
    patients
        Development patients of the study; given, the splits must hold exactly these.

    Raises
    ------
    DataError
        If the content is of another version, or made for other patients.
    """
    if data.get("version") != 1:
        raise DataError(
            f"splits of version {data.get('version')!r}; this release reads 1", where="splits.json"
        )
    folds = []
    for f in data["folds"]:
        train, val, test, unknown = (
            tuple(map(str, f.get(part, ()))) for part in ("train", "val", "test", "unknown")
        )
        title = str(f.get("title", ""))
        folds.append(Fold(int(f["repeat"]), int(f["index"]), train, val, test, title, unknown))
    if patients is not None:
        known = set(patients)
        for fold in folds:
            listed = {*fold.train, *fold.val, *fold.test}
            if differing := sorted(listed ^ known):
                raise DataError(
                    f"fold {fold.name} was made for other patients: {len(listed - known)} are not in the "
                    f"study, {len(known - listed)} are missing ({', '.join(differing[:3])})",
                    where="splits.json",
                    fix="delete it to draw new folds, or restore the tables it was made from",
                )
    return folds
