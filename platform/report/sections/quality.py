"""Quality control: states of the slides, resolution, tiles per slide, thumbnails."""

import base64
import io
from pathlib import Path

import numpy as np
import pandas as pd

from equipoise.platform.report.blocks import (
    Block,
    Cell,
    Fact,
    Facts,
    Figures,
    Gallery,
    Heading,
    Notice,
    Picture,
    Section,
    Table,
    Tone,
)
from equipoise.platform.report.entries import QualityParams
from equipoise.platform.report.figures.quality import tiles_histogram
from equipoise.platform.report.formatting import count, number, percent
from equipoise.platform.report.run_files import RunFiles

_SIDE = 320  # pixels of the longer side of an embedded thumbnail


def build(run: RunFiles, params: QualityParams) -> Section:
    """States of the slides and what they hold."""
    if run.slides is not None and run.slides.empty:
        return Section("Slides and quality", "No slide is part of this study: its model reads tables.", [])
    blocks: list[Block] = [*run.missing("manifest/slides.parquet")]
    lead = "What the slides are like and which of them could be used."
    if run.slides is not None and len(run.slides):
        ok = run.slides[run.slides["status"] == "ok"]
        lead = f"{count(len(ok))} of {count(len(run.slides))} slides could be used."
        if (run.slides["status"] == "listed").all():
            return Section("Slides and quality", "No slide has been opened yet.", run.missing("qc"))
        blocks.append(_facts(run.slides, ok))
        if "n" in run.slides and (figure := tiles_histogram(run.slides)):
            blocks.append(Figures([figure]))
        blocks.append(_by_cohort(run.slides))
    blocks += _gallery(run, params.thumbnails)
    return Section("Slides and quality", lead, blocks)


def _facts(slides: pd.DataFrame, ok: pd.DataFrame) -> Facts:
    tiles = ok["n"].dropna().to_numpy(float) if "n" in ok else np.array([])
    mpp = ok["mpp"].dropna().to_numpy(float) if "mpp" in ok else np.array([])
    per_patient = ok.groupby("patient").size()
    items = [
        Fact("Slides used", count(len(ok)), f"{count(len(slides) - len(ok))} not usable"),
        Fact("Tiles", count(tiles.sum()) if len(tiles) else "–", "squares with tissue"),
        Fact(
            "Tiles per slide",
            count(np.median(tiles)) if len(tiles) else "–",
            f"median, {count(tiles.min())} to {count(tiles.max())}" if len(tiles) else "",
        ),
        Fact(
            "Resolution",
            f"{number(float(np.median(mpp)), 2)} µm/px" if len(mpp) else "–",
            _range(mpp),
        ),
        Fact(
            "Slides per patient",
            number(float(per_patient.mean()), 2) if len(per_patient) else "–",
            f"at most {count(per_patient.max())}" if len(per_patient) else "",
        ),
    ]
    return Facts(items)


def _range(mpp: np.ndarray) -> str:
    if not len(mpp):
        return ""
    low, high = number(mpp.min(), 2), number(mpp.max(), 2)
    return "all alike" if low == high else f"median, {low} to {high}"


def _by_cohort(slides: pd.DataFrame) -> Table:
    states = sorted(slides["status"].unique(), key=lambda s: (s != "ok", s))
    rows: list[list[str | Cell]] = []
    for cohort, part in slides.groupby("cohort", sort=True):
        n = part["status"].value_counts()
        cells: list[str | Cell] = [str(cohort), count(len(part))]
        for state in states:
            some = int(n.get(state, 0))
            tone: Tone = "good" if state == "ok" else "bad" if some else "muted"
            cells.append(Cell(count(some) if some else "–", tone=tone))
        cells.append(percent(1 - n.get("ok", 0) / len(part)))
        sources = part["mpp_source"].dropna().unique() if "mpp_source" in part else []
        cells.append(", ".join(sorted(str(s) for s in sources if s)) or "–")
        rows.append(cells)
    columns = ["Cohort", "Slides", *[s.replace("_", " ") for s in states], "Lost", "Resolution from"]
    return Table(
        columns,
        rows,
        caption="States of the slides. One that cannot be used is a row with its reason, never a white tile.",
        numeric=frozenset(range(1, len(columns) - 1)),
    )


def _gallery(run: RunFiles, most: int) -> list[Block]:
    if most == 0:
        return []
    if not run.thumbnails:
        return [*run.missing("qc")]
    paths = run.thumbnails
    chosen = [paths[i] for i in np.unique(np.linspace(0, len(paths) - 1, min(most, len(paths))).astype(int))]
    pictures, broken = [], []
    for path in chosen:
        try:
            pictures.append(Picture(_embed(path), path.stem))
        except (OSError, ValueError) as reason:
            broken.append(f"qc/{path.name}: {reason}")
    blocks: list[Block] = [Heading("Thumbnails")]
    if pictures:
        which = "Blue squares are the tiles that were encoded."
        if len(paths) > most:
            which = f"{len(pictures)} of {count(len(paths))}, evenly chosen in name order. {which}"
        blocks.append(Gallery(pictures, which))
    if broken:
        blocks.append(Notice("Thumbnails that cannot be read", broken))
    return blocks


def _embed(path: Path) -> str:
    """A small JPEG as data URI, re-encoded so that neither size nor metadata of the file travel along."""
    from PIL import Image

    with Image.open(path) as picture:
        small = picture.convert("RGB")
        small.thumbnail((_SIDE, _SIDE))
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=78)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
