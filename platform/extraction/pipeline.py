"""Many slides through the stages: on Ray Data, or in this process.

The driver registers the slides, sends the pending ones through planner tasks and a pool of encoder actors,
and records status rows as they come. Pixels stay inside the actors; what travels is a few bytes per tile.
Progress, resume and byte-identity rest on the store, not on Ray: a worker that dies is started again by Ray
and finds its mark, a driver that dies finds staged slides.
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
from equipoise.datasets.features import FeatureStore
from equipoise.datasets.slides.fingerprint import fingerprint, slide_bytes
from equipoise.datasets.slides.problems import FAILURES, SlideProblem
from equipoise.datasets.store.spec import QC_FOLDER
from equipoise.platform.extraction.counters import SlideCounter
from equipoise.platform.extraction.encoders import (
    Identify,
    MakeEncoder,
    identify_encoder,
    load_encoder,
    store_spec,
)
from equipoise.platform.extraction.on_ray import on_ray
from equipoise.platform.extraction.params import ExtractionParams
from equipoise.platform.extraction.plan_row import Row
from equipoise.platform.extraction.progress import Progress
from equipoise.platform.extraction.regions import joined
from equipoise.platform.extraction.stages import Setup
from equipoise.platform.extraction.summary import ExtractionSummary, summarise

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

#: Seconds between two commits while slides come in.
_COMMIT_EVERY = 30.0

_LOG_EVERY = 10.0


def extract(
    slides: pd.DataFrame,
    params: ExtractionParams,
    store_root: str | Path,
    *,
    workers: int | None = None,
    progress: Callable[[Progress], None] | None = None,
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
        Most encoder actors; default as many as the cluster has CPUs (or GPUs, for encoders that want one) when
        the run starts; with more than that the pool grows with the cluster. 0: everything in this process,
        without Ray.
    progress
        Called after every slide; default logs a line every ten seconds.
    session
        Opens Ray, and only if there is work for it; default: Ray is open already.
    qc_dir
        Where pictures and tile plans are copied to, named by slide.
    make_encoder
        Builds the encoder, once in every worker.
    identify
        What the encoder is; the store is made for it, and a worker whose encoder is another refuses to work.

    Returns
    -------
    The summary; slides that fail are rows in it, whatever their number.

    Raises
    ------
    DataError
        If the store belongs to another specification or is being written by another run.
    ValueError
        If the table lacks a column.
    """
    missing = [name for name in ("slide", "path", "mpp") if name not in slides.columns]
    if missing:
        raise ValueError(f"the slides table lacks {', '.join(missing)}")
    started = time.perf_counter()
    identity = identify(params)
    spec = store_spec(params, identity)
    with FeatureStore.create_or_open(store_root, spec, params.shard_slides) as store:
        keys = store.register(_with_fingerprints(slides, params))
        todo = _unfinished(store, keys, params.retry)
        rows = _manifest(slides, keys, set(todo))
        setup = Setup(params, store.staging, store.path / QC_FOLDER, make_encoder, identity.batch_size)
        run_stages(rows, store, setup, workers, session, progress)
        if qc_dir is not None:
            _copy_qc(
                store.staging.pictures(keys), Path(qc_dir), dict(zip(keys, slides["slide"], strict=True))
            )
        return summarise(slides, keys, store, params, len(todo), time.perf_counter() - started)


def run_stages(
    rows: list[Row],
    store: FeatureStore,
    setup: Setup,
    workers: int | None,
    session: Callable[[], AbstractContextManager[object]],
    progress: Callable[[Progress], None] | None = None,
) -> None:
    """Send registered slides through both stages; the store is up to date afterwards, whatever happens.

    Parameters
    ----------
    rows
        For the first stage: ``key``, ``slide`` and what it needs.
    store
        Where they are registered.
    setup
        The stages.
    workers, session, progress
        As for :func:`extract`.
    """
    try:
        with nullcontext() if workers == 0 or not rows else session():
            _work(rows, store, setup, workers, progress or _logged())
    finally:
        store.commit(partial=True)
    store.commit()


