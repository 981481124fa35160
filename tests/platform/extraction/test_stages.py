"""One slide through the stages, without Ray."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from equipoise.datasets.slides.fingerprint import sha256
from equipoise.datasets.slides.reader import SlideReader, open_slide
from equipoise.datasets.store.feature_store import FeatureStore
from equipoise.platform.extraction.chunks import PlanRow
from equipoise.platform.extraction.encoders import load_encoder, store_spec
from equipoise.platform.extraction.params import ExtractionParams
from equipoise.platform.extraction.stages import (
    PlanningStage,
    TileEncodingStage,
    one_thread,
    plan_slide,
)


def row(path: Path, mpp: float = math.nan) -> dict:
    return {"key": "00ff", "slide": path.stem, "path": str(path), "mpp": mpp}


@pytest.fixture(scope="module")
def good(make_slide: Callable[..., Path]) -> Path:
    return make_slide("good", seed=1)


@pytest.fixture
def store(tmp_path: Path, params: ExtractionParams) -> FeatureStore:
    return FeatureStore.create_or_open(tmp_path, store_spec(params, load_encoder(params)))


def test_planning_a_good_slide(good: Path, params: ExtractionParams, tmp_path: Path) -> None:
    planned, _ = plan_slide(row(good), params, tmp_path)
    assert planned.result["status"] == "ok"
    assert planned.result["n"] == len(planned.plan) > 20
    assert planned.result["sha256"] == sha256(good)
    assert planned.result["mpp_source"] == "metadata"
    assert (planned.result["tile_mpp"], planned.result["level0_px"]) == (0.5, 64.0)
    assert (planned.result["width"], planned.result["vendor"]) == (512, "aperio")
    assert 0.4 < planned.result["tissue"] < 0.6
    assert {file.name for file in tmp_path.iterdir()} == {"00ff.jpg", "00ff.geojson"}


def test_a_plan_survives_the_way_through_ray(good: Path, params: ExtractionParams) -> None:
    planned, _ = plan_slide(row(good), params)
    again = PlanRow.from_row(planned.as_row())
    assert again.result == planned.result
    np.testing.assert_array_equal(again.plan.x, planned.plan.x)
    np.testing.assert_array_equal(again.plan.y, planned.plan.y)
    assert (again.plan.side, again.plan.px, again.plan.mpp) == (64.0, 64, 0.5)
    assert all(isinstance(value, str | bytes) for value in planned.as_row().values())
    failed, _ = plan_slide(row(good.with_name("none.svs")), params)
    assert PlanRow.from_row(failed.as_row()).plan is None


@pytest.mark.parametrize(
    ("how", "section", "status"),
    [
        ({"blank": True}, {}, "no_tissue"),
        ({"side": 48}, {}, "too_few_tiles"),
        ({}, {"min_tiles": 1000}, "too_few_tiles"),
        ({"mpp": 1.0}, {}, "upsampling"),
        ({"mpp": 0.00499}, {}, "mpp_out_of_range"),
    ],
)
def test_every_trouble_is_a_row(
    make_slide: Callable[..., Path],
    params: ExtractionParams,
    tmp_path: Path,
    how: dict,
    section: dict,
    status: str,
) -> None:
    path = make_slide("slide", seed=2, **how)
    planned, _ = plan_slide(row(path), params.model_copy(update=section), tmp_path)
    assert planned.result["status"] == status
    assert planned.result["error"]
    assert planned.result["n"] == 0
    assert planned.plan is None
    if status == "no_tissue":
        assert (tmp_path / "00ff.jpg").exists()  # what people want to look at


def test_the_table_goes_before_the_study_s_override(
    make_slide: Callable[..., Path], params: ExtractionParams
) -> None:
    path = make_slide("wrong", seed=2, mpp=0.00499)
    study = params.model_copy(update={"mpp_override": 0.25})
    assert plan_slide(row(path), study)[0].result["mpp_source"] == "study"
    assert plan_slide(row(path), study)[0].result["level0_px"] == 128.0
    assert plan_slide(row(path, 0.5), study)[0].result["mpp_source"] == "table"


def test_an_unexpected_error_is_kept_with_its_place(
    good: Path, params: ExtractionParams, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("a bug\nof two lines")

    monkeypatch.setattr("equipoise.platform.extraction.stages.find_tissue", broken)
    result = plan_slide(row(good), params)[0].result
    assert result["status"] == "error"
    assert result["error"].startswith("RuntimeError: a bug of two lines (test_stages.py:")


def test_encoding_stages_the_tiles_of_the_plan(
    good: Path, params: ExtractionParams, store: FeatureStore
) -> None:
    planned, _ = plan_slide(row(good), params)
    status = TileEncodingStage(params, store.staging)(planned.as_row())
    result = json.loads(status["result"])
    assert (status["key"], status["slide"]) == ("00ff", "good")
    assert (result["status"], result["bad_tiles"], result["reader"]) == ("ok", 0, "jpeg-tiff")
    assert store.staging.staged_row("00ff") == result
    assert store.staging.unfinished_attempts("00ff", "encode") == 0
    encoder = load_encoder(params)
    with open_slide(good) as reader:
        for at in (0, len(planned.plan) - 1):
            x, y = int(planned.plan.x[at]), int(planned.plan.y[at])
            expected = encoder(reader.read(x, y, 64, 64, (64, 64))[None])[0]
            staged = staged_arrays(store, "00ff")
            np.testing.assert_array_equal(staged[0][at], expected)
            assert (staged[1][at], staged[2][at]) == (x, y)


def staged_arrays(store: FeatureStore, key: str) -> tuple:
    from equipoise.datasets.store.shards import MappedFile, batch_arrays

    return batch_arrays(MappedFile(store.staging.file(key)).batch(0)[0])


def failing_at(monkeypatch: pytest.MonkeyPatch, corners: set[tuple[int, int]]) -> None:
    """Make tiles at these corners unreadable, as a corrupt JPEG would."""
    read_many = SlideReader.read_many

    def sometimes(self: SlideReader, x0: np.ndarray, y0: np.ndarray, *rest: object) -> tuple:
        pixels, problems = read_many(self, x0, y0, *rest)
        for at, corner in enumerate(zip(x0.tolist(), y0.tolist(), strict=True)):
            if corner in corners:
                problems[at] = f"premature end of data; at x={corner[0]} y={corner[1]}"
        return pixels, problems

    monkeypatch.setattr(SlideReader, "read_many", sometimes)


def test_one_unreadable_tile_is_left_out_and_counted(
    good: Path, params: ExtractionParams, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned, _ = plan_slide(row(good), params)
    whole = TileEncodingStage(params, store.staging)(planned.as_row())
    features, x, y = (array.copy() for array in staged_arrays(store, "00ff"))
    failing_at(monkeypatch, {(int(x[5]), int(y[5]))})
    result = json.loads(TileEncodingStage(params, store.staging)(planned.as_row())["result"])
    assert json.loads(whole["result"])["n"] == len(x)
    assert (result["status"], result["n"], result["bad_tiles"]) == ("ok", len(x) - 1, 1)
    assert f"1 of {len(x)} tiles left out, the first: premature end of data; at x={x[5]}" in result["error"]
    for array, expected in zip(staged_arrays(store, "00ff"), (features, x, y), strict=True):
        np.testing.assert_array_equal(array, np.delete(expected, 5, axis=0))  # nothing in its place


def test_too_many_unreadable_tiles_fail_the_slide(
    good: Path, params: ExtractionParams, store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned, _ = plan_slide(row(good), params)
    failing_at(monkeypatch, set(zip(planned.plan.x[:4].tolist(), planned.plan.y[:4].tolist(), strict=True)))
    result = json.loads(TileEncodingStage(params, store.staging)(planned.as_row())["result"])
    assert result["status"] == "unreadable"
    assert (
        f"more than 5.0% of {len(planned.plan)} tiles cannot be read, the first: premature end"
        in result["error"]
    )
    assert result["n"] == 0
    assert store.staging.staged_row("00ff") is None


def test_a_broken_encoder_is_an_error_of_the_slide(
    good: Path, params: ExtractionParams, store: FeatureStore
) -> None:
    def make(_: ExtractionParams) -> object:
        encoder = load_encoder(params)
        encoder.__class__ = type("Broken", (type(encoder),), {"__call__": lambda self, tiles: tiles / 0})
        return encoder

    with np.errstate(all="ignore"):
        status = TileEncodingStage(params, store.staging, make)(plan_slide(row(good), params)[0].as_row())
    assert json.loads(status["result"])["status"] == "error"
    assert store.staging.staged_row("00ff") is None


def test_a_failed_plan_passes_through(params: ExtractionParams, store: FeatureStore, tmp_path: Path) -> None:
    planned, _ = plan_slide(row(tmp_path / "none.svs"), params)
    result = json.loads(TileEncodingStage(params, store.staging)(planned.as_row())["result"])
    assert result == {"attempts": 1, "n": 0, "status": "missing", "error": result["error"]}


@pytest.mark.parametrize("step", ["plan", "encode"])
def test_a_slide_that_killed_two_workers_is_not_touched_again(
    good: Path, params: ExtractionParams, store: FeatureStore, step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    planner, encoder = PlanningStage(params, store.staging, None), TileEncodingStage(params, store.staging)
    for _ in range(2):
        store.staging.begin("00ff", step)  # and the worker dies
    (planned,) = planner(row(good))
    monkeypatch.setattr("equipoise.platform.extraction.stages.open_slide", None)  # touching it would fail
    result = json.loads(encoder(planned)["result"])
    assert (result["status"], result["attempts"]) == ("quarantined", 2)
    assert f"died 2 times while {'planning' if step == 'plan' else 'encoding'} this slide" in result["error"]


def test_one_death_is_forgiven(good: Path, params: ExtractionParams, store: FeatureStore) -> None:
    store.staging.begin("00ff", "plan")
    store.staging.begin("00ff", "encode")
    (planned,) = PlanningStage(params, store.staging, None)(row(good))
    result = json.loads(TileEncodingStage(params, store.staging)(planned)["result"])
    assert (result["status"], result["attempts"]) == ("ok", 1)


def test_worker_processes_keep_to_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.setenv(name, "8")
    before = cv2.getNumThreads()
    try:
        one_thread()
        assert cv2.getNumThreads() == 1
        assert os.environ["OMP_NUM_THREADS"] == "1"
    finally:
        cv2.setNumThreads(before)


def test_dct_makes_other_features_in_another_store(
    params: ExtractionParams, make_slide: Callable[..., Path], tmp_path: Path
) -> None:
    path = make_slide("fine", mpp=0.25, seed=5, side=1024)
    features = {}
    for resample in ("area", "dct"):
        study = params.model_copy(update={"resample": resample})
        spec = store_spec(study, load_encoder(study))
        with FeatureStore.create_or_open(tmp_path, spec, 2) as store:
            planned, _ = plan_slide(row(path), study)
            result = json.loads(TileEncodingStage(study, store.staging)(planned.as_row())["result"])
            assert (result["status"], result["reader"], result["tile_mpp"]) == ("ok", "jpeg-tiff", 0.5)
            features[resample] = staged_arrays(store, "00ff")[0].astype(float)
    assert len(list(tmp_path.iterdir())) == 2
    assert features["area"].shape == features["dct"].shape
    assert 0 < np.abs(features["area"] - features["dct"]).mean() < 0.1


def test_stain_is_checked_when_a_slide_is_planned(
    make_slide: Callable[..., Path], params: ExtractionParams, tmp_path: Path
) -> None:
    glowing = make_slide("glowing", seed=3, side=1024, colour=(10, 150, 20), glass=6)
    planned, _ = plan_slide(row(glowing), params, tmp_path)
    assert planned.result["status"] == "wrong_stain"
    assert "no transmitted light" in planned.result["error"]
    assert "features.stain: any" in planned.result["error"]
    assert (tmp_path / "00ff.jpg").exists()
    taken = params.model_copy(update={"stain": "any"})
    assert plan_slide(row(glowing), taken)[0].result["status"] == "ok"


def test_a_remark_on_the_stain_stays_with_the_features(
    make_slide: Callable[..., Path], params: ExtractionParams, store: FeatureStore
) -> None:
    brown = make_slide("brown", seed=3, side=1024, colour=(170, 125, 75))
    planned, _ = plan_slide(row(brown), params)
    assert planned.result["status"] == "ok"
    result = json.loads(TileEncodingStage(params, store.staging)(planned.as_row())["result"])
    assert result["status"] == "ok"
    assert "immunohistochemistry or another stain" in result["error"]
    only = params.model_copy(update={"stain": "he"})
    assert plan_slide(row(brown), only)[0].result["status"] == "wrong_stain"
