"""Flags of slides, and when there is no answer."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from equipoise.datasets.store.index import blank_row
from equipoise.datasets.synthetic.tiff import LONG, SHORT, Tag, TiffWriter, TiledImage, tile_tags
from equipoise.platform.errors import DataError
from equipoise.platform.prediction.abstention import AbstentionRules
from equipoise.platform.prediction.quality import QualityLimits, SlideLook, look_at_slide
from equipoise.platform.prediction.slide_sets import looks_at


def index(*rows: dict) -> pd.DataFrame:
    """Rows of a store's index: a usable slide unless the row says otherwise."""
    usual = {"status": "ok", "n": 200, "mpp": 0.5, "mpp_source": "metadata"}
    return pd.DataFrame(
        [blank_row(slide=f"s{i}", patient=f"p{i}", **{**usual, **row}) for i, row in enumerate(rows)]
    )


def test_every_flag_of_the_index() -> None:
    table = index(
        {},
        {"status": "no_mpp", "error": "nothing states a pixel size; fix: add a column MPP", "n": 0},
        {"n": 19},
        {"bad_tiles": 20},
        {"bad_tiles": 5},
        {"mpp_source": "table", "mpp": 0.2521},
        {"error": "12% of the stained area has a colour of H&E"},
        {"status": "missing", "n": 0},
    )
    flags = QualityLimits(fewest_tiles=20).flags(table)
    assert list(flags[["slide", "check", "severity"]].itertuples(index=False, name=None)) == [
        ("s1", "no_mpp", "unusable"),
        ("s2", "few_tiles", "warning"),
        ("s3", "bad_tiles", "warning"),
        ("s5", "mpp_source", "remark"),
        ("s6", "extraction", "warning"),
        ("s7", "missing", "unusable"),
    ]
    reason = flags.set_index("slide")["reason"]
    assert reason["s2"] == "19 tiles; 99 of 100 training slides have 20 or more"
    assert reason["s3"] == "20 of 220 tiles could not be read"
    assert reason["s5"] == "pixel size 0.252 um/px from the slides table, not from the scanner"
    assert reason["s7"] == "the file is not there"


def test_what_the_thumbnail_shows() -> None:
    looks = {
        "s0": SlideLook(np.zeros(3), ink=0.3, blur=0.0),
        "s1": SlideLook(np.zeros(3), ink=0.05, blur=0.4),
        "s2": SlideLook(np.zeros(3), ink=0.05, blur=0.1),
    }
    flags = QualityLimits().flags(index({}, {}, {}), looks)
    assert flags[["slide", "check"]].to_numpy().tolist() == [["s0", "pen"], ["s1", "blur"]]


def test_limits_follow_the_training_slides() -> None:
    limits = QualityLimits.fit(np.arange(1000, 2000))
    assert limits.fewest_tiles == 1009
    assert QualityLimits.from_dict(json.loads(json.dumps(limits.to_dict()))) == limits
    assert QualityLimits.fit([np.nan]) == QualityLimits()
    # slides of a laboratory that marks many of them: what is usual there is no flag
    inked = QualityLimits.fit([100], ink=np.r_[np.zeros(80), np.full(20, 0.6)], blur=[0.01, np.nan])
    assert (inked.most_ink, inked.most_blur) == (0.6, QualityLimits().most_blur)
    with pytest.raises(DataError, match="limits of quality are"):
        QualityLimits.from_dict({"fewest_tiles": 3})


def write_tiled(file: Path, pixels: np.ndarray, tile: int = 256) -> None:
    """A TIFF with tiles, one level and no compression, which states no pixel size."""
    height, width = pixels.shape[:2]
    with file.open("wb") as stream:
        writer = TiffWriter(stream)
        image = TiledImage(width, height, tile)
        for y in range(0, height, tile):
            for x in range(0, width, tile):
                writer.tile(image, pixels[y : y + tile, x : x + tile].tobytes())
        plain = [Tag(258, SHORT, [8, 8, 8]), Tag(259, SHORT, [1]), Tag(262, SHORT, [2])]
        size = [Tag(256, LONG, [width]), Tag(257, LONG, [height])]
        layout = [Tag(254, LONG, [0]), Tag(277, SHORT, [3]), Tag(284, SHORT, [1])]
        writer.directory([*size, *plain, *layout, *tile_tags(writer, image)])


