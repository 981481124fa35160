"""Rounds: weights of clients, rejected and excluded clients, and closed forms of whole federations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from equipoise.datasets.cohorts.cases import Case
from equipoise.platform.errors import DataError, FederationError, StudyError
from equipoise.platform.federation.clients.study_trainer import ClientData
from equipoise.platform.federation.messages import ClientUpdate, TrainRequest
from equipoise.platform.federation.privacy.mechanism import NoPrivacy
from equipoise.platform.federation.simulation.simulation import Simulation
from equipoise.platform.training.batches import CaseList
from equipoise.platform.training.params import BalancingParams

#: One step over all patients of a client, without dropout: nothing is drawn.
ONE_STEP: dict[str, Any] = {
    "local": {"steps": 1, "optimizer": "sgd", "lr": 0.1, "batch": "full"},
    "model_params": {"dim": 4, "hidden": 2, "layers": 1, "dropout": 0.0},
    "rounds": 1,
}
Make = Callable[..., Simulation]


class Tamper(NoPrivacy):
    """A client that changes its update before it sends it."""

    def __init__(self, client: str, change: Callable[[ClientUpdate], ClientUpdate]) -> None:
        self.client, self.change = client, change

    def privatize(
        self, update: ClientUpdate, request: TrainRequest, weights: Mapping[str, float]
    ) -> ClientUpdate:
        return self.change(update) if update.client == self.client else update


def raising(update: ClientUpdate) -> ClientUpdate:
    raise RuntimeError("disk on fire")


def verdicts(result: Any) -> dict[str, list[str]]:
    by_client: dict[str, list[str]] = {}
    for row in result.audit_log.rows:
        by_client.setdefault(row["client"], []).append(row["verdict"])
    return by_client


def deltas(federate: Make, sites: dict[str, CaseList]) -> dict[str, np.ndarray]:
    """Each client's update, from a federation of itself alone."""
    result = {}
    for site in sites:
        alone = federate(clients={site: sites[site]}, **ONE_STEP)
        result[site] = alone.run().vector - alone.initial
    return result


def test_a_head_is_the_mean_of_those_who_train_it(federate: Make, sites: dict[str, CaseList]) -> None:
    """LF is unknown at B, C has no event, D has no RNA: heads are weighted by labels, for Cox's model by events.

    Trunk and encoders, which several tasks train, are in ``test_objective``.
    """
    federation = federate(**ONE_STEP)
    result, updates = federation.run(), deltas(federate, sites)
    moved = result.vector - federation.initial
    expected = {
        "task:MSI": {"A": 9, "B": 6, "C": 5, "D": 4},
        "task:LF": {"A": 9, "C": 5, "D": 4},
        "task:OS": {"A": 6, "B": 4, "D": 2},
    }
    for group, weights in expected.items():
        part = federation.schema.mask([group])
        mean = sum(updates[site][part] * n for site, n in weights.items()) / sum(weights.values())
        assert moved[part] == pytest.approx(mean, abs=2e-7), group
        assert np.abs(mean).max() > 0, group
    assert result.manifests["C"].flags == ("OS: no event among 5 patients, nothing to learn",)
    assert result.manifests["B"].flags == ("LF: no label",)
    assert result.manifests["D"].flags == ("rna: no patient has it",)


def test_uniform_weights_count_clients(federate: Make, sites: dict[str, CaseList]) -> None:
    federation = federate(**ONE_STEP, weights="uniform")
    part, updates = federation.schema.mask(["task:LF"]), deltas(federate, sites)
    moved = (federation.run().vector - federation.initial)[part]
    assert moved == pytest.approx((updates["A"] + updates["C"] + updates["D"])[part] / 3, abs=2e-7)


