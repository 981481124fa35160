"""One federation of a plan: trained, judged on its test patients, and kept in a folder.

``federated/<plan>/<repeat>-<index>/`` holds ``rounds/`` (checkpoints and ledger), ``targets.json``,
``predictions.parquet`` and, written last, ``facts.json``: what it was made by, the history, what clients declared and
sent. A folder with facts is finished and is not trained again.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equipoise.datasets.splits import Fold
from equipoise.datasets.whole_files import read_json, write_json
from equipoise.platform.errors import StudyError
from equipoise.platform.federation.baselines import Ground
from equipoise.platform.federation.clean_costs import clean_costs
from equipoise.platform.federation.engine import Federation, FederationResult, from_recipe
from equipoise.platform.federation.local import ClientData
from equipoise.platform.federation.params import FREE
from equipoise.platform.federation.plans import PlannedFold
from equipoise.platform.federation.standardise import federated_targets
from equipoise.platform.training.batches import CaseList, CaseSource
from equipoise.platform.training.checkpoint import differences, digest
from equipoise.platform.training.crossval import fold_seed
from equipoise.platform.training.targets import Targets

if TYPE_CHECKING:
    import pandas as pd

    from equipoise.datasets.tasks import Task
    from equipoise.platform.federation.on_ray import Crew
    from equipoise.platform.federation.params import FederationParams
    from equipoise.platform.training.params import Recipe

log = logging.getLogger("equipoise")

FACTS, PREDICTIONS = "facts.json", "predictions.parquet"


def federate_fold(
    ground: Ground,
    planned: PlannedFold,
    parts: Mapping[str, Fold],
    params: FederationParams,
    folder: Path,
    *,
    crew: Crew | None = None,
) -> pd.DataFrame:
    """Train a federation, unless it is there already, and give its predictions.

    Parameters
    ----------
    ground
        Tasks, recipe, cases.
    planned
        Which fold of which plan.
    parts
        Client → its patients.
    params
        The ``federation`` section.
    folder
        Where it is kept.
    crew
        Workers on Ray that several federations share.

    Returns
    -------
    Rows of the predictions table: every client's validation and test patients by the model it predicts with,
    patients of no client and external ones by the global model.

    Raises
    ------
    StudyError
        If the folder was made by other settings, patients or features.
    """
    from equipoise.platform.evaluation.predictions import read_predictions, write_predictions

    made_by = _made_by(ground, planned, parts, params)
    facts = read_json(folder / FACTS, None)
    if facts is not None:
        if differ := differences(facts["made_by"], made_by):
            raise StudyError(
                f"this federation was trained otherwise: {'; '.join(differ[:5])}",
                where=str(folder),
                fix="-o another folder keeps both; removing this one begins anew",
            )
        return read_predictions(folder / PREDICTIONS)
    clients, targets = members_of(ground.tasks, ground.recipe, ground.cases, parts, min_n=params.min_n)
    write_json(folder / "targets.json", targets.to_json())
    watch = Watch(f"{planned.plan} {planned.fold.name}", targets, clients, ground, folder / "rounds")
    federation = from_recipe(
        ground.recipe,
        targets,
        clients,
        params,
        seed=fold_seed(ground.recipe.seed, planned.fold),
        folder=folder / "rounds",
        crew=crew,
        on_round=watch,
    )
    watch.federation = federation
    result = federation.run()
    predictions = _predictions(ground, planned.fold, parts, result)
    write_predictions(predictions, folder / PREDICTIONS)
    facts = {
        "made_by": made_by,
        "left_out": planned.left_out,
        "history": [row | watch.rows.get(int(row["round"]), {}) for row in result.history],
        "clients": {name: manifest.to_json() for name, manifest in result.manifests.items()},
        "traffic": result.ledger.totals(),
        "benched": sorted(result.benched),
        "backend": result.backend,
        "workers": result.workers,
        "parameters": result.schema.size,
        "clean_costs": clean_costs(federation, result) if params.evaluation.clean_costs else [],
    }
    write_json(folder / FACTS, _plain(facts))
    return read_predictions(folder / PREDICTIONS)


def members_of(
    tasks: Sequence[Task], recipe: Recipe, cases: CaseSource, parts: Mapping[str, Fold], *, min_n: int
) -> tuple[dict[str, ClientData], Targets]:
    """Clients of a fold with their training and validation patients, and targets from sums that they send.

    Parameters
    ----------
    tasks, recipe
        Of the study.
    cases
        Where patients are read.
    parts
        Client → its patients.
    min_n
        Fewest patients behind a scalar that leaves a client.
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


