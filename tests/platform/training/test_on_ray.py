"""Ray Train runs the loop: a killed worker does not change the result, and errors keep their type."""

from __future__ import annotations

import dataclasses
import functools
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from equipoise.platform.errors import ResourceError, StudyError
from equipoise.platform.training.batches import CaseList, collate
from equipoise.platform.training.build import build_model
from equipoise.platform.training.loop import fit
from equipoise.platform.training.on_ray import fit_on_workers, run_folds_in_parallel
from equipoise.platform.training.params import Recipe, TrainingParams
from equipoise.platform.training.targets import fit_targets

COX_BIAS = "heads.3.bias"
SMALL = {
    "dim": 8,
    "heads": 2,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "feedforward": 8,
    "dropout": 0.0,
}
TRAINING = TrainingParams(epochs=3, lr=1e-3, batch=4, workers=2, device="cpu")
RECIPE = Recipe(model="joint", model_params=SMALL, training=TRAINING)


def killing_cases(source: dict[str, Any], marker: Path, at: int) -> Any:
    """The cases, whose reader kills its own process at the ``at``-th reading, once in all."""

    class KillingCases:
        def __init__(self) -> None:
            self.read = 0

        def __getitem__(self, patient: str) -> Any:
            self.read += 1
            if self.read == at and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return source[patient]

    return KillingCases()


@pytest.mark.cluster
@pytest.mark.slow
def test_a_killed_worker_changes_nothing(ray_session: None, tasks, make_cases, tmp_path: Path) -> None:
    cases = make_cases(16)
    patients = tuple(cases)
    marker = tmp_path / "killed"
    targets = fit_targets(tasks, CaseList(cases, patients[:12]))
    source = killing_cases(cases, marker, at=14)  # in the second epoch of 6 + 2 readings a worker
    train, val = CaseList(source, patients[:12]), CaseList(source, patients[12:])
    models = [build_model("joint", SMALL, targets.shape, targets.heads, seed=5) for _ in range(2)]
    rows: list[dict[str, float]] = []
    result = fit_on_workers(
        models[0], targets, train, val, RECIPE, seed=5, checkpoint=tmp_path / "checkpoint.pt"
    )
    assert marker.exists()
    here = CaseList(cases, patients[:12]), CaseList(cases, patients[12:])
    expected = fit(models[1], targets, *here, TRAINING, seed=5, report=rows.append)
    assert result.best_epoch == expected.best_epoch
    assert [row["epoch"] for row in result.history] == [1, 2, 3]
    for a, b in zip(result.history, expected.history, strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-5, nan_ok=True)
    for name, value in models[1].state_dict().items():
        if name.endswith("in_proj_bias") or name == COX_BIAS:
            continue  # no gradient but rounding, which Adam magnifies: a key's bias, a log risk's constant
        torch.testing.assert_close(models[0].state_dict()[name], value, rtol=1e-4, atol=1e-5, msg=name)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint.pt", "killed"]


