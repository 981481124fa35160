"""TensorBoard with HParams: one folder ``tb/search/<trial>`` and so one row of the table per trial.

Ray Tune's own logger writes sampled parameters only and adds many metrics of its own; ``add_hparams`` of PyTorch makes
a second folder per trial. Therefore the three summaries of the plugin are written here: the experiment and the start of
the session, then scalars under the names that the experiment declares, in the same folder, then the end of the session.

TensorBoard takes the columns of the table from any one of the folders, so all of them declare every parameter that a
trial of the search can have; the cell of a parameter that a trial does not have stays empty.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equipoise.platform.search.trackers import (
    TrackedSearch,
    curve_points,
    metrics_of,
    record_digest,
    to_timestamp,
)
from equipoise.platform.search.trial_records import Trial, Value

if TYPE_CHECKING:
    from tensorboard.compat.proto.summary_pb2 import Summary

#: TensorBoard's status of a trial; one that the scheduler stopped is neither a success nor a failure.
_STATUS = {"ok": "STATUS_SUCCESS", "failed": "STATUS_FAILURE", "pruned": "STATUS_UNKNOWN"}


class TensorBoardTracker:
    """Writes one event file into ``tb/search/<trial>`` of the run folder, atomically.

    The name of an event file ends in a digest of the record: a trial that was written before is skipped, and one whose
    record has changed replaces the old one.
    """

    def __init__(self, tracked: TrackedSearch) -> None:
        self._tracked = tracked
        self._folder = tracked.run / "tb" / "search"
        # Not below tb/: TensorBoard would list incomplete files and keep them.
        self._temporary = tracked.run / "search" / ".tensorboard"
        shutil.rmtree(self._temporary, ignore_errors=True)

    def __call__(self, trial: Trial) -> None:
        """Write a trial that has ended, unless it was written before."""
        target, temporary = self._folder / trial.name, self._temporary / trial.name
        suffix = f".{record_digest(trial)}"
        if any(target.glob(f"*{suffix}")):
            return
        write_trial_events(temporary, trial, self._tracked, suffix)
        target.mkdir(parents=True, exist_ok=True)
        for old in target.glob("events.*"):
            old.unlink()
        (written,) = temporary.iterdir()
        written.rename(target / written.name)
        temporary.rmdir()

    def close(self) -> None:
        """Delete the folder of incomplete files."""
        shutil.rmtree(self._temporary, ignore_errors=True)


def write_trial_events(folder: Path, trial: Trial, tracked: TrackedSearch, suffix: str) -> None:
    """One event file with the row of a trial and its curves, at the times of its record.

    Parameters
    ----------
    folder
        Folder of the file; it is created and must be empty.
    trial, tracked
        The trial and its search.
    suffix
        End of the file's name.
    """
    from torch.utils.tensorboard import SummaryWriter

    began, ended = to_timestamp(trial.started), to_timestamp(trial.ended)
    parameters = tracked.parameters(trial)
    with SummaryWriter(str(folder), filename_suffix=suffix) as writer:
        file = writer.file_writer
        file.add_summary(_experiment(tracked), walltime=began)
        file.add_summary(_session_start(parameters, began), walltime=began)
        for name, value in metrics_of(trial).items():
            writer.add_scalar(name, value, 0, walltime=ended)
        for tag, step, value in curve_points(trial):
            writer.add_scalar(tag, value, step, walltime=ended)
        if trial.reason:
            writer.add_text("reason", trial.reason, 0, walltime=ended)
        file.add_summary(_session_end(trial.status, ended), walltime=ended)


def _experiment(tracked: TrackedSearch) -> Summary:
    """Columns of the table; TensorBoard puts those that differ between trials first and shows them at once."""
    from tensorboard.plugins.hparams import api_pb2, metadata

    infos = [
        api_pb2.HParamInfo(name=name, type=_kind(value), differs=name in tracked.varied)
        for name, value in tracked.columns.items()
    ]
    metric_infos = [api_pb2.MetricInfo(name=api_pb2.MetricName(tag=tag)) for tag in tracked.metrics]
    experiment = api_pb2.Experiment(hparam_infos=infos, metric_infos=metric_infos)
    return _summary(metadata.EXPERIMENT_TAG, experiment=experiment)


def _session_start(parameters: dict[str, Value], began: float | None) -> Summary:
    """Values of a row."""
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    start = plugin_data_pb2.SessionStartInfo(start_time_secs=began or 0.0)
    for name, value in parameters.items():
        if isinstance(value, bool):
            start.hparams[name].bool_value = value
        elif isinstance(value, int | float):
            start.hparams[name].number_value = value
        elif value is not None:
            start.hparams[name].string_value = value
    return _summary(metadata.SESSION_START_INFO_TAG, session_start_info=start)


def _session_end(status: str, ended: float | None) -> Summary:
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    value = api_pb2.Status.Value(_STATUS[status])
    end = plugin_data_pb2.SessionEndInfo(status=value, end_time_secs=ended or 0.0)
    return _summary(metadata.SESSION_END_INFO_TAG, session_end_info=end)


def _kind(value: Value) -> Any:
    from tensorboard.plugins.hparams import api_pb2

    if isinstance(value, bool):
        return api_pb2.DATA_TYPE_BOOL
    return api_pb2.DATA_TYPE_STRING if isinstance(value, str) else api_pb2.DATA_TYPE_FLOAT64


def _summary(tag: str, **data: Any) -> Summary:
    """A summary that holds its data in the metadata, as the plugin expects."""
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    content = plugin_data_pb2.HParamsPluginData(version=metadata.PLUGIN_DATA_VERSION, **data)
    plugin = SummaryMetadata.PluginData(plugin_name=metadata.PLUGIN_NAME, content=content.SerializeToString())
    return Summary(value=[Summary.Value(tag=tag, metadata=SummaryMetadata(plugin_data=plugin))])
