"""The steps of a run, in the order of the data: tables → features → models → predictions → report.

Each step reads what the one before it left in the run folder or the feature store, and can be repeated: what is
there and fits is not made again.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equipoise.datasets.whole_files import write_json
from equipoise.platform.errors import DataError, StudyError, ToleranceError
from equipoise.platform.manifest import is_of_extraction, write_folds, write_manifest
from equipoise.platform.study import Study
from equipoise.platform.workspace import RunFolder

if TYPE_CHECKING:
    from equipoise.datasets.cohort import Cohorts
    from equipoise.datasets.features import FeatureStore
    from equipoise.datasets.splits import Fold
    from equipoise.platform.training.params import Recipe

log = logging.getLogger("equipoise")


@dataclass
class Work:
    """A study and its run folder; tables are read once for all steps of a command.

    Parameters
    ----------
    study, folder
        The study and where it runs.
    only_folds
        Folds to train (``0-1``: repeat 0, fold 1); all of them if empty.
    check_slides
        Whether ``validate`` opens every slide's header.
    """

    study: Study
    folder: RunFolder
    only_folds: tuple[str, ...] = ()
    check_slides: bool = False

    @cached_property
    def cohorts(self) -> "Cohorts":
        """Patients and slides as the tables give them."""
        return load(self.study)

    @cached_property
    def usable(self) -> "Cohorts":
        """Patients and slides that have features; needs the step ``extract``."""
        return self.cohorts.with_slide_status(self.store.index())

    @cached_property
    def store(self) -> "FeatureStore":
        """The feature store of the study, in which a slide's name means the file and pixel size of the tables."""
        from equipoise.platform.extraction.pipeline import open_store

        return open_store(self.study.features, self.store_root, self.cohorts.slides)

    @property
    def store_root(self) -> Path:
        """Folder of feature stores."""
        return self.study.base / Path(self.study.features.store).expanduser()

    @cached_property
    def contents(self) -> dict[str, str]:
        """Patient → labels and slides as text: whatever changes here changes what a model would have learned."""
        index = self.store.index().set_index("slide")
        slides: dict[str, list[str]] = {}
        for slide, patient in zip(self.usable.slides["slide"], self.usable.slides["patient"], strict=True):
            row = index.loc[slide]
            slides.setdefault(patient, []).append(f"{slide} {row['key']} {row['n']}")
        table = self.usable.patients.set_index("patient")
        labels = table[[column for task in self.study.tasks for column in task.frame_columns]]
        return {
            patient: f"{values.tolist()} {slides.get(patient, [])}"
            for patient, values in zip(labels.index, labels.to_numpy(), strict=True)
        }

    @property
    def recipe(self) -> "Recipe":
        """What decides the weights of a fold."""
        from equipoise.platform.training.params import Recipe

        params = self.study.model.model_dump()
        return Recipe(
            model=params.pop("kind"),
            model_params=params,
            balancing=self.study.balancing,
            training=self.study.training,
            seed=self.study.seed,
        )


