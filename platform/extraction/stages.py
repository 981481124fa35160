"""The two stages for one slide: planning, then encoding, which goes chunk by chunk for a large slide. No Ray here.

Rows in and out are small dictionaries of text, numbers and bytes. A problem with a slide never leaves these
functions as an exception: it becomes a status and a reason in the row. A problem that kills the process is detected
by the attempt markers of :class:`~equipoise.datasets.store.staging.Staging`: a slide whose last two attempts never
ended is quarantined.
"""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from equipoise.datasets.atomic_io import atomic_path
from equipoise.datasets.redaction import masked
from equipoise.datasets.slides.fingerprint import sha256
from equipoise.datasets.slides.grid import TilePlan, plan_tiles
from equipoise.datasets.slides.problems import SlideProblem
from equipoise.datasets.slides.qc import overlay_jpeg, picture_of, plan_geojson
from equipoise.datasets.slides.reader import SlideReader, open_slide
from equipoise.datasets.slides.stain import check_stain
from equipoise.datasets.slides.tiles import (
    Timings,
    drop_unreadable,
    full_batches,
    prefetch_blocks,
    tile_blocks,
)
from equipoise.datasets.slides.tissue import Tissue, TissueParams, find_tissue
from equipoise.datasets.store.staging import Staging
from equipoise.models.encoders.protocol import Encoder
from equipoise.platform.errors import ResourceError, is_full_disk
from equipoise.platform.extraction.chunks import CHUNK_KEY, PlanRow, Row, split_into_chunks, with_counts
from equipoise.platform.extraction.encoders import MakeEncoder, load_encoder, require_same_encoder
from equipoise.platform.extraction.params import ExtractionParams
from equipoise.platform.registry import get

#: Unfinished attempts after which a slide is quarantined.
MAX_ATTEMPTS = 2


def one_thread() -> None:
    """Keep libraries from starting threads: a worker process is the unit of parallelism."""
    import cv2

    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    cv2.setNumThreads(1)


def plan_slide(
    row: Row, params: ExtractionParams, qc: Path | None = None
) -> tuple[PlanRow, NDArray[np.int64] | None]:
    """Open a slide, determine its resolution, find tissue and plan the tiles.

    Parameters
    ----------
    row
        ``key``, ``slide``, ``path``, ``mpp`` (pixel size of the slides table, NaN if it states none).
    params
        The study's features section.
    qc
        Folder for a picture and the plan as GeoJSON, named by key.

    Returns
    -------
    planned, order
        A row with ``status`` ``ok`` and a plan, or with the status and reason of the problem. For a large slide also
        the indices of its tiles in the order in which they are read.
    """
    metadata: Row = {"attempts": 1}
    remarks: list[str] = []
    plan = order = None
    try:
        with open_slide(row["path"], row["mpp"], params.mpp_override) as reader:
            remarks = reader.remarks
            metadata |= _slide_metadata(reader)
            plan = _plan_tiles(reader, params, metadata, qc and qc / row["key"])
            if len(plan) > params.chunk_tiles:
                order = np.concatenate(tile_blocks(reader, plan))
        metadata |= {"status": "ok", "n": len(plan), "tile_mpp": plan.mpp, "level0_px": plan.side}
        metadata["sha256"] = sha256(row["path"])
    except Exception as error:
        metadata |= {"n": 0, **failure(error)}
        metadata["error"] = "; ".join([metadata["error"], *remarks])
        plan = order = None
    tiles = 0 if plan is None else len(plan)
    return PlanRow(row["key"], row["slide"], row["path"], row["mpp"], metadata, plan, tiles=tiles), order


