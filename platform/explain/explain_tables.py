"""The part of the step ``explain`` that concerns tables: genes, pathways and modalities of some patients per cohort."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from equipoise.platform.explain.explain_inputs import ExplainInputs, write_csv
from equipoise.platform.explain.explained import Explained
from equipoise.platform.explain.outputs import explained_outputs
from equipoise.platform.explain.selection import Chosen
from equipoise.platform.explain.table_scores import by_pathway, summarise, table_scores
from equipoise.platform.fingerprints import content_hash

GENES, PATHWAYS, MODALITIES = "genes.csv", "pathways.csv", "modalities.csv"


def explain_tables(given: ExplainInputs, folder: Path, skipped: list[dict[str, str]]) -> dict[str, int]:
    """Genes, pathways and modalities of some patients of every cohort."""
    for name in (GENES, PATHWAYS, MODALITIES):
        (folder / name).unlink(missing_ok=True)
    shape = next(iter(given.models.folds.values())).targets.shape
    if not shape.omics or not given.params.patients:
        return {}
    tiles = {name: given.models.average_tile(name) if shape.features else None for name in given.models.folds}
    columns: list[tuple[Any, ...]] = []
    modalities: list[tuple[Any, ...]] = []
    patients = _patients_of_tables(given)
    for one in patients:
        case = given.models.case(one.patient, one.role)
        names = given.models.unseen(one.patient, one.role)
        models = [given.models.folds[name] for name in names]
        for task in given.tasks:
            for class_name in given.classes(one.patient, task):
                explained = [
                    Explained.of(model, case, explained_outputs(model.targets, task, class_name)[0])
                    for model in models
                ]
                found = table_scores(
                    models, explained, case, [tiles[name] for name in names], given.params.steps
                )
                who = (one.patient, one.cohort, one.role, task, class_name)
                columns += [
                    (*who, modality, column, score)
                    for modality, scores in found.columns.items()
                    for column, score in scores.items()
                ]
                modalities += [
                    (
                        *who,
                        name,
                        found.value,
                        without,
                        found.value - without,
                        found.contributions[name],
                        found.shares[name],
                    )
                    for name, without in found.without.items()
                ]
    who_columns = ["patient", "cohort", "role", "task", "class"]
    genes = pd.DataFrame(columns, columns=[*who_columns, "modality", "gene", "score"])
    by = ["cohort", "role", "task", "class"]
    if given.encoder_of_rna:
        genes = genes[genes["modality"] != "rna"]
        reason = f"the model reads vectors of {given.encoder_of_rna}, whose numbers are no genes"
        skipped.append({"what": "genes and pathways", "reason": reason})
    if len(genes):
        write_csv(summarise(genes, [*by, "modality", "gene"]), folder / GENES)
        rna = genes[genes["modality"] == "rna"]
        if given.gene_sets and len(rna):
            write_csv(by_pathway(rna, given.gene_sets, by), folder / PATHWAYS)
        elif "rna" in shape.omics and not given.encoder_of_rna:
            skipped.append(
                {"what": "pathways", "reason": "the study names no gene sets (tables.rna.gene_sets)"}
            )
    if modalities:
        names = ["modality", "prediction", "without", "change", "ig", "ig_share"]
        write_csv(pd.DataFrame(modalities, columns=[*who_columns, *names]), folder / MODALITIES)
    return {"patients_of_tables": len(patients)}


def _patients_of_tables(given: ExplainInputs) -> list[Chosen]:
    """Patients with a table, the same ones in every run; some of each cohort."""
    rows = given.predictions[given.predictions["role"].isin(["test", "external"])]
    rows = rows.drop_duplicates("patient").sort_values(["role", "cohort", "patient"])
    omics = given.inputs.cohorts.omics
    with_table = {str(patient) for matrix in omics.values() for patient in matrix.index}
    rows = rows[rows["patient"].isin(with_table)]
    rows = rows.assign(order=[content_hash([patient]) for patient in rows["patient"]])
    some = rows.sort_values("order").groupby(["role", "cohort"], sort=True).head(given.params.patients)
    some = some.sort_values(["role", "cohort", "patient"])
    return [Chosen(r.patient, r.cohort, r.role, "has a table") for r in some.itertuples()]
