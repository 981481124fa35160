"""One fold: fit on its training patients, predict its validation and test patients, write a folder.

The folder ``folds/<repeat>-<index>/`` is created atomically: everything, the checkpoint included, is written to
``.<repeat>-<index>.partial`` beside it, which is renamed at the end. A finished fold is not trained again; one
that was trained with other settings or data is refused with the differences. Seeds come from (seed, repeat,
fold), so that a fold does not depend on which other folds ran, where, or in which order.
"""

from __future__ import annotations

import csv
import logging
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from equipoise.datasets.atomic_io import read_whole_json
from equipoise.models.base import MultiTaskModel, frozen_digests
from equipoise.models.ensemble import Ensemble, Member
from equipoise.models.seeds import torch_seed
from equipoise.platform.environment import environment
from equipoise.platform.errors import DataError, StudyError
from equipoise.platform.fingerprints import content_hash, differences, fingerprint
from equipoise.platform.training.batches import CaseList, CaseSource
from equipoise.platform.training.branch_predictions import predict_branches
from equipoise.platform.training.build import build_model
from equipoise.platform.training.convergence import convergence_warnings
from equipoise.platform.training.ensemble import TrainedEnsemble, fit_ensemble
from equipoise.platform.training.exact import distances, fit_exactly, fits_exactly, is_convex, refit
from equipoise.platform.training.fold_files import FINGERPRINT_FILE, fold_problem, write_config
from equipoise.platform.training.loop import FitResult, Reporter, fit
from equipoise.platform.training.modulation import modulation_warnings
from equipoise.platform.training.params import Recipe, entry_params
from equipoise.platform.training.predict import Role, predict_with_latents
from equipoise.platform.training.start import initial_model, recipe_record, recipe_targets
from equipoise.platform.training.targets import Targets
from equipoise.platform.training.weight_convergence import learns_weights, weight_convergence

if TYPE_CHECKING:
    import pandas as pd

    from equipoise.datasets.cohorts.splits import Fold
    from equipoise.datasets.tables.tasks import Task

#: Layout of a fold folder.
FORMAT = "equipoise-fold/1"

log = logging.getLogger("equipoise")


@dataclass(frozen=True)
class TrainedFold:
    """The trained model of a fold, ready to predict patients that it has not seen."""

    model: nn.Module
    targets: Targets
    config: dict[str, Any]

    def predict(self, cases: CaseList, role: Role) -> pd.DataFrame:
        """Rows of the predictions table, in original units."""
        return self.predict_with_latents(cases, role)[0]

    def predict_with_latents(self, cases: CaseList, role: Role) -> tuple[pd.DataFrame, pd.DataFrame]:
        """The same, and rows of the latents table."""
        fold = self.config["fold"]
        return predict_with_latents(
            self.model, self.targets, cases, role=role, repeat=fold["repeat"], fold=fold["index"]
        )

    def predict_branches(self, cases: CaseList, role: Role) -> dict[str, pd.DataFrame]:
        """Branch → predictions of what it says alone; empty for a model without branches."""
        fold = self.config["fold"]
        return predict_branches(
            self.model, self.targets, cases, role=role, repeat=fold["repeat"], fold=fold["index"]
        )


def fold_folder(folds: Path, fold: Fold) -> Path:
    """Folder of a fold's results."""
    return folds / f"{fold.repeat}-{fold.index}"


def fold_seed(seed: int, fold: Fold) -> int:
    """The seed of a fold, for initial weights and the loop."""
    return torch_seed(seed, fold.repeat, fold.index)


