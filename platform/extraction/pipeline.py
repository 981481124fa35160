"""Extraction of many slides: on Ray Data, or in this process.

The driver registers the slides, sends the pending ones through planner tasks and a pool of encoder actors,
and records status rows as they arrive. Pixels stay inside the actors; a few bytes per tile are transferred.
Progress, resume and byte-identity depend on the store, not on Ray: a worker that dies is started again by Ray
and sees its attempt marker; a driver that is started again finds the staged slides.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from equipoise.datasets.errors import DataError
from equipoise.datasets.names import file_stem
from equipoise.datasets.remote.addresses import require_answers
from equipoise.datasets.slides.fingerprint import fingerprint, slide_bytes
from equipoise.datasets.slides.problems import FAILURES, SlideProblem
from equipoise.datasets.store.feature_store import FeatureStore
from equipoise.datasets.store.spec import QC_FOLDER
from equipoise.platform.extraction.chunks import Row, join_chunks
from equipoise.platform.extraction.encoders import (
    Identify,
    MakeEncoder,
    identify_encoder,
    load_encoder,
    store_spec,
)
from equipoise.platform.extraction.monitoring import ExtractionProgress, SlideCounter
from equipoise.platform.extraction.params import ExtractionParams
from equipoise.platform.extraction.ray_backend import run_on_ray
from equipoise.platform.extraction.stages import StageFactory
from equipoise.platform.extraction.summary import ExtractionSummary, summarise
from equipoise.platform.progress import ProgressBar

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

#: Seconds between two commits while slides come in.
_COMMIT_EVERY = 30.0


def extract(
    slides: pd.DataFrame,
    params: ExtractionParams,
    store_root: str | Path,
    *,
    workers: int | None = None,
    gpus_per_worker: float | None = None,
    progress: Callable[[ExtractionProgress], None] | None = None,
    session: Callable[[], AbstractContextManager[object]] = nullcontext,
    qc_dir: str | Path | None = None,
    make_encoder: MakeEncoder = load_encoder,
    identify: Identify = identify_encoder,
) -> ExtractionSummary:
    """Extract the features of all slides that the store does not have yet.

    Parameters
    ----------
    slides
        Columns ``slide`` (unique), ``patient``, ``cohort``, ``path``, ``mpp`` (NaN if the table states none).
    params
        The study's features section.
    store_root
        Folder of stores, or one store (see :meth:`FeatureStore.create_or_open`); on a file system that all
        workers share.
    workers
        Maximum number of encoder actors; default as many as the cluster has CPUs (GPUs for encoders that need one)
        when the run starts; with more than that the pool grows with the cluster. 0: everything in this process,
        without Ray.
    gpus_per_worker
        Share of a GPU for each encoder actor, of an encoder that needs one; default: what it is meant for.
    progress
        Called after every slide; default logs a line every ten seconds.
    session
        Opens Ray, only if there are slides to extract; default: Ray is open already.
    qc_dir
        Folder that pictures and tile plans are copied to, named by slide.
    make_encoder
        Builds the encoder, once in every worker.
    identify
        Identity of the encoder; the store is made for it, and a worker with a different encoder refuses to work.

    Returns
    -------
    The summary; slides that fail are rows in it, however many they are.

    Raises
    ------
    DataError
        If the store belongs to another specification or is being written by another run, or if nothing answers at the
        address of slides or store.
    ValueError
        If the table lacks a column.
    """
    missing = [name for name in ("slide", "path", "mpp") if name not in slides.columns]
    if missing:
        raise ValueError(f"the slides table lacks {', '.join(missing)}")
    started = time.perf_counter()
    require_answers([*slides["path"].astype(str), str(store_root)])
    identity = identify(params)
    spec = store_spec(params, identity)
    with FeatureStore.create_or_open(store_root, spec, params.shard_slides) as store:
        keys = store.register(_with_fingerprints(slides, params))
        todo = _unfinished(store, keys, params.retry)
        rows = _manifest(slides, keys, set(todo))
        stages = StageFactory(
            params,
            store.staging,
            store.path / QC_FOLDER,
            make_encoder,
            identity.batch_size,
            gpus_per_worker=gpus_per_worker,
        )
        run_stages(rows, store, stages, workers, session, progress)
        if qc_dir is not None:
            _copy_qc(
                store.staging.local_qc_files(keys),
                Path(qc_dir),
                dict(zip(keys, slides["slide"], strict=True)),
            )
        return summarise(slides, keys, store, params, len(todo), time.perf_counter() - started)


def run_stages(
    rows: list[Row],
    store: FeatureStore,
    stages: StageFactory,
    workers: int | None,
    session: Callable[[], AbstractContextManager[object]],
    progress: Callable[[ExtractionProgress], None] | None = None,
) -> None:
    """Send registered slides through both stages; afterwards the store is up to date, also after an error.

    Parameters
    ----------
    rows
        Input of the first stage: ``key``, ``slide`` and whatever else it needs.
    store
        The store in which the slides are registered.
    stages
        Builds the stages.
    workers, session, progress
        As for :func:`extract`.
    """
    try:
        with nullcontext() if workers == 0 or not rows else session():
            _extract_rows(rows, store, stages, workers, progress)
    finally:
        store.commit(partial=True)
    store.commit()


def open_store(
    params: ExtractionParams, store_root: str | Path, slides: pd.DataFrame | None = None
) -> FeatureStore:
    """Open the store that :func:`extract` filled for a study.

    Parameters
    ----------
    params
        The study's features section.
    store_root
        As for :func:`extract`.
    slides
        The study's slides table: the slides' names then refer to exactly these files and pixel sizes, even if the
        store holds other versions of them, and its index lists no other slides.

    Raises
    ------
    DataError
        If there is no such store, or slides have changed since they were extracted.
    """
    spec = store_spec(params, identify_encoder(params))
    if not FeatureStore.exists(store_root, spec):
        raise DataError(
            "these features were not extracted yet",
            where=f"{store_root}/{spec.folder}",
            fix="run `equipoise extract`",
        )
    store = FeatureStore.create_or_open(store_root, spec, params.shard_slides)
    if slides is not None:
        store.choose(_with_fingerprints(slides, params))
    return store


def _with_fingerprints(slides: pd.DataFrame, params: ExtractionParams) -> pd.DataFrame:
    """The columns that the store registers; a missing file has no fingerprint."""

    def fingerprint_of(path: str) -> str:
        try:
            return fingerprint(path)
        except SlideProblem:
            return ""

    with ThreadPoolExecutor(8) as pool:  # network file systems answer slowly, but to many requests at once
        fingerprints = list(pool.map(fingerprint_of, slides["path"].astype(str)))
    mpp = slides["mpp"].astype(float)
    if params.mpp_override is not None:
        mpp = mpp.fillna(params.mpp_override)
    return slides[["slide", "path"]].assign(mpp=mpp, fingerprint=fingerprints)


def _unfinished(store: FeatureStore, keys: list[str], retry: bool) -> list[str]:
    """Keys to work on, after adopting the slides that an interrupted run had finished."""
    store.staging.retract_unfinished_attempts()
    if retry:
        for key in store.pending(keys, retry=True):
            store.reset(key)
    adopted = store.recover_staged(store.pending(keys))
    if adopted:
        log.info("adopted %d slides that an interrupted run had encoded", len(adopted))
    return store.pending(keys)


def _manifest(slides: pd.DataFrame, keys: list[str], todo: set[str]) -> list[Row]:
    """Rows for the planner, largest file first, so that the last slides to finish are small ones."""
    rows = [
        {"key": key, "slide": str(slide), "path": str(path), "mpp": float(mpp)}
        for key, slide, path, mpp in zip(keys, slides["slide"], slides["path"], slides["mpp"], strict=True)
        if key in todo
    ]
    return sorted(rows, key=lambda row: (-slide_bytes(row["path"]), row["key"]))


def _extract_rows(
    rows: list[Row],
    store: FeatureStore,
    stages: StageFactory,
    workers: int | None,
    report: Callable[[ExtractionProgress], None] | None,
) -> None:
    """Run the stages over all rows; record and commit the status rows that they return."""
    results = _inline(rows, stages) if workers == 0 or not rows else _distributed(rows, stages, workers)
    started = committed = time.perf_counter()
    tiles = failed = 0
    with ProgressBar("extract", len(rows), unit="slides") as bar:
        for done, row in enumerate(results, start=1):
            result = json.loads(row["result"])
            store.record([{"key": row["key"], **result}])
            tiles += result["n"] if result["status"] == "ok" else 0
            failed += result["status"] in FAILURES
            now = time.perf_counter()
            moment = ExtractionProgress(
                done, len(rows), tiles, failed, now - started, row["slide"], result["status"]
            )
            bar.update(done, str(moment))
            if report is not None:
                report(moment)
            if now - committed > _COMMIT_EVERY:
                store.commit(partial=True)
                committed = time.perf_counter()


def _distributed(rows: list[Row], stages: StageFactory, workers: int | None) -> Iterator[Row]:
    """Both stages on Ray; counts the slides that end."""
    counter = SlideCounter(stages.label)
    for row in _with_retry(rows, stages, workers):
        counter.add(json.loads(row["result"])["status"])
        yield row


def _with_retry(rows: list[Row], stages: StageFactory, workers: int | None) -> Iterator[Row]:
    """Slides that two workers died on are tried once more, alone, at the end.

    A worker may also be killed from outside, or because its neighbours used too much memory. If it dies again while
    nothing else is running, the slide is the cause.
    """
    suspects: list[str] = []
    max_bad = stages.params.max_bad_tiles
    for row in join_chunks(run_on_ray(rows, stages, workers), stages.staging, max_bad):
        if _quarantined(row):
            suspects.append(row["key"])
        else:
            yield row
    if suspects:
        log.warning(
            "%d slides were being extracted when two workers died; trying each once more, alone",
            len(suspects),
        )
        for key in suspects:
            stages.staging.allow_one_more_attempt(key)
        retried = run_on_ray([row for row in rows if row["key"] in set(suspects)], stages, 1)
        for row in join_chunks(retried, stages.staging, max_bad):
            if _quarantined(row):
                result = json.loads(row["result"])
                row["result"] = json.dumps(
                    result
                    | {"error": f"{result['error']} (it died again when this slide was extracted alone)"}
                )
            yield row


def _quarantined(row: Row) -> bool:
    return json.loads(row["result"])["status"] == "quarantined"


def _inline(rows: list[Row], stages: StageFactory) -> Iterator[Row]:
    """Both stages in this process, slide by slide."""
    if rows:
        planner, encoder = stages.planner(), stages.encoder()
        encoded = (encoder(planned) for row in rows for planned in planner(row))
        yield from join_chunks(encoded, stages.staging, stages.params.max_bad_tiles)


def _copy_qc(source: Path, target: Path, names: dict[str, str]) -> None:
    """Pictures and plans under the slides' names; ``/`` of a qualified name becomes ``__``."""
    target.mkdir(parents=True, exist_ok=True)
    for key, slide in names.items():
        for file in source.glob(f"{key}.*"):
            if not file.name.endswith(".tmp"):
                shutil.copyfile(file, target / f"{file_stem(str(slide))}{file.suffix}")
