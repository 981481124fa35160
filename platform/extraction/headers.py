"""A look at every slide's header before anything expensive starts: can it be opened, at which pixel size?"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from equipoise.datasets.slides.problems import SlideProblem
from equipoise.datasets.slides.reader import open_slide
from equipoise.platform.extraction.params import ExtractionParams

if TYPE_CHECKING:
    import pandas as pd


def check_headers(slides: pd.DataFrame, params: ExtractionParams, threads: int = 8) -> pd.DataFrame:
    """Open every slide and settle its pixel size; reads no pixel.

    Parameters
    ----------
    slides
        Columns slide, path, mpp (NaN where the table states none).
    params
        Target resolution and pixel size override of the study.
    threads
        Slides opened at a time: file systems answer slowly, but many at once.

    Returns
    -------
    The slides with ``status`` (``ok`` or what extraction will say), ``error`` and ``slide_mpp``.
    """

    def look(path: str, mpp: float) -> tuple[str, str, float]:
        try:
            with open_slide(path, mpp, params.mpp_override) as slide:
                slide.sampling(params.mpp)
                return "ok", "", slide.mpp
        except SlideProblem as problem:
            return problem.status, str(problem).replace("\n  ", "; "), float("nan")

    with ThreadPoolExecutor(threads) as pool:
        seen = list(pool.map(look, slides["path"].astype(str), slides["mpp"].astype(float)))
    status, error, mpp = zip(*seen, strict=True) if seen else ((), (), ())
    return slides.assign(status=status, error=error, slide_mpp=mpp)
