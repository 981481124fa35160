"""One federation of a plan: trained, evaluated on its test patients, and written to a folder.

``federated/<plan>/<repeat>-<index>/`` holds ``rounds/`` (checkpoints and audit log), ``targets.json``,
``predictions.parquet`` and, written last, ``facts.json``: the fingerprint, the history, and the manifests and
traffic of the clients. A folder with ``facts.json`` is complete and is not trained again.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equipoise.datasets.atomic_io import read_json, read_whole_json, write_json
from equipoise.datasets.cohorts.splits import Fold
from equipoise.models.base import MultiTaskModel
from equipoise.platform.federation.clients.study_trainer import ClientData
from equipoise.platform.federation.clients.validation import SiteValidation
from equipoise.platform.federation.messages import ClientManifest
from equipoise.platform.federation.params import FREE, OF_RECIPE, merged
from equipoise.platform.federation.privacy.params import NoisedStatistics
from equipoise.platform.federation.result import FederationResult
from equipoise.platform.federation.simulation.baselines import FoldInputs
from equipoise.platform.federation.simulation.clean_costs import clean_costs
from equipoise.platform.federation.simulation.plans import PlannedFold
from equipoise.platform.federation.simulation.simulation import Simulation, from_recipe
from equipoise.platform.federation.standardisation import federated_targets
from equipoise.platform.fingerprints import content_hash, fingerprint, require_same
from equipoise.platform.progress import ProgressBar
from equipoise.platform.training.batches import CaseList, CaseSource
from equipoise.platform.training.crossval import fold_seed
from equipoise.platform.training.fold_files import changed_file, file_hashes
from equipoise.platform.training.start import recipe_record
from equipoise.platform.training.targets import Targets

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from equipoise.datasets.tables.tasks import Task
    from equipoise.platform.federation.params import FederationParams
    from equipoise.platform.federation.simulation.ray_backend import WorkerPool
    from equipoise.platform.training.params import Recipe, TrainingParams

log = logging.getLogger("equipoise")

FACTS_FILE, PREDICTIONS_FILE = "facts.json", "predictions.parquet"


def federate_fold(
    inputs: FoldInputs,
    planned: PlannedFold,
    parts: Mapping[str, Fold],
    params: FederationParams,
    folder: Path,
    *,
    pool: WorkerPool | None = None,
) -> pd.DataFrame:
    """Train a federation, unless it is complete already, and return its predictions.

    Parameters
    ----------
    inputs
        Tasks, recipe, cases.
    planned
        The fold and its plan.
    parts
        Client → its patients.
    params
        The ``federation`` section.
    folder
        Its folder.
    pool
        Workers on Ray that several federations share.

    Returns
    -------
    Rows of the predictions table: validation and test patients of every client by the model the client predicts
    with, patients of no client and external ones by the global model.

    Raises
    ------
    StudyError
        If the folder belongs to other settings, patients or features.
    """
    from equipoise.platform.evaluation.predictions import read_predictions, write_predictions

    made_from = _fingerprint(inputs, planned, parts, params)
    metadata = read_whole_json(folder / FACTS_FILE)
    if metadata is None and (folder / FACTS_FILE).exists():
        _warn_of_damage(planned, f"{FACTS_FILE} is damaged")
    elif metadata is not None and (problem := changed_file(folder, metadata.get("files", {}))):
        _warn_of_damage(planned, problem)
        metadata = None
    if metadata is not None:
        require_same(
            metadata["made_by"],
            made_from,
            "this federation was trained with other settings or data",
            where=folder,
            fix="choose another folder with -o to keep both, or remove this one to start again",
        )
        return read_predictions(folder / PREDICTIONS_FILE)
    prepared: dict[str, tuple[dict[str, ClientData], Targets]] = {}
    trained = []
    for name, variant, recipe in variants_of(params, inputs.recipe):
        key, seed = recipe.model_dump_json(), fold_seed(recipe.seed, planned.fold)
        if key not in prepared:
            prepared[key] = clients_and_targets(inputs.tasks, recipe, inputs.cases, parts, params, seed=seed)
        path, label = folder / name, f"{planned.plan} {planned.fold.name} {name}"
        trained.append(_train(prepared[key], variant, recipe, seed, path, label, pool))
    chosen = min(range(len(trained)), key=lambda i: (trained[i].monitor, i))
    if len(trained) > 1 and math.isinf(trained[chosen].monitor):
        log.warning(
            "federate %s %s: no site has %d validation patients with a label, so that nothing can be chosen: the first "
            "candidate is used",
            planned.plan, planned.fold.name, params.min_n,
        )  # fmt: skip
    simulation, result, targets = trained[chosen].simulation, trained[chosen].result, trained[chosen].targets
    write_json(folder / "targets.json", targets.to_json())
    predictions = _predictions(inputs, targets, planned.fold, parts, result)
    write_predictions(predictions, folder / PREDICTIONS_FILE)
    metadata = {
        "made_by": made_from,
        "files": file_hashes(folder, (PREDICTIONS_FILE, "targets.json")),
        "left_out": planned.left_out,
        "history": list(result.history),
        "kept_round": result.kept_round,
        "candidates": [
            {"settings": candidate, "monitor": one.monitor, "kept_round": one.result.kept_round}
            for candidate, one in zip(params.candidates, trained, strict=bool(params.candidates))
        ],
        "chosen": chosen if params.candidates else None,
        "clients": {name: _declared(manifest) for name, manifest in result.manifests.items()},
        "traffic": _all_traffic([one.result for one in trained]),
        "benched": sorted(result.excluded),
        "backend": result.backend,
        "workers": result.workers,
        "parameters": result.schema.size,
        "clean_costs": clean_costs(simulation, result) if params.evaluation.clean_costs else [],
        "optimum": _distances(
            inputs, trained[chosen], chosen_recipe_of(params, inputs.recipe, chosen), parts, planned
        ),
        "withheld": result.audit_log.withheld(),
        "privacy": simulation.privacy.state_dict(),
    }
    write_json(folder / FACTS_FILE, _without_nan(metadata))
    return read_predictions(folder / PREDICTIONS_FILE)


def _warn_of_damage(planned: PlannedFold, problem: str) -> None:
    log.warning("federate %s %s goes on from its last round: %s", planned.plan, planned.fold.name, problem)


@dataclass(frozen=True)
class TrainedFederation:
    """A federation and what the sites' inner validation patients say of the models that they predict with."""

    simulation: Simulation
    result: FederationResult
    targets: Targets
    monitor: float


