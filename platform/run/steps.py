"""The steps of a run, in the order of the data: tables → features → models → predictions → report.

Each step reads the output of the steps before it from the run folder or the feature store, and can be repeated:
output that exists and matches the study is not computed again.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equipoise.datasets.atomic_io import write_json
from equipoise.platform.errors import DataError, StudyError, ToleranceError
from equipoise.platform.run.context import RunContext, read_cohorts
from equipoise.platform.run.folder import RunFolder, StepResult, study_steps
from equipoise.platform.run.manifest import is_written_by_extract, write_folds, write_manifest
from equipoise.platform.run.model_export import write_model_inputs
from equipoise.platform.run.slide_checks import missing_files, refuse_headers, refuse_pixel_sizes
from equipoise.platform.study.schema import Study

if TYPE_CHECKING:
    import pandas as pd

    from equipoise.datasets.cohorts.cohort import Cohorts
    from equipoise.datasets.cohorts.splits import Fold
    from equipoise.platform.extraction.summary import ExtractionSummary

log = logging.getLogger("equipoise")

#: Opens Ray when a step needs it.
Session = Callable[[], AbstractContextManager[object]]


@dataclass(frozen=True)
class RunResult:
    """What a command did in a run folder.

    Parameters
    ----------
    folder
        The run folder.
    steps
        Step → its result, in the order in which they ran.
    """

    folder: RunFolder
    steps: Mapping[str, StepResult]

    @property
    def report(self) -> Path | None:
        """The page, if the report was written."""
        return self.folder.report if "report" in self.steps else None


def run_steps(
    study: Study,
    folder: RunFolder,
    steps: Sequence[str],
    *,
    only_folds: Sequence[str] = (),
    check_slides: bool = False,
    measure_winner: bool = True,
) -> RunResult:
    """Run steps in order, each recorded in the run folder.

    Parameters
    ----------
    study
        The study.
    folder
        Its run folder, from :meth:`RunFolder.open`, which refuses the folder of another study.
    steps
        Names out of :data:`~equipoise.platform.run.folder.STEPS`.
    only_folds
        Folds to train, all if empty.
    check_slides
        Whether ``validate`` opens every slide's header.
    measure_winner
        Whether ``search`` evaluates the winner on patients that no trial has seen.

    Raises
    ------
    EquipoiseError
        That of the step that failed; the run folder records it, and the same call resumes.
    InUseError
        If another job is writing to the folder, which stays as it is.
    """
    from equipoise.platform.run import provenance

    context = RunContext(study, folder, tuple(only_folds), check_slides, measure_winner)
    results: dict[str, StepResult] = {}
    with folder.writing():
        provenance.record(study, folder)
        for name in steps:
            log.info("step=%s", name)
            results[name] = folder.run_step(name, partial(STEP_FUNCTIONS[name], context))
    return RunResult(folder, results)


def describe_plan(study: Study, steps: Sequence[str]) -> str:
    """What the steps would do and take, as text; runs none of them."""
    from equipoise.platform.run.estimate import describe_cost

    cohorts = read_cohorts(study)
    features = (
        f"{study.features.encoder}, store {study.features.store}" if study.reads_slides else "tables only"
    )
    lines = [describe_cohorts(cohorts, study), f"features: {features}"]
    lines.append(f"folds: {study.splits.scheme}")
    lines += describe_cost(study, steps)
    shown = [step for step in steps if step in study_steps(study.resolved())]
    return "\n".join([*lines, f"steps: {' → '.join(shown)}"])


def describe_search(study: Study) -> str:
    """The space and the cost of a search, as text; one short trial is run, nothing is written."""
    from equipoise.platform.search import estimate

    return estimate.describe_search(study, lambda: RunContext(study, RunFolder(Path("unused"))).inputs)


def describe_cohorts(cohorts: "Cohorts", study: Study) -> str:
    """Participant flow and labels as a few lines of text."""
    from equipoise.datasets.cohorts.flow import flow_text
    from equipoise.datasets.cohorts.label_account import account_lines

    lines = [f"study {study.name}: {len(cohorts.patients)} patients, {len(cohorts.slides)} slides"]
    lines += [f"  {line}" for line in flow_text(cohorts.flow).split("; ")]
    if len(cohorts.exclusions):
        lines.append(
            f"  {len(cohorts.exclusions)} exclusions, each with its reason in manifest/exclusions.csv"
        )
    lines += [f"  labels of {line}" for line in account_lines(cohorts.label_accounts)]
    lines += [f"  note: {note}" for note in cohorts.notes]
    return "\n".join(lines)


def validate(context: RunContext) -> StepResult:
    """Write the manifest of the tables and a preview of the folds."""
    study = context.study
    cohorts = context.cohorts if study.reads_slides else context.cohorts.without_slides()
    extracts = study.reads_slides and study.features.imported is None
    if extracts:
        cohorts = replace(cohorts, notes=(*cohorts.notes, *missing_files(cohorts)))
    _check_rna_encoder(context)
    _subgroups(study)  # a misspelt column is found before training and not after it
    for line in describe_cohorts(cohorts, study).splitlines():
        log.info("%s", line)
    for account in cohorts.label_accounts:
        if account.warning:
            log.warning("%s", account.warning)
    slides = cohorts.slides
    headers: dict[str, Any] = {}
    opened = extracts and context.check_slides and len(slides)
    if opened:
        from equipoise.platform.extraction.sources import check_headers

        slides = check_headers(slides, study.features)
        headers["headers"] = slides["status"].value_counts().to_dict()
    kept = is_written_by_extract(context.folder)
    if kept:
        log.info("the manifest of the extraction is kept: the tables are the same")
    else:  # before anything is refused: it says who was left out and why
        write_manifest(context.folder, cohorts, slides)
    cohorts.require_learnable()
    if opened:
        refuse_headers(slides, study.features)
    elif extracts and len(slides):
        refuse_pixel_sizes(slides, study.features)
    folds = _make_folds(context, cohorts)
    if not kept:
        write_folds(study, context.folder, cohorts, folds, None)
    counts = {"patients": len(cohorts.patients), "slides": len(slides), "folds": len(folds)}
    return StepResult(counts | headers)


def _subgroups(study: Study) -> "pd.DataFrame | None":
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


def _check_rna_encoder(context: RunContext) -> None:
    """Refuse RNA that the study's encoder cannot use, and an encoder whose files are missing."""
    source = context.study.tables.rna.encoder
    if source is None or not context.study.encodes_rna:
        return
    from equipoise.platform.extraction.rna_encoders import identify_rna_encoder, require_usable_expression

    require_usable_expression(source, context.cohorts)
    identify_rna_encoder(source, context.study.base)