class Watch:
    """Called after every round: logs it, and asks the clients how well the new weights fit their validation patients.

    A client answers with a loss per task, of at least ``min_n`` patients, as it does in training; the row holds their
    mean by patients. Strategies that keep parameters at clients have no weights that one could ask about.
    """

    def __init__(
        self, name: str, targets: Targets, clients: Mapping[str, ClientData], ground: Ground, rounds: Path
    ) -> None:
        self.name, self.targets, self.clients, self.rounds = name, targets, clients, rounds
        self.ties = ground.recipe.training.ties
        self.federation: Federation | None = None
        self.path = rounds / "validation.jsonl"
        # Rounds of an earlier, interrupted part.
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.exists() else []
        self.rows: dict[int, dict[str, float]] = {
            int(row.pop("round")): row for row in map(json.loads, lines)
        }

    def __call__(self, row: dict[str, float]) -> None:
        """One round."""
        number = int(row["round"])
        found = self._validation(number)
        self.rows[number] = found
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"round": number} | found) + "\n")
        shown = {**row, **found}
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

        federation = self.federation
        if federation is None or federation.setup.strategy.kept(federation.schema) is not None:
            return {}
        weights = load_file(self.rounds / f"round_{number:06d}" / "global.safetensors")
        model = federation.factory()
        federation.schema.load(model, federation.schema.from_named(weights))
        losses = TaskLosses(self.targets.heads, self.targets.class_weights, ties=self.ties)
        sums: dict[str, list[tuple[float, float]]] = {}
        for data in self.clients.values():
            if data.val is None or len(data.val) < federation.params.min_n:
                continue
            result = run_model(model, self.targets, data.val)
            with torch.inference_mode():
                seen = losses(result.outputs, result.targets, result.label_mask)
            for head, total, count in zip(self.targets.heads, seen.sums, seen.counts, strict=True):
                if count >= federation.params.min_n:
                    sums.setdefault(head.name, []).append((float(total), float(count)))
        return {
            f"val/{task}": math.fsum(total for total, _ in own) / math.fsum(count for _, count in own)
            for task, own in sums.items()
        }


def _predictions(
    ground: Ground, fold: Fold, parts: Mapping[str, Fold], result: FederationResult
) -> pd.DataFrame:
    import pandas as pd

    from equipoise.platform.training.build import pick_device
    from equipoise.platform.training.predict import Role, predict

    device = pick_device(ground.recipe.training.device)
    tables = []

    def judge(model: Any, cases: CaseList, role: Role) -> None:
        if len(cases):
            tables.append(
                predict(
                    model.to(device), result.targets, cases, role=role, repeat=fold.repeat, fold=fold.index
                )
            )

    for client, part in parts.items():
        model = result.personal_model(client)
        judge(model, CaseList(ground.cases, part.val), "val")
        judge(model, CaseList(ground.cases, part.test), "test")
    owned = {patient for part in parts.values() for patient in (*part.val, *part.test)}
    rest: Sequence[tuple[Role, tuple[str, ...]]] = (("val", fold.val), ("test", fold.test))
    for role, members in rest:
        judge(result.model, CaseList(ground.cases, tuple(p for p in members if p not in owned)), role)
    judge(result.model, ground.external, "external")
    return pd.concat(tables, ignore_index=True)


def _made_by(
    ground: Ground, planned: PlannedFold, parts: Mapping[str, Fold], params: FederationParams
) -> dict[str, Any]:
    """Everything that the weights and predictions are a function of, as plain data."""
    text: Callable[[Sequence[str]], str] = lambda who: digest([f"{p}: {ground.contents[p]}" for p in who])  # noqa: E731
    return json.loads(
        json.dumps(
            {
                "federation": params.model_dump(mode="json", exclude=set(FREE)),
                "recipe": ground.recipe.model_dump(mode="json"),
                "features": ground.features,
                "clients": {
                    name: [text(part.train), text(part.val), text(part.test)] for name, part in parts.items()
                },
                "test": text(planned.fold.test),
                "external": text(ground.external.patients),
            }
        )
    )


def _plain(value: Any) -> Any:
    """The same without NaN, which JSON does not know."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
