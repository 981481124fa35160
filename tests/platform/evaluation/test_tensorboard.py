"""Curves and vectors of a run, read back from the event files; nobody is named."""

import importlib.util
import json
import shutil
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from equipoise.platform.evaluation.tensorboard import MOST_NUMBERS, shorten, write_evaluation_events

BASE = {"repeat": 0, "fold": 0, "site": "s", "class": "", "target": np.nan, "time": np.nan, "event": np.nan}
SCORES = {"val": [0.1, 0.4, 0.35, 0.8], "test": [0.2, 0.9, 0.6, 0.7]}
TRUTH = [0.0, 0.0, 1.0, 1.0]


def predictions() -> pd.DataFrame:
    rows = []
    for fold in (0, 1):
        for role, scores in SCORES.items():
            for i, (score, target) in enumerate(zip(scores, TRUTH, strict=True)):
                who = BASE | {"fold": fold, "role": role, "patient": f"TCGA-{role}{fold}{i}", "cohort": "A"}
                rows += [
                    who | {"task": "MSI", "class": "MSI-H", "score": score, "target": target},
                    who | {"task": "LISS", "score": score, "target": float(i)},
                    who | {"task": "OS", "score": score, "time": 9.0 + i, "event": target},
                ]
    return pd.DataFrame(rows)


def latents(table: pd.DataFrame, numbers: int = 3) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = table[["patient", "repeat", "fold", "role", "task"]]
    return rows.assign(latent=[rng.normal(size=numbers).astype(np.float32) for _ in range(len(rows))])


def read(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder), size_guidance={"tensors": 0}).Reload()


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("run")
    table = predictions()
    assert write_evaluation_events(run, table, latents(table)) == 2 * (2 + 3)
    return run / "tb" / "evaluation"


def test_curves_are_those_of_scikit_learn(board: Path) -> None:
    from sklearn.metrics import precision_score, recall_score
    from tensorboard.util.tensor_util import make_ndarray

    events = read(board / "0-1")
    assert sorted(events.Tags()["tensors"]) == ["test/MSI", "validation/MSI"]
    for tag, role in (("validation/MSI", "val"), ("test/MSI", "test")):
        (event,) = events.Tensors(tag)
        values = make_ndarray(event.tensor_proto)  # true and false positives, negatives, precision, recall
        thresholds = np.linspace(0, 1, values.shape[1])
        for k in (10, 60, 85):  # TensorBoard puts scores into bins of 1/126
            called = np.array(SCORES[role]) >= thresholds[k]
            assert values[4, k] == pytest.approx(precision_score(TRUTH, called, zero_division=1.0))
            assert values[5, k] == pytest.approx(recall_score(TRUTH, called))


def test_the_projector_shows_every_task_of_a_fold_without_names(board: Path) -> None:
    config = (board / "0-0" / "projector_config.pbtxt").read_text()
    assert [task for task in ("MSI", "LISS", "OS") if f"{task}:" not in config] == []
    assert sorted(path.name for path in board.iterdir()) == ["0-0", "0-1"]
    everything = "".join(path.read_text(errors="ignore") for path in board.rglob("*") if path.is_file())
    assert "TCGA" not in everything
    labels = {}
    for task in ("MSI", "LISS", "OS"):
        folder = board / "0-0" / "00000" / task
        header, *lines = (folder / "metadata.tsv").read_text().splitlines()
        assert header.split("\t") == ["label", "cohort", "part", "fold"]
        assert len((folder / "tensors.tsv").read_text().splitlines()) == len(lines) == 8
        labels[task] = {line.split("\t")[0] for line in lines}
        assert {line.split("\t")[2] for line in lines} == {"validation", "test"}
    assert labels["MSI"] == {"MSI-H", "not MSI-H"}
    assert labels["LISS"] == {"low", "middle", "high"}
    assert labels["OS"] == {"event", "censored"}


def test_points_keep_their_labels_when_they_are_shuffled(tmp_path: Path) -> None:
    table = predictions()
    vectors = latents(table)
    msi = table["task"] == "MSI"
    vectors.loc[msi, "latent"] = pd.Series(
        [np.full(2, t) for t in table.loc[msi, "target"]], index=table.index[msi]
    )
    write_evaluation_events(tmp_path, table, vectors)
    folder = tmp_path / "tb" / "evaluation" / "0-0" / "00000" / "MSI"
    _, *lines = (folder / "metadata.tsv").read_text().splitlines()
    points = [float(line.split("\t")[0]) for line in (folder / "tensors.tsv").read_text().splitlines()]
    assert [line.split("\t")[0] == "MSI-H" for line in lines] == [point == 1.0 for point in points]


def test_long_vectors_keep_their_distances_along_the_main_axes() -> None:
    rng = np.random.default_rng(1)
    plane = rng.normal(size=(40, 2)) @ rng.normal(size=(2, 300))
    short = shorten(plane)
    assert short.shape[1] == min(40, MOST_NUMBERS)
    before, after = (np.linalg.norm(v[:, None] - v[None], axis=-1) for v in (plane, short))
    assert after == pytest.approx(before)
    assert shorten(plane[:, :5]) is not None
    assert np.array_equal(shorten(plane[:, :5]), plane[:, :5])


def test_a_second_evaluation_replaces_the_first(tmp_path: Path) -> None:
    table = predictions()
    write_evaluation_events(tmp_path, table, None)
    write_evaluation_events(tmp_path, table[table["fold"] == 0], None)
    assert [path.name for path in (tmp_path / "tb" / "evaluation").iterdir()] == ["0-0"]
    assert not (tmp_path / "evaluation" / ".tensorboard").exists()
    assert write_evaluation_events(tmp_path, table[table["task"] == "OS"], None) == 0
    assert not (tmp_path / "tb" / "evaluation").exists()


@pytest.mark.browser
@pytest.mark.slow
def test_both_tabs_in_tensorboard(board: Path, root: Path, tmp_path: Path) -> None:
    if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        pytest.skip("browser: no Chromium on this machine")
    spec = importlib.util.spec_from_file_location("screenshot", root / "docs" / "tensorboard_screenshot.py")
    assert spec is not None
    assert spec.loader is not None
    screenshot = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(screenshot)
    picture = tmp_path / "curves.png"
    with screenshot.tensorboard(board) as address:
        text = screenshot.table_text(
            address, ["validation/MSI", "test/MSI", "0-0", "0-1"], picture, "pr_curves"
        )
        with urllib.request.urlopen(f"{address}/data/plugin/projector/info?run=0-1", timeout=30) as answer:
            tabs = json.load(answer)["embeddings"]
    assert "PR Curves" in text
    assert {tab["tensorName"]: tab["tensorShape"] for tab in tabs} == {
        "LISS:00000": [8, 3], "MSI:00000": [8, 3], "OS:00000": [8, 3]
    }  # fmt: skip
    assert picture.read_bytes()[:4] == b"\x89PNG"