def perform(
    study: Study,
    open_folder: Callable[[Study], RunFolder],
    steps: Sequence[str],
    *,
    dry_run: bool = False,
    only_folds: Sequence[str] = (),
    check_slides: bool = False,
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

    Returns
    -------
    Facts for the result line.
    """
    from equipoise.platform import provenance

    if dry_run:
        print(plan(study, steps))
        return {"study": study.name, "dry_run": True}
    folder = open_folder(study)
    work = Work(study, folder, tuple(only_folds), check_slides)
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


def load(study: Study) -> "Cohorts":
    """Read the tables of a study."""
    from equipoise.datasets.cohort import load_cohorts
    from equipoise.datasets.rehearsal import beyond

    cohorts = load_cohorts(study.cohorts, study.tasks, study.columns, study.base)
    if study.patients_per_site is None:
        return cohorts
    left_out = beyond(cohorts.patients, study.patients_per_site, study.main_task)
    return cohorts.drop(left_out, "rehearsal")


def plan(study: Study, steps: Sequence[str]) -> str:
    """What the steps would do, without doing it."""
    cohorts = load(study)
    lines = [describe(cohorts, study), f"features: {study.features.encoder}, store {study.features.store}"]
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
    for line in describe(work.cohorts, work.study).splitlines():
        log.info("%s", line)
    work.cohorts.require_learnable()
    slides = work.cohorts.slides
    facts: dict[str, Any] = {}
    if work.check_slides and len(slides):
        from equipoise.platform.extraction.headers import check_headers

        slides = check_headers(slides, work.study.features)
        bad = slides[slides["status"] != "ok"]
        facts["headers"] = slides["status"].value_counts().to_dict()
        for row in bad.head(20).itertuples():
            log.warning("%s: %s: %s", row.slide, row.status, row.error)
        log.info("headers: %d of %d slides can be used", len(slides) - len(bad), len(slides))
    folds = _make_folds(work, work.cohorts)
    if is_of_extraction(work.folder):
        log.info("the manifest of the extraction is kept: the tables are the same")
    else:
        write_manifest(work.folder, work.cohorts, slides)
        write_folds(work.study, work.folder, work.cohorts, folds, None)
    return {"patients": len(work.cohorts.patients), "slides": len(slides), "folds": len(folds), **facts}


def extract(work: Work) -> dict[str, Any]:
    """Slides → features; then the manifest of those that can be used.

    Raises
    ------
    ToleranceError
        If more slides failed than ``features.max_fail`` allows. Everything that could be extracted is kept.
    """
    from equipoise.platform.extraction.pipeline import extract as extract_slides
    from equipoise.platform.session import ray_session, session_description

    study = work.study

    @contextmanager
    def session() -> Iterator[None]:
        with ray_session(study.resources):
            write_json(work.folder.provenance / "ray.json", session_description())
            yield

    without = [cohort.name for cohort in study.cohorts if cohort.slides is None]
    if without:
        raise DataError(
            f"cohort {', '.join(without)} names no slides table, and the model reads tiles",
            where=str(study.file),
            fix="add slides: and slides_dir: to the cohort, or leave it out",
        )
    summary = extract_slides(
        work.cohorts.slides,
        study.features,
        work.store_root,
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
    facts = {"slides": len(summary.index), "tiles": summary.tiles, "failed": summary.failed, **summary.counts}
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
    from equipoise.platform.tracking import TensorBoard
    from equipoise.platform.training.crossval import fold_folder, require_same, train_fold

    study = work.study
    work.usable.require_learnable()
    folds = _make_folds(work, work.usable)
    write_folds(work.study, work.folder, work.usable, folds, work.store.index())
    cases = CaseReader(work.usable, work.store, role="develop")
    _set_threads(study)
    names = [f"{fold.repeat}-{fold.index}" for fold in folds]
    if unknown := sorted(set(work.only_folds) - set(names)):
        raise StudyError(f"there is no fold {', '.join(unknown)}; folds: {', '.join(names)}", where="--fold")
    for name, fold in zip(names, folds, strict=True):
        if work.only_folds and name not in work.only_folds:
            continue
        if fold_folder(work.folder.folds, fold).exists():
            require_same(
                work.folder.folds, fold, work.recipe, features=work.store.spec.address, contents=work.contents
            )
            log.info("train fold=%s already done", name)
            continue
        with TensorBoard(work.folder.tensorboard / name) as board:

            def report(row: dict[str, float], name: str = name, board: TensorBoard = board) -> None:
                board(row)
                log.info(
                    "train fold=%s %s", name, " ".join(f"{key}={value:.4g}" for key, value in row.items())
                )

            train_fold(
                fold,
                study.tasks,
                cases,
                work.recipe,
                work.folder.folds,
                features=work.store.spec.address,
                contents=work.contents,
                report=report,
            )
    done = sum(fold_folder(work.folder.folds, fold).exists() for fold in folds)
    return {"folds": len(folds), "trained": done} | ({} if done == len(folds) else {"status": "partial"})


def evaluate(work: Work) -> dict[str, Any]:
    """Predict external cohorts with every fold's model, then compute all metrics."""
    import pandas as pd

    from equipoise.datasets.cases import CaseReader
    from equipoise.datasets.whole_files import read_json
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
        require_same(
            folder.folds, fold, work.recipe, features=work.store.spec.address, contents=work.contents
        )
    _set_threads(work.study)
    device = pick_device(work.study.training.device)
    reader = CaseReader(work.usable, work.store, role="external")
    cases = CaseList(reader, tuple(reader))
    wanted = {"patients": {patient: work.contents[patient] for patient in reader}}
    parts = []
    for fold in folds:
        path = fold_folder(folder.folds, fold)
        parts.append(read_predictions(path / "preds.parquet"))
        if not cases:
            continue
        kept, made_for = path / "external.parquet", path / "external.json"
        if read_json(made_for) != wanted:
            made_for.unlink(missing_ok=True)
            write_predictions(load_fold(path, device).predict(cases, "external"), kept)
            write_json(made_for, wanted)
        parts.append(read_predictions(kept))
    predictions = pd.concat(parts, ignore_index=True)
    write_predictions(predictions, folder.evaluation / "predictions.parquet")
    metrics = compute(predictions, work.study.evaluation, work.study.seed)
    write_metrics(metrics, folder.evaluation, work.study.evaluation)
    return {"predictions": len(predictions), "metrics": len(metrics)}


def report(work: Work) -> dict[str, Any]:
    """Write ``report.html`` from the run folder and nothing else."""
    from equipoise.platform.report.report import write_report

    return {"report": str(write_report(work.folder.root))}


STEP: dict[str, Callable[[Work], dict[str, Any]]] = {
    "validate": validate,
    "extract": extract,
    "train": train,
    "evaluate": evaluate,
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
