"""Collating cases into batches: padding, label masks, scaled targets, transformed tables, seeded draws of tiles.

Every random draw has its own :class:`numpy.random.SeedSequence` of (seed, epoch) or (seed, epoch, patient),
so that what is drawn for a patient does not depend on batch size, order, or the number of workers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from equipoise.datasets.cohorts.places import corners_um
from equipoise.datasets.omics.fitting import TableTransform, columns_of
from equipoise.models.batch import CaseBatch
from equipoise.platform.errors import DataError
from equipoise.platform.training.targets import Targets

if TYPE_CHECKING:
    from equipoise.datasets.cohorts.cases import Case


class CaseSource(Protocol):
    """patient → case: a :class:`~equipoise.datasets.cohorts.cases.CaseReader`, or a dictionary."""

    def __getitem__(self, patient: str, /) -> Case: ...


@dataclass(frozen=True)
class CaseList(Sequence["Case"]):
    """Cases of these patients, read when they are asked for.

    Parameters
    ----------
    source
        Where cases come from.
    patients
        Patients of the list, in order. No other patient can be read through it.
    """

    source: CaseSource
    patients: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.patients)

    def __getitem__(self, index: int) -> Case:  # type: ignore[override]
        return self.source[self.patients[index]]


def draw_order(count: int, size: int, seed: int, epoch: int) -> Iterator[list[int]]:
    """Shuffled indices of an epoch in batches of ``size``; the last one may be smaller."""
    order = np.random.default_rng(np.random.SeedSequence([seed, epoch])).permutation(count).tolist()
    for start in range(0, count, size):
        yield order[start : start + size]


def draw_tiles(count: int, most: int | None, seed: int, epoch: int, patient: str) -> np.ndarray | None:
    """Indices of the tiles of a patient in an epoch, ascending, without repetition; None for all."""
    if most is None or count <= most:
        return None
    digest = hashlib.blake2b(patient.encode(), digest_size=8).digest()
    rng = np.random.default_rng(np.random.SeedSequence([seed, epoch, int.from_bytes(digest, "big")]))
    return np.sort(rng.choice(count, most, replace=False))


def collate(
    cases: Sequence[Case],
    targets: Targets,
    tiles: Sequence[np.ndarray | None] | None = None,
    *,
    states: bool = False,
) -> CaseBatch:
    """Stack cases into a batch on the CPU.

    Parameters
    ----------
    cases
        One or more.
    targets
        Tasks with their scalers, widths of the data, and the sites and cohorts of the training patients.
    tiles
        Per case, which tiles to take (:func:`draw_tiles`); all of them by default.
    states
        Whether the model reads hidden states in place of tiles (:func:`~equipoise.models.base.reads_states`). Where
        every case with tiles has them, they are read and the tiles' features are not.

    Raises
    ------
    DataError
        Naming the patient, if a case has no input that the model reads, or its widths or columns differ from those
        of training.
    """
    tiles = tiles or [None] * len(cases)
    for case in cases:
        _check_case(case, targets)
    kept, counts = _states(cases, tiles) if states else (None, None)
    bags, mask, coords = _tiles(cases, tiles, targets.shape.features, read=kept is None)
    omics, present = _omics(cases, targets)
    values, labelled = _labels(cases, targets)
    corners, extent = _places(cases, tiles, mask)
    site = torch.tensor([targets.site_index(case.site) for case in cases], dtype=torch.int64)
    cohort = torch.tensor([targets.cohort_index(case.cohort) for case in cases], dtype=torch.int64)
    return CaseBatch(
        bags=bags,
        mask=mask,
        coords=coords,
        omics=omics,
        present=present,
        targets=values,
        label_mask=labelled,
        site=site,
        cohort=cohort,
        corners=corners,
        extent=extent,
        states=kept,
        state_counts=counts,
    )


def _states(
    cases: Sequence[Case], tiles: Sequence[np.ndarray | None]
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """``[B, T, F]`` float16 hidden states and ``[B, T]`` tiles behind each token, padded with zeros; None without."""
    if any(case.states is None for case in cases if len(case.bag)):
        return None, None
    parts = []
    for case, rows in zip(cases, tiles, strict=True):
        x, n = (case.states, case.state_counts) if len(case.bag) else (None, None)
        if x is None or n is None:
            continue
        if rows is not None and n.max() == 1:  # of prototypes all are taken
            whole = len(x) - len(case.bag)  # tokens of the slide as a whole
            chosen = np.concatenate([np.arange(whole), whole + rows])
            x, n = x[chosen], n[chosen]
        parts.append((x, n))
    if not parts:
        return None, None
    most = max(len(x) for x, _ in parts)
    blank = torch.empty if len(parts) == len(cases) and min(len(x) for x, _ in parts) == most else torch.zeros
    x_BTF = blank(len(cases), most, parts[0][0].shape[1], dtype=torch.float16)
    n_BT = torch.zeros(len(cases), most)
    having = (i for i, case in enumerate(cases) if len(case.bag))
    for i, (x, n) in zip(having, parts, strict=True):
        x_BTF[i, : len(x)] = torch.from_numpy(np.require(x, requirements="W"))
        n_BT[i, : len(n)] = torch.from_numpy(n.astype(np.float32))
    return x_BTF, n_BT


def _tiles(
    cases: Sequence[Case], tiles: Sequence[np.ndarray | None], features: int, *, read: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """``[B, N, D]`` float32 features, ``[B, N]`` mask and ``[B, N, 2]`` int32 coordinates, padded with zeros.

    Features that are not ``read`` are one number, repeated without memory.
    """
    counts = [len(case.bag) if rows is None else len(rows) for case, rows in zip(cases, tiles, strict=True)]
    most = max(counts)
    blank = torch.empty if min(counts) == most else torch.zeros
    x_BND = blank(len(cases), most, features) if read else torch.zeros(()).expand(len(cases), most, features)
    xy_BN2 = blank(len(cases), most, 2, dtype=torch.int32)
    for i, (case, rows, count) in enumerate(zip(cases, tiles, counts, strict=True)):
        if count:
            # Copies, because stores are mapped read-only; torch widens half precision ten times as fast as NumPy.
            if read:
                x_BND[i, :count] = torch.from_numpy(case.bag.copy() if rows is None else case.bag[rows])
            xy_BN2[i, :count] = torch.from_numpy(case.coords.copy() if rows is None else case.coords[rows])
    mask_BN = torch.arange(most) < torch.tensor(counts)[:, None]
    return x_BND, mask_BN, xy_BN2


def _places(
    cases: Sequence[Case], tiles: Sequence[np.ndarray | None], mask: torch.Tensor
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """``[B, N, 2]`` corners and ``[B]`` extents of tiles in um; None where one of the cases with tiles does not say."""
    corners_BN2, extent_B = torch.zeros(*mask.shape, 2), torch.ones(len(cases))
    for i, (case, rows) in enumerate(zip(cases, tiles, strict=True)):
        if not len(case.bag):
            continue
        placed = corners_um(case.coords, case.tiles, case.mpp, case.extent)
        if placed is None:
            return None, None
        placed = placed if rows is None else placed[rows]
        corners_BN2[i, : len(placed)] = torch.from_numpy(placed)
        extent_B[i] = case.extent
    return corners_BN2, extent_B


def _labels(
    cases: Sequence[Case], targets: Targets
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Task → scaled targets, and task → mask of the known ones."""
    encoded = [[task.encode(case.targets.get(task.head.name)) for case in cases] for task in targets.tasks]
    known_TB = torch.tensor([[value is not None for value in row] for row in encoded])
    values: dict[str, torch.Tensor] = {}
    for task, row in zip(targets.tasks, encoded, strict=True):
        blank = (0.0, 0.0) if task.head.kind == "survival" else 0.0
        values[task.head.name] = torch.tensor([blank if v is None else v for v in row], dtype=torch.float32)
    return values, {task.head.name: known for task, known in zip(targets.tasks, known_TB, strict=True)}


