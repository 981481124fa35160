"""Tiny cases with a planted signal, and tasks of all four kinds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from equipoise.datasets.cohorts.cases import Case
from equipoise.datasets.tables.tasks import BinaryTask, MulticlassTask, RegressionTask, SurvivalTask, Task

Cases = dict[str, Case]


@pytest.fixture(scope="session")
def tasks() -> tuple[Task, ...]:
    return (
        BinaryTask(name="MSI", column="MSI", positive="MSI-H", negative="MSS", main=True),
        MulticlassTask(name="grade", column="grade", classes=["low", "mid", "high"]),
        RegressionTask(name="LF", column="LF"),
        SurvivalTask(
            name="OS", time={"column": "t", "unit": "days"}, event={"column": "e", "event_value": "dead"}
        ),
    )


@pytest.fixture(scope="session")
def make_cases() -> Callable[..., Cases]:
    """``make_cases(n, seed, missing)``: n patients, every third of them MSI-H, shown by three tiles."""

    def make(n: int = 24, *, seed: int = 0, features: int = 8, missing: bool = True) -> Cases:
        rng = np.random.default_rng(seed)
        cases = {}
        for i in range(n):
            positive, tiles = float(i % 3 == 0), int(rng.integers(4, 9))
            burden = float(rng.normal())
            bag = rng.normal(scale=0.3, size=(tiles, features))
            bag[:3, 0] += 3 * positive
            bag[:, 1] += burden
            unlabelled = missing and i % 7 == 5
            time = float(np.exp(6 - burden) + 1)
            patient = f"P{i:02d}"
            cases[patient] = Case(
                patient=patient,
                cohort="SYN-A" if i % 2 else "SYN-B",
                site=f"S{i % 4}",
                bag=bag.astype(np.float16),
                coords=rng.integers(0, 1000, (tiles, 2)).astype(np.int32),
                slides=(f"{patient}-1",),
                tiles=(tiles,),
                omics={} if i % 5 == 4 else {"rna": rng.normal(size=3).astype(np.float32)},
                targets={
                    "MSI": positive,
                    "grade": float(i % 3),
                    "LF": np.nan if unlabelled else 10 + 4 * burden,
                    "OS": (np.nan, np.nan) if unlabelled else (time, float(i % 4 != 1)),
                },
            )
        return cases

    return make
