"""Four small sites over one small table: labels of three kinds, some of them missing somewhere."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest

from equipoise.datasets.cohorts.cases import Case
from equipoise.datasets.tables.tasks import BinaryTask, RegressionTask, SurvivalTask, Task
from equipoise.platform.federation.params import FederationParams
from equipoise.platform.federation.simulation.simulation import Simulation
from equipoise.platform.training.batches import CaseList
from equipoise.platform.training.build import build_model
from equipoise.platform.training.params import TrainingParams
from equipoise.platform.training.targets import Targets, fit_targets

#: Site → patients.
SIZES = {"A": 9, "B": 6, "C": 5, "D": 4}
TASKS: tuple[Task, ...] = (
    BinaryTask(name="MSI", column="MSI", positive="MSI-H", negative="MSS", main=True),
    RegressionTask(name="LF", column="LF"),
    SurvivalTask(
        name="OS", time={"column": "t", "unit": "days"}, event={"column": "e", "event_value": "dead"}
    ),
)


def make_sites(sizes: dict[str, int] | None = None) -> dict[str, CaseList]:
    """LF is unknown at site B, C has no event, D has no RNA; every patient has tiles."""
    made = {}
    for at, (site, count) in enumerate((sizes or SIZES).items()):
        rng = np.random.default_rng(at)
        cases = {}
        for i in range(count):
            bag = rng.normal(size=(3, 4)).astype(np.float16)
            burden = float(bag[:, 1].mean())
            patient = f"{site}-{i:03d}"
            targets: dict[str, Any] = {
                "MSI": float((i + at) % 2),
                "LF": np.nan if site == "B" else burden,
                "OS": (float(np.exp(5 - burden)), 0.0 if site == "C" else float(i % 3 > 0)),
            }
            omics = {} if site == "D" else {"rna": rng.normal(size=3).astype(np.float32)}
            cases[patient] = Case(
                patient, "SYN", site, bag, np.zeros((3, 2), np.int32), (patient,), (3,), omics, targets
            )
        made[site] = CaseList(cases, tuple(cases))
    return made


@pytest.fixture(scope="session")
def sites() -> dict[str, CaseList]:
    """Site → training patients."""
    return make_sites()


@pytest.fixture(scope="session")
def targets(sites: dict[str, CaseList]) -> Targets:
    """Fitted on all sites together."""
    return fit_targets(TASKS, [case for cases in sites.values() for case in cases])


@pytest.fixture(scope="session")
def federate(sites: dict[str, CaseList], targets: Targets) -> Callable[..., Simulation]:
    """``federate(model="concat", clients=..., training=..., **params)``: a federation that is not run yet."""

    def make(
        *,
        model: str = "concat",
        model_params: dict[str, Any] | None = None,
        clients: dict[str, CaseList] | None = None,
        seed: int = 3,
        training: dict[str, Any] | None = None,
        extra: dict[str, Any] | None = None,
        **params: Any,
    ) -> Simulation:
        if model_params is None:
            model_params = {
                "concat": {"dim": 4, "hidden": 2, "layers": 1, "dropout": 0.25},
                "joint": {"dim": 8, "heads": 2, "encoder_layers": 1, "decoder_layers": 1, "feedforward": 8},
            }[model]
        factory = partial(build_model, model, model_params, targets.shape, targets.heads, seed=1)
        chosen = {"rounds": 3, "local": {"epochs": 1, "optimizer": "sgd", "lr": 0.05, "batch": 5}} | params
        return Simulation(
            factory,
            targets,
            clients or sites,
            FederationParams.model_validate({"backend": "inline"} | chosen),
            seed=seed,
            training=TrainingParams.model_validate({"device": "cpu"} | (training or {})),
            **(extra or {}),
        )

    return make
