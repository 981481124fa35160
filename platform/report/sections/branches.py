"""Branches: what each branch of a fused model knows alone, how their evidence compares, and what slowed them down."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from equipoise.platform.evaluation.metric_definitions import PRIMARY
from equipoise.platform.registry import entries
from equipoise.platform.report.blocks import (
    Block,
    Cell,
    Figures,
    Heading,
    Notice,
    Section,
    Table,
    Text,
    figures_with,
)
from equipoise.platform.report.entries import SectionParams
from equipoise.platform.report.formatting import (
    count,
    estimate,
    interval,
    label,
    listed,
    number,
    p_value,
    percent,
)
from equipoise.platform.report.metric_rows import chance_level, internal
from equipoise.platform.report.run_files import RunFiles, Task
from equipoise.platform.report.sections.balancing import over_folds
from equipoise.platform.report.sections.training import best_epoch
from equipoise.platform.report.style import SERIES, Download, Figure, band, fade, layout, line, slug, text

_RHO, _COEFFICIENT = "rho/", "coefficient/"
#: Ticks of a logarithmic axis whose values are seldom far from 1.
_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 2, 3, 5, 10, 20, 50, 100)
#: A coefficient at least this close to 1 has slowed nothing.
_UNSLOWED = 1e-6


def build(run: RunFiles, params: SectionParams) -> Section | None:
    """Ratios, coefficients and the branches' own scores; nothing for a model without branches."""
    names = _branches(run.histories)
    if len(names) < 2:
        return None
    figures = [ratio_curves(run.histories, names)]
    if any(_slowed(table).any() for table in run.histories.values()):
        figures.append(coefficient_curves(run.histories, names))
    blocks: list[Block] = []
    if remarks := branch_remarks(run):
        blocks.append(Notice("Findings about the branches", remarks))
    blocks.append(Figures([figure for figure in figures if figure is not None]))
    blocks.append(_balance_table(run.histories, names))
    if run.branches is None:
        blocks.append(_without_scores(run))
    for task in run.tasks:
        blocks += _task(run, task, names)
    return Section("Branches", _lead(run, names), blocks)


def _branches(histories: Mapping[str, pd.DataFrame]) -> list[str]:
    """Branches whose balance was recorded, in the order of the model."""
    columns = dict.fromkeys(str(c) for table in histories.values() for c in table if str(c).startswith(_RHO))
    return [column.removeprefix(_RHO) for column in columns]


def _lead(run: RunFiles, names: Sequence[str]) -> str:
    """Fusion and modulation, in one sentence."""
    model = run.study.get("model") or {}
    fusion, modulation = model.get("fusion"), model.get("modulation")
    if not fusion or not modulation:
        return f"The model fuses the branches {listed(list(names))}."
    how = "no modulation" if _attribute(run, "neutral") else f"modulation {modulation}"
    return f"The model fuses the branches {listed(list(names))} by {fusion}, with {how}."


def _attribute(run: RunFiles, name: str) -> bool:
    """What the entry of the run's modulation says of itself; False for one that is not installed here."""
    entry = entries("modulations").get(str((run.study.get("model") or {}).get("modulation", "")))
    return bool(entry is not None and entry.attribute(name))


def branch_remarks(run: RunFiles) -> list[str]:
    """What must not be overlooked: branches at chance, a fusion without gain, a modulation that did nothing."""
    found = []
    if sentence := _unmodulated(run):
        found.append(sentence)
    for task in run.tasks:
        for row in _rows(run, task.name):
            value, low, high = (row[key] for key in ("value", "low", "high"))
            chance = chance_level(run, task.name, row["metric"])
            if chance is not None and math.isfinite(low) and low <= chance <= high:
                found.append(
                    f"{task.name}: the branch {row['predictor']} alone cannot be told apart from chance "
                    f"({label(row['metric'])} {number(value, 2)}, {interval(low, high, 2)})."
                )
            if math.isfinite(row["lead_low"]) and row["lead_low"] <= 0:
                how = "worse than" if row["lead_high"] < 0 else "not clearly better than"
                found.append(
                    f"{task.name}: the fused model is {how} its branch {row['predictor']} alone "
                    f"(difference {number(row['lead'], 3)}, {interval(row['lead_low'], row['lead_high'], 3)})."
                )
    return found


def _unmodulated(run: RunFiles) -> str:
    """That a modulation which slows branches never did; nothing otherwise."""
    if not _attribute(run, "slows"):
        return ""
    tables = [t for t in run.histories.values() if any(str(c).startswith(_COEFFICIENT) for c in t)]
    still = [not _slowed(table).any() for table in tables]
    if not any(still):
        return ""
    name = (run.study.get("model") or {}).get("modulation")
    where = "in any fold" if all(still) else f"in {sum(still)} of {len(still)} folds"
    return (
        f"{name} never slowed a branch {where}: every coefficient stayed at 1, so the model trained there is the "
        "one without modulation."
    )


