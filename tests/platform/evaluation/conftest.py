"""Small predictions tables for tests of the evaluation."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from equipoise.platform.evaluation.predictions import COLUMNS


def binary_rows(
    role: str = "test",
    *,
    n: int = 40,
    folds: int = 4,
    task: str = "MSI",
    seed: int = 0,
    prefix: str = "p",
    cohort: str = "a",
    models: int | None = None,
) -> pd.DataFrame:
    """Binary predictions: ``val`` and ``test`` patients are assigned to folds, every model predicts ``external``."""
    rng = np.random.default_rng([seed, {"val": 0, "test": 1, "external": 2}[role]])
    rows = []
    for k in range(models or folds):
        for i in range(n):
            if role != "external" and i % folds != k:
                continue
            y = float((i // folds) % 3 == 0)
            # Each fold's model has its own scale: pooling raw scores over folds would be wrong.
            logit = 1.3 * (y - 0.4) + rng.normal() + 2.0 * (k - 1.5)
            rows.append(
                {
                    "patient": f"{prefix}{role[0]}{i:03d}", "cohort": cohort, "site": f"{cohort}{i % 2}",
                    "repeat": 0, "fold": k, "role": role, "task": task, "class": "MSI-H",
                    "score": float(1 / (1 + np.exp(-logit))), "target": y, "time": np.nan, "event": np.nan,
                }
            )  # fmt: skip
    return pd.DataFrame(rows, columns=list(COLUMNS))


def of_patient(rows: pd.DataFrame, values: np.ndarray) -> np.ndarray:
    """One value per patient, on all of the patient's rows."""
    return values[pd.factorize(rows["patient"])[0]]


def regression_rows(role: str = "test", *, n: int = 40, folds: int = 4, task: str = "LISS") -> pd.DataFrame:
    """Regression predictions."""
    rows = binary_rows(role, n=n, folds=folds, task=task)
    rng = np.random.default_rng(5)
    target = of_patient(rows, rng.normal(3, 2, n))
    return rows.assign(**{"class": "", "target": target, "score": 0.7 * target + rng.normal(1, 1, len(rows))})


def survival_rows(role: str = "test", *, n: int = 40, folds: int = 4, task: str = "OS") -> pd.DataFrame:
    """Survival predictions with ties in time and in risk."""
    rows = binary_rows(role, n=n, folds=folds, task=task)
    rng = np.random.default_rng(6)
    risk = np.round(rng.normal(size=len(rows)), 1)
    time = np.ceil(rng.exponential(60 * np.exp(-risk)) + 1)
    event = (rng.random(len(rows)) < 0.7).astype(float)
    return rows.assign(**{"class": "", "target": np.nan, "score": risk, "time": time, "event": event})


def multiclass_rows(role: str = "test", *, n: int = 40, folds: int = 4, task: str = "Grade") -> pd.DataFrame:
    """Predictions of three classes."""
    rows = binary_rows(role, n=n, folds=folds, task=task)
    rng = np.random.default_rng(7)
    truth = of_patient(rows, rng.integers(0, 3, n))
    share = np.exp(1.2 * np.eye(3)[truth] + rng.normal(size=(len(rows), 3)))
    share /= share.sum(1, keepdims=True)
    parts = [
        rows.assign(**{"class": f"G{k + 1}", "score": share[:, k], "target": (truth == k).astype(float)})
        for k in range(3)
    ]
    return pd.concat(parts, ignore_index=True)


@pytest.fixture
def binary() -> Callable[..., pd.DataFrame]:
    """Factory of binary predictions."""
    return binary_rows


@pytest.fixture
def regression() -> Callable[..., pd.DataFrame]:
    """Factory of regression predictions."""
    return regression_rows


@pytest.fixture
def survival() -> Callable[..., pd.DataFrame]:
    """Factory of survival predictions."""
    return survival_rows


@pytest.fixture
def multiclass() -> Callable[..., pd.DataFrame]:
    """Factory of multiclass predictions."""
    return multiclass_rows


@pytest.fixture(scope="session")
def everything() -> pd.DataFrame:
    """All four kinds of tasks in all roles; two models see the external cohort."""
    parts = []
    for rows_of in (binary_rows, regression_rows, survival_rows, multiclass_rows):
        parts += [rows_of(role, n=60) for role in ("val", "test")]
        external = rows_of("external", n=60)
        parts.append(external[external["fold"] < 2])
    return pd.concat(parts, ignore_index=True)
