"""Sites in this process behind a transport that carries bytes: what a network of hospitals does, without one."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from equipoise.datasets.cohorts.cases import Case
from equipoise.datasets.cohorts.splits import Fold
from equipoise.datasets.tables.tasks import BinaryTask, RegressionTask, SurvivalTask, Task
from equipoise.platform.federation.messages import unpack
from equipoise.platform.federation.remote.exchange import QUESTION_KIND, Delivery
from equipoise.platform.federation.remote.job import RemoteJob, read_job
from equipoise.platform.federation.remote.site import Site, SiteData
from equipoise.platform.training.batches import CaseList

TASKS: tuple[Task, ...] = (
    BinaryTask(name="MSI", column="MSI", positive="MSI-H", negative="MSS", main=True),
    RegressionTask(name="LF", column="LF"),
    SurvivalTask(
        name="OS", time={"column": "t", "unit": "days"}, event={"column": "e", "event_value": "dead"}
    ),
)
#: Site → patients; four of each site do not train.
SIZES = {"Leipzig": 12, "Utrecht": 10, "York": 11, "Älmhult": 9}


class Network:
    """Delivers questions to sites when an answer is asked for, the last one first.

    ``reachable(site, what, asked before)`` says whether a site answers; all bytes are kept in ``carried``.
    """

    name = "in process"

    def __init__(
        self, sites: Mapping[str, Site], reachable: Callable[[str, str, int], bool] = lambda *_: True
    ) -> None:
        self._sites, self.sites, self.reachable = dict(sites), tuple(sites), reachable
        self._sent: deque[tuple[str, int, bytes]] = deque()
        self.asked = dict[tuple[str, str], int]()
        self.carried: list[tuple[str, bytes, bytes]] = []

    def send(self, number: int, data: bytes, sites: Sequence[str]) -> None:
        self._sent.extend((site, number, bytes(data)) for site in sites)

    def receive(self) -> Delivery:
        site, number, data = self._sent.pop()
        what = str(unpack(QUESTION_KIND, data)[0]["what"])
        before = self.asked.get((site, what), 0)
        self.asked[site, what] = before + 1
        if not self.reachable(site, what, before):
            return Delivery(site, number, b"", "no answer")
        answer = self._sites[site].answer(data)
        self.carried.append((what, data, answer))
        return Delivery(site, number, answer)


def make_cases() -> dict[str, CaseList]:
    """Tables and tiles; LF is unknown in York, Utrecht has no RNA."""
    made = {}
    for at, (site, count) in enumerate(SIZES.items()):
        rng = np.random.default_rng(at)
        cases = {}
        for i in range(count):
            bag = rng.normal(size=(3, 4)).astype(np.float16)
            patient, burden = f"SECRET-{site}-{i:03d}", float(bag[:, 1].mean())
            targets: dict[str, Any] = {
                "MSI": float(i % 2),
                "LF": np.nan if site == "York" else burden,
                "OS": (float(np.exp(5 - burden)), float(i % 3 > 0)),
            }
            omics = {} if site == "Utrecht" else {"rna": rng.normal(1, 2, size=3).astype(np.float32)}
            cases[patient] = Case(
                patient, "SYN", site, bag, np.zeros((3, 2), np.int32), (patient,), (3,), omics, targets
            )
        made[site] = CaseList(cases, tuple(cases))
    return made


def fold_of(cases: CaseList) -> Fold:
    """All but four patients train, two validate, two are tested."""
    return Fold(0, 0, cases.patients[:-4], cases.patients[-4:-2], cases.patients[-2:])


def make_job(**federation: Any) -> RemoteJob:
    """A job of a small model."""
    training = {"device": "cpu", "epochs": 3}
    model = {"dim": 4, "hidden": 2, "layers": 1, "dropout": 0.25}
    settings = {"rounds": 2, "min_n": 1, "local": {"optimizer": "sgd", "lr": 0.05, "batch": 5}} | federation
    return read_job(
        {
            "name": "toy",
            "tasks": [task.model_dump(mode="json") for task in TASKS],
            "recipe": {"model": "concat", "model_params": model, "training": training, "seed": 3},
            "federation": settings,
            "features": {},
            "splits": {"scheme": "kfold"},
        }
    )


def make_sites(folder: Path, cases: Mapping[str, CaseList], broken: Sequence[str] = ()) -> dict[str, Site]:
    """Site → what answers for it; broken ones cannot read their data."""

    def site(name: str) -> Site:
        def read(job: RemoteJob) -> SiteData:
            if name in broken:
                raise OSError("the disk is on fire")
            return SiteData(cases[name].source, fold_of(cases[name]), CaseList({}, ()), folder / name)

        return Site(name, read)

    return {name: site(name) for name in cases}


@pytest.fixture(scope="session")
def hospitals() -> dict[str, CaseList]:
    """Site → its patients."""
    return make_cases()


@pytest.fixture
def job() -> Callable[..., RemoteJob]:
    return make_job


@pytest.fixture
def network(tmp_path: Path, hospitals: dict[str, CaseList]) -> Callable[..., Network]:
    """``network(broken=..., reachable=...)``: new processes of the sites, with the folders they had."""

    def make(broken: Sequence[str] = (), **options: Any) -> Network:
        return Network(make_sites(tmp_path / "sites", hospitals, broken), **options)

    return make
