"""TensorBoard: events are read again, written once, and shown as a table in Chromium."""

import importlib.util
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from equipoise.platform.search.trackers import TrackedSearch, open_trackers

_spec = importlib.util.spec_from_file_location("searched", Path(__file__).with_name("searched.py"))
searched = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(searched)


def tracked_in(folder: Path) -> TrackedSearch:
    study = searched.study_of()
    return TrackedSearch.from_study(study, searched.space_of(study), "val/mean", folder)


@pytest.fixture(scope="module")
def trials() -> list:
    return searched.trials_of(searched.study_of(), 3, failed=1, pruned=0)


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory, trials: list) -> Path:
    """``tb/search`` of a run with three trials, the last one failed."""
    run = tmp_path_factory.mktemp("run")
    with open_trackers(["tensorboard"], tracked_in(run)) as told:
        for trial in trials:
            told(trial)
    return run / "tb" / "search"


def events(folder: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    return EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()


def plugin(accumulated: Any, tag: str) -> Any:
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    content = accumulated.SummaryMetadata(tag).plugin_data.content
    return HParamsPluginData.FromString(content)


def test_every_trial_announces_every_column(board: Path, trials: list) -> None:
    from tensorboard.plugins.hparams.metadata import EXPERIMENT_TAG

    assert sorted(path.name for path in board.iterdir()) == [trial.name for trial in trials]
    announced = [plugin(events(board / t.name), EXPERIMENT_TAG).experiment for t in trials]
    assert announced[0] == announced[1] == announced[2]
    names = {info.name: info.differs for info in announced[0].hparam_infos}
    assert names["balancing.uncertainty.lr"]
    assert not names["training.epochs"]
    metrics = [info.name.tag for info in announced[0].metric_infos]
    assert metrics == list(tracked_in(board).metrics)
    assert all(metric.startswith("val/") for metric in metrics)


def test_a_row_holds_parameters_metrics_and_the_end(board: Path, trials: list) -> None:
    from tensorboard.plugins.hparams import api_pb2, metadata

    read = events(board / trials[0].name)
    start = plugin(read, metadata.SESSION_START_INFO_TAG).session_start_info
    assert start.hparams["balancing"].string_value == "equal+none"
    assert start.hparams["training.lr"].number_value == pytest.approx(1e-4)
    assert start.hparams["SYNTHETIC"].bool_value
    assert "balancing.uncertainty.lr" not in start.hparams
    assert start.start_time_secs == 1795255200
    (mean,) = read.Scalars("val/mean")
    assert mean.value == pytest.approx(trials[0].objective)
    assert [round(event.value, 2) for event in read.Scalars("weight/MSI/0-2")] == [1.1, 1.2, 1.3]
    assert [event.step for event in read.Scalars("fold/OS/c_index")] == [0, 1, 2]
    assert plugin(read, metadata.SESSION_END_INFO_TAG).session_end_info.status == api_pb2.STATUS_SUCCESS
    lost = events(board / trials[2].name)
    assert plugin(lost, metadata.SESSION_END_INFO_TAG).session_end_info.status == api_pb2.STATUS_FAILURE
    assert "reason/text_summary" in lost.Tags()["tensors"]


def test_a_search_that_goes_on_writes_nothing_twice(board: Path, trials: list, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(board, run / "tb" / "search")
    before = sorted(run.rglob("events.*"))
    other = run / "tb" / "search" / trials[1].name / "0-0"
    other.mkdir()  # curves of somebody else below a trial
    changed = replace(trials[1], cpu_seconds=99.0)
    with open_trackers(["tensorboard"], tracked_in(run)) as told:
        for trial in (trials[0], changed, trials[2]):
            told(trial)
    after = sorted(run.rglob("events.*"))
    assert [path.parent.name for path in after] == [trial.name for trial in trials]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True]
    assert other.is_dir()
    assert len(events(after[0].parent).Scalars("val/mean")) == 1
    assert not (run / "search" / ".tensorboard").exists()


@pytest.fixture(scope="module")
def screenshot(root: Path) -> Any:
    spec = importlib.util.spec_from_file_location("screenshot", root / "docs" / "tensorboard_screenshot.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.browser
def test_the_table_in_chromium(board: Path, trials: list, screenshot: Any, tmp_path: Path) -> None:
    if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))):
        pytest.skip("browser: no Chromium on this machine")
    picture = tmp_path / "table.png"
    names = [trial.name for trial in trials]
    with screenshot.tensorboard(board) as address:
        lines: list[str] = screenshot.table_text(address, ["val/mean", *names], picture).split("\n")
    columns = [
        "SYNTHETIC",
        "balancing",
        "balancing.uncertainty.lr",
        "model.dropout",
        "val/mean",
        "val/MSI/auroc",
    ]
    assert [name for name in columns if name not in lines] == []
    row_of: Callable[[str], int] = lines.index
    rows = [lines[row_of(a) : row_of(b)] for a, b in zip(names, [*names[1:], lines[-1]], strict=True)]
    assert len(rows) > 0
    for row, trial in zip(rows, trials, strict=True):
        method = f"{trial.config['balancing.weighting']}+{trial.config['balancing.aggregation']}"
        assert method in row
        if trial.ok:
            assert any(cell == f"{trial.objective:.5f}" for cell in row)
    assert not any(line.startswith("ray/") for line in lines)
    assert picture.read_bytes()[:4] == b"\x89PNG"
