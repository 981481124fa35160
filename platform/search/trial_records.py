"""Records of trials: one file per finished trial, and the table that is built from them.

``search/trials/<name>.json`` is written atomically and alone says which trials are finished: a search that was killed
reads these files and runs the remaining trials. ``search/trials.parquet`` repeats them as a table, one row per trial
by index:

========================================  ============================================================================
column                                    content
========================================  ============================================================================
``index``, ``name``                       0 is the study as written; ``007-uncertainty+pcgrad``
``status``, ``reason``                    ``ok``, ``failed`` or ``pruned`` (stopped early by the scheduler), and why
``objective``, ``objective_se``           mean of ``search.metric`` over the folds that were run, and the standard
                                          error of that mean (NaN for one fold); larger is better
``folds``, ``epochs``, ``parameters``     folds finished, epochs (or rounds of a federation) over all of them and all
                                          seeds, parameters of the model
``cpu_seconds``, ``wall_seconds``         of the process of the trial
``host``, ``started``, ``ended``          where and when (ISO 8601)
``param/<dimension>``                     settings as plain values, None where a dimension does not apply
``val/<task>/<metric>``, ``val/mean``     means over folds
``fold<k>/val/…``                         the same of the k-th inner fold, from 0; with several seeds their mean
========================================  ============================================================================

With ``search.seeds`` a fold of patients is trained more than once. Seeds are not samples of patients: values are first
averaged over the seeds of a fold, and everything that depends on spread (standard errors, possible ranks) uses these
means only. The record holds each training.

Failed trials keep the folds that they finished; only ``ok`` ones have all of them and can be selected.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from equipoise.datasets.atomic_io import atomic_path, write_text
from equipoise.platform.renamed import current_record

if TYPE_CHECKING:
    import pandas as pd

FORMAT = "equipoise-trial/1"

Status = Literal["ok", "failed", "pruned"]

#: A setting as a study file can hold it.
Value = str | int | float | bool | None


@dataclass(frozen=True)
class FoldScore:
    """Result of one inner fold of a trial.

    Parameters
    ----------
    fold
        ``<repeat>-<index>``; other seeds have other repeats.
    values
        ``val/<task>/<metric>`` and ``val/mean`` of patients that the fold held out; NaN where their labels do not
        allow it.
    epochs, best_epoch
        Epochs trained, and the one whose weights were scored; of a federation rounds, and the last one.
    parameters
        Parameters of the model.
    cpu_seconds, wall_seconds
        Time of this fold, without the time lost by interruptions.
    history
        Rows of the training history (:class:`~equipoise.platform.training.loop.FitResult`): losses, balancing weights,
        conflict rates, cosines. Of a federation, where ``epoch`` counts rounds: mean losses of clients, length of the
        update.
    first
        The fold of the first seed with the same patients; empty for that fold itself.
    """

    fold: str
    values: dict[str, float]
    epochs: int
    best_epoch: int
    parameters: int
    cpu_seconds: float
    wall_seconds: float
    history: tuple[dict[str, float], ...] = ()
    first: str = ""


@dataclass(frozen=True)
class Trial:
    """One trial that has ended, in whatever way.

    Parameters
    ----------
    index
        Its number in the search; with the seed it decides the configuration of random and grid search.
    name
        ``007-uncertainty+pcgrad``.
    config
        Dimension → plain value; all other settings are those of the study.
    status, reason
        How it ended, and the reason if it is not ``ok``.
    metric
        Metric that the search maximises.
    folds
        Finished folds, in order; all of the first seed, then those of the next.
    cpu_seconds, wall_seconds
        Over all folds.
    host, started, ended
        Where and when.
    changes
        Population based training: rows ``epoch`` and the settings from then on.
    died
        Whether it failed because its process died, several times, or the disk was full: the next search tries it
        again, from its folds.
    """

    index: int
    name: str
    config: dict[str, Value]
    status: Status
    metric: str
    reason: str = ""
    folds: tuple[FoldScore, ...] = ()
    cpu_seconds: float = 0.0
    wall_seconds: float = 0.0
    host: str = ""
    started: str = ""
    ended: str = ""
    changes: tuple[dict[str, Any], ...] = field(default=())
    died: bool = False

    @property
    def ok(self) -> bool:
        """Whether all folds were run."""
        return self.status == "ok"

    @property
    def fold_means(self) -> list[dict[str, float]]:
        """Values of every fold of patients, each the mean over its seeds; in the order of folds."""
        seeds: dict[str, list[FoldScore]] = {}
        for fold in self.folds:
            seeds.setdefault(fold.first or fold.fold, []).append(fold)
        names = list(dict.fromkeys(name for fold in self.folds for name in fold.values))
        return [
            {name: mean([score.values.get(name, math.nan) for score in scores]) for name in names}
            for scores in seeds.values()
        ]

    def spread(self, name: str) -> float:
        """Standard error of the mean of a value over folds of patients; NaN for fewer than two."""
        return standard_error([values.get(name, math.nan) for values in self.fold_means])

    @property
    def means(self) -> dict[str, float]:
        """Mean of every value over the folds of patients in which it is known."""
        folds = self.fold_means
        return {name: mean([values[name] for values in folds]) for name in (folds[0] if folds else ())}

    @property
    def objective(self) -> float:
        """Mean of the metric over folds; NaN before the first one has ended."""
        return self.means.get(self.metric, math.nan)

    @property
    def objective_se(self) -> float:
        """Standard error of the objective over folds of patients; NaN for fewer than two."""
        return self.spread(self.metric)

    @property
    def parameters(self) -> int:
        """Parameters of the model, 0 before the first fold has ended."""
        return max((fold.parameters for fold in self.folds), default=0)

    def row(self) -> dict[str, Any]:
        """One row of ``trials.parquet``."""
        folds = self.fold_means
        row: dict[str, Any] = {
            "index": self.index,
            "name": self.name,
            "status": self.status,
            "reason": self.reason,
            "objective": self.objective,
            "objective_se": self.objective_se,
            "folds": len(folds),
            "epochs": sum(fold.epochs for fold in self.folds),
            "parameters": self.parameters,
            "cpu_seconds": self.cpu_seconds,
            "wall_seconds": self.wall_seconds,
            "host": self.host,
            "started": self.started,
            "ended": self.ended,
        }
        row |= {f"param/{name}": value for name, value in self.config.items()}
        row |= self.means
        return row | {
            f"fold{k}/{name}": value for k, values in enumerate(folds) for name, value in values.items()
        }


def trial_name(index: int, label: str) -> str:
    """``007-uncertainty+pcgrad``: index and label."""
    return f"{index:03d}-{label}" if label else f"{index:03d}"


def mean(values: Sequence[float]) -> float:
    """Mean of the known values, NaN without any."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan


