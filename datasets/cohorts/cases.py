"""A patient's data as NumPy records: tiles of all slides, omics that exist, targets that are known.

Records hold what exists and mark what is missing; ``equipoise.platform.training.batches`` collates them into
batches of tensors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np

from equipoise.datasets.cohorts.cohort import Cohorts
from equipoise.datasets.errors import DataError
from equipoise.datasets.suggestions import nearest
from equipoise.datasets.tables.tasks import SurvivalTask, Task

if TYPE_CHECKING:
    import pandas as pd


class SlideFeatures(Protocol):
    """What cases need from a feature store."""

    def read(self, slide: str) -> tuple[np.ndarray, np.ndarray]:
        """Features [N, D] float16 and tile corners [N, 2] int32 of a slide."""
        ...

    def mpp(self, slide: str) -> float:
        """um per level-0 px of a slide; NaN if it is not known."""
        ...

    @property
    def extent(self) -> float:
        """Side of a tile in um."""
        ...


class SlideStates(Protocol):
    """What cases need from a store of hidden states."""

    def read(self, slides: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """States [T, F] float16 of a patient's slides, and how many tiles stand behind each token [T]."""
        ...


@dataclass(frozen=True)
class Case:
    """One patient.

    Attributes
    ----------
    patient, cohort, site
        Who and from where.
    bag
        [N, D] float16 tile features, slides one behind the other in manifest order; [0, 0] without slides.
    coords
        [N, 2] int32 top-left corners of the tiles in level-0 px of their own slide.
    slides
        Names of the slides in that order.
    tiles
        Tiles of each slide, in that order; they sum to N.
    omics
        Modality → [G] float32, NaN = a single value is missing; a modality that is absent has no key.
        ``clinical`` are the covariates.
    targets
        Task → value (binary 0/1, multiclass class index, regression original unit) or, for survival, (days,
        event); NaN = missing.
    columns
        Modality → [G] names of the columns, the same tuple for all patients of a reader; by position where a
        modality has no key.
    mpp
        um per level-0 px of each slide, NaN = not known; empty in a case that was made without.
    extent
        Side of a tile in um; NaN in a case that was made without.
    states
        [T, F] float16 hidden states of a slide encoder, for models that read them in place of tiles: first tokens of
        the slides as a whole, then of tiles; None in a case that was made without.
    state_counts
        [T] int32 tiles behind each token of ``states``.
    """

    patient: str
    cohort: str
    site: str
    bag: np.ndarray
    coords: np.ndarray
    slides: tuple[str, ...]
    tiles: tuple[int, ...]
    omics: dict[str, np.ndarray]
    targets: dict[str, float | tuple[float, float]]
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    mpp: tuple[float, ...] = ()
    extent: float = math.nan
    states: np.ndarray | None = None
    state_counts: np.ndarray | None = None


class CaseReader(Mapping[str, Case]):
    """Patients of a study, read on demand.

    A mapping from patient to :class:`Case` in the order of ``cohorts.patients``. Bags of one slide stay the
    store's memory map; only several slides of a patient are copied together.

    Parameters
    ----------
    cohorts
        Who is in; after :meth:`Cohorts.with_slide_status`, so that every slide can be read.
    store
        Feature store, ``None`` for studies without slides.
    role
        Only patients of this role can be read: training holds a reader of ``develop``, to which external
        patients do not exist.
    states
        Store of hidden states, where the model reads them.
    """

    def __init__(
        self,
        cohorts: Cohorts,
        store: SlideFeatures | None,
        *,
        role: Literal["develop", "external"] | None = None,
        states: SlideStates | None = None,
    ) -> None:
        self.cohorts = cohorts
        self.states = states
        self.store = store
        self.role = role
        listed = zip(cohorts.patients["patient"], cohorts.patients["role"], strict=True)
        self._rows = {
            patient: i for i, (patient, patient_role) in enumerate(listed) if role in (None, patient_role)
        }
        self._columns = {m: tuple(map(str, matrix.columns)) for m, matrix in cohorts.omics.items()}
        self._slides: dict[str, list[str]] = {}
        for slide, patient in zip(cohorts.slides["slide"], cohorts.slides["patient"], strict=True):
            self._slides.setdefault(patient, []).append(slide)

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __getitem__(self, patient: str) -> Case:
        """Read one patient.

        Raises
        ------
        DataError
            If the patient is not in, or features and coordinates of a slide do not fit.
        """
        if patient not in self._rows:
            raise DataError(
                f"patient {patient!r} is not among the {self.role or 'study'} patients"
                f"{nearest(str(patient), self._rows)}",
                where="cases",
                fix="manifest/exclusions.csv says who is left out and why",
            )
        row = self.cohorts.patients.iloc[self._rows[patient]]
        slides = tuple(self._slides.get(patient, ())) if self.store is not None else ()
        bag, coords, tiles = self._bag(slides)
        states, counts = self.states.read(slides) if self.states is not None and slides else (None, None)
        return Case(
            patient=patient,
            cohort=row["cohort"],
            site=row["site"],
            bag=bag,
            coords=coords,
            slides=slides,
            tiles=tiles,
            omics={
                modality: matrix.loc[patient].to_numpy(dtype=np.float32)
                for modality, matrix in self.cohorts.omics.items()
                if patient in matrix.index
            },
            targets={task.name: _target(row, task) for task in self.cohorts.tasks},
            columns=self._columns,
            mpp=() if self.store is None else tuple(self.store.mpp(slide) for slide in slides),
            extent=math.nan if self.store is None else self.store.extent,
            states=states,
            state_counts=counts,
        )

    def _bag(self, slides: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray, tuple[int, ...]]:
        """Features, corners and tile counts of all slides of a patient."""
        if self.store is None or not slides:
            return np.empty((0, 0), np.float16), np.empty((0, 2), np.int32), ()
        parts = [self.store.read(slide) for slide in slides]
        for slide, (features, coords) in zip(slides, parts, strict=True):
            if (
                len(features) != len(coords)
                or features.ndim != 2
                or features.shape[1] != parts[0][0].shape[1]
            ):
                raise DataError(
                    f"features {features.shape} and coordinates {coords.shape} do not fit one another",
                    where=f"feature store, slide {slide}",
                    fix="extract the slide again",
                )
        tiles = tuple(len(features) for features, _ in parts)
        if len(parts) == 1:
            return parts[0][0], parts[0][1], tiles
        return np.concatenate([f for f, _ in parts]), np.concatenate([c for _, c in parts]), tiles


def _target(row: pd.Series, task: Task) -> float | tuple[float, float]:
    """A number, or (days, event) of a survival task."""
    if isinstance(task, SurvivalTask):
        time, event = (float(row[column]) for column in task.frame_columns)
        return time, event
    return float(row[task.name])
