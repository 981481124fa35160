"""What happens to one slide: planned by one stage, encoded by the next, a giant one region by region. No Ray here.

Rows in and out are small dictionaries of text, numbers and bytes. Nothing that goes wrong with a slide leaves
these functions as an exception: it becomes a status and a reason in the row. What kills the process is caught
by the marks of :class:`~equipoise.datasets.store.staging.Staging`: a slide whose two last attempts never
ended is quarantined.
"""

from __future__ import annotations

import json
import os
import time
import traceback
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from equipoise.datasets.slides.fingerprint import sha256
from equipoise.datasets.slides.grid import TilePlan, plan_tiles
from equipoise.datasets.slides.problems import SlideProblem
from equipoise.datasets.slides.qc import overlay_jpeg, picture_of, plan_geojson
from equipoise.datasets.slides.reader import SlideReader, open_slide
from equipoise.datasets.slides.tiles import tile_blocks
from equipoise.datasets.slides.tissue import Tissue, TissueParams, find_tissue
from equipoise.datasets.store.staging import Staging
from equipoise.datasets.whole_files import atomic_path
from equipoise.platform.extraction.encoders import MakeEncoder, load_encoder, require_same
from equipoise.platform.extraction.params import ExtractionParams
from equipoise.platform.extraction.plan_row import PlanRow, Row
from equipoise.platform.extraction.reading import Spent, full_batches, read_ahead, tolerated
from equipoise.platform.extraction.regions import PART, cut, of_parts
from equipoise.platform.registry import get

#: Unfinished attempts after which a slide is quarantined.
MAX_ATTEMPTS = 2


def one_thread() -> None:
    """Keep libraries from starting threads of their own: a worker process is the unit of parallelism."""
    import cv2

    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    cv2.setNumThreads(1)


def plan_slide(
    row: Row, params: ExtractionParams, qc: Path | None = None
) -> tuple[PlanRow, NDArray[np.int64] | None]:
    """Open a slide, settle its resolution, find tissue and lay out the tiles.

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
        A row with ``status`` ``ok`` and a plan, or with the status and reason of what is wrong. Of a giant slide also
        the places of its tiles in the order in which they are read.
    """
    facts: Row = {"attempts": 1}
    plan = order = None
    try:
        with open_slide(row["path"], row["mpp"], params.mpp_override) as reader:
            facts |= _facts(reader)
            plan = _lay_out(reader, params, facts, qc and qc / row["key"])
            if len(plan) > params.region_tiles:
                order = np.concatenate(tile_blocks(reader, plan))
        facts |= {"status": "ok", "n": len(plan), "tile_mpp": plan.mpp, "level0_px": plan.side}
        facts["sha256"] = sha256(row["path"])
    except Exception as error:
        facts |= {"n": 0, **_failure(error)}
        plan = order = None
    tiles = 0 if plan is None else len(plan)
    return PlanRow(row["key"], row["slide"], row["path"], row["mpp"], facts, plan, tiles=tiles), order


def _lay_out(reader: SlideReader, params: ExtractionParams, facts: Row, picture: Path | None) -> TilePlan:
    """Tissue and tiles of an open slide; adds to ``facts`` and writes the picture, with or without tiles."""
    sampling = reader.sampling(
        params.mpp, params.resample
    )  # first: a slide too coarse for the target need not be read
    tissue = find_tissue(reader, TissueParams())
    facts["tissue"] = round(tissue.share, 6)
    plan: TilePlan | None = None
    try:
        sizes = reader.level_dimensions
        plan = plan_tiles(tissue, sampling, sizes, params.tile_px, params.min_tissue, params.min_tiles)
        return plan
    finally:  # a slide without tissue is what people want to look at most
        if picture is not None:
            _write_qc(picture, reader, tissue, plan)