def _encode_rna(context: RunContext, session: Session) -> dict[str, Any]:
    """Compute the vectors of RNA profiles, if the model reads RNA through an encoder; details of the step."""
    if not context.study.encodes_rna or "rna" not in context.cohorts.omics:
        return {}
    from equipoise.platform.extraction.rna_cohorts import encode_cohorts

    study = context.study
    options: dict[str, Any] = {"workers": study.resources.workers, "session": session}
    address = encode_cohorts(context.cohorts, study.tables.rna, study.base, context.store_root, **options)
    return {"rna_vectors": address}


def _extract_slides(context: RunContext, session: Session) -> "ExtractionSummary":
    """Extract or import the features of all slides.

    Raises
    ------
    DataError
        If the model reads nothing but tiles and a cohort has none.
    """
    from equipoise.platform.extraction.sources import obtain_features

    study = context.study
    without = [cohort.name for cohort in study.cohorts if cohort.slides is None]
    if without and study.reads == {"wsi"}:
        raise DataError(
            f"cohort {', '.join(without)} names no slides table, and the model reads tiles",
            where=str(study.file),
            fix="add slides: and slides_dir: to the cohort, or leave it out",
        )
    return obtain_features(
        context.cohorts.slides,
        study.features,
        context.store_root,
        study.base,
        workers=study.resources.workers,
        session=session,
        qc_dir=context.folder.qc,
    )


def _store_states(context: RunContext, session: Session) -> dict[str, Any]:
    """Compute what the model's frozen slide encoder gives, if the model reads it from a store; details of the step."""
    study, kept = context.study, context.study.model.hidden_states
    if kept is None:
        return {}
    from equipoise.platform.extraction.hidden_states import store_states
    from equipoise.platform.extraction.sources import open_features

    tiles = open_features(study.features, context.store_root, study.base, context.cohorts.slides)
    slides = context.cohorts.with_slide_status(tiles.index()).slides
    options: dict[str, Any] = {"workers": study.resources.workers, "session": session}
    summary = store_states(slides, tiles, kept, study.features, context.store_root, **options)
    log.info("hidden states %s", summary)
    return {"states": summary.address}