def test_what_nobody_can_train_stays_as_it_was(federate: Make, sites: dict[str, CaseList]) -> None:
    for rule in ("mean", "median"):
        settings = {"strategy": "fedadam", "server_aggregation": rule, "rounds": 2, "min_n": 1}
        federation = federate(clients={"B": sites["B"]}, **settings)
        moved = federation.run().vector != federation.initial
        assert not moved[federation.schema.mask(["task:LF", "absent:rna"])].any()
        assert moved[federation.schema.mask(["task:MSI"])].any()


def test_one_step_of_all_clients_is_one_step_over_all_patients(
    federate: Make, sites: dict[str, CaseList]
) -> None:
    """With one full batch and the mean loss of one task per patient, FedAvg is plain gradient descent."""
    everyone = {patient: case for cases in sites.values() for patient, case in cases.source.items()}  # type: ignore[attr-defined]
    labels = {p: replace(c, targets={"MSI": c.targets["MSI"]}) for p, c in everyone.items()}
    split = {site: CaseList(labels, cases.patients) for site, cases in sites.items()}
    whole = {"all": CaseList(labels, tuple(labels))}
    part = federate().schema.mask(["shared", "task:MSI"])
    one, other = (federate(clients=c, **ONE_STEP).run().vector[part] for c in (split, whole))
    assert one == pytest.approx(other, abs=1e-6)


@pytest.mark.parametrize("weights", ["patients", "uniform"])
def test_scaffold_with_one_step_is_fedavg(weights: str, federate: Make) -> None:
    """Corrections c − c_i of all clients cancel in the mean, whatever its weights."""
    settings = ONE_STEP | {"rounds": 4, "weights": weights}
    one, other = (federate(**settings, strategy=s).run().vector for s in ("fedavg", "scaffold"))
    assert one == pytest.approx(other, abs=1e-5)


def test_cyclic_really_hands_the_model_on(federate: Make, sites: dict[str, CaseList]) -> None:
    cases = sites["A"]  # as many labels and events in both parts: each takes the steps of a federation of one
    chosen = {
        "A": CaseList(cases.source, cases.patients[:3]),
        "E": CaseList(cases.source, cases.patients[3:6]),
    }
    settings = {"rounds": 1, "strategy": "cyclic", "strategy_params": {"order": "fixed"}}
    toured = federate(clients=chosen, **settings).run()
    first = federate(clients={"A": chosen["A"]}, rounds=1).run()
    second = federate(clients={"E": chosen["E"]}, rounds=1)
    second.initial = first.vector
    assert toured.vector == pytest.approx(second.run().vector, abs=1e-7)
    assert not np.array_equal(toured.vector, first.vector)


def test_shared_parts_are_shared_and_kept_parts_are_not(federate: Make) -> None:
    federation = federate(strategy="fedper")
    result, heads = federation.run(), federation.schema.mask(["task:MSI"])
    assert np.array_equal(result.vector[heads], federation.initial[heads])
    assert all((weights[heads] != federation.initial[heads]).any() for weights in result.personal.values())
    rest = ~federation.schema.mask(["task"])
    assert all(np.array_equal(weights[rest], result.vector[rest]) for weights in result.personal.values())


@pytest.mark.parametrize(
    "balancing",
    [
        "uncertainty+pcgrad",
        "dwa+cagrad",
        "famo",
        "rlw+upgrad",
        "auto_lambda",
        "equal+mgda at representation every 3",
    ],
)
def test_balancing_works_inside_clients(
    balancing: str, federate: Make, sites: dict[str, CaseList], tmp_path: Path
) -> None:
    """Also after an interruption: the state of loss weighting is part of a client's state."""
    clients = {
        site: ClientData(
            CaseList(cases.source, cases.patients[1:]), CaseList(cases.source, cases.patients[:1])
        )
        for site, cases in sites.items()
    }
    method, *cheap = balancing.split()
    weighting, _, aggregation = method.partition("+")
    settings = dict(zip(cheap[::2], cheap[1::2], strict=True))
    params = BalancingParams.model_validate(
        {"weighting": weighting, "aggregation": aggregation or "none", **settings}
    )

    def run(**extra: Any) -> Any:
        return federate(clients=clients, rounds=2, extra={"balancing": params} | extra).run()

    def interrupt(row: dict[str, float]) -> None:
        raise KeyboardInterrupt

    plain, balanced = federate(clients=clients, rounds=2).run(), run()
    assert not np.array_equal(plain.vector, balanced.vector)
    with pytest.raises(KeyboardInterrupt):
        run(folder=tmp_path, on_round=interrupt)
    assert np.array_equal(balanced.vector, run(folder=tmp_path).vector)


