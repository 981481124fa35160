"""Trials of a study that federates: every inner fold is trained across its sites by the inline engine.

The search patients are assigned to clients as the ``federation`` section says, so that a trial sees no other patient. A
fold is a federation as the step ``federate`` trains it; held-out patients are scored by the model of their own client,
or by the global model if they belong to no client. Clients train one after the other in the process of the trial,
because Ray runs the trials in parallel; the results equal those of workers.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equipoise.datasets.cohorts.splits import Fold
from equipoise.platform.search.trial_records import FoldScore

if TYPE_CHECKING:
    import pandas as pd

    from equipoise.platform.federation.params import FederationParams
    from equipoise.platform.federation.result import FederationResult
    from equipoise.platform.federation.simulation.sites import Client
    from equipoise.platform.search.context import SearchContext, TrialInputs
    from equipoise.platform.study.schema import Study
    from equipoise.platform.training.inputs import StudyInputs
    from equipoise.platform.training.predict import Outputs
    from equipoise.platform.training.targets import Targets

log = logging.getLogger("equipoise")

#: Columns of a round that curves show beside losses.
_FIGURES = ("lr", "update_norm")


def federation_clients(study: Study, patients: pd.DataFrame, everyone: pd.DataFrame) -> tuple[Client, ...]:
    """Clients of a study that federates.

    Parameters
    ----------
    patients
        Table of patients; its development patients are assigned.
    everyone
        The table with the external cohorts as well.

    Raises
    ------
    DataError
        If fewer than two clients come out, or a patient, or an institution where the study says so, is on two sides.
    """
    from equipoise.platform.federation.simulation.sites import assign_clients, check_no_overlap

    assert study.federation is not None
    scheme = study.federation.sites
    clients, notes = assign_clients(patients, scheme, study.tasks, base=study.base, seed=study.seed)
    external = everyone[everyone["role"] == "external"].groupby("cohort", sort=True)
    check_no_overlap(
        clients, {str(name): tuple(group["patient"]) for name, group in external}, scheme, study.base
    )
    for note in notes:
        log.info("search: %s", note)
    return clients


def federation_fingerprint(
    params: FederationParams | None, clients: Sequence[Client]
) -> dict[str, Any] | None:
    """The federation's part of the fingerprint of a search; None without a ``federation`` section."""
    from equipoise.platform.federation.params import FREE
    from equipoise.platform.fingerprints import content_hash

    if params is None:
        return None
    return params.model_dump(mode="json", exclude=set(FREE)) | {
        "clients": {client.name: content_hash(client.patients) for client in clients}
    }


def run_federated_fold(fold: Fold, study: Study, inputs: TrialInputs, folder: Path) -> FoldScore:
    """Train a federation on an inner fold and score its held-out patients.

    Parameters
    ----------
    fold
        Its ``test`` part is scored; ``val`` chooses the round, and serves balancing methods that learn on it.
    study
        With the trial's configuration.
    inputs
        Cases and clients.
    folder
        Folder of the checkpoints of rounds, from which training resumes.
    """
    import torch

    from equipoise.platform.federation.simulation.fold import clients_and_targets, validate_in_rounds
    from equipoise.platform.federation.simulation.plans import PlannedFold
    from equipoise.platform.federation.simulation.simulation import from_recipe
    from equipoise.platform.search.scores import fold_scores
    from equipoise.platform.training.build import recipe_of
    from equipoise.platform.training.crossval import fold_seed

    assert study.federation is not None
    cpu, wall = time.process_time(), time.perf_counter()
    recipe, cases = recipe_of(study), inputs.cases
    torch.set_num_threads(recipe.training.threads)
    parts = PlannedFold("folds", fold).parts(inputs.clients)
    clients, targets = clients_and_targets(
        study.tasks, recipe, cases, parts, study.federation, seed=fold_seed(recipe.seed, fold)
    )
    params = study.federation.model_copy(update={"backend": "inline"})
    federation = from_recipe(
        recipe, targets, clients, params, seed=fold_seed(recipe.seed, fold), folder=folder
    )
    validate_in_rounds(federation, recipe.training)
    result = federation.run()
    return FoldScore(
        fold=fold.name,
        values=fold_scores(targets, outputs_of(result, targets, fold, parts, cases, recipe.training.device)),
        epochs=len(result.history),
        best_epoch=result.kept_round,
        parameters=sum(parameter.numel() for parameter in result.model.parameters()),
        cpu_seconds=round(time.process_time() - cpu, 3),
        wall_seconds=round(time.perf_counter() - wall, 3),
        history=tuple(history_row(row) for row in result.history),
    )


