"""A tiny study with imported feature bags, built once per session: cohorts of 24 and 12 patients, one external."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from equipoise.datasets.synthetic import catalogue
from equipoise.platform.cluster.params import RayOptions
from equipoise.platform.run import steps
from equipoise.platform.run.folder import RunFolder
from equipoise.platform.run.loading import load_study
from equipoise.platform.run.synthesis import synthesize
from equipoise.platform.search.context import SearchContext
from equipoise.platform.search.search import prepare
from equipoise.platform.study.schema import Study

#: Settings with which a trial takes a fraction of a second.
SMALL: dict[str, Any] = {
    "model": {"kind": "mean_pool", "dim": 8},
    "training.epochs": 2,
    "training.bag_tiles": 8,
    "tasks": [
        {
            "name": "MSI",
            "type": "binary",
            "column": "MSI",
            "positive": "MSI-H",
            "negative": ["MSS"],
            "main": True,
        },
        {"name": "LF", "type": "regression", "column": "LF"},
    ],
    "evaluation.bootstrap": 50,
    "splits.folds": 2,
}
#: A few quick methods, and two numbers.
SPACE: dict[str, Any] = {
    "balancing": ["equal", "uncertainty", "equal+pcgrad"],
    "training.lr": {"loguniform": [1e-3, 1e-2]},
    "training.weight_decay": 0.01,
    "training.batch": 8,
    "training.bag_tiles": 8,
    "model.dim": [8, 16],
    "model.dropout": 0.1,
    "model.layers": 1,
}


@pytest.fixture(scope="session")
def bags(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the cohorts, their bags in the feature store, and ``study.yaml``."""
    root = tmp_path_factory.mktemp("bags")
    preset = catalogue.PRESETS_BY_NAME["bench"]
    cohorts = [preset.cohorts[0], preset.cohorts[1].model_copy(update={"role": "external"})]
    small = preset.model_copy(
        update={
            "cohorts": tuple(
                c.model_copy(update={"patients": n}) for c, n in zip(cohorts, (24, 12), strict=True)
            )
        }
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(catalogue.PRESETS_BY_NAME, "bench", small)
        synthesize("bench", 7, root, RayOptions())
    steps.extract(steps.RunContext(load_study(root / "study.yaml", SMALL), RunFolder(root / "extracted")))
    return root


@pytest.fixture(scope="session")
def make_study(bags: Path) -> Callable[..., Study]:
    """``make_study(searcher="grid", …)``: the study with this ``search`` section."""

    def make(settings: dict[str, Any] | None = None, **search: Any) -> Study:
        section = {"trials": 5, "folds": 2, "space": SPACE, "trial_time_limit_s": 300, **search}
        return load_study(bags / "study.yaml", SMALL | {"search": section} | (settings or {}))

    return make


@pytest.fixture(scope="session")
def make_search(make_study: Callable[..., Study]) -> Callable[..., SearchContext]:
    """``make_search(…)``: the :class:`SearchContext` of that study."""

    def make(**search: Any) -> SearchContext:
        study = make_study(**search)
        return prepare(study, steps.RunContext(study, RunFolder(Path("unused"))).inputs)

    return make