def test_a_weighting_that_learns_on_validation_needs_some(federate: Make) -> None:
    with pytest.raises(StudyError, match="inner validation"):
        federate(extra={"balancing": BalancingParams(weighting="auto_lambda")})


@pytest.mark.parametrize(
    ("change", "verdict", "reason"),
    [
        (lambda u: replace(u, delta=u.delta * np.float32(np.nan)), "quarantined", "finite"),
        (lambda u: replace(u, delta=u.delta[:-1]), "quarantined", "shape"),
        (lambda u: replace(u, n=10**9), "quarantined", "count"),
        (lambda u: replace(u, client="A"), "quarantined", "identity"),
        (lambda u: replace(u, request_id="old"), "quarantined", "replay"),
        (lambda u: replace(u, delta=np.full_like(u.delta, 1e9)), "quarantined", "norm"),
        (lambda u: replace(u, arrays={"patients": u.delta}), "quarantined", "arrays"),
        (raising, "failed", "disk on fire"),
    ],
)
def test_a_bad_update_is_rejected_and_the_round_goes_on(
    change: Callable[[ClientUpdate], ClientUpdate],
    verdict: str,
    reason: str,
    federate: Make,
) -> None:
    """As if the client had dropped out: the objective of the federation stays that of all who joined."""
    for settings in ({}, {"server_aggregation": "geometric_median"}):
        result = federate(rounds=1, extra={"privacy": Tamper("B", change)}, **settings).run()
        row = next(row for row in result.audit_log.rows if row["client"] == "B")
        assert (row["verdict"], reason in row["reason"]) == (verdict, True)
        absent = federate(rounds=1, extra={"privacy": Tamper("B", raising)}, **settings).run()
        assert np.array_equal(result.vector, absent.vector)
        assert not np.array_equal(result.vector, federate(rounds=1, **settings).run().vector)
        assert result.history[0][verdict] == 1


def test_a_client_that_keeps_failing_is_excluded(federate: Make) -> None:
    result = federate(rounds=4, exclude_after=2, extra={"privacy": Tamper("B", raising)}).run()
    assert verdicts(result)["B"] == ["failed", "failed", "benched"]
    assert result.excluded == {"B"}
    assert "Traceback" in next(row["reason"] for row in result.audit_log.rows if row["verdict"] == "failed")


def test_rounds_without_enough_updates_change_nothing_and_end_in_an_error(federate: Make) -> None:
    seen: list[dict[str, float]] = []
    federation = federate(rounds=5, participation={"min_clients": 5}, extra={"on_round": seen.append})
    with pytest.raises(FederationError, match="3 rounds in a row"):
        federation.run()
    assert [row["update_norm"] for row in seen] == [0, 0]


def test_late_and_failing_clients_are_drawn_from_seeds(federate: Make) -> None:
    settings = {"rounds": 6, "clock": {"speed_sd": 0.8, "jitter_sd": 0.5, "deadline": 1.5, "failures": 0.2}}
    one, other = (federate(**settings).run() for _ in range(2))
    assert one.audit_log.rows == other.audit_log.rows
    assert {"late", "failed", "accepted"} <= {row["verdict"] for row in one.audit_log.rows}


