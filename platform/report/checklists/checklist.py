"""TRIPOD+AI and STARD-AI: items in our own words, and what the run says about each.

Collins GS et al., TRIPOD+AI statement, BMJ 2024;385:e078378. Sounderajah V et al., the STARD-AI reporting guideline,
Nat Med 2025;31:3283. Items are paraphrased and numbered as in transcriptions of the two checklists; the text that
counts is that of the statements.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from equipoise.datasets.atomic_io import atomic_path
from equipoise.platform.report.checklists.evidence import EVIDENCE, Evidence
from equipoise.platform.report.run_files import RunFiles

_HERE = Path(__file__).parent
#: File → name of the checklist and its source.
CHECKLISTS = {
    "tripod_ai": ("TRIPOD+AI", "Collins et al., BMJ 2024;385:e078378"),
    "stard_ai": ("STARD-AI", "Sounderajah et al., Nat Med 2025;31:3283"),
}
FILLED, PARTLY, OPEN = "from the run", "partly", "open"


@dataclass(frozen=True)
class Item:
    """An item with its answer; ``place`` is the section of the report."""

    number: str
    topic: str
    asks: str
    status: str
    answer: str
    place: str


def fill(name: str, run: RunFiles) -> list[Item]:
    """The items of a checklist with what the run says."""
    table = pd.read_csv(_HERE / f"{name}.csv", dtype=str, keep_default_na=False)
    items = []
    for row in table.to_dict("records"):
        ask: Callable[[RunFiles], Evidence | None] | None = (
            EVIDENCE[row["evidence"]] if row["evidence"] else None
        )
        found = ask(run) if ask is not None else None
        status, answer, place = OPEN, "", ""
        if found is not None:
            status, place = PARTLY if found.open else FILLED, found.place
            answer = f"{found.text} Open: {found.open}." if found.open else found.text
        items.append(Item(row["number"], row["topic"], row["asks"], status, answer, place))
    return items


def write_checklists(run: RunFiles, folder: Path) -> list[Path]:
    """``checklists/tripod_ai.csv`` and ``stard_ai.csv`` of a run folder."""
    paths = []
    (folder / "checklists").mkdir(exist_ok=True)
    for name in CHECKLISTS:
        table = pd.DataFrame([vars(item) for item in fill(name, run)])
        path = folder / "checklists" / f"{name}.csv"
        with atomic_path(path) as temporary:
            table.assign(synthetic=run.synthetic).to_csv(temporary, index=False)
        paths.append(path)
    return paths
