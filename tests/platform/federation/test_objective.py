"""One full-batch federated step is one step on the pooled objective, whatever labels and modalities are missing.

The pooled gradient is computed here in float64 by autograd, from losses that are written out patient by patient.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from equipoise.datasets.cohorts.cases import Case
from equipoise.datasets.tables.tasks import BinaryTask, MulticlassTask, RegressionTask, SurvivalTask, Task
from equipoise.platform.errors import FederationError
from equipoise.platform.federation.messages import ClientManifest
from equipoise.platform.federation.objective import Objective
from equipoise.platform.federation.params import FederationParams, Participation
from equipoise.platform.federation.participation import draw_rate, participants
from equipoise.platform.federation.simulation.simulation import Simulation
from equipoise.platform.training.batches import CaseList, collate
from equipoise.platform.training.build import build_model
from equipoise.platform.training.params import BalancingParams, TrainingParams
from equipoise.platform.training.targets import Targets, fit_targets

#: Largest accepted distance of a step from the pooled one, in lengths of the latter.
CLOSE = 1e-4
MODEL: dict[str, Any] = {"dim": 4, "hidden": 2, "layers": 1, "dropout": 0.0}
TIME: dict[str, Any] = {
    "time": {"column": "t", "unit": "days"},
    "event": {"column": "e", "event_value": "dead"},
}
MSI = BinaryTask(name="MSI", column="MSI", positive="MSI-H", negative="MSS", main=True)
CMS = MulticlassTask(name="CMS", column="CMS", classes=["1", "2", "3"])
LF = RegressionTask(name="LF", column="LF")
OS, PFS = (
    SurvivalTask(name="OS", **TIME),
    SurvivalTask(name="PFS", likelihood="discrete_hazard", bins=3, **TIME),
)
SITES = ("A", "B", "C", "D")


def cohort(tasks: tuple[Task, ...], known: Mapping[str, str] | None = None) -> dict[str, CaseList]:
    """Four sites of 16 patients with 12, 8, 3 and 1 events and skewed classes.

    LF is rare at B, CMS unknown at C, times of PFS are rare at A; or a task is known to all patients of the sites that
    ``known`` names. RNA is absent at D and rare at A.
    """
    rng, made, events = np.random.default_rng(0), {}, {"A": 12, "B": 8, "C": 3, "D": 1}
    for at, site in enumerate(SITES):
        cases = {}
        for i in range(16):
            bag = rng.normal(size=(3, 4)).astype(np.float16)
            burden = float(bag[:, 1].mean())
            time = (float(np.exp(5 - burden + rng.normal() * 0.3)), float(i < events[site]))
            labels: dict[str, Any] = {
                "MSI": float(i % (2 + at) == 0),
                "CMS": np.nan if site == "C" else float((i * i + at) % 3),
                "LF": np.nan if site == "B" and i > 1 else burden,
                "OS": time,
                "PFS": (np.nan, np.nan) if site == "A" and i % 4 else time,
            }
            if known is not None:
                labels["CMS"], labels["LF"] = float((i * i + at) % 3), burden
                labels |= {task: np.nan for task, sites in known.items() if site not in sites}
            absent = site == "D" or (site == "A" and i % 3)
            omics = {} if absent else {"rna": rng.normal(size=3).astype(np.float32)}
            cases[f"{site}{i}"] = Case(
                f"{site}{i}",
                "SYN",
                site,
                bag,
                np.zeros((3, 2), np.int32),
                (f"{site}{i}",),
                (3,),
                omics,
                {task.name: labels[task.name] for task in tasks},
            )
        made[site] = CaseList(cases, tuple(cases))
    return made


def federation(
    sites: Mapping[str, CaseList], targets: Targets, balancing: BalancingParams | None = None, **params: Any
) -> Simulation:
    local = {"steps": 1, "optimizer": "sgd", "lr": 0.3, "batch": "full"} | params.pop("local", {})
    settings = {"rounds": 1, "backend": "inline", "min_n": 1, "local": local} | params
    return Simulation(
        partial(build_model, "concat", MODEL, targets.shape, targets.heads, seed=1),
        targets,
        sites,
        FederationParams.model_validate(settings),
        seed=3,
        training=TrainingParams.model_validate({"device": "cpu"}),
        balancing=balancing,
    )


def fitted(tasks: tuple[Task, ...], sites: Mapping[str, CaseList]) -> Targets:
    return fit_targets(tasks, [case for cases in sites.values() for case in cases])


def step(simulation: Simulation) -> np.ndarray:
    return simulation.run().vector.astype(np.float64) - simulation.initial


def cox(score: Tensor, time: Tensor, event: Tensor) -> Tensor:
    """Negative log partial likelihood summed over events, risk sets one by one; times are all different."""
    terms = [
        torch.logsumexp(score[time >= time[i]], 0) - score[i] for i in range(len(score)) if float(event[i])
    ]
    return torch.stack(terms).sum() if terms else score.sum() * 0


def hazard(logits: Tensor, time: Tensor, event: Tensor, edges: tuple[float, ...]) -> Tensor:
    """Negative log likelihood of a discrete-time model, summed over patients, interval by interval."""
    total = logits.sum() * 0
    for row, day, seen in zip(logits, time.tolist(), event.tolist(), strict=True):
        last = sum(day >= np.float32(edge) for edge in edges)
        for interval in range(last):
            total = total - torch.log(1 - torch.sigmoid(row[interval]))
        chance = torch.sigmoid(row[last])
        total = total - torch.log(chance if seen else 1 - chance)
    return total


def pooled_step(
    simulation: Simulation, sites: Mapping[str, CaseList], weights: Mapping[str, float] | None = None
) -> np.ndarray:
    """``[P]`` −lr times the gradient of Σ_t w_t · mean loss over all labels (all events), Cox's stratified by site."""
    targets = simulation.targets
    model = simulation.factory().double()
    losses, outputs = [], {}
    for site, cases in sites.items():
        batch = collate(list(cases), targets)
        wide = replace(
            batch,
            bags=batch.bags.double(),
            omics={name: value.double() for name, value in batch.omics.items()},
        )
        outputs[site] = (model(wide), batch)
    for task in targets.tasks:
        head, total, count = task.head, torch.zeros((), dtype=torch.float64), 0.0
        for out, batch in outputs.values():
            known = batch.label_mask[head.name].bool()
            score, label = out[head.name][known], batch.targets[head.name][known].double()
            if head.kind == "regression":
                total, count = total + ((score[:, 0] - label) ** 2).sum(), count + len(label)
            elif head.kind != "survival":
                chances = torch.log_softmax(score, 1)[torch.arange(len(label)), label.long()]
                each = torch.tensor(task.class_weights or [1.0] * head.outputs, dtype=torch.float64)
                total, count = total - (each[label.long()] * chances).sum(), count + len(label)
            elif head.edges is None:
                total = total + cox(score[:, 0], label[:, 0], label[:, 1])
                count += float(label[:, 1].sum())
            else:
                total, count = (
                    total + hazard(score, label[:, 0], label[:, 1], head.edges),
                    count + len(label),
                )
        if count:
            losses.append((weights or {}).get(head.name, 1.0) * total / count)
    torch.stack(losses).sum().backward()
    known = dict(model.named_parameters())
    gradient = np.zeros(simulation.schema.size)
    for segment in simulation.schema.segments:
        if segment.name in known and known[segment.name].grad is not None:
            gradient[segment.span] = known[segment.name].grad.numpy().reshape(-1)
    return -float(simulation.params.local.lr or 0) * gradient


