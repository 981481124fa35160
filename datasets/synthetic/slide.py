"""The slides of one patient: from a job to files. The unit of parallel work."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from equipoise.datasets.atomic_io import atomic_path, write_text
from equipoise.datasets.synthetic.artefacts import draw_artefacts
from equipoise.datasets.synthetic.bags import draw_bag, write_bag
from equipoise.datasets.synthetic.cancers import CANCERS
from equipoise.datasets.synthetic.cells import place_cells
from equipoise.datasets.synthetic.containers import SlideInfo, open_container
from equipoise.datasets.synthetic.faults import ABSURD, central_tile, corrupt_file
from equipoise.datasets.synthetic.jobs import PatientJob, SlidePlan, content_folder, receipt_path
from equipoise.datasets.synthetic.layout import draw_layout, stain_layers
from equipoise.datasets.synthetic.morphology import Morphology, draw_morphology
from equipoise.datasets.synthetic.pyramid import LEVELS, STEP, Pyramid, TileSink
from equipoise.datasets.synthetic.render import Scan, Scene, emptied, render
from equipoise.datasets.synthetic.seeds import WHOLE_COHORT, Purpose, stream
from equipoise.datasets.synthetic.stain import draw_stain
from equipoise.datasets.synthetic.tiff_vendors import TiffContainer

#: Colours of the truth mask's classes, for people; the values index ``layout.MASK_CLASSES``.
_MASK_COLOURS = (
    (255, 255, 255),
    (90, 60, 150),
    (230, 130, 170),
    (240, 235, 245),
    (150, 190, 230),
    (190, 60, 80),
    (40, 40, 110),
    (220, 30, 30),
    (250, 225, 120),
)


def write_patient(job: PatientJob, root: Path) -> dict[str, object]:
    """Render the slides of one patient, with their truth masks (or draw its bag), and write a receipt.

    Depends on the job only, so that results are the same on any number of workers. Files are written atomically,
    the receipt last.

    Returns
    -------
    dict
        ``patient``, ``cohort``, ``status`` ("ok"), ``files`` (relative to ``root``), ``bytes`` (their sum)
        and ``sha256`` of each file.
    """
    cv2.setNumThreads(1)  # patients run in parallel; OpenCV's own threads would only compete
    folder = root / job.cohort
    subfolder = content_folder(job.content)
    morphology = tissue_of(job)
    written: dict[str, dict[str, int | str]] = {}
    for slide, file in zip(job.slides, job.files, strict=True):
        with atomic_path(folder / subfolder / file) as partial:
            if job.content == "bags":
                rng = stream(job.seed, job.style.number, job.number, Purpose.BAG, slide.part)
                write_bag(partial, *draw_bag(rng, morphology, job.seed, job.style.number))
            else:
                mask = _write_slide(job, morphology, slide, partial)
                with atomic_path(folder / "truth" / "masks" / f"{slide.barcode}.png") as picture:
                    _mask_picture(mask).save(picture, "PNG")
            written |= _measured(partial, file)
    receipt = {"fingerprint": job.fingerprint(), "slides": written}
    write_text(receipt_path(job, root), json.dumps(receipt, indent=1) + "\n")
    return {
        "patient": job.patient,
        "cohort": job.cohort,
        "status": "ok",
        "files": [f"{job.cohort}/{subfolder}/{file}" for file in written],
        "bytes": sum(int(entry["bytes"]) for entry in written.values()),
        "sha256": [entry["sha256"] for entry in written.values()],
    }


def tissue_of(job: PatientJob) -> Morphology:
    """Tissue parameters of the patient."""
    rng = stream(job.seed, job.style.number, job.number, Purpose.MORPHOLOGY)
    return draw_morphology(rng, job.latents, job.style.cancer, job.knobs)


def scan_of(job: PatientJob) -> Scan:
    """Pixels of the patient's slides; sides are such that every level's downsampling is exact."""
    unit = STEP ** (LEVELS - 1)
    side = round(job.side_um / job.style.mpp / unit) * unit
    return Scan(side, side, job.style.mpp, job.style.blur_um)


def compose(job: PatientJob, morphology: Morphology, slide: SlidePlan) -> tuple[Scene, np.ndarray]:
    """Scene of one slide and its truth mask (uint8 at 8 um per pixel)."""

    def rng(purpose: Purpose) -> np.random.Generator:
        return stream(job.seed, job.style.number, job.number, purpose, slide.part)

    layout_rng = rng(Purpose.LAYOUT)
    extent = scan_of(job).width * job.style.mpp
    layout = draw_layout(layout_rng, extent, morphology, CANCERS[job.style.cancer])
    eosin, haematoxylin = stain_layers(layout_rng, layout, morphology)
    cells = place_cells(rng(Purpose.CELLS), layout, morphology)
    artefacts = draw_artefacts(rng(Purpose.ARTEFACTS), layout.outline, job.style)
    source = stream(job.seed, job.style.number, WHOLE_COHORT, Purpose.SOURCE, job.source)
    stain = draw_stain(rng(Purpose.STAIN), source, job.style)
    scene = Scene(eosin, haematoxylin, cells, artefacts, stain)
    return (
        (emptied(scene), np.zeros_like(layout.mask())) if slide.fault == "blank" else (scene, layout.mask())
    )


def sha256(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _measured(path: Path, name: str) -> dict[str, dict[str, int | str]]:
    """Size and hash of a slide's file, or of every file of its folder."""
    files = (
        {f"{name}/{part.name}": part for part in sorted(path.iterdir())} if path.is_dir() else {name: path}
    )
    return {key: {"bytes": file.stat().st_size, "sha256": sha256(file)} for key, file in files.items()}


