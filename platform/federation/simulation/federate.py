"""The step ``federate`` of a run: every plan's federations and baselines, and the tables the report reads.

``federated/`` of the run folder holds ``<plan>/<fold>/`` per federation
(:mod:`~equipoise.platform.federation.simulation.fold`),
``<plan>/pooled`` and ``<plan>/local`` with the baselines' models, ``predictions/<plan>/<method>.parquet``,
``rounds.jsonl`` (a line per plan, fold and round), ``sites.csv``
(:mod:`~equipoise.platform.federation.simulation.evaluation`),
``traffic.csv`` (bytes and verdicts per client) and ``setting.json`` (clients, notes, settings, costs of server
aggregations).
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equipoise.datasets.atomic_io import atomic_path, read_json, write_json, write_text
from equipoise.platform.federation.privacy.accountant import together
from equipoise.platform.federation.privacy.statement import PrivacySpending, privacy_statement
from equipoise.platform.federation.simulation.baselines import (
    EVERY_TASK,
    FoldInputs,
    ensemble_predictions,
    own_predictions,
    train_linear,
    train_local,
    train_pooled,
)
from equipoise.platform.federation.simulation.evaluation import PlanPredictions, site_table
from equipoise.platform.federation.simulation.fold import FACTS_FILE, chosen_recipe, federate_fold
from equipoise.platform.federation.simulation.plans import PlannedFold, planned_folds
from equipoise.platform.federation.simulation.sites import (
    Client,
    assign_clients,
    check_no_overlap,
    guard_institutions,
    institutions_of,
)
from equipoise.platform.training.batches import CaseList

if TYPE_CHECKING:
    import pandas as pd

    from equipoise.platform.cluster.params import RayOptions
    from equipoise.platform.federation.params import FederationParams
    from equipoise.platform.federation.simulation.ray_backend import WorkerPool
    from equipoise.platform.study.schema import Study
    from equipoise.platform.training.inputs import StudyInputs

log = logging.getLogger("equipoise")

#: Columns of ``federated/traffic.csv``.
TRAFFIC = ("plan", "fold", "client", "bytes", "accepted", "quarantined", "failed", "late", "benched")


def federate(study: Study, params: FederationParams, data: StudyInputs, run: Path) -> dict[str, Any]:
    """Train and evaluate every federation of the study that is not complete.

    Parameters
    ----------
    study, params
        The study and its ``federation`` section.
    data
        Patients and tiles.
    run
        The run folder; ``federated/`` is written, and the folds of ``folds/`` are read where they are there.

    Returns
    -------
    Metadata for ``status.json``.

    Raises
    ------
    DataError
        If two sides share a patient or, if the study asks for it, an institution.
    """
    import pandas as pd

    folder = run / "federated"
    data.cohorts.require_learnable()
    patients = data.cohorts.patients
    clients, notes = assign_clients(patients, params.sites, study.tasks, base=study.base, seed=study.seed)
    external = {
        str(name): tuple(rows["patient"])
        for name, rows in patients[patients["role"] == "external"].groupby("cohort", sort=True)
    }
    check_no_overlap(clients, external, params.sites, study.base)
    for note in notes:
        log.info("federate: %s", note)
    inputs = fold_inputs(study, data)
    of_study = (study.split_scheme, study.tasks, study.seed, data.cohorts.slides)
    folds = list(planned_folds(params.evaluation, clients, patients, *of_study))
    tables = []
    with open_worker_pool(study.resources, params, len(clients)) as pool:
        for plan in params.evaluation.plans:
            of_plan = [fold for fold in folds if fold.plan == plan]
            plan_inputs = inputs if plan == "folds" else _without_external(inputs)
            central = run / "folds" if plan == "folds" else folder / plan / "pooled"
            for fold in of_plan:
                _check_left_out(fold, fold.parts(clients), params, study.base)
            predictions = _predict_plan(params, plan_inputs, of_plan, clients, folder / plan, central, pool)
            _write_predictions(predictions, folder / "predictions" / plan)
            tables.append(site_table(plan, predictions, clients, study.evaluation, study.seed))
    sites = pd.concat(tables, ignore_index=True)
    with atomic_path(folder / "sites.csv") as partial:
        sites.to_csv(partial, index=False)
    records = [(fold, read_json(folder / fold.plan / fold.fold.name / FACTS_FILE)) for fold in folds]
    _write_rounds(records, folder)
    _write_traffic(records, folder)
    setting = _setting(params.in_training(study.training), clients, notes, external, records)
    setting["privacy_statement"] = privacy_statement(
        params, _spent(records, len(clients), searched=study.search is not None)
    )
    write_json(folder / "setting.json", setting)
    return {
        "clients": len(clients),
        "federations": len(folds),
        "strategy": params.strategy,
        "server_aggregation": params.server_aggregation,
    }


def fold_inputs(study: Study, data: StudyInputs) -> FoldInputs:
    """Inputs that all trainings of a study share."""
    import torch

    from equipoise.platform.training.build import recipe_of

    torch.set_num_threads(study.training.threads)  # results depend on the number of threads
    inside, outside = data.cases("develop"), data.cases("external")
    return FoldInputs(
        tasks=tuple(study.tasks),
        recipe=recipe_of(study),
        # Tables are small and read in every round of every client; tiles stay in the store's memory map.
        cases=dict(inside) if data.tiles is None else inside,
        external=CaseList(outside, tuple(outside)),
        patients=data.cohorts.patients,
        features=data.features,
        content_keys=data.content_keys,
        inner_val=study.splits.inner_val,
    )


def _without_external(inputs: FoldInputs) -> FoldInputs:
    return dataclasses.replace(inputs, external=CaseList(inputs.external.source, ()))


@contextmanager
def open_worker_pool(
    resources: RayOptions, params: FederationParams, clients: int
) -> Iterator[WorkerPool | None]:
    """One Ray session and one set of workers for all federations, where the backend is Ray."""
    if params.backend != "ray":
        yield None
        return
    from equipoise.platform.cluster.session import ray_session
    from equipoise.platform.federation.simulation.ray_backend import worker_pool_for

    with ray_session(resources):
        pool = worker_pool_for(
            clients, workers=params.workers, cpus=params.worker_cpus, gpus=params.worker_gpus
        )
        try:
            yield pool
        finally:
            pool.shutdown()


def _predict_plan(
    params: FederationParams,
    inputs: FoldInputs,
    folds: Sequence[PlannedFold],
    clients: Sequence[Client],
    folder: Path,
    central: Path,
    pool: WorkerPool | None,
) -> PlanPredictions:
    """Predictions of every method over all folds of a plan; ``central`` holds the folds of the pooled model."""
    import pandas as pd

    tables_of: dict[str, list[pd.DataFrame]] = {}
    no_local: dict[str, dict[str, str]] = {}
    for fold in folds:
        parts = fold.parts(clients)
        log.info("federate plan=%s fold=%s clients=%d", fold.plan, fold.fold.name, len(parts))
        federated = federate_fold(inputs, fold, parts, params, folder / fold.fold.name, pool=pool)
        recipe = chosen_recipe(params, inputs.recipe, folder / fold.fold.name)
        same = dataclasses.replace(inputs, recipe=recipe)  # the baselines have the settings that were chosen
        models = train_local(same, fold.fold, parts, folder / "local")
        tables: dict[str, pd.DataFrame | None] = {
            "federated": federated,
            "pooled": train_pooled(
                same, fold.fold, central if recipe == inputs.recipe else folder / "pooled"
            ),
            "local": own_predictions(models),
            "ensemble": ensemble_predictions(models),
        }
        for name in params.evaluation.linear_baselines:
            pooled, own = train_linear(same, fold.fold, parts, name, folder / "linear" / name)
            tables |= {f"pooled {name}": pooled, f"local {name}": own}
        for client in clients:
            of_client = no_local.setdefault(client.name, {})
            if client.name not in parts and client.of(fold.fold.test):
                of_client.setdefault(EVERY_TASK, "the site took no part in the training")
            for task, reason in models.reasons.get(client.name, {}).items():
                of_client.setdefault(task, f"fold {fold.fold.name}: {reason}")
        for method, table in tables.items():
            if table is not None:
                tables_of.setdefault(method, []).append(table)
    joined = {method: pd.concat(parts, ignore_index=True) for method, parts in tables_of.items() if parts}
    return PlanPredictions(joined, no_local)


def _check_left_out(
    fold: PlannedFold, parts: Mapping[str, Any], params: FederationParams, base: Path
) -> None:
    """Check that a left-out site or cohort shares no institution with a client, if the study asks for it."""
    if params.sites.guard != "institutions" or not fold.left_out:
        return
    sides = {f"client {name}": (*part.train, *part.val) for name, part in parts.items()}
    sides[f"test part {fold.left_out}"] = fold.fold.test
    guard_institutions(
        {side: institutions_of(patients, params.sites, base) for side, patients in sides.items()}
    )


def _write_predictions(predictions: PlanPredictions, folder: Path) -> None:
    from equipoise.platform.evaluation.predictions import write_predictions

    for method, table in predictions.predictions.items():
        write_predictions(table, folder / f"{method}.parquet")


FoldRecords = Sequence[tuple[PlannedFold, Mapping[str, Any]]]


def _write_rounds(records: FoldRecords, folder: Path) -> None:
    lines = [
        json.dumps({"plan": fold.plan, "fold": fold.fold.name, **row})
        for fold, record in records
        for row in record["history"]
    ]
    write_text(folder / "rounds.jsonl", "\n".join(lines) + "\n")


def _write_traffic(records: FoldRecords, folder: Path) -> None:
    import pandas as pd

    rows = [
        {"plan": fold.plan, "fold": fold.fold.name, "client": client} | dict(counts)
        for fold, record in records
        for client, counts in record["traffic"].items()
    ]
    table = pd.DataFrame(rows).reindex(columns=list(TRAFFIC))
    counts = list(TRAFFIC[3:])
    table[counts] = table[counts].fillna(0).astype(int)
    with atomic_path(folder / "traffic.csv") as partial:
        table.to_csv(partial, index=False)


def _setting(
    params: FederationParams,
    clients: Sequence[Client],
    notes: Sequence[str],
    external: Mapping[str, Sequence[str]],
    records: FoldRecords,
) -> dict[str, Any]:
    first = records[0][1]
    return {
        "federation": params.model_dump(mode="json"),
        "clients": [
            {
                "name": client.name,
                "patients": len(client.patients),
                "sites": list(client.sites),
                "flags": first["clients"].get(client.name, {}).get("flags", []),
            }
            for client in clients
        ],
        "external": {name: len(patients) for name, patients in external.items()},
        "notes": list(notes),
        "parameters": first["parameters"],
        "backend": first["backend"],
        "workers": first["workers"],
        "benched": sorted({client for _, record in records for client in record["benched"]}),
        "clean_costs": first["clean_costs"],
        "optimum": [
            {"plan": fold.plan, "fold": fold.fold.name, "task": task, **distance}
            for fold, record in records
            for task, distance in record.get("optimum", {}).items()
        ],
    }


def _spent(records: FoldRecords, clients: int, *, searched: bool) -> PrivacySpending:
    """What all federations of the run spent and withheld."""
    states = [record["privacy"] for _, record in records if record.get("privacy")]
    alone = [together([state]) for state in states]
    largest = {
        unit: max(epsilons.get(unit, 0.0) for epsilons in alone)
        for unit in dict.fromkeys(unit for epsilons in alone for unit in epsilons)
    }
    withheld: Counter[str] = Counter()
    for _, record in records:
        withheld.update(record.get("withheld") or {})
    return PrivacySpending(
        clients, len(records), largest, together(states), dict(sorted(withheld.items())), searched
    )
