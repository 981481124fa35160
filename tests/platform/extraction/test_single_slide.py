"""One slide without a store: as an extraction would have stored it."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from equipoise.datasets.store.feature_store import FeatureStore
from equipoise.platform.errors import DataError
from equipoise.platform.extraction.encoders import load_encoder, store_spec
from equipoise.platform.extraction.params import ExtractionParams
from equipoise.platform.extraction.pipeline import extract
from equipoise.platform.extraction.single_slide import extract_one_slide
from equipoise.platform.extraction.stages import one_thread


def test_same_bytes_as_in_the_store(slides: pd.DataFrame, params: ExtractionParams, tmp_path: Path) -> None:
    one_thread()
    encoder = load_encoder(params)
    extract(slides, params, tmp_path, workers=0)
    store = FeatureStore.create_or_open(tmp_path, store_spec(params, encoder))
    statuses = {}
    assert len(slides["slide"]) > 0
    for slide, path in zip(slides["slide"], slides["path"], strict=True):
        single = extract_one_slide(path, encoder, params)
        row = store.status(slide)
        statuses[slide] = single.status
        assert single.status == row["status"]
        if single.status == "ok":
            features, coords = store.read(slide)
            assert np.array_equal(single.features, features)
            assert np.array_equal(single.coords, coords)
            assert {name: row[name] for name in single.metadata} == single.metadata
            assert f"{len(coords)} tiles x {encoder.dim} at 0.5 um/px" in repr(single)
        else:
            assert single.error == row["error"]
    assert sorted(set(statuses.values())) == ["missing", "no_tissue", "not_a_slide", "ok"]


def test_a_slide_without_features_says_so_when_they_are_asked_for(
    make_slide: Callable[..., Path], params: ExtractionParams
) -> None:
    blank = extract_one_slide(make_slide("blank", seed=1, blank=True), load_encoder(params), params)
    assert blank.coords.shape == (0, 2)
    assert "no_tissue" in repr(blank)
    with pytest.raises(DataError, match="no_tissue"):
        _ = blank.features


def test_stated_pixel_size_and_picture(
    make_slide: Callable[..., Path], params: ExtractionParams, tmp_path: Path
) -> None:
    path = make_slide("good", seed=1)
    stated = extract_one_slide(path, load_encoder(params), params, mpp=0.25, qc=tmp_path / "qc")
    assert (stated.metadata["mpp"], stated.metadata["mpp_source"]) == (0.25, "table")
    assert math.isclose(stated.metadata["level0_px"], 2 * params.tile_px)
    assert sorted(file.name for file in (tmp_path / "qc").iterdir()) == ["good.geojson", "good.jpg"]
