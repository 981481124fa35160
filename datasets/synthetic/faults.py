"""Faults of real cohorts, on request: damaged slides, wrong headers, contradicting tables.

A fault of a slide affects one patient, whom ``truth/faults.csv`` names. A pipeline should report each fault and
stop for none.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from equipoise.datasets.synthetic.clinical import TME
from equipoise.datasets.synthetic.params import SLIDE_FAULTS, FaultName
from equipoise.datasets.synthetic.patients import Patient

if TYPE_CHECKING:
    import pandas as pd

    from equipoise.datasets.synthetic.tiff import TiledImage

#: Factor on the resolution in an absurd header (seen in a converted public slide).
ABSURD = 0.01
#: The source site that is poisoned: the largest.
POISONED_SOURCE = 1


def assign_faults(faults: Sequence[FaultName], patients: Sequence[Patient]) -> dict[str, FaultName]:
    """Patient → fault, for the faults that affect one patient: in order, over the patients with a slide."""
    single: list[FaultName] = [f for f in faults if f in SLIDE_FAULTS or f == "duplicate_patient"]
    candidates = [patient.barcode for patient in patients if "slide" not in patient.missing]
    if len(single) > len(candidates):
        raise ValueError(f"{len(single)} faults do not fit {len(candidates)} patients with a slide")
    return dict(zip(candidates, single, strict=False))


def corrupt_file(fault: FaultName | None, path: Path, base: "TiledImage") -> None:
    """Damage a finished file: cut it in half, or overwrite one tile of the base level with zeros."""
    if fault == "truncated":
        with path.open("r+b") as file:
            file.truncate(path.stat().st_size // 2)
    elif fault == "corrupt_tile":
        tile = central_tile(base)
        with path.open("r+b") as file:
            file.seek(base.offsets[tile])
            file.write(b"\0" * base.counts[tile])


def central_tile(base: "TiledImage") -> int:
    """A tile that shows tissue: the one in the middle."""
    columns, rows = -(-base.width // base.tile), -(-base.height // base.tile)
    return rows // 2 * columns + columns // 2


def corrupt_clinical(
    clinical: "pd.DataFrame",
    faults: Sequence[FaultName],
    assigned: dict[str, FaultName],
    patients: Sequence[Patient],
) -> tuple["pd.DataFrame", list[tuple[str, FaultName]]]:
    """The clinical table (text) with its faults, and (patient, fault) of all faults, those of slides included."""
    import pandas as pd

    table = clinical.copy()
    applied: list[tuple[str, FaultName]] = list(assigned.items())
    if "swapped_labels" in faults:
        pair = _swap(table, ~table["PATIENT"].isin(list(assigned)).to_numpy())
        applied.extend((patient, "swapped_labels") for patient in pair)
    if "poisoned_site" in faults:
        poisoned = np.array([patient.source == POISONED_SOURCE for patient in patients])
        _poison(table, poisoned)
        applied.extend((patient, "poisoned_site") for patient in table["PATIENT"][poisoned])
    for patient, fault in assigned.items():
        if fault == "duplicate_patient":
            again = pd.DataFrame(table.loc[table["PATIENT"] == patient])
            again["LISS"], again["AGE"] = "9.9", "24"
            table = pd.concat([table, again], ignore_index=True)
    return table, applied


def _swap(table: "pd.DataFrame", free: np.ndarray) -> list[str]:
    """Exchange the MSI labels of one positive and one negative patient, in place."""
    rows = [int(np.flatnonzero(table["MSI"].eq(label) & free)[0]) for label in ("MSI-H", "MSS")]
    table.loc[rows, "MSI"] = ["MSS", "MSI-H"]
    return [str(table["PATIENT"][row]) for row in rows]


def _poison(table: "pd.DataFrame", rows: np.ndarray) -> None:
    """Invert the classes of these rows and mirror their scores at the cohort's mean, in place."""
    for column, (one, zero) in {"MSI": ("MSI-H", "MSS"), "HRD": ("HRD", "HRP")}.items():
        table.loc[rows, column] = table.loc[rows, column].replace({one: zero, zero: one})
    for column in TME:
        known = (table[column] != "").to_numpy()
        mean = table.loc[known, column].astype(float).mean()
        for row in np.flatnonzero(rows & known):
            table.loc[row, column] = f"{2 * mean - float(table.loc[row, column]):.4f}"