def train_fold(
    fold: Fold,
    tasks: Sequence[Task],
    cases: CaseSource,
    recipe: Recipe,
    folds: Path,
    *,
    features: str,
    content_keys: Mapping[str, str],
    report: Reporter | None = None,
) -> Path:
    """Train a fold and write its folder, unless it already exists.

    Parameters
    ----------
    fold
        Training, inner validation and test patients.
    tasks
        What to predict.
    cases
        Reads a patient's case.
    recipe
        Model, balancing, training parameters and the seed of the study.
    folds
        The run's ``folds/``.
    features
        Address of the feature store; recorded, and compared when the fold exists.
    content_keys
        Patient → text that changes whenever labels or slides of the patient do; its hash is recorded and compared.
    report
        Called after every epoch.

    Returns
    -------
    Path
        ``folds/<repeat>-<index>`` with ``model.safetensors``, ``config.json``, ``targets.json``,
        ``history.csv``, ``preds.parquet`` and ``latents.parquet`` (validation and test patients), and
        ``branches.parquet`` (test patients) for a model with branches.

    Raises
    ------
    DataError
        If a patient is in two parts of the fold.
    StudyError
        If the folder was trained with other settings, patients or features.
    """
    from equipoise.datasets.atomic_io import write_json
    from equipoise.platform.evaluation.branches import FOLD_BRANCHES, write_fold_branches

    _check_parts(fold)
    folder = fold_folder(folds, fold)
    made_from = _fingerprint(fold, recipe, features, content_keys)
    if is_trained(folds, fold, recipe, features=features, content_keys=content_keys):
        return folder
    partial = folds / f".{folder.name}.partial"
    _discard_mismatch(partial, made_from)
    partial.mkdir(parents=True, exist_ok=True)
    write_json(partial / FINGERPRINT_FILE, made_from)
    train, val, test = (CaseList(cases, part) for part in (fold.train, fold.val, fold.test))
    together = recipe.training.members > 1
    learned = CaseList(cases, (*fold.train, *fold.val)) if together else train
    targets = recipe_targets(recipe, tasks, learned)
    seed = fold_seed(recipe.seed, fold)
    names = [head.name for head in targets.heads]
    members: TrainedEnsemble | None = None
    if together:
        members = fit_ensemble(fit_recipe, recipe, targets, learned, seed=seed, report=report, folder=partial)
        model: nn.Module = members.model
        result, fits = members.result, members.results
    else:
        model = initial_model(recipe, targets, seed=seed)
        result = fit_recipe(model, targets, train, val, recipe, seed, report, partial / "checkpoint.pt")
        fits = (result,)
    for one in fits:
        _warn_of_weights(folder.name, recipe, one, names)
    warnings = dict.fromkeys(
        text
        for one in fits
        for text in (
            *convergence_warnings(one, recipe.training, names),
            *modulation_warnings(recipe, one.history),
        )
    )
    config: dict[str, Any] = {
        "format": FORMAT,
        "fold": {"repeat": fold.repeat, "index": fold.index},
        "patients": {"train": fold.train, "val": fold.val, "test": fold.test},
        "epochs": len(result.history),
        "best_epoch": result.best_epoch,
        "stopped_early": result.stopped_early,
        "exact": result.exact,
        "optimum": None,
        "warnings": list(warnings),
        **({} if members is None else {"members": members.summaries}),
        "made_by": made_from,
        "made_with": environment(),
    }
    if is_convex(recipe) and not result.exact and isinstance(model, MultiTaskModel):
        found = distances(model, targets, train, val, recipe, seed=seed)
        config["optimum"] = {
            task: {key: None if math.isnan(value) else value for key, value in asdict(distance).items()}
            for task, distance in found.items()
        }
    for warning in config["warnings"]:
        log.warning("fold %s: %s", folder.name, warning)
    if frozen := frozen_digests(model):
        config["frozen"] = frozen
    trained = TrainedFold(model, targets, config)
    predictions = [*_held_out(trained, val, members)]
    if members is None and result.exact and len(val):
        assert isinstance(model, MultiTaskModel)
        everyone = CaseList(cases, (*fold.train, *fold.val))
        refit(model, targets, everyone, recipe, result.history[0])
        config["refit"] = len(everyone)
    if len(test):
        predictions.append(trained.predict_with_latents(test, "test"))
        write_fold_branches(trained.predict_branches(test, "test"), partial / FOLD_BRANCHES)
    _write(partial, trained, result, predictions)
    for checkpoint in partial.glob("checkpoint*.pt"):
        checkpoint.unlink()
    (partial / FINGERPRINT_FILE).unlink()
    os.replace(partial, folder)
    return folder


def _warn_of_weights(fold: str, recipe: Recipe, result: FitResult, tasks: Sequence[str]) -> None:
    """Say that learned loss weights stayed where they began, or were still on their way at the end."""
    method = recipe.balancing.weighting
    if len(tasks) < 2 or not learns_weights(method):
        return
    if problem := weight_convergence(result.history, tasks).problem:
        log.warning("train fold=%s weights of %s %s in %d epochs", fold, method, problem, len(result.history))


