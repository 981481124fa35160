"""Must hold for every strategy: inline = one worker = three workers = killed and resumed, bit for bit."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from equipoise.platform.federation.messages import ClientUpdate, TrainRequest
from equipoise.platform.federation.privacy.mechanism import NoPrivacy
from equipoise.platform.federation.result import FederationResult
from equipoise.platform.federation.simulation.ray_backend import WorkerPool
from equipoise.platform.federation.simulation.simulation import Simulation
from equipoise.platform.registry import entries

#: Models that show what is special about a strategy: layers to keep at the client, a contrast of representations.
MODELS = {"fedbn": "joint", "moon": "joint"}
#: Everything that is drawn from seeds at once: who takes part, who is late, who drops out.
UNEVEN: dict[str, Any] = {
    "participation": {"scheme": "uniform", "fraction": 0.8},
    "clock": {"speed_sd": 0.6, "jitter_sd": 0.3, "deadline": 3.0, "failures": 0.1},
}


class InterruptError(Exception):
    """Stands for any interruption of a process."""


@pytest.fixture(scope="module")
def pool(ray_session: None) -> Iterator[WorkerPool]:
    pool = WorkerPool(3, cpus=0.5)
    yield pool
    pool.shutdown()


def settings(strategy: str) -> dict[str, Any]:
    chosen: dict[str, Any] = {"strategy": strategy, "model": MODELS.get(strategy, "concat")}
    if strategy == "fedbuff":
        return chosen | {
            "strategy_params": {"buffer": 2, "concurrency": 3},
            "clock": {"speed_sd": 0.6, "jitter_sd": 0.3},
        }
    return chosen | UNEVEN


def same(one: FederationResult, other: FederationResult) -> bool:
    """Weights, personal weights, history and audit log, bit for bit."""
    assert one.history == other.history
    assert one.audit_log.rows == other.audit_log.rows
    assert sorted(one.personal) == sorted(other.personal)
    assert all(np.array_equal(one.personal[c], other.personal[c]) for c in one.personal)
    return np.array_equal(one.vector, other.vector)


@pytest.mark.parametrize("strategy", list(entries("strategies")))
def test_backends_and_resumption_agree(
    strategy: str, federate: Callable[..., Simulation], pool: WorkerPool, tmp_path: Path
) -> None:
    chosen = settings(strategy)
    alone = federate(**chosen, extra={"folder": tmp_path / "alone"}).run()
    assert not np.array_equal(alone.vector, federate(**chosen).initial)
    for workers in (1, 3):
        extra = {"pool": pool, "folder": tmp_path / str(workers)}
        on_ray = federate(**chosen, backend="ray", workers=workers, extra=extra).run()
        assert on_ray.workers == workers
        assert same(alone, on_ray)

    def interrupt(row: dict[str, float]) -> None:
        if row["round"] == 2:
            raise InterruptError

    with pytest.raises(InterruptError):
        federate(**chosen, extra={"folder": tmp_path / "again", "on_round": interrupt}).run()
    assert same(alone, federate(**chosen, extra={"folder": tmp_path / "again"}).run())
    assert any("sha256" in row for row in alone.audit_log.rows)


def test_a_worker_that_is_killed_is_built_again(
    federate: Callable[..., Simulation], pool: WorkerPool
) -> None:
    """Its clients continue from their states in the round in which it died."""
    import ray

    chosen = {"strategy": "scaffold", "rounds": 4}
    alone = federate(**chosen).run()
    before = ray.get(pool.actors[0].process.remote())

    def kill(row: dict[str, float]) -> None:
        if row["round"] == 2:
            os.kill(before, signal.SIGKILL)

    extra = {"pool": pool, "on_round": kill}
    killed = federate(**chosen, backend="ray", workers=2, extra=extra).run()
    assert ray.get(pool.actors[0].process.remote()) != before
    assert same(alone, killed)


class Faulty(NoPrivacy):
    """A client whose data cannot be read in one round."""

    def privatize(
        self, update: ClientUpdate, request: TrainRequest, weights: Mapping[str, float]
    ) -> ClientUpdate:
        if (update.client, request.round) == ("B", 1):
            raise OSError("the disk is gone for a moment")
        return update


@pytest.mark.parametrize("strategy", ["ditto", "scaffold"])
def test_a_client_that_fails_once_keeps_its_state(
    strategy: str, federate: Callable[..., Simulation], pool: WorkerPool
) -> None:
    """It continues from its last state on every backend."""
    import ray

    ray.cloudpickle.register_pickle_by_value(sys.modules[Faulty.__module__])
    chosen = {"strategy": strategy, "rounds": 4}
    alone = federate(**chosen, extra={"privacy": Faulty()}).run()
    failed = [(row["round"], row["client"]) for row in alone.audit_log.rows if row["verdict"] == "failed"]
    assert failed == [(1, "B")]
    on_ray = federate(**chosen, backend="ray", workers=2, extra={"privacy": Faulty(), "pool": pool}).run()
    assert alone.history == on_ray.history
    assert np.array_equal(alone.vector, on_ray.vector)
    assert all(np.array_equal(alone.personal[c], on_ray.personal[c]) for c in alone.personal)


class Sleepy(NoPrivacy):
    """A client that hangs in one round."""

    def privatize(
        self, update: ClientUpdate, request: TrainRequest, weights: Mapping[str, float]
    ) -> ClientUpdate:
        if (update.client, request.round) == ("C", 1):
            time.sleep(600)
        return update


def test_a_client_that_hangs_is_given_up(federate: Callable[..., Simulation], pool: WorkerPool) -> None:
    """Its worker is replaced, and the clients behind it in the queue continue."""
    import ray

    # Test modules cannot be imported in workers.
    ray.cloudpickle.register_pickle_by_value(sys.modules[Sleepy.__module__])
    extra = {"pool": pool, "privacy": Sleepy()}
    result = federate(rounds=3, backend="ray", workers=1, timeout_s=8, extra=extra).run()
    verdicts = [
        (row["round"], row["client"]) for row in result.audit_log.rows if row["verdict"] != "accepted"
    ]
    assert verdicts == [(1, "C")]
    assert len(result.audit_log.rows) == 12
