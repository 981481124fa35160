"""Entries that a model is made of are checked with the study: name, part, parameters, and what balancing can do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from equipoise.platform.errors import StudyError
from equipoise.platform.study.reading import read_study
from equipoise.platform.study.schema import Study
from equipoise.platform.training.build import recipe_of
from equipoise.platform.training.params import entry_params

STATIC = {"weighting": "static", "weighting_params": {"weights": {"MSI": 1.0}}}


def read(folder: Path, model: dict[str, Any], balancing: Any = "equal") -> Study:
    study = {
        "version": 1,
        "name": "x",
        "cohorts": [{"name": "A", "role": "develop", "clinical": "a.csv", "slides": "s.csv"}],
        "tasks": [{"name": "MSI", "type": "binary", "column": "MSI", "positive": "H"}],
        "model": {"kind": "gptomic", **model},
        "balancing": balancing,
    }
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(study))
    return read_study(file)


@pytest.mark.parametrize(
    ("model", "problem"),
    [
        ({"fusion": "konecker"}, r"model.fusion: unknown fusions entry 'konecker'.*Did you mean 'kronecker'"),
        ({"modulation_params": {"alfa": 1}}, r"model.modulation_params.alfa: unknown parameter of gradmod"),
        ({"image": "omics"}, r"model.image: omics is no model of slides: it reads cnv, mutation, rna"),
        (
            {"image": "joint", "image_params": {"dim": 7}},
            r"model.image_params: dim 7 is not divisible by heads",
        ),
    ],
)
def test_a_wrong_component_is_named(tmp_path: Path, model: dict[str, Any], problem: str) -> None:
    with pytest.raises(StudyError, match=problem):
        read(tmp_path, model)


def test_weights_by_hand_cannot_name_the_losses_of_branches(tmp_path: Path) -> None:
    tasks = {"modulation": "aux_losses", "modulation_params": {"enter": "tasks"}}
    with pytest.raises(StudyError, match="losses of branches are tasks, too: write enter: terms"):
        read(tmp_path, tasks, STATIC)
    assert read(tmp_path, {"modulation": "aux_losses"}, STATIC).balancing.weighting == "static"


def test_parameters_of_components_are_complete_in_what_a_fold_records(tmp_path: Path) -> None:
    recipe = recipe_of(read(tmp_path, {"modulation_params": {"alpha": 2.0}}))
    params = entry_params("models", recipe.model, recipe.model_params).model_dump()
    assert params["modulation_params"] == {
        "alpha": 2.0,
        "ratio": "share_sum",
        "start": 0,
        "stop": None,
        "acts_on": "lr",
    }
    assert params["image_params"]["hidden"] == 128
