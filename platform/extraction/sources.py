"""Where a study's features come from: its slides or somebody else's extraction, tile by tile or slide by slide."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from equipoise.datasets.features import FeatureStore
from equipoise.platform.extraction.imported import import_study, open_imported
from equipoise.platform.extraction.params import ExtractionParams
from equipoise.platform.extraction.pipeline import extract, open_store
from equipoise.platform.extraction.slide_vectors import encode_slides, open_vectors
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
    session: Callable[[], AbstractContextManager[object]] = nullcontext,
    qc_dir: str | Path | None = None,
) -> ExtractionSummary:
    """Extract or import the features of all slides that the store does not have yet.

    Parameters
    ----------
    slides, params, store_root, workers, session, qc_dir
        As for :func:`~equipoise.platform.extraction.pipeline.extract`.
    base
        Folder that paths of the study start from.

    Returns
    -------
    The summary; slides that fail are rows in it, whatever their number.

    Raises
    ------
    DataError
        If the store belongs to another specification or is being written by another run, or there is nothing to
        import.
    """
    with _opened_once(session) as session:
        if params.imported is not None:
            summary = import_study(slides, params, store_root, base)
        else:
            summary = extract(slides, params, store_root, workers=workers, session=session, qc_dir=qc_dir)
        if params.slide_encoder is None:
            return summary
        log.info("tiles %s", summary)
        tiles = _open_tiles(params, store_root, base, slides)
        return encode_slides(slides, tiles, params, store_root, workers=workers, session=session)


def open_features(
    params: ExtractionParams, store_root: str | Path, base: Path, slides: pd.DataFrame
) -> FeatureStore:
    """The store that :func:`obtain_features` filled for a study, for reading.

    Raises
    ------
    DataError
        If there is no such store, or it does not know slides as they are now.
    """
    tiles = _open_tiles(params, store_root, base, slides)
    return tiles if params.slide_encoder is None else open_vectors(slides, tiles, params, store_root)


@contextmanager
def _opened_once(
    session: Callable[[], AbstractContextManager[object]],
) -> Iterator[Callable[[], AbstractContextManager[object]]]:
    """A session for whoever asks first, open for all others until the end."""
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
