"""Folds and the leakage audit: who trained, who chose, who was tested."""

from typing import Any

import pandas as pd

from equipoise.platform.report.blocks import Block, Cell, Heading, Notice, Section, Table, Text
from equipoise.platform.report.entries import SectionParams
from equipoise.platform.report.formatting import count, listed, percent, plural
from equipoise.platform.report.run_files import RunFiles, Task

_SCHEMES = {
    "kfold": "patients are dealt to the folds, balanced by the main label",
    "site_preserved": "all patients of a site are in the same fold",
    "leave_one_cohort_out": "each fold tests one whole cohort",
    "monte_carlo": "each fold draws its own test patients",
}


def build(run: RunFiles, params: SectionParams) -> Section:
    """Sizes of the folds and the audit."""
    blocks: list[Block] = [*run.missing("manifest/splits.json", "manifest/leakage.csv")]
    if run.splits:
        blocks.append(_folds(run))
    if run.leakage is not None:
        blocks += [Heading("Leakage audit"), *_audit(run.leakage)]
    return Section("Splits and leakage audit", _lead(run), blocks)


def _lead(run: RunFiles) -> str:
    words = (
        "Test patients are used once, after training; inner validation patients choose epoch and threshold."
    )
    if not run.splits:
        return words
    repeats = len({f["repeat"] for f in run.splits})
    scheme = str((run.study.get("splits") or {}).get("scheme") or "")
    how = f" ({scheme}: {_SCHEMES[scheme]})" if scheme in _SCHEMES else ""
    again = f" in {repeats} repeats" if repeats > 1 else ""
    return f"{plural(len(run.splits), 'fold')}{again}{how}. {words}"


def _folds(run: RunFiles) -> Table:
    facts = _facts(run)
    main = run.tasks[0] if run.tasks else None
    counted = facts is not None and main is not None and main.kind in ("binary", "survival")
    rows: list[list[str | Cell]] = []
    for fold in run.splits:
        cells: list[str | Cell] = [f"{fold['repeat']}-{fold['index']}"]
        cells += [count(len(fold[part])) for part in ("train", "val", "test")]
        if facts is not None:
            cells += _fold_facts(fold, facts, main if counted else None)
        rows.append(cells)
    columns = ["Fold", "Train", "Inner validation", "Test"]
    if facts is not None:
        what = "events" if main is not None and main.kind == "survival" else "positive"
        columns += [f"{main.name} {what}, train / val / test"] if counted and main is not None else []
        columns += ["Test cohorts", "Test sites"]
    return Table(columns, rows, caption="Patients per part of each fold.", numeric=frozenset([1, 2, 3]))


def _facts(run: RunFiles) -> pd.DataFrame | None:
    return None if run.patients is None else run.patients.set_index("patient")


def _fold_facts(fold: dict[str, Any], facts: pd.DataFrame, main: Task | None) -> list[str | Cell]:
    cells: list[str | Cell] = []
    if main is not None:
        column = f"{main.name}.event" if main.kind == "survival" else main.name
        if column in facts:
            of_part = [int(facts[column].reindex(fold[p]).sum()) for p in ("train", "val", "test")]
            few = min(of_part) < 5
            words = " / ".join(count(n) for n in of_part)
            cells.append(
                Cell(words, tone="warn" if few else "", note="fewer than 5 in a part" if few else "")
            )
        else:
            cells.append("–")
    test = facts.reindex(fold["test"])
    cells.append(listed(sorted(str(c) for c in test["cohort"].dropna().unique()), 3))
    largest = test["site"].value_counts(normalize=True)
    share = f"largest {percent(float(largest.iloc[0]))}" if len(largest) else ""
    cells.append(Cell(count(len(largest)), note=share))
    return cells


def _audit(leakage: pd.DataFrame) -> list[Block]:
    blocks: list[Block] = []
    bad = leakage[~leakage["ok"]]
    if len(bad):
        items = [
            f"{r['check']}, fold {r['fold']}: {r['overlap']} in common" for _, r in bad.head(20).iterrows()
        ]
        blocks.append(
            Notice("The audit failed: results that rest on these folds must not be used", items, tone="bad")
        )
    else:
        blocks.append(
            Text(f"All {count(len(leakage))} checks passed: nothing is shared that must not be.", tone="good")
        )
    rows: list[list[str | Cell]] = []
    for check, part in leakage.groupby("check", sort=False):
        overlap = pd.to_numeric(part["overlap"], errors="coerce").fillna(0)
        fine = bool(part["ok"].all())
        verdict = Cell("passed" if fine else "failed", tone="good" if fine else "bad")
        rows.append([str(check), count(len(part)), count(int(overlap.max())), verdict])
    blocks.append(
        Table(
            ["Check", "Folds", "Largest overlap", "Result"],
            rows,
            numeric=frozenset([1, 2]),
            caption="Computed from the splits and from the slide files, not from the plan.",
        )
    )
    return blocks