def _slowed(table: pd.DataFrame) -> pd.Series:
    """In which epochs of a fold any branch was slowed."""
    factors = table[[c for c in table if str(c).startswith(_COEFFICIENT)]]
    return (factors < 1 - _UNSLOWED).any(axis=1)


def _without_scores(run: RunFiles) -> Text:
    """Why there is no table of scores."""
    members = int((run.study.get("training") or {}).get("members") or 1)
    reason = (
        "the members of an ensemble have no common scale for their branches"
        if members > 1
        else "run 'equipoise evaluate'"
    )
    return Text(f"Scores of the branches for test patients were not recorded: {reason}.", tone="muted")


def _task(run: RunFiles, task: Task, names: Sequence[str]) -> list[Block]:
    """Branches beside the fused model, in the test folds and in external cohorts; and over the epochs."""
    figure = score_curves(run.histories, names, task)
    table = _scores_table(run, task)
    if figure is None and table is None:
        return []
    return [Heading(task.name), *figures_with([] if figure is None else [figure], table)]


def _scores_table(run: RunFiles, task: Task) -> Table | None:
    """The main metric of the fused model and of each branch alone, with the paired difference."""
    rows = _rows(run, task.name)
    if not rows:
        return None
    metric = label(rows[0]["metric"])
    fused = internal(run, task.name, rows[0]["metric"])
    whole = ["–", ""] if fused is None else [estimate(fused), ""]
    lines: list[list[str | Cell]] = [
        [Cell("fused model", note="test folds"), *whole, "–" if fused is None else count(fused["n"])]
    ]
    for row in rows:
        where = "test folds" if row["role"] == "test" else f"external {row['cohort']}"
        name = Cell(f"{row['predictor']} alone", note=where)
        lines.append([name, estimate(row), _difference(row), count(row["n"])])
    level = f"{percent(run.confidence)} CI"
    return Table(
        ["", f"{metric} ({level})", "Fused minus branch", "Patients"],
        lines,
        "What each branch of the fused model says alone: its term of the sum, or its own head where the fusion is no "
        "sum. Patients who lack the data of a branch are in the table; the branch ranks them equally. Fused minus "
        "branch: the paired difference on the same patients and folds. A model of one modality trained by "
        "itself can be better than a branch, which was trained in company.",
        numeric=frozenset([1, 2, 3]),
        download=None if run.branches is None else Download(f"branches-{slug(task.name)}.csv", run.branches),
    )


def _difference(row: Mapping[str, Any]) -> Cell:
    if not math.isfinite(row["lead"]):
        return Cell("–", tone="muted", note=row["note"])
    if not math.isfinite(row["lead_low"]):
        return Cell(number(row["lead"]), note=row["note"])
    tone = "good" if row["lead_low"] > 0 else "bad" if row["lead_high"] < 0 else ""
    bounds = interval(row["lead_low"], row["lead_high"])
    return Cell(f"{number(row['lead'])} ({bounds})", tone=tone, note=p_value(row["p"]))  # type: ignore[arg-type]


def _rows(run: RunFiles, task: str) -> list[dict[str, Any]]:
    """Rows of the branches of a task: test folds, then external cohorts."""
    if run.branches is None:
        return []
    of_task = run.branches[run.branches["task"] == task]
    whole = of_task[(of_task["role"] == "test") & (of_task["cohort"] == "all")]
    outside = of_task[(of_task["role"] == "external") & ~of_task["cohort"].isin(["all", "pooled"])]
    return [*whole.to_dict("records"), *outside.to_dict("records")]


def _balance_table(histories: Mapping[str, pd.DataFrame], names: Sequence[str]) -> Table:
    """Ratio and coefficient at the epochs that were kept, and how often a branch was slowed; means over folds."""
    rows: list[list[str | Cell]] = []
    for name in names:
        kept, lowest, slowed = [], [], []
        for table in histories.values():
            ratio, factor = table.get(_RHO + name), table.get(_COEFFICIENT + name)
            if ratio is not None and (where := _kept(table)) is not None:
                kept.append(float(ratio.loc[where]))
            if factor is not None and factor.notna().any():
                lowest.append(float(factor.min()))
                slowed.append(float((factor.dropna() < 1 - _UNSLOWED).mean()))
        ratios = [value for value in kept if math.isfinite(value)]
        rows.append(
            [
                name,
                number(_mean(ratios), 2) if ratios else "–",
                f"{number(min(ratios), 2)} to {number(max(ratios), 2)}" if len(ratios) > 1 else "–",
                number(min(lowest), 2) if lowest else "–",
                percent(_mean(slowed)) if slowed else "–",
            ]
        )
    return Table(
        [
            "Branch",
            "ρ at the epoch kept",
            "Folds, min–max",
            "Lowest coefficient",
            "Epochs in which it was slowed",
        ],
        rows,
        "ρ is the evidence that a branch carries for training patients over that of the other; means over the folds. A "
        "coefficient multiplies what the branch learns in a step.",
        numeric=frozenset([1, 2, 3, 4]),
    )