def _plan_tiles(
    reader: SlideReader, params: ExtractionParams, metadata: Row, picture: Path | None
) -> TilePlan:
    """Tissue and tiles of an open slide; adds to ``metadata`` and writes the picture, with or without tiles."""
    sampling = reader.sampling(
        params.mpp, params.resample
    )  # first: a slide too coarse for the target need not be read
    tissue = find_tissue(reader, TissueParams())
    metadata["tissue"] = round(tissue.share, 6)
    plan: TilePlan | None = None
    try:
        remarks = [check_stain(tissue.thumbnail, tissue.mask, params.stain), *reader.remarks]
        if any(remarks):
            metadata["error"] = "; ".join(filter(None, remarks))
        sizes = reader.level_dimensions
        plan = plan_tiles(tissue, sampling, sizes, params.tile_px, params.min_tissue, params.min_tiles)
        return plan
    finally:  # slides without tissue are those that users want to look at most
        if picture is not None:
            _write_qc(picture, reader, tissue, plan)


class PlanningStage:
    """First stage: rows of the manifest to :meth:`PlanRow.as_row`.

    Parameters
    ----------
    params
        The study's features section.
    staging
        Where attempts are marked.
    qc
        Folder for pictures, or ``None``.
    batch
        Tiles per call of the encoder: large slides are split where a batch ends.
    """

    def __init__(self, params: ExtractionParams, staging: Staging, qc: Path | None, batch: int = 1) -> None:
        self._params = params
        self._staging = staging
        self._qc = qc
        self._batch = batch

    def __call__(self, row: Row) -> list[Row]:
        """One row, or one per chunk of a large slide."""
        quarantined = _begin(self._staging, row["key"], "plan")
        if quarantined:
            return [PlanRow(row["key"], row["slide"], row["path"], row["mpp"], quarantined).as_row()]
        planned, order = plan_slide(row, self._params, self._qc)
        if self._qc is not None:
            self._staging.upload_qc_files(self._qc, row["key"])
        self._staging.end(row["key"], "plan")
        chunks = split_into_chunks(planned, order, self._params.chunk_tiles, self._batch)
        return [chunk.as_row() for chunk in chunks]


class TileEncodingStage:
    """Second stage: from plans to features, staged as a file; returns a status row.

    Parameters
    ----------
    params
        The study's features section.
    staging
        Where features are staged and attempts are marked.
    make_encoder
        Builds the encoder, once per worker.
    readers
        Threads that read tiles.
    ahead
        Blocks of tiles that may be read but not yet encoded: this bounds a worker's memory.
    """

    def __init__(
        self,
        params: ExtractionParams,
        staging: Staging,
        make_encoder: MakeEncoder = load_encoder,
        readers: int = 2,
        ahead: int = 4,
    ) -> None:
        self._params = params
        self._staging = staging
        self._encoder = make_encoder(params)
        require_same_encoder(self._encoder, staging.spec)
        self._readers = readers
        self._ahead = ahead

    def __call__(self, row: Row) -> Row:
        """Encode one planned slide, or one chunk of it.

        Returns
        -------
        ``key``, ``slide``, ``result`` (JSON: columns of the index), ``seconds`` of work, ``reading`` and ``encoding``
        seconds and ``encoded`` tiles; for :func:`~equipoise.platform.extraction.chunks.join_chunks` also ``chunk``,
        ``chunks``, ``tiles`` of the whole slide and the name it is ``staged`` under.
        """
        started = time.perf_counter()
        planned = PlanRow.from_row(row)
        timings = Timings()
        result = planned.result
        if planned.plan is not None:
            result = self._attempt(planned, planned.plan, timings)
        return {
            "key": planned.key,
            "slide": planned.slide,
            "result": json.dumps(result),
            "seconds": time.perf_counter() - started,
            "reading": timings.reading,
            "encoding": timings.encoding,
            "encoded": timings.tiles,
            "chunk": planned.chunk,
            "chunks": planned.chunks,
            "tiles": planned.tiles,
            "staged": planned.staged_as,
        }

    def _attempt(self, planned: PlanRow, plan: TilePlan, timings: Timings) -> Row:
        """Columns of the index; a chunk that was encoded before another worker or the driver died is kept."""
        done = self._staging.staged_row(planned.staged_as) if planned.chunks > 1 else None
        if done is not None:
            return done
        quarantined = _begin(self._staging, planned.key, planned.step)
        if quarantined:
            return planned.result | quarantined
        result = self._encode_and_stage(planned, plan, timings)
        _end(self._staging, planned.key, planned.step)
        return result

    def _encode_and_stage(self, planned: PlanRow, plan: TilePlan, timings: Timings) -> Row:
        bad: list[tuple[int, str]] = []
        try:
            tiles = encode_tiles(
                planned, plan, self._encoder, self._params, bad, timings, self._readers, self._ahead
            )
            metadata = {"slide": planned.slide, **tiles.result}
            self._staging.write(planned.staged_as, tiles.x, tiles.y, tiles.features, metadata)
        except Exception as error:
            counts = {CHUNK_KEY: {"bad": len(bad), "first": bad[0][1]}} if bad and planned.chunks > 1 else {}
            return planned.result | {"n": 0, **failure(error), **counts}
        return tiles.result


