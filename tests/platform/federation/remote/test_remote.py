"""Federations of sites that are elsewhere: the bits of the simulation, and what happens when sites fail."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.platform.federation.remote.simulated import simulated

from equipoise.platform.errors import FederationError
from equipoise.platform.evaluation.predictions import read_predictions
from equipoise.platform.federation.clients.study_trainer import ClientData
from equipoise.platform.federation.messages import failure_text, unpack
from equipoise.platform.federation.remote.exchange import ANSWER_KIND
from equipoise.platform.federation.remote.job import RemoteJob
from equipoise.platform.federation.remote.server import run_remote
from equipoise.platform.federation.result import FederationResult
from equipoise.platform.training.batches import CaseList

Job = Callable[..., RemoteJob]
MASKED = {"privacy": {"secure_aggregation": {}}, "validation": {"norm_factor": None}}


def in_one_place(job: RemoteJob, hospitals: Mapping[str, CaseList]) -> FederationResult:
    """The same federation in one process, with the parts of its patients that the sites have."""
    clients = {
        name: ClientData(
            CaseList(cases.source, cases.patients[:-4]), CaseList(cases.source, cases.patients[-4:-2])
        )
        for name, cases in hospitals.items()
    }
    return simulated(job, clients)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"strategy": "scaffold"},
        {"server_aggregation": "median"},
        MASKED,
        {"strategy": "fedbuff", "strategy_params": {"buffer": 2}},
        {"strategy": "cyclic"},
    ],
    ids=["fedavg", "scaffold", "median", "secure_aggregation", "fedbuff", "cyclic"],
)
def test_sites_elsewhere_give_the_bits_of_the_simulation(
    settings: dict[str, Any],
    job: Job,
    network: Callable[..., Any],
    hospitals: dict[str, CaseList],
    tmp_path: Path,
) -> None:
    """Scalers from sums, training, validation, masks with keys of the sites' own: everything over the wire."""
    remote = run_remote(job(**settings), network(), tmp_path / "server")
    here = in_one_place(job(**settings), hospitals)
    assert np.array_equal(remote.vector, here.vector)
    assert json.dumps(remote.history) == json.dumps(here.history)
    assert remote.kept_round == here.kept_round
    assert dict(remote.manifests) == dict(here.manifests)
    assert "monitor" in remote.history[0]


def test_a_site_predicts_at_home_and_nothing_of_its_patients_travels(
    job: Job, network: Callable[..., Any], hospitals: dict[str, CaseList], tmp_path: Path
) -> None:
    wire = network()
    result = run_remote(job(strategy="ditto"), wire, tmp_path / "server")
    for name, cases in hospitals.items():
        (folder,) = (tmp_path / "sites" / name).glob("*/result")
        table = read_predictions(folder / "predictions.parquet")
        assert set(table["patient"]) == set(cases.patients[-4:])
        assert set(table["role"]) == {"val", "test"}
        assert (folder / "personal_model.safetensors").is_file()
    carried = b"".join(question + answer for _, question, answer in wire.carried)
    assert b"SECRET" not in carried
    assert str(tmp_path).encode() not in carried
    server = [path for path in (tmp_path / "server").rglob("*") if path.is_file()]
    assert {"model.safetensors", "targets.json", "result.json"} <= {path.name for path in server}
    assert all(b"SECRET" not in path.read_bytes() for path in server)
    states = list((tmp_path / "server").rglob("clients/*.bin"))
    assert states
    assert all(len(path.read_bytes()) == 32 for path in states)  # names of states, not states
    record = json.loads((tmp_path / "server" / "result.json").read_text())
    assert record["predicted"] == dict.fromkeys(sorted(hospitals), 4)
    assert any("pooled" in line for line in record["not_possible"])
    assert result.personal == {}


def test_a_killed_federation_resumes_where_the_sites_are(
    job: Job, network: Callable[..., Any], tmp_path: Path
) -> None:
    """Server and sites start again; states are found under the request that made them, and a lost one is noticed."""
    settings = job(rounds=3, strategy="scaffold")
    whole = run_remote(settings, network(), tmp_path / "undisturbed")

    class Killed(BaseException):
        pass

    def dies(site: str, what: str, before: int) -> bool:
        if what == "train" and before == 2:
            raise Killed
        return True

    with pytest.raises(Killed):
        run_remote(settings, network(reachable=dies), tmp_path / "server")
    wire = network()
    resumed = run_remote(settings, wire, tmp_path / "server")
    assert np.array_equal(resumed.vector, whole.vector)
    assert resumed.history == whole.history
    assert wire.asked["York", "train"] == 1

    with pytest.raises(Killed):
        run_remote(settings, network(reachable=dies), tmp_path / "again")
    for state in (tmp_path / "sites" / "York").rglob("*.state"):
        state.unlink()
    with pytest.raises(FederationError, match="site York does not have the state"):
        run_remote(settings, network(), tmp_path / "again")


def test_a_site_that_cannot_read_its_data_is_left_out(
    job: Job, network: Callable[..., Any], hospitals: dict[str, CaseList], tmp_path: Path
) -> None:
    result = run_remote(job(), network(broken=["York"]), tmp_path / "server")
    others = {name: cases for name, cases in hospitals.items() if name != "York"}
    assert np.array_equal(result.vector, in_one_place(job(), others).vector)
    record = json.loads((tmp_path / "server" / "result.json").read_text())
    assert "disk is on fire" in record["left_out"]["York"]
    with pytest.raises(FederationError, match="1 of 4 sites can take part"):
        run_remote(job(), network(broken=["York", "Leipzig", "Utrecht"]), tmp_path / "other")


