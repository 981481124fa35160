"""Cases become batches: padding, label masks, scaled targets, prepared tables, seeded draws of tiles.

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

from equipoise.datasets.omics.fitting import TableTransform, columns_of
from equipoise.models.batch import CaseBatch
from equipoise.platform.errors import DataError
from equipoise.platform.training.targets import Targets

if TYPE_CHECKING:
    from equipoise.datasets.cases import Case


class CaseSource(Protocol):
    """patient → case: a :class:`~equipoise.datasets.cases.CaseReader`, or a dictionary."""

    def __getitem__(self, patient: str, /) -> Case: ...


@dataclass(frozen=True)
class CaseList(Sequence["Case"]):
    """Cases of these patients, read when they are asked for.

    Parameters
    ----------
    source
        Where cases come from.
    patients
        Who is in the list, in order. Nobody else can be read through it.
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
    """Indices of the tiles a patient shows in an epoch, ascending, without repetition; None for all."""
    if most is None or count <= most:
        return None
    digest = hashlib.blake2b(patient.encode(), digest_size=8).digest()
    rng = np.random.default_rng(np.random.SeedSequence([seed, epoch, int.from_bytes(digest, "big")]))
    return np.sort(rng.choice(count, most, replace=False))


def collate(
    cases: Sequence[Case], targets: Targets, tiles: Sequence[np.ndarray | None] | None = None
) -> CaseBatch:
    """Stack cases into a batch on the CPU.

    Parameters
    ----------
    cases
        One or more.
    targets
        Tasks with their scalers, widths of the data, and the sites of the training patients.
    tiles
        Per case, which tiles to take (:func:`draw_tiles`); all of them by default.

    Raises
    ------
    DataError
        Naming the patient, if there is nothing that the model reads, or a part does not fit what it was trained
        on.
    """
    tiles = tiles or [None] * len(cases)
    for case in cases:
        _check_case(case, targets)
    bags = [case.bag if rows is None else case.bag[rows] for case, rows in zip(cases, tiles, strict=True)]
    coords = [
        case.coords if rows is None else case.coords[rows] for case, rows in zip(cases, tiles, strict=True)
    ]
    most = max(len(bag) for bag in bags)
    x_BND = np.zeros((len(cases), most, targets.shape.features), np.float32)
    xy_BN2 = np.zeros((len(cases), most, 2), np.int32)
    mask_BN = np.zeros((len(cases), most), bool)
    for i, (bag, xy) in enumerate(zip(bags, coords, strict=True)):
        if len(bag):
            x_BND[i, : len(bag)], xy_BN2[i, : len(bag)], mask_BN[i, : len(bag)] = bag, xy, True
    omics, present = _omics(cases, targets)
    values, labelled = {}, {}
    for task in targets.tasks:
        encoded = [task.encode(case.targets.get(task.head.name)) for case in cases]
        labelled[task.head.name] = torch.tensor([value is not None for value in encoded])
        blank = (0.0, 0.0) if task.head.kind == "survival" else 0.0
        values[task.head.name] = torch.tensor(
            [blank if v is None else v for v in encoded], dtype=torch.float32
        )
    site = torch.tensor([targets.site_index(case.site) for case in cases], dtype=torch.int64)
    return CaseBatch(
        bags=torch.from_numpy(x_BND),
        mask=torch.from_numpy(mask_BN),
        coords=torch.from_numpy(xy_BN2),
        omics=omics,
        present=present,
        targets=values,
        label_mask=labelled,
        site=site,
    )


def _omics(
    cases: Sequence[Case], targets: Targets
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Tables as the training patients fixed them."""
    omics, present = {}, {}
    for modality, width in targets.shape.omics.items():
        rows = np.zeros((len(cases), width), np.float32)
        there = [modality in case.omics for case in cases]
        for i, case in enumerate(cases):
            if there[i]:
                rows[i] = _prepared(case, modality, targets.tables[modality])
        omics[modality], present[modality] = torch.from_numpy(rows), torch.tensor(there)
    return omics, present


def _prepared(case: Case, modality: str, table: TableTransform) -> np.ndarray:
    values = case.omics[modality]
    try:
        return table.apply(values, columns_of(len(values), case.columns.get(modality)))
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
