"""What happens to one slide: planned by one stage, encoded by the next. No Ray here.

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
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.datasets.slides.fingerprint import sha256
from equipoise.datasets.slides.grid import TilePlan, plan_tiles
from equipoise.datasets.slides.problems import SlideProblem
from equipoise.datasets.slides.qc import overlay_jpeg, picture_of, plan_geojson
from equipoise.datasets.slides.reader import SlideReader, open_slide
from equipoise.datasets.slides.tissue import Tissue, TissueParams, find_tissue
from equipoise.datasets.store.spec import StoreSpec
from equipoise.datasets.store.staging import Staging
from equipoise.datasets.whole_files import atomic_path
from equipoise.models.encoders.protocol import Encoder
from equipoise.platform.errors import ResourceError
from equipoise.platform.extraction.params import ExtractionParams
from equipoise.platform.extraction.reading import full_batches, read_ahead, tolerated
from equipoise.platform.registry import get

Row = dict[str, Any]
MakeEncoder = Callable[[ExtractionParams], Encoder]

#: Rules by which pixels are read: raised when the same slide would give other tiles or other pixels.
#: Since ``tiles-2``: truncated JPEG tiles are refused instead of filled with grey.
READER = "tiles-2"

#: Unfinished attempts after which a slide is quarantined.
MAX_ATTEMPTS = 2


def load_encoder(params: ExtractionParams) -> Encoder:
    """The encoder that a study names.

    Raises
    ------
    ResourceError
        If its weights are missing or are not its own, with how to get them.
    """
    entry = get("encoders", params.encoder)
    build = entry.load()
    chosen = entry.params.model_validate(params.encoder_params)
    try:
        return build(chosen)
    except (FileNotFoundError, ValueError) as error:
        what, _, fix = str(error).partition("\n")
        raise ResourceError(what, where=f"encoder {params.encoder}", fix=fix or None) from error


def store_spec(params: ExtractionParams, encoder: Encoder) -> StoreSpec:
    """What the features of a study are made with."""
    tissue = {**asdict(TissueParams()), "min_tissue": params.min_tissue, "min_tiles": params.min_tiles}
    return StoreSpec(
        encoder=params.encoder,
        encoder_hash=encoder.hash,
        dim=encoder.dim,
        mpp=params.mpp,
        tile_px=params.tile_px,
        resample=params.resample,
        reader=READER,
        tissue={**tissue, "max_bad_tiles": params.max_bad_tiles},
    )


def one_thread() -> None:
    """Keep libraries from starting threads of their own: a worker process is the unit of parallelism."""
    import cv2

    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    cv2.setNumThreads(1)


@dataclass(frozen=True, eq=False)
class PlanRow:
    """What planning a slide gave.

    Attributes
    ----------
    key, slide, path
        Which slide.
    table_mpp
        Pixel size of the slides table, NaN if it states none.
    result
        Columns of the store's index known so far; ``status`` is ``ok`` if the slide can be encoded.
    plan
        The tiles, if so.
    """

    key: str
    slide: str
    path: str
    table_mpp: float
    result: Row
    plan: TilePlan | None = None

    def as_row(self) -> Row:
        """As a small row for Ray: a few bytes per tile."""
        plan = self.plan
        about = {"side": plan.side, "px": plan.px, "mpp": plan.mpp} if plan else None
        return {
            "key": self.key,
            "slide": self.slide,
            "path": self.path,
            "about": json.dumps({"result": self.result, "plan": about, "table_mpp": self.table_mpp}),
            "tiles": np.stack([plan.x, plan.y]).tobytes() if plan else b"",
        }

    @classmethod
    def from_row(cls, row: Row) -> PlanRow:
        """The other way round."""
        about = json.loads(row["about"])
        plan = None
        if about["plan"]:
            x, y = np.frombuffer(row["tiles"], np.int32).reshape(2, -1)
            plan = TilePlan(x, y, **about["plan"])
        return cls(row["key"], row["slide"], row["path"], about["table_mpp"], about["result"], plan)


def plan_slide(row: Row, params: ExtractionParams, qc: Path | None = None) -> PlanRow:
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
    A row with ``status`` ``ok`` and a plan, or with the status and reason of what is wrong.
    """
    facts: Row = {"attempts": 1}
    plan = None
    try:
        with open_slide(row["path"], row["mpp"], params.mpp_override) as reader:
            facts |= _facts(reader)
            plan = _lay_out(reader, params, facts, qc and qc / row["key"])
        facts |= {"status": "ok", "n": len(plan), "tile_mpp": plan.mpp, "level0_px": plan.side}
        facts["sha256"] = sha256(row["path"])
    except Exception as error:
        facts |= {"n": 0, **_failure(error)}
        plan = None
    return PlanRow(row["key"], row["slide"], row["path"], row["mpp"], facts, plan)


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
    """

    def __init__(self, params: ExtractionParams, staging: Staging, qc: Path | None) -> None:
        self._params = params
        self._staging = staging
        self._qc = qc

    def __call__(self, row: Row) -> Row:
        quarantined = _begin(self._staging, row["key"], "plan")
        if quarantined:
            return PlanRow(row["key"], row["slide"], row["path"], row["mpp"], quarantined).as_row()
        planned = plan_slide(row, self._params, self._qc)
        self._staging.end(row["key"], "plan")
        return planned.as_row()


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
        self._readers = readers
        self._ahead = ahead

    def __call__(self, row: Row) -> Row:
        """Encode one planned slide.

        Returns
        -------
        ``key``, ``slide``, ``result`` (JSON: columns of the index) and ``seconds`` of work.
        """
        started = time.perf_counter()
        planned = PlanRow.from_row(row)
        result = planned.result
        if planned.plan is not None:
            quarantined = _begin(self._staging, planned.key, "encode")
            if quarantined:
                result = planned.result | quarantined
            else:
                result = self._finish(planned, planned.plan)
                self._staging.end(planned.key, "encode")
        return {
            "key": planned.key,
            "slide": planned.slide,
            "result": json.dumps(result),
            "seconds": time.perf_counter() - started,
        }

    def _finish(self, planned: PlanRow, plan: TilePlan) -> Row:
        try:
            with open_slide(planned.path, planned.table_mpp, self._params.mpp_override) as reader:
                features, kept, bad = self._encode(reader, plan)
            result = planned.result | {"n": len(kept), "bad_tiles": len(bad), "reader": reader.kind}
            if bad:
                result["error"] = f"{len(bad)} of {len(plan)} tiles left out, the first: {bad[0][1]}"
            about = {"slide": planned.slide, **result}
            taken = kept if bad else slice(None)  # a giant slide's features are not copied without need
            self._staging.write(planned.key, plan.x[taken], plan.y[taken], features[taken], about)
        except Exception as error:
            return planned.result | {"n": 0, **_failure(error)}
        return result

    def _encode(
        self, reader: SlideReader, plan: TilePlan
    ) -> tuple[NDArray[np.float16], NDArray[np.int64], list[tuple[int, str]]]:
        """Features ``[N, D]`` by place in the plan, the places that were read, the others with reasons."""
        features = np.zeros((len(plan), self._encoder.dim), np.float16)
        read = np.zeros(len(plan), bool)
        bad: list[tuple[int, str]] = []
        # Closing waits for the reader threads, also when the slide is given up half way.
        with closing(read_ahead(reader, plan, self._params.resample, self._readers, self._ahead)) as blocks:
            good = tolerated(blocks, bad, self._params.max_bad_tiles, len(plan))
            for index, pixels in full_batches(good, self._encoder.batch_size, plan.px):
                features[index] = self._encoder(pixels)
                read[index] = True
        return features, np.flatnonzero(read), bad


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
    """

    params: ExtractionParams
    staging: Staging
    qc: Path | None
    make_encoder: MakeEncoder

    def planner(self) -> SlidePlanner:
        """The first stage."""
        return SlidePlanner(self.params, self.staging, self.qc)

    def encoder(self) -> SlideEncoder:
        """The second stage, with its encoder built."""
        return SlideEncoder(self.params, self.staging, self.make_encoder)


def _begin(staging: Staging, key: str, step: str) -> Row | None:
    """Mark the start of an attempt; a result row if the slide has killed its worker too often."""
    if staging.begin(key, step) <= MAX_ATTEMPTS:
        return None
    reason = (
        f"the worker died {MAX_ATTEMPTS} times while it was to {step} this slide (memory or a native crash)"
    )
    return {
        "status": "quarantined",
        "attempts": MAX_ATTEMPTS,
        "error": f"{reason}; fix: look at it, then retry",
    }


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
