"""Maps of slides: what they show, whether they passed their checks, tiles at both ends, genes and modalities."""

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pandas as pd

from equipoise.datasets.names import file_stem
from equipoise.platform.explain.captions import away, checks_line, method, towards
from equipoise.platform.explain.crops import crop_path
from equipoise.platform.explain.heatmap import PREVIEW
from equipoise.platform.explain.render import VIEWER
from equipoise.platform.explain.slide_picture import ends
from equipoise.platform.explain.tile_scores import TileScores
from equipoise.platform.report.blocks import (
    Block,
    Cell,
    Gallery,
    Heading,
    Notice,
    Picture,
    Section,
    Table,
    Text,
)
from equipoise.platform.report.embedded_pictures import embedded_jpeg, jpeg_uri
from equipoise.platform.report.entries import ExplainParams
from equipoise.platform.report.formatting import count, number, plural
from equipoise.platform.report.run_files import RunFiles
from equipoise.platform.report.sections.explain_tables import explain_tables
from equipoise.platform.report.style import Download

Maps = list[tuple[Path, TileScores]]

_TILE_PX = 112  # pixels of the side of an embedded tile


def build(run: RunFiles, params: ExplainParams) -> Section | None:
    """Previews, checks, tiles and tables; None where nothing was explained."""
    maps = _sorted(run)
    tables = explain_tables(run, params.rows)
    problems = [f"{name}: {why}" for name, why in run.problems.items() if name.startswith("explain/")]
    if not (maps or tables or problems):
        return None
    blocks: list[Block] = []
    if problems:
        blocks.append(Notice("Files that cannot be read", problems))
    if maps:
        blocks += [*_checks(maps), *_previews(run, maps, params.maps), *_tiles(run, maps, params.tiles)]
    return Section("What predictions rest on", _lead(maps), [*blocks, *tables])


def _sorted(run: RunFiles) -> Maps:
    """Maps by the study's order of tasks, then by name."""
    order = {task.name: at for at, task in enumerate(run.tasks)}
    return sorted(run.tile_scores, key=lambda item: (order.get(item[1].task, len(order)), str(item[0])))


def _lead(maps: Maps) -> str:
    if not maps:
        return "No slide has a map; the tables say what else predictions rest on."
    slides = len({scores.slide for _, scores in maps})
    failed = sum(bool(scores.failed) for _, scores in maps)
    verdict = f"{count(failed)} of them failed a check." if failed else "None of them failed a check."
    return f"{plural(len(maps), 'map')} of {plural(slides, 'slide')}, made from stored features. {verdict}"


def _checks(maps: Maps) -> list[Block]:
    """How many maps passed each check, by task, class and method."""
    groups: dict[tuple[str, str, str], list[TileScores]] = defaultdict(list)
    for _, scores in maps:
        groups[scores.task, scores.class_name, scores.method].append(scores)
    rows: list[list[str | Cell]] = []
    records = []
    for group in groups.values():
        first = group[0]
        names = dict.fromkeys(check.name for scores in group for check in scores.checks)
        if not names:
            rows.append(
                [first.title, method(first), Cell("not checked", tone="warn"), "–", count(len(group)), "–"]
            )
        for name in names:
            checks = [check for scores in group for check in scores.checks if check.name == name]
            passed = sum(check.passed for check in checks)
            cell = Cell(f"{passed} of {len(checks)}", tone="" if passed == len(checks) else "bad")
            values = [check.value for check in checks if np.isfinite(check.value)]
            median = number(float(np.median(values)), 2) if values else "–"
            rows.append([first.title, method(first), name.replace("_", " "), cell, count(len(group)), median])
    for _, scores in maps:
        for check in scores.checks:
            records.append(
                {"slide": scores.slide, "task": scores.task, "class": scores.class_name, "method": scores.method,
                 "check": check.name, "value": check.value, "low": check.low, "high": check.high,
                 "passed": check.passed, "reason": check.reason}
            )  # fmt: skip
    table = Table(
        ["Task", "Method", "Check", "Passed", "Maps", "Median value"],
        rows,
        caption="Checks of the maps. A map that fails one is no evidence of what the model looks at.",
        numeric=frozenset({3, 4, 5}),
        download=Download("map-checks.csv", pd.DataFrame(records)) if records else None,
    )
    failed = list(dict.fromkeys(
        f"{scores.title}, {method(scores)}, slide {scores.slide}: {check.name.replace('_', ' ')}: {check.reason}"
        for _, scores in maps for check in scores.failed
    ))  # fmt: skip
    more = [f"and {count(len(failed) - 8)} more in the table of checks"] if len(failed) > 8 else []
    notice = [Notice("Maps that failed a check", [*failed[:8], *more], tone="bad")] if failed else []
    return [*notice, Heading("Checks"), table]


