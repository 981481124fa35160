"""Fed-TCGA-BRCA: pooled training equals what FLamby published, seed by seed; properties of the federated loop."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

_FILE = Path(__file__).resolve().parents[3] / "benchmarks" / "flamby.py"
_SPEC = importlib.util.spec_from_file_location("flamby", _FILE)
flamby = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(flamby)


@pytest.fixture(autouse=True)
def _global_generator_as_before():
    """Restore the global generator, because the protocol seeds it."""
    with torch.random.fork_rng(devices=[]):
        yield


@pytest.mark.real
def test_pooled_training_is_the_published_one(shared_data: Path) -> None:
    torch.set_num_threads(1)
    regions = flamby.read(shared_data)
    assert [len(rows) for rows in regions.clients] == [248, 156, 164, 129, 129, 40]
    assert [len(regions.tests[name]) for name in flamby.TESTS] == [222, 63, 40, 42, 33, 33, 11]
    ours = flamby.central(regions.pooled, regions, seed=42)
    theirs = flamby.published(shared_data)["Pooled Training", 42]
    assert ours == pytest.approx({name: theirs[name] for name in flamby.TESTS}, abs=0.002)


def test_the_loss_is_the_loop_of_the_protocol() -> None:
    """Rows by decreasing time, each event against everybody before it and itself, over all rows."""
    rng = np.random.default_rng(0)
    scores = torch.from_numpy(rng.normal(size=(8, 1)))
    y = torch.from_numpy(np.stack([rng.integers(0, 2, 8), rng.permutation(8) + 1.0], axis=1))
    expected = 0.0
    for i in range(8):
        at_risk = scores[y[:, 1] >= y[i, 1], 0]
        expected += float(y[i, 0] * (torch.logsumexp(at_risk, 0) - scores[i, 0])) / 8
    assert float(flamby.cox(scores, y)) == pytest.approx(expected)


def regions():
    """Six small regions in which the first covariate is the risk."""
    rng = np.random.default_rng(1)

    def rows(n: int):
        x = rng.normal(size=(n, 3)).astype(np.float32)
        days = np.exp(4 - 2 * x[:, 0] + rng.normal(size=n) * 0.1).astype(np.float32)
        return flamby.TensorDataset(
            torch.from_numpy(x), torch.from_numpy(np.stack([np.ones(n), days], 1)).float()
        )

    clients = [rows(12) for _ in range(flamby.REGIONS)]
    pooled = flamby.TensorDataset(
        *(torch.cat(parts) for parts in zip(*(c.tensors for c in clients), strict=True))
    )
    return flamby.Regions(clients, pooled, {name: rows(30) for name in flamby.TESTS})


@pytest.mark.parametrize("name", ["fedavg", "scaffold", "fedadam", "cyclic"])
def test_strategies_of_the_product_learn_in_the_loop(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(flamby, "UPDATES", 8)
    parts, method = regions(), flamby.METHODS[name]._replace(lr=0.1)
    first = flamby.federated(method, parts, seed=3)
    assert first[flamby.POOLED] > 0.8
    assert flamby.federated(method, parts, seed=3) == first


def test_balanced_aggregation_replaces_the_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flamby, "UPDATES", 8)
    result = flamby.federated(flamby.METHODS["fedavg"], regions(), seed=3, server_aggregation="balanced")
    assert result[flamby.POOLED] > 0.8


def test_standardisation_makes_columns_alike() -> None:
    rng = np.random.default_rng(2)
    n = 120
    table = pd.DataFrame({"pid": [f"p{i}" for i in range(n)], "age": rng.integers(30, 90, n).astype(float)})
    table = table.assign(
        grade=rng.integers(0, 2, n).astype(float), E=rng.integers(0, 2, n), T=1.0 + np.arange(n)
    )
    table["fold2"] = [f"train_{i % flamby.REGIONS}" for i in range(n)]
    result = flamby.standardised_rows(table, ["age", "grade"])
    assert result.mean(0) == pytest.approx([0, 0], abs=1e-4)
    assert result.std(0) == pytest.approx([1, 1], abs=1e-3)