def _omics(
    cases: Sequence[Case], targets: Targets
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Rows of the tables, transformed as fitted on the training patients, and which of them are present."""
    omics, present = {}, {}
    for modality, width in targets.shape.omics.items():
        rows = np.zeros((len(cases), width), np.float32)
        known = [modality in case.omics for case in cases]
        for i, case in enumerate(cases):
            if known[i]:
                rows[i] = _transformed_row(case, modality, targets.tables[modality])
        omics[modality], present[modality] = torch.from_numpy(rows), torch.tensor(known)
    return omics, present


def _transformed_row(case: Case, modality: str, table: TableTransform) -> np.ndarray:
    values = case.omics[modality]
    try:
        return table.apply(values, columns_of(len(values), case.columns.get(modality)), case.cohort)
    except DataError as error:
        raise DataError(
            f"{modality}: {error.what}", where=f"patient {case.patient} of {case.cohort}", fix=error.fix
        ) from error


def _check_case(case: Case, targets: Targets) -> None:
    where = f"patient {case.patient} of {case.cohort}"
    if len(case.bag) == 0 and not any(modality in case.omics for modality in targets.shape.omics):
        tables = f" and no row in {', '.join(targets.shape.omics)}" if targets.shape.omics else ""
        raise DataError(
            f"the patient has no tile{tables}", where=where, fix="exclude the patient, or extract the slides"
        )
    if len(case.bag) and case.bag.shape[1] != targets.shape.features:
        raise DataError(
            f"tiles have {case.bag.shape[1]} features, the model was prepared for {targets.shape.features}",
            where=where,
            fix="use features of the encoder that the model was trained on",
        )
