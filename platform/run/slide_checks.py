"""What ``validate`` can say about slides before any is extracted: files, pixel sizes, and with a look at their headers.

A study with more bad slides than ``features.max_fail`` would fail after hours of extraction; it is refused here.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from equipoise.datasets.slides.mpp import choose_sampling, slide_mpp
from equipoise.datasets.slides.problems import FAILURES, SlideProblem
from equipoise.platform.errors import DataError, ToleranceError

if TYPE_CHECKING:
    import pandas as pd

    from equipoise.datasets.cohorts.cohort import Cohorts
    from equipoise.platform.extraction.params import ExtractionParams

log = logging.getLogger("equipoise")

#: Slides that are named one by one.
_MOST_NAMED = 20


def missing_files(cohorts: Cohorts) -> tuple[str, ...]:
    """Remarks on slide files that are not in their folders, cohort by cohort."""
    from equipoise.datasets.cohorts.slide_files import file_notes

    return tuple(
        note
        for name, part in cohorts.slides.groupby("cohort", sort=False)
        for note in file_notes(str(name), part["path"].astype(str).tolist())
    )


def refuse_pixel_sizes(slides: pd.DataFrame, params: ExtractionParams) -> None:
    """Refuse tables whose pixel sizes leave more slides out than ``max_fail`` allows.

    Parameters
    ----------
    slides
        Columns slide and mpp (NaN: the file is to say it).
    params
        Target resolution, and the share of slides that may fail.

    Raises
    ------
    DataError
        With count, examples and the reason of the first.
    """
    bad = [
        (slide, reason)
        for slide, mpp in zip(slides["slide"], slides["mpp"].astype(float), strict=True)
        if mpp == mpp and (reason := _problem(mpp, params.mpp))
    ]
    if len(bad) <= params.max_fail * len(slides):
        return
    raise DataError(
        f"{len(bad)} of {len(slides)} slides cannot be used with the pixel sizes of the slides table, more than "
        f"max_fail allows ({params.max_fail:.0%}): {', '.join(slide for slide, _ in bad[:3])}, …; {bad[0][1]}",
        where="slides table, column mpp",
        fix="write um per pixel at full resolution (0.25 for most slides at 40x, 0.5 at 20x), or leave the cells empty "
        "to take what the files say",
    )


def _problem(mpp: float, target: float) -> str:
    """Why no slide of this pixel size can be read at the target; empty if it can."""
    try:
        choose_sampling(slide_mpp({}, mpp).value, [1.0], target)
    except SlideProblem as problem:
        return problem.what
    return ""


def refuse_headers(checked: pd.DataFrame, params: ExtractionParams) -> None:
    """Name slides that cannot be used, and refuse more of them than ``max_fail`` allows.

    Parameters
    ----------
    checked
        Slides with status and error, of :func:`~equipoise.platform.extraction.sources.check_headers`.
    params
        Share of slides that may fail.

    Raises
    ------
    ToleranceError
        As an extraction of these slides would.
    """
    bad = checked[checked["status"].isin(FAILURES)]
    for row in bad.head(_MOST_NAMED).itertuples():
        log.warning("%s: %s: %s", row.slide, row.status, row.error)
    log.info("headers: %d of %d slides can be used", len(checked) - len(bad), len(checked))
    if len(bad) > params.max_fail * len(checked):
        first = bad.iloc[0]
        raise ToleranceError(
            f"{len(bad)} of {len(checked)} slides cannot be used, more than max_fail allows "
            f"({len(bad) / len(checked):.1%} > {params.max_fail:.1%}); first {first['slide']}: {first['error']}",
            where="slides",
            fix="fix or remove these slides, or raise features.max_fail",
        )
