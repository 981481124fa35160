"""Pixel sizes of a slides table that cannot be true, and what they probably are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from equipoise.datasets.slides.mpp import MAX_MPP, MIN_MPP

#: Values that are told one by one.
EXAMPLES = 3
#: Powers of objectives, which tables of slides often have in place of um per pixel.
_MAGNIFICATIONS = (2.5, 5.0, 10.0, 20.0, 40.0, 60.0, 63.0, 80.0, 100.0)


def likely_mpp(value: float) -> str:
    """What a pixel size outside the possible range may be, and the one to write; empty where nobody can tell.

    >>> likely_mpp(40), likely_mpp(500)
    ("a magnification: about 0.25 um/px", "nanometres: 0.5 um/px")
    """
    if value in _MAGNIFICATIONS:
        return f"a magnification: about {10 / value:g} um/px"
    guesses = (
        ("nanometres", value / 1000),
        ("millimetres", value * 1000),
        ("metres", value * 1e6),
        ("pixels per cm", 1e4 / value if value > 0 else 0.0),
        ("pixels per inch", 25400 / value if value > 0 else 0.0),
    )
    return next((f"{unit}: {mpp:.4g} um/px" for unit, mpp in guesses if MIN_MPP <= mpp <= 2.5), "")


def mpp_notes(cohort: str, mpp: Sequence[float]) -> list[str]:
    """Remarks on pixel sizes of a slides table that cannot be true, one for each value, the most frequent first.

    Parameters
    ----------
    cohort
        Name for the remarks.
    mpp
        [n] um per pixel, NaN = the file is to say it.
    """
    sizes = np.asarray(mpp, float)
    known = sizes[~np.isnan(sizes)]
    values, counts = np.unique(known[(known < MIN_MPP) | (known > MAX_MPP)], return_counts=True)
    notes = []
    for k in np.argsort(-counts, kind="stable")[:EXAMPLES]:
        guess = likely_mpp(float(values[k]))
        notes.append(
            f"cohort {cohort}: {counts[k]} of {len(sizes)} slides have {values[k]:.6g} um/px in the slides table, "
            f"outside {MIN_MPP:g}-{MAX_MPP:g}" + (f"; it looks like {guess}" if guess else "")
        )
    if len(values) > EXAMPLES:
        notes.append(f"cohort {cohort}: {len(values) - EXAMPLES} other such values")
    return notes
