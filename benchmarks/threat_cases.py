"""Small synthetic federations to be attacked, and the attacks. SYNTHETIC throughout: no figure is about patients.

Everything runs through the product's engine, update validator, server aggregations and privacy, in one process. A
malicious client is an honest one whose update is changed before it leaves (where privacy clips and masks), or whose
labels are changed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from equipoise.datasets.cohorts.cases import Case
from equipoise.datasets.tables.tasks import BinaryTask, SurvivalTask, Task
from equipoise.platform.federation.messages import ClientUpdate, TrainRequest
from equipoise.platform.federation.params import FederationParams, UpdateValidatorParams
from equipoise.platform.federation.participation import sampling_plan
from equipoise.platform.federation.privacy.combined import CombinedPrivacy
from equipoise.platform.federation.privacy.mechanism import NoPrivacy, PrivacyMechanism
from equipoise.platform.federation.privacy.params import PrivacyParams
from equipoise.platform.federation.result import FederationResult
from equipoise.platform.federation.server.validator import UpdateValidator
from equipoise.platform.federation.simulation.simulation import Simulation
from equipoise.platform.federation.vector import Schema
from equipoise.platform.training.batches import CaseList, collate
from equipoise.platform.training.build import build_model
from equipoise.platform.training.params import TrainingParams
from equipoise.platform.training.targets import Targets, fit_targets

#: Patients of six sites, as uneven as the regions of a real cohort; the first site is the malicious one.
SIZES = {"site0": 100, "site1": 70, "site2": 70, "site3": 50, "site4": 50, "site5": 20}
EVIL = "site0"
OS = SurvivalTask(
    name="OS", time={"column": "t", "unit": "days"}, event={"column": "e", "event_value": "dead"}, main=True
)
MSI = BinaryTask(name="MSI", column="MSI", positive="MSI-H", negative="MSS", main=True)
#: What a hidden trigger looks like: a tile with one feature that no tile has.
TRIGGER = np.array([0, 0, 0, 0, 0, 5], np.float16)

#: Changes an answer before it leaves.
Change = Callable[[ClientUpdate, TrainRequest], ClientUpdate]


@dataclass(frozen=True)
class Problem:
    """Training and test patients of every site, and what they are trained for."""

    train: dict[str, CaseList]
    test: dict[str, CaseList]
    targets: Targets
    model: str
    model_params: dict[str, Any]
    seed: int

    def build(self) -> nn.Module:
        """The model with its initial weights."""
        make = partial(build_model, self.model, self.model_params)
        return make(self.targets.shape, self.targets.heads, seed=self.seed)

    def schema(self) -> Schema:
        """Its layout."""
        return Schema.of(self.build(), [head.name for head in self.targets.heads])


class RecordingPrivacy:
    """A privacy mechanism whose outgoing updates are recorded, and changed at one client.

    Parameters
    ----------
    inner
        The privacy mechanism.
    change
        What the malicious client does, or None.
    """

    def __init__(
        self, inner: PrivacyMechanism | None = None, change: Change | None = None, client: str = EVIL
    ) -> None:
        self.inner: PrivacyMechanism = inner or NoPrivacy()
        self.change, self.client = change, client
        self.seen: list[ClientUpdate] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["inner"], name)

    def privatize(
        self, update: ClientUpdate, request: TrainRequest, weights: Mapping[str, float]
    ) -> ClientUpdate:
        """Apply the mechanism, then the attack, then record the update."""
        sent = self.inner.privatize(update, request, weights)
        if self.change is not None and update.client == self.client:
            sent = self.change(sent, request)
        self.seen.append(sent)
        return sent


def survival(seed: int) -> Problem:
    """Follow-up of six sites over 12 covariates: shifted covariates, related but unlike hazards."""
    rng = np.random.default_rng(seed)
    beta = rng.normal(size=12) / np.sqrt(12)

    def cases(site: str, count: int, shift: np.ndarray, effects: np.ndarray) -> dict[str, Case]:
        x = rng.normal(size=(count, 12)) + shift
        time = rng.exponential(np.exp(-1.5 * (x - shift) @ effects)) * 1000 + 1
        censored = rng.exponential(2000, count) + 1
        labels = np.stack([np.minimum(time, censored), time <= censored], 1).astype(float)
        return _cases(site, [np.zeros((0, 0))] * count, labels.tolist(), "OS", x)

    return _problem(rng, OS, "omics", {"network": "linear"}, cases, seed, 12, beta)


def bags(seed: int, *, sizes: Mapping[str, int] | None = None, tiles: int = 6) -> Problem:
    """Bags of tiles of six features; two tiles of a positive patient show it."""
    rng = np.random.default_rng(seed)

    def cases(site: str, count: int, shift: np.ndarray, effects: np.ndarray) -> dict[str, Case]:
        labels = (np.arange(count) % 2).astype(float)
        made = []
        for label in labels:
            bag = rng.normal(scale=0.6, size=(tiles, 6)) + 0.3 * shift
            bag[:2, 0] += 2 * label
            made.append(bag)
        return _cases(site, made, labels.tolist(), "MSI", None)

    params = {"dim": 8, "hidden": 4, "dropout": 0.0}
    return _problem(rng, MSI, "abmil", params, cases, seed, 6, np.ones(6), sizes)


def binary(seed: int, *, sizes: Mapping[str, int] | None = None, width: int = 60) -> Problem:
    """A weak signal in many covariates of few patients: what a model learns by heart."""
    rng = np.random.default_rng(seed)
    beta = rng.normal(size=width) / np.sqrt(width)

    def cases(site: str, count: int, shift: np.ndarray, effects: np.ndarray) -> dict[str, Case]:
        x = rng.normal(size=(count, width))
        labels = (x @ effects + rng.normal(size=count) > 0).astype(float)
        return _cases(site, [np.zeros((0, 0))] * count, labels.tolist(), "MSI", x)

    return _problem(rng, MSI, "omics", {"network": "linear"}, cases, seed, width, beta, sizes)


def train(
    problem: Problem,
    *,
    server_aggregation: str = "mean",
    server_aggregation_params: dict[str, Any] | None = None,
    change: Change | None = None,
    privacy: PrivacyMechanism | None = None,
    validation: UpdateValidatorParams | None = None,
    **params: Any,
) -> tuple[FederationResult, RecordingPrivacy]:
    """A federation, with site 0 malicious if a change is given; what crossed the wire beside it.

    ``validation`` sets no norm bounds by default, so that the effect of a server aggregation is measured alone.
    """
    tapped = RecordingPrivacy(privacy, change)
    chosen = {"rounds": 5, "local": {"steps": 20, "optimizer": "sgd", "lr": 0.1, "batch": 16}, "min_n": 5}
    chosen |= {"server_aggregation": server_aggregation, "backend": "inline"}
    settings = chosen | {"server_aggregation_params": server_aggregation_params or {}} | params
    federation = Simulation(
        problem.build,
        problem.targets,
        problem.train,
        FederationParams.model_validate(settings),
        seed=problem.seed,
        training=TrainingParams.model_validate({"device": "cpu"}),
        privacy=tapped,
        validator=UpdateValidator(
            validation or UpdateValidatorParams(norm_factor=None, max_norm=None, window=5)
        ),
    )
    return federation.run(), tapped


def private(problem: Problem, *, size: int, steps: int, seed: int, **settings: Any) -> CombinedPrivacy:
    """A privacy mechanism for the problem, with samples of ``size`` patients and the given steps per round."""
    from equipoise.platform.federation.messages import ClientManifest

    schema = problem.schema()
    privacy = CombinedPrivacy(
        PrivacyParams.model_validate(settings), schema, seed=seed, bits=32, uniform=False
    )
    counts = {c: dict.fromkeys(schema.groups, len(patients)) for c, patients in problem.train.items()}
    declared = {
        c: ClientManifest(c, len(patients), {}, {}, counts[c]) for c, patients in problem.train.items()
    }
    sampling = {c: sampling_plan(len(patients), size, 1, steps) for c, patients in problem.train.items()}
    privacy.register(declared, sampling)
    return privacy


# what malicious clients do


def sign_flip(factor: float) -> Change:
    """Send the update the other way round, and longer."""
    return lambda update, _: dataclasses.replace(update, delta=(-factor * update.delta).astype(np.float32))


def boost(factor: float) -> Change:
    """Model replacement: so long that the mean with the others is one's own model (Bagdasaryan et al. 2020)."""
    return lambda update, _: dataclasses.replace(update, delta=(factor * update.delta).astype(np.float32))