def variants_of(params: FederationParams, recipe: Recipe) -> list[tuple[str, FederationParams, Recipe]]:
    """Name of a folder, section and recipe of every candidate; those of the study if there is none."""
    if not params.candidates:
        return [("rounds", params, recipe)]
    return [
        (f"candidate-{i}", params.variant(candidate), recipe_with(recipe, candidate))
        for i, candidate in enumerate(params.candidates)
    ]


def recipe_with(recipe: Recipe, candidate: Mapping[str, Any]) -> Recipe:
    """The recipe with the settings of a candidate that are not of the federation."""
    changes = {key: candidate[key] for key in OF_RECIPE if key in candidate}
    return type(recipe).model_validate(merged(recipe.model_dump(mode="json"), changes)) if changes else recipe


def chosen_recipe_of(params: FederationParams, recipe: Recipe, chosen: int) -> Recipe:
    """The recipe with the settings of the chosen candidate; itself without candidates."""
    return recipe_with(recipe, params.candidates[chosen]) if params.candidates else recipe


def chosen_recipe(params: FederationParams, recipe: Recipe, folder: Path) -> Recipe:
    """The recipe that a finished federation has chosen, for its baselines."""
    chosen = read_json(folder / FACTS_FILE, {}).get("chosen")
    return recipe if chosen is None else recipe_with(recipe, params.candidates[chosen])


def _train(
    prepared: tuple[dict[str, ClientData], Targets],
    params: FederationParams,
    recipe: Recipe,
    seed: int,
    folder: Path,
    label: str,
    pool: WorkerPool | None,
) -> TrainedFederation:
    """Train one federation; its folder has the checkpoints from which it resumes."""
    clients, targets = prepared
    rounds = params.in_training(recipe.training).rounds or 0
    bar = ProgressBar(f"federate {label}", rounds, unit="rounds")
    simulation = from_recipe(
        recipe,
        targets,
        clients,
        params,
        seed=seed,
        folder=folder,
        pool=pool,
        on_round=lambda row: bar.update(int(row["round"]), _figures(row)),
    )
    validation = validate_in_rounds(simulation, recipe.training)
    with bar:
        result = simulation.run()
    monitor = math.inf
    if validation is not None:
        seen = validation.monitor(result.personal_model)
        monitor = seen.get("monitor", math.inf)
    return TrainedFederation(simulation, result, targets, monitor)


def _all_traffic(results: Sequence[FederationResult]) -> dict[str, dict[str, int]]:
    """Bytes and verdicts of every client over all candidates."""
    total: dict[str, Counter[str]] = {}
    for result in results:
        for client, counts in result.audit_log.totals().items():
            total.setdefault(client, Counter()).update(counts)
    return {client: dict(counts) for client, counts in total.items()}


