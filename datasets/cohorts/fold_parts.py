"""What a split scheme gets and what it draws."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class DevelopPatients:
    """Inputs of the schemes, one entry per development patient, sorted by patient.

    Attributes
    ----------
    patients, sites, cohorts
        [n] text.
    strata
        [n] int: label on which parts are stratified, -1 = none.
    required
        Every part should have a patient of every stratum (classes and events, not quartiles of a
        measurement).
    base
        Folder that relative paths of a scheme start from.
    slides
        Name of a slide → patient.
    """

    patients: np.ndarray
    sites: np.ndarray
    cohorts: np.ndarray
    strata: np.ndarray
    required: bool
    base: Path = Path()
    slides: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class FoldParts:
    """What a scheme draws for one fold that decides more than the test part.

    Attributes
    ----------
    test
        Positions of the sorted development patients.
    train, val
        Positions; without ``train`` it is everybody else, without ``val`` it is drawn from training.
    title, unknown
        As in :class:`~equipoise.datasets.cohorts.splits.Fold`.
    """

    test: np.ndarray
    train: np.ndarray | None = None
    val: np.ndarray | None = None
    title: str = ""
    unknown: tuple[str, ...] = ()
