"""Patches per CPU second: JPEG tiles decoded by Equipoise against OpenSlide, patch by patch. 224 px at 0.5 um/px.

Two slides are written by the project's own generator: one at 0.25 um/px (levels 1, 4, 16: half the pixels have to
go) and one at 0.5 um/px (nothing is resampled). Every method reads the same tissue patches in the same process, in
turn; each time counts opening the slide and, for Equipoise, checking itself against OpenSlide. The leanest use of
OpenSlide is the baseline: one region per patch, row by row, area-resampled by OpenCV. "limit" decodes the JPEG
tiles that the patches touch, each once, and does nothing with them.

Keys: ``speedup_40x`` (dct), ``speedup_40x_area``, ``speedup_20x`` against OpenSlide; ``vs_jpeg_limit_40x``: dct
against decoding all pixels.
"""

import argparse
import importlib.util
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
import openslide
import simplejpeg

from equipoise.datasets.slides.grid import TilePlan, plan_tiles
from equipoise.datasets.slides.jpeg_tiff import JpegTiff
from equipoise.datasets.slides.reader import open_slide
from equipoise.datasets.slides.tiles import read_block, tile_blocks
from equipoise.datasets.slides.tissue import TissueParams, find_tissue
from equipoise.datasets.synthetic.catalogue import SITES
from equipoise.datasets.synthetic.generate import plan, write_patient
from equipoise.datasets.synthetic.jobs import PatientJob
from equipoise.datasets.synthetic.params import CohortPlan, Preset

PX, MPP = 224, 0.5

#: Name -> um/px at level 0, side of the rendered parts in um, parts in a row: 20,480 and 16,384 px.
SLIDES = {"40x": (0.25, 1024.0, 5), "20x": (0.5, 2048.0, 4)}
QUALITY = 78

#: The first patient's tissue is on both slides. Belongs to this benchmark, so that its pixels stay the same.
COHORT = CohortPlan(
    name="syn-crc-a",
    patients=24,
    side_um=1024,
    style=SITES["syn-crc-a"].model_copy(update={"p_msi": 1 / 3}),
)

Method = Callable[[Path, TilePlan], int]


def main() -> None:
    """Write the slides, run all methods in turn, print a table and the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--patches", type=int, default=1024, help="patches per slide (whole rows of them)")
    parser.add_argument("--slides", type=Path, help="folder that keeps the slides for another run")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as temporary:
        slides = {name: slide(name, arguments.slides or Path(temporary)) for name in SLIDES}
        plans = {name: layout(path, arguments.patches) for name, path in slides.items()}
        equal = all(same_pixels(slides[name], plans[name]) for name in SLIDES)
        rates = {name: race(slides[name], plans[name], methods(name), arguments.rounds) for name in SLIDES}
    figures = summary(rates)
    figures |= {"pixels_equal": equal, "patches": {name: len(tiles) for name, tiles in plans.items()}}
    figures |= {"load_before": round(load, 1), "cores": os.cpu_count(), "python": sys.version.split()[0]}
    packages = ("openslide-python", "openslide-bin", "simplejpeg", "opencv-python-headless", "numpy")
    figures["versions"] = {name: version(name) for name in packages}
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    (results / "tiles.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures))


def summary(rates: dict[str, dict[str, float]]) -> dict[str, object]:
    """The table on screen, and the ratios."""
    for name, by_method in rates.items():
        print(f"\n{name:<22} {'patches per CPU second':>22} {'against OpenSlide':>18}")
        for method, rate in sorted(by_method.items(), key=lambda item: -item[1]):
            print(f"  {method:<20} {rate:>22.0f} {rate / by_method['openslide']:>18.2f}")
    print()
    forty, twenty = rates["40x"], rates["20x"]
    return {
        "speedup_40x": round(forty["dct"] / forty["openslide"], 2),
        "speedup_40x_area": round(forty["area"] / forty["openslide"], 2),
        "speedup_20x": round(twenty["area"] / twenty["openslide"], 2),
        "vs_jpeg_limit_40x": round(forty["dct"] / forty["limit"], 2),
        "patches_per_cpu_s": {
            name: {method: round(rate) for method, rate in by_method.items()}
            for name, by_method in rates.items()
        },
    }


def slide(name: str, folder: Path) -> Path:
    """A slide of synthetic tissue in an Aperio file."""
    mpp, side_um, parts = SLIDES[name]
    job = plan(Preset(name="tiles", cohorts=(COHORT,)), 7)[0]
    style = job.style.model_copy(
        update={"mpp": mpp, "quality": QUALITY, "container": "aperio", "pen": 0.0, "fold": 0.0}
    )
    fields = {field: getattr(job, field) for field in PatientJob.__dataclass_fields__}
    job = PatientJob(
        **fields | {"cohort": f"syn-{name}", "style": style, "side_um": side_um, "mosaic": parts}
    )
    path = folder / job.cohort / "slides" / job.files[0]
    if not path.exists():
        write_patient(job, folder)
    return path


def layout(path: Path, patches: int) -> TilePlan:
    """The first rows of tissue patches, about so many of them; cut where a row of blocks ends."""
    with open_slide(path) as reader:
        sampling = reader.sampling(MPP)
        candidates = plan_tiles(
            find_tissue(reader, TissueParams()), sampling, reader.level_dimensions, PX, 0.25
        )
    rows = np.rint(candidates.y / candidates.side).astype(int) // 8
    keep = rows <= rows[min(patches, len(candidates)) - 1]
    return TilePlan(candidates.x[keep], candidates.y[keep], candidates.side, candidates.px, candidates.mpp)


def same_pixels(path: Path, tiles: TilePlan) -> bool:
    """Whether both ways give the same pixels by ``area``, on every block's first patches."""
    with open_slide(path) as ours, open_slide(path, fast=False) as theirs:
        return all(
            np.array_equal(
                read_block(ours, tiles, indices[:4]).pixels, read_block(theirs, tiles, indices[:4]).pixels
            )
            for indices in tile_blocks(ours, tiles)
        )


