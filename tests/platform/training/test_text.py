"""Heads on text: bins and banks of training patients, through the one training loop, stored and refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from lifelines import KaplanMeierFitter

from equipoise.datasets.cohorts.cases import Case
from equipoise.datasets.tables.tasks import MulticlassTask, Task
from equipoise.models.text.head import TextHead
from equipoise.models.text.params import TextParams
from equipoise.platform.errors import DataError, DataWarning, StudyError
from equipoise.platform.evaluation.metrics import auroc, harrell_c
from equipoise.platform.training.batches import CaseList
from equipoise.platform.training.build import build_model
from equipoise.platform.training.loop import fit
from equipoise.platform.training.params import TrainingParams
from equipoise.platform.training.predict import predict
from equipoise.platform.training.statistics import LifeTable
from equipoise.platform.training.targets import Targets, fit_targets
from equipoise.platform.training.text import kaplan_meier_edges, survival_before

Make = Callable[..., dict[str, Case]]
ALL = TextParams(tasks=["MSI", "grade", "OS"])


def fitted(tasks: tuple[Task, ...], cases: dict[str, Case], text: TextParams | None = ALL) -> Targets:
    return fit_targets(tasks, cases.values(), text=text)


def follow_up(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    death, lost = rng.exponential(900, n).round() + 1, rng.exponential(1200, n).round() + 1
    return np.minimum(death, lost), (death <= lost).astype(float)


def test_life_table_is_that_of_kaplan_and_meier() -> None:
    days, event = follow_up(200, 0)
    table = LifeTable.of(days, event)
    curve = KaplanMeierFitter().fit(days, event)
    np.testing.assert_allclose(table.survival, curve.predict(table.days).to_numpy())
    np.testing.assert_allclose(survival_before(table, table.days), curve.predict(table.days - 0.5).to_numpy())


def test_bins_hold_equal_mass_and_without_censoring_equal_counts() -> None:
    days, event = follow_up(400, 1)
    table = LifeTable.of(days, event)
    edges = kaplan_meier_edges(table, 4)
    curve = KaplanMeierFitter().fit(days, event)
    before = curve.predict(np.array(edges) - 0.5).to_numpy()
    lost = 1 - curve.predict(days.max())
    np.testing.assert_allclose((1 - before) / lost, [0.25, 0.5, 0.75], atol=0.02)
    distinct = np.arange(1.0, 101)
    even = kaplan_meier_edges(LifeTable.of(distinct, np.ones(100)), 4)
    assert np.histogram(distinct, [0, *even, np.inf])[0].tolist() == [25, 25, 25, 25]


def test_a_censored_case_has_the_chances_of_the_later_intervals(
    tasks: tuple[Task, ...], make_cases: Make
) -> None:
    head = next(h for h in fitted(tasks, make_cases(60)).heads if h.name == "OS")
    assert head.text is not None
    assert head.edges is not None
    labels = [c.targets["OS"] for c in make_cases(60).values() if not np.isnan(c.targets["OS"][0])]  # type: ignore[index]
    curve = KaplanMeierFitter().fit(*np.array(labels).T)
    edges = torch.tensor(head.edges, dtype=torch.float64)
    days = torch.tensor([head.edges[0] - 1, head.edges[0] + 3, head.edges[-1] + 1, 1e6], dtype=torch.float64)
    event = torch.tensor([1.0, 0.0, 0.0, 0.0])
    shares = head.text.survival_shares(days, event, edges)
    assert shares[0].tolist() == [1, 0, 0, 0]
    now = curve.predict(float(days[1]))
    reached = [now, *(curve.predict(e - 1e-6) for e in head.edges[1:]), 0.0]
    np.testing.assert_allclose(shares[1], [0, *(-np.diff(reached) / now)], atol=1e-9)
    assert shares[2].tolist() == shares[3].tolist() == [0, 0, 0, 1]


def test_test_patients_change_no_bin_centre_or_target(tasks: tuple[Task, ...], make_cases: Make) -> None:
    """The published code cut survival at quantiles over all patients, test patients included."""
    train = make_cases(40)
    one = fitted(tasks, train)
    others = {
        name: replace(case, targets=dict.fromkeys(case.targets, np.nan))
        for name, case in make_cases(9).items()
    }
    assert fitted(tasks, train) == one
    assert fitted(tasks, {**{f"x{k}": v for k, v in others.items()}, **train}).heads == one.heads
    more = make_cases(55, seed=3)
    changed = fitted(tasks, {**train, **{f"y{k}": v for k, v in more.items()}})
    assert changed.heads[-1].edges != one.heads[-1].edges  # of training patients all of it is a function


def test_banks_are_centred_and_survival_lies_in_order(tasks: tuple[Task, ...], make_cases: Make) -> None:
    targets = fitted(tasks, make_cases(60, missing=False))
    text = {head.name: head.text for head in targets.heads}
    assert text["LF"] is None
    two = np.array(text["MSI"].bank)  # type: ignore[union-attr]
    np.testing.assert_allclose(two[0] @ two[1], -1, atol=1e-6)  # around their mean, two labels are opposite
    near = np.array(text["OS"].bank) @ np.array(text["OS"].bank).T  # type: ignore[union-attr]
    assert all(np.diff(near[0]) < 0)
    assert all(np.diff(near[-1]) > 0)
    as_published = fitted(tasks, make_cases(60), ALL.model_copy(update={"ordinal": False, "centre": False}))
    assert "died between" in as_published.heads[-1].text.sentences[1]  # type: ignore[union-attr]


@pytest.mark.parametrize("loss", ["kl", "cosine", "infonce"])
def test_a_model_learns_labels_as_text(tasks: tuple[Task, ...], make_cases: Make, loss: str) -> None:
    cases = make_cases(110, missing=False)
    parts = [tuple(cases)[a:b] for a, b in ((0, 50), (50, 70), (70, 110))]
    targets = fitted(tasks, {p: cases[p] for p in parts[0]}, ALL.model_copy(update={"loss": loss}))
    model = build_model("mean_pool", {}, targets.shape, targets.heads, seed=0)
    params = TrainingParams(epochs=10, lr=1e-2, batch=10, device="cpu", probe=False)
    train, val, test = (CaseList(cases, part) for part in parts)
    fit(model, targets, train, val, params, seed=0)
    rows = predict(model, targets, test, role="test", repeat=0, fold=0)
    part = {task: of.set_index(["patient", "class"]) for task, of in rows.groupby("task")}
    chances = part["grade"]["score"].unstack()
    np.testing.assert_allclose(chances.sum(axis=1), 1, atol=1e-6)
    assert auroc(part["MSI"]["target"].to_numpy(), part["MSI"]["score"].to_numpy()) > 0.9
    # Survival follows the burden that every tile shows.
    known = part["OS"]
    assert harrell_c(known["time"].to_numpy(), known["event"].to_numpy(), known["score"].to_numpy()) > 0.7


def test_what_is_stored_is_what_is_read_and_a_change_is_refused(
    tasks: tuple[Task, ...], make_cases: Make
) -> None:
    """The published code kept neither its random projector nor a trace of it."""
    targets = fitted(tasks, make_cases(40))
    stored = json.loads(json.dumps(targets.to_json()))
    read = Targets.from_json(stored)
    assert read.heads == targets.heads
    models = [build_model("mean_pool", {}, t.shape, t.heads, seed=1) for t in (targets, read)]
    cases = make_cases(9)
    out = [
        predict(m.eval(), t, CaseList(cases, tuple(cases)), role="test", repeat=0, fold=0)
        for m, t in zip(models, (targets, read), strict=True)
    ]
    assert out[0].equals(out[1])
    assert not any("bank" in name for name in models[0].state_dict())
    changed = copy.deepcopy(stored)
    changed["tasks"][0]["text"]["bank"][0][0] += 1e-3
    with pytest.raises(DataError, match="bank of label embeddings was changed"):
        Targets.from_json(changed)
    changed = copy.deepcopy(stored)
    changed["tasks"][0]["text"]["projector"]["seed"] = 1
    with pytest.raises(DataError, match="projector"):
        Targets.from_json(changed)


def test_embeddings_have_length_1_and_lie_in_the_space_of_labels(
    tasks: tuple[Task, ...], make_cases: Make
) -> None:
    head = fitted(tasks, make_cases(40)).heads[0]
    assert head.text is not None
    layer = TextHead(5, head.text).double()
    z = layer.embed(torch.randn(7, 5, dtype=torch.float64))
    torch.testing.assert_close(z.norm(dim=1), torch.ones(7, dtype=torch.float64))
    logits = layer(torch.randn(7, 5, dtype=torch.float64))
    assert logits.abs().max() <= 2 / head.text.spread + 1e-6


def test_a_model_with_heads_of_its_own_is_refused(tasks: tuple[Task, ...], make_cases: Make) -> None:
    targets = fitted(tasks, make_cases(40))
    with pytest.raises(StudyError, match="heads of its own"):
        build_model("gptomic", {"image": "mean_pool"}, targets.shape, targets.heads, seed=0)


def test_labels_with_the_same_words_are_refused(tasks: tuple[Task, ...], make_cases: Make) -> None:
    same = TextParams(labels={"grade": {"words": {"low": "some", "mid": "some"}}})  # type: ignore[dict-item]
    with pytest.raises(StudyError, match="same sentence"):
        fitted(tasks, make_cases(40), same)


@pytest.mark.parametrize("loss", ["cosine", "infonce"])
def test_a_class_that_training_has_not_seen_is_found_by_its_words(loss: str) -> None:
    """Two traits make four classes whose names share words; the fourth has no training patient."""
    names = [
        "necrotic spindle carcinoma",
        "necrotic round carcinoma",
        "mucinous spindle carcinoma",
        "mucinous round carcinoma",
    ]
    task = MulticlassTask(name="kind", column="kind", classes=names)
    rng = np.random.default_rng(0)
    cases = {}
    for i in range(120):
        label = i % 4 if i >= 90 else i % 3
        traits = np.array([label // 2, label % 2]) * 2.0 - 1
        bag = rng.normal(scale=0.3, size=(4, 6)) + np.r_[traits, np.zeros(4)]
        cases[f"P{i:03d}"] = Case(
            patient=f"P{i:03d}",
            cohort="A",
            site="S",
            bag=bag.astype(np.float16),
            coords=np.zeros((4, 2), np.int32),
            slides=("s",),
            tiles=(4,),
            omics={},
            targets={"kind": float(label)},
        )
    parts = [tuple(cases)[a:b] for a, b in ((0, 70), (70, 90), (90, 120))]
    text = TextParams(loss=loss, dim=64)
    with pytest.warns(DataWarning, match="no training patient is mucinous round"):
        targets = fit_targets([task], [cases[p] for p in parts[0]], text=text)
    model = build_model("mean_pool", {"layers": 0}, targets.shape, targets.heads, seed=0)
    train, val, test = (CaseList(cases, part) for part in parts)
    fit(
        model,
        targets,
        train,
        val,
        TrainingParams(epochs=12, lr=3e-2, batch=10, device="cpu", probe=False),
        seed=0,
    )
    rows = predict(model, targets, test, role="test", repeat=0, fold=0)
    scores = rows.pivot(index="patient", columns="class", values="score")[names]
    truth = rows.pivot(index="patient", columns="class", values="target")[names].to_numpy().argmax(axis=1)
    nearest = scores.to_numpy().argmax(axis=1)
    assert (nearest[truth == 3] == 3).mean() > 0.7
    assert (nearest[truth < 3] == truth[truth < 3]).mean() > 0.7
    stored = Targets.from_json(json.loads(json.dumps(targets.to_json())))
    assert stored.heads == targets.heads
