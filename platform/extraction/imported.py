"""Features that a study imports: found by the names of its slides, taken into a store once.

The study names folders of ``.h5`` files (they are copied into a store below ``features.store``, found again by what
made them) or a feature store (read where it is, never written to).
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from equipoise.datasets.cohort_tables import slide_stem
from equipoise.datasets.errors import DataError
from equipoise.datasets.features import FeatureStore, StoreSpec
from equipoise.datasets.remote.addresses import is_remote
from equipoise.datasets.remote.folders import folder_at
from equipoise.datasets.slides.fingerprint import fingerprint
from equipoise.datasets.slides.problems import SlideProblem
from equipoise.datasets.store.h5_files import layout_of
from equipoise.datasets.store.index import Row, blank_row
from equipoise.datasets.store.listing import find_stores
from equipoise.datasets.store.spec import SPEC_FILE
from equipoise.platform.extraction.exchange import need_h5py, specification, take_file
from equipoise.platform.extraction.params import ExtractionParams, ImportedFeatures
from equipoise.platform.extraction.summary import ExtractionSummary, summarise, summary_of

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger(__name__)

#: Seconds between two commits while files come in.
_COMMIT_EVERY = 30.0


@dataclass(frozen=True)
class Bag:
    """Where the features of a slide are.

    Attributes
    ----------
    place
        A file, or the name of the slide in a store; empty if there is none.
    problem
        Status and reason if there is none, or several.
    """

    place: str
    problem: tuple[str, str] | None = None


def import_study(
    slides: pd.DataFrame, params: ExtractionParams, store_root: str | Path, base: Path
) -> ExtractionSummary:
    """Take the features of all slides that the store does not have yet.

    Parameters
    ----------
    slides, params, store_root
        As for :func:`~equipoise.platform.extraction.pipeline.extract`; the study says ``imported``.
    base
        Folder that relative paths start from.

    Returns
    -------
    The summary. A slide without features is a row with the status ``missing``, a file that cannot be used one with
    ``unreadable``.

    Raises
    ------
    DataError
        If there is neither a file nor a store, no file can be used, or the store is being written by another run.
    ResourceError
        If files are to be read without h5py.
    """
    started = time.perf_counter()
    source = _source(params, base)
    if not isinstance(source, tuple):
        store, found = _named_in(source, slides)
        rows = _rows_named(store, slides, found)
        return summary_of(rows, slides, store, params, 0, time.perf_counter() - started)
    files, spec = source
    bags = _bags(slides, _by_name(files))
    unused = len(files) - len({bag.place for bag in bags if bag.place})
    if unused:
        log.info("%d of %d .h5 files belong to no slide of the study", unused, len(files))
    with FeatureStore.create_or_open(store_root, spec, params.shard_slides) as store:
        keys = store.register(_table(slides, bags))
        if params.retry:
            for key in store.pending(keys, retry=True):
                store.reset(key)
        todo = set(store.pending(keys))
        try:
            _take_all(store, keys, bags, todo, _wishes(params))
        finally:
            store.commit(partial=True)
        store.commit()
        return summarise(slides, keys, store, params, len(todo), time.perf_counter() - started)


def open_imported(
    params: ExtractionParams, store_root: str | Path, base: Path, slides: pd.DataFrame
) -> FeatureStore:
    """The store that :func:`import_study` filled for a study, for reading; only slides of the table are in it.

    Raises
    ------
    DataError
        If nothing was imported yet, or slides were not imported as they are now.
    """
    source = _source(params, base)
    if not isinstance(source, tuple):
        return _named_in(source, slides)[0]
    files, spec = source
    if not FeatureStore.exists(store_root, spec):
        raise DataError(
            "these features were not imported yet",
            where=f"{store_root}/{spec.folder}",
            fix="run `equipoise extract`",
        )
    store = FeatureStore.create_or_open(store_root, spec, params.shard_slides)
    store.choose(_table(slides, _bags(slides, _by_name(files))))
    return store


def _wishes(params: ExtractionParams) -> ImportedFeatures:
    if params.imported is None:
        raise ValueError("the study imports no features")
    return params.imported


def _source(params: ExtractionParams, base: Path) -> str | Path | tuple[dict[Path, str], StoreSpec]:
    """The place of a store; or files with their names below the folders of the study, and what made them."""
    wishes = _wishes(params)
    if any(is_remote(path) for path in wishes.path):
        return _store_at(wishes.path)
    roots = [base / Path(path).expanduser() for path in wishes.path]
    for root in roots:
        if not root.exists():
            raise DataError("no such folder", where=str(root), fix="correct features.imported")
    if len(roots) == 1 and (store := _single_store(roots[0])):
        return store
    need_h5py()
    files = {
        file: file.relative_to(root).with_suffix("").as_posix()
        for root in roots
        for file in sorted(root.rglob("*.h5"))
    }
    if not files:
        raise DataError(
            "neither .h5 files nor a feature store here or below",
            where=", ".join(map(str, roots)),
            fix="correct features.imported",
        )
    return files, _specification(list(files), wishes)


def _store_at(places: Sequence[str]) -> str:
    """The address of a store; files are not searched for at addresses."""
    if len(places) == 1 and folder_at(places[0]).has(SPEC_FILE):
        return places[0]
    raise DataError(
        "from an address, one feature store can be taken and nothing else",
        where=", ".join(places),
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


def _specification(files: Sequence[Path], wishes: ImportedFeatures) -> StoreSpec:
    """Of the first file that can be read, in the layout that it has or the study says."""
    if wishes.layout != "auto":
        return specification(files, wishes.layout, wishes.encoder, wishes.mpp, wishes.tile_px)
    problems = []
    for file in files:
        try:
            return specification([file], layout_of(file), wishes.encoder, wishes.mpp, wishes.tile_px)
        except DataError as error:
            problems.append(error)
    raise problems[0]


def _by_name(files: dict[Path, str]) -> dict[str, list[str]]:
    """Files by all names that a slide may go by: the file's, the path below the folder, the whole path."""
    found: dict[str, list[str]] = {}
    for file, below in files.items():
        for name in dict.fromkeys((str(file), below, file.stem)):
            found.setdefault(name, []).append(str(file))
    return found


