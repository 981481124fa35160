"""MLflow: one run per trial in a database inside the run folder. Needs the extra ``mlflow``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

from equipoise.platform.search.trackers import Tracked, digest, metrics_of, points, seconds
from equipoise.platform.search.trials import Trial

#: Marks the run of a record.
_MARK = "equipoise.record"

#: MLflow takes so many metrics and parameters at once.
_METRICS, _PARAMETERS = 1000, 100

_STATUS = {"ok": "FINISHED", "failed": "FAILED", "pruned": "KILLED"}


class MlflowTracker:
    """Writes ``search/mlflow.db``; shown by ``mlflow ui --backend-store-uri sqlite:///…/search/mlflow.db``.

    Times are those of the record. A trial is looked up by a digest of its record before it is written; a run whose
    writing was interrupted has no end and is deleted first.
    """

    def __init__(self, tracked: Tracked) -> None:
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        self._tracked = tracked
        self._metric, self._param = Metric, Param
        folder = (tracked.run / "search").resolve()
        folder.mkdir(parents=True, exist_ok=True)
        self._client = MlflowClient(tracking_uri=f"sqlite:///{folder / 'mlflow.db'}")
        found = self._client.get_experiment_by_name(tracked.name)
        artifacts = (folder / "mlflow-artifacts").as_uri()
        self._experiment = (
            self._client.create_experiment(tracked.name, artifact_location=artifacts)
            if found is None
            else found.experiment_id
        )

    def __call__(self, trial: Trial) -> None:
        """Write a trial that has ended, unless it is there already."""
        mark, client = digest(trial), self._client
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
        metrics += [self._metric(_key(tag), v, ended or 0, step) for tag, step, v in points(trial)]
        for part in _parts(parameters, _PARAMETERS):
            client.log_batch(run.info.run_id, params=part)
        for part in _parts(metrics, _METRICS):
            client.log_batch(run.info.run_id, metrics=part)
        client.set_terminated(run.info.run_id, status=_STATUS[trial.status], end_time=ended)

    def close(self) -> None:
        """Every trial was written when it ended."""


def _key(name: str) -> str:
    """A name as MLflow allows it."""
    return re.sub(r"[^\w\-. :/]", "_", name)


def _milliseconds(stamp: str) -> int | None:
    found = seconds(stamp)
    return None if found is None else round(1000 * found)


def _parts(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
