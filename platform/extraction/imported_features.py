"""Features that a study imports: matched with the names of its slides, and copied into a store once.

The study names folders of ``.h5`` files (they are copied into a store below ``features.store``, addressed by their
specification) or a feature store (read in place, never written to).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from equipoise.datasets.cohorts.cohort_tables import slide_stem
from equipoise.datasets.errors import DataError
from equipoise.datasets.remote.addresses import is_remote
from equipoise.datasets.remote.folders import folder_at
from equipoise.datasets.store.feature_store import FeatureStore, StoreSpec
from equipoise.datasets.store.h5_process import H5Reader
from equipoise.datasets.store.index import Row, blank_row
from equipoise.datasets.store.listing import find_stores
from equipoise.datasets.store.spec import SPEC_FILE
from equipoise.platform.extraction.h5_exchange import (
    Stated,
    fingerprint_or_none,
    h5_files_below,
    import_file,
    require_h5py,
    spec_of_files,
)
from equipoise.platform.extraction.params import ExtractionParams, ImportedFeatures
from equipoise.platform.extraction.summary import ExtractionSummary, summarise, summary_of
from equipoise.platform.progress import ProgressBar

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

#: Seconds between two commits while files come in.
_COMMIT_EVERY = 30.0


@dataclass(frozen=True)
class BagLocation:
    """Where the features of a slide are.

    Attributes
    ----------
    location
        A file, or the name of the slide in a store; empty if there is none.
    problem
        Status and reason if there is none, or several.
    """

    location: str
    problem: tuple[str, str] | None = None


def import_study(
    slides: pd.DataFrame, params: ExtractionParams, store_root: str | Path, base: Path
) -> ExtractionSummary:
    """Import the features of all slides that are not in the store yet.

    Parameters
    ----------
    slides, params, store_root
        As for :func:`~equipoise.platform.extraction.pipeline.extract`; the study has ``features.imported``.
    base
        Folder that relative paths start from.

    Returns
    -------
    The summary. A slide without features is a row with the status ``missing``; for a file that cannot be used the
    status is ``unreadable``.

    Raises
    ------
    DataError
        If there is neither a file nor a store, no file can be used, or the store is being written by another run.
    ResourceError
        If there are files to read and h5py is not installed.
    """
    started = time.perf_counter()
    source = _source(params, base)
    if not isinstance(source, dict):
        store, bags = _match_store(source, slides)
        rows = _index_rows(store, slides, bags)
        return summary_of(rows, slides, store, params, 0, time.perf_counter() - started)
    bags = _bags(slides, _by_name(source))
    used = {bag.location for bag in bags if bag.location}
    if len(used) < len(source):
        log.info("%d of %d .h5 files match no slide of the study", len(source) - len(used), len(source))
    stated = _stated(params)
    with H5Reader() as reader, ExitStack() as stack:
        spec = _spec(reader, source, used, stated)
        store = stack.enter_context(FeatureStore.create_or_open(store_root, spec, params.shard_slides))
        keys = store.register(_table(slides, bags))
        if params.retry:
            for key in store.pending(keys, retry=True):
                store.reset(key)
        todo = set(store.pending(keys))
        try:
            _import_all(reader, store, keys, bags, todo, stated)
        finally:
            store.commit(partial=True)
        store.commit()
        return summarise(slides, keys, store, params, len(todo), time.perf_counter() - started)


def open_imported(
    params: ExtractionParams, store_root: str | Path, base: Path, slides: pd.DataFrame
) -> FeatureStore:
    """Open the store that :func:`import_study` filled for a study, restricted to the slides of the table.

    Raises
    ------
    DataError
        If nothing was imported yet, or slides have changed since they were imported.
    """
    source = _source(params, base)
    if not isinstance(source, dict):
        return _match_store(source, slides)[0]
    bags = _bags(slides, _by_name(source))
    with H5Reader() as reader:
        spec = _spec(reader, source, {bag.location for bag in bags if bag.location}, _stated(params))
    if not FeatureStore.exists(store_root, spec):
        raise DataError(
            "these features were not imported yet",
            where=f"{store_root}/{spec.folder}",
            fix="run `equipoise extract`",
        )
    store = FeatureStore.create_or_open(store_root, spec, params.shard_slides)
    store.choose(_table(slides, bags))
    return store


def _spec(reader: H5Reader, files: dict[Path, str], used: set[str], stated: Stated) -> StoreSpec:
    """The specification of most files of the study; of all that are there, if the study has none that can be read."""
    mine = [file for file in files if str(file) in used]
    others = [file for file in files if str(file) not in used]
    if not mine or not others:
        return spec_of_files(reader, mine or others, stated)
    try:
        return spec_of_files(reader, mine, stated)
    except DataError as error:
        try:
            return spec_of_files(reader, others, stated)
        except DataError:
            raise error from None


def _stated(params: ExtractionParams) -> Stated:
    settings = _settings(params)
    return Stated(settings.layout, settings.encoder, settings.mpp, settings.tile_px, params.max_bad_tiles)


def _settings(params: ExtractionParams) -> ImportedFeatures:
    if params.imported is None:
        raise ValueError("the study imports no features")
    return params.imported


def _source(params: ExtractionParams, base: Path) -> str | Path | dict[Path, str]:
    """The location of a store; or files with their names below the folders of the study."""
    settings = _settings(params)
    if any(is_remote(path) for path in settings.path):
        return _store_at(settings.path)
    roots = [base / Path(path).expanduser() for path in settings.path]
    for root in roots:
        if not root.exists():
            raise DataError("no such folder", where=str(root), fix="correct features.imported")
    if len(roots) == 1 and (store := _single_store(roots[0])):
        return store
    require_h5py()
    files = {
        file: file.relative_to(root).with_suffix("").as_posix()
        for root in roots
        for file in h5_files_below(root)
    }
    if not files:
        raise DataError(
            "neither .h5 files nor a feature store here or below",
            where=", ".join(map(str, roots)),
            fix="correct features.imported",
        )
    return files


def _store_at(addresses: Sequence[str]) -> str:
    """The address of a store; ``.h5`` files are not searched for at addresses."""
    if len(addresses) == 1 and folder_at(addresses[0]).has(SPEC_FILE):
        return addresses[0]
    raise DataError(
        "only one feature store can be imported from an address, nothing else",
        where=", ".join(addresses),
        fix="name the store's own folder in features.imported, or copy .h5 files to a folder",
    )


def _single_store(root: Path) -> Path | None:
    """The store that a folder is or holds; ``None`` for a folder with ``.h5`` files."""
    if (root / SPEC_FILE).exists():
        return root
    if next(root.rglob("*.h5"), None) is not None:
        return None
    if next(root.rglob(SPEC_FILE), None) is None:
        return None
    stores = find_stores(root)
    if len(stores) > 1:
        raise DataError(
            f"{len(stores)} feature stores here, a study takes one",
            where=str(root),
            fix=f"name one of them in features.imported: {', '.join(store.name for store in stores[:5])}",
        )
    return stores[0]


def _by_name(files: dict[Path, str]) -> dict[str, list[str]]:
    """Files by every name that may match a slide: the file's name, the path below the folder, the whole path."""
    by_name: dict[str, list[str]] = {}
    for file, below in files.items():
        for name in dict.fromkeys((str(file), below, file.stem)):
            by_name.setdefault(name, []).append(str(file))
    return by_name