def open_store(
    params: ExtractionParams, store_root: str | Path, slides: pd.DataFrame | None = None
) -> FeatureStore:
    """The store that :func:`extract` filled for a study, for reading.

    Parameters
    ----------
    params
        The study's features section.
    store_root
        As for :func:`extract`.
    slides
        The study's slides table: the store then means exactly these files and pixel sizes by the slides'
        names, even if it holds other versions of them, and lists no others in its index.

    Raises
    ------
    DataError
        If there is no such store, or slides were never extracted as they are now.
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

    def of(path: str) -> str:
        try:
            return fingerprint(path)
        except SlideProblem:
            return ""

    with ThreadPoolExecutor(8) as pool:  # network file systems answer slowly, but many at a time
        prints = list(pool.map(of, slides["path"].astype(str)))
    mpp = slides["mpp"].astype(float)
    if params.mpp_override is not None:
        mpp = mpp.fillna(params.mpp_override)
    return slides[["slide", "path"]].assign(mpp=mpp, fingerprint=prints)


def _unfinished(store: FeatureStore, keys: list[str], retry: bool) -> list[str]:
    """Keys to work on, after taking up what an interrupted run had finished."""
    store.staging.forgive_last()
    if retry:
        for key in store.pending(keys, retry=True):
            store.reset(key)
    adopted = store.adopt(store.pending(keys))
    if adopted:
        log.info("took up %d slides that an interrupted run had encoded", len(adopted))
    return store.pending(keys)


def _manifest(slides: pd.DataFrame, keys: list[str], todo: set[str]) -> list[Row]:
    """Rows for the planner, largest file first: the last slides to end are small ones."""
    rows = [
        {"key": key, "slide": str(slide), "path": str(path), "mpp": float(mpp)}
        for key, slide, path, mpp in zip(keys, slides["slide"], slides["path"], slides["mpp"], strict=True)
        if key in todo
    ]
    return sorted(rows, key=lambda row: (-slide_bytes(row["path"]), row["key"]))


def _work(
    rows: list[Row],
    store: FeatureStore,
    setup: Setup,
    workers: int | None,
    report: Callable[[Progress], None],
) -> None:
    """Run the stages over all rows; record and commit what comes back."""
    results = _inline(rows, setup) if workers == 0 or not rows else _distributed(rows, setup, workers)
    started = committed = time.perf_counter()
    tiles = failed = 0
    for done, row in enumerate(results, start=1):
        result = json.loads(row["result"])
        store.record([{"key": row["key"], **result}])
        tiles += result["n"] if result["status"] == "ok" else 0
        failed += result["status"] in FAILURES
        now = time.perf_counter()
        report(Progress(done, len(rows), tiles, failed, now - started, row["slide"], result["status"]))
        if now - committed > _COMMIT_EVERY:
            store.commit(partial=True)
            committed = time.perf_counter()


def _distributed(rows: list[Row], setup: Setup, workers: int | None) -> Iterator[Row]:
    """Both stages on Ray; counts what ends."""
    counter = SlideCounter(setup.label)
    for row in _with_second_chance(rows, setup, workers):
        counter.add(json.loads(row["result"])["status"])
        yield row


def _with_second_chance(rows: list[Row], setup: Setup, workers: int | None) -> Iterator[Row]:
    """Slides that were in work at two deaths are tried once more, alone, at the end.

    A worker may also die of its neighbours' memory or by somebody else's hand. When it dies again although nothing
    else is going on, it is the slide.
    """
    suspects: list[str] = []
    max_bad = setup.params.max_bad_tiles
    for row in joined(on_ray(rows, setup, workers), setup.staging, max_bad):
        if _quarantined(row):
            suspects.append(row["key"])
        else:
            yield row
    if suspects:
        log.warning(
            "%d slides were in work when two workers died; trying them once more, alone", len(suspects)
        )
        for key in suspects:
            setup.staging.forgive_all_but_one(key)
        again = on_ray([row for row in rows if row["key"] in set(suspects)], setup, 1)
        for row in joined(again, setup.staging, max_bad):
            if _quarantined(row):
                result = json.loads(row["result"])
                row["result"] = json.dumps(
                    result | {"error": f"{result['error']} (it also died of it alone)"}
                )
            yield row


def _quarantined(row: Row) -> bool:
    return json.loads(row["result"])["status"] == "quarantined"


def _inline(rows: list[Row], setup: Setup) -> Iterator[Row]:
    """Both stages in this process, slide by slide."""
    if rows:
        planner, encoder = setup.planner(), setup.encoder()
        done = (encoder(part) for row in rows for part in planner(row))
        yield from joined(done, setup.staging, setup.params.max_bad_tiles)


def _copy_qc(source: Path, target: Path, names: dict[str, str]) -> None:
    """Pictures and plans under the slides' names; ``/`` of a qualified name becomes ``__``."""
    target.mkdir(parents=True, exist_ok=True)
    for key, slide in names.items():
        for file in source.glob(f"{key}.*"):
            if not file.name.endswith(".tmp"):
                shutil.copyfile(file, target / f"{str(slide).replace('/', '__')}{file.suffix}")


def _logged() -> Callable[[Progress], None]:
    """Log a line every ten seconds and at the end."""
    last = -_LOG_EVERY

    def report(moment: Progress) -> None:
        nonlocal last
        if moment.seconds - last >= _LOG_EVERY or moment.done == moment.total:
            log.info("%s", moment)
            last = moment.seconds

    return report
