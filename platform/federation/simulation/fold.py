"""One federation of a plan: trained, evaluated on its test patients, and written to a folder.

``federated/<plan>/<repeat>-<index>/`` holds ``rounds/`` (checkpoints and audit log), ``targets.json``,
``predictions.parquet`` and, written last, ``facts.json``: the fingerprint, the history, and the manifests and
traffic of the clients. A folder with ``facts.json`` is complete and is not trained again.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equipoise.datasets.atomic_io import read_json, write_json
from equipoise.datasets.cohorts.splits import Fold
from equipoise.platform.federation.clients.study_trainer import ClientData
from equipoise.platform.federation.messages import ClientManifest
from equipoise.platform.federation.params import FREE
from equipoise.platform.federation.result import FederationResult
from equipoise.platform.federation.simulation.baselines import FoldInputs
from equipoise.platform.federation.simulation.clean_costs import clean_costs
from equipoise.platform.federation.simulation.plans import PlannedFold
from equipoise.platform.federation.simulation.simulation import Simulation, from_recipe
from equipoise.platform.federation.standardisation import federated_targets
from equipoise.platform.fingerprints import content_hash, fingerprint, require_same
from equipoise.platform.training.batches import CaseList, CaseSource
from equipoise.platform.training.crossval import fold_seed
from equipoise.platform.training.targets import Targets

if TYPE_CHECKING:
    import pandas as pd

    from equipoise.datasets.tables.tasks import Task
    from equipoise.platform.federation.params import FederationParams
    from equipoise.platform.federation.simulation.ray_backend import WorkerPool
    from equipoise.platform.training.params import Recipe

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
    metadata = read_json(folder / FACTS_FILE, None)
    if metadata is not None:
        require_same(
            metadata["made_by"],
            made_from,
            "this federation was trained with other settings or data",
            where=folder,
            fix="choose another folder with -o to keep both, or remove this one to start again",
        )
        return read_predictions(folder / PREDICTIONS_FILE)
    clients, targets = clients_and_targets(
        inputs.tasks, inputs.recipe, inputs.cases, parts, min_n=params.min_n
    )
    write_json(folder / "targets.json", targets.to_json())
    monitor = RoundMonitor(f"{planned.plan} {planned.fold.name}", targets, clients, inputs, folder / "rounds")
    simulation = from_recipe(
        inputs.recipe,
        targets,
        clients,
        params,
        seed=fold_seed(inputs.recipe.seed, planned.fold),
        folder=folder / "rounds",
        pool=pool,
        on_round=monitor,
    )
    monitor.simulation = simulation
    result = simulation.run()
    predictions = _predictions(inputs, targets, planned.fold, parts, result)
    write_predictions(predictions, folder / PREDICTIONS_FILE)
    metadata = {
        "made_by": made_from,
        "left_out": planned.left_out,
        "history": [row | monitor.rows.get(int(row["round"]), {}) for row in result.history],
        "clients": {name: _declared(manifest) for name, manifest in result.manifests.items()},
        "traffic": result.audit_log.totals(),
        "benched": sorted(result.excluded),
        "backend": result.backend,
        "workers": result.workers,
        "parameters": result.schema.size,
        "clean_costs": clean_costs(simulation, result) if params.evaluation.clean_costs else [],
    }
    write_json(folder / FACTS_FILE, _without_nan(metadata))
    return read_predictions(folder / PREDICTIONS_FILE)


def clients_and_targets(
    tasks: Sequence[Task], recipe: Recipe, cases: CaseSource, parts: Mapping[str, Fold], *, min_n: int
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
    min_n
        Fewest patients from which a scalar that leaves a client may be computed.
    """
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
        min_n=min_n,
    )
    return clients, targets


class RoundMonitor:
    """Called after every round: logs it, and evaluates the new weights on the clients' validation patients.

    A client answers with a loss per task, of at least ``min_n`` patients, as in training; the row holds their mean
    weighted by patients. Strategies that keep parameters at clients have no global weights to evaluate.
    """

    def __init__(
        self, name: str, targets: Targets, clients: Mapping[str, ClientData], inputs: FoldInputs, rounds: Path
    ) -> None:
        self.name, self.targets, self.clients, self.rounds = name, targets, clients, rounds
        self.ties = inputs.recipe.training.ties
        self.simulation: Simulation | None = None
        self.path = rounds / "validation.jsonl"
        # Rounds before an interruption.
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        self.rows: dict[int, dict[str, float]] = {
            int(row.pop("round")): row for row in map(json.loads, lines)
        }

    def __call__(self, row: dict[str, float]) -> None:
        """Evaluate and log one round."""
        number = int(row["round"])
        validation = self._validation(number)
        self.rows[number] = validation
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"round": number} | validation) + "\n")
        shown = {**row, **validation}
        log.info(
            "federate %s %s",
            self.name,
            " ".join(f"{key}={value:.4g}" for key, value in shown.items() if not math.isnan(value)),
        )

    def _validation(self, number: int) -> dict[str, float]:
        import torch
        from safetensors.numpy import load_file

        from equipoise.models.losses import TaskLosses
        from equipoise.platform.training.predict import run_model

        simulation = self.simulation
        if simulation is None or simulation.strategy.personal_mask(simulation.schema) is not None:
            return {}
        weights = load_file(self.rounds / f"round_{number:06d}" / "global.safetensors")
        model = simulation.factory()
        simulation.schema.load(model, simulation.schema.from_named(weights))
        losses = TaskLosses(self.targets.heads, self.targets.class_weights, ties=self.ties)
        sums: dict[str, list[tuple[float, float]]] = {}
        for data in self.clients.values():
            if data.val is None or len(data.val) < simulation.params.min_n:
                continue
            result = run_model(model, self.targets, data.val)
            with torch.inference_mode():
                seen = losses(result.outputs, result.targets, result.label_mask, result.cohort)
            for head, total, count in zip(self.targets.heads, seen.sums, seen.counts, strict=True):
                if count >= simulation.params.min_n:
                    sums.setdefault(head.name, []).append((float(total), float(count)))
        return {
            f"val/{task}": math.fsum(total for total, _ in pairs) / math.fsum(count for _, count in pairs)
            for task, pairs in sums.items()
        }


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
            "recipe": inputs.recipe.model_dump(mode="json"),
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
