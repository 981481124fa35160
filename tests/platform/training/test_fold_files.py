"""A finished fold is what its training wrote, or it is refused by name, and trained again to the same bytes."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from equipoise.datasets.atomic_io import write_json
from equipoise.datasets.cohorts.splits import Fold
from equipoise.platform.errors import DataError
from equipoise.platform.training import checkpoint as checkpoints
from equipoise.platform.training.crossval import train_fold
from equipoise.platform.training.fold_files import fold_problem, require_whole
from equipoise.platform.training.params import Recipe, TrainingParams

RECIPE = Recipe(model="mean_pool", training=TrainingParams(epochs=3, lr=3e-3, batch=4), seed=11)
PREDS = "preds.parquet"


@pytest.fixture
def folds(make_cases) -> list[Fold]:
    people = tuple(make_cases(18))
    return [
        Fold(0, 0, people[:8], people[8:12], people[12:]),
        Fold(0, 1, people[6:14], people[14:], people[:6]),
    ]


@pytest.fixture
def train(tasks, make_cases, folds, tmp_path) -> Callable[..., Path]:
    """``train(k, report)``: the folder of the k-th fold."""
    cases = make_cases(18)
    keys = {patient: str(case.targets) for patient, case in cases.items()}

    def work(k: int = 0, root: Path = tmp_path, report=None) -> Path:
        return train_fold(
            folds[k], tasks, cases, RECIPE, root, features="abc", content_keys=keys, report=report
        )

    return work


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def rewrite(file: Path, change: Callable[[pd.DataFrame], pd.DataFrame]) -> None:
    """A valid table with other rows, as an editor of tables writes it."""
    table = pq.read_table(file)
    changed = pa.Table.from_pandas(change(table.to_pandas()), schema=table.schema, preserve_index=False)
    pq.write_table(changed, file)


def cut(folder: Path, _: Path) -> None:
    rewrite(folder / PREDS, lambda table: table[table["patient"] != "P13"])


def emptied(folder: Path, _: Path) -> None:
    rewrite(folder / PREDS, lambda table: table.iloc[:0])


def exchanged(folder: Path, other: Path) -> None:
    shutil.copy(other / PREDS, folder / PREDS)


def flipped(folder: Path, _: Path) -> None:
    rewrite(
        folder / PREDS, lambda t: t.assign(score=np.where(t["task"] == "MSI", 1 - t["score"], t["score"]))
    )


def missing(folder: Path, _: Path) -> None:
    (folder / PREDS).unlink()


def other_weights(folder: Path, other: Path) -> None:
    shutil.copy(other / "model.safetensors", folder / "model.safetensors")


def other_fold(folder: Path, other: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(other, folder)


def edited(folder: Path, _: Path) -> None:
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"best_epoch": ', '"best_epoch": 1'))


def half(folder: Path, _: Path) -> None:
    (folder / "config.json").write_bytes((folder / "config.json").read_bytes()[:100])


DAMAGES = [cut, emptied, exchanged, flipped, missing, other_weights, other_fold, edited, half]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_manipulated_fold_is_refused_by_name_and_trained_again(train, folds, damage, caplog) -> None:
    folder, other = train(0), train(1)
    before = content(folder)
    require_whole(folder, folds[0])
    damage(folder, other)
    with pytest.raises(DataError, match="fold 0-0: ") as refused:
        require_whole(folder, folds[0])
    assert "equipoise train" in str(refused.value)
    require_whole(other, folds[1])
    with caplog.at_level(logging.WARNING, "equipoise"):
        train(0)
    assert any("train fold=0-0 starts again: " in line for line in caplog.messages)
    assert content(folder) == before


@pytest.mark.parametrize("damage", [cut, emptied, exchanged, missing, other_fold])
def test_folds_without_hashes_are_compared_by_their_patients(train, folds, damage) -> None:
    for folder in (train(0), train(1)):
        config = json.loads((folder / "config.json").read_text())
        write_json(folder / "config.json", {k: v for k, v in config.items() if k not in ("files", "sha256")})
    assert fold_problem(folder.with_name("0-0"), folds[0]) is None
    damage(folder.with_name("0-0"), folder)
    assert fold_problem(folder.with_name("0-0"), folds[0]) is not None


def interrupt(row: dict[str, float]) -> None:
    if row["epoch"] == 2:
        raise KeyboardInterrupt


@pytest.mark.parametrize("at", [0.0, 0.4, 0.9])
@pytest.mark.parametrize("name", ["checkpoint.pt", "made_by.json"])
def test_a_damaged_checkpoint_or_fingerprint_starts_the_fold_again(train, tmp_path, name, at, caplog) -> None:
    expected = content(train(0, tmp_path / "calm"))
    for overwritten in (None, b"\x00\xff"):
        root = tmp_path / "again"
        with pytest.raises(KeyboardInterrupt):
            train(0, root, interrupt)
        file = root / ".0-0.partial" / name
        whole = file.read_bytes()
        start = int(at * len(whole))
        file.write_bytes(whole[:start] + (overwritten + whole[start + 2 :] if overwritten else b""))
        rows: list[dict[str, float]] = []
        with caplog.at_level(logging.WARNING, "equipoise"):
            folder = train(0, root, rows.append)
        assert [row["epoch"] for row in rows] == [1, 2, 3]
        assert any("again" in line for line in caplog.messages)
        assert content(folder) == expected
        caplog.clear()
        shutil.rmtree(root)


def test_checkpoints_of_earlier_versions_are_read(train, tmp_path) -> None:
    expected = content(train(0, tmp_path / "calm"))
    with pytest.raises(KeyboardInterrupt):
        train(0, tmp_path / "again", interrupt)
    file = tmp_path / "again" / ".0-0.partial" / "checkpoint.pt"
    torch.save(checkpoints.read_state(file), file)
    rows: list[dict[str, float]] = []
    assert content(train(0, tmp_path / "again", rows.append)) == expected
    assert [row["epoch"] for row in rows] == [3]