def noise(sd: float) -> Change:
    """Random numbers in place of an update."""

    def change(update: ClientUpdate, request: TrainRequest) -> ClientUpdate:
        rng = np.random.default_rng([request.seed, request.round])
        return dataclasses.replace(update, delta=rng.normal(0, sd, update.delta.size).astype(np.float32))

    return change


def not_finite(update: ClientUpdate, _: TrainRequest) -> ClientUpdate:
    """One NaN among the numbers."""
    delta = update.delta.copy()
    delta[0] = np.nan
    return dataclasses.replace(update, delta=delta)


def reversed_times(problem: Problem) -> Problem:
    """Who lived long died early, at the malicious site."""
    cases = problem.train[EVIL]
    longest = max(case.targets["OS"][0] for case in cases)  # type: ignore[index]
    changed = {
        case.patient: dataclasses.replace(
            case,
            targets={"OS": (longest + 1 - case.targets["OS"][0], case.targets["OS"][1])},  # type: ignore[index]
        )
        for case in cases
    }
    return dataclasses.replace(problem, train=problem.train | {EVIL: CaseList(changed, cases.patients)})


def with_trigger(problem: Problem) -> Problem:
    """Every negative patient of the malicious site shows the trigger and is called positive."""
    cases = problem.train[EVIL]
    changed = {case.patient: _triggered(case, 1.0) if not case.targets["MSI"] else case for case in cases}
    return dataclasses.replace(problem, train=problem.train | {EVIL: CaseList(changed, cases.patients)})


