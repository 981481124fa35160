"""ModalTune in a study: states are stored by extract, read in training, and kept to by a search."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from equipoise.models.slide_encoders.random_transformer import RandomTransformer
from equipoise.platform.errors import DataError, StudyError
from equipoise.platform.extraction import hidden_states
from equipoise.platform.extraction.hidden_states import store_states
from equipoise.platform.run import steps
from equipoise.platform.run.folder import RunFolder
from equipoise.platform.search.search import prepare
from equipoise.platform.search.searchers import RandomSearch
from equipoise.platform.search.trial import run_trial
from equipoise.platform.study.schema import Study

MODEL: dict[str, Any] = {
    "kind": "modaltune",
    "mode": "ladder",
    "cache": True,
    "slide_encoder_params": {"width": 16, "depth": 3, "heads": 2},
    "bottleneck": 8,
    "attention_heads": 2,
    "embedding": 8,
    "rna_params": {"hidden": 4, "tokens": 2},
}


@pytest.fixture
def study_of(
    bags: Path, make_study: Callable[..., Study], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Study]:
    """The study with ModalTune over a copy of the stores."""
    shutil.copytree(bags / "features", tmp_path / "features")
    monkeypatch.setattr(  # Ray has a test of its own
        hidden_states,
        "store_states",
        lambda *parts, **options: store_states(*parts, **options | {"workers": 0}),
    )

    def make(model: dict[str, Any] | None = None, **search: Any) -> Study:
        settings = {"model": MODEL | (model or {}), "training.bag_tiles": None, "training.epochs": 2}
        settings |= {"features.store": str(tmp_path / "features")}
        section = {"space": {"balancing": ["equal"], "model.embedding": [4, 8]}, "trials": 2} | search
        return make_study(settings, **section)

    return make


def context_of(study: Study, out: Path) -> steps.RunContext:
    return steps.RunContext(study, RunFolder(out))


@pytest.mark.slow
def test_training_on_stored_states(study_of, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_of()
    with pytest.raises(DataError, match="hidden states of the slide encoder were not computed yet"):
        _ = context_of(study, tmp_path / "early").inputs
    stored = context_of(study, tmp_path / "stored")
    details = steps.extract(stored).details
    assert len(list((tmp_path / "features").glob("*-states-*"))) == 1
    assert details["states"]
    other = context_of(study_of({"cache": False}), tmp_path / "computed")
    steps.extract(other)
    steps.train(other)

    run_stage = RandomTransformer.run_stage

    def never(self: RandomTransformer, at: int, state: Any) -> Any:
        assert state.tiles.mask.shape[1] == 1, "only the blank tile of patients without slides"
        return run_stage(self, at, state)

    monkeypatch.setattr(RandomTransformer, "run_stage", never)
    steps.train(stored)
    tables = [
        pd.concat(pd.read_parquet(p) for p in sorted((tmp_path / name).glob("folds/*/preds.parquet")))
        for name in ("stored", "computed")
    ]
    spread = tables[1].groupby("task")["score"].transform("std").to_numpy()
    assert (np.abs(tables[0]["score"].to_numpy() - tables[1]["score"].to_numpy()) < 0.02 * spread).all()


def test_a_search_keeps_to_the_states_that_are_stored(study_of, tmp_path: Path) -> None:
    study = study_of({"prototypes": 4})
    context = context_of(study, tmp_path / "run")
    steps.extract(context)
    search = prepare(study, context.inputs)
    (mode,) = [d for d in search.space.dimensions if d.name == "model.mode"]
    assert mode.choices == ("ladder",)
    config = RandomSearch(search.space, 1).ask(1)
    assert config["model.embedding"] in (4, 8)
    for name, value in (("model.prototypes", [2, 4]), ("model.blocks", [2, 3])):
        with pytest.raises(StudyError, match="hidden states of the slide encoder are stored for"):
            study_of({"prototypes": 4}, space={"balancing": ["equal"], name: value})
    trial = run_trial(0, config, search.inputs, tmp_path / "search")
    assert trial.status == "ok", trial
    assert np.isfinite(trial.objective)
