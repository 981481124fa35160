"""The step ``evaluate``: predictions of external cohorts, then metrics, baselines, embeddings and subgroups."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from equipoise.datasets.atomic_io import write_json
from equipoise.platform.run.context import RunContext
from equipoise.platform.run.folder import StepResult
from equipoise.platform.run.folds import require_folds, set_threads
from equipoise.platform.study.schema import Study

if TYPE_CHECKING:
    import pandas as pd

    from equipoise.datasets.cohorts.splits import Fold

log = logging.getLogger("equipoise")


def evaluate(context: RunContext) -> StepResult:
    """Predict external cohorts with every fold's model, then compute all metrics."""
    import pandas as pd

    from equipoise.datasets.atomic_io import read_whole_json
    from equipoise.platform.evaluation import latents
    from equipoise.platform.evaluation.branches import EXTERNAL_BRANCHES, write_fold_branches
    from equipoise.platform.evaluation.detail_tables import write_details
    from equipoise.platform.evaluation.evaluate import evaluate as compute
    from equipoise.platform.evaluation.metrics_table import write_metrics
    from equipoise.platform.evaluation.predictions import read_predictions, write_predictions
    from equipoise.platform.evaluation.tensorboard import write_evaluation_events
    from equipoise.platform.training.batches import CaseList
    from equipoise.platform.training.build import pick_device
    from equipoise.platform.training.crossval import fold_folder, load_fold
    from equipoise.platform.training.fold_files import changed_file, file_hashes

    folder, inputs = context.folder, context.inputs
    folds = require_folds(context)
    set_threads(context.study)
    device = pick_device(context.study.training.device)
    reader = inputs.cases("external")
    cases = CaseList(reader, tuple(reader))
    wanted = {patient: inputs.content_keys[patient] for patient in reader}
    parts = []
    for fold in folds:
        path = fold_folder(folder.folds, fold)
        parts.append(read_predictions(path / "preds.parquet"))
        if not cases:
            continue
        kept, read, made_for = (
            path / "external.parquet",
            path / latents.EXTERNAL_LATENTS,
            path / "external.json",
        )
        made = read_whole_json(made_for) or {}
        hashes = made.get("files", {kept.name: "", read.name: ""})
        if made.get("patients") != wanted or changed_file(path, hashes):
            made_for.unlink(missing_ok=True)
            trained = load_fold(path, device)
            external, vectors = trained.predict_with_latents(cases, "external")
            write_predictions(external, kept)
            latents.write_latents(vectors, read)
            write_fold_branches(trained.predict_branches(cases, "external"), path / EXTERNAL_BRANCHES)
            written = file_hashes(path, (kept.name, read.name, EXTERNAL_BRANCHES))
            write_json(made_for, {"patients": wanted, "files": written})
        parts.append(read_predictions(kept))
    predictions = pd.concat(parts, ignore_index=True)
    write_predictions(predictions, folder.evaluation / "predictions.parquet")
    vectors = latents.read_fold_latents(fold_folder(folder.folds, fold) for fold in folds)
    metrics = compute(predictions, context.study.evaluation, context.study.seed, vectors)
    write_metrics(metrics, folder.evaluation, context.study.evaluation)
    write_details(predictions, folder.evaluation, context.study.evaluation, subgroups_of(context.study))
    counts = {"predictions": len(predictions), "metrics": len(metrics)}
    write_evaluation_events(folder.root, predictions, vectors, context.study.seed)
    _cox_table(context, predictions)
    counts |= _branches(context, folds, predictions)
    counts |= _embeddings(context, predictions, vectors)
    return StepResult(counts | _baselines(context, folds, predictions))


def _branches(context: RunContext, folds: "Sequence[Fold]", predictions: "pd.DataFrame") -> dict[str, int]:
    """Set the model beside what each of its branches says alone; no file for a model without branches."""
    from equipoise.platform.evaluation.baselines import evaluate_baselines, write_baselines
    from equipoise.platform.evaluation.branches import STEM, read_fold_branches
    from equipoise.platform.training.crossval import fold_folder

    study, folder = context.study, context.folder
    alone = read_fold_branches(fold_folder(folder.folds, fold) for fold in folds)
    if not alone:
        for ending in ("csv", "parquet"):
            (folder.evaluation / f"{STEM}.{ending}").unlink(missing_ok=True)
        return {}
    table = evaluate_baselines(predictions, alone, study.evaluation, study.seed)
    write_baselines(alone, table, folder.evaluation, STEM)
    return {"branches": len(alone)}


