"""The step ``federate`` of a run: every plan's federations and baselines, and the tables the report reads.

``federated/`` of the run folder: ``<plan>/<fold>/`` per federation (:mod:`~equipoise.platform.federation.fold`),
``<plan>/pooled`` and ``<plan>/local`` with the baselines' models, ``predictions/<plan>/<method>.parquet``,
``rounds.jsonl`` (a line per plan, fold and round), ``sites.csv`` (:mod:`~equipoise.platform.federation.evaluation`),
``traffic.csv`` (bytes and verdicts per client) and ``setting.json`` (clients, notes, settings, costs of rules).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equipoise.datasets.whole_files import atomic_path, read_json, write_json, write_text
from equipoise.platform.federation import baselines
from equipoise.platform.federation.baselines import Ground, LocalModels
from equipoise.platform.federation.evaluation import METHODS, Judged, site_table
from equipoise.platform.federation.fold import FACTS, federate_fold
from equipoise.platform.federation.plans import PlannedFold, planned
from equipoise.platform.federation.sites import (
    Client,
    clients_of,
    guard_institutions,
    guard_setting,
    institutions_of,
)
from equipoise.platform.training.batches import CaseList

if TYPE_CHECKING:
    import pandas as pd

    from equipoise.platform.federation.on_ray import Crew
    from equipoise.platform.federation.params import FederationParams
    from equipoise.platform.work import Work

log = logging.getLogger("equipoise")

#: Columns of ``federated/traffic.csv``.
TRAFFIC = ("plan", "fold", "client", "bytes", "accepted", "quarantined", "failed", "late", "benched")


def federate(work: Work, params: FederationParams) -> dict[str, Any]:
    """Train and judge every federation of the study that is not finished.

    Parameters
    ----------
    work
        The study and its run folder.
    params
        Its ``federation`` section.

    Returns
    -------
    Facts for ``status.json``.

    Raises
    ------
    DataError
        If a patient, or an institution where the study says so, is on two sides.
    """
    import pandas as pd

    study, folder = work.study, work.folder.federated
    work.usable.require_learnable()
    patients = work.usable.patients
    clients, notes = clients_of(patients, params.sites, study.tasks, base=study.base, seed=study.seed)
    external = {
        str(name): tuple(own["patient"])
        for name, own in patients[patients["role"] == "external"].groupby("cohort", sort=True)
    }
    guard_setting(clients, external, params.sites, study.base)
    for note in notes:
        log.info("federate: %s", note)
    ground = ground_of(work)
    folds = list(planned(params.evaluation, clients, patients, study.splits, study.tasks, study.seed))
    tables = []
    with crew_of(work, params, len(clients)) as crew:
        for plan in params.evaluation.plans:
            of_plan = [fold for fold in folds if fold.plan == plan]
            own = ground if plan == "folds" else _without_external(ground)
            judged = _judge(work, params, own, of_plan, clients, folder / plan, crew)
            _write_predictions(judged, folder / "predictions" / plan)
            tables.append(site_table(plan, judged, clients, study.evaluation, study.seed))
    sites = pd.concat(tables, ignore_index=True)
    with atomic_path(folder / "sites.csv") as partial:
        sites.to_csv(partial, index=False)
    facts = [(fold, read_json(folder / fold.plan / fold.fold.name / FACTS)) for fold in folds]
    _write_rounds(facts, folder)
    _write_traffic(facts, folder)
    write_json(folder / "setting.json", _setting(params, clients, notes, external, facts))
    return {
        "clients": len(clients),
        "federations": len(folds),
        "strategy": params.strategy,
        "rule": params.rule,
    }


def ground_of(work: Work) -> Ground:
    """What trainings of a study share."""
    import torch

    from equipoise.datasets.cases import CaseReader

    study = work.study
    torch.set_num_threads(study.training.threads)  # one number of threads, one result
    inside = CaseReader(work.usable, work.tiles, role="develop")
    outside = CaseReader(work.usable, work.tiles, role="external")
    return Ground(
        tasks=tuple(study.tasks),
        recipe=work.recipe,
        # Rows of tables are small and read in every round of every client; tiles stay the store's memory map.
        cases=dict(inside) if work.tiles is None else inside,
        external=CaseList(outside, tuple(outside)),
        patients=work.usable.patients,
        features=work.features,
        contents=work.contents,
        inner_val=study.splits.inner_val,
    )


def _without_external(ground: Ground) -> Ground:
    import dataclasses

    return dataclasses.replace(ground, external=CaseList(ground.external.source, ()))


@contextmanager
def crew_of(work: Work, params: FederationParams, clients: int) -> Iterator[Crew | None]:
    """One Ray session and one set of workers for all federations, where the backend is Ray."""
    if params.backend != "ray":
        yield None
        return
    from equipoise.platform.federation.on_ray import crew_for
    from equipoise.platform.session import ray_session

    with ray_session(work.study.resources):
        crew = crew_for(clients, workers=params.workers, cpus=params.worker_cpus, gpus=params.worker_gpus)
        try:
            yield crew
        finally:
            crew.dismiss()


def _judge(
    work: Work,
    params: FederationParams,
    ground: Ground,
    folds: Sequence[PlannedFold],
    clients: Sequence[Client],
    folder: Path,
    crew: Crew | None,
) -> Judged:
    """Predictions of every method over all folds of a plan."""
    import pandas as pd

    found: dict[str, list[pd.DataFrame]] = {method: [] for method in METHODS}
    local: list[LocalModels] = []
    for fold in folds:
        parts = fold.parts(clients)
        _guard(fold, parts, params, work.study.base)
        log.info("federate plan=%s fold=%s clients=%d", fold.plan, fold.fold.name, len(parts))
        central = work.folder.folds if fold.plan == "folds" else folder / "pooled"
        models = baselines.local(ground, fold.fold, parts, folder / "local")
        tables = {
            "federated": federate_fold(ground, fold, parts, params, folder / fold.fold.name, crew=crew),
            "pooled": baselines.pooled(ground, fold.fold, central),
            "local": baselines.own_predictions(models, parts),
            "ensemble": baselines.ensemble(models),
        }
        local.append(models)
        for method, table in tables.items():
            if table is not None:
                found[method].append(table)
    joined = {method: pd.concat(parts, ignore_index=True) for method, parts in found.items() if parts}
    return Judged(joined, local)


def _guard(fold: PlannedFold, parts: Mapping[str, Any], params: FederationParams, base: Path) -> None:
    """A site or cohort that is left out is new in every respect that the study asks for."""
    if params.sites.guard != "institutions" or not fold.left_out:
        return
    sides = {f"client {name}": (*part.train, *part.val) for name, part in parts.items()}
    sides[f"test part {fold.left_out}"] = fold.fold.test
    guard_institutions(
        {side: institutions_of(members, params.sites, base) for side, members in sides.items()}
    )


def _write_predictions(judged: Judged, folder: Path) -> None:
    from equipoise.platform.evaluation.predictions import write_predictions

    for method, table in judged.predictions.items():
        write_predictions(table, folder / f"{method}.parquet")


Facts = Sequence[tuple[PlannedFold, Mapping[str, Any]]]


def _write_rounds(facts: Facts, folder: Path) -> None:
    lines = [
        json.dumps({"plan": fold.plan, "fold": fold.fold.name, **row})
        for fold, found in facts
        for row in found["history"]
    ]
    write_text(folder / "rounds.jsonl", "\n".join(lines) + "\n")


def _write_traffic(facts: Facts, folder: Path) -> None:
    import pandas as pd

    rows = [
        {"plan": fold.plan, "fold": fold.fold.name, "client": client} | dict(counts)
        for fold, found in facts
        for client, counts in found["traffic"].items()
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
    facts: Facts,
) -> dict[str, Any]:
    first = facts[0][1]
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
        "external": {name: len(members) for name, members in external.items()},
        "notes": list(notes),
        "parameters": first["parameters"],
        "backend": first["backend"],
        "workers": first["workers"],
        "benched": sorted({client for _, found in facts for client in found["benched"]}),
        "clean_costs": first["clean_costs"],
        "epsilon": _spent([found["history"][-1] for _, found in facts if found["history"]]),
    }


def _spent(last_rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The largest epsilon of any federation, by what privacy calls it."""
    names = dict.fromkeys(name for row in last_rows for name in row if name.startswith("epsilon"))
    return {name: max(row[name] for row in last_rows if row.get(name) is not None) for name in names}
