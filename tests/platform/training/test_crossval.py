"""A fold writes its whole folder exactly once, also after interruptions."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from equipoise.datasets.cohorts.splits import Fold
from equipoise.platform.errors import DataError, StudyError
from equipoise.platform.evaluation.predictions import read_predictions
from equipoise.platform.training.batches import CaseList
from equipoise.platform.training.crossval import fold_seed, load_fold, train_fold
from equipoise.platform.training.params import Recipe, TrainingParams

RECIPE = Recipe(
    model_params={"dim": 16, "heads": 2, "encoder_layers": 1, "decoder_layers": 1, "feedforward": 16},
    training=TrainingParams(epochs=3, lr=3e-3, batch=4),
    seed=11,
)
FILES = {
    "config.json",
    "history.csv",
    "latents.parquet",
    "model.safetensors",
    "preds.parquet",
    "targets.json",
}


class Recorder(dict):
    """Cases that record which patients were read."""

    def __init__(self, cases) -> None:
        super().__init__(cases)
        self.read: list[str] = []

    def __getitem__(self, patient):
        self.read.append(patient)
        return super().__getitem__(patient)


@pytest.fixture
def cases(make_cases) -> Recorder:
    return Recorder(make_cases(18))


@pytest.fixture
def folds(cases) -> list[Fold]:
    people = tuple(cases)
    parts = [people[:6], people[6:12], people[12:]]
    rest = [tuple(p for p in people if p not in part) for part in parts]
    return [
        Fold(0, k, others[:8], others[8:], part)
        for k, (part, others) in enumerate(zip(parts, rest, strict=True))
    ]


def run(fold, tasks, cases, folder, recipe=RECIPE, **more):
    content_keys = {patient: str(case.targets) for patient, case in cases.items()}
    return train_fold(
        fold, tasks, cases, recipe, folder, features="abc", **({"content_keys": content_keys} | more)
    )


def content(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_fold_writes_its_folder_and_nothing_else(tasks, cases, folds, tmp_path) -> None:
    folder = run(folds[1], tasks, cases, tmp_path)
    assert folder == tmp_path / "0-1"
    assert [path.name for path in tmp_path.iterdir()] == ["0-1"]
    assert {path.name for path in folder.iterdir()} == FILES
    table = read_predictions(folder / "preds.parquet")
    assert set(table.loc[table["role"] == "val", "patient"]) == set(folds[1].val)
    assert set(table.loc[table["role"] == "test", "patient"]) == set(folds[1].test)
    assert not set(table["patient"]) & set(folds[1].train)
    history = pd.read_csv(folder / "history.csv")
    assert history["epoch"].tolist() == [1, 2, 3]
    config = json.loads((folder / "config.json").read_text())
    assert config["fold"] == {"repeat": 0, "index": 1}
    assert config["made_by"]["model_params"]["dropout"] == 0.1
    assert config["made_by"]["features"] == "abc"


def test_a_finished_fold_is_not_trained_again(tasks, cases, folds, tmp_path) -> None:
    folder = run(folds[0], tasks, cases, tmp_path)
    before, cases.read = content(folder), []
    run(folds[0], tasks, cases, tmp_path)
    assert cases.read == []
    assert content(folder) == before


def test_a_loaded_fold_predicts_as_the_trained_one(tasks, cases, folds, tmp_path) -> None:
    folder = run(folds[0], tasks, cases, tmp_path)
    loaded = load_fold(folder)
    again = loaded.predict(CaseList(cases, folds[0].test), "test")
    table = read_predictions(folder / "preds.parquet")
    expected = table[table["role"] == "test"].reset_index(drop=True)
    pd.testing.assert_frame_equal(again, expected, check_exact=True)
    external = loaded.predict(CaseList(cases, ("P00",)), "external")
    assert set(external["role"]) == {"external"}
    assert not loaded.model.training


def test_folds_do_not_depend_on_each_other(tasks, cases, folds, tmp_path) -> None:
    for fold in folds:
        run(fold, tasks, cases, tmp_path / "all")
    run(folds[2], tasks, cases, tmp_path / "one")
    assert content(tmp_path / "one" / "0-2") == content(tmp_path / "all" / "0-2")


def test_seeds_differ_by_seed_repeat_and_fold(folds) -> None:
    other = Fold(1, 0, *([("a",)] * 3))
    seeds = {fold_seed(seed, fold) for seed in (0, 1) for fold in (*folds, other)}
    assert len(seeds) == 8


@pytest.mark.parametrize("epoch", [1, 3])
def test_an_interrupted_fold_goes_on_to_the_same_files(tasks, cases, folds, tmp_path, epoch: int) -> None:
    expected = content(run(folds[0], tasks, cases, tmp_path / "undisturbed"))

    def interrupt(row) -> None:
        if row["epoch"] == epoch:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(folds[0], tasks, cases, tmp_path / "resumed", report=interrupt)
    assert [path.name for path in (tmp_path / "resumed").iterdir()] == [".0-0.partial"]
    rows = []
    folder = run(folds[0], tasks, cases, tmp_path / "resumed", report=rows.append)
    assert len(rows) == 3 - epoch
    assert content(folder) == expected


def test_interrupted_while_writing(tasks, cases, folds, tmp_path, monkeypatch) -> None:
    from equipoise.platform.training import crossval

    expected = content(run(folds[0], tasks, cases, tmp_path / "undisturbed"))
    write = crossval._write

    def half(partial, *rest) -> None:
        (partial / "history.csv").write_text("epoch,l")
        raise OSError("disk full")

    monkeypatch.setattr(crossval, "_write", half)
    with pytest.raises(OSError, match="disk full"):
        run(folds[0], tasks, cases, tmp_path / "resumed")
    monkeypatch.setattr(crossval, "_write", write)
    assert content(run(folds[0], tasks, cases, tmp_path / "resumed")) == expected


def test_a_fold_trained_otherwise_is_refused_by_name(tasks, cases, folds, tmp_path) -> None:
    run(folds[0], tasks, cases, tmp_path)
    other = RECIPE.model_copy(update={"training": TrainingParams(epochs=4, lr=3e-3, batch=4)})
    with pytest.raises(StudyError, match=r"trained with other settings or data: training\.epochs: 3 → 4"):
        run(folds[0], tasks, cases, tmp_path, other)
    fewer = Fold(0, 0, folds[0].train[1:], folds[0].val, folds[0].test)
    with pytest.raises(StudyError, match=rf"patients: 1 left \({folds[0].train[0]}\)"):
        run(fewer, tasks, cases, tmp_path)


def test_other_labels_or_slides_are_noticed(tasks, cases, folds, tmp_path) -> None:
    content_keys = dict.fromkeys(cases, "one slide")
    run(folds[0], tasks, cases, tmp_path, content_keys=content_keys)
    corrected = content_keys | {folds[0].test[0]: "two slides"}
    with pytest.raises(StudyError, match="labels, slides or parts of its patients"):
        run(folds[0], tasks, cases, tmp_path, content_keys=corrected)


def test_an_unfinished_fold_of_other_data_starts_again(tasks, cases, folds, tmp_path, caplog) -> None:
    class StopError(Exception):
        pass

    def stop(row) -> None:
        raise StopError

    expected = content(run(folds[0], tasks, cases, tmp_path / "undisturbed"))
    with pytest.raises(StopError):
        run(folds[0], tasks, cases, tmp_path / "other", content_keys=dict.fromkeys(cases, "old"), report=stop)
    assert (tmp_path / "other" / ".0-0.partial" / "checkpoint.pt").exists()
    epochs: list[float] = []
    again = run(folds[0], tasks, cases, tmp_path / "other", report=lambda row: epochs.append(row["epoch"]))
    assert epochs[0] == 1
    assert content(again) == expected


def test_test_patients_are_read_only_after_training(tasks, cases, folds, tmp_path) -> None:
    read_by_epoch: list[set[str]] = []
    run(folds[0], tasks, cases, tmp_path, report=lambda row: read_by_epoch.append(set(cases.read)))
    assert read_by_epoch[-1] == set(folds[0].train) | set(folds[0].val)
    assert set(cases.read) > set(folds[0].test)


def test_leakage_is_refused(tasks, cases, folds, tmp_path) -> None:
    fold = folds[0]
    leaking = Fold(0, 0, fold.train, fold.val, (*fold.test, fold.train[0]))
    with pytest.raises(DataError, match=f"both train and test part: {fold.train[0]}; that is leakage"):
        run(leaking, tasks, cases, tmp_path)


def test_other_folders_are_no_folds(tmp_path) -> None:
    with pytest.raises(DataError, match="not a finished fold"):
        load_fold(tmp_path)