def clients_and_targets(
    tasks: Sequence[Task],
    recipe: Recipe,
    cases: CaseSource,
    parts: Mapping[str, Fold],
    params: FederationParams,
    *,
    seed: int,
) -> tuple[dict[str, ClientData], Targets]:
    """The clients of a fold with their training and validation patients, and targets from sums that they send.

    Parameters
    ----------
    tasks, recipe
        Of the study.
    cases
        Cases of all patients.
    parts
        Client → its patients.
    params
        The ``federation`` section: whose sums are used, and whether noise is on them.
    seed
        Of that noise.
    """
    statistics = params.privacy.statistics
    clients = {
        name: ClientData(CaseList(cases, part.train), CaseList(cases, part.val))
        for name, part in parts.items()
    }
    targets = federated_targets(
        tasks,
        {name: data.train for name, data in clients.items()},
        class_weights=recipe.training.class_weights,
        scaling=recipe.training.target_scaling,
        tables=recipe.tables,
        text=recipe.training.text,
        presence=recipe.needs_presence,
        min_n=params.min_n,
        noised=statistics if isinstance(statistics, NoisedStatistics) else None,
        seed=seed,
    )
    return clients, targets


def _figures(row: Mapping[str, float]) -> str:
    """What a round's row of the history says, as text."""
    shown = {key: value for key, value in row.items() if key != "round" and not math.isnan(value)}
    return " ".join(f"{key}={value:.4g}" for key, value in shown.items())


def validate_in_rounds(simulation: Simulation, training: TrainingParams) -> SiteValidation | None:
    """Let the sites' inner validation patients judge every round of a simulation; returns who asks them.

    Not under differential privacy, where nothing leaves a site without noise. Strategies that keep parameters at the
    clients have no global weights to ask about in a round.
    """
    if simulation.params.privacy.differential:
        return None
    validation = SiteValidation(
        simulation.targets, simulation.client_data, training, min_n=simulation.params.min_n
    )
    if simulation.strategy.personal_mask(simulation.schema) is None:
        model = simulation.factory()

        def validate(vector: np.ndarray) -> dict[str, float]:
            simulation.schema.load(model, vector)
            return validation.monitor(lambda client: model)

        simulation.validate = validate
    return validation


def _distances(
    inputs: FoldInputs,
    trained: TrainedFederation,
    recipe: Recipe,
    parts: Mapping[str, Fold],
    planned: PlannedFold,
) -> dict[str, dict[str, float]]:
    """Task → how far the global weights of a linear model are from the optimum on the pooled training patients.

    Only a simulation can tell, as it can train the pooled baseline; nothing of it enters the federation.
    """
    from equipoise.platform.training.exact import distances, is_convex

    model = trained.result.model
    if not is_convex(recipe) or not isinstance(model, MultiTaskModel):
        return {}
    train, val = (
        CaseList(inputs.cases, tuple(patient for part in parts.values() for patient in getattr(part, name)))
        for name in ("train", "val")
    )
    found = distances(model, trained.targets, train, val, recipe, seed=fold_seed(recipe.seed, planned.fold))
    return {task: asdict(distance) for task, distance in found.items()}


def _predictions(
    inputs: FoldInputs, targets: Targets, fold: Fold, parts: Mapping[str, Fold], result: FederationResult
) -> pd.DataFrame:
    import pandas as pd

    from equipoise.platform.training.build import pick_device
    from equipoise.platform.training.predict import Role, predict

    device = pick_device(inputs.recipe.training.device)
    tables = []

    def add_predictions(model: Any, cases: CaseList, role: Role) -> None:
        if len(cases):
            rows = predict(model.to(device), targets, cases, role=role, repeat=fold.repeat, fold=fold.index)
            tables.append(rows)

    for client, part in parts.items():
        model = result.personal_model(client)
        add_predictions(model, CaseList(inputs.cases, part.val), "val")
        add_predictions(model, CaseList(inputs.cases, part.test), "test")
    owned = {patient for part in parts.values() for patient in (*part.val, *part.test)}
    parts_of_fold: Sequence[tuple[Role, tuple[str, ...]]] = (("val", fold.val), ("test", fold.test))
    for role, patients in parts_of_fold:
        add_predictions(
            result.model, CaseList(inputs.cases, tuple(p for p in patients if p not in owned)), role
        )
    add_predictions(result.model, inputs.external, "external")
    return pd.concat(tables, ignore_index=True)


def _declared(manifest: ClientManifest) -> dict[str, Any]:
    """What a client says about its patients; the batch is a setting."""
    return {key: value for key, value in manifest.to_json().items() if key != "batch"}


def _fingerprint(
    inputs: FoldInputs, planned: PlannedFold, parts: Mapping[str, Fold], params: FederationParams
) -> dict[str, Any]:
    """Everything that determines the weights and predictions, as plain data."""

    def digest_of(patients: Sequence[str]) -> str:
        return content_hash(f"{p}: {inputs.content_keys[p]}" for p in patients)

    return fingerprint(
        {
            "federation": params.model_dump(mode="json", exclude=set(FREE)),
            "recipe": recipe_record(inputs.recipe),
            "features": inputs.features,
            "clients": {
                name: [digest_of(part.train), digest_of(part.val), digest_of(part.test)]
                for name, part in parts.items()
            },
            "test": digest_of(planned.fold.test),
            "external": digest_of(inputs.external.patients),
        }
    )


def _without_nan(value: Any) -> Any:
    """The value with None in place of NaN, which JSON does not have."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value
