"""Participants and late clients are functions of seeds."""

from __future__ import annotations

import numpy as np
import pytest

from equipoise.datasets.cohorts.cases import Case
from equipoise.platform.federation.clients.study_trainer import ClientData
from equipoise.platform.federation.params import ClockParams, Participation
from equipoise.platform.federation.participation import VirtualClock, participants, visiting_order
from equipoise.platform.federation.simulation.ray_backend import assign_to_workers
from equipoise.platform.training.batches import CaseList

CLIENTS = [f"C{i}" for i in range(10)]
SIZES = {client: 1 if i else 1000 for i, client in enumerate(CLIENTS)}


def drawn(scheme: str, fraction: float, rounds: int = 200) -> list[list[str]]:
    params = Participation(scheme=scheme, fraction=fraction)  # type: ignore[arg-type]
    return [participants(params, CLIENTS, SIZES, seed=1, round_=r) for r in range(rounds)]


def test_schemes_of_participation() -> None:
    assert drawn("all", 0.3, 1) == [CLIENTS]
    uniform = drawn("uniform", 0.3)
    assert {len(set(chosen)) for chosen in uniform} == {3}
    counts = [sum(client in chosen for chosen in uniform) for client in CLIENTS]
    assert min(counts) > 30
    assert max(counts) < 90
    assert all("C0" in chosen for chosen in drawn("size", 0.2))
    turns = drawn("round_robin", 0.3, 10)
    assert [sum(client in chosen for chosen in turns) for client in CLIENTS] == [3] * 10
    sizes = [len(chosen) for chosen in drawn("poisson", 0.3)]
    assert np.mean(sizes) == pytest.approx(3, abs=0.4)
    assert 0 in sizes
    assert drawn("uniform", 0.3) == uniform


def test_tours() -> None:
    assert visiting_order(CLIENTS[::-1], shuffled=False, seed=0, round_=0) == CLIENTS
    orders = [tuple(visiting_order(CLIENTS, shuffled=True, seed=0, round_=r)) for r in range(3)]
    assert len(set(orders)) == 3
    assert all(sorted(one) == CLIENTS for one in orders)


def test_a_clock_without_spread_shows_the_work() -> None:
    clock = VirtualClock(ClockParams(deadline=2.0), {"a": 4, "b": 6, "c": 20}, seed=0)
    assert [clock.duration(client, 3) for client in "abc"] == [4, 6, 20]
    assert clock.deadline == 12
    assert clock.late(["a", "b", "c"], 0) == {"c"}
    assert clock.failing(["a", "b", "c"], 0) == set()


def test_slowness_is_drawn_once_and_jitter_every_time() -> None:
    work = dict.fromkeys(CLIENTS, 1)
    slow = VirtualClock(ClockParams(speed_sd=1.0), work, seed=0)
    assert len({slow.duration(client, 0) for client in CLIENTS}) == 10
    assert slow.duration("C1", 0) == slow.duration("C1", 1)
    jittery = VirtualClock(ClockParams(jitter_sd=1.0), work, seed=0)
    assert jittery.duration("C1", 0) != jittery.duration("C1", 1)
    assert jittery.duration("C1", 1) == VirtualClock(ClockParams(jitter_sd=1.0), work, seed=0).duration(
        "C1", 1
    )
    failing = VirtualClock(ClockParams(failures=0.25), work, seed=0)
    assert np.mean([len(failing.failing(CLIENTS, r)) for r in range(100)]) == pytest.approx(2.5, abs=0.5)


def test_clients_are_packed_by_size_and_take_nobody_along() -> None:
    blank = (np.zeros((1, 1), np.float16), np.zeros((1, 2), np.int32), (), (1,), {}, {})
    everyone = {f"P{i}": Case(f"P{i}", "S", "S", *blank) for i in range(20)}
    names = list(everyone)
    sizes = {"a": 9, "b": 5, "c": 4, "d": 2}
    client_data, at = {}, 0
    for client, count in sizes.items():
        client_data[client] = ClientData(CaseList(everyone, tuple(names[at : at + count])))
        at += count
    assigned = assign_to_workers(client_data, 2)
    assert [sorted(group) for group in assigned] == [["a", "d"], ["b", "c"]]
    for group in assigned:
        for data in group.values():
            assert tuple(data.train.source) == data.train.patients  # type: ignore[arg-type]
    assert assign_to_workers(client_data, 2) == assigned
