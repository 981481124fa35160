"""Strata of training patients (cohort, and within it events or classes), and an order that mixes them evenly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from equipoise.platform.training.batches import CaseList
from equipoise.platform.training.targets import Targets

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Parts into which a regression target is cut.
QUANTILES = 4


def strata_of(cases: CaseList, targets: Targets) -> NDArray[np.int64]:
    """``[n]`` number of each patient's stratum.

    Strata are the cohort, and within it events, classes or quarters of the main task; who has no label is a stratum.
    """
    main = next(task for task in targets.tasks if task.head == targets.main)
    read = [(case.cohort, main.encode(case.targets.get(main.head.name))) for case in cases]
    if main.head.kind == "regression":
        values = np.array([np.nan if value is None else value for _, value in read], float)
        known = values[~np.isnan(values)]
        cuts = np.quantile(known, np.arange(1, QUANTILES) / QUANTILES) if len(known) else np.empty(0)
        labels = np.where(np.isnan(values), -1, np.searchsorted(cuts, values)).tolist()
    elif main.head.kind == "survival":
        labels = [-1 if value is None else int(value[1]) for _, value in read]  # type: ignore[index]
    else:
        labels = [-1 if value is None else int(value) for _, value in read]  # type: ignore[arg-type]
    return _codes([(cohort, label) for (cohort, _), label in zip(read, labels, strict=True)])


def _codes(keys: Sequence[tuple[str, int]]) -> NDArray[np.int64]:
    position = {key: i for i, key in enumerate(sorted(set(keys)))}
    return np.array([position[key] for key in keys])


def draw_stratified_order(strata: NDArray[np.int64], size: int, seed: int, epoch: int) -> Iterator[list[int]]:
    """Shuffled indices of an epoch in batches of ``size``, each of which holds its share of every stratum.

    Systematic sampling: the patients of a stratum, shuffled, stand at equal distances with a random start, and all
    strata are read together from the left to the right. Every patient comes once, as in
    :func:`~equipoise.platform.training.batches.draw_order`.

    Parameters
    ----------
    strata
        ``[n]`` of :func:`strata_of`.
    size, seed, epoch
        As there.
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, epoch]))
    count = len(strata)
    shuffled = rng.permutation(count)
    shuffled = shuffled[np.argsort(strata[shuffled], kind="stable")]
    sizes = np.bincount(strata)
    starts = rng.random(len(sizes))
    grouped = strata[shuffled]
    within = np.arange(count) - (np.cumsum(sizes) - sizes)[grouped]
    places = (within + starts[grouped]) / sizes[grouped]
    order = shuffled[np.argsort(places, kind="stable")].tolist()
    for start in range(0, count, size):
        yield order[start : start + size]
