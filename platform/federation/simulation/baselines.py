"""Baselines of a federation: pooled, local and ensemble training, through the one training loop.

``pooled`` trains on the patients of all sites together, the result that a federation tries to reach without moving
them; it is the fold of ``equipoise train``. ``local``: every site trains on its own patients. ``ensemble``: the
mean prediction of the local models, which needs one exchange of models and no round.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from equipoise.datasets.cohorts.splits import Fold
from equipoise.datasets.tables.tasks import Task
from equipoise.platform.errors import DataError, DataWarning
from equipoise.platform.evaluation.predictions import kind_of, read_predictions
from equipoise.platform.evaluation.thresholds import FOLD_KEYS, risk_scales, standardise_risks
from equipoise.platform.federation.simulation.plans import learnable, train_val_split
from equipoise.platform.training.crossval import TrainedFold, load_fold, train_fold
from equipoise.platform.training.params import BalancingParams

if TYPE_CHECKING:
    import pandas as pd

    from equipoise.platform.training.batches import CaseList, CaseSource
    from equipoise.platform.training.params import Recipe
    from equipoise.platform.training.predict import Role

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


#: Stands for every task in the reasons of :class:`LocalModels`.
EVERY_TASK = "all"


@dataclass(frozen=True)
class LocalModels:
    """Local models of a fold.

    Parameters
    ----------
    own
        Client → rows of its own test patients, and of its own validation patients (by which the ensemble scales
        risks).
    elsewhere
        Client → rows of the test patients of other sites and of external patients, for the ensemble.
    reasons
        Client → task, or :data:`EVERY_TASK` → why it has no local model.
    """

    own: dict[str, pd.DataFrame]
    elsewhere: dict[str, pd.DataFrame]
    reasons: dict[str, dict[str, str]]


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
    return _joined([read_predictions(folder / "preds.parquet"), _predicted_elsewhere(inputs, folder)])


def train_local(
    inputs: FoldInputs, fold: Fold, parts: Mapping[str, Fold], folder: Path, *, elsewhere: bool = True
) -> LocalModels:
    """A model per client, evaluated on the client's own test patients; for the ensemble it also predicts the others.

    A site splits its own training and validation patients again, stratified on a task that it can learn; tasks
    that it cannot learn alone are left out of its model. A patient whose modalities a model does not read gets no
    prediction by it.

    Parameters
    ----------
    fold
        The whole fold.
    parts
        Client → its part of the fold.
    folder
        Folder of the models, with a folder per client.
    elsewhere
        Whether the patients of other sites are predicted, too.
    """
    models = LocalModels({}, {}, {})
    table = inputs.patients.set_index("patient", drop=False)
    for client, part in parts.items():
        rows = table.loc[[*part.train, *part.val]].sort_index()
        tasks = tuple(task for task in inputs.tasks if learnable(task, rows))
        if reasons := {
            task.name: f"the task cannot be learned from the site's {len(rows)} patients alone"
            for task in inputs.tasks
            if task not in tasks
        }:
            models.reasons[client] = reasons
        if not tasks or len(rows) < 4:
            models.reasons[client] = {
                EVERY_TASK: f"{len(rows)} patients, "
                + ("from which no task can be learned" if not tasks else "too few to split")
            }
            continue
        leading = next((task for task in tasks if task.main), tasks[0])
        seed = [inputs.recipe.seed, fold.repeat, fold.index]
        train, val = train_val_split(rows, leading, inputs.inner_val, seed, child=_client_stream(client))
        local_fold = Fold(fold.repeat, fold.index, train, val, part.test)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DataWarning)  # expected at small sites
                path = train_fold(
                    local_fold, tasks, inputs.cases, inputs.recipe, folder / client_folder(client),
                    features=inputs.features, content_keys=inputs.content_keys,
                )  # fmt: skip
                models.own[client] = read_predictions(path / "preds.parquet")
                others = tuple(patient for patient in fold.test if patient not in set(part.test))
                if elsewhere:
                    models.elsewhere[client] = _predicted_elsewhere(inputs, path, others)
        except DataError as error:
            models.reasons[client] = {EVERY_TASK: error.what}
    for client, reasons in models.reasons.items():
        for task, reason in reasons.items():
            log.warning("federate: client %s has no local model of %s: %s", client, task, reason)
    return models


#: Penalised linear baseline → its share of L1.
L1_RATIOS = {"ridge": 0.0, "elastic_net": 0.5}


def train_linear(
    inputs: FoldInputs, fold: Fold, parts: Mapping[str, Fold], name: str, folder: Path
) -> tuple[pd.DataFrame, pd.DataFrame | None]:
    """Predictions of a penalised linear model of all patients together, and of one per site for its own patients."""
    changes = {"model": "elastic_net", "model_params": {"l1_ratio": L1_RATIOS[name]}}
    recipe = inputs.recipe.model_copy(update=changes | {"balancing": BalancingParams()})
    linear = dataclasses.replace(inputs, recipe=recipe)
    local = train_local(linear, fold, parts, folder / "local", elsewhere=False)
    return train_pooled(linear, fold, folder / "pooled"), own_predictions(local)


def own_predictions(models: LocalModels) -> pd.DataFrame | None:
    """Predictions for each test patient by the model of the patient's own site; None if no site has test patients."""
    import pandas as pd

    parts = [rows[rows["role"] == "test"] for rows in models.own.values()]
    table = pd.concat(parts, ignore_index=True) if parts else None
    return table if table is not None and len(table) else None