class EncodedTiles(NamedTuple):
    """The tiles of a slide, or of a chunk of it, that could be read.

    Attributes
    ----------
    x, y
        int32 ``[N]``, top-left corners in level-0 pixels.
    features
        float16 ``[N, D]``.
    result
        Columns of the store's index.
    """

    x: NDArray[np.int32]
    y: NDArray[np.int32]
    features: NDArray[np.float16]
    result: Row


def encode_tiles(
    planned: PlanRow,
    plan: TilePlan,
    encoder: Encoder,
    params: ExtractionParams,
    bad: list[tuple[int, str]],
    timings: Timings,
    readers: int = 2,
    ahead: int = 4,
) -> EncodedTiles:
    """Read and encode the tiles of a planned slide, or of a chunk of it.

    Parameters
    ----------
    planned, plan
        From :func:`plan_slide`.
    encoder, params
        The encoder and the study's features section.
    bad
        Receives index and reason of every tile that cannot be read.
    timings
        Receives the work.
    readers, ahead
        As in :class:`TileEncodingStage`.

    Raises
    ------
    SlideProblem
        If the slide cannot be opened, or more tiles are unreadable than the study tolerates.
    """
    features = np.zeros((len(plan), encoder.dim), np.float16)
    read = np.zeros(len(plan), bool)
    with open_slide(planned.path, planned.table_mpp, params.mpp_override) as reader:
        ahead_of_use = prefetch_blocks(reader, plan, params.resample, readers, ahead, timings)
        # Closing waits for the reader threads, also when the slide is rejected half way.
        with closing(ahead_of_use) as blocks:
            good = drop_unreadable(blocks, bad, params.max_bad_tiles, planned.tiles)
            for index, pixels in full_batches(good, encoder.batch_size, plan.px):
                started = time.perf_counter()
                features[index] = encoder(pixels)
                timings.encoding += time.perf_counter() - started
                timings.tiles += len(index)
                read[index] = True
    counts = {
        "n": int(read.sum()),
        "bad": len(bad),
        "first": bad[0][1] if bad else "",
        "reader": reader.kind,
    }
    split = planned.chunks > 1
    result = (
        planned.result | {CHUNK_KEY: counts}
        if split
        else with_counts(planned.result, [counts], planned.tiles)
    )
    rows = (
        np.flatnonzero(read) if bad else slice(None)
    )  # the features of a large slide are not copied without need
    return EncodedTiles(plan.x[rows], plan.y[rows], features[rows], result)