class SlidePlanner:
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
        Tiles per call of the encoder: giant slides are cut where a batch ends.
    """

    def __init__(self, params: ExtractionParams, staging: Staging, qc: Path | None, batch: int = 1) -> None:
        self._params = params
        self._staging = staging
        self._qc = qc
        self._batch = batch

    def __call__(self, row: Row) -> list[Row]:
        """One row, or one per region of a giant slide."""
        quarantined = _begin(self._staging, row["key"], "plan")
        if quarantined:
            return [PlanRow(row["key"], row["slide"], row["path"], row["mpp"], quarantined).as_row()]
        planned, order = plan_slide(row, self._params, self._qc)
        if self._qc is not None:
            self._staging.share_pictures(self._qc, row["key"])
        self._staging.end(row["key"], "plan")
        return [part.as_row() for part in cut(planned, order, self._params.region_tiles, self._batch)]


class SlideEncoder:
    """Second stage: plans to features, staged as a file; what goes on is a status row.

    Parameters
    ----------
    params
        The study's features section.
    staging
        Where features are staged and attempts marked.
    make_encoder
        Builds the encoder, once per worker.
    readers
        Threads that read tiles.
    ahead
        Runs of tiles that may be read but not yet encoded: the bound on a worker's memory.
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
        require_same(self._encoder, staging.spec)
        self._readers = readers
        self._ahead = ahead

    def __call__(self, row: Row) -> Row:
        """Encode one planned slide, or one region of it.

        Returns
        -------
        ``key``, ``slide``, ``result`` (JSON: columns of the index), ``seconds`` of work, ``reading`` and ``encoding``
        seconds and ``encoded`` tiles; for :func:`~equipoise.platform.extraction.regions.joined` also ``region``,
        ``regions``, ``tiles`` of the whole slide and the name it is ``staged`` under.
        """
        started = time.perf_counter()
        planned = PlanRow.from_row(row)
        spent = Spent()
        result = planned.result
        if planned.plan is not None:
            result = self._attempt(planned, planned.plan, spent)
        return {
            "key": planned.key,
            "slide": planned.slide,
            "result": json.dumps(result),
            "seconds": time.perf_counter() - started,
            "reading": spent.reading,
            "encoding": spent.encoding,
            "encoded": spent.tiles,
            "region": planned.region,
            "regions": planned.regions,
            "tiles": planned.tiles,
            "staged": planned.staged_as,
        }

    def _attempt(self, planned: PlanRow, plan: TilePlan, spent: Spent) -> Row:
        """Columns of the index; a region that was encoded before another worker or the driver died is done."""
        done = self._staging.found(planned.staged_as) if planned.regions > 1 else None
        if done is not None:
            return done
        quarantined = _begin(self._staging, planned.key, planned.step)
        if quarantined:
            return planned.result | quarantined
        result = self._finish(planned, plan, spent)
        _end(self._staging, planned.key, planned.step)
        return result

    def _finish(self, planned: PlanRow, plan: TilePlan, spent: Spent) -> Row:
        bad: list[tuple[int, str]] = []
        try:
            with open_slide(planned.path, planned.table_mpp, self._params.mpp_override) as reader:
                features, kept = self._encode(reader, plan, planned.tiles, bad, spent)
            part = {"n": len(kept), "bad": len(bad), "first": bad[0][1] if bad else "", "reader": reader.kind}
            gave = {PART: part} if planned.regions > 1 else of_parts([part], planned.tiles)
            result = planned.result | gave
            about = {"slide": planned.slide, **result}
            taken = kept if bad else slice(None)  # a giant slide's features are not copied without need
            self._staging.write(planned.staged_as, plan.x[taken], plan.y[taken], features[taken], about)
        except Exception as error:
            told = {PART: {"bad": len(bad), "first": bad[0][1]}} if bad and planned.regions > 1 else {}
            return planned.result | {"n": 0, **_failure(error), **told}
        return result

    def _encode(
        self, reader: SlideReader, plan: TilePlan, tiles: int, bad: list[tuple[int, str]], spent: Spent
    ) -> tuple[NDArray[np.float16], NDArray[np.int64]]:
        """Features ``[N, D]`` by place in the plan and the places that were read; the others go to ``bad``, with
        reasons."""
        features = np.zeros((len(plan), self._encoder.dim), np.float16)
        read = np.zeros(len(plan), bool)
        ahead = read_ahead(reader, plan, self._params.resample, self._readers, self._ahead, spent)
        with closing(
            ahead
        ) as blocks:  # waits for the reader threads, also when the slide is given up half way
            good = tolerated(blocks, bad, self._params.max_bad_tiles, tiles)
            for index, pixels in full_batches(good, self._encoder.batch_size, plan.px):
                started = time.perf_counter()
                features[index] = self._encoder(pixels)
                spent.encoding += time.perf_counter() - started
                spent.tiles += len(index)
                read[index] = True
        return features, np.flatnonzero(read)


