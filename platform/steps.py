"""The steps of a run, in the order of the data: tables → features → models → predictions → report.

Each step reads what the one before it left in the run folder or the feature store, and can be repeated: what is
there and fits is not made again.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equipoise.datasets.whole_files import write_json
from equipoise.platform.errors import DataError, StudyError, ToleranceError
from equipoise.platform.manifest import is_of_extraction, write_folds, write_manifest
from equipoise.platform.study import Study
from equipoise.platform.work import Work, load
from equipoise.platform.workspace import RunFolder

if TYPE_CHECKING:
    from equipoise.datasets.cohort import Cohorts
    from equipoise.datasets.splits import Fold

log = logging.getLogger("equipoise")


def perform(
    study: Study,
    open_folder: Callable[[Study], RunFolder],
    steps: Sequence[str],
    *,
    dry_run: bool = False,
    only_folds: Sequence[str] = (),
    check_slides: bool = False,
    measure_winner: bool = True,
) -> dict[str, Any]:
    """Run steps in order, each recorded in the run folder.

    Parameters
    ----------
    study
        The study.
    open_folder
        Gives the run folder, or refuses one that belongs to another study.
    steps
        Names out of :data:`~equipoise.platform.workspace.STEPS`.
    dry_run
        Print what would be done and stop.
    only_folds
        Folds to train, all if empty.
    check_slides
        Whether ``validate`` opens every slide's header.
    measure_winner
        Whether ``search`` looks at the patients that no trial has seen.

    Returns
    -------
    Facts for the result line.
    """
    from equipoise.platform import provenance

    if dry_run:
        print(plan(study, steps))
        return {"study": study.name, "dry_run": True}
    folder = open_folder(study)
    work = Work(study, folder, tuple(only_folds), check_slides, measure_winner)
    try:
        provenance.record(study, folder)
        for name in steps:
            with folder.step(name) as facts:
                log.info("step=%s", name)
                facts.update(STEP[name](work))
    except BaseException as error:
        error.facts = {"out": folder.root, "run_folder": folder}  # type: ignore[attr-defined]
        raise
    report = {"report": folder.report} if "report" in steps else {}
    return {"out": folder.root, "run_folder": folder, **report}


def plan(study: Study, steps: Sequence[str]) -> str:
    """What the steps would do, without doing it."""
    cohorts = load(study)
    features = (
        f"{study.features.encoder}, store {study.features.store}" if study.reads_slides else "tables only"
    )
    lines = [describe(cohorts, study), f"features: {features}"]
    lines.append(f"folds: {study.splits.scheme}")
    return "\n".join([*lines, f"steps: {' → '.join(steps)}"])


def describe(cohorts: "Cohorts", study: Study) -> str:
    """Participant flow and labels as a few lines of text."""
    from equipoise.datasets.flow import flow_text

    lines = [f"study {study.name}: {len(cohorts.patients)} patients, {len(cohorts.slides)} slides"]
    lines += [f"  {line}" for line in flow_text(cohorts.flow).split("; ")]
    if len(cohorts.exclusions):
        lines.append(
            f"  {len(cohorts.exclusions)} exclusions, each with its reason in manifest/exclusions.csv"
        )
    lines += [f"  note: {note}" for note in cohorts.notes]
    return "\n".join(lines)


def validate(work: Work) -> dict[str, Any]:
    """Write the manifest as the tables give it, and a preview of the folds."""
    cohorts = work.cohorts if work.study.reads_slides else work.usable  # without slides, nothing comes later
    for line in describe(work.cohorts, work.study).splitlines():
        log.info("%s", line)
    work.cohorts.require_learnable()
    slides = work.cohorts.slides
    facts: dict[str, Any] = {}
    if work.check_slides and len(slides) and work.study.features.imported is None:
        from equipoise.platform.extraction.headers import check_headers

        slides = check_headers(slides, work.study.features)
        bad = slides[slides["status"] != "ok"]
        facts["headers"] = slides["status"].value_counts().to_dict()
        for row in bad.head(20).itertuples():
            log.warning("%s: %s: %s", row.slide, row.status, row.error)
        log.info("headers: %d of %d slides can be used", len(slides) - len(bad), len(slides))
    folds = _make_folds(work, cohorts)
    if is_of_extraction(work.folder):
        log.info("the manifest of the extraction is kept: the tables are the same")
    else:
        write_manifest(work.folder, cohorts, slides)
        write_folds(work.study, work.folder, cohorts, folds, None)
    return {"patients": len(cohorts.patients), "slides": len(slides), "folds": len(folds), **facts}


def extract(work: Work) -> dict[str, Any]:
    """Slides → features; then the manifest of those that can be used. A model of tables has nothing to extract.

    Raises
    ------
    ToleranceError
        If more slides failed than ``features.max_fail`` allows. Everything that could be extracted is kept.
    """
    from equipoise.platform.extraction.sources import obtain_features
    from equipoise.platform.session import ray_session, session_description

    study = work.study
    if not study.reads_slides:
        log.info("extract: nothing to do, model %s reads tables only", study.model.kind)
        write_manifest(work.folder, work.usable, work.usable.slides)
        return {"slides": 0, "skipped": f"model {study.model.kind} reads tables only"}

    @contextmanager
    def session() -> Iterator[None]:
        with ray_session(study.resources):
            write_json(work.folder.provenance / "ray.json", session_description())
            yield

    without = [cohort.name for cohort in study.cohorts if cohort.slides is None]
    if without and study.reads == {"wsi"}:
        raise DataError(
            f"cohort {', '.join(without)} names no slides table, and the model reads tiles",
            where=str(study.file),
            fix="add slides: and slides_dir: to the cohort, or leave it out",
        )
    summary = obtain_features(
        work.cohorts.slides,
        study.features,
        work.store_root,
        study.base,
        workers=study.resources.workers,
        session=session,
        qc_dir=work.folder.qc,
    )
    for name in ("store", "usable"):  # opened before extraction, they would not know what it found
        work.__dict__.pop(name, None)
    log.info("extract %s", summary)
    if summary.failed and summary.tolerated:
        log.warning("%d of %d slides failed\n%s", summary.failed, len(summary.index), summary.failures_text())
    write_manifest(work.folder, work.usable, summary.index)
    facts: dict[str, Any] = {"slides": len(summary.index), "tiles": summary.tiles, "failed": summary.failed}
    facts |= {**summary.counts, "features": summary.address}
    if not summary.tolerated:
        raise ToleranceError(
            f"{summary.failed} of {len(summary.index)} slides failed, more than max_fail allows "
            f"({summary.failed_share:.1%} > {study.features.max_fail:.1%})\n{summary.failures_text()}",
            where=str(work.folder.manifest / "exclusions.csv"),
            fix="mend or remove these slides, or raise features.max_fail; what was extracted is kept",
        )
    return facts


def train(work: Work) -> dict[str, Any]:
    """Train every fold that is not finished yet; external cohorts are out of reach."""
    from equipoise.datasets.cases import CaseReader
    from equipoise.platform.tracking import EpochLog
    from equipoise.platform.training.crossval import fold_folder, require_same, train_fold

    study = work.study
    work.usable.require_learnable()
    folds = _make_folds(work, work.usable)
    index = work.store.index() if study.reads_slides else None
    write_folds(work.study, work.folder, work.usable, folds, index)
    cases = CaseReader(work.usable, work.tiles, role="develop")
    _set_threads(study)
    names = [f"{fold.repeat}-{fold.index}" for fold in folds]
    if unknown := sorted(set(work.only_folds) - set(names)):
        raise StudyError(f"there is no fold {', '.join(unknown)}; folds: {', '.join(names)}", where="--fold")
    jobs: list[partial[Path]] = []
    features: dict[str, Any] = {"features": work.features, "contents": work.contents}
    for name, fold in zip(names, folds, strict=True):
        if work.only_folds and name not in work.only_folds:
            continue
        if fold_folder(work.folder.folds, fold).exists():
            require_same(work.folder.folds, fold, work.recipe, **features)
            log.info("train fold=%s already done", name)
            continue
        report = EpochLog(work.folder.tensorboard / name, name)
        parts = (fold, study.tasks, cases, work.recipe, work.folder.folds)
        jobs.append(partial(train_fold, *parts, **features, report=report))
    run_folds(study, jobs)
    done = sum(fold_folder(work.folder.folds, fold).exists() for fold in folds)
    return {"folds": len(folds), "trained": done} | ({} if done == len(folds) else {"status": "partial"})


def run_folds(study: Study, jobs: "list[partial[Path]]") -> None:
    """One after the other in this process, several at once in processes of their own, or each by many workers."""
    from equipoise.platform.session import ray_session

    if study.training.workers == 1 and (study.resources.folds == 1 or len(jobs) < 2):
        for job in jobs:
            with job.keywords["report"]:
                job()
        return
    if jobs:
        from equipoise.platform.training.on_ray import folds_at_once

        with ray_session(study.resources):
            if study.training.workers > 1:
                for job in jobs:
                    job()
            else:
                folds_at_once(jobs, at_once=study.resources.folds, cpus=study.training.threads)


def evaluate(work: Work) -> dict[str, Any]:
    """Predict external cohorts with every fold's model, then compute all metrics."""
    import pandas as pd

    from equipoise.datasets.cases import CaseReader
    from equipoise.datasets.whole_files import read_json
    from equipoise.platform.evaluation import latents
    from equipoise.platform.evaluation.evaluate import evaluate as compute
    from equipoise.platform.evaluation.metrics_table import write_metrics
    from equipoise.platform.evaluation.predictions import read_predictions, write_predictions
    from equipoise.platform.training.batches import CaseList
    from equipoise.platform.training.build import pick_device
    from equipoise.platform.training.crossval import fold_folder, load_fold, require_same

    folder = work.folder
    folds = _make_folds(work, work.usable)
    missing = [f"{f.repeat}-{f.index}" for f in folds if not fold_folder(folder.folds, f).exists()]
    if missing:
        raise StudyError(
            f"folds {', '.join(missing)} are not trained yet",
            where=str(folder.folds),
            fix="run `equipoise train`",
        )
    for (
        fold
    ) in folds:  # before anything is written: predictions of other folds than these belong to no manifest
        require_same(folder.folds, fold, work.recipe, features=work.features, contents=work.contents)
    _set_threads(work.study)
    device = pick_device(work.study.training.device)
    reader = CaseReader(work.usable, work.tiles, role="external")
    cases = CaseList(reader, tuple(reader))
    wanted = {"patients": {patient: work.contents[patient] for patient in reader}}
    parts = []
    for fold in folds:
        path = fold_folder(folder.folds, fold)
        parts.append(read_predictions(path / "preds.parquet"))
        if not cases:
            continue
        kept, read, made_for = path / "external.parquet", path / latents.EXTERNAL, path / "external.json"
        if read_json(made_for) != wanted or not read.exists():
            made_for.unlink(missing_ok=True)
            external, vectors = load_fold(path, device).predict_with_latents(cases, "external")
            write_predictions(external, kept)
            latents.write_latents(vectors, read)
            write_json(made_for, wanted)
        parts.append(read_predictions(kept))
    predictions = pd.concat(parts, ignore_index=True)
    write_predictions(predictions, folder.evaluation / "predictions.parquet")
    vectors = latents.of_folds(fold_folder(folder.folds, fold) for fold in folds)
    metrics = compute(predictions, work.study.evaluation, work.study.seed, vectors)
    write_metrics(metrics, folder.evaluation, work.study.evaluation)
    return {"predictions": len(predictions), "metrics": len(metrics)}