@pytest.mark.cluster
@pytest.mark.slow
def test_branches_are_slowed_alike_by_all_workers(
    ray_session: None, tasks, make_cases, tmp_path: Path
) -> None:
    """Ray Train with two workers equals one worker where coefficients depend on the patients of both."""
    cases = make_cases(16)
    patients = tuple(cases)
    parts = {"image": "mean_pool", "image_params": {"dim": 5, "dropout": 0.0}, "dropout": 0.0}
    small = parts | {"dim": 5, "layers": 1, "modulation": "gradmod", "modulation_params": {"alpha": 3.0}}
    recipe = Recipe(model="gptomic", model_params=small, training=TRAINING)
    train, val = CaseList(cases, patients[:12]), CaseList(cases, patients[12:])
    targets = fit_targets(tasks, train)
    models = [build_model("gptomic", small, targets.shape, targets.heads, seed=5) for _ in range(2)]
    checkpoint = tmp_path / "checkpoint.pt"
    result = fit_on_workers(models[0], targets, train, val, recipe, seed=5, checkpoint=checkpoint)
    expected = fit(models[1], targets, train, val, TRAINING, seed=5)
    assert any(row["coefficient/image"] < 1 for row in expected.history)
    for a, b in zip(result.history, expected.history, strict=True):
        assert a == pytest.approx(b, rel=1e-4, abs=1e-5, nan_ok=True)
    for name, value in models[1].state_dict().items():
        if name != COX_BIAS:
            torch.testing.assert_close(models[0].state_dict()[name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.cluster
@pytest.mark.slow
def test_an_adapter_around_a_frozen_encoder(ray_session: None, tasks, make_cases, tmp_path: Path) -> None:
    """Two workers equal one with ModalTune."""
    cases = {p: dataclasses.replace(case, mpp=(0.5,), extent=112.0) for p, case in make_cases(16).items()}
    patients = tuple(cases)
    train, val = CaseList(cases, patients[:12]), CaseList(cases, patients[12:])
    targets = fit_targets(tasks, train)
    small = {
        "slide_encoder_params": {"width": 16, "depth": 3, "heads": 2},
        "bottleneck": 8,
        "attention_heads": 2,
        "embedding": 8,
        "rna_params": {"hidden": 4, "tokens": 2, "dropout": 0.0},
    }
    recipe = Recipe(model="modaltune", model_params=small, training=TRAINING)
    models = [build_model("modaltune", small, targets.shape, targets.heads, seed=5) for _ in range(2)]
    checkpoint = tmp_path / "checkpoint.pt"
    result = fit_on_workers(models[0], targets, train, val, recipe, seed=5, checkpoint=checkpoint)
    expected = fit(models[1], targets, train, val, TRAINING, seed=5)
    for a, b in zip(result.history, expected.history, strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-4, nan_ok=True)
    batch = collate(list(val), targets)
    found, wanted = (model.eval()(batch) for model in models)
    for task in wanted:
        apart = (found[task] - wanted[task]).detach()
        apart = apart - apart.mean(0) if task == "OS" else apart  # a log risk has no constant
        assert apart.abs().max() < 1e-3, task


def test_more_workers_than_patients_in_a_batch_are_refused(
    ray_session: None, tasks, make_cases, tmp_path
) -> None:
    cases = make_cases(8)
    both = CaseList(cases, tuple(cases)[:6]), CaseList(cases, tuple(cases)[6:])
    targets = fit_targets(tasks, both[0])
    model = build_model("joint", SMALL, targets.shape, targets.heads, seed=0)

    def start(**changes: Any) -> None:
        recipe = RECIPE.model_copy(update={"training": TRAINING.model_copy(update=changes)})
        fit_on_workers(model, targets, *both, recipe, seed=0, checkpoint=tmp_path / "c.pt")

    with pytest.raises(StudyError, match="3 workers share batches of 2 patients"):
        start(batch=2, workers=3)
    with pytest.raises(ResourceError, match="4 workers of 1 CPU need 4 CPUs, Ray has 2"):
        start(workers=4)
    with pytest.raises(ResourceError, match="2 workers on GPUs need 2 GPUs, Ray has 0"):
        start(device="cuda")


def test_folds_run_side_by_side_and_errors_come_back(ray_session: None, tmp_path: Path) -> None:
    def job(name: str, wrong: bool) -> Path:
        if wrong:
            raise StudyError("this fold cannot be trained", where=name)
        (tmp_path / name).touch()
        return tmp_path / name

    run_folds_in_parallel(
        [functools.partial(job, f"0-{i}", False) for i in range(3)], max_concurrent=2, cpus=1
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0-0", "0-1", "0-2"]
    with pytest.raises(StudyError, match="0-9: this fold cannot be trained"):
        run_folds_in_parallel([functools.partial(job, "0-9", True)], max_concurrent=2, cpus=1)
