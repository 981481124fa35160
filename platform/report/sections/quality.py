"""Quality control: statuses of the slides, resolution, tiles per slide, thumbnails."""

import numpy as np
import pandas as pd

from equipoise.platform.report.blocks import (
    Block,
    Cell,
    Figures,
    Gallery,
    Heading,
    KeyNumber,
    KeyNumbers,
    Notice,
    Picture,
    Section,
    Table,
    Tone,
)
from equipoise.platform.report.embedded_pictures import embedded_jpeg
from equipoise.platform.report.entries import QualityParams
from equipoise.platform.report.formatting import count, number, percent
from equipoise.platform.report.run_files import RunFiles
from equipoise.platform.report.style import SERIES, Figure, layout, text

THUMBNAIL_PX = 320  # pixels of the longer side of an embedded thumbnail


def build(run: RunFiles, params: QualityParams) -> Section:
    """Statuses of the slides, key numbers and thumbnails."""
    if run.slides is not None and run.slides.empty:
        return Section("Slides and quality", "This study has no slides: its model uses tables.", [])
    blocks: list[Block] = [*run.missing("manifest/slides.parquet")]
    lead = "Properties of the slides, and how many of them could be used."
    if run.slides is not None and len(run.slides):
        ok = run.slides[run.slides["status"] == "ok"]
        lead = f"{count(len(ok))} of {count(len(run.slides))} slides could be used."
        if (run.slides["status"] == "listed").all():
            return Section("Slides and quality", "No slide has been opened yet.", run.missing("qc"))
        blocks.append(_key_numbers(run.slides, ok))
        if "n" in run.slides and (figure := tiles_histogram(run.slides)):
            blocks.append(Figures([figure]))
        blocks.append(_by_cohort(run.slides))
    blocks += _gallery(run, params.thumbnails)
    return Section("Slides and quality", lead, blocks)


def _key_numbers(slides: pd.DataFrame, ok: pd.DataFrame) -> KeyNumbers:
    tiles = ok["n"].dropna().to_numpy(float) if "n" in ok else np.array([])
    mpp = ok["mpp"].dropna().to_numpy(float) if "mpp" in ok else np.array([])
    per_patient = ok.groupby("patient").size()
    items = [
        KeyNumber("Slides used", count(len(ok)), f"{count(len(slides) - len(ok))} not usable"),
        KeyNumber("Tiles", count(tiles.sum()) if len(tiles) else "–", "squares with tissue"),
        KeyNumber(
            "Tiles per slide",
            count(np.median(tiles)) if len(tiles) else "–",
            f"median, {count(tiles.min())} to {count(tiles.max())}" if len(tiles) else "",
        ),
        KeyNumber(
            "Resolution",
            f"{number(float(np.median(mpp)), 2)} µm/px" if len(mpp) else "–",
            _range(mpp),
        ),
        KeyNumber(
            "Slides per patient",
            number(float(per_patient.mean()), 2) if len(per_patient) else "–",
            f"at most {count(per_patient.max())}" if len(per_patient) else "",
        ),
    ]
    return KeyNumbers(items)


def _range(mpp: np.ndarray) -> str:
    if not len(mpp):
        return ""
    low, high = number(mpp.min(), 2), number(mpp.max(), 2)
    return "all the same" if low == high else f"median, {low} to {high}"


def _by_cohort(slides: pd.DataFrame) -> Table:
    statuses = sorted(slides["status"].unique(), key=lambda s: (s != "ok", s))
    rows: list[list[str | Cell]] = []
    for cohort, part in slides.groupby("cohort", sort=True):
        n = part["status"].value_counts()
        cells: list[str | Cell] = [str(cohort), count(len(part))]
        for status in statuses:
            slides_with = int(n.get(status, 0))
            tone: Tone = "good" if status == "ok" else "bad" if slides_with else "muted"
            cells.append(Cell(count(slides_with) if slides_with else "–", tone=tone))
        cells.append(percent(1 - n.get("ok", 0) / len(part)))
        sources = part["mpp_source"].dropna().unique() if "mpp_source" in part else []
        cells.append(", ".join(sorted(str(s) for s in sources if s)) or "–")
        rows.append(cells)
    columns = ["Cohort", "Slides", *[s.replace("_", " ") for s in statuses], "Lost", "Resolution from"]
    return Table(
        columns,
        rows,
        caption="Status of the slides. A slide that cannot be used is listed with its reason; it is never replaced by "
        "white tiles.",
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
            pictures.append(Picture(embedded_jpeg(path, THUMBNAIL_PX), path.stem))
        except (OSError, ValueError) as reason:
            broken.append(f"qc/{path.name}: {reason}")
    blocks: list[Block] = [Heading("Thumbnails")]
    if pictures:
        which = "Blue squares are the encoded tiles."
        if len(paths) > most:
            which = f"{len(pictures)} of {count(len(paths))} thumbnails, evenly spaced by slide name. {which}"
        blocks.append(Gallery(pictures, which))
    if broken:
        blocks.append(Notice("Thumbnails that cannot be read", broken))
    return blocks


def tiles_histogram(slides: pd.DataFrame) -> Figure | None:
    """How many tiles the used slides have, stacked by cohort."""
    used = slides[(slides["status"] == "ok") & slides["n"].notna()]
    if used.empty:
        return None
    counts = used["n"].to_numpy(int)
    width = -(-(np.ptp(counts) + 1) // 24)  # whole tiles per bar, at most 24 bars
    edges = np.arange(counts.min(), counts.max() + width + 1, width) - 0.5
    centres = (edges[:-1] + edges[1:]) / 2
    data, tables = [], []
    for index, (cohort, part) in enumerate(used.groupby("cohort", sort=True)):
        slides_in, _ = np.histogram(part["n"].to_numpy(float), edges)
        data.append(
            {
                "type": "bar", "x": centres, "y": slides_in, "width": np.diff(edges) * 0.94,
                "name": text(cohort),
                "marker": {"color": SERIES[index % len(SERIES)], "opacity": 0.85},
                "customdata": np.stack([edges[:-1] + 0.5, edges[1:] - 0.5], axis=1),
                "hovertemplate": "%{customdata[0]}–%{customdata[1]} tiles: %{y} slides"
                "<extra>%{fullData.name}</extra>",
            }
        )  # fmt: skip
        tables.append(
            pd.DataFrame(
                {
                    "cohort": cohort,
                    "tiles_from": edges[:-1] + 0.5,
                    "tiles_to": edges[1:] - 0.5,
                    "slides": slides_in,
                }
            )
        )
    return Figure(
        "tiles-per-slide",
        "Tiles per slide",
        data,
        layout(
            "Tiles with tissue",
            "Slides",
            barmode="stack",
            yaxis={"rangemode": "tozero", "tickformat": "d"},
        ),
        "The height of a bar is the number of slides with that many tiles. Slides far to the left contain little "
        "tissue and little information; "
        "cohorts with different histograms differ in specimen size or magnification.",
        pd.concat(tables, ignore_index=True),
        height=330,
        wide=True,
    )
