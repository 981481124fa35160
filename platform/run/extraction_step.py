"""The step ``extract``: features of slides, vectors of RNA, hidden states, and the manifest of what can be used."""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from equipoise.datasets.atomic_io import write_json
from equipoise.platform.errors import DataError, ToleranceError
from equipoise.platform.run.context import RunContext
from equipoise.platform.run.folder import StepResult
from equipoise.platform.run.manifest import write_manifest
from equipoise.platform.run.model_export import write_model_inputs

if TYPE_CHECKING:
    from equipoise.platform.extraction.summary import ExtractionSummary
    from equipoise.platform.study.schema import Study

log = logging.getLogger("equipoise")

#: Opens Ray when a step needs it.
Session = Callable[[], AbstractContextManager[object]]


def _pool(study: "Study", session: Session) -> dict[str, Any]:
    """The workers of an encoder, as the study asks for them."""
    resources = study.resources
    return {
        "workers": resources.workers,
        "gpus_per_worker": resources.gpus_per_worker,
        "session": session,
    }


def _encode_rna(context: RunContext, session: Session) -> dict[str, Any]:
    """Compute the vectors of RNA profiles, if the model reads RNA through an encoder; details of the step."""
    if not context.study.encodes_rna or "rna" not in context.cohorts.omics:
        return {}
    from equipoise.platform.extraction.rna_cohorts import encode_cohorts

    study = context.study
    options = _pool(study, session)
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
        qc_dir=context.folder.qc,
        **_pool(study, session),
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
    options = _pool(study, session)
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