def outputs_of(
    result: FederationResult,
    targets: Targets,
    fold: Fold,
    parts: Mapping[str, Fold],
    cases: Mapping[str, Any],
    device: Any,
) -> Outputs:
    """Outputs for the held-out patients, each from the model of its client; client by client."""
    from equipoise.platform.training.batches import CaseList
    from equipoise.platform.training.build import pick_device
    from equipoise.platform.training.predict import joined_outputs, run_model

    owned = {patient for part in parts.values() for patient in part.test}
    assignments = [(result.personal_model(client), part.test) for client, part in parts.items()]
    assignments.append((result.model, tuple(patient for patient in fold.test if patient not in owned)))
    torch_device = pick_device(device)
    return joined_outputs(
        [
            run_model(model.to(torch_device), targets, CaseList(cases, patients))
            for model, patients in assignments
            if patients
        ],
        targets,
    )


def history_row(row: Mapping[str, float]) -> dict[str, float]:
    """A round as a row of a training history: mean losses of clients on their training patients."""
    result = {"epoch": row["round"]} | {name: row[name] for name in _FIGURES if name in row}
    losses = {name: value for name, value in row.items() if name.startswith("loss/")}
    result |= {f"train/{name.removeprefix('loss/')}": value for name, value in losses.items()}
    return result | {name: value for name, value in row.items() if name.startswith("epsilon")}


def final_predictions(
    data: StudyInputs, search_context: SearchContext, study: Study, folder: Path, holdout: str
) -> list[pd.DataFrame]:
    """Train the federations of the study's cross-validation over the search patients, and predict all other patients.

    All development patients are assigned to clients, so that a patient of the hold-out is predicted by the model of
    its own client, which never saw that patient; external cohorts are predicted by the global model.

    Parameters
    ----------
    study
        The study with the configuration that is measured.
    folder
        Folder that holds the folds in ``folds/``.
    holdout
        Name of the hold-out among cohorts; its rows get the role ``external``.
    """
    import dataclasses

    from equipoise.datasets.cohorts.splits import make_folds
    from equipoise.platform.federation.simulation.federate import fold_inputs, open_worker_pool
    from equipoise.platform.federation.simulation.fold import federate_fold
    from equipoise.platform.federation.simulation.plans import PlannedFold

    assert study.federation is not None
    everyone = data.cohorts.patients
    clients = federation_clients(search_context.study, everyone, everyone)
    inputs = fold_inputs(study, data)
    # The cost of robust aggregation without attacks is measured by the step federate only.
    evaluation = study.federation.evaluation.model_copy(update={"clean_costs": False})
    params = study.federation.model_copy(update={"evaluation": evaluation})
    held, tables = set(search_context.held_out), []
    with open_worker_pool(study.resources, params, len(clients)) as pool:
        searched = search_context.cohorts
        for fold in make_folds(
            searched.patients, study.split_scheme, study.tasks, study.seed, searched.slides
        ):
            extended = dataclasses.replace(fold, test=(*fold.test, *search_context.held_out))
            planned = PlannedFold("folds", extended)
            path = folder / "folds" / fold.name
            table = federate_fold(inputs, planned, planned.parts(clients), params, path, pool=pool)
            unseen = table["patient"].isin(held)
            table.loc[unseen, "cohort"], table.loc[unseen, "role"] = holdout, "external"
            tables.append(table)
    return tables