def _bags(slides: pd.DataFrame, known: dict[str, list[str]]) -> list[Bag]:
    """Where the features of each slide are; the stem of its file counts only if no other slide has it."""
    found = []
    for slide, path in zip(slides["slide"].astype(str), slides["path"].astype(str), strict=True):
        found.append(_bag(known, dict.fromkeys((path, slide, slide.replace("/", "__"), _stem(slide, path)))))
    return found


def _stem(slide: str, path: str) -> str:
    """The slide's own name, unless it had to be told apart from others by its cohort or folder."""
    stem = slide_stem(path)
    return stem if slide == stem else slide


def _bag(known: dict[str, list[str]], names: Iterable[str]) -> Bag:
    for name in names:
        if len(places := known.get(name, [])) == 1:
            return Bag(places[0])
        if places:
            return Bag("", ("error", f"{len(places)} .h5 files have this name: {', '.join(places[:3])}"))
    return Bag("", ("missing", "there are no imported features of this name"))


def _table(slides: pd.DataFrame, bags: Sequence[Bag]) -> pd.DataFrame:
    """The columns that the store registers; a slide without features has no fingerprint.

    The pixel size of the slides table is left out: it was for whoever cut the tiles.
    """

    def of(bag: Bag) -> str:
        try:
            return fingerprint(bag.place) if bag.place else ""
        except SlideProblem:
            return ""

    with ThreadPoolExecutor(8) as pool:  # network file systems answer slowly, but many at a time
        prints = list(pool.map(of, bags))
    paths = [bag.place or str(path) for bag, path in zip(bags, slides["path"], strict=True)]
    return slides[["slide"]].assign(path=paths, mpp=math.nan, fingerprint=prints)


def _take_all(
    store: FeatureStore, keys: Sequence[str], bags: Sequence[Bag], todo: set[str], wishes: ImportedFeatures
) -> None:
    """Stage and record what is not in the store yet."""
    committed = time.perf_counter()
    for done, (key, bag) in enumerate(zip(keys, bags, strict=True), start=1):
        if key not in todo:
            continue
        if bag.problem:
            status, reason = bag.problem
            store.record([{"key": key, "status": status, "error": reason, "attempts": 1}])
            continue
        _take(store, key, Path(bag.place), wishes)
        now = time.perf_counter()
        if now - committed > _COMMIT_EVERY:
            log.info("import slides=%d/%d", done, len(keys))
            store.commit(partial=True)
            committed = now


def _take(store: FeatureStore, key: str, file: Path, wishes: ImportedFeatures) -> None:
    try:
        layout = layout_of(file) if wishes.layout == "auto" else wishes.layout
    except DataError as error:
        store.record([{"key": key, "status": "unreadable", "error": error.what, "attempts": 1}])
        return
    take_file(store, key, file, layout, wishes.mpp, wishes.tile_px)


def _named_in(place: str | Path, slides: pd.DataFrame) -> tuple[FeatureStore, list[Bag]]:
    """A store in which the study's slides go by their names there, and which of them it has."""
    store = FeatureStore.open(place)
    known = {row["slide"]: [row["slide"]] for row in store.rows()}
    bags = _bags(slides, known)
    store.choose_named(
        {str(slide): bag.place for slide, bag in zip(slides["slide"], bags, strict=True) if bag.place}
    )
    return store, bags


def _rows_named(store: FeatureStore, slides: pd.DataFrame, bags: Sequence[Bag]) -> list[Row]:
    """Rows of the index by the study's names, also of slides that the store does not have."""
    found = []
    for slide, bag in zip(slides["slide"].astype(str), bags, strict=True):
        status, error = bag.problem or ("", "")
        found.append(store.status(slide) if bag.place else blank_row(slide=slide, status=status, error=error))
    return found
