"""Slide encoders over a store of tiles: the same pipeline again, one vector per slide, into a second store.

That store is addressed by the store of the tiles and the slide encoder. Its slides have one "tile" each, at the origin,
so that it can be read like any store: a patient's bag is then the vectors of the patient's slides.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from equipoise.datasets.errors import DataError
from equipoise.datasets.remote.folders import folder_at
from equipoise.datasets.store.feature_store import FeatureStore
from equipoise.datasets.store.index import RESULT_COLUMNS
from equipoise.datasets.store.spec import SPEC_FILE, StoreSpec
from equipoise.datasets.store.staging import Staging
from equipoise.models.pretrained_folder import TrainedTiles, read_pretrained
from equipoise.models.slide_encoders.card import TileFeatures
from equipoise.models.slide_encoders.entries import SlideEncoderParams, check_tiles
from equipoise.platform.errors import ResourceError, StudyError
from equipoise.platform.extraction.chunks import Row
from equipoise.platform.extraction.encoders import load_encoder
from equipoise.platform.extraction.params import ExtractionParams
from equipoise.platform.extraction.pipeline import run_stages
from equipoise.platform.extraction.stages import MAX_ATTEMPTS, StageFactory, failure, gpus_of
from equipoise.platform.extraction.summary import ExtractionSummary, summarise
from equipoise.platform.registry import get

if TYPE_CHECKING:
    import pandas as pd

    from equipoise.models.slide_encoders.protocol import SlideEncoder

#: Statuses of failures in this stage, as opposed to failures of the tiles.
_STAGE_FAILURES = ("error", "quarantined")


def encode_slides(
    slides: pd.DataFrame,
    tiles: FeatureStore,
    params: ExtractionParams,
    store_root: str | Path,
    *,
    workers: int | None = None,
    gpus_per_worker: float | None = None,
    session: Callable[[], AbstractContextManager[object]] = nullcontext,
) -> ExtractionSummary:
    """Encode all slides that have tiles and are not in the store of vectors yet.

    Parameters
    ----------
    slides, params, store_root, workers, gpus_per_worker, session
        As for :func:`~equipoise.platform.extraction.pipeline.extract`; the study names a ``slide_encoder``.
    tiles
        The study's store of tiles, opened under the names of the slides table.

    Returns
    -------
    The summary; a slide without tiles has the status and reason that it has in the store of tiles.

    Raises
    ------
    DataError
        If the store of vectors is being written by another run.
    ResourceError
        If the slide encoder cannot be built.
    StudyError
        If the slide encoder was made for other tile features.
    """
    started = time.perf_counter()
    spec = vectors_spec(params, tiles.spec)
    tile_index = tiles.index().set_index("slide", drop=False)
    with FeatureStore.create_or_open(stores_folder(store_root), spec, params.shard_slides) as store:
        keys = store.register(_table(slides, tile_index))
        store.staging.retract_unfinished_attempts()
        _copy_tile_statuses(store, slides, keys, tile_index, params.retry)
        store.recover_staged(store.pending(keys))
        todo = set(store.pending(keys))
        rows = [
            {
                "key": key,
                "slide": slide,
                "tiles": tile_index.loc[slide, "key"],
                "mpp": float(tile_index.loc[slide, "mpp"]),
            }
            for key, slide in zip(keys, slides["slide"].astype(str), strict=True)
            if key in todo
        ]
        stages = SlideStageFactory(
            params,
            store.staging,
            None,
            load_encoder,
            1,
            tiles.folder.address,
            gpus_per_worker=gpus_per_worker,
        )
        run_stages(rows, store, stages, workers, session)
        return summarise(slides, keys, store, params, len(todo), time.perf_counter() - started)


def open_vectors(
    slides: pd.DataFrame, tiles: FeatureStore, params: ExtractionParams, store_root: str | Path
) -> FeatureStore:
    """Open the store that :func:`encode_slides` filled for a study.

    Raises
    ------
    DataError
        If there is no such store, or slides have changed since they were encoded.
    """
    spec, root = vectors_spec(params, tiles.spec), stores_folder(store_root)
    if not FeatureStore.exists(root, spec):
        raise DataError(
            "these slides were not encoded yet", where=f"{root}/{spec.folder}", fix="run `equipoise extract`"
        )
    store = FeatureStore.create_or_open(root, spec, params.shard_slides)
    store.choose(_table(slides, tiles.index().set_index("slide", drop=False)))
    return store


def vectors_spec(params: ExtractionParams, tiles: StoreSpec) -> StoreSpec:
    """The specification that the slide vectors of a study are made with.

    Raises
    ------
    StudyError
        If the slide encoder was made for other tile features.
    """
    name = str(params.slide_encoder)
    encoder = load_slide_encoder(params)
    try:
        check_stored_tiles(name, params, tiles)
        folder = pretrained_folder(params)
        trained = None if folder is None else read_pretrained(folder).tiles
        if trained is not None and (differences := trained.differences(trained_tiles(tiles))):
            raise ValueError(f"the model in {folder} was pre-trained on {'; '.join(differences)}")
        dim = encoder.dim(tiles.dim)
    except ValueError as error:
        raise StudyError(str(error), where="features.slide_encoder") from error
    return spec_behind(tiles, f"{tiles.encoder}-{name}", encoder.fingerprint, dim)


def check_stored_tiles(name: str, params: ExtractionParams, tiles: StoreSpec) -> None:
    """Refuse stored tiles that a slide encoder was not made for.

    Raises
    ------
    ValueError
        With the differences.
    """
    # The store's name of an encoder says nothing of its weights; the study's does, if they were extracted by it.
    sha256 = None if params.imported is not None else params.tile_features().sha256
    found = TileFeatures(tiles.encoder, tiles.mpp, tiles.tile_px, tiles.dim, sha256)
    check_tiles(name, get("slide_encoders", name).params, found)


def spec_behind(tiles: StoreSpec, encoder: str, encoder_hash: str, dim: int) -> StoreSpec:
    """The specification of a store that is made of a store of tiles."""
    return StoreSpec(
        encoder=encoder,
        encoder_hash=encoder_hash,
        dim=dim,
        mpp=tiles.mpp,
        tile_px=tiles.tile_px,
        resample=tiles.resample,
        reader=f"tiles of {tiles.address}",
    )


def trained_tiles(tiles: StoreSpec) -> TrainedTiles:
    """What a model that reads a store is trained on."""
    return TrainedTiles(tiles.encoder, tiles.encoder_hash, tiles.dim, tiles.mpp, tiles.tile_px)


def below(params: ExtractionParams, base: Path) -> ExtractionParams:
    """The features section with paths of its slide encoder that start from the folder of the study."""
    if params.slide_encoder is None:
        return params
    given = dict(params.slide_encoder_params)
    for name in get("slide_encoders", params.slide_encoder).attribute("paths"):
        if isinstance(given.get(name), str):
            given[name] = str(base / Path(given[name]).expanduser())
    return params.model_copy(update={"slide_encoder_params": given})


def pretrained_folder(params: ExtractionParams) -> str | None:
    """Folder of ``equipoise pretrain`` that the slide encoder comes from; ``None`` where it comes from elsewhere."""
    if params.slide_encoder is None:
        return None
    settings = get("slide_encoders", params.slide_encoder).params.model_validate(params.slide_encoder_params)
    return settings.pretrained_folder if isinstance(settings, SlideEncoderParams) else None


def load_slide_encoder(params: ExtractionParams) -> SlideEncoder:
    """The slide encoder that a study names.

    Raises
    ------
    ResourceError
        If its weights are missing or belong to another encoder; says how to get them.
    """
    return make_slide_encoder(str(params.slide_encoder), params.slide_encoder_params)


def make_slide_encoder(name: str, settings: Mapping[str, Any]) -> SlideEncoder:
    """A slide encoder of the registry with these parameters.

    Raises
    ------
    ResourceError
        If its weights are missing or belong to another encoder; says how to get them.
    """
    entry = get("slide_encoders", name)
    params = entry.params.model_validate(settings)
    try:
        return entry.load()(params)
    except (FileNotFoundError, ValueError) as error:
        what, _, fix = str(error).partition("\n")
        raise ResourceError(what, where=f"slide encoder {entry.name}", fix=fix or None) from error


class EncodedSlide(NamedTuple):
    """What a slide encoder gives for a slide: columns x and y and features of its rows, and columns of the index."""

    x: NDArray[np.int32]
    y: NDArray[np.int32]
    features: NDArray[np.float16]
    result: Row
    tiles: int
    seconds: float


class SlideEncodingStage:
    """The second stage for slides whose tiles are encoded: from bag to vector, staged as a file.

    Parameters
    ----------
    name, settings
        The slide encoder and its parameters.
    staging
        Where vectors are staged and attempts are marked.
    tiles
        Path or address of the store of tiles.

    Raises
    ------
    ResourceError
        If this machine has another slide encoder than the one that the store is made for.
    """

    def __init__(self, name: str, settings: Mapping[str, Any], staging: Staging, tiles: str) -> None:
        self._staging = staging
        self._tiles = FeatureStore.open(tiles)
        self._extent_um = self._tiles.spec.mpp * self._tiles.spec.tile_px
        self._encoder = make_slide_encoder(name, settings)
        if self.identity != staging.spec.encoder_hash:
            raise ResourceError(
                f"this machine has another slide encoder {name!r} than the driver",
                fix="put the same weights file and the same release of Equipoise on all machines",
            )

    @property
    def identity(self) -> str:
        """What the store calls the encoder's hash."""
        return self._encoder.fingerprint

    def encode(self, row: Row) -> EncodedSlide:
        """Read and encode one slide."""
        from equipoise.models.slide_encoders.protocol import encode_slide

        bag, corners = self._tiles.read(row["tiles"])
        metadata = self._tiles.status(row["tiles"])
        before = time.perf_counter()
        corners_um = (corners * row["mpp"]).astype(np.float32)
        vector = encode_slide(self._encoder, bag, corners_um, self._extent_um)
        seconds = time.perf_counter() - before
        kept = {name: metadata[name] for name in RESULT_COLUMNS if metadata[name] == metadata[name]}
        origin = np.zeros(1, np.int32)
        return EncodedSlide(origin, origin, vector[None], kept | {"n": 1}, len(bag), seconds)

    def __call__(self, row: Row) -> Row:
        """Encode one slide; returns a row like that of
        :class:`~equipoise.platform.extraction.stages.TileEncodingStage`."""
        started = time.perf_counter()
        key, encoding, n = row["key"], 0.0, 0
        if self._staging.begin(key, "encode") > MAX_ATTEMPTS:
            reason = f"the worker died {MAX_ATTEMPTS} times while encoding this slide"
            result: Row = {"status": "quarantined", "n": 0, "attempts": MAX_ATTEMPTS, "error": reason}
        else:
            try:
                made = self.encode(row)
                n, encoding, result = made.tiles, made.seconds, {**made.result, "attempts": 1}
                self._staging.write(key, made.x, made.y, made.features, {"slide": row["slide"], **result})
            except Exception as error:
                result = {"n": 0, "attempts": 1, **failure(error)}
            self._staging.end(key, "encode")
        seconds = time.perf_counter() - started
        return {
            "key": key,
            "slide": row["slide"],
            "result": json.dumps(result),
            "seconds": seconds,
            "reading": seconds - encoding,
            "encoding": encoding,
            "encoded": n,
            "chunk": 0,
            "chunks": 1,
            "tiles": 1,
            "staged": key,
        }


