"""Training from a pre-trained model: shared tensors are its, heads are new, whatever does not fit is refused."""

from __future__ import annotations

import logging
import shutil

import pytest
import torch

from equipoise.models.base import MultiTaskModel
from equipoise.models.pretrained_folder import TrainedTiles, read_pretrained, write_pretrained
from equipoise.platform.errors import DataError, StudyError
from equipoise.platform.training.batches import CaseList
from equipoise.platform.training.build import build_model
from equipoise.platform.training.params import Recipe, TrainingParams
from equipoise.platform.training.start import (
    check_start_tiles,
    initial_model,
    own_of_tasks,
    recipe_record,
    training_record,
)
from equipoise.platform.training.targets import fit_targets

TILES = TrainedTiles("handcrafted", "hash", 8, 0.5, 224)
KINDS = {
    "mean_pool": {"dim": 8},
    "abmil": {"dim": 8, "hidden": 4},
    "transmil": {"dim": 8, "heads": 2},
    "joint": {"dim": 8, "heads": 2, "feedforward": 8},
}


@pytest.fixture
def two(tasks, make_cases):
    """Targets of all four tasks, and of the first and the last alone."""
    cases = make_cases(12)
    train = CaseList(cases, tuple(cases))
    return fit_targets(tasks, train), fit_targets((tasks[0], tasks[3]), train)


def saved(path, kind, params, targets, seed=1, tiles=TILES):
    model = build_model(kind, params, targets.shape, targets.heads, seed=seed)
    recipe = Recipe(model=kind, model_params=params)
    write_pretrained(
        path,
        model.state_dict(),
        model=kind,
        model_params=recipe_record(recipe)["model_params"],
        tiles=tiles,
        tasks=tuple(head.name for head in targets.heads),
        record={},
        seen={},
    )
    return model


def recipe_from(path, kind, params):
    return Recipe(model=kind, model_params=params, training=TrainingParams(start=str(path)))


@pytest.mark.parametrize("kind", KINDS)
def test_what_tasks_share_is_taken_and_nothing_else(kind, two, tmp_path, caplog) -> None:
    four, pair = two
    before = saved(tmp_path / "model", kind, KINDS[kind], four).state_dict()
    recipe = recipe_from(tmp_path / "model", kind, KINDS[kind])
    with caplog.at_level(logging.INFO, "equipoise"):
        started = initial_model(recipe, pair, seed=7)
    fresh = build_model(kind, KINDS[kind], pair.shape, pair.heads, seed=7)
    assert isinstance(started, MultiTaskModel)
    own = own_of_tasks(started)
    prefixes = ("heads.", "tokens.") if kind == "joint" else ("heads.",)
    assert own == {name for name in fresh.state_dict() if name.startswith(prefixes)}
    for name, value in started.state_dict().items():
        expected = fresh.state_dict()[name] if name in own else before[name]
        assert torch.equal(value, expected), name
    assert "pre-trained on MSI, grade, LF, OS" in caplog.text
    assert f"{len(started.state_dict()) - len(own)} tensors taken" in caplog.text
    assert f"{len(own)} tensors new here (heads.0.bias" in caplog.text
    left = len([name for name in before if name.startswith(prefixes)])
    assert f"{left} tensors not taken (" in caplog.text


def test_attentions_of_single_tasks_are_new(two, tmp_path) -> None:
    four, pair = two
    params = {"dim": 8, "hidden": 4, "branches": "task"}
    before = saved(tmp_path / "model", "abmil", params, four).state_dict()
    started = initial_model(recipe_from(tmp_path / "model", "abmil", params), pair, seed=7)
    assert isinstance(started, MultiTaskModel)
    shared = [name for name in started.state_dict() if name not in own_of_tasks(started)]
    assert shared == ["project.0.weight", "project.0.bias"]
    assert torch.equal(started.state_dict()["project.0.weight"], before["project.0.weight"])


def test_what_does_not_fit_is_refused(two, tmp_path) -> None:
    four, pair = two
    saved(tmp_path / "model", "abmil", KINDS["abmil"], four)
    for kind, params, message in (
        (
            "abmil",
            {"dim": 16, "hidden": 4},
            r"(?s)project.0.weight is \[8, 8\] there, \[16, 8\] here.*dim: 8 there, 16 here",
        ),
        ("joint", KINDS["joint"], "the pre-trained model is a abmil, the study trains a joint"),
    ):
        with pytest.raises(StudyError, match=message):
            initial_model(recipe_from(tmp_path / "model", kind, params), pair, seed=0)
    saved(tmp_path / "linear", "mean_pool", {"layers": 0}, four)
    with pytest.raises(StudyError, match="share no parameter"):
        initial_model(recipe_from(tmp_path / "linear", "mean_pool", {"layers": 0}), pair, seed=0)
    with pytest.raises(DataError, match="there is no folder"):
        initial_model(recipe_from(tmp_path / "nowhere", "abmil", KINDS["abmil"]), pair, seed=0)
    saved(tmp_path / "other", "abmil", KINDS["abmil"], four, seed=2)
    shutil.copy(tmp_path / "other" / "model.safetensors", tmp_path / "model")
    with pytest.raises(DataError, match="do not belong together"):
        initial_model(recipe_from(tmp_path / "model", "abmil", KINDS["abmil"]), pair, seed=0)


def test_other_tiles_are_refused(two, tmp_path) -> None:
    saved(tmp_path / "model", "abmil", KINDS["abmil"], two[0])
    check_start_tiles(tmp_path / "model", TILES)
    with pytest.raises(
        StudyError, match=r"was pre-trained on features of handcrafted, not of uni; 0\.5 um/px, not 1"
    ):
        check_start_tiles(tmp_path / "model", TrainedTiles("uni", "x", 8, 1.0, 224))


def test_a_record_knows_the_content_and_not_the_path(two, tmp_path) -> None:
    saved(tmp_path / "a", "abmil", KINDS["abmil"], two[0])
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    saved(tmp_path / "c", "abmil", KINDS["abmil"], two[0], seed=5)
    a, b, c = (training_record(TrainingParams(start=str(tmp_path / name))) for name in "abc")
    assert a == b != c
    assert a["start"] == read_pretrained(tmp_path / "a").fingerprint
    assert training_record(TrainingParams())["start"] is None