def test_scalars_over_few_patients_do_not_leave(federate: Make) -> None:
    result = federate(rounds=1, min_n=6).run()
    keys = {row["client"]: row["keys"] for row in result.audit_log.rows}
    assert keys["A"] == ["delta", "loss/LF", "loss/MSI", "loss/OS"]
    assert keys["D"] == ["delta"]


def test_the_buffer_of_all_clients_is_a_round(federate: Make) -> None:
    """FedBuff with as many updates per step as clients, all equally fast, waits for everybody: FedAvg."""
    settings = ONE_STEP | {"rounds": 3}
    buffered = federate(**settings, strategy="fedbuff", strategy_params={"buffer": 4}).run()
    assert buffered.vector == pytest.approx(
        federate(**settings).run().vector, abs=1e-6
    )  # rows are in another order
    assert buffered.history[-1]["virtual_time"] == 3


def test_slow_clients_are_stale_and_do_not_hold_up_the_others(federate: Make) -> None:
    settings = {"strategy": "fedbuff", "strategy_params": {"buffer": 1}, "rounds": 8}
    result = federate(**settings, clock={"speed_sd": 1.0}).run()
    answers = [row["client"] for row in result.audit_log.rows]
    assert len(answers) == 8
    assert len(set(answers)) < 8
    times = [row["virtual_time"] for row in result.history]
    assert times == sorted(times)


def test_a_checkpoint_of_another_federation_is_refused(federate: Make, tmp_path: Path) -> None:
    federate(rounds=2, extra={"folder": tmp_path}).run()
    with pytest.raises(StudyError, match="seed: 3 → 4"):
        federate(rounds=2, seed=4, extra={"folder": tmp_path}).run()
    with pytest.raises(StudyError, match="server_lr|strategy_params"):
        federate(rounds=2, strategy_params={"server_lr": 0.5}, extra={"folder": tmp_path}).run()
    longer = federate(rounds=3, extra={"folder": tmp_path}).run()
    assert np.array_equal(longer.vector, federate(rounds=3).run().vector)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "ledger.jsonl",
        "round_000002",
        "round_000003",
    ]


@pytest.mark.parametrize(
    "damaged", ["round_000003/strategy.npz", "round_000003/manifest.json", "*/manifest.json"]
)
def test_a_damaged_round_is_passed_over(federate: Make, tmp_path: Path, damaged: str) -> None:
    expected = federate(strategy="scaffold", extra={"folder": tmp_path}).run()
    for file in tmp_path.glob(damaged):
        file.write_bytes(b'{"nothing')
    resumed = federate(strategy="scaffold", extra={"folder": tmp_path}).run()
    assert np.array_equal(expected.vector, resumed.vector)
    assert expected.audit_log.rows == resumed.audit_log.rows


def test_clients_must_have_patients_of_their_own(federate: Make, sites: dict[str, CaseList]) -> None:
    with pytest.raises(DataError, match="leakage"):
        federate(clients={"A": sites["A"], "A2": CaseList(sites["A"].source, sites["A"].patients[:2])})
    with pytest.raises(DataError, match="no training patient"):
        federate(clients={"A": CaseList({}, ())})
    unlabelled = {"X": Case("X", "S", "X", *_empty())}
    with pytest.raises(FederationError, match="no client has a patient with a label"):
        federate(clients={"X": CaseList(unlabelled, ("X",))}).run()


def _empty() -> tuple[Any, ...]:
    return np.zeros((1, 4), np.float16), np.zeros((1, 2), np.int32), ("X",), (1,), {}, {}


def test_an_interrupted_write_leaves_the_round_before(federate: Make, tmp_path: Path) -> None:
    federate(rounds=1, extra={"folder": tmp_path}).run()
    (tmp_path / ".round_000002.1-abc.tmp").mkdir()
    assert np.array_equal(
        federate(rounds=2, extra={"folder": tmp_path}).run().vector, federate(rounds=2).run().vector
    )