def distances(simulation: Simulation, moved: np.ndarray, wanted: np.ndarray) -> dict[str, float]:
    """Group → distance of two steps in lengths of the second."""
    parts = {g: simulation.schema.mask([g]) for g in simulation.schema.groups if g != "absent:wsi"}
    assert all(np.abs(wanted[part]).max() > 0 for part in parts.values())  # every patient has tiles
    return {
        g: float(np.linalg.norm(moved[p] - wanted[p]) / np.linalg.norm(wanted[p])) for g, p in parts.items()
    }


ALL: tuple[Task, ...] = (MSI, CMS, LF, OS, PFS)


@pytest.mark.parametrize(
    ("tasks", "params"),
    [
        ((OS,), {}),
        ((MSI, LF), {}),
        (ALL, {}),
        (ALL, {"strategy": "scaffold"}),
        (ALL, {"strategy": "fednova"}),
        (ALL, {"strategy": "fedbuff", "strategy_params": {"buffer": 4}}),
    ],
    ids=["cox", "missing labels", "all types", "scaffold", "fednova", "fedbuff"],
)
def test_one_step_is_the_pooled_step(tasks: tuple[Task, ...], params: dict[str, Any]) -> None:
    sites = cohort(tasks)
    simulation = federation(sites, fitted(tasks, sites), **params)
    moved, wanted = step(simulation), pooled_step(simulation, sites)
    assert max(distances(simulation, moved, wanted).values()) < CLOSE
    cosine = moved @ wanted / np.linalg.norm(moved) / np.linalg.norm(wanted)
    assert cosine == pytest.approx(1, abs=1e-7)


