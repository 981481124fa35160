"""What a planner sends to an encoder: one slide, or one chunk of a large slide.

Large slides are split by the planner, encoded by several workers, and joined by the driver.

A chunk is a contiguous part of the tiles in the order in which they are read, row of blocks after row of blocks, and
ends where a batch ends: every batch holds the tiles that it would hold if the slide were not split. Where a slide is
split depends on its plan alone, and the joined features stand in the plan's order. So the bytes of the store do not
depend on which worker encoded which chunk.

A chunk is staged as a file of its own, like a slide. Chunks that were encoded before a worker or the driver died are
not encoded again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.datasets.errors import DataError
from equipoise.datasets.slides.grid import TilePlan
from equipoise.datasets.slides.problems import SlideProblem
from equipoise.datasets.slides.tiles import some_unreadable, too_many_unreadable
from equipoise.datasets.store.shards import MappedFile, batch_arrays
from equipoise.datasets.store.staging import Staging

#: Key under which the result of a chunk holds the counts of its own tiles, see :func:`combine_chunks`; it is written
#: to staged files.
CHUNK_KEY = "region"


Row = dict[str, Any]


@dataclass(frozen=True, eq=False)
class PlanRow:
    """The plan of a slide, or of the chunk of it that one worker encodes.

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
    chunk, chunks
        Index of the chunk and number of chunks; a slide that is not split is a single chunk.
    tiles
        Tiles of the whole slide.
    """

    key: str
    slide: str
    path: str
    table_mpp: float
    result: Row
    plan: TilePlan | None = None
    chunk: int = 0
    chunks: int = 1
    tiles: int = 0

    @property
    def step(self) -> str:
        """Name under which attempts are marked; every chunk has its own count."""
        return "encode" if self.chunks == 1 else f"encode-{self.chunk}"

    @property
    def staged_as(self) -> str:
        """Name of the staged file. That of a chunk depends on its tiles, so that another split ignores it."""
        if self.chunks == 1 or self.plan is None:
            return self.key
        return f"{self.key}.{hashlib.sha256(_corners(self.plan)).hexdigest()[:16]}"

    def as_row(self) -> Row:
        """As a small row for Ray: a few bytes per tile."""
        plan = self.plan
        metadata = {
            "result": self.result,
            "plan": {"side": plan.side, "px": plan.px, "mpp": plan.mpp} if plan else None,
            "table_mpp": self.table_mpp,
            "split": {"chunk": self.chunk, "chunks": self.chunks, "tiles": self.tiles},
        }
        return {
            "key": self.key,
            "slide": self.slide,
            "path": self.path,
            "metadata": json.dumps(metadata),
            "tiles": _corners(plan) if plan else b"",
        }

    @classmethod
    def from_row(cls, row: Row) -> PlanRow:
        """The inverse of :meth:`as_row`."""
        metadata = json.loads(row["metadata"])
        plan = None
        if metadata["plan"]:
            x, y = np.frombuffer(row["tiles"], np.int32).reshape(2, -1)
            plan = TilePlan(x, y, **metadata["plan"])
        table_mpp, result = metadata["table_mpp"], metadata["result"]
        return cls(row["key"], row["slide"], row["path"], table_mpp, result, plan, **metadata["split"])


def split_into_chunks(
    planned: PlanRow, order: NDArray[np.int64] | None, chunk_tiles: int, batch: int
) -> list[PlanRow]:
    """Chunks of at most about ``chunk_tiles`` tiles.

    Parameters
    ----------
    planned
        A slide.
    order
        int ``[N]``, the indices of its tiles in the order of reading; ``None``: do not split.
    chunk_tiles
        A slide with more tiles than that is split.
    batch
        Tiles per call of the encoder.

    Returns
    -------
    The slide itself if it is not split.
    """
    plan = planned.plan
    if plan is None or order is None or len(plan) <= chunk_tiles:
        return [planned]
    batches = -(-len(plan) // batch)
    count = min(-(-len(plan) // chunk_tiles), batches)
    ends = [min(len(plan), i * batches // count * batch) for i in range(count + 1)]
    return [
        replace(planned, plan=subset_plan(plan, order[start:end]), chunk=i, chunks=count)
        for i, (start, end) in enumerate(pairwise(ends))
    ]


def join_chunks(rows: Iterable[Row], staging: Staging, max_bad: float) -> Iterator[Row]:
    """Pass on the rows of whole slides, and one row for a split slide as soon as all its chunks have arrived.

    Parameters
    ----------
    rows
        Status rows of :class:`~equipoise.platform.extraction.stages.TileEncodingStage`.
    staging
        Where features are staged.
    max_bad
        Share of unreadable tiles that a slide may have.

    Raises
    ------
    DataError
        If the driver does not see a file that a worker has staged.
    """
    waiting: dict[str, list[Row]] = {}
    for row in rows:
        if row["chunks"] == 1:
            yield row
            continue
        chunks = waiting.setdefault(row["key"], [])
        chunks.append(row)
        if len(chunks) == row["chunks"]:
            yield _join(sorted(waiting.pop(row["key"]), key=lambda each: each["chunk"]), staging, max_bad)


def _join(chunks: list[Row], staging: Staging, max_bad: float) -> Row:
    """One row for a slide from its chunks in order; stages the slide if it is ``ok``."""
    key = chunks[0]["key"]
    results = [json.loads(row["result"]) for row in chunks]
    counts = [result.pop(CHUNK_KEY, {}) for result in results]
    result = _slide_result(results, counts, chunks[0]["tiles"], max_bad)
    if result["status"] == "ok":
        x, y, features = _in_order([row["staged"] for row in chunks], staging)
        staging.write(key, x, y, features, {"slide": chunks[0]["slide"], **result})
    # A quarantined slide is tried once more: its encoded chunks are kept until then.
    if result["status"] != "quarantined":
        for row in chunks:
            staging.discard(row["staged"])
            staging.end(key, f"encode-{row['chunk']}")
    return {
        **chunks[0],
        "result": json.dumps(result),
        "seconds": sum(row["seconds"] for row in chunks),
        "chunks": 1,
    }


def _slide_result(results: list[Row], counts: list[Row], tiles: int, max_bad: float) -> Row:
    """Columns of the index for the whole slide, as a single worker would have written them."""
    bad = sum(count.get("bad", 0) for count in counts)
    first = next((count["first"] for count in counts if count.get("bad")), "")
    failed = [result for result in results if result["status"] != "ok"]
    quarantined = [result for result in failed if result["status"] == "quarantined"]
    if quarantined:
        return quarantined[0]
    if bad > max_bad * tiles:
        problem = SlideProblem("unreadable", too_many_unreadable(max_bad, tiles, first))
        return results[0] | {"n": 0, "status": problem.status, "error": problem.line}
    if failed:
        return failed[0]
    return with_counts(results[0], counts, tiles)


def with_counts(result: Row, counts: list[Row], tiles: int) -> Row:
    """A result with what encoding adds; remarks of the plan come before those on tiles that were left out."""
    added = combine_chunks(counts, tiles)
    remarks = [row["error"] for row in (result, added) if row.get("error")]
    return result | added | ({"error": "; ".join(remarks)} if remarks else {})


def combine_chunks(counts: list[Row], tiles: int) -> Row:
    """Columns of the index that result from encoding all of a slide.

    Parameters
    ----------
    counts
        Of each chunk: ``n``, ``bad`` (how many), ``first`` (reason) and ``reader``.
    tiles
        Tiles of the plan.
    """
    bad = sum(count["bad"] for count in counts)
    result = {"n": sum(count["n"] for count in counts), "bad_tiles": bad, "reader": counts[0]["reader"]}
    if bad:
        first = next(count["first"] for count in counts if count["bad"])
        result["error"] = some_unreadable(bad, tiles, first)
    return result


def _in_order(
    names: list[str], staging: Staging
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float16]]:
    """Corners ``[N]`` and features ``[N, D]`` of all chunks, row by row from the top of the slide, as planned."""
    chunks = []
    for name in names:
        if not staging.file(name).exists():
            raise DataError(
                "a chunk was reported but not staged: is the store's folder the same on all machines?",
                where=str(staging.file(name)),
                fix="put features.store on a file system that all workers share",
            )
        chunks.append(batch_arrays(MappedFile(staging.file(name)).batch(0)[0]))
    x = np.concatenate([x for _, x, _ in chunks])
    y = np.concatenate([y for _, _, y in chunks])
    order = np.lexsort((x, y))
    position = np.empty(len(order), np.int64)
    position[order] = np.arange(len(order))
    features = np.empty((len(order), staging.spec.dim), np.float16)
    start = 0
    for chunk, _, _ in chunks:  # one copy: the features of a large slide may be hundreds of MB
        features[position[start : start + len(chunk)]] = chunk
        start += len(chunk)
    return x[order], y[order], features


def subset_plan(plan: TilePlan, indices: NDArray[np.int64]) -> TilePlan:
    """Some tiles of a plan, in the plan's order."""
    kept = np.sort(indices)
    return TilePlan(plan.x[kept], plan.y[kept], plan.side, plan.px, plan.mpp)


def _corners(plan: TilePlan) -> bytes:
    return np.stack([plan.x, plan.y]).tobytes()
