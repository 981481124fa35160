"""Large slides in chunks: bytes, statuses and leftovers are those of a slide that was not split."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from equipoise.datasets.slides.grid import TilePlan
from equipoise.datasets.slides.reader import SlideReader
from equipoise.datasets.store.feature_store import FeatureStore
from equipoise.models.encoders.handcrafted import Handcrafted
from equipoise.models.encoders.protocol import Identity
from equipoise.platform.extraction.chunks import PlanRow, split_into_chunks
from equipoise.platform.extraction.encoders import identify_encoder, store_spec
from equipoise.platform.extraction.params import ExtractionParams
from equipoise.platform.extraction.pipeline import extract
from equipoise.platform.extraction.stages import PlanningStage, TileEncodingStage
from equipoise.platform.extraction.summary import ExtractionSummary

BATCH = 8


class Eights(Handcrafted):
    """The handcrafted encoder in batches of eight, with a record of them."""

    batch_size = BATCH
    seen: list[bytes]

    def __call__(self, tiles: np.ndarray) -> np.ndarray:
        self.seen.append(tiles.tobytes())
        return super().__call__(tiles)


def eights(seen: list[bytes] | None = None) -> Callable[[ExtractionParams], Eights]:
    def make(_: ExtractionParams) -> Eights:
        encoder = Eights()
        encoder.seen = [] if seen is None else seen
        return encoder

    return make


def identify(params: ExtractionParams) -> Identity:
    return Eights.identify()


@pytest.fixture(scope="module")
def large_slide(make_slide: Callable[..., Path]) -> Path:
    """About 150 tiles."""
    return make_slide("giant", seed=3, side=1024)


@pytest.fixture(scope="module")
def table(
    large_slide: Path, make_slide: Callable[..., Path], table_of: Callable[..., pd.DataFrame]
) -> pd.DataFrame:
    return table_of([make_slide("small", seed=4), large_slide])


def run(
    table: pd.DataFrame,
    params: ExtractionParams,
    root: Path,
    chunk_tiles: int,
    seen: list[bytes] | None = None,
) -> ExtractionSummary:
    section = params.model_copy(update={"chunk_tiles": chunk_tiles})
    return extract(table, section, root, workers=0, make_encoder=eights(seen), identify=identify)


@pytest.fixture(scope="module")
def uncut(
    table: pd.DataFrame, params: ExtractionParams, tmp_path_factory: pytest.TempPathFactory
) -> ExtractionSummary:
    return run(table, params, tmp_path_factory.mktemp("uncut"), 4096)


@pytest.mark.parametrize(("tiles", "chunk_tiles", "counts"), [(100, 40, [32, 32, 36]), (100, 99, [48, 52])])
def test_regions_end_where_batches_end(tiles: int, chunk_tiles: int, counts: list[int]) -> None:
    x, y = (grid.ravel().astype(np.int32) for grid in np.meshgrid(np.arange(10), np.arange(tiles // 10)))
    whole = PlanRow("k", "s", "p", 0.5, {"status": "ok"}, TilePlan(x, y, 1.0, 64, 0.5), tiles=tiles)
    order = np.random.default_rng(0).permutation(tiles)
    parts = split_into_chunks(whole, order, chunk_tiles, BATCH)
    assert [len(part.plan) for part in parts] == counts
    assert [(part.chunk, part.chunks, part.tiles) for part in parts] == [
        (at, len(counts), tiles) for at in range(len(counts))
    ]
    first = np.sort(order[: counts[0]])
    np.testing.assert_array_equal(parts[0].plan.x, x[first])
    corners = {
        (a, b) for part in parts for a, b in zip(part.plan.x.tolist(), part.plan.y.tolist(), strict=True)
    }
    assert len(corners) == tiles
    assert len({part.staged_as for part in parts} | {whole.staged_as}) == len(counts) + 1
    again = PlanRow.from_row(parts[1].as_row())
    assert (again.step, again.staged_as, again.tiles) == ("encode-1", parts[1].staged_as, tiles)


def test_a_slide_at_the_threshold_is_not_cut() -> None:
    plan = TilePlan(np.arange(8, dtype=np.int32), np.zeros(8, np.int32), 1.0, 64, 0.5)
    whole = PlanRow("k", "s", "p", 0.5, {"status": "ok"}, plan, tiles=8)
    assert split_into_chunks(whole, np.arange(8), 8, 4) == [whole]
    assert len(split_into_chunks(whole, np.arange(8), 1, 64)) == 1  # no chunk without a batch of its own


@pytest.mark.parametrize("chunk_tiles", [8, 20, 70])
def test_the_bytes_do_not_depend_on_the_cut(
    table: pd.DataFrame,
    params: ExtractionParams,
    uncut: ExtractionSummary,
    file_bytes: Callable,
    tmp_path: Path,
    chunk_tiles: int,
) -> None:
    summary = run(table, params, tmp_path, chunk_tiles)
    assert summary.index["n"].max() > 2 * chunk_tiles
    assert file_bytes(summary.store) == file_bytes(uncut.store)
    assert not (summary.store / "staging").exists()


def test_the_encoder_sees_the_same_batches(
    table: pd.DataFrame, params: ExtractionParams, tmp_path: Path
) -> None:
    whole: list[bytes] = []
    parts: list[bytes] = []
    run(table, params, tmp_path / "a", 4096, whole)
    run(table, params, tmp_path / "b", 30, parts)
    assert parts == whole


def corrupt(monkeypatch: pytest.MonkeyPatch, corners: set[tuple[int, int]]) -> None:
    read_many = SlideReader.read_many

    def sometimes(self: SlideReader, x0: np.ndarray, y0: np.ndarray, *rest: object) -> tuple:
        pixels, problems = read_many(self, x0, y0, *rest)
        for at, corner in enumerate(zip(x0.tolist(), y0.tolist(), strict=True)):
            if corner in corners:
                problems[at] = f"torn at x={corner[0]} y={corner[1]}"
        return pixels, problems

    monkeypatch.setattr(SlideReader, "read_many", sometimes)


@pytest.mark.parametrize(
    "which", [[100, 20], list(range(20, 60)), [3, 60, 61, 62, 90, 91, 92, 120, 121, 122]]
)
def test_unreadable_tiles_are_told_as_if_the_slide_were_whole(
    large_slide: Path,
    table_of: Callable[..., pd.DataFrame],
    params: ExtractionParams,
    uncut: ExtractionSummary,
    file_bytes: Callable,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    which: list[int],
) -> None:
    """Two tiles of two chunks; far too many in one chunk; too many only over all chunks together."""
    _, coords = FeatureStore.open(uncut.store).read("giant.svs")
    corrupt(monkeypatch, {tuple(coords[at].tolist()) for at in which})
    slides = table_of([large_slide])
    whole = run(slides, params, tmp_path / "a", 4096)
    parts = run(slides, params, tmp_path / "b", 24)
    assert whole.index["status"][0] == ("ok" if len(which) == 2 else "unreadable")
    assert "the first: torn at x=" in whole.index["error"][0]
    assert file_bytes(parts.store) == file_bytes(whole.store)


def test_a_region_that_fails_fails_the_slide_and_leaves_nothing(
    large_slide: Path, table_of: Callable[..., pd.DataFrame], params: ExtractionParams, tmp_path: Path
) -> None:
    class Fails(Eights):
        def __call__(self, tiles: np.ndarray) -> np.ndarray:
            if len(self.seen) == 7:
                raise RuntimeError("out of memory")
            return super().__call__(tiles)

    def make(_: ExtractionParams) -> Fails:
        encoder = Fails()
        encoder.seen = []
        return encoder

    section = params.model_copy(update={"chunk_tiles": 24})
    summary = extract(
        table_of([large_slide]), section, tmp_path, workers=0, make_encoder=make, identify=identify
    )
    assert summary.index["status"].tolist() == ["error"]
    assert "RuntimeError: out of memory" in summary.index["error"][0]
    assert not (summary.store / "staging").exists()


@pytest.fixture
def store(tmp_path: Path, params: ExtractionParams) -> FeatureStore:
    return FeatureStore.create_or_open(tmp_path, store_spec(params, identify_encoder(params)))


def planned(
    large_slide: Path, params: ExtractionParams, store: FeatureStore
) -> tuple[list[dict], TileEncodingStage]:
    section = params.model_copy(update={"chunk_tiles": 24})
    rows = PlanningStage(section, store.staging, None, BATCH)(
        {"key": "00ff", "slide": "giant", "path": str(large_slide), "mpp": float("nan")}
    )
    return rows, TileEncodingStage(section, store.staging, eights())


def test_deaths_count_for_the_slide_whatever_the_region(
    large_slide: Path, params: ExtractionParams, store: FeatureStore
) -> None:
    rows, encode = planned(large_slide, params, store)
    assert len(rows) > 4

    def status(at: int) -> str:
        return json.loads(encode(rows[at])["result"])["status"]

    for at in (0, 1, 2):
        store.staging.begin("00ff", f"encode-{at}")  # three workers, each with a chunk
    assert status(3) == "ok"  # nobody is known to have died
    assert status(0) == "ok"  # tried again: its first worker died
    assert status(1) == "quarantined"  # the second death
    assert status(4) == "quarantined"  # nobody else loses a worker to this slide
    assert status(0) == "ok"  # what is done is done
    store.staging.allow_one_more_attempt("00ff")
    assert status(1) == "ok"
    store.staging.begin("00ff", "encode-2")
    assert status(2) == "quarantined"


def test_what_a_dead_worker_had_staged_is_not_encoded_again(
    large_slide: Path, params: ExtractionParams, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, encode = planned(large_slide, params, store)
    first = encode(rows[1])
    monkeypatch.setattr(
        "equipoise.platform.extraction.stages.open_slide", None
    )  # touching the slide would fail
    again = encode(rows[1])
    assert json.loads(again["result"]) == json.loads(first["result"])
    assert (first["encoded"], again["encoded"]) == (len(PlanRow.from_row(rows[1]).plan), 0)


def test_an_interrupted_slide_goes_on_where_it_was(
    large_slide: Path,
    table_of: Callable[..., pd.DataFrame],
    params: ExtractionParams,
    file_bytes: Callable,
    tmp_path: Path,
) -> None:
    slides = table_of([large_slide])
    whole: list[bytes] = []
    before: list[bytes] = []
    after: list[bytes] = []
    undisturbed = run(slides, params, tmp_path / "a", 4096, whole)

    class Stops(Eights):
        def __call__(self, tiles: np.ndarray) -> np.ndarray:
            if len(self.seen) == 8:
                raise KeyboardInterrupt
            return super().__call__(tiles)

    def make(_: ExtractionParams) -> Stops:
        encoder = Stops()
        encoder.seen = before
        return encoder

    section = params.model_copy(update={"chunk_tiles": 24})
    with pytest.raises(KeyboardInterrupt):
        extract(slides, section, tmp_path / "b", workers=0, make_encoder=make, identify=identify)
    resumed = run(slides, params, tmp_path / "b", 24, after)
    assert len(before) == 8
    assert len(after) == len(whole) - 8  # three chunks with eight batches in total were staged
    assert file_bytes(resumed.store) == file_bytes(undisturbed.store)