def test_colour_pen_and_focus_of_a_painted_slide(tmp_path: Path) -> None:
    """A section of known density on glass of known brightness, with a pen stroke beside it."""
    rng = np.random.default_rng(0)
    picture = np.full((2048, 2048, 3), 240.0)
    density = np.array([0.3, 0.6, 0.4])
    section = (slice(300, 1700), slice(300, 1300))
    picture[section] = (241 * 10 ** -(density + rng.normal(0, 0.05, (1400, 1000, 1)))) - 1
    picture[300:1700, 1500:1600] = (30, 60, 200)
    file = tmp_path / "painted.tif"
    pixels = np.clip(picture.round(), 0, 255).astype(np.uint8)
    write_tiled(file, pixels)
    look = look_at_slide(file, table_mpp=4.0)
    np.testing.assert_allclose(look.density, density, atol=0.01)
    assert look.ink == pytest.approx(0.1, abs=0.04)
    assert look.blur == 0
    with pytest.raises(DataError, match="no such file|not exist|missing"):
        look_at_slide(tmp_path / "absent.svs")
    table = pd.DataFrame({"slide": ["a", "b"], "path": [str(file), str(tmp_path / "absent.svs")], "mpp": 4.0})
    assert list(looks_at(table)) == ["a"]


def sets(**rows: dict) -> pd.DataFrame:
    usual = {
        "task": "MSI",
        "kind": "binary",
        "level": 0.9,
        "labels": ("MSIH",),
        "low": np.nan,
        "high": np.nan,
    }
    return pd.DataFrame([{"patient": patient, **usual, **row} for patient, row in rows.items()])


def test_an_answer_needs_one_label_and_slides_like_those_of_training() -> None:
    asked = sets(
        a={},
        b={"labels": ("not MSIH", "MSIH")},
        c={"labels": ()},
        d={},
        e={},
        f={"task": "LISS", "kind": "regression", "labels": (), "low": -np.inf, "high": np.inf},
        g={"task": "OS", "kind": "survival", "labels": (), "low": 120.0, "high": np.inf},
    )
    drift = pd.DataFrame(
        {"slide": ["x", "y"], "patient": ["d", "a"], "flagged": [True, False], "reason": ["far", "near"]}
    )
    quality = pd.DataFrame(
        {
            "slide": ["z", "v"],
            "patient": ["e", "a"],
            "severity": ["warning", "remark"],
            "reason": ["pen", "table"],
        }
    )
    found = AbstentionRules().decide(asked, drift, quality).set_index("patient")
    assert found["answer"].to_dict() == {"a": "MSIH", "b": "", "c": "", "d": "", "e": "", "f": "", "g": ""}
    assert found["reasons"].to_dict() == {
        "a": (),
        "b": ("at 90% the patient may be not MSIH or MSIH",),
        "c": ("at 90% no label fits: the patient is unlike those of every class",),
        "d": ("slide x: far",),
        "e": ("slide z: pen",),
        "f": ("at 90% the interval has no ends",),
        "g": (),
    }
    assert found["abstained"].tolist() == [False, True, True, True, True, True, False]
    rules = AbstentionRules(ambiguous=False, drift=False, quality=False)
    assert not rules.decide(asked, drift, quality)["abstained"].any()
    assert AbstentionRules.from_dict(json.loads(json.dumps(rules.to_dict()))) == rules
    with pytest.raises(DataError, match="rules of abstention"):
        AbstentionRules.from_dict({"ambiguous": 1, "drift": True, "quality": True})