def _previews(run: RunFiles, maps: Maps, most: int) -> list[Block]:
    drawn = [(path, scores) for path, scores in maps if path.with_suffix(PREVIEW).is_file()]
    if not most or not drawn:
        why = "Pictures are left out." if drawn else "No picture was drawn; 'equipoise explain' draws them."
        return [Text(f"{why} The scores are in explain/.", tone="muted")]
    chosen = _spread(drawn, most)
    pictures = [
        Picture(
            jpeg_uri(path.with_suffix(PREVIEW).read_bytes()),
            f"{scores.title}, {method(scores)}, slide {scores.slide}. {checks_line(scores)}",
            href=_link(run, path.parent / VIEWER, scores),
            alt=f"map of {scores.title} by {method(scores)}",
        )
        for path, scores in chosen
    ]
    if len(chosen) < len(drawn):
        which = f"{count(len(chosen))} of {plural(len(drawn), 'map')}, one slide after another."
    else:
        which = plural(len(drawn), "map") + "."
    read = (
        "Orange-red tiles push towards the class, a higher value or a higher risk, blue tiles away from it; in maps "
        "of one sign, darker is higher. A black frame marks the tile with the highest score."
    )
    caption = f"{which} {read}"
    if any(picture.href for picture in pictures):
        caption += " A picture opens the viewer of its slide, which lies beside this page."
    return [Heading("Maps"), Gallery(pictures, caption, large=True)]


def _spread(maps: Maps, most: int) -> Maps:
    """The first map of every slide, then the second, and so on, up to ``most``."""
    by_slide: dict[str, Maps] = defaultdict(list)
    for item in maps:
        by_slide[item[1].slide].append(item)

    def rounds() -> Iterator[tuple[Path, TileScores]]:
        for at in range(max(map(len, by_slide.values()))):
            yield from (items[at] for items in by_slide.values() if at < len(items))

    return [item for _, item in zip(range(most), rounds(), strict=False)]


def _tiles(run: RunFiles, maps: Maps, many: int) -> list[Block]:
    """The tiles at both ends of the first map of each task that has crops and has passed its checks."""
    blocks: list[Block] = []
    done: set[tuple[str, str]] = set()
    for path, scores in maps:
        if (scores.task, scores.class_name) in done or scores.failed or not many:
            continue
        top, bottom = ends(scores, many)
        shown = [
            (
                label,
                [
                    (at, crop)
                    for at in indices
                    if (crop := crop_path(path.parent / VIEWER, scores, at)).is_file()
                ],
            )
            for label, indices in ((towards(scores), top), (away(scores), bottom))
        ]
        if not any(crops for _, crops in shown):
            continue
        done.add((scores.task, scores.class_name))
        blocks.append(Heading(f"Tiles of {scores.title}"))
        for label, crops in shown:
            if crops:
                what = (
                    f"Tiles with the {'highest' if label == towards(scores) else 'lowest'} scores ({label})"
                )
                pictures = [
                    Picture(
                        embedded_jpeg(crop, _TILE_PX),
                        f"{scores.score[at]:.3g}",
                        alt=f"tile with the score {scores.score[at]:.3g}",
                    )
                    for at, crop in crops
                ]
                blocks.append(
                    Gallery(pictures, f"{what} of slide {scores.slide}, {method(scores)}: {scores.unit}.")
                )
    return blocks


def _link(run: RunFiles, page: Path, scores: TileScores) -> str:
    """The viewer's address from the page; none on a page with pseudonyms, where it would name the slide."""
    named = file_stem(scores.slide) == page.parent.name
    return quote(page.relative_to(run.folder).as_posix()) if named and page.is_file() else ""
