"""Weights & Biases: one offline run per trial inside the run folder. Needs the extra ``wandb``."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from equipoise.platform.search.trackers import Tracked, digest, metrics_of, points
from equipoise.platform.search.trials import Trial


class WandbTracker:
    """Writes ``search/wandb/offline-run-*``; nothing is sent before somebody calls ``wandb sync`` on them.

    The id of a run is a digest of the trial's record; a folder with a file that says the run was ended is left alone.
    """

    def __init__(self, tracked: Tracked) -> None:
        import wandb

        self._wandb = wandb
        self._tracked = tracked
        self._folder = tracked.run / "search"

    def __call__(self, trial: Trial) -> None:
        """Write a trial that has ended, unless it is there already."""
        mark = digest(trial)
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
        """Every trial was ended when it was written."""


def _by_step(trial: Trial) -> dict[int, dict[str, Any]]:
    """W&B wants all values of a step at once."""
    found: dict[int, dict[str, Any]] = defaultdict(dict)
    for tag, step, value in points(trial):
        found[step][tag] = value
    return found
