import math

import pytest

from equipoise.datasets.slides.mpp import choose_sampling, slide_mpp
from equipoise.datasets.slides.problems import SlideProblem

METADATA = {"openslide.vendor": "aperio", "openslide.mpp-x": "0.25", "openslide.mpp-y": "0.25"}
TAGS = {
    "openslide.vendor": "aperio",
    "tiff.XResolution": "40000",
    "tiff.YResolution": "40000",
    "tiff.ResolutionUnit": "centimeter",
}


@pytest.mark.parametrize(
    ("properties", "table", "study", "expected"),
    [
        (METADATA, 0.5, 0.3, (0.5, "table")),
        (METADATA, math.nan, 0.3, (0.3, "study")),
        (METADATA, None, None, (0.25, "metadata")),
        (METADATA | TAGS, None, None, (0.25, "metadata")),
        (TAGS, None, None, (0.25, "resolution tags")),
        (
            TAGS | {"tiff.ResolutionUnit": "inch", "tiff.XResolution": "50800", "tiff.YResolution": "50800"},
            None,
            None,
            (0.5, "resolution tags"),
        ),
        (METADATA | {"openslide.vendor": "generic-tiff"}, None, None, (0.25, "resolution tags")),
        ({"openslide.mpp-x": "0.25"}, None, None, (0.25, "metadata")),
        ({"openslide.mpp-x": "0.250", "openslide.mpp-y": "0.252"}, None, None, (0.251, "metadata")),
    ],
)
def test_order_of_sources(
    properties: dict, table: float | None, study: float | None, expected: tuple
) -> None:
    result = slide_mpp(properties, table, study)
    assert (result.value, result.source) == (pytest.approx(expected[0]), expected[1])


@pytest.mark.parametrize(
    ("properties", "table", "status", "says"),
    [
        ({}, None, "no_mpp", "MPP column"),
        ({"openslide.mpp-x": "nonsense", "openslide.mpp-y": "0"}, None, "no_mpp", "neither"),
        (
            {"openslide.vendor": "trestle", "tiff.XResolution": "0.5", "tiff.ResolutionUnit": "inch"},
            None,
            "no_mpp",
            "neither",
        ),
        (TAGS | {"tiff.ResolutionUnit": "none"}, None, "no_mpp", "neither"),
        (
            {"openslide.mpp-x": "0.25", "openslide.mpp-y": "0.5"},
            None,
            "no_mpp",
            "0.25 um across and 0.5 um down",
        ),
        ({"openslide.mpp-x": "0.00499"}, None, "mpp_out_of_range", "metadata: 0.00499"),
        ({"openslide.mpp-x": "352.8"}, None, "mpp_out_of_range", "352.8"),
        (METADATA, 50.0, "mpp_out_of_range", "table: 50"),
    ],
)
def test_refusals_name_value_and_source(
    properties: dict, table: float | None, status: str, says: str
) -> None:
    with pytest.raises(SlideProblem) as caught:
        slide_mpp(properties, table)
    assert caught.value.status == status
    assert says in str(caught.value)


@pytest.mark.parametrize("mpp", [0.1, 5.0])
def test_bounds_of_the_range_are_inside(mpp: float) -> None:
    assert slide_mpp({}, mpp).value == mpp


def test_two_percent_is_native_and_says_what_it_is() -> None:
    sampling = choose_sampling(0.499, [1.0], 0.5)
    assert (sampling.level, sampling.downsample, sampling.scale, sampling.native) == (0, 1.0, 1.0, True)
    assert sampling.mpp == 0.499


def test_native_takes_the_nearest_level_within_two_percent() -> None:
    assert choose_sampling(0.25, [1.0, 1.98, 2.0005], 0.5).level == 2


def test_between_levels_the_finer_one_is_resampled_exactly() -> None:
    sampling = choose_sampling(0.2527, [1.0, 4.0003], 0.5)
    assert (sampling.level, sampling.native) == (0, False)
    assert sampling.downsample == pytest.approx(0.5 / 0.2527)
    assert sampling.mpp == 0.5
    coarse = choose_sampling(0.25, [1.0, 4.0, 16.0], 2.5)
    assert (coarse.level, coarse.scale, coarse.downsample) == (1, 2.5, 10.0)


@pytest.mark.parametrize(("mpp", "works"), [(0.509, True), (0.511, False), (4.5, False)])
def test_upsampling_is_refused_beyond_two_percent(mpp: float, works: bool) -> None:
    if works:
        assert choose_sampling(mpp, [1.0], 0.5).native
        return
    with pytest.raises(SlideProblem, match=f"{mpp:g} um/px at full resolution") as caught:
        choose_sampling(mpp, [1.0], 0.5)
    assert caught.value.status == "upsampling"


@pytest.mark.parametrize(
    ("mpp", "levels", "target", "expected"),
    [
        (0.25, [1.0, 4.0], 0.5, (0, 2, 1.0, 0.5, True)),
        (0.2527, [1.0, 4.0], 0.5, (0, 2, 1.0, 0.5054, True)),  # within 2 %: native, and recorded
        (0.25, [1.0, 4.0, 16.0], 2.5, (1, 2, 1.25, 2.5, False)),
        (0.25, [1.0], 2.0, (0, 8, 1.0, 2.0, True)),
        (0.25, [1.0], 0.4, (0, 1, 1.6, 0.4, False)),
        (0.26, [1.0], 0.5, (0, 1, 0.5 / 0.26, 0.5, False)),  # a half would be 4 % too coarse
        (0.25, [1.0, 4.0], 1.0, (1, 1, 1.0, 1.0, True)),  # a level that is there comes first
    ],
)
def test_a_level_that_can_be_decoded_smaller(
    mpp: float, levels: list, target: float, expected: tuple
) -> None:
    result = choose_sampling(mpp, levels, target, reducible=range(len(levels)))
    level, reduce, scale, reached, native = expected
    assert (result.level, result.reduce, result.native) == (level, reduce, native)
    assert (result.scale, result.mpp) == (pytest.approx(scale), pytest.approx(reached))
    assert result.downsample == pytest.approx(reached / mpp)
    plain = choose_sampling(mpp, levels, target)
    assert (plain.level, plain.reduce) == (level, 1)
