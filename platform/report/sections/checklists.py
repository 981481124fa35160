"""TRIPOD+AI and STARD-AI, filled from the run; what is left to the authors is open."""

import pandas as pd

from equipoise.platform.report.blocks import Block, Cell, Heading, Section, Table
from equipoise.platform.report.checklists.checklist import CHECKLISTS, FILLED, OPEN, Item, fill
from equipoise.platform.report.entries import SectionParams
from equipoise.platform.report.run_files import RunFiles
from equipoise.platform.report.style import Download


def build(run: RunFiles, params: SectionParams) -> Section:
    """One folded table per checklist, STARD-AI where something is classified."""
    blocks: list[Block] = []
    counts = []
    for name, (title, source) in CHECKLISTS.items():
        if name == "stard_ai" and not any(task.kind in ("binary", "multiclass") for task in run.tasks):
            continue
        items = fill(name, run)
        done, left = (sum(item.status == status for item in items) for status in (FILLED, OPEN))
        counts.append(
            f"{title}: {done} of {len(items)} items from the run, {len(items) - done - left} in part, {left} open"
        )
        blocks += [Heading(title), _table(name, source, items)]
    lead = f"{'; '.join(counts)}. A statement from the run is a start: whether it satisfies an item is for the authors."
    return Section("Reporting checklists", lead, blocks)


def _table(name: str, source: str, items: list[Item]) -> Table:
    rows: list[list[str | Cell]] = [
        [
            item.number,
            Cell(item.topic, note=item.asks),
            Cell(item.status, tone="" if item.status == FILLED else "warn"),
            item.answer or "–",
            item.place or "–",
        ]
        for item in items
    ]
    return Table(
        ["Item", "Topic", "Status", "What the run says", "Section"],
        rows,
        f"After {source}; items in our words, numbers as transcribed: check them against the statement.",
        download=Download(f"{name}.csv", pd.DataFrame([vars(item) for item in items])),
        folded=True,
    )