def race(path: Path, tiles: TilePlan, ways: dict[str, Method], rounds: int) -> dict[str, float]:
    """Median patches per CPU second of every method, measured in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, method in ways.items():
            started = time.process_time()
            read = method(path, tiles)
            taken = time.process_time() - started
            if read != len(tiles):
                raise SystemExit(f"{name} read {read} of {len(tiles)} patches")
            if turn:  # the first turn warms the page cache
                seconds[name].append(taken)
    return {name: len(tiles) / statistics.median(values) for name, values in seconds.items()}


def methods(name: str) -> dict[str, Method]:
    """Everything that runs on a slide."""
    available: dict[str, Method] = {"openslide": by_openslide, "area": by_area, "limit": limit}
    if name == "40x":
        available |= {"dct": by_dct, "limit, halved": limit_halved}
    if importlib.util.find_spec("pyvips"):
        available["pyvips"] = by_pyvips
    if importlib.util.find_spec("cucim"):
        available["cucim"] = by_cucim
    return available


def by_openslide(path: Path, tiles: TilePlan) -> int:
    """One region per patch, row by row."""
    side = round(tiles.side)
    with openslide.OpenSlide(path) as bare:
        for x, y in zip(tiles.x.tolist(), tiles.y.tolist(), strict=True):
            region = np.asarray(bare.read_region((x, y), 0, (side, side)))[..., :3]
            shrunk(region)
    return len(tiles)


def by_area(path: Path, tiles: TilePlan) -> int:
    """Equipoise, default resampling."""
    return blocks(path, tiles, "area")


def by_dct(path: Path, tiles: TilePlan) -> int:
    """Equipoise, decoding at half size."""
    return blocks(path, tiles, "dct")


def blocks(path: Path, tiles: TilePlan, resample: str) -> int:
    """All blocks of a plan, one after another."""
    with open_slide(path) as reader:
        read = sum(
            len(read_block(reader, tiles, indices, resample).pixels) for indices in tile_blocks(reader, tiles)
        )
        if reader.kind != "jpeg-tiff":
            raise SystemExit(f"not the fast path: {reader.kind}")
    return read


def limit(path: Path, tiles: TilePlan) -> int:
    """Raw decoding of every JPEG tile that a patch touches."""
    return decode_only(path, tiles, 1)


def limit_halved(path: Path, tiles: TilePlan) -> int:
    """The same at half size."""
    return decode_only(path, tiles, 2)


def decode_only(path: Path, tiles: TilePlan, reduce: int) -> int:
    """Read and decode streams, in the order of the file."""
    with openslide.OpenSlide(path) as bare:
        sizes = bare.level_dimensions
    tiff = JpegTiff(path, "aperio", sizes)
    level = tiff.level(0)
    tiff.close()
    assert level is not None, "the generator writes JPEG tiles"
    across, down = level.tile
    touched = set()
    for x, y in zip(tiles.x.tolist(), tiles.y.tolist(), strict=True):
        for row in range(y // down, int(y + tiles.side - 1) // down + 1):
            for column in range(x // across, int(x + tiles.side - 1) // across + 1):
                touched.add(row * level.columns + column)
    with path.open("rb") as file:
        for index in sorted(touched, key=lambda at: int(level.offsets[at])):
            stream = os.pread(file.fileno(), int(level.counts[index]), int(level.offsets[index]))
            simplejpeg.decode_jpeg(
                stream, min_height=down // reduce, min_width=across // reduce, min_factor=reduce
            )
    return len(tiles)


def by_pyvips(path: Path, tiles: TilePlan) -> int:
    """libvips, one region per patch."""
    import pyvips  # pyright: ignore[reportMissingImports]

    side = round(tiles.side)
    image = pyvips.Image.tiffload(str(path), access="random")
    region = pyvips.Region.new(image)
    for x, y in zip(tiles.x.tolist(), tiles.y.tolist(), strict=True):
        shrunk(np.frombuffer(region.fetch(x, y, side, side), np.uint8).reshape(side, side, -1)[..., :3])
    return len(tiles)


def by_cucim(path: Path, tiles: TilePlan) -> int:
    """cuCIM on the CPU, one region per patch."""
    from cucim import CuImage  # pyright: ignore[reportMissingImports]

    side = round(tiles.side)
    image = CuImage(str(path))
    for x, y in zip(tiles.x.tolist(), tiles.y.tolist(), strict=True):
        shrunk(np.asarray(image.read_region((x, y), (side, side), 0)))
    return len(tiles)


def shrunk(region: np.ndarray) -> np.ndarray:
    """A region as a patch."""
    if region.shape[0] == PX:
        return np.ascontiguousarray(region)
    return cv2.resize(region, (PX, PX), interpolation=cv2.INTER_AREA)


if __name__ == "__main__":
    main()
