"""Everything to look at for the maps of one slide: PNG, GeoJSON, viewer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from equipoise.datasets.errors import DataError
from equipoise.platform.explain.geojson import Selection, write_geojson
from equipoise.platform.explain.heatmap import PICTURE_PX, write_heatmap
from equipoise.platform.explain.slide_picture import slide_picture
from equipoise.platform.explain.tile_scores import TileScores, scores_stem
from equipoise.platform.explain.viewer import LISTED, remove_viewer, write_viewer

#: Most pixels that are read of a slide for its viewer: bounds time and memory (about 150 MB while reading).
MOST_PIXELS = 36_000_000

VIEWER = "viewer.html"


@dataclass(frozen=True)
class Rendered:
    """What :func:`render` wrote.

    Attributes
    ----------
    heatmaps, geojson
        A file per map, in the order of the maps.
    viewer
        The page; None where there is no slide to look at.
    missing
        Why there is no slide; empty where there is.
    """

    heatmaps: tuple[Path, ...]
    geojson: tuple[Path, ...]
    viewer: Path | None
    missing: str = ""


def render(
    maps: Sequence[TileScores] | TileScores,
    slide: str | Path | None,
    folder: Path,
    *,
    mpp: float | None = None,
    study_mpp: float | None = None,
    tiles: Selection = "all",
) -> Rendered:
    """Draw the maps of one slide.

    Parameters
    ----------
    maps
        Maps of one slide, each of another task, class or method.
    slide
        File or address of the slide, read once; None, or one that cannot be read, gives maps on blank paper and no
        viewer.
    folder
        Where the files go: ``<task>[.<class>].<method>`` with ``.png``, ``.jpg`` (small, without names) and
        ``.geojson``; ``viewer.html`` and ``viewer_files/``.
    mpp, study_mpp
        Pixel sizes from the slides table and from the study, as :func:`open_slide` takes them.
    tiles
        Which tiles the GeoJSON files hold.

    Raises
    ------
    DataError
        If the maps are of different slides, or two are of the same task, class and method.
    """
    maps = [maps] if isinstance(maps, TileScores) else list(maps)
    stems = _stems(maps)
    picture = slide_picture(slide, maps, MOST_PIXELS, (mpp, study_mpp), LISTED)
    area = picture.scanned()
    small = area.resized(PICTURE_PX)  # once for all maps
    heatmaps = [
        write_heatmap(scores, small, folder / f"{stem}.png").path
        for scores, stem in zip(maps, stems, strict=True)
    ]
    geojson = [
        write_geojson(scores, folder / f"{stem}.geojson", picture.origin, tiles)
        for scores, stem in zip(maps, stems, strict=True)
    ]
    page = folder / VIEWER
    if picture.missing:
        remove_viewer(page)  # of an earlier run that had the slide: it would show other maps
        return Rendered(tuple(heatmaps), tuple(geojson), None, picture.missing)
    return Rendered(tuple(heatmaps), tuple(geojson), write_viewer(maps, area, page))


def _stems(maps: Sequence[TileScores]) -> list[str]:
    slides = {scores.slide for scores in maps}
    if len(slides) != 1:
        raise DataError(
            f"maps of {len(slides)} slides cannot be drawn on one",
            where=", ".join(sorted(slides)) or None,
            fix="give the maps of one slide at a time",
        )
    stems = [scores_stem(scores.task, scores.class_name, scores.method) for scores in maps]
    if twice := sorted({stem for stem in stems if stems.count(stem) > 1}):
        raise DataError(
            f"two maps of the same task, class and method: {', '.join(twice)}", where=slides.pop()
        )
    return stems
