"""Slides of a feature store as the drift check needs them: mean features, pixel size, tissue, tiles, colour."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from equipoise.datasets.slides.problems import SlideProblem
from equipoise.platform.prediction.drift import SlideSet
from equipoise.platform.prediction.quality import SlideLook, look_at_slide

if TYPE_CHECKING:
    import pandas as pd

    from equipoise.datasets.store.feature_store import FeatureStore

log = logging.getLogger(__name__)

#: Training slides whose thumbnails are read for the reference of colour.
MOST_LOOKS = 120


def slide_set(
    slides: pd.DataFrame, store: FeatureStore, looks: Mapping[str, SlideLook] | None = None
) -> SlideSet:
    """Slides that have features.

    Parameters
    ----------
    slides
        Columns ``slide patient cohort``; slides without features are left out.
    store
        Their features.
    looks
        Slide → what its thumbnail shows, of those that were looked at.
    """
    index = store.index().drop_duplicates("slide", keep="last").set_index("slide")
    known = slides[slides["slide"].isin(index.index[index["status"] == "ok"])]
    rows = index.loc[known["slide"]]
    vectors = [mean_features(store, slide) for slide in known["slide"]]
    stain = [
        looks[slide].density if looks and slide in looks else np.full(3, np.nan) for slide in known["slide"]
    ]
    area = rows["tissue"] * rows["width"] * rows["height"] * rows["mpp"] ** 2 / 1e6
    values = {
        "mpp": rows["mpp"].to_numpy(float),
        "tissue_mm2": area.where(area > 0).to_numpy(float),
        "tiles": rows["n"].to_numpy(float),
    }
    for name in ("ink", "blur"):
        seen = [
            getattr(looks[slide], name) if looks and slide in looks else np.nan for slide in known["slide"]
        ]
        values[name] = np.asarray(seen, float)
    return SlideSet(
        known["slide"].astype(str).tolist(),
        known["patient"].astype(str).tolist(),
        known["cohort"].astype(str).tolist(),
        {
            "embedding": np.stack(vectors) if vectors else np.empty((0, store.spec.dim)),
            "stain": np.stack(stain) if stain else np.empty((0, 3)),
        },
        values,
    )


def mean_features(store: FeatureStore, slide: str) -> np.ndarray:
    """``[D]`` mean of the tiles of a slide."""
    features, _ = store.read(slide)
    return features.mean(axis=0, dtype=np.float64)


def looks_at(
    slides: pd.DataFrame, study_mpp: float | None = None, most: int | None = None
) -> dict[str, SlideLook]:
    """What the thumbnails of slides show; slides that cannot be opened are left out.

    Parameters
    ----------
    slides
        Columns ``slide path`` and, if the table states pixel sizes, ``mpp``.
    study_mpp
        Pixel size that the study states for all slides.
    most
        Look at so many of them, evenly spaced; at all of them if None.
    """
    chosen = slides
    if most is not None and len(slides) > most:
        chosen = slides.iloc[np.unique(np.linspace(0, len(slides) - 1, most).astype(int))]
    looks = {}
    for row in chosen.itertuples():
        try:
            looks[str(row.slide)] = look_at_slide(row.path, getattr(row, "mpp", None), study_mpp)
        except SlideProblem as problem:
            log.debug("no look at slide %s: %s", row.slide, problem.line)
    return looks
