"""Features of a study: extracted from its slides or imported, one vector per tile or per slide.

:func:`check_headers` says before an extraction which slides can be opened, and at which pixel size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equipoise.datasets.remote.addresses import require_answers
from equipoise.datasets.slides.problems import SlideProblem
from equipoise.datasets.slides.reader import open_slide
from equipoise.datasets.store.feature_store import FeatureStore
from equipoise.platform.extraction.imported_features import import_study, open_imported
from equipoise.platform.extraction.params import ExtractionParams
from equipoise.platform.extraction.pipeline import extract, open_store
from equipoise.platform.extraction.slide_vectors import below, encode_slides, open_vectors
from equipoise.platform.extraction.summary import ExtractionSummary

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)


def obtain_features(
    slides: pd.DataFrame,
    params: ExtractionParams,
    store_root: str | Path,
    base: Path,
    *,
    workers: int | None = None,
    gpus_per_worker: float | None = None,
    session: Callable[[], AbstractContextManager[object]] = nullcontext,
    qc_dir: str | Path | None = None,
) -> ExtractionSummary:
    """Extract or import the features of all slides that are not in the store yet.

    Parameters
    ----------
    slides, params, store_root, workers, gpus_per_worker, session, qc_dir
        As for :func:`~equipoise.platform.extraction.pipeline.extract`.
    base
        Folder that relative paths of the study start from.

    Returns
    -------
    The summary; slides that fail are rows in it, however many they are.

    Raises
    ------
    DataError
        If the store belongs to another specification or is being written by another run, or there is nothing to
        import.
    """
    params = below(params, base)
    with open_once(session) as session:
        pool: dict[str, Any] = {"workers": workers, "gpus_per_worker": gpus_per_worker, "session": session}
        if params.imported is not None:
            summary = import_study(slides, params, store_root, base)
        else:
            summary = extract(slides, params, store_root, **pool, qc_dir=qc_dir)
        if params.slide_encoder is None:
            return summary
        log.info("tiles %s", summary)
        tiles = _open_tiles(params, store_root, base, slides)
        return encode_slides(slides, tiles, params, store_root, **pool)


def open_features(
    params: ExtractionParams, store_root: str | Path, base: Path, slides: pd.DataFrame
) -> FeatureStore:
    """Open the store that :func:`obtain_features` filled for a study.

    Raises
    ------
    DataError
        If there is no such store, or slides have changed since it was filled.
    """
    params = below(params, base)
    tiles = _open_tiles(params, store_root, base, slides)
    return tiles if params.slide_encoder is None else open_vectors(slides, tiles, params, store_root)


@contextmanager
def open_once(
    session: Callable[[], AbstractContextManager[object]],
) -> Iterator[Callable[[], AbstractContextManager[object]]]:
    """A session that is opened at the first request and stays open until the end."""
    with ExitStack() as stack:
        opened: list[object] = []

        @contextmanager
        def once() -> Iterator[None]:
            if not opened:
                opened.append(stack.enter_context(session()))
            yield

        yield once


def _open_tiles(
    params: ExtractionParams, store_root: str | Path, base: Path, slides: pd.DataFrame
) -> FeatureStore:
    if params.imported is not None:
        return open_imported(params, store_root, base, slides)
    return open_store(params, store_root, slides)


def check_headers(slides: pd.DataFrame, params: ExtractionParams, threads: int = 8) -> pd.DataFrame:
    """Open every slide and determine its pixel size; no pixel is read.

    Parameters
    ----------
    slides
        Columns slide, path, mpp (NaN where the table states none).
    params
        Target resolution and pixel size override of the study.
    threads
        Slides opened at the same time: file systems answer slowly, but to many requests at once.

    Returns
    -------
    The slides with ``status`` (``ok``, or the status that extraction would give), ``error`` and ``slide_mpp``.

    Raises
    ------
    DataError
        If the slides are at addresses where nothing answers.
    """
    require_answers(slides["path"].astype(str))

    def check(path: str, mpp: float) -> tuple[str, str, float]:
        try:
            with open_slide(path, mpp, params.mpp_override) as slide:
                slide.sampling(params.mpp)
                return "ok", "", slide.mpp
        except SlideProblem as problem:
            return problem.status, str(problem).replace("\n  ", "; "), float("nan")

    with ThreadPoolExecutor(threads) as pool:
        results = list(pool.map(check, slides["path"].astype(str), slides["mpp"].astype(float)))
    status, error, mpp = zip(*results, strict=True) if results else ((), (), ())
    return slides.assign(status=status, error=error, slide_mpp=mpp)
