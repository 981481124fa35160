"""Folds and the leakage audit: training, inner validation and test patients."""

from typing import Any

import pandas as pd

from equipoise.platform.registry import entries
from equipoise.platform.report.blocks import Block, Cell, Heading, Notice, Section, Table, Text
from equipoise.platform.report.entries import SectionParams
from equipoise.platform.report.formatting import count, listed, number, percent, plural
from equipoise.platform.report.run_files import RunFiles, Task


def build(run: RunFiles, params: SectionParams) -> Section:
    """Sizes of the folds and the audit."""
    blocks: list[Block] = [*run.missing("manifest/splits.json", "manifest/leakage.csv")]
    if run.splits:
        blocks.append(_folds(run))
    if run.leakage is not None:
        blocks += [Heading("Leakage audit"), *_audit(run.leakage)]
    if run.table_batches:
        blocks += _table_batches(run.table_batches)
    return Section("Splits and leakage audit", _lead(run), blocks)


def _lead(run: RunFiles) -> str:
    use = "Test patients are used once, after training; epoch and threshold are chosen on inner validation patients."
    if not run.splits:
        return use
    repeats = len({f["repeat"] for f in run.splits})
    scheme = str((run.study.get("splits") or {}).get("scheme") or "")
    entry = entries("splits").get(scheme)
    how = f" ({scheme}: {entry.summary})" if entry else ""
    again = f" in {repeats} repeats" if repeats > 1 else ""
    return f"{plural(len(run.splits), 'fold')}{again}{how}. {use}"


def _folds(run: RunFiles) -> Table:
    patients = _patients(run)
    main = run.tasks[0] if run.tasks else None
    counted = patients is not None and main is not None and main.kind in ("binary", "survival")
    rows: list[list[str | Cell]] = []
    for fold in run.splits:
        cells: list[str | Cell] = [
            Cell(f"{fold['repeat']}-{fold['index']}", note=str(fold.get("title") or ""))
        ]
        cells += [count(len(fold[part])) for part in ("train", "val", "test")]
        if patients is not None:
            cells += _fold_cells(fold, patients, main if counted else None)
        rows.append(cells)
    columns = ["Fold", "Train", "Inner validation", "Test"]
    if patients is not None:
        what = "events" if main is not None and main.kind == "survival" else "positive"
        columns += [f"{main.name} {what}, train / val / test"] if counted and main is not None else []
        columns += ["Test cohorts", "Test sites"]
    return Table(columns, rows, caption="Patients per part of each fold.", numeric=frozenset([1, 2, 3]))


def _patients(run: RunFiles) -> pd.DataFrame | None:
    return None if run.patients is None else run.patients.set_index("patient")


def _fold_cells(fold: dict[str, Any], patients: pd.DataFrame, main: Task | None) -> list[str | Cell]:
    cells: list[str | Cell] = []
    if main is not None:
        column = f"{main.name}.event" if main.kind == "survival" else main.name
        if column in patients:
            of_part = [int(patients[column].reindex(fold[p]).sum()) for p in ("train", "val", "test")]
            few = min(of_part) < 5
            counts = " / ".join(count(n) for n in of_part)
            cells.append(
                Cell(counts, tone="warn" if few else "", note="fewer than 5 in a part" if few else "")
            )
        else:
            cells.append("–")
    test = patients.reindex(fold["test"])
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
        blocks.append(Notice("The audit failed: results of these folds must not be used", items, tone="bad"))
    else:
        blocks.append(
            Text(
                f"All {count(len(leakage))} checks passed: the parts of the folds do not overlap.",
                tone="good",
            )
        )
    rows: list[list[str | Cell]] = []
    for check, part in leakage.groupby("check", sort=False):
        overlap = pd.to_numeric(part["overlap"], errors="coerce").fillna(0)
        passed = bool(part["ok"].all())
        verdict = Cell("passed" if passed else "failed", tone="good" if passed else "bad")
        rows.append([str(check), count(len(part)), count(int(overlap.max())), verdict])
    blocks.append(
        Table(
            ["Check", "Folds", "Largest overlap", "Result"],
            rows,
            numeric=frozenset([1, 2]),
            caption="Computed from the written splits and from the slide files.",
        )
    )
    return blocks


def _table_batches(found: list[dict[str, Any]]) -> list[Block]:
    """Tables that tell apart who was prepared together, and every task by the group alone."""
    rows: list[list[str | Cell]] = [
        [
            table["modality"],
            table["reason"],
            str(len(table["groups"])),
            task["task"],
            task["metric"],
            number(task["value"], 3),
            number(task["chance"], 3),
            Cell("spoiled", tone="bad") if task["spoiled"] else Cell("not spoiled", tone="muted"),
        ]
        for table in found
        for task in table["tasks"]
    ]
    return [
        Heading("Tables that carry their batch"),
        Notice("The audit of the tables failed", [table["sentence"] for table in found], tone="bad"),
        Table(
            ["Table", "Found by", "Groups", "Task", "Metric", "By the group alone", "By chance", "Result"],
            rows,
            numeric=frozenset([2, 5, 6]),
            caption="A score of a spoiled task means something only if it is above what the group alone gives; metrics "
            "within a group are not affected. No transform removes this: prepare the table once for all patients.",
        ),
    ]
