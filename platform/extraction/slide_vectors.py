"""Slide encoders over a store of tiles: the same pipeline once more, one slide in, one row out, into a second store.

That store is addressed by the store of the tiles and the slide encoder. Its slides have one "tile" each, at the origin,
so that whatever reads bags reads them: a patient's bag is then the vectors of the patient's slides.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from equipoise.datasets.errors import DataError
from equipoise.datasets.features import FeatureStore
from equipoise.datasets.remote.folders import folder_at
from equipoise.datasets.store.index import RESULT_COLUMNS
from equipoise.datasets.store.spec import SPEC_FILE, StoreSpec
from equipoise.datasets.store.staging import Staging
from equipoise.models.slide_encoders.entries import check_tile_encoder
from equipoise.models.slide_encoders.protocol import SlideEncoder
from equipoise.platform.errors import ResourceError, StudyError
from equipoise.platform.extraction.encoders import load_encoder
from equipoise.platform.extraction.params import ExtractionParams
from equipoise.platform.extraction.pipeline import run_stages
from equipoise.platform.extraction.plan_row import Row
from equipoise.platform.extraction.stages import MAX_ATTEMPTS, Setup
from equipoise.platform.extraction.summary import ExtractionSummary, summarise
from equipoise.platform.registry import get

if TYPE_CHECKING:
    import pandas as pd

#: What goes wrong here and not with the tiles.
_OWN = ("error", "quarantined")


def encode_slides(
    slides: pd.DataFrame,
    tiles: FeatureStore,
    params: ExtractionParams,
    store_root: str | Path,
    *,
    workers: int | None = None,
    session: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> ExtractionSummary:
    """Encode all slides whose tiles are there and that the store of vectors does not have yet.

    Parameters
    ----------
    slides, params, store_root, workers, session
        As for :func:`~equipoise.platform.extraction.pipeline.extract`; the study names a ``slide_encoder``.
    tiles
        The study's store of tiles, in which it goes by the names of the slides table.

    Returns
    -------
    The summary; a slide without tiles has the status and reason that it has there.

    Raises
    ------
    DataError
        If the store of vectors is being written by another run.
    ResourceError
        If the slide encoder cannot be built.
    StudyError
        If it was made for other tile features.
    """
    started = time.perf_counter()
    spec = vectors_spec(params, tiles.spec)
    found = tiles.index().set_index("slide", drop=False)
    with FeatureStore.create_or_open(_beside(store_root), spec, params.shard_slides) as store:
        keys = store.register(_table(slides, found))
        store.staging.forgive_last()
        _as_their_tiles(store, slides, keys, found, params.retry)
        store.adopt(store.pending(keys))
        todo = set(store.pending(keys))
        rows = [
            {
                "key": key,
                "slide": slide,
                "tiles": found.loc[slide, "key"],
                "mpp": float(found.loc[slide, "mpp"]),
            }
            for key, slide in zip(keys, slides["slide"].astype(str), strict=True)
            if key in todo
        ]
        setup = VectorSetup(params, store.staging, None, load_encoder, 1, tiles.folder.address)
        run_stages(rows, store, setup, workers, session)
        return summarise(slides, keys, store, params, len(todo), time.perf_counter() - started)


def open_vectors(
    slides: pd.DataFrame, tiles: FeatureStore, params: ExtractionParams, store_root: str | Path
) -> FeatureStore:
    """The store that :func:`encode_slides` filled for a study, for reading.

    Raises
    ------
    DataError
        If there is no such store, or slides were never encoded as they are now.
    """
    spec, root = vectors_spec(params, tiles.spec), _beside(store_root)
    if not FeatureStore.exists(root, spec):
        raise DataError(
            "these slides were not encoded yet", where=f"{root}/{spec.folder}", fix="run `equipoise extract`"
        )
    store = FeatureStore.create_or_open(root, spec, params.shard_slides)
    store.choose(_table(slides, tiles.index().set_index("slide", drop=False)))
    return store


def vectors_spec(params: ExtractionParams, tiles: StoreSpec) -> StoreSpec:
    """What the vectors of a study's slides are made with.

    Raises
    ------
    StudyError
        If the slide encoder was made for other tile features.
    """
    name = str(params.slide_encoder)
    encoder = load_slide_encoder(params)
    try:
        check_tile_encoder(name, get("slide_encoders", name).params, tiles.encoder)
        dim = encoder.dim(tiles.dim)
    except ValueError as error:
        raise StudyError(str(error), where="features.slide_encoder") from error
    return StoreSpec(
        encoder=f"{tiles.encoder}-{name}",
        encoder_hash=encoder.hash,
        dim=dim,
        mpp=tiles.mpp,
        tile_px=tiles.tile_px,
        resample=tiles.resample,
        reader=f"tiles of {tiles.address}",
    )


def load_slide_encoder(params: ExtractionParams) -> SlideEncoder:
    """The slide encoder that a study names.

    Raises
    ------
    ResourceError
        If its weights are missing or are not its own, with how to get them.
    """
    entry = get("slide_encoders", str(params.slide_encoder))
    chosen = entry.params.model_validate(params.slide_encoder_params)
    try:
        return entry.load()(chosen)
    except (FileNotFoundError, ValueError) as error:
        what, _, fix = str(error).partition("\n")
        raise ResourceError(what, where=f"slide encoder {entry.name}", fix=fix or None) from error


class BagEncoder:
    """The second stage for slides whose tiles are encoded: bag to vector, staged as a file.

    Parameters
    ----------
    params
        The study's features section.
    staging
        Where vectors are staged and attempts marked.
    tiles
        Path or address of the store of tiles.
    """

    def __init__(self, params: ExtractionParams, staging: Staging, tiles: str) -> None:
        self._staging = staging
        self._tiles = FeatureStore.open(tiles)
        self._encoder = load_slide_encoder(params)
        if self._encoder.hash != staging.spec.encoder_hash:
            raise ResourceError(
                f"this machine has another slide encoder {params.slide_encoder!r} than the driver",
                fix="put the same weights file and the same release of Equipoise on all machines",
            )

    def __call__(self, row: Row) -> Row:
        """Encode one slide; the row that comes out is that of
        :class:`~equipoise.platform.extraction.stages.SlideEncoder`."""
        started = time.perf_counter()
        key, spent, n = row["key"], 0.0, 0
        if self._staging.begin(key, "encode") > MAX_ATTEMPTS:
            reason = f"the worker died {MAX_ATTEMPTS} times while it was to encode this slide"
            result: Row = {"status": "quarantined", "n": 0, "attempts": MAX_ATTEMPTS, "error": reason}
        else:
            try:
                bag, corners = self._tiles.read(row["tiles"])
                n, about = len(bag), self._tiles.status(row["tiles"])
                before = time.perf_counter()
                vector = self._encoder(bag, (corners * row["mpp"]).astype(np.float32))
                spent = time.perf_counter() - before
                kept = {name: about[name] for name in RESULT_COLUMNS if about[name] == about[name]}
                result = {**kept, "n": 1, "attempts": 1}
                origin = np.zeros(1, np.int32)
                self._staging.write(key, origin, origin, vector[None], {"slide": row["slide"], **result})
            except Exception as error:
                result = {
                    "status": "error",
                    "n": 0,
                    "attempts": 1,
                    "error": f"{type(error).__name__}: {error}",
                }
            self._staging.end(key, "encode")
        seconds = time.perf_counter() - started
        return {
            "key": key,
            "slide": row["slide"],
            "result": json.dumps(result),
            "seconds": seconds,
            "reading": seconds - spent,
            "encoding": spent,
            "encoded": n,
            "region": 0,
            "regions": 1,
            "tiles": 1,
            "staged": key,
        }


@dataclass(frozen=True)
class VectorSetup(Setup):
    """The stages of slide encoders: there is nothing to plan.

    Attributes
    ----------
    tiles
        Path or address of the store of tiles.
    """

    tiles: str

    @property
    def label(self) -> str:
        """Name of the encoder."""
        return str(self.params.slide_encoder)

    @property
    def gpus(self) -> float:
        """Share of a GPU that a worker wants."""
        return float(getattr(get("slide_encoders", self.label).params, "gpus", 0.0))

    def planner(self) -> Callable[[Row], list[Row]]:
        """Rows as they are."""
        return lambda row: [row]

    def encoder(self) -> Callable[[Row], Row]:
        """The second stage, with its encoder built."""
        return BagEncoder(self.params, self.staging, self.tiles)


def _table(slides: pd.DataFrame, found: pd.DataFrame) -> pd.DataFrame:
    """The columns that the store registers: a slide is the same as long as its tiles are."""
    rows = found.reindex(slides["slide"].astype(str))
    return slides[["slide", "path"]].assign(
        mpp=rows["mpp_override"].to_numpy(), fingerprint=rows["fingerprint"].fillna("").to_numpy()
    )


def _as_their_tiles(
    store: FeatureStore, slides: pd.DataFrame, keys: list[str], found: pd.DataFrame, retry: bool
) -> None:
    """Slides without tiles say why; those that have some by now are to be encoded."""
    for key, slide in zip(keys, slides["slide"].astype(str), strict=True):
        status = store.status(key)["status"]
        if slide not in found.index:
            store.record(
                [{"key": key, "status": "missing", "error": "there are no tile features of this name"}]
            )
        elif found.loc[slide, "status"] != "ok":
            row = found.loc[slide, ["status", "error", "attempts"]].to_dict()
            store.record([{"key": key, **row, "attempts": int(row["attempts"])}])
        elif status != "ok" and (retry or status not in _OWN):
            store.reset(key)


def _beside(root: str | Path) -> str | Path:
    """The folder of stores, also where the study names one store in it."""
    if not folder_at(root).has(SPEC_FILE):
        return root
    return root.parent if isinstance(root, Path) else root.rstrip("/").rpartition("/")[0]
