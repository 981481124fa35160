"""A backend of another kind: clients behind a wire that carries bytes, as in a network of hospitals."""

from __future__ import annotations

import ast
import json
from collections import deque
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from equipoise.platform.federation.clients.runner import ClientRunner, ClientState
from equipoise.platform.federation.engine import Federation
from equipoise.platform.federation.messages import ClientManifest, Reply, TrainRequest
from equipoise.platform.federation.server.server import MAX_EARLY
from equipoise.platform.federation.simulation.simulation import Simulation
from equipoise.platform.training.batches import CaseList


class Hospital:
    """One site: its data, its model, and the state that never leaves it."""

    def __init__(self, simulation: Simulation, name: str) -> None:
        setup = simulation.setup(simulation.strategy, simulation.privacy)
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

    def __init__(
        self, hospitals: Mapping[str, Hospital], *, last_first: bool, silent: Collection[str] = ()
    ) -> None:
        self.hospitals, self.last_first, self.workers = hospitals, last_first, len(hospitals)
        self.sent: deque[tuple[str, bytes, str]] = deque()
        self.silent, self.asked_for = silent, list[tuple[int, int]]()

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
        self.asked_for.append((len(clients), len(self.sent)))
        self.sent.remove((client, request, request_id))
        if client in self.silent:
            return Reply(client, b"", reason="no answer")
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


@pytest.mark.parametrize(
    "settings",
    [
        {"clock": {"failures": 0.15}},
        {"server_aggregation": "median"},
        {"privacy": {"secure_aggregation": {}}, "validation": {"norm_factor": None}},
    ],
    ids=["mean", "median", "secure_aggregation"],
)
def test_more_early_replies_than_are_held_with_clients_that_fail(
    settings: dict[str, Any], federate: Callable[..., Simulation], sites: dict[str, CaseList]
) -> None:
    """Replies from the last name to the first, while the first client of all and one in between do not answer."""
    pairs = [
        (c.source, c.patients[i : i + 2]) for c in sites.values() for i in range(0, len(c.patients) - 1, 2)
    ]
    clients = {f"{number:02}": CaseList(*pair) for number, pair in enumerate(pairs)}
    assert len(clients) > MAX_EARLY + 2
    results, narrowed = [], []
    for last_first in (False, True):
        simulation = federate(clients=clients, rounds=2, exclude_after=9, **settings)
        hospitals = {name: Hospital(simulation, name) for name in simulation.client_data}
        wire = Wire(hospitals, last_first=last_first, silent=("00", "05"))
        params, privacy = simulation.params, simulation.privacy
        start = (simulation.schema, simulation.initial, wire, params)
        results.append(Federation(*start, seed=3, lr=0.05, privacy=privacy).run())
        narrowed.append(any(wanted < waiting for wanted, waiting in wire.asked_for))
        assert not wire.sent
    one, other = results
    assert np.array_equal(one.vector, other.vector)
    assert one.history == other.history
    assert one.audit_log.rows == other.audit_log.rows
    assert {row["client"] for row in one.audit_log.rows if row["verdict"] == "failed"} >= {"00", "05"}
    assert one.history[-1]["accepted"] > 2
    # A server aggregation that needs all updates holds them; a sum asks for the next in order only.
    assert narrowed == [False, "server_aggregation" not in settings]


def test_a_hospital_without_patients_takes_no_part(federate: Callable[..., Simulation]) -> None:
    class OneMore(Wire):
        def join(self) -> dict[str, ClientManifest]:
            known = super().join()
            nothing = dict.fromkeys(known["A"].counts, 0)
            return known | {"Z": ClientManifest("Z", 0, dict.fromkeys(known["A"].labelled, 0), {}, nothing)}

    simulation = federate(clock={"speed_sd": 0.5, "deadline": 4.0})
    wire = OneMore({name: Hospital(simulation, name) for name in simulation.client_data}, last_first=False)
    result = Federation(simulation.schema, simulation.initial, wire, simulation.params, seed=3, lr=0.05).run()
    assert "Z" in result.manifests
    assert result.history == simulation.run().history
    assert all(row["client"] != "Z" for row in result.audit_log.rows)


def test_busy_clients_of_an_asynchronous_strategy_are_waited_for_before_personal_steps(
    federate: Callable[..., Simulation],
) -> None:
    """A client has one request at a time; the reply to its last one is not taken for its personal model."""
    settings = {"strategy": "fedbuff", "strategy_params": {"buffer": 2, "concurrency": 4}}
    inline = federate(**settings)
    inline.strategy.personal_steps = 2
    expected = inline.run().personal
    assert len(expected) == 4
    for last_first in (False, True):
        simulation = federate(**settings)
        simulation.strategy.personal_steps = 2
        hospitals = {name: Hospital(simulation, name) for name in simulation.client_data}
        wire = Wire(hospitals, last_first=last_first)
        start = (simulation.schema, simulation.initial, wire, simulation.params)
        Federation(*start, seed=3, lr=0.05, strategy=simulation.strategy).run()
        assert not wire.sent
        for name, hospital in hospitals.items():
            assert np.array_equal(ClientState.from_bytes(hospital.state).vectors["model"], expected[name])


def test_the_server_side_imports_nothing_of_clients_and_patients(root: Path) -> None:
    """Engine, server and aggregations are made of messages."""
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
