"""Under privacy of patients or clients: everything that left a site is counted, and nothing else leaves."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from equipoise.datasets.tables.tasks import SurvivalTask
from equipoise.platform.federation.clients.runner import ClientRunner
from equipoise.platform.federation.clients.study_trainer import ClientData
from equipoise.platform.federation.messages import TrainRequest, failure_text
from equipoise.platform.federation.params import FederationParams
from equipoise.platform.federation.participation import sampling_plan
from equipoise.platform.federation.privacy.accountant import Accountant, SampledGaussian, together
from equipoise.platform.federation.privacy.statement import PrivacySpending, privacy_statement
from equipoise.platform.federation.simulation.clean_costs import clean_costs
from equipoise.platform.federation.simulation.fold import validate_in_rounds
from equipoise.platform.federation.simulation.simulation import Simulation
from equipoise.platform.training.batches import CaseList
from equipoise.platform.training.build import build_model
from equipoise.platform.training.params import TrainingParams
from equipoise.platform.training.targets import Targets, fit_targets

RECORD = {"record_level": {"clip": 0.5, "noise": 1.0, "delta": 1e-2}, "statistics": "public"}
CLIENT = {"client_level": {"clip": 0.5, "noise": 1.0, "delta": 1e-2}, "statistics": "public"}
OPEN = {"validation": {"norm_factor": None}}
SETTINGS: dict[str, Any] = {
    "rounds": 2,
    "local": {"epochs": 1, "optimizer": "sgd", "lr": 0.05, "batch": 3},
    "min_n": 1,
}
Make = Callable[..., Simulation]


@pytest.fixture(scope="module")
def hazard(sites: dict[str, CaseList]) -> Targets:
    """A task with a gradient per patient."""
    task = SurvivalTask.model_validate(
        {
            "name": "OS",
            "type": "survival",
            "time": {"column": "t", "unit": "days"},
            "event": {"column": "e", "event_value": "dead"},
            "likelihood": "discrete_hazard",
            "bins": 3,
            "main": True,
        }
    )
    return fit_targets([task], [case for cases in sites.values() for case in cases])


def simulation(sites: dict[str, Any], targets: Targets, **params: Any) -> Simulation:
    model = {"dim": 4, "hidden": 2, "layers": 1, "dropout": 0.0}
    return Simulation(
        partial(build_model, "concat", model, targets.shape, targets.heads, seed=1),
        targets,
        sites,
        FederationParams.model_validate({"backend": "inline"} | SETTINGS | params),
        seed=3,
        training=TrainingParams.model_validate({"device": "cpu"}),
    )


def test_rejected_and_lost_updates_are_counted(sites: dict[str, CaseList], hazard: Targets) -> None:
    """The server rejects every update of A (longer than it accepts); B drops out or is late now and then."""
    unlucky = {"clock": {"failures": 0.5}, "validation": {"norm_factor": None, "max_norm": 1e-9}}
    federation = simulation(sites, hazard, privacy=RECORD, exclude_after=100, **unlucky)
    result = federation.run()
    assert {row["verdict"] for row in result.audit_log.rows} == {"quarantined", "failed"}
    spent = federation.privacy.patients  # type: ignore[attr-defined]
    for client, cases in sites.items():
        rate, steps = sampling_plan(len(cases), 3, 1, None)
        assert spent[client].executed == {SampledGaussian(rate, 1.0): 2 * steps}
    assert result.history[-1]["epsilon_patients"] == max(account.spent() for account in spent.values()) > 1


def test_requests_of_an_asynchronous_federation_are_counted_once(
    sites: dict[str, CaseList], hazard: Targets
) -> None:
    federation = simulation(
        sites, hazard, privacy=RECORD, strategy="fedbuff", strategy_params={"buffer": 2}, rounds=4
    )
    federation.run()
    steps = {c: sampling_plan(len(cases), 3, 1, None)[1] for c, cases in sites.items()}
    accounts = federation.privacy.patients  # type: ignore[attr-defined]
    requests = {c: sum(a.executed.values()) / steps[c] for c, a in accounts.items()}
    assert all(count == int(count) for count in requests.values())
    # Eight updates were used, and whoever was busy at the end had been asked.
    assert 8 <= sum(requests.values()) <= 8 + len(sites)


@pytest.mark.parametrize("privacy", [RECORD, CLIENT | {"secure_aggregation": {}}])
def test_no_loss_no_text_and_no_single_update_is_seen(
    privacy: dict[str, Any], sites: dict[str, CaseList], hazard: Targets
) -> None:
    halves = {
        site: ClientData(CaseList(c.source, c.patients[1:]), CaseList(c.source, c.patients[:1]))
        for site, c in sites.items()
    }
    federation = simulation(halves, hazard, privacy=privacy, weights="uniform", **OPEN)
    result = federation.run()
    assert not [name for row in result.history for name in row if name.startswith(("loss/", "val/"))]
    assert clean_costs(federation, result) == []

    assert validate_in_rounds(federation, federation.training) is None


def test_a_failure_says_no_more_than_its_kind(sites: dict[str, CaseList], hazard: Targets) -> None:
    for privacy, quoted in ((RECORD, False), ({}, True)):
        federation = simulation(sites, hazard, privacy=privacy)
        runner = ClientRunner(
            federation.setup(federation.strategy, federation.privacy), federation.client_data
        )
        runner.join()

        def fail(job: Any) -> Any:
            raise ValueError("patient A-003 has MSI-H")

        runner.trainer.train = fail  # type: ignore[method-assign]
        request = TrainRequest(0, "fit", 3, 0.1, 1, None, federation.initial)
        data, _ = runner.train("A", request, "id", b"")
        text = failure_text(data)
        assert text is not None
        assert ("A-003" in text) == quoted
        assert "ValueError" in text


def test_updates_without_noise_leave_no_hashes(federate: Make, tmp_path: Any) -> None:
    """A hash of an exact update confirms a guess of it; that of a masked or noisy one does not."""
    drawn = {"weights": "uniform"} | OPEN
    for privacy, hashed in ((CLIENT, False), (CLIENT | {"secure_aggregation": {}}, True), ({}, True)):
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        result = federate(rounds=1, privacy=privacy, extra={"folder": folder}, **drawn).run()
        assert all(("sha256" in row) == hashed for row in result.audit_log.rows if row["client"])


def said(privacy: dict[str, Any], spent: PrivacySpending | None = None, **params: Any) -> str:
    made = FederationParams.model_validate({"privacy": privacy} | OPEN | {"weights": "uniform"} | params)
    return "\n".join(privacy_statement(made, spent or PrivacySpending(6, 1)))


def test_the_statement_names_adversary_neighbours_releases_and_gaps() -> None:
    seen = said(CLIENT, PrivacySpending(6, 5, {"clients": 2.5}, {"clients": 7.25}))
    for fact in (
        "who took part in it",
        "does not lower epsilon",
        "every update before noise is added",
        "all updates of one site are its own or zero",
        "norm of 0.5",
        "standard deviation 0.5 ",
        "epsilon 2.5 at delta 0.01",
        "7.25 for all 5 federations",
        "which the study declares public",
        "pooled, local, ensemble and linear models",
        "predictions, metrics and figures of this report",
        "whether and why a site failed",
        "study's seed",
    ):
        assert fact in seen, fact
    unseen = said(
        CLIENT | {"client_level": {"adversary": "models"}},
        participation={"scheme": "poisson", "fraction": 0.25},
    )
    assert "nothing else: not who took part" in unseen
    assert "probability 0.25" in unseen
    patients = said(RECORD, PrivacySpending(6, 1, {"patients": 1.8}, {"patients": 1.8}, searched=True))
    for fact in (
        "the server and the other sites included",
        "rejected, lost or late",
        "epsilon 1.8",
        "the search",
    ):
        assert fact in patients, fact
    assert "all 1 federations" not in patients
    noisy = said(RECORD | {"statistics": {"noise": 2.0}})
    assert "both are part of epsilon" in noisy
    assert "declares public" not in noisy
    masked = said({"secure_aggregation": {}}, PrivacySpending(6, 1, withheld={"skipped: 2 of 3": 4}))
    for fact in (
        "at least three",
        "were not masked",
        "skipped: 2 of 3 (4 rounds)",
        "No differential privacy",
    ):
        assert fact in masked, fact
    plain = said({})
    assert "No differential privacy" in plain
    assert "Not covered by the guarantee" not in plain
    assert "mean training losses" in plain
    assert all("mean training losses" not in text for text in (seen, unseen, patients, noisy))


def test_federations_over_the_same_patients_add_up() -> None:
    step = {SampledGaussian(0.2, 1.0): 10}

    def state(*clients: str) -> dict[str, Any]:
        return {"clients": None, "patients": {c: Accountant(1e-3, 9.0, dict(step)).state() for c in clients}}

    double = Accountant(1e-3, None, {SampledGaussian(0.2, 1.0): 20}).spent()
    assert together([state("A", "B"), state("A")]) == {"patients": pytest.approx(double)}
    once = together([state("A")])["patients"]
    assert once == pytest.approx(Accountant(1e-3, None, step).spent())
    assert once < double
    assert together([]) == {}
