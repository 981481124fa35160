"""Pictures of all maps of a run: drawn where a map, its slide or the way of drawing has changed, removed with it."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from equipoise.datasets.atomic_io import read_whole_json, write_json
from equipoise.datasets.remote.addresses import is_remote
from equipoise.platform.explain.heatmap import PREVIEW
from equipoise.platform.explain.render import VIEWER, render
from equipoise.platform.explain.tile_scores import list_tile_scores, read_tile_scores
from equipoise.platform.explain.viewer import remove_viewer

log = logging.getLogger("equipoise")

#: Layout of the pictures; a change draws those of earlier versions again.
LAYOUT = 1

#: What the pictures of a slide were drawn from, in its folder.
DRAWN_FROM = "drawn_from.json"

_ENDINGS = (".png", PREVIEW, ".geojson")


@dataclass(frozen=True)
class SlideFile:
    """Where a slide is.

    Attributes
    ----------
    path
        File or address.
    mpp
        um per pixel that the slides table states; None or NaN where it states none.
    study_mpp
        um per pixel of the study, where neither table nor file state any.
    """

    path: str
    mpp: float | None = None
    study_mpp: float | None = None


def draw_pictures(folder: Path, slides: Mapping[str, SlideFile]) -> dict[str, str]:
    """Draw the maps below ``explain/`` of a run, a slide at a time.

    Parameters
    ----------
    folder
        ``explain/`` of the run.
    slides
        Slide → its file; maps of a slide that is not named are drawn on blank paper.

    Returns
    -------
    Slide → why its maps lie on blank paper.
    """
    missing: dict[str, str] = {}
    by_folder: dict[Path, list[Path]] = {}
    for path in list_tile_scores(folder):
        by_folder.setdefault(path.parent, []).append(path)
    for number, (home, paths) in enumerate(by_folder.items(), start=1):
        maps = [read_tile_scores(path) for path in paths]
        slide = slides.get(maps[0].slide)
        drawn_from = _drawn_from(paths, slide)
        known = read_whole_json(home / DRAWN_FROM) or {}
        again = bool(known.get("missing")) and slide is not None and is_remote(slide.path)  # may be there now
        if again or known.get("from") != drawn_from or not all((home / f).is_file() for f in known["files"]):
            _remove_others(home, {path.stem for path in paths})
            drawn = render(
                maps,
                None if slide is None else slide.path,
                home,
                mpp=None if slide is None else slide.mpp,
                study_mpp=None if slide is None else slide.study_mpp,
            )
            files = [*drawn.heatmaps, *drawn.geojson, *([] if drawn.viewer is None else [drawn.viewer])]
            known = {"from": drawn_from, "files": [file.name for file in files], "missing": drawn.missing}
            write_json(home / DRAWN_FROM, known)
            log.info("pictures slide=%s %d/%d maps=%d", maps[0].slide, number, len(by_folder), len(maps))
        if known["missing"]:
            missing[maps[0].slide] = known["missing"]
    return missing


def _drawn_from(paths: list[Path], slide: SlideFile | None) -> dict[str, object]:
    """Everything that the pictures are a function of; the file of the slide by its size and time."""
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}
    stamp = None
    if slide is not None and (file := Path(slide.path)).exists():
        stamp = [file.stat().st_size, file.stat().st_mtime_ns]
    known = None if slide is None else [slide.path, str(slide.mpp), str(slide.study_mpp)]
    return {"layout": LAYOUT, "maps": hashes, "slide": known, "file": stamp}


def _remove_others(home: Path, stems: set[str]) -> None:
    """Remove pictures of maps that are no longer there."""
    for ending in _ENDINGS:
        for file in home.glob(f"*{ending}"):
            if file.name.removesuffix(ending) not in stems:
                file.unlink()
    remove_viewer(home / VIEWER)