@dataclass(frozen=True)
class StageFactory:
    """Builds both stages, in this process or in another.

    Attributes
    ----------
    params
        The study's features section.
    staging
        Where features are staged and attempts are marked.
    qc
        Folder for pictures, or ``None``.
    make_encoder
        Builds the encoder.
    batch
        Tiles per call of the encoder.
    gpus_per_worker
        Share of a GPU for each worker, of an encoder that needs one; ``None``: what it is meant for.
    """

    params: ExtractionParams
    staging: Staging
    qc: Path | None
    make_encoder: MakeEncoder
    batch: int
    gpus_per_worker: float | None = field(default=None, kw_only=True)

    @property
    def label(self) -> str:
        """Name of the encoder."""
        return self.params.encoder

    @property
    def gpus(self) -> float:
        """Share of a GPU that a worker needs; none where the study says ``device: cpu``."""
        meant = float(getattr(get("encoders", self.label).params, "gpus", 0.0))
        return gpus_of(meant, self.params.encoder_params, self.gpus_per_worker)

    def planner(self) -> Callable[[Row], list[Row]]:
        """The first stage."""
        return PlanningStage(self.params, self.staging, self.qc, self.batch)

    def encoder(self) -> Callable[[Row], Row]:
        """The second stage, with its encoder built."""
        # A second thread that decodes would take its time from an encoder on the same CPU; one on a GPU is fed by two.
        return TileEncodingStage(self.params, self.staging, self.make_encoder, readers=2 if self.gpus else 1)


def gpus_of(meant: float, given: Mapping[str, Any], gpus_per_worker: float | None) -> float:
    """Share of a GPU that a worker of an encoder needs.

    Parameters
    ----------
    meant
        The share that the encoder is meant for; 0: it runs on CPUs.
    given
        The encoder's parameters in the study.
    gpus_per_worker
        The share that the study asks for instead.
    """
    if not meant or given.get("device") == "cpu":
        return 0.0
    return meant if gpus_per_worker is None else gpus_per_worker


def _begin(staging: Staging, key: str, step: str) -> Row | None:
    """Mark the start of an attempt; returns a result row if too many workers have died on the slide."""
    attempt = staging.begin(key, step)
    stage, _, chunk = step.partition("-")
    worker_deaths = staging.worker_deaths(key, stage) if chunk else attempt - 1
    if worker_deaths < MAX_ATTEMPTS:
        return None
    doing = {"plan": "planning", "encode": "encoding"}[stage]
    reason = (
        f"the worker died {MAX_ATTEMPTS} times while {doing} this slide (out of memory or a native crash)"
    )
    return {
        "status": "quarantined",
        "attempts": MAX_ATTEMPTS,
        "error": f"{reason}; fix: inspect the slide, then set features.retry",
    }


def _end(staging: Staging, key: str, step: str) -> None:
    """Mark the end of an attempt. A chunk on which a worker died keeps its marker: it counts for the slide."""
    if "-" not in step or staging.unfinished_attempts(key, step) == 1:
        staging.end(key, step)


def failure(error: Exception) -> Row:
    """Status and reason of an exception; unexpected errors include file and line.

    Raises
    ------
    ResourceError
        For a full disk: no slide is at fault, and the next would fail, too.
    """
    if is_full_disk(error):
        raise ResourceError(
            getattr(error, "strerror", None) or "the disk is full",
            where=str(getattr(error, "filename", None) or ""),
            fix="free some space and run the same command again: it resumes",
        ) from error
    if isinstance(error, SlideProblem):
        return {"status": error.status, "error": masked(error.line)}
    frame = traceback.extract_tb(error.__traceback__)[-1]
    location = f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}"
    reason = f"{type(error).__name__}: {error} ({location})".replace("\n", " ")
    return {"status": "error", "error": masked(reason)}


def _slide_metadata(reader: SlideReader) -> Row:
    return {
        "mpp": reader.mpp,
        "mpp_source": reader.mpp_source,
        "width": reader.dimensions[0],
        "height": reader.dimensions[1],
        "vendor": reader.vendor,
        "reader": reader.kind,
    }


def _write_qc(path: Path, reader: SlideReader, tissue: Tissue, plan: TilePlan | None) -> None:
    with atomic_path(path.with_suffix(".jpg")) as temporary:
        temporary.write_bytes(overlay_jpeg(picture_of(reader, tissue), tissue, plan))
    with atomic_path(path.with_suffix(".geojson")) as temporary:
        temporary.write_bytes(plan_geojson(tissue, plan, reader.origin))