def extract(context: RunContext) -> StepResult:
    """Extract features from slides and encode RNA, then write the manifest of usable slides.

    A model that reads tables only has no slides to extract.

    Raises
    ------
    ToleranceError
        If more slides failed than ``features.max_fail`` allows. Everything that could be extracted is kept.
    """
    from equipoise.platform.cluster.session import ray_session, session_description
    from equipoise.platform.extraction.sources import open_once

    study = context.study

    @contextmanager
    def session() -> Iterator[None]:
        with ray_session(study.resources):
            write_json(context.folder.provenance / "ray.json", session_description())
            yield

    with open_once(session) as once:
        encoded = _encode_rna(context, once)
        summary = _extract_slides(context, once) if study.reads_slides else None
        if summary is not None and summary.tolerated:
            encoded |= _store_states(context, once)
    context.forget_inputs()
    if summary is None:
        if not encoded:
            log.info("extract: nothing to do, model %s reads tables only", study.model.kind)
        usable = context.inputs.cohorts
        write_manifest(context.folder, usable, usable.slides)
        write_model_inputs(context)
        skipped = {} if encoded else {"skipped": f"model {study.model.kind} reads tables only"}
        return StepResult({"slides": 0, **skipped, **encoded})
    log.info("extract %s", summary)
    if summary.failed and summary.tolerated:
        log.warning("%d of %d slides failed\n%s", summary.failed, len(summary.index), summary.failures_text())
    if summary.remarked:
        used = "1 slide is" if summary.remarked == 1 else f"{summary.remarked} slides are"
        log.warning("%s used with a remark\n%s", used, summary.remarks_text())
    write_manifest(context.folder, context.inputs.cohorts, summary.index)
    write_model_inputs(context)
    details: dict[str, Any] = {"slides": len(summary.index), "tiles": summary.tiles, "failed": summary.failed}
    details |= {**summary.counts, "features": summary.address, **encoded}
    if not summary.tolerated:
        raise ToleranceError(
            f"{summary.failed} of {len(summary.index)} slides failed, more than max_fail allows "
            f"({summary.failed_share:.1%} > {study.features.max_fail:.1%})\n{summary.failures_text()}",
            where=str(context.folder.manifest / "exclusions.csv"),
            fix="fix or remove these slides, or raise features.max_fail; what was extracted is kept",
        )
    return StepResult(details)


def train(context: RunContext) -> StepResult:
    """Train every fold that is not finished yet; external cohorts are not readable here."""
    from equipoise.platform.training.build import recipe_of
    from equipoise.platform.training.crossval import fold_folder, is_trained, train_fold
    from equipoise.platform.training.epoch_log import EpochLog
    from equipoise.platform.training.folds import run_folds

    study = context.study
    inputs, recipe = context.inputs, recipe_of(study)
    inputs.cohorts.require_learnable()
    folds = _make_folds(context, inputs.cohorts)
    index = None if inputs.tiles is None else inputs.tiles.index()
    # Batches are looked for in the tables, not in vectors of an encoder.
    tabled = replace(inputs.cohorts, omics=context.cohorts.omics)
    write_folds(study, context.folder, tabled, folds, index)
    cases = inputs.cases("develop")
    _set_threads(study)
    names = [f"{fold.repeat}-{fold.index}" for fold in folds]
    if unknown := sorted(set(context.only_folds) - set(names)):
        raise StudyError(f"there is no fold {', '.join(unknown)}; folds: {', '.join(names)}", where="--fold")
    jobs: list[partial[Path]] = []
    features: dict[str, Any] = {"features": inputs.features, "content_keys": inputs.content_keys}
    for name, fold in zip(names, folds, strict=True):
        if context.only_folds and name not in context.only_folds:
            continue
        if is_trained(context.folder.folds, fold, recipe, **features):
            log.info("train fold=%s already done", name)
            continue
        report = EpochLog(context.folder.tensorboard / name, name, study.training.epochs)
        parts = (fold, study.tasks, cases, recipe, context.folder.folds)
        jobs.append(partial(train_fold, *parts, **features, report=report))
    run_folds(jobs, study.training, study.resources)
    done = sum(fold_folder(context.folder.folds, fold).exists() for fold in folds)
    return StepResult({"folds": len(folds), "trained": done}, complete=done == len(folds))


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
    folds = _require_folds(context)
    _set_threads(context.study)
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
    write_details(predictions, folder.evaluation, context.study.evaluation, _subgroups(context.study))
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


def search(context: RunContext) -> StepResult:
    """Search over balancing, loss weights, architecture and optimisation, if the study has a search section.

    ``train`` and ``evaluate`` use the study as written; the winner is a separate study, ``search/best.yaml``.
    """
    if context.study.search is None:
        log.info("search: nothing to do, the study has no search section")
        return StepResult({"skipped": "the study has no search section"})
    from equipoise.platform.run.seen_patients import refuse_seen
    from equipoise.platform.search.holdout import measure
    from equipoise.platform.search.search import run_search

    refuse_seen(context.study, context.inputs)
    inputs = (context.study, context.inputs, context.folder.root)
    result = run_search(*inputs)
    return StepResult(result | (measure(*inputs) if context.measure_winner else {}))


