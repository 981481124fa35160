"""GeoJSON of maps validates against QuPath's schema, as written down from its documentation."""

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from tests.platform.explain.conftest import FAILED, made_map

from equipoise.platform.explain.geojson import measurement_name, write_geojson
from equipoise.platform.explain.tile_scores import TileScores


@pytest.fixture(scope="module")
def schema() -> jsonschema.Draft202012Validator:
    loaded = json.loads(Path(__file__).with_name("qupath.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(loaded)
    return jsonschema.Draft202012Validator(loaded)


MAPS = {
    "binary": made_map(),
    "fractional sides": made_map(side=33.36),
    "a class with a colon": made_map(class_name="MSI: high"),
    "regression": made_map(task="LISS", kind="regression", class_name=""),
    "survival": made_map(task="OS", kind="survival", class_name="", checks=(FAILED,)),
    "one sign": made_map(score=np.abs(made_map().score), method="attention"),
    "several models": made_map(spread=np.abs(made_map().score)),
    "one tile": made_map(x=[7], y=[9], score=[0.0]),
}


@pytest.mark.parametrize("name", MAPS)
def test_valid_for_qupath(schema: jsonschema.Draft202012Validator, tmp_path: Path, name: str) -> None:
    scores = MAPS[name]
    collection = json.loads(write_geojson(scores, tmp_path / "m.geojson").read_text())
    schema.validate(collection)
    features = collection["features"]
    assert len(features) == len(scores)
    assert len({feature["id"] for feature in features}) == len(scores)
    rings = [feature["geometry"]["coordinates"][0] for feature in features]
    assert all(ring[0] == ring[-1] and len(ring) == 5 for ring in rings)
    assert all({type(value) for corner in ring for value in corner} == {int} for ring in rings)
    values = [feature["properties"]["measurements"] for feature in features]
    got = {
        (ring[0][0], ring[0][1]): value[measurement_name(scores)]
        for ring, value in zip(rings, values, strict=True)
    }
    for at in range(len(scores)):
        assert got[scores.x[at], scores.y[at]] == pytest.approx(float(scores.score[at]), rel=1e-4)
    assert [value["rank"] for value in values] == list(range(1, len(scores) + 1))


def test_the_schema_refuses_what_qupath_does_not_read(
    schema: jsonschema.Draft202012Validator, tmp_path: Path
) -> None:
    good = json.loads(write_geojson(made_map(), tmp_path / "m.geojson").read_text())

    def refused(change: Any) -> bool:
        broken = copy.deepcopy(good)
        change(broken["features"][0])
        return not schema.is_valid(broken)

    assert refused(lambda f: f.update(id="PathTileObject"))  # before 0.3
    assert refused(lambda f: f["properties"].update(measurements=[{"name": "a", "value": 1}]))  # before 0.4
    assert refused(lambda f: f["properties"].update(objectType="patch"))
    assert refused(lambda f: f["properties"].update(classification={"name": "a", "colorRGB": -1}))
    assert refused(lambda f: f["properties"]["measurements"].update(score="0.1"))


def test_the_same_map_gives_the_same_bytes(tmp_path: Path) -> None:
    one = write_geojson(made_map(), tmp_path / "1.geojson").read_bytes()
    assert one == write_geojson(made_map(), tmp_path / "2.geojson").read_bytes()


def test_classes_follow_the_sign(tmp_path: Path) -> None:
    scores = made_map(kind="survival", class_name="")
    features = json.loads(write_geojson(scores, tmp_path / "m.geojson").read_text())["features"]
    for feature in features:
        properties = feature["properties"]
        positive = properties["measurements"][measurement_name(scores)] > 0
        assert properties["classification"]["name"] == ("higher risk" if positive else "lower risk")
        red, _, blue = properties["color"]
        assert red >= blue if positive else blue >= red


def large() -> TileScores:
    rng = np.random.default_rng(0)
    x, y = (g.ravel() * 448 for g in np.meshgrid(np.arange(100), np.arange(100)))
    return made_map(x=x, y=y, score=rng.normal(size=10_000), side=448.0)


def test_ten_thousand_tiles_are_a_few_megabytes(tmp_path: Path) -> None:
    scores = large()
    whole = write_geojson(scores, tmp_path / "all.geojson")
    assert whole.stat().st_size < 5_000_000
    top = write_geojson(scores, tmp_path / "top.geojson", tiles="top_decile")
    assert top.stat().st_size < 500_000
    chosen = json.loads(top.read_text())["features"]
    least = min(f["properties"]["measurements"][measurement_name(scores)] for f in chosen)
    assert len(chosen) == 1000
    assert least == pytest.approx(float(np.sort(scores.score)[-1000]), rel=1e-4)
