"""Micrometres per pixel: where the number comes from, which values are accepted, and the level for a target.

The order is slides table, study override, scanner metadata, TIFF resolution tags. A value outside 0.1-5 um/px
is a unit error (100x-wrong files are public) and refused by name, never clipped; a slide that says nothing is
refused too: assuming 40x is more than tenfold wrong for a scanned frozen section.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from equipoise.datasets.slides.problems import SlideProblem

#: Accepted range in um/px; everything a microscope slide scanner produces lies inside.
MIN_MPP, MAX_MPP = 0.1, 5.0

#: A level this close to the target (relative) is taken as it is, without resampling.
NATIVE = 0.02

#: Vendors whose OpenSlide ``mpp`` is computed from the TIFF resolution tags rather than stated by a scanner.
_FROM_TAGS = frozenset({"generic-tiff"})

_UNIT_UM = {"inch": 25_400.0, "centimeter": 10_000.0}


@dataclass(frozen=True)
class Mpp:
    """A pixel size at level 0 and where it comes from.

    Attributes
    ----------
    value
        Micrometres per level-0 pixel.
    source
        ``table``, ``study``, ``metadata`` or ``resolution tags``.
    """

    value: float
    source: str


def slide_mpp(properties: Mapping[str, str], table: float | None = None, study: float | None = None) -> Mpp:
    """Decide the pixel size of a slide.

    Parameters
    ----------
    properties
        OpenSlide's properties.
    table
        Value of the slides table, in um/px; ``None`` or NaN if it has none.
    study
        ``features.mpp_override`` of the study, in um/px.

    Raises
    ------
    SlideProblem
        ``no_mpp`` if nothing states a pixel size or the two axes disagree; ``mpp_out_of_range`` outside
        0.1-5.
    """
    for given, source in ((table, "table"), (study, "study")):
        if given is not None and not math.isnan(given):
            return _accepted(float(given), source)
    vendor = properties.get("openslide.vendor", "")
    across = _number(properties.get("openslide.mpp-x"))
    down = _number(properties.get("openslide.mpp-y"))
    source = "resolution tags" if vendor in _FROM_TAGS else "metadata"
    if across is None and down is None and vendor != "trestle":  # Trestle's tags hold um/px, not a resolution
        across, down = _tag_mpp(properties, "X"), _tag_mpp(properties, "Y")
        source = "resolution tags"
    if across is None and down is None:
        raise SlideProblem(
            "no_mpp",
            "neither the slides table nor the study, the metadata or the resolution tags give a pixel size",
            fix="add an MPP column to the slides table (um per pixel at full resolution)",
        )
    across = down if across is None else across
    down = across if down is None else down
    assert across is not None
    assert down is not None
    if abs(across - down) > NATIVE * max(across, down):
        raise SlideProblem(
            "no_mpp",
            f"pixels are not square: {source} say {across:g} um across and {down:g} um down",
            fix="state the pixel size in the MPP column of the slides table",
        )
    return _accepted((across + down) / 2, source)


@dataclass(frozen=True)
class Sampling:
    """How a target resolution is read from a pyramid.

    Attributes
    ----------
    level
        Level to read from; never coarser than the target.
    downsample
        Level-0 pixels per output pixel.
    scale
        Level pixels per output pixel; 1.0 means no resampling.
    mpp
        Resolution that the output really has, in um/px: the target, or the level's own within 2 %.
    native
        Whether the level is taken as it is.
    reduce
        How much smaller the level is decoded (resampling ``dct``); ``scale`` counts pixels after that.
    """

    level: int
    downsample: float
    scale: float
    mpp: float
    native: bool
    reduce: int = 1


def choose_sampling(
    mpp: float, level_downsamples: Sequence[float], target: float, reducible: Collection[int] = ()
) -> Sampling:
    """Find the level from which a target resolution is read.

    A level within 2 % of the target is native: the nearest of them is read as it is. Otherwise the coarsest
    level that is finer than the target is read and resampled to the exact target. Downsamples are compared as
    the fractions they are (2.0005 is usual), never rounded.

    Parameters
    ----------
    mpp
        Level-0 pixel size in um/px.
    level_downsamples
        Level-0 pixels per level pixel, per level.
    target
        Wanted um/px.
    reducible
        Levels that can be decoded at 1/2, 1/4 and 1/8. Of the level that would be resampled, the largest
        reduction that is not coarser than the target is taken; one within 2 % of the target is native.

    Raises
    ------
    SlideProblem
        ``upsampling`` if even level 0 is more than 2 % coarser than the target.
    """
    sizes = [mpp * downsample for downsample in level_downsamples]
    native = [level for level, size in enumerate(sizes) if abs(size / target - 1.0) <= NATIVE]
    if native:
        level = min(native, key=lambda at: abs(sizes[at] / target - 1.0))
        return Sampling(level, float(level_downsamples[level]), 1.0, sizes[level], True)
    finer = [level for level, size in enumerate(sizes) if size < target]
    if not finer:
        raise SlideProblem(
            "upsampling",
            f"the slide has {mpp:g} um/px at full resolution, {target:g} um/px would have to be made up",
            fix=f"ask for features.mpp of at least {mpp:g}, or leave the slide out",
        )
    level = max(finer, key=lambda at: sizes[at])
    sampling = Sampling(level, target / mpp, target / sizes[level], target, False)
    return (
        _reduced(sampling, float(level_downsamples[level]), sizes[level]) if level in reducible else sampling
    )


def _reduced(sampling: Sampling, downsample: float, size: float) -> Sampling:
    """The same with the level decoded smaller; ``size`` is the level's own um/px."""
    for reduce in (8, 4, 2):
        reached = size * reduce
        if abs(reached / sampling.mpp - 1.0) <= NATIVE:
            return Sampling(sampling.level, downsample * reduce, 1.0, reached, True, reduce)
        if reached < sampling.mpp:
            return replace(sampling, scale=sampling.scale / reduce, reduce=reduce)
    return sampling


def _accepted(value: float, source: str) -> Mpp:
    if not MIN_MPP <= value <= MAX_MPP:
        raise SlideProblem(
            "mpp_out_of_range",
            f"{source}: {value:.6g} um/px is outside {MIN_MPP:g}-{MAX_MPP:g}",
            fix="state the true pixel size in the MPP column of the slides table",
        )
    return Mpp(value, source)


def _number(text: str | None) -> float | None:
    """The number in a property; ``None`` for absent, zero, negative or unparsable text: it states nothing."""
    try:
        value = float(text) if text is not None else 0.0
    except ValueError:
        return None
    return value if math.isfinite(value) and value > 0 else None


def _tag_mpp(properties: Mapping[str, str], axis: str) -> float | None:
    pixels_per_unit = _number(properties.get(f"tiff.{axis}Resolution"))
    unit = _UNIT_UM.get(properties.get("tiff.ResolutionUnit", ""))
    return None if pixels_per_unit is None or unit is None else unit / pixels_per_unit