def test_masked_sums_are_the_pooled_step_where_three_sites_contribute() -> None:
    """The token for absent RNA is trained at A and D alone: its sum is not revealed, and it stays as it was."""
    sites = cohort(ALL)
    masked = {"privacy": {"secure_aggregation": {}}, "validation": {"norm_factor": None}}
    simulation = federation(sites, fitted(ALL, sites), **masked)
    moved = step(simulation)
    found = distances(simulation, moved, pooled_step(simulation, sites))
    assert found.pop("absent:rna") == 1
    assert max(found.values()) < CLOSE


def test_cohorts_as_clients_take_the_pooled_stratified_step() -> None:
    """Of one client that holds all cohorts, and whose Cox loss has the cohorts as strata."""
    sites = {
        site: CaseList({c.patient: replace(c, cohort=site) for c in cases}, cases.patients)
        for site, cases in cohort(ALL).items()
    }
    targets = fitted(ALL, sites)
    everyone = {case.patient: case for cases in sites.values() for case in cases}
    apart, whole = (
        federation(sites, targets),
        federation({"all": CaseList(everyone, tuple(everyone))}, targets),
    )
    assert max(distances(apart, step(apart), step(whole)).values()) < CLOSE


def test_private_gradients_of_patients_follow_the_same_objective() -> None:
    """With a clipping norm that no gradient reaches, and next to no noise."""
    tasks = (MSI, CMS, LF, PFS)
    sites = cohort(tasks)
    private = {"record_level": {"clip": 100.0, "noise": 1e-8, "delta": 0.01}, "statistics": "public"}
    simulation = federation(sites, fitted(tasks, sites), privacy=private)
    assert max(distances(simulation, step(simulation), pooled_step(simulation, sites)).values()) < CLOSE


def test_chosen_weights_of_losses_are_kept() -> None:
    sites, weights = cohort(ALL), {"MSI": 0.5, "CMS": 2.0, "LF": 3.0, "OS": 0.25, "PFS": 1.0}
    balancing = BalancingParams(weighting="static", weighting_params={"weights": weights})
    simulation = federation(sites, fitted(ALL, sites), balancing)
    assert (
        max(distances(simulation, step(simulation), pooled_step(simulation, sites, weights)).values()) < CLOSE
    )


def test_a_head_without_labels_in_a_batch_counts_as_not_moved() -> None:
    """Steps over all mini-batches of a pass add up to as many full-batch steps, label by label."""
    tasks = (MSI, CMS, LF, PFS)
    sites = cohort(tasks)
    targets = fitted(tasks, sites)
    local = {"batch": 4, "lr": 3e-3, "steps": 4}
    simulation = federation(sites, targets, local=local)
    wanted = 4 * pooled_step(simulation, sites)
    assert max(distances(simulation, step(simulation), wanted).values()) < 0.03