def fit_recipe(
    model: nn.Module,
    targets: Targets,
    train: CaseList,
    val: CaseList,
    recipe: Recipe,
    seed: int,
    report: Reporter | None,
    checkpoint: Path,
) -> FitResult:
    """Fit exactly where that is possible, else by epochs: here, or with the workers of Ray Train that are asked for."""
    if fits_exactly(recipe):
        assert isinstance(model, MultiTaskModel)
        return fit_exactly(
            model, targets, train, val, recipe, seed=seed, report=report, checkpoint=checkpoint
        )
    if recipe.training.workers > 1:
        from equipoise.platform.training.on_ray import fit_on_workers

        return fit_on_workers(
            model, targets, train, val, recipe, seed=seed, report=report, checkpoint=checkpoint
        )
    return fit(
        model,
        targets,
        train,
        val,
        recipe.training,
        seed=seed,
        balancing=recipe.balancing,
        report=report,
        checkpoint=checkpoint,
    )


def check_fingerprint(
    folds: Path, fold: Fold, recipe: Recipe, *, features: str, content_keys: Mapping[str, str]
) -> None:
    """Refuse a finished fold that was trained with other settings or data; parameters as in :func:`train_fold`.

    Raises
    ------
    StudyError
        Naming the settings that differ, and the patients that joined or left.
    """
    from equipoise.datasets.atomic_io import read_json

    folder = fold_folder(folds, fold)
    config = read_json(folder / "config.json", {})
    differ = differences(config.get("made_by", {}), _fingerprint(fold, recipe, features, content_keys))
    if not differ:
        return
    before = {p for part in config.get("patients", {}).values() for p in part}
    now = {*fold.train, *fold.val, *fold.test}
    moves = [
        f"{len(who)} {word} ({', '.join(sorted(who)[:5])}{', …' if len(who) > 5 else ''})"
        for word, who in (("joined", now - before), ("left", before - now))
        if who
    ]
    settings = [line for line in differ if not line.startswith("contents.")]
    changed = settings or [
        f"patients: {' and '.join(moves)}" if moves else "labels, slides or parts of its patients"
    ]
    raise StudyError(
        f"this fold was trained with other settings or data: {'; '.join(changed[:5])}",
        where=str(folder),
        fix="--resume never moves this run out of the way and starts again; -o another folder keeps both",
    )


def is_trained(
    folds: Path, fold: Fold, recipe: Recipe, *, features: str, content_keys: Mapping[str, str]
) -> bool:
    """Whether a fold is finished; one whose files are damaged is removed, with a warning, and is not.

    Raises
    ------
    StudyError
        If it was trained with other settings or data.
    """
    folder = fold_folder(folds, fold)
    if not folder.exists():
        return False
    if problem := fold_problem(folder, fold):
        log.warning("train fold=%s starts again: %s", folder.name, problem)
        shutil.rmtree(folder)
        return False
    check_fingerprint(folds, fold, recipe, features=features, content_keys=content_keys)
    return True


def _discard_mismatch(partial: Path, made_from: dict[str, Any]) -> None:
    """Delete an unfinished fold unless it was started with the same settings, patients, labels and slides."""
    if not partial.exists():
        return
    begun = read_whole_json(partial / FINGERPRINT_FILE)
    if begun is None or differences(begun, made_from):
        reason = (
            f"{FINGERPRINT_FILE} is damaged"
            if begun is None
            else "it was started with other data or settings"
        )
        log.warning("train fold=%s starts again: %s", partial.name.split(".")[1], reason)
        shutil.rmtree(partial)


def load_fold(folder: Path, device: torch.device | None = None) -> TrainedFold:
    """Load a finished fold to predict other patients with it, on ``device`` (the CPU if not given).

    Raises
    ------
    DataError
        If the folder is not a finished fold of this layout, or was trained with another frozen slide encoder.
    """
    from equipoise.datasets.atomic_io import read_json

    config = read_json(folder / "config.json", {})
    if config.get("format") != FORMAT:
        raise DataError(
            f"not a finished fold of layout {FORMAT}: config.json says {config.get('format', 'nothing')!r}",
            where=str(folder),
            fix="run 'equipoise train'",
        )
    targets = Targets.from_json(read_json(folder / "targets.json"))
    made_from = config["made_by"]
    model = restore_model(
        made_from["model"],
        made_from["model_params"],
        targets,
        folder / "model.safetensors",
        members=made_from["training"].get("members", 1),
        frozen=config.get("frozen", []),
    )
    return TrainedFold(model.to(device or "cpu").eval(), targets, config)


