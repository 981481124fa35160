"""Federations of a plain module over data loaders: closed forms, strategies, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.utils.data import DataLoader, TensorDataset

from equipoise.platform.errors import DataError, FederationError, StudyError
from equipoise.platform.federation.params import FederationParams
from equipoise.platform.federation.result import FederationResult
from equipoise.platform.federation.simulation.loaders import federate_loaders

SIZES = {"A": 12, "B": 6, "C": 4}
Batch = tuple[Tensor, Tensor]


class Line(nn.Module):
    """A linear model with a norm, whose modules carry names that a study's model would have."""

    def __init__(self, norm: bool = False) -> None:
        super().__init__()
        self.encoders = nn.ModuleDict({"x": nn.Linear(3, 2)})
        self.norm = nn.BatchNorm1d(2) if norm else nn.Identity()
        self.head = nn.Linear(2, 1)

    def latents(self, batch: Batch) -> dict[str, Tensor]:
        return {"y": self.encoders["x"](batch[0])}

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.encoders["x"](x)))[:, 0]


def loss_fn(model: nn.Module, batch: Batch) -> Tensor:
    return mse_loss(model(batch[0]), batch[1])


def make_loaders(batch: int | None = None, **options: Any) -> dict[str, DataLoader[Any]]:
    """Clients of different sizes; a client's whole data set in one batch if ``batch`` is not given."""
    loaders: dict[str, DataLoader[Any]] = {}
    for at, (client, n) in enumerate(SIZES.items()):
        x = torch.randn(n, 3, generator=torch.Generator().manual_seed(at))
        data = TensorDataset(x, x[:, 0] * (1 + at) - 1)
        loaders[client] = DataLoader(data, batch_size=batch or n, **options)
    return loaders


def run(
    loaders: Any = None, model_fn: Any = Line, folder: Path | None = None, **params: Any
) -> FederationResult:
    local = {"steps": 1, "optimizer": "sgd", "lr": 0.1}
    settings = FederationParams.model_validate({"rounds": 3, "local": local} | params)
    chosen = make_loaders() if loaders is None else loaders
    return federate_loaders(model_fn, chosen, loss_fn, settings, seed=5, folder=folder)


def test_one_full_step_is_the_weighted_gradient_step() -> None:
    first, second = (run(rounds=rounds).vector for rounds in (1, 2))
    model = run(rounds=1).factory()
    for expected in (first, second):
        model.zero_grad()
        for client, loader in make_loaders().items():
            for batch in loader:
                (loss_fn(model, batch) * SIZES[client] / sum(SIZES.values())).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad
        flat = torch.cat([p.detach().flatten() for p in model.parameters()]).numpy()
        assert expected == pytest.approx(flat, abs=1e-6)


def test_the_model_learns_and_history_says_so() -> None:
    result = run(
        make_loaders(4, shuffle=True), rounds=20, local={"epochs": 2, "optimizer": "sgd", "lr": 0.05}
    )
    assert result.history[-1]["loss/loss"] < 0.5 * result.history[0]["loss/loss"]
    x, y = next(iter(make_loaders()["A"]))
    assert float(mse_loss(result.model(x), y)) < float(mse_loss(result.factory()(x), y))
    assert {row["accepted"] for row in result.history} == {3.0}
    assert result.manifests["A"].n == 12


@pytest.mark.parametrize(
    "settings",
    [
        {"strategy": "fedavgm"},
        {"strategy": "fedprox"},
        {"strategy": "scaffold"},
        {"strategy": "fedadam"},
        {"strategy": "fednova"},
        {"strategy": "feddyn"},
        {"strategy": "moon"},
        {"strategy": "cyclic"},
        {"strategy": "ditto"},
        {"strategy": "finetune"},
        {"strategy": "fedbuff", "strategy_params": {"buffer": 2}, "clock": {"speed_sd": 0.5}},
        {"strategy": "fedper", "strategy_params": {"personal": ["re:head"]}},
        {"server_aggregation": "median"},
        {"server_aggregation": "balanced"},
        {"privacy": {"secure_aggregation": {}}, "validation": {"norm_factor": None}},
    ],
    ids=lambda settings: (
        settings.get("strategy") or settings.get("server_aggregation") or "secure_aggregation"
    ),
)
def test_strategies_and_aggregations_run_and_resume(settings: dict[str, Any], tmp_path: Path) -> None:
    """Killed after the second round and continued: the same bits, though batches are shuffled."""
    chosen = {"local": {"epochs": 1, "optimizer": "sgd", "lr": 0.05}} | settings

    def stop(row: dict[str, float]) -> None:
        if row["round"] == 2:
            raise KeyboardInterrupt

    def start(folder: Path | None = None, on_round: Any = None) -> FederationResult:
        loaders = make_loaders(4, shuffle=True, generator=torch.Generator().manual_seed(77))
        params = FederationParams.model_validate({"rounds": 3} | chosen)
        return federate_loaders(Line, loaders, loss_fn, params, seed=5, folder=folder, on_round=on_round)

    whole = start()
    assert not np.array_equal(whole.vector, whole.schema.flatten(whole.factory()))
    with pytest.raises(KeyboardInterrupt):
        start(tmp_path, stop)
    torch.manual_seed(0)  # the state of the global generator does not matter
    resumed = start(tmp_path)
    assert np.array_equal(whole.vector, resumed.vector)
    assert whole.history == resumed.history
    assert sorted(whole.personal) == sorted(resumed.personal)
    assert all(np.array_equal(whole.personal[c], resumed.personal[c]) for c in whole.personal)


def test_norms_stay_at_clients_with_fedbn() -> None:
    result = run(model_fn=lambda: Line(norm=True), strategy="fedbn")
    kept = result.schema.mask(["norm"])
    assert kept.any()
    assert sorted(result.personal) == sorted(SIZES)
    assert not np.array_equal(result.personal["A"][kept], result.personal["B"][kept])


def test_what_cannot_be_done_is_refused() -> None:
    with pytest.raises(DataError, match="no client"):
        run({})
    with pytest.raises(DataError, match="no batch"):
        run({"A": DataLoader(TensorDataset(torch.zeros(1, 3), torch.zeros(1)), batch_size=2, drop_last=True)})
    with pytest.raises(StudyError, match="privacy of patients"):
        run(privacy={"record_level": {"delta": 0.01}, "statistics": "public"})
    with pytest.raises(StudyError, match="batches are those of the loaders"):
        run(backend="ray")
    with pytest.raises(StudyError, match="sites, timeout_s: only for"):
        run(sites="iid", timeout_s=5)


def test_a_client_whose_loss_is_not_finite_is_left_out() -> None:
    loaders = make_loaders()
    data = TensorDataset(torch.full((4, 3), torch.nan), torch.zeros(4))
    result = run(loaders | {"D": DataLoader(data, batch_size=4)}, rounds=1)
    assert np.array_equal(result.vector, run(loaders, rounds=1).vector)
    assert "the loss of client D is nan" in next(r["reason"] for r in result.audit_log.rows if "reason" in r)
    with pytest.raises(FederationError, match="3 rounds in a row"):
        run({"D": DataLoader(data, batch_size=4)}, rounds=3)