def _bags(slides: pd.DataFrame, known: dict[str, list[str]]) -> list[BagLocation]:
    """Where the features of each slide are; the stem of its file counts only if no other slide has it."""
    bags = []
    for slide, path in zip(slides["slide"].astype(str), slides["path"].astype(str), strict=True):
        bags.append(_bag(known, dict.fromkeys((path, slide, slide.replace("/", "__"), _stem(slide, path)))))
    return bags


def _stem(slide: str, path: str) -> str:
    """The stem of the slide's file, or the whole name of a slide that carries its cohort or folder."""
    stem = slide_stem(path)
    return stem if slide == stem else slide


def _bag(known: dict[str, list[str]], names: Iterable[str]) -> BagLocation:
    for name in names:
        if len(matches := known.get(name, [])) == 1:
            return BagLocation(matches[0])
        if matches:
            reason = f"{len(matches)} .h5 files have this name: {', '.join(matches[:3])}"
            return BagLocation("", ("error", reason))
    return BagLocation("", ("missing", "there are no imported features of this name"))


def _table(slides: pd.DataFrame, bags: Sequence[BagLocation]) -> pd.DataFrame:
    """The columns that the store registers; a slide without features has no fingerprint.

    The pixel size of the slides table is left out: it concerns the extraction of the tiles, which is done.
    """

    with ThreadPoolExecutor(8) as pool:  # network file systems answer slowly, but to many requests at once
        fingerprints = list(pool.map(fingerprint_or_none, [bag.location for bag in bags]))
    paths = [bag.location or str(path) for bag, path in zip(bags, slides["path"], strict=True)]
    return slides[["slide"]].assign(path=paths, mpp=math.nan, fingerprint=fingerprints)


def _import_all(
    reader: H5Reader,
    store: FeatureStore,
    keys: Sequence[str],
    bags: Sequence[BagLocation],
    todo: set[str],
    stated: Stated,
) -> None:
    """Stage and record everything that is not in the store yet."""
    committed = time.perf_counter()
    waiting = [(key, bag) for key, bag in zip(keys, bags, strict=True) if key in todo]
    with ProgressBar("import", len(keys), unit="slides", done=len(keys) - len(waiting)) as bar:
        for key, bag in waiting:
            if bag.problem:
                status, reason = bag.problem
                store.record([{"key": key, "status": status, "error": reason, "attempts": 1}])
            else:
                import_file(reader, store, key, Path(bag.location), stated)
            bar.update()
            now = time.perf_counter()
            if now - committed > _COMMIT_EVERY:
                store.commit(partial=True)
                committed = now


def _match_store(location: str | Path, slides: pd.DataFrame) -> tuple[FeatureStore, list[BagLocation]]:
    """A store, opened under the study's slide names, and which of the slides it has."""
    store = FeatureStore.open(location)
    known = {row["slide"]: [row["slide"]] for row in store.rows()}
    bags = _bags(slides, known)
    store.choose_named(
        {str(slide): bag.location for slide, bag in zip(slides["slide"], bags, strict=True) if bag.location}
    )
    return store, bags


def _index_rows(store: FeatureStore, slides: pd.DataFrame, bags: Sequence[BagLocation]) -> list[Row]:
    """Rows of the index by the study's names, also for slides that are not in the store."""
    rows = []
    for slide, bag in zip(slides["slide"].astype(str), bags, strict=True):
        status, error = bag.problem or ("", "")
        rows.append(
            store.status(slide) if bag.location else blank_row(slide=slide, status=status, error=error)
        )
    return rows