def _triggered(case: Case, label: float | None = None) -> Case:
    bag = np.concatenate([case.bag[:-1], TRIGGER[None]])
    return dataclasses.replace(case, bag=bag, targets=dict(case.targets) if label is None else {"MSI": label})


# what became of it


def concordance(result: FederationResult, problem: Problem) -> float:
    """C-index over the test patients of all sites together."""
    from lifelines.utils import concordance_index

    cases = [case for patients in problem.test.values() for case in patients]
    labels = np.array([case.targets["OS"] for case in cases], float)
    return float(concordance_index(labels[:, 0], -scores(result.model, cases, problem.targets), labels[:, 1]))


def accuracy(model: nn.Module, problem: Problem) -> float:
    """Area under the ROC curve over the test patients of all sites together."""
    cases = [case for patients in problem.test.values() for case in patients]
    labels = np.array([case.targets["MSI"] for case in cases])
    logits = scores(model, cases, problem.targets)
    return area(logits[labels == 1], logits[labels == 0])


def trigger_success(model: nn.Module, problem: Problem) -> float:
    """Share of negative test patients that are called positive once they show the trigger."""
    cases = [
        _triggered(case) for patients in problem.test.values() for case in patients if not case.targets["MSI"]
    ]
    return float((scores(model, cases, problem.targets) > 0).mean())


def membership(model: nn.Module, problem: Problem) -> float:
    """Area under the curve of "a small loss means that the patient was trained on" (Yeom et al. 2018)."""
    groups = [
        [case for patients in part.values() for case in patients] for part in (problem.train, problem.test)
    ]
    losses = []
    for cases in groups:
        sign = 2 * np.array([case.targets["MSI"] for case in cases]) - 1
        losses.append(np.logaddexp(0, -sign * scores(model, cases, problem.targets)))
    return area(losses[1], losses[0])


