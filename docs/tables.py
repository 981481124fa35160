"""Tables of measured figures in pages, written from the results of the benchmarks; a test holds them up to date.

A page says where a table stands by a pair of comments, ``<!-- table: NAME -->`` and ``<!-- end of table -->``; the
function of that name in :data:`TABLES` makes it from ``benchmarks/results``. Without the result a page says which
command measures it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

PAGES = Path(__file__).parent
RESULTS = PAGES.parent / "benchmarks" / "results"
PLACE = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end of table -->)", re.DOTALL)


def with_tables(page: str) -> str:
    """A page with its tables written anew."""
    return PLACE.sub(lambda found: f"{found[1]}\n{TABLES[found[2]]()}\n\n{found[3]}", page)


def pages() -> list[Path]:
    """Pages that have tables."""
    return [page for page in sorted(PAGES.glob("*.md")) if PLACE.search(page.read_text(encoding="utf-8"))]


def result(name: str) -> Mapping[str, Any] | None:
    """What a benchmark wrote; None if it has not run."""
    file = RESULTS / f"{name}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def not_measured(name: str) -> str:
    """The line in place of a table that nobody measured."""
    return f"Not measured yet: `python -m benchmarks.{name}`."


def markdown(headers: list[str], rows: list[list[str]]) -> str:
    """A table."""
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def share(value: float | None) -> str:
    """``.875``."""
    return "–" if value is None else f"{value:.3f}".replace("0.", ".", 1)


def signed(value: float) -> str:
    """``+.036``, ``−.010``."""
    return ("−" if value < 0 else "+") + share(abs(value))


def interval(low: float, high: float, write: Callable[[float], str] = share) -> str:
    """``[.851, .896]``."""
    return f"[{write(low)}, {write(high)}]"


def tcga_survival() -> str:
    """Every row of both cohorts, beside clinical."""
    found = result("tcga_survival")
    if found is None:
        return not_measured("tcga_survival")
    rows = []
    for cohort, table in found["cohorts"].items():
        for name, row in table.items():
            harrell, uno, apart = row["harrell"], row["uno"], row["minus_clinical"]
            of_clinical = name == "clinical"
            rows.append(
                [
                    cohort,
                    name,
                    f"{share(harrell['c'])} ± {share(harrell['fold_sd'])}",
                    interval(harrell["low"], harrell["high"]),
                    interval(harrell["low_procedure"], harrell["high_procedure"]),
                    share(uno["c"]),
                    "" if of_clinical else signed(apart["difference"]),
                    "" if of_clinical else interval(apart["low"], apart["high"], signed),
                ]
            )
    headers = [
        "cohort",
        "model",
        "C ± fold sd",
        "these models",
        "the procedure",
        "Uno's C",
        "− clinical",
        "95 %",
    ]
    return markdown(headers, rows)


def difference_of(row: Mapping[str, Any], key: str) -> list[str]:
    """A paired difference and its interval; empty for the row that the others are compared with."""
    apart = row.get(key)
    return [signed(apart["difference"]), interval(apart["low"], apart["high"], signed)] if apart else ["", ""]


def mixup() -> str:
    """Every way of training an adapter, on pseudo-bulk of real cells."""
    found = result("mixup")
    if found is None:
        return not_measured("mixup")
    rows = []
    for name, row in found["methods"].items():
        scores = [share(row[key]) for key in ("r_100", "r_10", "r_1", "type_r", "tv_100")]
        rows.append([name, *scores, *difference_of(row, "against_none")])
    headers = ["trained on", "r, 100 cells", "10 cells", "1 cell", "r by type", "TV", "− none", "95 %"]
    return markdown(headers, rows)


def mixup_survival() -> str:
    """What adapters do to the C-index of built-in cohorts."""
    found = result("mixup_survival")
    if found is None:
        return not_measured("mixup_survival")
    rows = []
    for name, row in found["rows"].items():
        scores = [share(row["c"]), share(row.get("r_100"))]
        rows.append([name, *scores, *difference_of(row, "against_encoder_alone")])
    return markdown(["SYNTHETIC", "C", "r, 100 cells", "C − encoder alone", "95 %"], rows)


#: Name in a page → its table.
TABLES: dict[str, Callable[[], str]] = {
    "tcga_survival": tcga_survival,
    "mixup": mixup,
    "mixup_survival": mixup_survival,
}
