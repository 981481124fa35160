"""Baselines of a federation: pooled, local and ensemble training, through the one training loop.

``pooled`` trains on the patients of all sites together, the result that a federation tries to reach without moving
them; it is the fold of ``equipoise train``. ``local``: every site trains on its own patients. ``ensemble``: the
mean prediction of the local models, which needs one exchange of models and no round.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from equipoise.datasets.cohorts.splits import Fold
from equipoise.datasets.tables.tasks import Task
from equipoise.platform.errors import DataError, DataWarning
from equipoise.platform.evaluation.predictions import kind_of, read_predictions
from equipoise.platform.evaluation.thresholds import FOLD_KEYS, risk_scales, standardise_risks
from equipoise.platform.federation.simulation.plans import learnable, train_val_split
from equipoise.platform.training.crossval import load_fold, train_fold

if TYPE_CHECKING:
    import pandas as pd

    from equipoise.platform.training.batches import CaseList, CaseSource
    from equipoise.platform.training.params import Recipe

log = logging.getLogger("equipoise")


@dataclass(frozen=True)
class FoldInputs:
    """Inputs that all trainings of a fold share.

    Parameters
    ----------
    tasks, recipe
        Of the study.
    cases
        Cases of the development patients.
    external
        Cases of the external patients.
    patients
        Table with the column ``patient`` and those of the tasks.
    features, content_keys
        Address of the feature store, and patient → content hash of labels and slides, recorded with every fold.
    inner_val
        Share of a site's training patients used for inner validation.
    """

    tasks: tuple[Task, ...]
    recipe: Recipe
    cases: CaseSource
    external: CaseList
    patients: pd.DataFrame
    features: str
    content_keys: Mapping[str, str]
    inner_val: float


@dataclass(frozen=True)
class LocalModels:
    """Local models of a fold.

    Parameters
    ----------
    predictions
        Client → rows of all test patients, of external ones, and of its own validation patients (by
        which the ensemble scales risks).
    reasons
        Client → why it has no local model.
    """

    predictions: dict[str, pd.DataFrame]
    reasons: dict[str, str]


def train_pooled(inputs: FoldInputs, fold: Fold, folds: Path) -> pd.DataFrame:
    """Predictions of the model trained on all patients together; it is trained unless it exists."""
    folder = train_fold(
        fold,
        inputs.tasks,
        inputs.cases,
        inputs.recipe,
        folds,
        features=inputs.features,
        content_keys=inputs.content_keys,
    )
    return _predicted(inputs, folder)


def train_local(inputs: FoldInputs, fold: Fold, parts: Mapping[str, Fold], folder: Path) -> LocalModels:
    """A model per client, each evaluated on all test patients.

    A site splits its own training and validation patients again, stratified on a task that it can learn; tasks
    that it cannot learn alone are left out of its model.

    Parameters
    ----------
    fold
        The whole fold.
    parts
        Client → its part of the fold.
    folder
        Folder of the models, with a folder per client.
    """
    predictions, reasons = {}, {}
    table = inputs.patients.set_index("patient", drop=False)
    for client, part in parts.items():
        rows = table.loc[[*part.train, *part.val]].sort_index()
        tasks = tuple(task for task in inputs.tasks if learnable(task, rows))
        if not tasks or len(rows) < 4:
            reasons[client] = f"{len(rows)} patients, from which no task can be learned" if not tasks else (
                f"{len(rows)} patients are too few to split"
            )  # fmt: skip
            continue
        leading = next((task for task in tasks if task.main), tasks[0])
        seed = [inputs.recipe.seed, fold.repeat, fold.index]
        train, val = train_val_split(rows, leading, inputs.inner_val, seed, child=_client_stream(client))
        local_fold = Fold(fold.repeat, fold.index, train, val, fold.test)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DataWarning)  # expected at small sites
                path = train_fold(
                    local_fold, tasks, inputs.cases, inputs.recipe, folder / client_folder(client),
                    features=inputs.features, content_keys=inputs.content_keys,
                )  # fmt: skip
                predictions[client] = _predicted(inputs, path)
        except DataError as error:
            reasons[client] = error.what
    for client, reason in reasons.items():
        log.warning("federate: client %s has no local model: %s", client, reason)
    return LocalModels(predictions, reasons)


def own_predictions(models: LocalModels, parts: Mapping[str, Fold]) -> pd.DataFrame | None:
    """Predictions for each test patient by the model of the patient's own site; None if no site has test patients."""
    import pandas as pd

    parts_of_sites = []
    for client, rows in models.predictions.items():
        test_patients = set(parts[client].test)
        parts_of_sites.append(rows[(rows["role"] == "test") & rows["patient"].isin(test_patients)])
    table = pd.concat(parts_of_sites, ignore_index=True) if parts_of_sites else None
    return table if table is not None and len(table) else None


def ensemble_predictions(models: LocalModels) -> pd.DataFrame | None:
    """Mean score of the local models that have the task, for test and external patients.

    Log risks are first scaled by each model's own validation patients
    (:func:`~equipoise.platform.evaluation.thresholds.standardise_risks`); a model that ranks no patients there is
    left out.
    """
    import pandas as pd

    scaled = []
    for rows in models.predictions.values():
        for _, of_task in rows.groupby("task", sort=False):
            rows_of_task = of_task[of_task["role"] != "val"]
            if kind_of(of_task) == "survival":
                rows_of_task = standardise_risks(rows_of_task, risk_scales(of_task))
            scaled.append(rows_of_task)
    table = pd.concat(scaled, ignore_index=True) if scaled else None
    if table is None or table.empty:
        return None
    keys = ["patient", *FOLD_KEYS, "role", "task", "class"]
    first = table.drop_duplicates(keys).set_index(keys)
    first["score"] = table.groupby(keys)["score"].mean()
    return first.reset_index()[list(table.columns)]


def client_folder(client: str) -> str:
    """A folder name for any client: names of hospitals hold blanks, commas and slashes."""
    return hashlib.blake2b(client.encode(), digest_size=6).hexdigest()


def _predicted(inputs: FoldInputs, folder: Path) -> pd.DataFrame:
    """Validation, test and external rows of a finished fold."""
    import pandas as pd

    from equipoise.datasets.atomic_io import read_json, write_json
    from equipoise.platform.evaluation.predictions import write_predictions
    from equipoise.platform.training.build import pick_device

    parts = [read_predictions(folder / "preds.parquet")]
    if len(inputs.external):
        cached, cached_patients = folder / "federated_external.parquet", folder / "federated_external.json"
        wanted = {"patients": {patient: inputs.content_keys[patient] for patient in inputs.external.patients}}
        if read_json(cached_patients) != wanted:
            trained = load_fold(folder, pick_device(inputs.recipe.training.device))
            write_predictions(trained.predict(inputs.external, "external"), cached)
            write_json(cached_patients, wanted)
        parts.append(read_predictions(cached))
    return pd.concat(parts, ignore_index=True)


def _client_stream(client: str) -> int:
    return int(client_folder(client), 16) % 2**31
