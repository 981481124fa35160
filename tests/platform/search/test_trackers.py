"""Trackers: the data that they get, that each trial is written once, and that extras are imported only on request."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from equipoise.platform.errors import ResourceError
from equipoise.platform.search.configuration import config_from_study
from equipoise.platform.search.trackers import (
    TrackedSearch,
    TrackerList,
    curve_points,
    metrics_of,
    open_trackers,
    parameters_of,
    record_digest,
    to_timestamp,
)
from equipoise.platform.search.trial_records import read_trials, write_trial

_spec = importlib.util.spec_from_file_location("searched", Path(__file__).with_name("searched.py"))
searched = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(searched)


@pytest.fixture(scope="module")
def trials() -> list:
    return searched.trials_of(searched.study_of(), 6)


@pytest.fixture
def tracked(tmp_path: Path) -> TrackedSearch:
    study = searched.study_of()
    return TrackedSearch.from_study(study, searched.space_of(study), "val/mean", tmp_path)


def test_columns_name_everything_and_do_not_depend_on_trials(tracked: TrackedSearch, trials: list) -> None:
    names = list(tracked.columns)
    assert names[:2] == ["SYNTHETIC", "balancing"]
    assert {"training.lr", "model.dropout", "balancing.uncertainty.lr"} <= tracked.varied
    constants = {
        "seed",
        "training.epochs",
        "training.weight_decay",
        "model.kind",
        "model.heads",
        "balancing.rescale",
    }
    assert constants <= set(names)
    assert not constants & tracked.varied
    assert not {"training.workers", "training.device"} & set(names)
    assert len(trials) > 0
    for trial in trials:
        values = tracked.parameters(trial)
        assert set(values) <= set(names)
        assert all(type(value) in (str, int, float, bool) for value in values.values())
        assert values["balancing"] in searched.METHODS
        assert ("balancing.uncertainty.lr" in values) == values["balancing"].startswith("uncertainty")
    assert tracked.metrics[:2] == ("val/mean", "val/MSI/auroc")
    assert "val/OS/c_index" in tracked.metrics


def test_shares_of_the_simplex_are_columns_of_their_own() -> None:
    study = searched.study_of({"space": {"loss_weights": "simplex"}})
    space = searched.space_of(study)
    config = space.arms[0].config() | {
        "loss_weights.MSI": 0.5,
        "loss_weights.LISS": 0.3,
        "loss_weights.OS": 0.2,
    }
    result = parameters_of(study.resolved(), config)
    assert result["balancing"] == "static+none"
    assert [result[f"loss_weights.{task}"] for task in ("MSI", "LISS", "OS")] == [0.5, 0.3, 0.2]
    assert not any(name.startswith("balancing.static") for name in result)


def test_a_setting_has_one_column_where_kinds_of_models_are_searched() -> None:
    study = searched.study_of({"space": {"model.kind": ["joint", "abmil"], "balancing": ["equal", "dwa"]}})
    space = searched.space_of(study)
    result = parameters_of(study.resolved(), config_from_study(study, space))
    assert "model.joint.dropout" in result
    assert "model.dropout" not in result
    assert result["model.kind"] == "joint"
    columns = TrackedSearch.from_study(study, space, "val/mean", Path("unused")).columns
    assert {"model.joint.dropout", "model.abmil.hidden", "balancing.dwa.temperature"} <= set(columns)


def test_points_are_those_of_folds_and_of_epochs(trials: list) -> None:
    result = {(tag, step): value for tag, step, value in curve_points(trials[0])}
    fold = trials[0].folds[2]
    assert result["fold/MSI/auroc", 2] == fold.values["val/MSI/auroc"]
    assert result["fold/mean", 0] == trials[0].folds[0].values["val/mean"]
    assert result["weight/MSI/0-1", 3] == pytest.approx(1.3)
    assert result["conflict_rate/0-0", 1] == 0.3
    assert result["cosine/MSI|LISS/0-2", 2] == -0.1
    assert result["val_loss/MSI/0-0", 2] == 0.6
    assert not any(
        tag.startswith(("weight/OS", "val/")) for tag, _ in result
    )  # not known; not another metric's name


def test_settings_that_changed_are_points(trials: list) -> None:
    changes = ({"epoch": 0, "training.lr": 1e-3}, {"epoch": 4, "training.lr": 2e-4, "loss_weights.MSI": 0.7})
    result = [
        point
        for point in curve_points(replace(trials[0], changes=changes))
        if point.tag.startswith("setting/")
    ]
    assert result == [
        ("setting/training.lr", 0, 1e-3),
        ("setting/training.lr", 4, 2e-4),
        ("setting/loss_weights.MSI", 4, 0.7),
    ]


def test_times_and_digests(trials: list, tmp_path: Path) -> None:
    assert to_timestamp("2026-11-21T10:00:00+0000") == to_timestamp("2026-11-21T12:00:00+0200") == 1795255200
    assert to_timestamp("") is None
    assert len({record_digest(trial) for trial in trials}) == len(trials)
    for trial in trials:  # a record that is read in a later session is the same record
        write_trial(tmp_path, trial)
    assert [record_digest(trial) for trial in read_trials(tmp_path)] == [
        record_digest(trial) for trial in trials
    ]


class FakeClient:
    """Keeps what MLflow would."""

    runs: dict[str, Any]

    def __init__(self, tracking_uri: str) -> None:
        self.uri, self.runs, self.batches = tracking_uri, {}, []

    def get_experiment_by_name(self, name: str) -> None:
        return None

    def create_experiment(self, name: str, artifact_location: str) -> str:
        self.artifacts = artifact_location
        return "7"

    def search_runs(self, experiments: list[str], filter_string: str) -> list[Any]:
        mark = filter_string.split("'")[1]
        return [run for run in self.runs.values() if run.tags["equipoise.record"] == mark]

    def create_run(self, experiment: str, start_time: int, tags: dict, run_name: str) -> Any:
        info = SimpleNamespace(run_id=f"r{len(self.runs)}", status="RUNNING")
        self.runs[info.run_id] = SimpleNamespace(info=info, tags=tags, name=run_name, params={}, metrics=[])
        return self.runs[info.run_id]

    def log_batch(self, run_id: str, metrics: Any = (), params: Any = ()) -> None:
        assert len(metrics) <= 1000
        assert len(params) <= 100
        self.runs[run_id].metrics += metrics
        self.runs[run_id].params |= {param.key: param.value for param in params}

    def set_terminated(self, run_id: str, status: str, end_time: int) -> None:
        self.runs[run_id].info.status = status

    def delete_run(self, run_id: str) -> None:
        del self.runs[run_id]


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> list[FakeClient]:
    made: list[FakeClient] = []

    def client(tracking_uri: str) -> FakeClient:
        made.append(FakeClient(tracking_uri))
        return made[-1]

    def keep(*names: str) -> Any:
        return lambda *values: SimpleNamespace(**dict(zip(names, values, strict=True)))

    entities = ModuleType("mlflow.entities")
    entities.Metric, entities.Param = keep("key", "value", "timestamp", "step"), keep("key", "value")
    tracking = ModuleType("mlflow.tracking")
    tracking.MlflowClient = client
    for name, module in (
        ("mlflow", ModuleType("mlflow")),
        ("mlflow.entities", entities),
        ("mlflow.tracking", tracking),
    ):
        monkeypatch.setitem(sys.modules, name, module)
    return made


def test_mlflow_gets_each_trial_once(mlflow: list[FakeClient], tracked: TrackedSearch, trials: list) -> None:
    with open_trackers(["mlflow"], tracked) as told:
        for trial in [*trials, *trials]:
            told(trial)
    (client,) = mlflow
    assert client.uri == f"sqlite:///{tracked.run / 'search' / 'mlflow.db'}"
    assert client.artifacts.startswith("file://")
    assert [run.name for run in client.runs.values()] == [trial.name for trial in trials]
    ends = {"ok": "FINISHED", "failed": "FAILED", "pruned": "KILLED"}
    assert [run.info.status for run in client.runs.values()] == [ends[t.status] for t in trials]
    first = client.runs["r0"]
    assert first.params["balancing"] == "equal+none"
    assert first.params["training.epochs"] == "32"
    values = {(metric.key, metric.step): metric.value for metric in first.metrics}
    assert values["val/MSI/auroc", 0] == trials[0].means["val/MSI/auroc"]
    assert values["cosine/MSI_LISS/0-0", 1] == -0.1  # MLflow allows no bar in a name


def test_mlflow_writes_anew_what_was_interrupted(
    mlflow: list[FakeClient], tracked: TrackedSearch, trials: list
) -> None:
    told = open_trackers(["mlflow"], tracked)
    told(trials[0])
    mlflow[0].runs["r0"].info.status = "RUNNING"
    told(trials[0])
    assert [run.info.status for run in mlflow[0].runs.values()] == ["FINISHED"]


def test_wandb_gets_each_trial_once_and_stays_offline(
    monkeypatch: pytest.MonkeyPatch, tracked: TrackedSearch, trials: list
) -> None:
    begun: list[Any] = []

    def init(**settings: Any) -> Any:
        run = SimpleNamespace(settings=settings, logged={}, summary={}, code=None)
        run.log = lambda values, step: run.logged.setdefault(step, values)
        run.finish = lambda exit_code: setattr(run, "code", exit_code)
        begun.append(run)
        return run

    module = ModuleType("wandb")
    module.init = init
    monkeypatch.setitem(sys.modules, "wandb", module)
    for _ in range(2):  # a second session finds what the first has written
        with open_trackers(["wandb"], tracked) as told:
            for trial in trials:
                told(trial)
    assert [run.settings["name"] for run in begun] == [trial.name for trial in trials]
    assert {run.settings["mode"] for run in begun} == {"offline"}
    assert {Path(run.settings["dir"]) for run in begun} == {tracked.run / "search"}
    assert [run.code for run in begun] == [int(trial.status == "failed") for trial in trials]
    assert list(begun[0].logged) == sorted(begun[0].logged)  # W&B refuses to go back
    assert begun[0].summary == metrics_of(trials[0])
    assert begun[0].settings["config"]["seed"] == 42


@pytest.mark.parametrize("name", ["mlflow", "wandb"])
def test_an_extra_that_is_absent_is_named(
    name: str, tracked: TrackedSearch, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in [m for m in sys.modules if m.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)

    class Absent:
        def find_spec(self, wanted: str, *rest: object) -> None:
            if wanted.partition(".")[0] == name:
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])
    with pytest.raises(ResourceError, match=rf"needs the package {name}"):
        open_trackers([name], tracked)


def test_all_are_closed_even_if_one_cannot() -> None:
    closed = []

    class Bad:
        def __call__(self, trial: object) -> None:
            """Nothing."""

        def close(self) -> None:
            raise OSError("full")

    class Good(Bad):
        def close(self) -> None:
            closed.append(self)

    with pytest.raises(OSError, match="full"), TrackerList((Good(), Bad(), Good())):
        pass
    assert len(closed) == 2