@dataclass(frozen=True)
class SlideStageFactory(StageFactory):
    """Builds the stages of slide encoders; nothing is planned.

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
        """Share of a GPU that a worker needs; none where the study says ``device: cpu``."""
        meant = float(getattr(get("slide_encoders", self.label).params, "gpus", 0.0))
        return gpus_of(meant, self.params.slide_encoder_params, self.gpus_per_worker)

    def planner(self) -> Callable[[Row], list[Row]]:
        """The identity: rows are passed on."""
        return lambda row: [row]

    def encoder(self) -> Callable[[Row], Row]:
        """The second stage, with its encoder built."""
        return SlideEncodingStage(self.label, self.params.slide_encoder_params, self.staging, self.tiles)


def _table(slides: pd.DataFrame, tile_index: pd.DataFrame) -> pd.DataFrame:
    """The columns that the store registers: a slide is the same as long as its tiles are."""
    rows = tile_index.reindex(slides["slide"].astype(str))
    return slides[["slide", "path"]].assign(
        mpp=rows["mpp_override"].to_numpy(), fingerprint=rows["fingerprint"].fillna("").to_numpy()
    )


def _copy_tile_statuses(
    store: FeatureStore, slides: pd.DataFrame, keys: list[str], tile_index: pd.DataFrame, retry: bool
) -> None:
    """Slides without tiles get the status of their tiles; slides that have tiles by now become pending."""
    for key, slide in zip(keys, slides["slide"].astype(str), strict=True):
        status = store.status(key)["status"]
        if slide not in tile_index.index:
            store.record(
                [{"key": key, "status": "missing", "error": "there are no tile features of this name"}]
            )
        elif tile_index.loc[slide, "status"] != "ok":
            row = tile_index.loc[slide, ["status", "error", "attempts"]].to_dict()
            store.record([{"key": key, **row, "attempts": int(row["attempts"])}])
        elif status != "ok" and (retry or status not in _STAGE_FAILURES):
            store.reset(key)


def stores_folder(root: str | Path) -> str | Path:
    """The folder of stores, also if the study names one store in it."""
    if not folder_at(root).has(SPEC_FILE):
        return root
    return root.parent if isinstance(root, Path) else root.rstrip("/").rpartition("/")[0]
