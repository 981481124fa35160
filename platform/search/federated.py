"""Trials of a study that federates: every inner fold is trained across its sites by the inline engine.

Clients are dealt from the search patients as the ``federation`` section says, so that a trial sees nobody else. A fold
is a federation as the step ``federate`` trains it; held-out patients are scored by the model that their own client
predicts with, and by the global one where they belong to no client. Clients take turns in the process of the trial:
what Ray has room for are trials, and the numbers are those of workers.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equipoise.datasets.splits import Fold
from equipoise.platform.search.trials import FoldScore

if TYPE_CHECKING:
    import pandas as pd

    from equipoise.platform.federation.params import FederationParams
    from equipoise.platform.federation.result import FederationResult
    from equipoise.platform.federation.sites import Client
    from equipoise.platform.search.search import Prepared
    from equipoise.platform.search.trial import Material
    from equipoise.platform.study import Study
    from equipoise.platform.training.predict import Outputs
    from equipoise.platform.work import Work

log = logging.getLogger("equipoise")

#: Figures of a round that curves show beside losses.
_FIGURES = ("lr", "update_norm")


def deal(study: Study, patients: pd.DataFrame, everyone: pd.DataFrame) -> tuple[Client, ...]:
    """Clients of a study that federates.

    Parameters
    ----------
    patients
        Table of those who are dealt; its development patients are.
    everyone
        The table with the external cohorts, too.

    Raises
    ------
    DataError
        If fewer than two clients come out, or a patient, or an institution where the study says so, is on two sides.
    """
    from equipoise.platform.federation.sites import clients_of, guard_setting

    assert study.federation is not None
    scheme = study.federation.sites
    clients, notes = clients_of(patients, scheme, study.tasks, base=study.base, seed=study.seed)
    external = everyone[everyone["role"] == "external"].groupby("cohort", sort=True)
    guard_setting(clients, {str(name): tuple(own["patient"]) for name, own in external}, scheme, study.base)
    for note in notes:
        log.info("search: %s", note)
    return clients


def identity_of(params: FederationParams | None, clients: Sequence[Client]) -> dict[str, Any] | None:
    """What the numbers of a trial depend on beside the rest of the study; None where it does not federate."""
    from equipoise.platform.federation.params import FREE
    from equipoise.platform.training.checkpoint import digest

    if params is None:
        return None
    return params.model_dump(mode="json", exclude=set(FREE)) | {
        "clients": {client.name: digest(list(client.patients)) for client in clients}
    }


def run_federated_fold(fold: Fold, study: Study, material: Material, folder: Path) -> FoldScore:
    """Train a federation on an inner fold and score the patients that it holds out.

    Parameters
    ----------
    fold
        Its ``test`` part is scored; ``val`` serves balancing methods that learn on it.
    study
        With the trial's configuration.
    material
        Cases and clients.
    folder
        Where rounds are kept, and gone on from.
    """
    import torch

    from equipoise.platform.federation.engine import from_recipe
    from equipoise.platform.federation.fold import members_of
    from equipoise.platform.federation.plans import PlannedFold
    from equipoise.platform.search.scores import fold_scores
    from equipoise.platform.training.crossval import fold_seed
    from equipoise.platform.training.recipe import recipe_of

    assert study.federation is not None
    cpu, wall = time.process_time(), time.perf_counter()
    recipe, cases = recipe_of(study), material.cases
    torch.set_num_threads(recipe.training.threads)
    parts = PlannedFold("folds", fold).parts(material.clients)
    clients, targets = members_of(study.tasks, recipe, cases, parts, min_n=study.federation.min_n)
    params = study.federation.model_copy(update={"backend": "inline"})
    federation = from_recipe(
        recipe, targets, clients, params, seed=fold_seed(recipe.seed, fold), folder=folder
    )
    result = federation.run()
    return FoldScore(
        fold=fold.name,
        values=fold_scores(result.targets, outputs_of(result, fold, parts, cases, recipe.training.device)),
        epochs=len(result.history),
        best_epoch=len(result.history),
        parameters=sum(parameter.numel() for parameter in result.model.parameters()),
        cpu_seconds=round(time.process_time() - cpu, 3),
        wall_seconds=round(time.perf_counter() - wall, 3),
        history=tuple(curves_of(row) for row in result.history),
    )


def outputs_of(
    result: FederationResult, fold: Fold, parts: Mapping[str, Fold], cases: Mapping[str, Any], device: Any
) -> Outputs:
    """Outputs for the held-out patients, each by the model of its client; client by client."""
    from equipoise.platform.training.batches import CaseList
    from equipoise.platform.training.build import pick_device
    from equipoise.platform.training.predict import run_model

    owned = {patient for part in parts.values() for patient in part.test}
    judges = [(result.personal_model(client), part.test) for client, part in parts.items()]
    judges.append((result.model, tuple(patient for patient in fold.test if patient not in owned)))
    place = pick_device(device)
    return joined(
        [run_model(model.to(place), result.targets, CaseList(cases, who)) for model, who in judges if who]
    )


def joined(parts: Sequence[Outputs]) -> Outputs:
    """Outputs of several models as those of one."""
    import torch

    from equipoise.platform.training.predict import Outputs

    together = (
        {name: torch.cat([getattr(part, kind)[name] for part in parts]) for name in parts[0].outputs}
        for kind in ("outputs", "targets", "label_mask")
    )
    return Outputs(tuple(person for part in parts for person in part.people), *together)


def curves_of(row: Mapping[str, float]) -> dict[str, float]:
    """A round in the words of a training history: mean losses of clients on the patients they train on."""
    found = {"epoch": row["round"]} | {name: row[name] for name in _FIGURES if name in row}
    losses = {name: value for name, value in row.items() if name.startswith("loss/")}
    found |= {f"train/{name.removeprefix('loss/')}": value for name, value in losses.items()}
    return found | {name: value for name, value in row.items() if name.startswith("epsilon")}


def final_predictions(
    work: Work, prepared: Prepared, study: Study, folder: Path, holdout: str
) -> list[pd.DataFrame]:
    """Federations of the study's cross-validation over the search patients, and what they say of the others.

    Clients are dealt from all development patients, so that a patient of the hold-out is judged by the model of
    the own client, which never saw that patient; external cohorts by the global one.

    Parameters
    ----------
    study
        With the configuration that is measured.
    folder
        Where folds are kept, in ``folds/``.
    holdout
        What the hold-out is called among cohorts; its rows get the role ``external``.
    """
    import dataclasses

    from equipoise.datasets.splits import make_folds
    from equipoise.platform.federation.fold import federate_fold
    from equipoise.platform.federation.plans import PlannedFold
    from equipoise.platform.federation.step import crew_of, ground_of
    from equipoise.platform.training.recipe import recipe_of

    assert study.federation is not None
    everyone = work.usable.patients
    clients = deal(work.study, everyone, everyone)
    ground = dataclasses.replace(ground_of(work), recipe=recipe_of(study))
    # What rules cost where nobody attacks is a matter of the step federate.
    evaluation = study.federation.evaluation.model_copy(update={"clean_costs": False})
    params = study.federation.model_copy(update={"evaluation": evaluation})
    held, tables = set(prepared.held_out), []
    with crew_of(work, params, len(clients)) as crew:
        for fold in make_folds(prepared.cohorts.patients, study.splits, study.tasks, study.seed):
            whole = dataclasses.replace(fold, test=(*fold.test, *prepared.held_out))
            planned = PlannedFold("folds", whole)
            place = folder / "folds" / fold.name
            table = federate_fold(ground, planned, planned.parts(clients), params, place, crew=crew)
            unseen = table["patient"].isin(held)
            table.loc[unseen, "cohort"], table.loc[unseen, "role"] = holdout, "external"
            tables.append(table)
    return tables