def _kept(table: pd.DataFrame) -> int | None:
    monitored = table.get("monitor", table.get("val_loss"))
    if monitored is None or monitored.isna().all():
        return None
    return best_epoch(table, str(monitored.name))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def ratio_curves(histories: Mapping[str, pd.DataFrame], names: Sequence[str]) -> Figure | None:
    """ρ of every branch over the epochs: mean and range of the folds, on a logarithmic axis if all are positive."""
    return _curves(
        histories,
        names,
        _RHO,
        slug_="branches-ratio",
        title="Ratio ρ of the branches over the epochs",
        axis="ρ",
        how="Above 1 a branch carries more of the evidence for the training patients than the other, and a modulation "
        "slows it. The dotted line marks balance.",
        log=True,
    )


def coefficient_curves(histories: Mapping[str, pd.DataFrame], names: Sequence[str]) -> Figure | None:
    """Coefficient of every branch over the epochs: mean and range of the folds."""
    return _curves(
        histories,
        names,
        _COEFFICIENT,
        slug_="branches-coefficient",
        title="Coefficients of the branches over the epochs",
        axis="Coefficient",
        how="What multiplies the learning of a branch: at 1 it learns at the full rate, near 0 it stands still.",
        log=False,
    )


def _curves(
    histories: Mapping[str, pd.DataFrame],
    names: Sequence[str],
    prefix: str,
    *,
    slug_: str,
    title: str,
    axis: str,
    how: str,
    log: bool,
) -> Figure | None:
    data: list[dict[str, Any]] = []
    tables = []
    for index, name in enumerate(names):
        table = over_folds(histories, prefix + name)
        if table.empty:
            continue
        tables.append(table.assign(branch=name))
        colour = SERIES[index % len(SERIES)]
        hover = f"{text(name)}, epoch %{{x}}: %{{y:.3f}}<extra></extra>"
        data += band(
            table["epoch"], table["low"], table["high"], colour, f"{text(name)}, range", showlegend=False
        )
        data.append(line(table["epoch"], table["mean"], text(name), colour, 2, hovertemplate=hover))
    if not tables:
        return None
    whole = pd.concat(tables, ignore_index=True)[["branch", "epoch", "mean", "low", "high", "folds"]]
    balance = {
        "type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": 1, "y1": 1,
        "line": {"dash": "dot", "width": 1, "color": fade("#22303c", 0.6)},
    }  # fmt: skip
    positive = log and bool((whole["low"] > 0).all())
    y: dict[str, Any] = {}
    if positive:
        ticks = [tick for tick in _TICKS if whole["low"].min() / 1.1 <= tick <= whole["high"].max() * 1.1]
        y = {"type": "log", "tickvals": ticks, "ticktext": [f"{tick:g}" for tick in ticks]}
    if not log:
        y = {"range": [-0.03, 1.05]}
    return Figure(
        slug_,
        title,
        data,
        layout("Epoch", axis, yaxis=y, shapes=[balance]),
        f"Each line is the mean over the folds that reached the epoch; the shade is their range. {how}",
        whole,
        height=330,
    )


def score_curves(histories: Mapping[str, pd.DataFrame], names: Sequence[str], task: Task) -> Figure | None:
    """Each branch's own score on inner validation patients over the epochs."""
    metric = PRIMARY.get(task.kind, "")
    key = "c" if task.kind == "survival" else metric
    columns = dict.fromkeys(
        str(c) for table in histories.values() for c in table if str(c).startswith(f"{key}/{task.name}/")
    )
    order = {name: k for k, name in enumerate(names)}
    found = sorted((c.rpartition("/")[2] for c in columns), key=lambda name: order.get(name, len(order)))
    data: list[dict[str, Any]] = []
    tables = []
    for index, name in enumerate(found):
        table = over_folds(histories, f"{key}/{task.name}/{name}")
        if table.empty:
            continue
        tables.append(table.assign(branch=name))
        hover = f"{text(name)}, epoch %{{x}}: %{{y:.3f}}<extra></extra>"
        colour = SERIES[index % len(SERIES)]
        data.append(line(table["epoch"], table["mean"], text(name), colour, 2, hovertemplate=hover))
    if not tables:
        return None
    return Figure(
        slug("branches-score", task.name),
        f"{label(metric)} of each branch alone, {task.name}",
        data,
        layout("Epoch", f"{label(metric)}, inner validation"),
        "On inner validation patients who have the data of the branch; means over the folds that reached the epoch, so "
        "lines jump where a fold has ended. These patients choose the epoch, so its value is slightly too good; the "
        "table is on test patients.",
        pd.concat(tables, ignore_index=True)[["branch", "epoch", "mean", "low", "high", "folds"]],
        height=330,
    )