def ensemble_predictions(models: LocalModels) -> pd.DataFrame | None:
    """Mean score of the local models that have the task, for test and external patients.

    Log risks are first scaled by each model's own validation patients
    (:func:`~equipoise.platform.evaluation.thresholds.standardise_risks`); a model that ranks no patients there is
    left out.
    """
    import pandas as pd

    scaled = []
    for client, own in models.own.items():
        rows = pd.concat([own, models.elsewhere[client]], ignore_index=True)
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


def _predicted_elsewhere(inputs: FoldInputs, folder: Path, others: Sequence[str] = ()) -> pd.DataFrame:
    """Test rows of the other patients that the model of a finished fold can read, and external rows."""
    from equipoise.datasets.atomic_io import read_whole_json, write_json
    from equipoise.platform.evaluation.predictions import write_predictions
    from equipoise.platform.training.batches import CaseList
    from equipoise.platform.training.build import pick_device
    from equipoise.platform.training.fold_files import changed_file, file_hashes

    cached, cached_patients = folder / "federated_elsewhere.parquet", folder / "federated_elsewhere.json"
    external = inputs.external.patients
    wanted = {patient: inputs.content_keys[patient] for patient in (*others, *external)}
    made = read_whole_json(cached_patients) or {}
    if made.get("patients") != wanted or changed_file(folder, made.get("files", {cached.name: ""})):
        trained = load_fold(folder, pick_device(inputs.recipe.training.device))
        parts: list[tuple[CaseList, Role]] = [
            (_readable(CaseList(inputs.cases, tuple(others)), trained), "test"),
            (_readable(inputs.external, trained), "external"),
        ]
        tables = [trained.predict(cases, role) for cases, role in parts if len(cases)]
        empty = read_predictions(folder / "preds.parquet").iloc[:0]
        write_predictions(_joined(tables or [empty]), cached)
        write_json(cached_patients, {"patients": wanted, "files": file_hashes(folder, (cached.name,))})
    return read_predictions(cached)


def _readable(cases: CaseList, trained: TrainedFold) -> CaseList:
    """The cases with something that the model reads."""
    from equipoise.platform.training.batches import CaseList

    shape = trained.targets.shape
    kept = (
        case.patient
        for case in cases
        if (shape.features and len(case.bag)) or any(modality in case.omics for modality in shape.omics)
    )
    return CaseList(cases.source, tuple(kept))


def _joined(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    import pandas as pd

    return pd.concat(tables, ignore_index=True)


def _client_stream(client: str) -> int:
    return int(client_folder(client), 16) % 2**31
