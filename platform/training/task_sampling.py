"""Which training patients an epoch sees, when tasks and cohorts of very different size share a model.

A *cell* is a task in a cohort. With sizes n of the labelled training patients, a patient is drawn from a cell with a
probability proportional to n^(1/T): T = 1 draws cells by their size, larger temperatures let small cells come more
often, and without bound all cells come equally often. Source: temperature sampling of multilingual translation
(Arivazhagan et al., arXiv 1907.05019, section 4.2). A drawn patient counts for all of its labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from equipoise.platform.training.batches import CaseList
from equipoise.platform.training.targets import Targets

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: Keeps these draws apart from those of other orders with the same seed and epoch.
STREAM = 3


def cells_of(cases: CaseList, targets: Targets) -> dict[tuple[str, str], NDArray[np.int64]]:
    """(task, cohort) → positions of the patients of the cohort that have a label of the task; none is empty."""
    cells: dict[tuple[str, str], list[int]] = {}
    for i, case in enumerate(cases):
        for task in targets.tasks:
            name = task.head.name
            if task.encode(case.targets.get(name)) is not None:
                cells.setdefault((name, case.cohort), []).append(i)
    return {key: np.array(cells[key], np.int64) for key in sorted(cells)}


def cell_shares(sizes: Sequence[int], temperature: float) -> NDArray[np.float64]:
    """``[C]`` probabilities of the cells, proportional to n^(1/T); T may be infinite.

    >>> cell_shares([900, 100], 2.0).tolist()
    [0.75, 0.25]
    """
    weights = np.asarray(sizes, float) ** (1 / temperature)
    return weights / weights.sum()


def draw_task_order(
    cells: Sequence[NDArray[np.int64]], draws: int, size: int, temperature: float, seed: int, epoch: int
) -> Iterator[list[int]]:
    """Positions of the patients of an epoch, in batches of ``size`` that each hold their share of every cell.

    How often a cell is drawn in the epoch is its expectation, rounded up or down at random (systematic sampling); its
    patients come in a random order, and again in another one when all of them have come.

    Parameters
    ----------
    cells
        Values of :func:`cells_of`.
    draws
        Patients of the epoch.
    size
        Patients of a batch; the last one may be smaller.
    temperature
        As of :func:`cell_shares`.
    seed, epoch
        Everything random is a function of them.
    """
    rng = np.random.default_rng(np.random.SeedSequence([seed, epoch, STREAM]))
    marks = (
        np.concatenate([[0.0], np.cumsum(cell_shares([len(cell) for cell in cells], temperature))]) * draws
    )
    marks[-1] = draws
    # Cell c gets the whole numbers k with marks[c] <= k + start < marks[c + 1].
    counts = np.diff(np.ceil(marks - rng.random()).clip(0, draws).astype(int))
    counts[-1] += draws - counts.sum()
    chosen, places = [], []
    for cell, count in zip(cells, counts.tolist(), strict=True):
        rounds = -(-count // len(cell))
        order = np.concatenate([rng.permutation(cell) for _ in range(rounds)]) if rounds else cell[:0]
        chosen.append(order[:count])
        places.append((np.arange(count) + rng.random()) / max(count, 1))
    order = np.concatenate(chosen)[np.argsort(np.concatenate(places), kind="stable")].tolist()
    for start in range(0, draws, size):
        yield order[start : start + size]