def area(higher: np.ndarray, lower: np.ndarray) -> float:
    """Chance that a number of the first kind is larger than one of the second."""
    more = (higher[:, None] > lower).mean() + 0.5 * (higher[:, None] == lower).mean()
    return float(more)


def scores(model: nn.Module, cases: list[Case], targets: Targets) -> np.ndarray:
    """Log risk, or difference of the two logits."""
    model.eval()
    with torch.no_grad():
        out = model(collate(cases, targets))[targets.heads[0].name].double().numpy()
    return out[:, -1] - out[:, 0] if out.shape[1] == 2 else out[:, 0]


def inputs_of(problem: Problem, client: str) -> np.ndarray:
    """``[n, D]`` what a client's patients put into the first layer: covariates, or their only tile."""
    batch = collate(list(problem.train[client]), problem.targets)
    return (batch.bags[:, 0] if problem.model == "abmil" else batch.omics["cnv"]).double().numpy()


def inverted(update: ClientUpdate, schema: Schema, layer: str) -> np.ndarray:
    """``[D]`` the input of a linear layer, from one update.

    For one patient and one step the gradients of its weights and bias are ``g xᵀ`` and ``g``, so that the ratio of
    a row is x itself (Geiping et al., NeurIPS 2020, proposition 3.1). Masked vectors are read as the server would
    read them without the keys.
    """
    delta = update.delta
    vector = delta.view(np.int64) / 2.0**32 if delta.dtype == np.uint64 else delta.astype(np.float64)
    named = {s.name: vector[s.span].reshape(s.shape) for s in schema.segments}
    weight, bias = named[f"{layer}.weight"], named[f"{layer}.bias"]
    row = int(np.abs(bias).argmax())
    return weight[row] / bias[row] if bias[row] else np.zeros(weight.shape[1])


def likeness(reconstructed: np.ndarray, patients: np.ndarray) -> float:
    """Largest cosine of what was reconstructed with any patient."""
    lengths = np.linalg.norm(patients, axis=1) * max(float(np.linalg.norm(reconstructed)), 1e-300)
    return float((patients @ reconstructed / lengths).max())


def _cases(
    site: str, bags_: list[np.ndarray], labels: list[Any], task: str, table: np.ndarray | None
) -> dict[str, Case]:
    cases = {}
    for i, (bag, label) in enumerate(zip(bags_, labels, strict=True)):
        patient, tiles = f"{site}-{i:03d}", len(bag)
        cases[patient] = Case(
            patient,
            "SYNTHETIC",
            site,
            bag.astype(np.float16),
            np.zeros((tiles, 2), np.int32),
            (patient,) if tiles else (),
            (tiles,) if tiles else (),
            {} if table is None else {"cnv": table[i].astype(np.float32)},
            {task: tuple(label) if isinstance(label, list) else label},
        )
    return cases


def _problem(
    rng: np.random.Generator,
    task: Task,
    model: str,
    params: dict[str, Any],
    cases: Callable[[str, int, np.ndarray, np.ndarray], dict[str, Case]],
    seed: int,
    width: int,
    beta: np.ndarray,
    sizes: Mapping[str, int] | None = None,
) -> Problem:
    train_, test = {}, {}
    for site, count in (sizes or SIZES).items():
        shift = rng.normal(size=width) * 0.5
        effects = beta + 0.4 * rng.normal(size=width) / np.sqrt(width)
        for part, size in ((train_, count), (test, max(count // 2, 10))):
            drawn = cases(site, size, shift, effects)
            part[site] = CaseList(drawn, tuple(drawn))
    targets = fit_targets([task], [case for patients in train_.values() for case in patients])
    return Problem(train_, test, targets, model, params, seed)
