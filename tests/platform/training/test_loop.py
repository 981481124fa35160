"""The training loop: it learns, resumes bit for bit, stops early, and reports errors."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import math

import numpy as np
import pytest
import torch

from equipoise.platform.errors import DataError, StudyError
from equipoise.platform.evaluation.metrics import auroc
from equipoise.platform.training.batches import CaseList
from equipoise.platform.training.build import build_model
from equipoise.platform.training.checkpoint import TrainingProgress
from equipoise.platform.training.loop import FitResult, fit, learning_rate
from equipoise.platform.training.params import TrainingParams
from equipoise.platform.training.predict import predict, run_model
from equipoise.platform.training.step import NonFiniteLossError
from equipoise.platform.training.targets import fit_targets

SMALL = {"dim": 16, "heads": 2, "encoder_layers": 1, "decoder_layers": 1, "feedforward": 16}
MONITORS = ("mean_metric", "mean_loss", "val_loss", "main_loss", "main_metric")
FAST = TrainingParams(epochs=4, lr=3e-3, batch=4, bag_tiles=4)


@pytest.fixture
def setting(tasks, make_cases):
    """Targets, training and validation part of 16 patients."""
    cases = make_cases(16)
    patients = tuple(cases)
    train, val = CaseList(cases, patients[:12]), CaseList(cases, patients[12:])
    return fit_targets(tasks, train), train, val


def new_model(targets, seed: int = 1):
    return build_model("joint", SMALL, targets.shape, targets.heads, seed=seed)


def weights_of(model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_learning_rate_falls_once_per_epoch() -> None:
    params = TrainingParams()
    rates = [learning_rate(params, epoch) for epoch in range(params.epochs)]
    assert rates[0] == 1e-4
    assert all(a > b > 0 for a, b in itertools.pairwise(rates))
    assert rates[16] == pytest.approx(5e-5)
    assert learning_rate(TrainingParams(schedule="constant"), 31) == 1e-4


def test_a_planted_signal_is_found(tasks, make_cases) -> None:
    cases = make_cases(48, missing=False)
    patients = tuple(cases)
    train, val, unseen = (CaseList(cases, part) for part in (patients[:32], patients[32:40], patients[40:]))
    targets = fit_targets(tasks, train)
    model = new_model(targets)
    params = TrainingParams(
        epochs=12, lr=3e-3, batch=4, monitor="val_loss"
    )  # metrics of 8 patients are too coarse
    fit(model, targets, train, val, params, seed=0)
    for part in (train, unseen):
        out = run_model(model, targets, part)
        score = out.outputs["MSI"].softmax(1)[:, 1]
        assert auroc(out.targets["MSI"].numpy(), score.numpy()) > 0.9
        assert np.corrcoef(out.targets["LF"], out.outputs["LF"][:, 0])[0, 1] > 0.7
        assert np.corrcoef(out.targets["OS"][:, 0].log(), out.outputs["OS"][:, 0])[0, 1] < -0.6


def test_history_has_a_row_per_epoch(setting) -> None:
    targets, train, val = setting
    seen: list[dict[str, float]] = []
    result = fit(new_model(targets), targets, train, val, FAST, seed=0, report=seen.append)
    assert list(result.history) == seen
    assert [row["epoch"] for row in seen] == [1, 2, 3, 4]
    names = ["MSI", "grade", "LF", "OS"]
    losses = [f"{part}/{name}" for part in ("train", "val") for name in names]
    balance = [f"weight/{name}" for name in names] + ["conflict_rate"]
    balance += [f"cosine/{a}|{b}" for a, b in itertools.combinations(names, 2)]
    assert list(seen[0]) == ["epoch", "lr", *losses, "monitor", *(f"monitor/{m}" for m in MONITORS), *balance]
    assert all(row["monitor/val_loss"] == pytest.approx(sum(row[f"val/{n}"] for n in names)) for row in seen)


def test_same_seed_same_weights_other_seed_other_weights(setting) -> None:
    targets, train, val = setting
    results = []
    for seed in (5, 5, 6):
        torch.rand(3)  # the state of the global generator must not matter
        model = new_model(targets)
        fit(model, targets, train, val, FAST, seed=seed)
        results.append(weights_of(model))
    assert same(results[0], results[1])
    assert not same(results[0], results[2])


def test_the_global_generator_is_left_as_it_was(setting) -> None:
    targets, train, val = setting
    before = torch.random.get_rng_state()
    fit(new_model(targets), targets, train, val, FAST, seed=0)
    assert torch.equal(torch.random.get_rng_state(), before)


class InterruptError(Exception):
    """Stands for anything that ends a process."""


@pytest.mark.parametrize("at", [1, 2, 4])
def test_interrupted_and_resumed_equals_undisturbed(setting, tmp_path, at: int) -> None:
    targets, train, val = setting
    undisturbed = new_model(targets)
    expected = fit(undisturbed, targets, train, val, FAST, seed=3)

    def interrupt(row: dict[str, float]) -> None:
        if row["epoch"] == at:
            raise InterruptError

    path = tmp_path / "checkpoint.pt"
    with pytest.raises(InterruptError):
        fit(new_model(targets), targets, train, val, FAST, seed=3, report=interrupt, checkpoint=path)
    rows: list[dict[str, float]] = []
    resumed = new_model(targets, seed=99)  # initial weights come from the checkpoint
    result = fit(resumed, targets, train, val, FAST, seed=3, report=rows.append, checkpoint=path)
    assert [row["epoch"] for row in rows] == list(range(at + 1, 5))
    assert result == expected
    assert same(weights_of(resumed), weights_of(undisturbed))


def test_checkpoints_hold_tensors_and_plain_data_only(setting, tmp_path) -> None:
    targets, train, val = setting
    path = tmp_path / "checkpoint.pt"
    fit(new_model(targets), targets, train, val, FAST, seed=0, checkpoint=path)
    state = torch.load(path, weights_only=True)
    assert {"model", "optimizer", "balancer"} == set(state["parts"])
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_a_checkpoint_of_another_training_is_refused(setting, tmp_path) -> None:
    targets, train, val = setting
    path = tmp_path / "checkpoint.pt"
    fit(new_model(targets), targets, train, val, FAST, seed=0, checkpoint=path)
    other = FAST.model_copy(update={"lr": 0.5})
    with pytest.raises(StudyError, match=r"training.lr: 0.003 → 0.5"):
        fit(new_model(targets), targets, train, val, other, seed=0, checkpoint=path)
    with pytest.raises(StudyError, match="seed: 0 → 1"):
        fit(new_model(targets), targets, train, val, FAST, seed=1, checkpoint=path)
    fewer = CaseList(train.source, train.patients[:-1])
    with pytest.raises(StudyError, match="training patients"):
        fit(new_model(targets), targets, fewer, val, FAST, seed=0, checkpoint=path)


def test_patience_ends_training_and_the_best_weights_stay(setting) -> None:
    targets, train, val = setting
    params = TrainingParams(epochs=30, lr=0.1, batch=4, patience=2, schedule="constant", monitor="main_loss")
    at_epoch: list[dict[str, torch.Tensor]] = []
    model = new_model(targets)
    result: FitResult = fit(
        model, targets, train, val, params, seed=0, report=lambda row: at_epoch.append(weights_of(model))
    )
    monitored = [row["monitor"] for row in result.history]
    assert monitored == [row["monitor/main_loss"] for row in result.history]
    assert result.stopped_early
    assert len(monitored) < 30
    assert result.best_epoch == 1 + int(np.argmin(monitored))
    assert len(monitored) == result.best_epoch + 2
    assert same(weights_of(model), at_epoch[result.best_epoch - 1])


def test_min_epochs_holds_patience_back(setting) -> None:
    targets, train, val = setting
    params = TrainingParams(epochs=9, min_epochs=8, lr=0.1, batch=4, patience=1, schedule="constant")
    assert len(fit(new_model(targets), targets, train, val, params, seed=0).history) >= 8


@pytest.mark.parametrize("monitor", MONITORS)
def test_every_monitor_chooses_the_epoch_by_its_column(setting, monitor: str) -> None:
    targets, train, val = setting
    params = FAST.model_copy(update={"monitor": monitor, "lr": 0.03})
    result = fit(new_model(targets), targets, train, val, params, seed=0)
    rows = result.history
    assert all(row["monitor"] == row[f"monitor/{monitor}"] for row in rows)
    assert all(row["monitor/main_loss"] == row["val/MSI"] for row in rows)
    order = [(row["monitor"], row["monitor/mean_loss"]) for row in rows]
    assert result.best_epoch == 1 + order.index(min(order))


def test_equal_values_are_told_apart_by_the_relative_loss() -> None:
    progress, model = TrainingProgress(), torch.nn.Linear(1, 1)
    for value, loss in ((0.0, 0.9), (0.0, 0.5), (0.1, 0.1), (0.0, 0.6)):
        progress.add({"monitor": value, "monitor/mean_loss": loss}, model)
    assert progress.best_epoch == 2
    progress.add({"monitor": 0.0}, model)  # a row of an earlier version: nothing is known, it comes first
    assert progress.best_epoch == 5


def test_a_loss_that_is_not_a_number_names_epoch_task_and_patients(setting) -> None:
    targets, train, val = setting
    ill = dataclasses.replace(train[2], bag=np.full_like(train[2].bag, np.nan))
    train = CaseList({**train.source, ill.patient: ill}, train.patients)  # type: ignore[dict-item]
    with pytest.raises(NonFiniteLossError) as error:
        fit(new_model(targets), targets, train, val, FAST, seed=0)
    text = str(error.value)
    assert text.startswith("epoch 1: the training loss of MSI, grade, LF")
    assert ill.patient in text
    assert "training.grad_clip" in text


def test_a_validation_loss_that_is_not_a_number_is_not_averaged_away(setting) -> None:
    targets, train, val = setting
    ill = dataclasses.replace(val[0], bag=np.full_like(val[0].bag, np.inf))
    val = CaseList({**val.source, ill.patient: ill}, val.patients)  # type: ignore[dict-item]
    with pytest.raises(NonFiniteLossError, match="epoch 1: the validation loss of MSI"):
        fit(new_model(targets), targets, train, val, FAST, seed=0)


def test_test_patients_have_no_way_in() -> None:
    parts = [p for p in inspect.signature(fit).parameters.values() if "CaseList" in str(p.annotation)]
    assert [p.name for p in parts] == ["train", "val"]


def test_a_patient_in_both_parts_is_refused(setting) -> None:
    targets, train, _ = setting
    both = CaseList(train.source, train.patients[:2])
    with pytest.raises(DataError, match="in both training and validation: P00, P01"):
        fit(new_model(targets), targets, train, both, FAST, seed=0)


def test_empty_parts_are_refused(setting) -> None:
    targets, train, _ = setting
    with pytest.raises(DataError, match="inner validation part of the fold is empty"):
        fit(new_model(targets), targets, train, CaseList({}, ()), FAST, seed=0)


def test_patients_with_missing_labels_still_teach_their_other_tasks(setting) -> None:
    targets, train, val = setting
    silent = {
        patient: dataclasses.replace(case, targets={"MSI": case.targets["MSI"]})
        for patient, case in train.source.items()  # type: ignore[attr-defined]
    }
    model = new_model(targets)
    before = weights_of(model)
    params = FAST.model_copy(update={"weight_decay": 0.0, "epochs": 2})
    history = fit(model, targets, CaseList(silent, train.patients), val, params, seed=0).history
    after = weights_of(model)
    assert not torch.equal(after["heads.0.weight"], before["heads.0.weight"])
    for head in (1, 2, 3):
        assert torch.equal(after[f"heads.{head}.weight"], before[f"heads.{head}.weight"])
    assert math.isnan(history[0]["train/OS"])


def test_threads_are_the_callers(setting) -> None:
    targets, train, val = setting
    before = torch.get_num_threads()
    fit(new_model(targets), targets, train, val, FAST.model_copy(update={"epochs": 1}), seed=0)
    assert torch.get_num_threads() == before


def test_clipping_and_half_precision_train(setting) -> None:
    targets, train, val = setting
    params = FAST.model_copy(update={"grad_clip": 0.1, "amp": "bf16", "epochs": 2, "device": "cpu"})
    model = new_model(targets)
    history = fit(model, targets, train, val, params, seed=0).history
    assert all(math.isfinite(row["monitor"]) for row in history)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert len(predict(model, targets, val, role="val", repeat=0, fold=0)) == 4 * (1 + 3 + 1 + 1)
