"""A backend of another kind: clients behind a wire that carries bytes, as in a network of hospitals."""

from __future__ import annotations

import ast
import json
from collections import deque
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import numpy as np
import pytest

from equipoise.platform.federation.clients.runner import ClientRunner
from equipoise.platform.federation.engine import Federation
from equipoise.platform.federation.messages import ClientManifest, Reply, TrainRequest
from equipoise.platform.federation.privacy.mechanism import NoPrivacy
from equipoise.platform.federation.simulation.simulation import Simulation


class Hospital:
    """One site: its data, its model, and the state that never leaves it."""

    def __init__(self, simulation: Simulation, name: str) -> None:
        setup = simulation.setup(simulation.strategy, NoPrivacy())
        self.name, self.runner = name, ClientRunner(setup, {name: simulation.client_data[name]})
        self.state, self.pending = b"", b""

    def declare(self) -> bytes:
        return json.dumps(self.runner.join()[0].to_json()).encode()

    def answer(self, request: bytes, request_id: str) -> bytes:
        data, self.pending = self.runner.train(
            self.name, TrainRequest.from_bytes(request), request_id, self.state
        )
        return b"".join(data) if isinstance(data, list) else bytes(data)

    def accepted(self) -> None:
        self.state = self.pending or self.state


class Wire:
    """Replies arrive in an order of their own."""

    name = "wire"

    def __init__(self, hospitals: Mapping[str, Hospital], *, last_first: bool) -> None:
        self.hospitals, self.last_first, self.workers = hospitals, last_first, len(hospitals)
        self.sent: deque[tuple[str, bytes, str]] = deque()

    def join(self) -> dict[str, ClientManifest]:
        declared = {name: json.loads(hospital.declare()) for name, hospital in sorted(self.hospitals.items())}
        return {name: ClientManifest.from_json(row) for name, row in declared.items()}

    def publish(self, request: TrainRequest) -> bytes:
        return request.to_bytes()

    def send(self, published: bytes, client: str, request_id: str) -> None:
        self.sent.append((client, published, request_id))

    def receive(self, clients: Collection[str]) -> Reply:
        known = [item for item in self.sent if item[0] in clients]
        client, request, request_id = known[-1 if self.last_first else 0]
        self.sent.remove((client, request, request_id))
        return Reply(client, self.hospitals[client].answer(request, request_id))

    def commit(self, reply: Reply) -> None:
        self.hospitals[reply.client].accepted()

    def client_states(self) -> dict[str, bytes]:
        return {}

    def restore_states(self, states: Mapping[str, bytes]) -> None:
        assert not states

    def close(self) -> None:
        """Nothing to release."""


@pytest.mark.parametrize("strategy", ["fedavg", "scaffold", "cyclic"])
@pytest.mark.parametrize("last_first", [False, True])
def test_a_network_gives_the_bits_of_the_simulation(
    strategy: str, last_first: bool, federate: Callable[..., Simulation]
) -> None:
    """Whatever the order in which replies arrive; the engine is given a layout, weights, settings and a backend."""
    simulation = federate(strategy=strategy)
    wire = Wire({name: Hospital(simulation, name) for name in simulation.client_data}, last_first=last_first)
    result = Federation(simulation.schema, simulation.initial, wire, simulation.params, seed=3, lr=0.05).run()
    inline = federate(strategy=strategy).run()
    assert np.array_equal(result.vector, inline.vector)
    assert result.history == inline.history
    assert not np.array_equal(result.vector, simulation.initial)


def test_the_server_side_imports_nothing_of_clients_and_patients(root: Path) -> None:
    """Engine, server, strategies and aggregations are made of messages."""
    folder = root / "platform" / "federation"
    files = [folder / "engine.py", folder / "messages.py", folder / "backend.py", folder / "participation.py"]
    files += [*(folder / "server").glob("*.py"), *(folder / "aggregation").glob("*.py")]
    assert len(files) > 10
    for file in files:
        imported = {
            node.module or ""
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
            if isinstance(node, ast.ImportFrom)
        }
        refused = (
            "federation.clients",
            "federation.simulation",
            "training.batches",
            "training.targets",
            "cohorts",
        )
        assert not [name for name in imported if any(part in name for part in refused)], file.name
