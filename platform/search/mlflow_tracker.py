"""MLflow: one run per trial in a database inside the run folder. Needs the extra ``mlflow``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from equipoise.platform.search.trackers import (
    TrackedSearch,
    curve_points,
    metrics_of,
    record_digest,
    to_timestamp,
)
from equipoise.platform.search.trial_records import Trial

#: Tag that holds the digest of a record.
_MARK = "equipoise.record"

#: Most metrics and parameters that MLflow takes in one call.
_METRICS, _PARAMETERS = 1000, 100

_STATUS = {"ok": "FINISHED", "failed": "FAILED", "pruned": "KILLED"}


class MlflowTracker:
    """Writes ``search/mlflow.db``; shown by ``mlflow ui --backend-store-uri sqlite:///…/search/mlflow.db``.

    Times are those of the record. Before a trial is written, it is looked up by the digest of its record; a run that
    was interrupted while it was written has no end and is deleted first.
    """

    def __init__(self, tracked: TrackedSearch) -> None:
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        self._tracked = tracked
        self._metric, self._param = Metric, Param
        folder = (tracked.run / "search").resolve()
        folder.mkdir(parents=True, exist_ok=True)
        self._client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
        experiment = self._client.get_experiment_by_name(tracked.name)
        artifacts = (folder / "mlflow-artifacts").as_uri()
        self._experiment = (
            self._client.create_experiment(tracked.name, artifact_location=artifacts)
            if experiment is None
            else experiment.experiment_id
        )

    def __call__(self, trial: Trial) -> None:
        """Write a trial that has ended, unless it was written before."""
        mark, client = record_digest(trial), self._client
        for run in client.search_runs([self._experiment], filter_string=f"tags.`{_MARK}` = '{mark}'"):
            if run.info.status != "RUNNING":
                return
            client.delete_run(run.info.run_id)
        began, ended = _milliseconds(trial.started), _milliseconds(trial.ended)
        tags = {_MARK: mark, "status": trial.status, "reason": trial.reason}
        run = client.create_run(self._experiment, start_time=began, tags=tags, run_name=trial.name)
        parameters = [
            self._param(_key(name), str(value)) for name, value in self._tracked.parameters(trial).items()
        ]
        metrics = [self._metric(_key(n), v, ended or 0, 0) for n, v in metrics_of(trial).items()]
        metrics += [self._metric(_key(tag), v, ended or 0, step) for tag, step, v in curve_points(trial)]
        for part in _parts(parameters, _PARAMETERS):
            client.log_batch(run.info.run_id, params=part)
        for part in _parts(metrics, _METRICS):
            client.log_batch(run.info.run_id, metrics=part)
        client.set_terminated(run.info.run_id, status=_STATUS[trial.status], end_time=ended)

    def close(self) -> None:
        """Nothing to do: every trial was written when it ended."""


def _key(name: str) -> str:
    """A name with characters that MLflow allows."""
    return re.sub(r"[^\w\-. :/]", "_", name)


def _milliseconds(stamp: str) -> int | None:
    result = to_timestamp(stamp)
    return None if result is None else round(1000 * result)


def _parts(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
