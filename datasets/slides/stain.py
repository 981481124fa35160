"""Whether a slide is what models of H&E slides expect: transmitted light, colour, and the colours of H&E.

Decided on the thumbnail that the tissue mask is made from (8 um/px), by three shares:

*dark* of all pixels, *light* of the others. Light that passes glass is bright: between the dark pixels of padding,
pen and folds, glass and pale tissue are light. Fluorescence glows on black, and saturated in one or two channels only.
*pink* of the stained pixels absorb most in green, as every mixture of haematoxylin and eosin does (Ruifrok and
Johnston, Anal Quant Cytol Histol 23:291, 2001: H (.65, .70, .29), E (.07, .99, .11)). DAB (.27, .57, .78) absorbs most
in blue, and the counterstain of immunohistochemistry, without eosin, in red.

Limits, from 154 thumbnails of the built-in cohorts of seven sites, two public H&E slides (CMU-1 and a TCGA frozen
section), and 40 pictures generated from their density maps:

====================================================  ============  =============  =============
pictures                                              dark          light          pink
====================================================  ============  =============  =============
built-in cohorts, pen marks included                  at most 0.07  at least 0.49  at least 0.89
public H&E                                            at most 0.01  at least 0.67  at least 0.96
20 to 70 % of them beside black padding               0.30 to 0.80  at least 0.67  at least 0.96
fluorescence, one to three channels                   0.38 to 0.93  at most 0.24   (any)
immunohistochemistry: membrane, nuclear, negative     0.00          at least 0.89  at most 0.01
PAS, trichrome, H&E with saffron, warm light          0.00          at least 0.61  0.38 to 1.00
====================================================  ============  =============  =============

Fluorescence whose three channels are saturated over the same tissue is not told from a stain (light 0.48 and 0.73).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from equipoise.datasets.slides.problems import SlideProblem

Number = TypeVar("Number", np.uint8, np.float32)
#: Which slides are accepted.
Stain = Literal["he", "brightfield", "any"]

#: Brightest channel below which a pixel is dark, and darkest channel from which it is light.
_DARK, _LIGHT = 60, 100
#: More dark and fewer light pixels than this: no transmitted light.
_MAX_DARK, _MIN_LIGHT = 0.3, 0.35
#: Difference between channels up to which a pixel is grey; it is for all but one in a hundred of a grey picture.
_GREY = 3
#: Difference to the usual brightness that is structure, and how much of the picture a tissue section has of it.
_STRUCTURE, _MIN_STRUCTURE = 25, 0.05
#: Optical density over the glass of a stained pixel, how many it takes for a judgement, and how many are pink in H&E.
_STAINED, _MIN_STAINED, _MIN_PINK = 0.12, 200, 0.3


@dataclass(frozen=True)
class Appearance:
    """What a thumbnail looks like.

    Attributes
    ----------
    dark, light, pink
        Shares, see the module; ``pink`` is NaN without enough stained pixels.
    grey
        Whether it has structure and no colour.
    """

    dark: float
    light: float
    pink: float
    grey: bool

    @property
    def transmitted_light(self) -> bool:
        """Whether bright light passed the section."""
        return self.dark <= _MAX_DARK or self.light >= _MIN_LIGHT

    @property
    def dark_background(self) -> bool:
        """Whether tissue is what is brighter than the rest."""
        return not self.transmitted_light or (self.grey and self.dark > _MAX_DARK)

    @property
    def he(self) -> bool:
        """Whether the colours are those of H&E, as far as there are any."""
        return not self.pink < _MIN_PINK


def highest(image: NDArray[Number]) -> NDArray[Number]:
    """The highest of the three channels of every pixel, ``[h, w]``; several times as fast as ``max(axis=2)``."""
    return np.maximum(np.maximum(image[..., 0], image[..., 1]), image[..., 2])


def lowest(image: NDArray[Number]) -> NDArray[Number]:
    """The lowest of the three channels of every pixel, ``[h, w]``."""
    return np.minimum(np.minimum(image[..., 0], image[..., 1]), image[..., 2])


def appearance(image: NDArray[np.uint8], tissue: NDArray[np.bool_] | None = None) -> Appearance:
    """Measure a thumbnail.

    Parameters
    ----------
    image
        uint8 ``[h, w, 3]``.
    tissue
        bool ``[h, w]``, where stained pixels are looked for; ``None``: everywhere.
    """
    brightest, darkest = highest(image), lowest(image)
    dark, light = brightest < _DARK, darkest >= _LIGHT
    pixels = max(1, int((~dark).sum()))
    usual = float(np.median(brightest[brightest > 0])) if brightest.any() else 0.0
    structure = np.mean((np.abs(brightest - usual) > _STRUCTURE) & (brightest > 0))
    grey = bool(np.percentile(brightest - darkest, 99) <= _GREY and structure >= _MIN_STRUCTURE)
    density = _density(image, light)
    stained = (highest(density) > _STAINED) & ~dark
    if tissue is not None:
        stained &= tissue
    red, green, blue = density[stained].T
    pink = float(np.mean((green > 1.2 * red) & (green > blue))) if len(red) >= _MIN_STAINED else float("nan")
    return Appearance(float(dark.mean()), float(light.sum() / pixels), pink, grey)


def mean_density(image: NDArray[np.uint8], tissue: NDArray[np.bool_]) -> NDArray[np.float64]:
    """How much stained tissue absorbs on average, for telling one laboratory's staining from another's.

    Parameters
    ----------
    image
        uint8 ``[h, w, 3]``.
    tissue
        bool ``[h, w]``.

    Returns
    -------
    ``[3]`` optical densities (log10) over the glass in red, green and blue; NaN without enough stained pixels.
    """
    brightest, darkest = highest(image), lowest(image)
    density = _density(image, darkest >= _LIGHT)
    stained = (highest(density) > _STAINED) & (brightest >= _DARK) & tissue
    if stained.sum() < _MIN_STAINED:
        return np.full(3, np.nan)
    return density[stained].mean(axis=0, dtype=np.float64)


def _density(image: NDArray[np.uint8], light: NDArray[np.bool_]) -> NDArray[np.float32]:
    """``[h, w, 3]`` optical densities over the glass, which is what is brightest among the light pixels."""
    glass = np.percentile(image[light], 90, axis=0) if light.sum() >= _MIN_STAINED else np.full(3, 245.0)
    levels = np.arange(1, 257, dtype=np.float32)[:, None]
    of_level = np.asarray(-np.log10(levels / (glass.astype(np.float32) + 1)), np.float32)
    # 256 logarithms a channel, not one per pixel.
    return np.asarray(cv2.LUT(image, of_level[None]), np.float32)


def check_stain(image: NDArray[np.uint8], tissue: NDArray[np.bool_], accepted: Stain) -> str:
    """Refuse a slide that is not stained as the study expects.

    Parameters
    ----------
    image, tissue
        As for :func:`appearance`.
    accepted
        ``any``: everything. ``brightfield``: what transmitted light shows in colour; a stain other than H&E is
        remarked. ``he``: H&E only.

    Returns
    -------
    A remark; empty if there is nothing to say.

    Raises
    ------
    SlideProblem
        ``wrong_stain``.
    """
    if accepted == "any":
        return ""
    seen = appearance(image, tissue)
    fix = "set features.stain: any and features.retry: true to use it all the same"
    if seen.grey:
        raise SlideProblem("wrong_stain", "the slide has no colour, only levels of grey", fix=fix)
    if not seen.transmitted_light:
        raise SlideProblem(
            "wrong_stain",
            f"no transmitted light, as in fluorescence: {seen.dark:.0%} of the slide is dark, {seen.light:.0%} of the "
            "rest light",
            fix=fix,
        )
    if seen.he:
        return ""
    what = f"{seen.pink:.0%} of the stained area has a colour of H&E: immunohistochemistry or another stain"
    if accepted == "he":
        raise SlideProblem("wrong_stain", what, fix=fix.replace("any", "brightfield"))
    return what
