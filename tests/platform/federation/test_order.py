"""Clients draw their batches as a training in one place does: with their share of events, if that is asked for."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest

from equipoise.datasets.cohorts.cases import Case
from equipoise.datasets.tables.tasks import SurvivalTask
from equipoise.platform.federation.params import FederationParams
from equipoise.platform.federation.simulation.simulation import Simulation
from equipoise.platform.training.batches import CaseList
from equipoise.platform.training.build import build_model
from equipoise.platform.training.params import TrainingParams
from equipoise.platform.training.step import Epoch
from equipoise.platform.training.targets import fit_targets

OS = SurvivalTask(name="OS", time={"column": "t", "unit": "days"}, event={"column": "e", "event_value": "1"})


def client(site: str, patients: int, events: int) -> CaseList:
    rng = np.random.default_rng(events)
    cases = {
        f"{site}{i}": Case(
            f"{site}{i}",
            "SYN",
            site,
            np.empty((0, 0), np.float16),
            np.empty((0, 2), np.int32),
            (),
            (),
            {"rna": rng.normal(size=3).astype(np.float32)},
            {"OS": (float(rng.integers(10, 999)), float(i < events))},
        )
        for i in range(patients)
    }
    return CaseList(cases, tuple(cases))


@pytest.mark.parametrize("order", ["stratified", "shuffled"])
def test_batches_of_clients_hold_their_share_of_events(monkeypatch, order: str) -> None:
    clients = {"A": client("A", 64, 16), "B": client("B", 48, 24)}
    share = {"A": 2, "B": 4}  # of 8 patients
    targets = fit_targets([OS], [case for cases in clients.values() for case in cases])
    apart: list[float] = []
    step = Epoch.step

    def recording(self: Epoch, rows: list[int]) -> None:
        cases = [self.train[i] for i in rows]
        apart.append(abs(sum(case.targets["OS"][1] for case in cases) - share[cases[0].site]))  # type: ignore[index,misc]
        step(self, rows)

    monkeypatch.setattr(Epoch, "step", recording)
    Simulation(
        partial(build_model, "omics", {"network": "linear"}, targets.shape, targets.heads, seed=1),
        targets,
        clients,
        FederationParams.model_validate(
            {"rounds": 3, "backend": "inline", "min_n": 1, "local": {"epochs": 1, "batch": 8}}
        ),
        seed=3,
        training=TrainingParams.model_validate({"device": "cpu", "order": order}),
    ).run()
    assert len(apart) == 3 * (8 + 6)
    assert (max(apart) <= 1) == (order == "stratified")  # shuffled batches hold what chance gives them
