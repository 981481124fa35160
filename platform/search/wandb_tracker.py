"""Weights & Biases: one offline run per trial inside the run folder. Needs the extra ``wandb``."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from equipoise.platform.search.trackers import TrackedSearch, curve_points, metrics_of, record_digest
from equipoise.platform.search.trial_records import Trial


class WandbTracker:
    """Writes ``search/wandb/offline-run-*``; nothing is sent until the user calls ``wandb sync`` on them.

    The id of a run is the digest of the trial's record; a trial with a ``.done`` file is skipped.
    """

    def __init__(self, tracked: TrackedSearch) -> None:
        import wandb

        self._wandb = wandb
        self._tracked = tracked
        self._folder = tracked.run / "search"

    def __call__(self, trial: Trial) -> None:
        """Write a trial that has ended, unless it was written before."""
        mark = record_digest(trial)
        done = self._folder / "wandb" / f"{trial.name}.{mark}.done"
        if done.exists():
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        run = self._wandb.init(
            project=self._tracked.name,
            name=trial.name,
            id=mark,
            dir=str(self._folder),
            mode="offline",
            config=dict(self._tracked.parameters(trial)),
            tags=[trial.status],
            notes=trial.reason or None,
        )
        for step, values in sorted(_by_step(trial).items()):
            run.log(values, step=step)
        run.summary.update(metrics_of(trial))
        run.finish(exit_code=1 if trial.status == "failed" else 0)
        done.parent.mkdir(parents=True, exist_ok=True)
        done.touch()

    def close(self) -> None:
        """Nothing to do: every run was finished when it was written."""


def _by_step(trial: Trial) -> dict[int, dict[str, Any]]:
    """Values by step: W&B takes all values of a step in one call."""
    result: dict[int, dict[str, Any]] = defaultdict(dict)
    for tag, step, value in curve_points(trial):
        result[step][tag] = value
    return result