def _embeddings(
    context: RunContext, predictions: "pd.DataFrame", vectors: "pd.DataFrame | None"
) -> dict[str, int]:
    """Robustness of the inputs of heads across centres, and their transfer to external cohorts if it is asked for."""
    from equipoise.platform.evaluation.robustness import robustness, write_robustness
    from equipoise.platform.evaluation.transfer import STEM, evaluate_transfer, write_transfer

    study, folder = context.study, context.folder.evaluation
    if vectors is not None:
        write_robustness(robustness(predictions, vectors, study.evaluation.confidence), folder)
    for ending in ("csv", "parquet"):
        (folder / f"{STEM}.{ending}").unlink(missing_ok=True)
    params = study.evaluation.transfer
    if params is None or vectors is None or not any(cohort.role == "external" for cohort in study.cohorts):
        return {}
    from equipoise.datasets.omics.resolution import without_encoder
    from equipoise.platform.training.baselines import MeanTiles
    from equipoise.platform.training.build import recipe_of
    from equipoise.platform.training.transfer import fit_transfer

    recipe = recipe_of(study.model_copy(update={"tables": without_encoder(study.tables)}))
    cases = MeanTiles(context.with_all_tables().cases("external"))
    found = fit_transfer(study.tasks, cases, vectors, predictions, recipe, params)
    table = evaluate_transfer(found, study.evaluation, study.seed)
    write_transfer(found, table, folder)
    return {"transfer": len(table)}


def _cox_table(context: RunContext, predictions: "pd.DataFrame") -> None:
    """Hazard ratios of the predicted risk, adjusted for the study's covariates; no file without a survival task."""
    from equipoise.platform.evaluation.cox_table import cox_table, write_cox_table

    study, evaluation = context.study, context.folder.evaluation
    (evaluation / "cox.csv").unlink(missing_ok=True)
    if any(task.type == "survival" for task in study.tasks):
        covariates = context.with_all_tables().cohorts.omics.get("clinical")
        write_cox_table(cox_table(predictions, covariates, study.evaluation.confidence), evaluation)


def _baselines(context: RunContext, folds: "Sequence[Fold]", predictions: "pd.DataFrame") -> dict[str, int]:
    """Fit the baselines of every fold, and set them beside the model's main metrics; they read RNA as it is."""
    from equipoise.datasets.omics.resolution import without_encoder
    from equipoise.platform.evaluation.baselines import evaluate_baselines, write_baselines
    from equipoise.platform.evaluation.feature_robustness import (
        feature_robustness,
        mean_features,
        write_feature_robustness,
    )
    from equipoise.platform.training.baselines import MeanTiles, fit_fold_baselines
    from equipoise.platform.training.build import recipe_of

    study, evaluation = context.study, context.folder.evaluation
    if not study.evaluation.baselines.enabled:
        for name in ("baselines.csv", "baselines.parquet", "feature_robustness.csv"):
            (evaluation / name).unlink(missing_ok=True)
        return {}
    inputs = context.with_all_tables()
    recipe = recipe_of(study.model_copy(update={"tables": without_encoder(study.tables)}))
    develop, external = (MeanTiles(inputs.cases(role)) for role in ("develop", "external"))
    scored = fit_fold_baselines(folds, study.tasks, develop, external, recipe, study.evaluation.baselines)
    table = evaluate_baselines(predictions, scored, study.evaluation, study.seed)
    write_baselines(scored, table, evaluation)
    features = mean_features([develop, external])  # read for the baselines already
    robust = feature_robustness(predictions, features, study.evaluation.confidence, study.seed)
    write_feature_robustness(robust, evaluation)
    whole = table[(table["role"] == "test") & (table["cohort"] == "all")]
    for task, rows in whole.groupby("task", sort=False):
        shown = ", ".join(f"{row.predictor} {row.value:.3f}" for row in rows.itertuples())
        log.info("baselines task=%s %s: %s", task, rows["metric"].iloc[0], shown)
    return {"baselines": len(scored)}


def subgroups_of(study: Study) -> "pd.DataFrame | None":
    """The group of every patient in each of ``evaluation.subgroups``; None without any.

    Raises
    ------
    DataError
        If no cohort has a column, or its values cannot be grouped.
    """
    from equipoise.platform.evaluation.params import split_comparison

    subgroups = study.evaluation.subgroups
    if not subgroups:
        return None
    from equipoise.datasets.cohorts.patient_columns import patient_columns
    from equipoise.platform.evaluation.subgroups import subgroup_values

    names = list(dict.fromkeys(split_comparison(text).column for text in subgroups))
    values = patient_columns(study.cohorts, names, study.columns, study.base, "evaluation.subgroups")
    return subgroup_values(values, subgroups)