def standard_error(values: Sequence[float]) -> float:
    """Standard error of the mean of the known values, NaN for fewer than two."""
    known = [value for value in values if not math.isnan(value)]
    if len(known) < 2:
        return math.nan
    centre = sum(known) / len(known)
    return math.sqrt(sum((value - centre) ** 2 for value in known) / (len(known) - 1) / len(known))


def write_trial(folder: Path, trial: Trial) -> None:
    """Write the record of a finished trial to ``folder`` (``search/trials``), atomically."""
    record = {"format": FORMAT, **asdict(trial)}
    write_text(folder / f"{trial.name}.json", json.dumps(_plain(record), allow_nan=False) + "\n")


def read_trials(folder: Path) -> list[Trial]:
    """All finished trials, by index."""
    return sorted((read_trial(path) for path in folder.glob("[0-9]*.json")), key=lambda trial: trial.index)


def read_trial(path: Path) -> Trial:
    """One record."""
    data = json.loads(path.read_text(encoding="utf-8"))
    if data.pop("format", None) != FORMAT:
        raise ValueError(f"{path}: not a record of layout {FORMAT}")
    data["config"] = current_record(data["config"])
    folds = tuple(fold_from_json(fold) for fold in data.pop("folds"))
    return Trial(**{**data, "folds": folds, "changes": tuple(data.pop("changes"))})


def fold_to_json(fold: FoldScore) -> dict[str, Any]:
    """Plain data; numbers that are not known become null."""
    plain: dict[str, Any] = _plain(asdict(fold))
    return plain


def fold_from_json(data: dict[str, Any]) -> FoldScore:
    """The inverse of :func:`fold_to_json`."""
    values = {name: _number(value) for name, value in data["values"].items()}
    history = tuple({name: _number(value) for name, value in row.items()} for row in data["history"])
    return FoldScore(**{**data, "values": values, "history": history})


#: Columns that every table has; those of settings and metrics follow.
FIXED_COLUMNS = tuple(Trial(0, "", {}, "ok", "").row())


def trial_table(trials: Sequence[Trial]) -> pd.DataFrame:
    """One row per trial, by index; for the columns see the module. The settings of one dimension have one type."""
    import pandas as pd

    rows = [trial.row() for trial in sorted(trials, key=lambda trial: trial.index)]
    groups = ("param/", "val/", "fold")
    columns = dict.fromkeys(name for row in rows for name in row if name not in FIXED_COLUMNS)
    names = [name for start in groups for name in sorted(columns, key=_by_fold) if name.startswith(start)]
    table = pd.DataFrame(rows, columns=[*FIXED_COLUMNS, *names])
    for name in names:
        kinds = {type(value) for value in table[name] if value is not None and value == value}
        if name.startswith("param/") and kinds & {str, bool}:
            # A column has one type: a dimension with both text and numbers is written as text.
            table[name] = pd.Series(
                [None if value is None or value != value else str(value) for value in table[name]],
                dtype=object,
            )
        else:
            table[name] = table[name].astype(float)
    return table


def write_table(trials: Sequence[Trial], path: Path) -> pd.DataFrame:
    """Write ``trials.parquet`` and return it."""
    table = trial_table(trials)
    with atomic_path(path) as temporary:
        table.to_parquet(temporary, index=False)
    return table


def _by_fold(name: str) -> tuple[int, str]:
    head, _, rest = name.partition("/")
    return (int(head[4:]), rest) if head[:4] == "fold" and head[4:].isdigit() else (-1, name)


def _plain(value: Any) -> Any:
    """JSON has no NaN: unknown numbers become null."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: float | None) -> float:
    return math.nan if value is None else value