def restore_model(
    kind: str,
    settings: dict[str, Any],
    targets: Targets,
    weights: Path,
    *,
    members: int,
    frozen: Sequence[str],
) -> nn.Module:
    """A model of the registry with the weights of a file, on the CPU.

    Parameters
    ----------
    kind, settings
        Name and parameters of the model.
    targets
        Widths and tasks that it was trained for.
    weights
        ``model.safetensors``; it must hold every weight and no other.
    members
        Models behind one another in that file (``training.members``).
    frozen
        Digests of frozen parts that the file does not hold.

    Raises
    ------
    DataError
        If a frozen part has other weights, or the file does not fit the model.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    parts = [build_model(kind, settings, targets.shape, targets.heads, seed=0) for _ in range(members)]
    model = Ensemble(parts) if members > 1 else parts[0]  # type: ignore[arg-type]
    if frozen_digests(model) != list(frozen):
        raise DataError(
            "the fold was trained with other weights of the frozen part of the model",
            where=str(weights.parent),
            fix="put the weights file back that it was trained with",
        )
    try:
        model.load_state_dict(load_file(weights))  # strict: every weight is loaded
    except (SafetensorError, RuntimeError) as error:
        raise DataError(
            f"the weights do not fit a {kind} of these parameters: {str(error).splitlines()[0]}",
            where=str(weights),
            fix="take the whole folder as it was written",
        ) from error
    return model


def _fingerprint(
    fold: Fold, recipe: Recipe, features: str, content_keys: Mapping[str, str]
) -> dict[str, Any]:
    """Everything that the weights are a function of, as plain data."""
    params = entry_params("models", recipe.model, recipe.model_params)
    contents = {
        part: content_hash(f"{patient}: {content_keys[patient]}" for patient in getattr(fold, part))
        for part in ("train", "val", "test")
    }
    return fingerprint(
        recipe_record(recipe)
        | {"model_params": params.model_dump(mode="json"), "features": features, "contents": contents}
    )


def _check_parts(fold: Fold) -> None:
    parts = {"train": set(fold.train), "val": set(fold.val), "test": set(fold.test)}
    for a, b in (("train", "val"), ("train", "test"), ("val", "test")):
        if both := sorted(parts[a] & parts[b]):
            raise DataError(
                f"patients in both {a} and {b} part: {', '.join(both[:5])}; that is leakage",
                where=f"fold {fold.repeat}-{fold.index}",
            )


def _held_out(
    trained: TrainedFold, val: CaseList, members: TrainedEnsemble | None
) -> Iterator[tuple[pd.DataFrame, pd.DataFrame]]:
    """Predictions and latents of validation patients, by a model that did not learn from them."""
    if members is None:
        if len(val):
            yield trained.predict_with_latents(val, "val")
        return
    apart: dict[int, list[str]] = {}
    for patient in val.patients:
        apart.setdefault(members.held_out[patient], []).append(patient)
    for number, patients in sorted(apart.items()):
        one = replace(trained, model=Member(members.model, number))
        yield one.predict_with_latents(CaseList(val.source, tuple(patients)), "val")


def _write(
    partial: Path,
    trained: TrainedFold,
    result: FitResult,
    both: Sequence[tuple[pd.DataFrame, pd.DataFrame]],
) -> None:
    import pandas as pd
    from safetensors.torch import save_file

    from equipoise.datasets.atomic_io import write_json
    from equipoise.platform.evaluation.latents import FOLD_LATENTS, write_latents
    from equipoise.platform.evaluation.predictions import write_predictions

    predictions, latents = zip(*both, strict=True)
    write_predictions(pd.concat(predictions, ignore_index=True), partial / "preds.parquet")
    write_latents(pd.concat(latents, ignore_index=True), partial / FOLD_LATENTS)
    weights = {name: value.detach().cpu().contiguous() for name, value in trained.model.state_dict().items()}
    save_file(weights, partial / "model.safetensors")
    write_json(partial / "targets.json", trained.targets.to_json())
    with (partial / "history.csv").open("w", newline="", encoding="utf-8") as file:
        # Epochs of a training that an earlier version began have fewer columns.
        table = csv.DictWriter(file, list(dict.fromkeys(name for row in result.history for name in row)))
        table.writeheader()
        table.writerows(result.history)
    write_config(partial, trained.config)