@pytest.mark.parametrize(
    ("what", "first"), [("sums", 1), ("start", 0)], ids=["while sums are collected", "at the start"]
)
def test_a_site_that_is_lost_before_the_first_round(
    what: str,
    first: int,
    job: Job,
    network: Callable[..., Any],
    tmp_path: Path,
    hospitals: dict[str, CaseList],
) -> None:
    """The fit of the targets starts again without it, or its sums stay in; the others train."""
    wire = network(reachable=lambda site, asked, n: (site, asked) != ("York", what) or n < first)
    result = run_remote(job(), wire, tmp_path / "server")
    assert sorted(result.manifests) == ["Leipzig", "Utrecht", "Älmhult"]
    if what == "sums":
        others = {name: cases for name, cases in hospitals.items() if name != "York"}
        assert np.array_equal(result.vector, in_one_place(job(), others).vector)


@pytest.mark.parametrize("settings", [{}, MASKED], ids=["fedavg", "secure_aggregation"])
def test_a_site_that_fails_in_rounds_is_excluded_and_the_federation_ends(
    settings: dict[str, Any], job: Job, network: Callable[..., Any], tmp_path: Path
) -> None:
    wire = network(reachable=lambda site, what, n: (site, what) != ("York", "train"))
    result = run_remote(job(rounds=4, **settings), wire, tmp_path / "server")
    assert result.excluded == {"York"}
    assert len(result.history) == 4
    assert [row["failed"] for row in result.history] == [1, 1, 1, 0]
    assert [row["accepted"] for row in result.history] == [3, 3, 3, 3]
    assert wire.asked["York", "train"] == 3


def test_too_few_sites_with_keys_end_the_federation_with_the_reason(
    job: Job, network: Callable[..., Any], tmp_path: Path
) -> None:
    wire = network(reachable=lambda site, what, n: what != "shares" or site == "York")
    with pytest.raises(FederationError, match="1 of 4 sites exchanged keys, 3 are needed"):
        run_remote(job(**MASKED), wire, tmp_path / "server")


def test_masks_are_used_once(job: Job, network: Callable[..., Any], tmp_path: Path) -> None:
    """A server that asks twice in a round would learn the difference of two updates."""
    wire = network()
    run_remote(job(**MASKED), wire, tmp_path / "server")
    site = wire._sites["York"]
    question = [asked for what, asked, _ in wire.carried if what == "train"][-1]
    _, arrays = unpack(ANSWER_KIND, site.answer(question))
    assert "second update under the masks" in str(failure_text(arrays["update"].tobytes()))


def test_noise_comes_from_secrets_of_sites_and_server(
    job: Job, network: Callable[..., Any], tmp_path: Path, hospitals: dict[str, CaseList]
) -> None:
    """Unlike in a simulation, whose noise is a function of the seed; and a site's errors are not quoted."""
    level = {"clip": 1.0, "noise": 1.0, "delta": 0.001}
    settings = {"statistics": "public", "client_level": level}
    private = {"privacy": settings, "weights": "uniform", "validation": {"norm_factor": None}}
    first = run_remote(job(**private), network(), tmp_path / "server")
    second = run_remote(job(**private), network(), tmp_path / "other")
    assert not np.array_equal(first.vector, second.vector)
    assert "monitor" not in first.history[0]
    assert first.history[0]["epsilon_clients"] == second.history[0]["epsilon_clients"]
    run_remote(job(**private), network(broken=["York"]), tmp_path / "third")
    record = json.loads((tmp_path / "third" / "result.json").read_text())
    assert record["left_out"]["York"].strip() == "OSError"


def test_questions_of_another_federation_or_before_joining_are_refused(
    job: Job, network: Callable[..., Any]
) -> None:
    from equipoise.platform.federation.messages import pack
    from equipoise.platform.federation.remote.exchange import QUESTION_KIND, as_array

    site = network()._sites["York"]
    question = {"federation": job().identifier, "what": "validate"}
    assert "has not joined" in str(failure_text(site.answer(pack(QUESTION_KIND, question, {}))))
    sent = {"job": as_array(job().model_dump(mode="json"))}
    assert failure_text(site.answer(pack(QUESTION_KIND, question | {"what": "join"}, sent))) is None
    other = question | {"federation": job(strategy="scaffold").identifier}
    assert "has not joined" in str(failure_text(site.answer(pack(QUESTION_KIND, other, {}))))
    named = question | {"what": "states", "states": {"York": "../../secret"}}
    assert "no name of a state" in str(failure_text(site.answer(pack(QUESTION_KIND, named, {}))))
    assert failure_text(site.answer(b"noise")) is not None


def test_other_versions_are_refused(
    job: Job, network: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from equipoise.platform.federation.remote import site

    monkeypatch.setattr(site, "versions", lambda: {"equipoise": "0.0.1", "torch": "2", "numpy": "2"})
    with pytest.raises(FederationError, match=r"has Equipoise 0\.0\.1"):
        run_remote(job(), network(), tmp_path)
