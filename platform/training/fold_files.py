"""Whether the folder of a finished fold holds what its training wrote, for the patients of the fold.

``config.json`` has the SHA-256 of every other file and of itself. Folds of earlier versions have none; the patients of
their predictions are compared all the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equipoise.datasets.atomic_io import read_whole_json, write_json
from equipoise.platform.errors import DataError

if TYPE_CHECKING:
    from equipoise.datasets.cohorts.splits import Fold

#: File with the fingerprint of an unfinished fold; the fingerprint becomes part of ``config.json``.
FINGERPRINT_FILE = "made_by.json"
CONFIG, PREDICTIONS = "config.json", "preds.parquet"
_RESULTS = ("safetensors", "parquet", "json", "csv")
_FILES, _DIGEST = "files", "sha256"


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """Write ``config.json``, the last file of a fold, with the hashes of the others."""
    results = {file.name for ending in _RESULTS for file in folder.glob(f"*.{ending}")}
    written = {**config, _FILES: file_hashes(folder, results - {CONFIG, FINGERPRINT_FILE})}
    plain = json.loads(json.dumps(written, default=str))
    write_json(folder / CONFIG, plain | {_DIGEST: _digest(plain)})


def fold_problem(folder: Path, fold: Fold) -> str | None:
    """Why the folder is not that of this fold as it was trained, naming the file; None if it is.

    Whether it was trained with the settings and data of today is another question, see
    :func:`~equipoise.platform.training.crossval.check_fingerprint`.
    """
    config = read_whole_json(folder / CONFIG)
    if config is None:
        return f"{CONFIG} is {'damaged' if (folder / CONFIG).exists() else 'missing'}"
    digest = config.pop(_DIGEST, None)
    if digest is not None and digest != _digest(config):
        return f"{CONFIG} is not what was written: its SHA-256 differs"
    if problem := changed_file(folder, config.get(_FILES, {})):
        return problem
    of = config.get("fold", {})
    if of and (of.get("repeat"), of.get("index")) != (fold.repeat, fold.index):
        return f"{CONFIG} belongs to fold {of.get('repeat')}-{of.get('index')}"
    # Of the patients that it was trained for: whether these are those of today is what check_fingerprint asks.
    trained_for = {"val": fold.val, "test": fold.test} | config.get("patients", {})
    return _predictions_problem(folder / PREDICTIONS, fold, trained_for)


def require_whole(folder: Path, fold: Fold) -> None:
    """Refuse a fold whose files are not those that its training wrote.

    Raises
    ------
    DataError
        Naming fold and file.
    """
    if problem := fold_problem(folder, fold):
        raise DataError(
            f"fold {fold.name}: {problem}",
            where=str(folder),
            fix="restore the folder from a copy, or run `equipoise train`: it trains this fold again",
        )


def file_hashes(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Name → SHA-256 of those files that are there."""
    return {name: _hash(folder / name) for name in sorted(names) if (folder / name).is_file()}


def changed_file(folder: Path, hashes: Mapping[str, str]) -> str | None:
    """The first file that is missing or another one than was written; None if all are the same."""
    for name, digest in hashes.items():
        if not (folder / name).is_file():
            return f"{name} is missing"
        if _hash(folder / name) != digest:
            return f"{name} is not what was written: its SHA-256 differs"
    return None


def _predictions_problem(file: Path, fold: Fold, trained_for: Mapping[str, Sequence[str]]) -> str | None:
    """Whether the predictions are of the validation and test patients that the fold was trained for."""
    from equipoise.platform.evaluation.predictions import read_predictions

    try:
        rows = read_predictions(file)
    except DataError as error:
        return f"{file.name}: {error.what}"
    others = rows[(rows["repeat"] != fold.repeat) | (rows["fold"] != fold.index)]
    if len(others):
        return f"{file.name} holds predictions of fold {others['repeat'].iloc[0]}-{others['fold'].iloc[0]}"
    for role in ("val", "test"):
        patients = trained_for[role]
        for task, of_task in rows[rows["role"] == role].groupby("task"):
            found, wanted = set(of_task["patient"]), set(patients)
            if found != wanted:
                named = ", ".join(sorted(found ^ wanted)[:3])
                return (
                    f"{file.name} has {role} predictions of {task} for {len(found & wanted)} of {len(wanted)} patients "
                    f"and {len(found - wanted)} others ({named})"
                )
        if len(patients) and not len(rows[rows["role"] == role]):
            return f"{file.name} has no {role} predictions"
    return None


def _digest(config: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def _hash(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
