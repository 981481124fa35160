"""Two pages to print: the verdict, one figure of the main task, the limits."""

from collections.abc import Sequence
from dataclasses import replace

from equipoise.platform.report.blocks import Block, Figures, Notice, Scores, Table, Text
from equipoise.platform.report.page import Page, PageSection, report_page
from equipoise.platform.report.run_files import RunFiles

#: Sections whose first figure stands for the main task, by its kind.
_FIGURE = {
    "binary": "classification",
    "multiclass": "classification",
    "regression": "regression",
    "survival": "survival",
}
#: Most items of a list, and rows of a table, so that two pages are enough.
_ITEMS, _ROWS = 5, 8


def summary_page(run: RunFiles) -> Page:
    """The report's own verdict, figure and limits, shortened; what is left out is counted."""
    page = report_page(run)
    parts = {part.id: part for part in page.sections}
    kept = [_short(parts["verdict"], (Scores, Text, Notice, Table))] if "verdict" in parts else []
    section = _FIGURE.get(run.tasks[0].kind, "") if run.tasks else ""
    if section in parts and (figure := _first_figure(parts[section].blocks)):
        kept.append(replace(parts[section], title=f"{run.tasks[0].name}", lead="", blocks=(figure,)))
    if "limits" in parts:
        kept.append(_short(parts["limits"], (Notice,)))
    return replace(page, sections=tuple(kept), kicker="Equipoise summary", compact=True)


def _first_figure(blocks: Sequence[Block]) -> Figures | None:
    found = next((block for block in blocks if isinstance(block, Figures) and block.items), None)
    return None if found is None else Figures(tuple(found.items[:2]))


def _short(part: PageSection, kinds: tuple[type, ...]) -> PageSection:
    blocks: list[Block] = []
    for block in part.blocks:
        if not isinstance(block, kinds) or (
            isinstance(block, Table) and any(isinstance(b, Table) for b in blocks)
        ):
            continue
        if isinstance(block, Notice):
            block = replace(block, items=_some(block.items))
        elif isinstance(block, Table):
            left = len(block.rows) - _ROWS
            more = f" {left} more rows are in the report." if left > 0 else ""
            block = replace(
                block, rows=tuple(block.rows[:_ROWS]), caption=f"{block.caption}{more}", folded=False
            )
        blocks.append(block)
    return replace(part, blocks=tuple(blocks))


def _some(items: Sequence[str]) -> tuple[str, ...]:
    left = len(items) - _ITEMS
    return tuple(items) if left <= 0 else (*items[:_ITEMS], f"{left} more in the report.")