def search(work: Work) -> dict[str, Any]:
    """Search over balancing, loss weights, architecture and optimisation, if the study says so.

    ``train`` and ``evaluate`` are of the study as written; the winner is ``search/best.yaml``, a study of its own.
    """
    if work.study.search is None:
        log.info("search: nothing to do, the study has no search section")
        return {"skipped": "the study has no search section"}
    from equipoise.platform.search.measure import measure
    from equipoise.platform.search.search import run_search

    facts = run_search(work)
    return facts | (measure(work) if work.measure_winner else {})


def federate(work: Work) -> dict[str, Any]:
    """Train across sites, if the study says so, with pooled, local and ensemble training beside it."""
    if work.study.federation is None:
        log.info("federate: nothing to do, the study has no federation section")
        return {"skipped": "the study has no federation section"}
    from equipoise.platform.federation.step import federate as run_federations

    return run_federations(work, work.study.federation)


def report(work: Work) -> dict[str, Any]:
    """Write ``report.html`` from the run folder and nothing else."""
    from equipoise.platform.report.report import write_report

    return {"report": str(write_report(work.folder.root))}


STEP: dict[str, Callable[[Work], dict[str, Any]]] = {
    "validate": validate,
    "extract": extract,
    "train": train,
    "evaluate": evaluate,
    "federate": federate,
    "search": search,
    "report": report,
}


def _set_threads(study: Study) -> None:
    """More threads change the order of sums and with it the last bits; one number of threads, one result."""
    import torch

    torch.set_num_threads(study.training.threads)


def _make_folds(work: Work, cohorts: "Cohorts") -> "list[Fold]":
    """The folds of the development patients; writes nothing."""
    from equipoise.datasets.splits import make_folds

    return make_folds(cohorts.patients, work.study.splits, work.study.tasks, work.study.seed)
