"""The steps of a run, in the order of the data: tables → features → models → predictions → report.

Each step reads the output of the steps before it from the run folder or the feature store, and can be repeated:
output that exists and matches the study is not computed again.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equipoise.platform.errors import DataError, StudyError
from equipoise.platform.run.context import RunContext, read_cohorts
from equipoise.platform.run.evaluation_step import evaluate, subgroups_of
from equipoise.platform.run.extraction_step import extract
from equipoise.platform.run.folder import RunFolder, StepResult, study_steps
from equipoise.platform.run.folds import folds_of, require_folds, set_threads
from equipoise.platform.run.manifest import is_written_by_extract, write_folds, write_manifest
from equipoise.platform.run.remote_folder import run_paths
from equipoise.platform.run.slide_checks import missing_files, refuse_headers, refuse_pixel_sizes
from equipoise.platform.run.taken_folds import take_folds
from equipoise.platform.study.schema import Study

if TYPE_CHECKING:
    from equipoise.datasets.cohorts.cohort import Cohorts

log = logging.getLogger("equipoise")


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
    folds_from: Sequence[str | Path] = (),
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
    folds_from
        Other run folders of the study or their addresses, whose finished folds ``train`` takes before it trains any.

    Raises
    ------
    EquipoiseError
        That of the step that failed; the run folder records it, and the same call resumes.
    InUseError
        If another job is writing to the folder, which stays as it is.
    """
    from equipoise.platform.run import provenance

    results: dict[str, StepResult] = {}
    folder.require_shared(study, steps)
    with run_paths([str(run) for run in folds_from]) as others, folder.writing():
        context = RunContext(study, folder, tuple(only_folds), check_slides, measure_winner, tuple(others))
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
    subgroups_of(study)  # a misspelt column is found before training and not after it
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
    folds = folds_of(context, cohorts)
    if not kept:
        write_folds(study, context.folder, cohorts, folds, None)
    counts = {"patients": len(cohorts.patients), "slides": len(slides), "folds": len(folds)}
    return StepResult(counts | headers)


def _check_rna_encoder(context: RunContext) -> None:
    """Refuse RNA that the study's encoder cannot use, and an encoder whose files are missing."""
    source = context.study.tables.rna.encoder
    if source is None or not context.study.encodes_rna:
        return
    from equipoise.platform.extraction.rna_encoders import identify_rna_encoder, require_usable_expression

    require_usable_expression(source, context.cohorts)
    identify_rna_encoder(source, context.study.base)


def train(context: RunContext) -> StepResult:
    """Train every fold that is not finished yet; external cohorts are not readable here."""
    from equipoise.platform.training.build import recipe_of
    from equipoise.platform.training.crossval import check_fingerprint, fold_folder, is_trained, train_fold
    from equipoise.platform.training.epoch_log import EpochLog
    from equipoise.platform.training.folds import run_folds

    study = context.study
    inputs, recipe = context.inputs, recipe_of(study)
    inputs.cohorts.require_learnable()
    folds = folds_of(context, inputs.cohorts)
    index = None if inputs.tiles is None else inputs.tiles.index()
    # Batches are looked for in the tables, not in vectors of an encoder.
    tabled = replace(inputs.cohorts, omics=context.cohorts.omics)
    write_folds(study, context.folder, tabled, folds, index)
    cases = inputs.cases("develop")
    set_threads(study)
    names = [f"{fold.repeat}-{fold.index}" for fold in folds]
    if unknown := sorted(set(context.only_folds) - set(names)):
        raise StudyError(f"there is no fold {', '.join(unknown)}; folds: {', '.join(names)}", where="--fold")
    jobs: list[partial[Path]] = []
    features: dict[str, Any] = {"features": inputs.features, "content_keys": inputs.content_keys}
    wanted = {
        n: f for n, f in zip(names, folds, strict=True) if not context.only_folds or n in context.only_folds
    }
    check = partial(check_fingerprint, recipe=recipe, **features)
    take_folds(list(wanted.values()), context.folder, context.folds_from, check)
    for name, fold in wanted.items():
        if is_trained(context.folder.folds, fold, recipe, **features):
            log.info("train fold=%s already done", name)
            continue
        report = EpochLog(context.folder.tensorboard / name, name, study.training.epochs)
        parts = (fold, study.tasks, cases, recipe, context.folder.folds)
        jobs.append(partial(train_fold, *parts, **features, report=report))
    run_folds(jobs, study.training, study.resources, context.folder.commit)
    done = sum(fold_folder(context.folder.folds, fold).exists() for fold in folds)
    return StepResult({"folds": len(folds), "trained": done}, complete=done == len(folds))


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

    set_threads(context.study)
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

    set_threads(context.study)
    folds = require_folds(context)
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
            where=context.folder.address,
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
