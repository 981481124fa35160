"""Giant slides in several regions: cut by the planner, encoded by several workers, joined by the driver.

A region is a stretch of the tiles in the order in which they are read, row of blocks after row of blocks, and ends
where a batch ends: every batch holds the tiles that it would hold if the slide were not cut. Where a slide is cut
depends on its plan alone, and the joined features stand in the plan's order. So the store has the same bytes whoever
encoded what.

A region is staged as a file of its own, like a slide. What was encoded before a worker or the driver died is taken up.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from equipoise.datasets.errors import DataError
from equipoise.datasets.slides.problems import SlideProblem
from equipoise.datasets.store.shards import MappedFile, batch_arrays
from equipoise.datasets.store.staging import Staging
from equipoise.platform.extraction.plan_row import PlanRow, Row, part_of
from equipoise.platform.extraction.reading import left_out, too_many

#: Key of a region's result under which stands what its own tiles gave, see :func:`of_parts`.
PART = "region"


def cut(planned: PlanRow, order: NDArray[np.int64] | None, region_tiles: int, batch: int) -> list[PlanRow]:
    """Regions of at most about ``region_tiles`` tiles.

    Parameters
    ----------
    planned
        A slide.
    order
        int ``[N]``, the places of its tiles in the order of reading; ``None``: do not cut.
    region_tiles
        A slide with more tiles than that is cut.
    batch
        Tiles per call of the encoder.

    Returns
    -------
    The slide itself if it is not cut.
    """
    plan = planned.plan
    if plan is None or order is None or len(plan) <= region_tiles:
        return [planned]
    batches = -(-len(plan) // batch)
    count = min(-(-len(plan) // region_tiles), batches)
    ends = [min(len(plan), at * batches // count * batch) for at in range(count + 1)]
    return [
        replace(planned, plan=part_of(plan, order[start:end]), region=at, regions=count)
        for at, (start, end) in enumerate(pairwise(ends))
    ]


def joined(rows: Iterable[Row], staging: Staging, max_bad: float) -> Iterator[Row]:
    """Rows of slides as they are, rows of regions when all those of their slide are there, as one.

    Parameters
    ----------
    rows
        Status rows of :class:`~equipoise.platform.extraction.stages.SlideEncoder`.
    staging
        Where features are staged.
    max_bad
        Share of unreadable tiles that a slide may have.

    Raises
    ------
    DataError
        If the driver does not see what a worker has staged.
    """
    waiting: dict[str, list[Row]] = {}
    for row in rows:
        if row["regions"] == 1:
            yield row
            continue
        regions = waiting.setdefault(row["key"], [])
        regions.append(row)
        if len(regions) == row["regions"]:
            yield _join(sorted(waiting.pop(row["key"]), key=lambda each: each["region"]), staging, max_bad)


def _join(regions: list[Row], staging: Staging, max_bad: float) -> Row:
    """One row for a slide, its regions in their order; stages it if it is good."""
    key = regions[0]["key"]
    results = [json.loads(row["result"]) for row in regions]
    parts = [result.pop(PART, {}) for result in results]
    result = _verdict(results, parts, regions[0]["tiles"], max_bad)
    if result["status"] == "ok":
        x, y, features = _in_order([row["staged"] for row in regions], staging)
        staging.write(key, x, y, features, {"slide": regions[0]["slide"], **result})
    if (
        result["status"] != "quarantined"
    ):  # such a slide is tried once more: what is done of it is kept till then
        for row in regions:
            staging.discard(row["staged"])
            staging.end(key, f"encode-{row['region']}")
    return {
        **regions[0],
        "result": json.dumps(result),
        "seconds": sum(row["seconds"] for row in regions),
        "regions": 1,
    }


def _verdict(results: list[Row], parts: list[Row], tiles: int, max_bad: float) -> Row:
    """Columns of the index for the whole slide: what a single worker would say of it."""
    bad = sum(part.get("bad", 0) for part in parts)
    first = next((part["first"] for part in parts if part.get("bad")), "")
    wrong = [result for result in results if result["status"] != "ok"]
    quarantined = [result for result in wrong if result["status"] == "quarantined"]
    if quarantined:
        return quarantined[0]
    if bad > max_bad * tiles:
        problem = SlideProblem("unreadable", too_many(max_bad, tiles, first))
        return results[0] | {"n": 0, "status": problem.status, "error": problem.line}
    if wrong:
        return wrong[0]
    return results[0] | of_parts(parts, tiles)


def of_parts(parts: list[Row], tiles: int) -> Row:
    """Columns of the index that encoding all of a slide gave.

    Parameters
    ----------
    parts
        What its regions gave: ``n``, ``bad`` (how many), ``first`` (reason) and ``reader``.
    tiles
        Tiles of the plan.
    """
    bad = sum(part["bad"] for part in parts)
    result = {"n": sum(part["n"] for part in parts), "bad_tiles": bad, "reader": parts[0]["reader"]}
    if bad:
        first = next(part["first"] for part in parts if part["bad"])
        result["error"] = left_out(bad, tiles, first)
    return result


def _in_order(
    names: list[str], staging: Staging
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.float16]]:
    """Corners ``[N]`` and features ``[N, D]`` of all regions, row by row from the top of the slide, as planned."""
    found = []
    for name in names:
        if not staging.file(name).exists():
            raise DataError(
                "a region was reported but not staged: is the store's folder the same on all machines?",
                where=str(staging.file(name)),
                fix="put features.store on a file system that all workers share",
            )
        found.append(batch_arrays(MappedFile(staging.file(name)).batch(0)[0]))
    x = np.concatenate([x for _, x, _ in found])
    y = np.concatenate([y for _, _, y in found])
    order = np.lexsort((x, y))
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    features = np.empty((len(order), staging.spec.dim), np.float16)
    start = 0
    for part, _, _ in found:  # one copy: a giant slide's features may be hundreds of MB
        features[place[start : start + len(part)]] = part
        start += len(part)
    return x[order], y[order], features
