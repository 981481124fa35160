"""One model of all development patients, trained as long as the models of the folds were.

Without patients to validate on, nothing says when to stop: the number of epochs is the median of the folds' best ones,
on the same schedule of the learning rate. A solver, and members that validate one another, need no such number: they
are fitted as in any fold, and learn from everybody.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from equipoise.datasets.atomic_io import atomic_path, read_whole_json, write_json
from equipoise.datasets.cohorts.splits import Fold
from equipoise.datasets.cohorts.whole_fold import fold_without_test
from equipoise.models.base import frozen_digests
from equipoise.platform.environment import environment
from equipoise.platform.errors import StudyError
from equipoise.platform.fingerprints import content_hash, differences, fingerprint
from equipoise.platform.registry import get
from equipoise.platform.training.batches import CaseList
from equipoise.platform.training.crossval import FORMAT, fold_seed, load_fold, train_fold
from equipoise.platform.training.exact import fits_exactly
from equipoise.platform.training.fold_files import CONFIG, write_config
from equipoise.platform.training.loop import fit
from equipoise.platform.training.params import Recipe
from equipoise.platform.training.start import initial_model, recipe_record, recipe_targets

if TYPE_CHECKING:
    import pandas as pd

    from equipoise.platform.training.inputs import StudyInputs

log = logging.getLogger("equipoise")

#: Share of the patients that a solver chooses its penalty with, before it is fitted to all.
_INNER_VAL = 0.15


@dataclass(frozen=True)
class RefittedModel:
    """A model of all development patients.

    Attributes
    ----------
    folder
        With the files of a fold.
    note
        How it was trained.
    scores
        Rows of the predictions table: its scores of the patients that it was trained on.
    """

    folder: Path
    note: str
    scores: pd.DataFrame


def refit_everyone(
    tasks: Sequence[Any],
    inputs: StudyInputs,
    recipe: Recipe,
    folds: Sequence[Mapping[str, Any]],
    out: Path,
    *,
    seed: int,
) -> RefittedModel:
    """Train on all development patients; what is done for the same data and settings is not done again.

    Parameters
    ----------
    tasks, inputs, recipe
        Of the study.
    folds
        ``config.json`` of every finished fold.
    out
        Folder of the refit in the run folder.
    seed
        Of the study.

    Raises
    ------
    StudyError
        If a weighting learns from validation patients, of which there are none.
    """
    patients = inputs.cohorts.patients
    everyone = tuple(sorted(patients.loc[patients["role"] == "develop", "patient"].tolist()))
    cases = inputs.cases("develop")
    if fits_exactly(recipe) or recipe.training.members > 1:
        fold = fold_without_test(patients, tasks, _INNER_VAL, seed)
        keys = {"features": inputs.features, "content_keys": inputs.content_keys}
        folder = train_fold(fold, tasks, cases, recipe, out, **keys)  # type: ignore[arg-type]
        how = (
            "fitted by the solver to all of them, with a penalty chosen by inner folds"
            if fits_exactly(recipe)
            else f"{recipe.training.members} models, each stopped on another part of them"
        )
        note = f"Trained on all {len(everyone)} development patients: {how}."
    else:
        epochs = max(1, round(median(config["best_epoch"] for config in folds)))
        folder = _by_epochs(everyone, tasks, cases, inputs, recipe, epochs, out)
        note = (
            f"Trained on all {len(everyone)} development patients for {epochs} epochs, the median of the folds' best "
            "epochs, without validation."
        )
    scores = load_fold(folder).predict(CaseList(cases, everyone), "test")
    return RefittedModel(folder, note, scores)


def _by_epochs(
    everyone: tuple[str, ...],
    tasks: Sequence[Any],
    cases: Any,
    inputs: StudyInputs,
    recipe: Recipe,
    epochs: int,
    out: Path,
) -> Path:
    weighting, aggregation = recipe.balancing.weighting, recipe.balancing.aggregation
    for kind, name in (("weightings", weighting), ("aggregators", aggregation)):
        if "validation" in get(kind, name).attribute("needs"):
            raise StudyError(
                f"{name} learns from validation patients, and a refit has none",
                where="--refit",
                fix="export the ensemble of the folds, or train with another balancing method",
            )
    fold = Fold(0, 0, everyone, (), ())
    keys = content_hash(f"{patient}: {inputs.content_keys[patient]}" for patient in everyone)
    made_by = fingerprint(
        recipe_record(recipe)
        | {"features": inputs.features, "contents": {"train": keys}, "stop_after": epochs}
    )
    folder = out / fold.name
    known = read_whole_json(folder / CONFIG)
    if known is not None and not differences(known.get("made_by", {}), made_by):
        return folder
    if folder.exists():
        log.warning("refit starts again: it was trained with other data or settings")
        shutil.rmtree(folder)
    train = CaseList(cases, everyone)
    targets = recipe_targets(recipe, tasks, train)
    seed = fold_seed(recipe.seed, fold)
    model = initial_model(recipe, targets, seed=seed)
    nobody = CaseList(cases, ())
    fit(
        model,
        targets,
        train,
        nobody,
        recipe.training,
        seed=seed,
        balancing=recipe.balancing,
        stop_after=epochs,
    )
    from safetensors.torch import save_file

    config: dict[str, Any] = {
        "format": FORMAT,
        "fold": {"repeat": 0, "index": 0},
        "epochs": epochs,
        "best_epoch": epochs,
        "made_by": made_by,
        "made_with": environment(),
    }
    if frozen := frozen_digests(model):
        config["frozen"] = frozen
    with atomic_path(folder) as partial:
        partial.mkdir(parents=True)
        weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
        save_file(weights, partial / "model.safetensors")
        write_json(partial / "targets.json", targets.to_json())
        write_config(partial, config)
    return folder