def federate(context: RunContext) -> StepResult:
    """Train across sites, with pooled, local and ensemble baselines, if the study has a federation section."""
    if context.study.federation is None:
        log.info("federate: nothing to do, the study has no federation section")
        return StepResult({"skipped": "the study has no federation section"})
    from equipoise.platform.federation.simulation.federate import federate as run_federations
    from equipoise.platform.run.seen_patients import refuse_seen

    refuse_seen(context.study, context.inputs)
    return StepResult(
        run_federations(context.study, context.study.federation, context.inputs, context.folder.root)
    )


def pretrain(context: RunContext) -> StepResult:
    """Train the model on all patients of many cohorts, for other studies, if the study has a section for it."""
    if context.study.pretrain is None:
        log.info("pretrain: nothing to do, the study has no pretrain section")
        return StepResult({"skipped": "the study has no pretrain section"})
    from equipoise.platform.run.model_pretraining import pretrain as pretrain_model

    _set_threads(context.study)
    result = pretrain_model(context.study, context.study.pretrain, context.inputs, context.folder.pretrain)
    for line in result.text().splitlines():
        log.info("%s", line)
    return StepResult(result.fields())


def explain(context: RunContext) -> StepResult:
    """Explain predictions of chosen patients, if the study has a section for it: maps, tiles, genes, modalities."""
    if context.study.explain is None:
        log.info("explain: nothing to do, the study has no explain section")
        return StepResult({"skipped": "the study has no explain section"})
    from equipoise.platform.explain.explain import explain as explain_patients
    from equipoise.platform.run.explanation import explain_inputs

    _set_threads(context.study)
    folds = _require_folds(context)
    given = explain_inputs(context, context.study.explain, [fold.name for fold in folds])
    return StepResult(explain_patients(given, context.folder.explain))


def report(context: RunContext) -> StepResult:
    """Write ``report.html`` and ``checklists/`` from the run folder and nothing else.

    Raises
    ------
    DataError
        If no other step has written anything there.
    """
    from equipoise.platform.report.checklists.checklist import write_checklists
    from equipoise.platform.report.page import write_report
    from equipoise.platform.report.run_files import RunFiles

    if not context.folder.manifest.is_dir() and not context.folder.search.is_dir():
        raise DataError(
            "nothing to report: no step has run in this folder",
            where=str(context.folder.root),
            fix="equipoise run, or name the folder of a run with -o",
        )
    write_checklists(RunFiles(context.folder.root), context.folder.root)
    return StepResult({"report": str(write_report(context.folder.root))})


STEP_FUNCTIONS: dict[str, Callable[[RunContext], StepResult]] = {
    "validate": validate,
    "extract": extract,
    "train": train,
    "evaluate": evaluate,
    "federate": federate,
    "search": search,
    "pretrain": pretrain,
    "explain": explain,
    "report": report,
}


def _set_threads(study: Study) -> None:
    """Fix the number of threads: it changes the order of sums and with it the last bits of the result."""
    import torch

    torch.set_num_threads(study.training.threads)


def _require_folds(context: RunContext) -> "list[Fold]":
    """The folds, each of them trained with the settings and data of today.

    Raises
    ------
    StudyError
        If one is not trained yet, or was trained with other settings or data.
    """
    from equipoise.platform.training.build import recipe_of
    from equipoise.platform.training.crossval import check_fingerprint, fold_folder
    from equipoise.platform.training.fold_files import require_whole

    folder, inputs, recipe = context.folder, context.inputs, recipe_of(context.study)
    folds = _make_folds(context, inputs.cohorts)
    missing = [f"{f.repeat}-{f.index}" for f in folds if not fold_folder(folder.folds, f).exists()]
    if missing:
        raise StudyError(
            f"folds {', '.join(missing)} are not trained yet",
            where=str(folder.folds),
            fix="run `equipoise train`",
        )
    # Before anything is written: results of other folds than these would not match the manifest.
    for fold in folds:
        require_whole(fold_folder(folder.folds, fold), fold)
        check_fingerprint(
            folder.folds, fold, recipe, features=inputs.features, content_keys=inputs.content_keys
        )
    return folds


def _make_folds(context: RunContext, cohorts: "Cohorts") -> "list[Fold]":
    """The folds of the development patients, not written to disk."""
    from equipoise.datasets.cohorts.splits import make_folds

    study = context.study
    return make_folds(cohorts.patients, study.split_scheme, study.tasks, study.seed, cohorts.slides)
