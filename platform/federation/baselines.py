"""What a federation is set against: pooled, local and ensemble, through the one training loop.

``pooled`` trains where all patients lie in one place, which is what a federation tries to reach without moving them;
it is the fold that ``equipoise train`` makes. ``local``: every site trains on its own patients. ``ensemble``: the
mean of the local models, which needs one exchange of models and no round.
"""

from __future__ import annotations

import hashlib
import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from equipoise.datasets.splits import Fold
from equipoise.datasets.tasks import Task
from equipoise.platform.errors import DataError, DataWarning
from equipoise.platform.evaluation.decisions import FOLD, risk_scales, standardised
from equipoise.platform.evaluation.predictions import kind_of, read_predictions
from equipoise.platform.federation.plans import divide, learnable
from equipoise.platform.training.crossval import load_fold, train_fold

if TYPE_CHECKING:
    import pandas as pd

    from equipoise.platform.training.batches import CaseList, CaseSource
    from equipoise.platform.training.params import Recipe

log = logging.getLogger("equipoise")


@dataclass(frozen=True)
class Ground:
    """What all trainings of a fold share.

    Parameters
    ----------
    tasks, recipe
        Of the study.
    cases
        Reads development patients.
    external
        External patients.
    patients
        Columns patient and those of the tasks.
    features, contents
        Address of the feature store, and patient → digest of labels and slides, recorded with every fold.
    inner_val
        Share of a site's training patients that it validates on.
    """

    tasks: tuple[Task, ...]
    recipe: Recipe
    cases: CaseSource
    external: CaseList
    patients: pd.DataFrame
    features: str
    contents: Mapping[str, str]
    inner_val: float


@dataclass(frozen=True)
class LocalModels:
    """Local models of a fold.

    Parameters
    ----------
    predictions
        Client → rows of all test patients, of external ones, and of its own validation patients (which the
        ensemble scales risks by).
    reasons
        Client → why it has no model.
    """

    predictions: dict[str, pd.DataFrame]
    reasons: dict[str, str]


def pooled(ground: Ground, fold: Fold, folds: Path) -> pd.DataFrame:
    """Predictions of the model of all patients in one place; trains it unless it is there."""
    return _predicted(ground, train_fold(
        fold, ground.tasks, ground.cases, ground.recipe, folds, features=ground.features, contents=ground.contents
    ))  # fmt: skip


def local(ground: Ground, fold: Fold, parts: Mapping[str, Fold], folder: Path) -> LocalModels:
    """A model per client, each judged on all test patients.

    A site divides its own training and validation patients anew, stratified on a task that it can learn; tasks
    that it cannot learn alone are left out of its model.

    Parameters
    ----------
    fold
        The whole fold.
    parts
        Client → its part of the fold.
    folder
        Where models are kept, a folder per client.
    """
    predictions, reasons = {}, {}
    table = ground.patients.set_index("patient", drop=False)
    for client, part in parts.items():
        own = table.loc[[*part.train, *part.val]].sort_index()
        tasks = tuple(task for task in ground.tasks if learnable(task, own))
        if not tasks or len(own) < 4:
            reasons[client] = f"{len(own)} patients, and no task that they alone can teach" if not tasks else (
                f"{len(own)} patients are too few to divide"
            )  # fmt: skip
            continue
        leading = next((task for task in tasks if task.main), tasks[0])
        seed = [ground.recipe.seed, fold.repeat, fold.index]
        train, val = divide(own, leading, ground.inner_val, seed, child=_number(client))
        alone = Fold(fold.repeat, fold.index, train, val, fold.test)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DataWarning)  # of a small site they are no news
                place = train_fold(
                    alone, tasks, ground.cases, ground.recipe, folder / client_folder(client),
                    features=ground.features, contents=ground.contents,
                )  # fmt: skip
                predictions[client] = _predicted(ground, place)
        except DataError as error:
            reasons[client] = error.what
    for client, reason in reasons.items():
        log.warning("federate: client %s has no local model: %s", client, reason)
    return LocalModels(predictions, reasons)


def own_predictions(models: LocalModels, parts: Mapping[str, Fold]) -> pd.DataFrame | None:
    """Each test patient judged by the model of the patient's own site; None if no site has any."""
    import pandas as pd

    found = []
    for client, rows in models.predictions.items():
        mine = set(parts[client].test)
        found.append(rows[(rows["role"] == "test") & rows["patient"].isin(mine)])
    table = pd.concat(found, ignore_index=True) if found else None
    return table if table is not None and len(table) else None


def ensemble(models: LocalModels) -> pd.DataFrame | None:
    """Mean score of the local models of those that know the task, over test and external patients.

    Log risks are first brought to the units of each model's own validation patients
    (:func:`~equipoise.platform.evaluation.decisions.standardised`); a model that orders nobody there is left out.
    """
    import pandas as pd

    scaled = []
    for rows in models.predictions.values():
        for _, of_task in rows.groupby("task", sort=False):
            judged = of_task[of_task["role"] != "val"]
            if kind_of(of_task) == "survival":
                judged = standardised(judged, risk_scales(of_task))
            scaled.append(judged)
    table = pd.concat(scaled, ignore_index=True) if scaled else None
    if table is None or table.empty:
        return None
    keys = ["patient", *FOLD, "role", "task", "class"]
    first = table.drop_duplicates(keys).set_index(keys)
    first["score"] = table.groupby(keys)["score"].mean()
    return first.reset_index()[list(table.columns)]


def client_folder(client: str) -> str:
    """A folder name for any client: names of hospitals hold blanks, commas and slashes."""
    return hashlib.blake2b(client.encode(), digest_size=6).hexdigest()


def _predicted(ground: Ground, folder: Path) -> pd.DataFrame:
    """Validation, test and external rows of a finished fold."""
    import pandas as pd

    from equipoise.datasets.whole_files import read_json, write_json
    from equipoise.platform.evaluation.predictions import write_predictions
    from equipoise.platform.training.build import pick_device

    parts = [read_predictions(folder / "preds.parquet")]
    if len(ground.external):
        kept, made_for = folder / "federated_external.parquet", folder / "federated_external.json"
        wanted = {"patients": {patient: ground.contents[patient] for patient in ground.external.patients}}
        if read_json(made_for) != wanted:
            trained = load_fold(folder, pick_device(ground.recipe.training.device))
            write_predictions(trained.predict(ground.external, "external"), kept)
            write_json(made_for, wanted)
        parts.append(read_predictions(kept))
    return pd.concat(parts, ignore_index=True)


def _number(client: str) -> int:
    return int(client_folder(client), 16) % 2**31