@pytest.mark.parametrize("strategy", ["feddyn", "cyclic"])
def test_strategies_that_do_not_average_by_labels(strategy: str) -> None:
    """FedDyn's clients count alike, which with as many labels everywhere is the pooled objective, twice in its first
    step (mean − h / α); a tour of cyclic transfer is as many pooled steps as it has clients."""
    tasks: tuple[Task, ...] = (MSI, LF) if strategy == "feddyn" else ALL
    sites = cohort(tasks, known={} if strategy == "feddyn" else None)
    simulation = federation(sites, fitted(tasks, sites), strategy=strategy, local={"lr": 3e-3})
    times = {"feddyn": 2, "cyclic": 4}[strategy]
    found = distances(simulation, step(simulation), times * pooled_step(simulation, sites))
    assert max(found.values()) < 0.03


def test_uniform_weights_are_the_mean_over_the_sites_that_know_a_task() -> None:
    tasks = (MSI, CMS, OS)
    sites = cohort(tasks)
    simulation = federation(sites, fitted(tasks, sites), weights="uniform")
    wanted = np.zeros(simulation.schema.size)
    for task, known in {"MSI": "ABCD", "CMS": "ABD", "OS": "ABCD"}.items():
        only = {name: float(name == task) for name in ("MSI", "CMS", "OS")}
        wanted += sum(pooled_step(simulation, {site: sites[site]}, only) for site in known) / len(known)
    assert max(distances(simulation, step(simulation), wanted).values()) < CLOSE


def test_a_task_that_half_of_the_participants_know_keeps_its_weight() -> None:
    """Totals are those of all clients: in two rounds of half of them each the trunk takes two pooled steps."""
    tasks = (MSI, CMS, LF)
    sites = cohort(tasks, known={"LF": "AB", "CMS": "CD"})  # as many labels at every site
    halves = {"scheme": "round_robin", "fraction": 0.5}
    local = {"lr": 3e-3}
    simulation = federation(sites, fitted(tasks, sites), rounds=2, participation=halves, local=local)
    found = distances(simulation, step(simulation), 2 * pooled_step(simulation, sites))
    assert found["shared"] < 0.03
    assert found["modality:wsi"] < 0.03


def test_large_clients_that_are_drawn_more_often_count_less_then() -> None:
    """Inclusion probabilities of ``size`` are min(1, c n) exactly, and weights are divided by them."""
    sizes = {"A": 60, "B": 20, "C": 10, "D": 6, "E": 4}
    params = Participation(scheme="size", fraction=0.4)
    rate = draw_rate(params, list(sizes.values()))
    assert rate == pytest.approx(1 / 40)  # two of five: A always, and one of the others, who have 40 patients
    rounds = 4000
    drawn = [participants(params, sorted(sizes), sizes, seed=2, round_=r) for r in range(rounds)]
    assert {len(chosen) for chosen in drawn} == {2}
    for client, size in sizes.items():
        chance = min(1.0, rate * size)
        seen = sum(client in chosen for chosen in drawn) / rounds
        assert seen == pytest.approx(chance, abs=4 * np.sqrt(chance * (1 - chance) / rounds) + 1e-12)
    declared = {
        c: ClientManifest(c, n, {"t": n}, {}, {"shared": n}, labels={"t": n}) for c, n in sizes.items()
    }
    objective = Objective.of(declared, ["shared"], draw=rate)
    weights = {c: objective.share(m).weights["shared"] for c, m in declared.items()}
    assert weights == pytest.approx({"A": 60, "B": 40, "C": 40, "D": 40, "E": 40})


def test_a_client_that_trains_without_labels_is_an_error() -> None:
    manifest = ClientManifest("A", 5, {"t": 5}, {}, {"shared": 5})
    with pytest.raises(FederationError, match="client A trains parameters and declares no label"):
        Objective.of({"A": manifest}, ["shared"])
