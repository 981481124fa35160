"""Whether external cohorts were scanned or stained unlike the development cohorts: pixel size, colour of the tissue.

The colour is read off the thumbnails in ``qc/``: the mean optical density of red, green and blue over the stained
pixels of a slide (Ruifrok and Johnston, Anal Quant Cytol Histol 23, 2001). The shift of a cohort is the distance of its
mean from that of the nearest development cohort, in standard deviations of slides within development cohorts, averaged
over the channels (root mean square). Kept tiles are tinted on the thumbnails, in the same way in all of them.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from equipoise.platform.report.formatting import number, plural
from equipoise.platform.report.run_files import RunFiles

Floats = NDArray[np.float64]

#: Relative difference of median pixel sizes that is said.
MPP_TOLERANCE = 0.1
#: Shift in standard deviations that is said, if it is also so many standard errors away from none.
STAIN_SHIFT, _SURE = 1.0, 3.0
#: Thumbnails that are read per cohort, and the fewest that say something.
_MOST, _FEWEST = 12, 5
#: Sum of the optical densities of a stained pixel, and the share of the pixels of a picture that must be stained.
_STAINED, _ENOUGH = 0.15, 0.01


def drift_sentences(run: RunFiles) -> list[str]:
    """A sentence for each external cohort whose pixels or colours are unlike those of every development cohort."""
    return [*_pixel_sizes(run), *_stains(run)]


def _roles(run: RunFiles) -> dict[str, list[str]]:
    """``develop`` and ``external`` → cohorts."""
    if run.patients is None:
        return {}
    of_cohort = run.patients.drop_duplicates("cohort").set_index("cohort")["role"]
    return {
        str(role): sorted(str(c) for c in cohorts.index) for role, cohorts in of_cohort.groupby(of_cohort)
    }


def _pixel_sizes(run: RunFiles) -> list[str]:
    roles, slides = _roles(run), run.used_slides
    if slides is None or "mpp" not in slides:
        return []
    medians = slides.groupby("cohort")["mpp"].median().dropna()
    develop = medians.reindex(roles.get("develop", [])).dropna()
    sentences = []
    for cohort in roles.get("external", []):
        if cohort not in medians or develop.empty:
            continue
        nearest = float(develop.iloc[int(np.abs(np.log(develop / medians[cohort])).argmin())])
        ratio = float(medians[cohort]) / nearest
        if max(ratio, 1 / ratio) > 1 + MPP_TOLERANCE:
            how = "coarser" if ratio > 1 else "finer"
            sentences.append(
                f"{cohort} was scanned {how} than the development cohorts: {number(float(medians[cohort]), 2)} µm per "
                f"pixel in the median, against {number(nearest, 2)} in the nearest of them. Tiles are resampled to one "
                "resolution, but the scanner is another."
            )
    return sentences


def _stains(run: RunFiles) -> list[str]:
    roles = _roles(run)
    if not run.thumbnails or run.slides is None or not roles.get("external"):
        return []
    colours = {cohort: _colours(run, cohort) for names in roles.values() for cohort in names}
    sentences = []
    for cohort in roles["external"]:
        develop = [colours[name] for name in roles.get("develop", [])]
        shift, sure = stain_shift(colours[cohort], develop)
        if shift > STAIN_SHIFT and sure:
            sentences.append(
                f"The tissue of {cohort} has another colour than that of the development cohorts: "
                f"{plural(len(colours[cohort]), 'thumbnail')} lie {number(shift, 1)} standard deviations of slides "
                "from the nearest of them. A model that depends on the stain may fail there."
            )
    return sentences


def stain_shift(colours: Floats, develop: Sequence[Floats]) -> tuple[float, bool]:
    """Distance of a cohort's mean colour from the nearest development cohort, and whether that is beyond chance.

    Parameters
    ----------
    colours
        ``[N, 3]`` mean optical densities of the slides of a cohort.
    develop
        The same for each development cohort.

    Returns
    -------
    The shift in standard deviations; NaN with fewer than five slides on either side.
    """
    known = [part for part in develop if len(part) >= _FEWEST]
    if len(colours) < _FEWEST or not known:
        return float("nan"), False
    freedom = sum(len(part) - 1 for part in known)
    variance = np.sum([((part - part.mean(0)) ** 2).sum(0) for part in known], axis=0) / freedom
    scale = np.sqrt(np.maximum(variance, np.finfo(float).tiny))
    found = []
    for part in known:
        shift = float(np.sqrt((((colours.mean(0) - part.mean(0)) / scale) ** 2).mean()))
        error = float(np.sqrt(1 / len(colours) + 1 / len(part)))
        found.append((shift, shift > _SURE * error))
    return min(found)


def _colours(run: RunFiles, cohort: str) -> Floats:
    """``[N, 3]`` of up to :data:`_MOST` thumbnails of a cohort, evenly spaced in name order."""
    assert run.slides is not None
    names = set(run.slides.loc[run.slides["cohort"] == cohort, "slide"].astype(str))
    paths = [path for path in run.thumbnails if path.stem in names]
    if paths:
        paths = [
            paths[k] for k in np.unique(np.linspace(0, len(paths) - 1, min(_MOST, len(paths))).astype(int))
        ]
    found = [mean_density(path) for path in paths]
    return np.array([one for one in found if np.isfinite(one).all()]).reshape(-1, 3)


def mean_density(path: Path) -> Floats:
    """Mean optical density of red, green and blue over the stained pixels; NaN for a picture without tissue."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            picture.draft("RGB", (256, 256))
            small = picture.convert("RGB")
            small.thumbnail((256, 256))
            pixels = np.asarray(small, float).reshape(-1, 3)
    except (OSError, ValueError):
        return np.full(3, np.nan)
    density = -np.log10(np.clip(pixels, 1, 255) / 255)
    stained = density.sum(axis=1) > _STAINED
    if stained.mean() < _ENOUGH:
        return np.full(3, np.nan)
    result: Floats = density[stained].mean(axis=0)
    return result