@dataclass(frozen=True)
class Setup:
    """What both stages need to know, in this process or another.

    Attributes
    ----------
    params
        The study's features section.
    staging
        Where features are staged and attempts marked.
    qc
        Folder for pictures, or ``None``.
    make_encoder
        Builds the encoder.
    batch
        Tiles per call of the encoder.
    """

    params: ExtractionParams
    staging: Staging
    qc: Path | None
    make_encoder: MakeEncoder
    batch: int

    @property
    def label(self) -> str:
        """Name of the encoder."""
        return self.params.encoder

    @property
    def gpus(self) -> float:
        """Share of a GPU that a worker wants."""
        return float(getattr(get("encoders", self.label).params, "gpus", 0.0))

    def planner(self) -> Callable[[Row], list[Row]]:
        """The first stage."""
        return SlidePlanner(self.params, self.staging, self.qc, self.batch)

    def encoder(self) -> Callable[[Row], Row]:
        """The second stage, with its encoder built."""
        return SlideEncoder(self.params, self.staging, self.make_encoder)


def _begin(staging: Staging, key: str, step: str) -> Row | None:
    """Mark the start of an attempt; a result row if the slide has killed its workers too often."""
    attempt = staging.begin(key, step)
    stage, _, region = step.partition("-")
    deaths = staging.deaths(key, stage) if region else attempt - 1
    if deaths < MAX_ATTEMPTS:
        return None
    reason = (
        f"the worker died {MAX_ATTEMPTS} times while it was to {stage} this slide (memory or a native crash)"
    )
    return {
        "status": "quarantined",
        "attempts": MAX_ATTEMPTS,
        "error": f"{reason}; fix: look at it, then retry",
    }


def _end(staging: Staging, key: str, step: str) -> None:
    """Mark the end of an attempt. A region that has killed a worker keeps its mark: it counts for its slide."""
    if "-" not in step or staging.open_attempts(key, step) == 1:
        staging.end(key, step)


def _failure(error: Exception) -> Row:
    """Status and reason of an exception; our own mistakes are kept with their place."""
    if isinstance(error, SlideProblem):
        return {"status": error.status, "error": error.line}
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{Path(frame.filename).name}:{frame.lineno} in {frame.name}"
    return {"status": "error", "error": f"{type(error).__name__}: {error} ({place})".replace("\n", " ")}


def _facts(reader: SlideReader) -> Row:
    return {
        "mpp": reader.mpp,
        "mpp_source": reader.mpp_source,
        "width": reader.dimensions[0],
        "height": reader.dimensions[1],
        "vendor": reader.vendor,
        "reader": reader.kind,
    }


def _write_qc(place: Path, reader: SlideReader, tissue: Tissue, plan: TilePlan | None) -> None:
    with atomic_path(place.with_suffix(".jpg")) as aside:
        aside.write_bytes(overlay_jpeg(picture_of(reader, tissue), tissue, plan))
    with atomic_path(place.with_suffix(".geojson")) as aside:
        aside.write_bytes(plan_geojson(tissue, plan))
