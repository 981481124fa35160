"""Draws ``docs/synthetic-contact-sheet.jpg``: five sites of the preset ``demo``, a slide above, 20x below.

Nothing is picked by hand: every cohort shows the same row of its manifest, and the middle of the tissue of that
slide. Slides are read with the project's reader.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from equipoise.datasets.slides.reader import SlideReader, open_slide
from equipoise.datasets.slides.tissue import TissueParams, find_tissue
from equipoise.datasets.synthetic.generate import PatientJob, plan, write_patient

TARGET = Path(__file__).parent / "synthetic-contact-sheet.jpg"
PRESET, SEED = "demo", 7
CELL, GAP, HEAD, CAPTION = 440, 8, 44, 24
CROP_MPP = 0.5
INK, PAPER = (30, 30, 34), (255, 255, 255)


def sheet(index: int) -> Image.Image:
    """The whole sheet; ``index`` counts the patients of each cohort that have a slide, from 0."""
    jobs = plan(PRESET, SEED)
    cohorts = list(dict.fromkeys(job.cohort for job in jobs))
    width = len(cohorts) * (CELL + GAP) + GAP
    page = Image.new("RGB", (width, HEAD + 2 * (CAPTION + CELL + GAP)), PAPER)
    title = f"SYNTHETIC   generated tissue of no patient, not for diagnosis   (preset {PRESET}, seed {SEED})"
    ImageDraw.Draw(page).text((GAP, 8), title, INK, font_size=24)
    with tempfile.TemporaryDirectory() as folder:
        for column, cohort in enumerate(cohorts):
            job = [job for job in jobs if job.cohort == cohort][index]
            _draw_column(page, GAP + column * (CELL + GAP), job, Path(folder))
    return page


def _draw_column(page: Image.Image, left: int, job: PatientJob, root: Path) -> None:
    write_patient(job, root)
    draw = ImageDraw.Draw(page)
    with open_slide(root / job.cohort / "slides" / job.files[0]) as reader:
        extent = reader.dimensions[0] * reader.mpp
        head = f"{job.cohort}  {reader.vendor}  {reader.mpp:.4g} um/px  {extent / 1000:.2f} mm"
        draw.text((left, HEAD), head, INK, font_size=16)
        whole, _ = reader.thumbnail(extent / CELL)
        above = HEAD + CAPTION
        page.paste(Image.fromarray(whole).resize((CELL, CELL), Image.Resampling.LANCZOS), (left, above))
        _scale_bar(draw, left, above, 500, extent / CELL)
        below = above + CELL + GAP
        draw.text((left, below), f"20x, SYNTHETIC  {job.patient}", INK, font_size=16)
        page.paste(Image.fromarray(_middle(reader)), (left, below + CAPTION))
        _scale_bar(draw, left, below + CAPTION, 50, CROP_MPP)


def _middle(reader: SlideReader) -> np.ndarray:
    """The square at 20x around the piece of tissue that is nearest to the tissue's centre of mass."""
    tissue = find_tissue(reader, TissueParams())
    rows, columns = np.nonzero(tissue.mask)
    nearest = np.argmin((rows - rows.mean()) ** 2 + (columns - columns.mean()) ** 2)
    to_level0 = reader.dimensions[0] / tissue.mask.shape[1]
    side = CELL * CROP_MPP / reader.mpp
    x, y = (float(np.clip(at[nearest] * to_level0 - side / 2, 0, None)) for at in (columns, rows))
    return reader.read(round(x), round(y), side, side, (CELL, CELL))


def _scale_bar(draw: ImageDraw.ImageDraw, left: int, top: int, um: int, mpp: float) -> None:
    length = round(um / mpp)
    x, y = left + CELL - length - 10, top + CELL - 14
    draw.rectangle((x - 4, y - 20, x + length + 4, y + 8), PAPER)
    draw.rectangle((x, y, x + length, y + 3), INK)
    draw.text((x, y - 19), f"{um} um", INK, font_size=14)


def main() -> None:
    """Draw and save."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--index", type=int, default=0, help="which patient of each cohort, from 0")
    parser.add_argument("-o", "--out", type=Path, default=TARGET)
    arguments = parser.parse_args()
    sheet(arguments.index).save(arguments.out, "JPEG", quality=82, optimize=True, comment=b"SYNTHETIC")
    print(f"{arguments.out}  {arguments.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