def _write_slide(job: PatientJob, morphology: Morphology, slide: SlidePlan, path: Path) -> np.ndarray:
    """Write one slide and return its truth mask."""
    style, scan, fault = job.style, scan_of(job), slide.fault
    info = SlideInfo(
        barcode=slide.barcode,
        cohort=job.cohort,
        seed=job.seed,
        width=scan.width * job.mosaic,
        height=scan.height * job.mosaic,
        mpp=None if fault == "no_mpp" else style.mpp * (ABSURD if fault == "absurd_mpp" else 1),
        objective=None if fault == "no_mpp" else style.objective,
        quality=style.quality,
    )
    container = open_container(style.container, path, info)
    try:
        fill = _fill_mosaic if job.mosaic > 1 else _fill
        thumbnail, mask = fill(container, job, morphology, slide)
        if fault == "missing_tile" and isinstance(container, TiffContainer):
            container.forget_tile(central_tile(container.levels[0]))
        container.finish(thumbnail)
    finally:
        container.close()
    if isinstance(container, TiffContainer):
        corrupt_file(fault, path, container.levels[0])
    return mask


def _fill(
    sink: TileSink, job: PatientJob, morphology: Morphology, slide: SlidePlan
) -> tuple[np.ndarray, np.ndarray]:
    """Render a slide into a sink; returns its thumbnail and its truth mask."""
    scene, mask = compose(job, morphology, slide)
    scan = scan_of(job)
    pyramid = Pyramid(sink, scan.width, scan.height, job.style.quality)
    for strip in render(scene, scan):
        pyramid.push(strip)
    return pyramid.finish(), mask


def _fill_mosaic(
    sink: TileSink, job: PatientJob, morphology: Morphology, slide: SlidePlan
) -> tuple[np.ndarray, np.ndarray]:
    """As :func:`_fill`, from a few small slides of the same patient laid side by side."""
    buffers = [TileBuffer() for _ in range(BASES)]
    parts = [SlidePlan(slide.barcode, BASES * slide.part + k, slide.fault) for k in range(BASES)]
    filled = [_fill(buffer, job, morphology, part) for buffer, part in zip(buffers, parts, strict=True)]
    rng = stream(job.seed, job.style.number, job.number, Purpose.MOSAIC, slide.part)
    grid = arrangement(rng, job.mosaic)
    lay_tiles(sink, buffers, grid)
    thumbnails, masks = zip(*filled, strict=True)
    return lay_thumbnails(thumbnails, grid), lay_pictures(masks, grid)


def _mask_picture(mask: np.ndarray) -> Image.Image:
    picture = Image.fromarray(mask, "P")
    picture.putpalette([channel for colour in _MASK_COLOURS for channel in colour])
    return picture


#: Different small slides in a mosaic: slides of more than a gigapixel, for sharding, back-pressure and viewers.
#: Pixels are rendered and encoded once per small slide; memory holds the encoded tiles only.
BASES = 3
_THUMBNAIL_PX = 1000


class TileBuffer:
    """Keeps the encoded tiles of one square slide whose sides are whole tiles on every level."""

    def __init__(self) -> None:
        self.tiles: list[list[bytes]] = [[] for _ in range(LEVELS)]

    def tile(self, level: int, jpeg: bytes) -> None:
        """Take the next tile of a level."""
        self.tiles[level].append(jpeg)


def arrangement(rng: np.random.Generator, repeats: int) -> np.ndarray:
    """Which small slide lies where, ``[repeats, repeats]``."""
    return rng.integers(0, BASES, (repeats, repeats))


def lay_tiles(sink: TileSink, buffers: Sequence[TileBuffer], grid: np.ndarray) -> None:
    """Hand the tiles of the whole mosaic to a sink, level by level, row by row."""
    for level in range(LEVELS):
        across = round(len(buffers[0].tiles[level]) ** 0.5)
        for row in grid:
            for start in range(0, across * across, across):
                for base in row:
                    for jpeg in buffers[base].tiles[level][start : start + across]:
                        sink.tile(level, jpeg)


def lay_pictures(pictures: Sequence[np.ndarray], grid: np.ndarray) -> np.ndarray:
    """Masks of the small slides, put together."""
    return np.concatenate([np.concatenate([pictures[base] for base in row], axis=1) for row in grid])


def lay_thumbnails(thumbnails: Sequence[np.ndarray], grid: np.ndarray) -> np.ndarray:
    """One thumbnail of the mosaic from those of the small slides."""
    side = _THUMBNAIL_PX // len(grid)
    return lay_pictures([cv2.resize(t, (side, side), interpolation=cv2.INTER_AREA) for t in thumbnails], grid)
