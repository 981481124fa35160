"""The page of a leaderboard: order of the runs, all pairs compared, paired differences, and limits of the
comparison."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from equipoise.platform.evaluation.comparison import why_no_ranking
from equipoise.platform.evaluation.leaderboard import Leaderboard
from equipoise.platform.evaluation.metric_definitions import CHANCE_LEVEL, PRIMARY
from equipoise.platform.evaluation.multiple_comparisons import AllPairs
from equipoise.platform.evaluation.samples import ALL, FOLD_MODELS, MODEL, POOLED
from equipoise.platform.report.baseline_rows import baseline_rows
from equipoise.platform.report.blocks import Block, Cell, Figures, Heading, Notice, Section, Table, Text, Tone
from equipoise.platform.report.comparison_figures import differences_figure
from equipoise.platform.report.forest import forest
from equipoise.platform.report.formatting import (
    count,
    estimate,
    interval,
    label,
    listed,
    number,
    p_value,
    percent,
    plural,
)
from equipoise.platform.report.metric_rows import ORDER
from equipoise.platform.report.page import Page, PageSection, installed_version
from equipoise.platform.report.run_files import RunFiles
from equipoise.platform.report.style import Download, slug

Row = dict[str, Any]

#: Largest number of runs for which a forest plot shows test folds and external cohorts together.
_MOST_SIDE_BY_SIDE = 8


def leaderboard_page(
    board: Leaderboard, runs: Mapping[str, RunFiles], prefix: str, remarks: Sequence[str] = ()
) -> Page:
    """The page of a leaderboard.

    Parameters
    ----------
    board
        The comparison.
    runs
        Name → run folder, for the details of each run.
    prefix
        Prefix of the names of tables to download (``SYNTHETIC-``).
    remarks
        What must be said about runs that are not compared.
    """
    sections = {
        "ranking": _ranking(board, runs, prefix, remarks),
        "pairs": _pairs(board, prefix),
        "tasks": _tasks(board),
        "differences": _differences(board, prefix),
        "metrics": _metrics(board),
        "runs": _runs(board, runs),
    }
    first_run = next(iter(runs.values()))
    return Page(
        title=f"Leaderboard of {plural(len(board.candidates), 'run')}",
        synthetic=any(run.synthetic for run in runs.values()),
        version=installed_version(first_run),
        meta=(
            ("Runs", count(len(board.candidates))),
            ("Tasks", ", ".join(board.tasks)),
            ("Baseline", board.baseline or "–"),
        ),
        sections=tuple(PageSection(name, s.title, s.lead, tuple(s.blocks)) for name, s in sections.items()),
        kicker="Equipoise leaderboard",
    )


def _ranking(
    board: Leaderboard, runs: Mapping[str, RunFiles], prefix: str, remarks: Sequence[str]
) -> Section:
    primary = _primary(board)
    datasets = list(dict.fromkeys((r["task"], r["role"], r["cohort"]) for r in primary))
    rows: list[list[str | Cell]] = []
    for position, name in enumerate(board.order, start=1):
        metadata = next(c.metadata for c in board.candidates if c.name == name)
        mark = " (baseline)" if name == board.baseline else ""
        cells: list[str | Cell] = [
            str(position),
            Cell(name + mark, note="SYNTHETIC" if runs[name].synthetic else ""),
            Cell(str(metadata.get("balancing", "")), note=str(metadata.get("model", ""))),
            *_rank_cells(board, name),
        ]
        for task, role, cohort in datasets:
            row = next(
                r
                for r in primary
                if (r["method"], r["task"], r["role"], r["cohort"]) == (name, task, role, cohort)
            )
            rank = "" if pd.isna(row["rank"]) else f"rank {row['rank']:g}"
            cells.append(Cell(estimate(row), note=rank, tone="" if pd.notna(row["value"]) else "muted"))
        rows.append(cells)
    rows += baseline_rows(runs, datasets)
    level = percent(board.params.confidence)
    columns = ["", "Run", "Balancing, model", "Mean rank", "May be the best"]
    columns += [
        f"{task}, {label(PRIMARY[board.tasks[task]])}, {_dataset(role, cohort)}"
        for task, role, cohort in datasets
    ]
    table = Table(
        columns,
        rows,
        caption="Mean rank in the main metrics of the tasks on the test folds, with the ranks that the comparison of "
        f"all pairs leaves possible. May be the best: not excluded at the {percent(1 - board.params.confidence)} "
        f"level in the mean over the tasks. Metrics with {level} intervals for these models; ranks of external "
        "cohorts are not part of the mean rank. Rows in grey without a rank are baselines on the same patients (linear "
        "models of what is known without the runs' models), computed with the first run that has them.",
        numeric=frozenset([3, *range(5, len(columns))]),
        download=Download(f"{prefix}leaderboard.csv", board.table),
    )
    return Section("Ranking", _verdict(board), [table, *_cautions(board, runs, remarks)])


def _rank_cells(board: Leaderboard, name: str) -> list[str | Cell]:
    """Mean rank with the ranks that are possible, and whether the run may be the best."""
    if pd.isna(board.mean_ranks[name]):
        return ["–", "–"]
    mean = number(board.mean_ranks[name], 2)
    if board.overall is None:
        return [mean, "–"]
    index = board.overall.names.index(name)
    low, high = board.overall.rank_low[index], board.overall.rank_high[index]
    may = bool(board.overall.may_be_best[index])
    return [
        Cell(mean, note=f"rank {low}" if low == high else f"ranks {low} to {high} possible"),
        Cell("yes" if may else "no", tone="good" if may else ""),
    ]


def _verdict(board: Leaderboard) -> str:
    """One or two sentences: the first run, and which runs cannot be excluded as the best."""
    if pd.isna(board.mean_ranks[board.best]):
        return "No task has a value of every run, so there is no order."
    first = f"{board.best} has the best mean rank ({number(board.mean_ranks[board.best], 2)})"
    if board.overall is None:
        return f"{first}; the runs could not be compared, because a metric has no interval."
    names = board.overall.best_set
    if len(names) == len(board.order):
        return f"{first}, but no run can be excluded as the best."
    if len(names) == 1:
        return f"{first}, and every other run can be excluded as the best."
    return (
        f"{first}; {count(len(names))} of {plural(len(board.order), 'run')} cannot be excluded as the best: "
        + (f"{listed(names)}.")
    )


def _cautions(board: Leaderboard, runs: Mapping[str, RunFiles], remarks: Sequence[str]) -> list[Block]:
    blocks: list[Block] = []
    if caution := pairs_caution(board):
        blocks.append(Notice("Limits of this comparison", caution))
    notes = list(remarks)
    if skipped := sorted(
        {t for c in board.candidates for t in c.predictions["task"].unique()} - set(board.tasks)
    ):
        notes.append(f"tasks that are not in every run and are not ranked: {', '.join(skipped)}")
    settings = {name: (run.study.get("evaluation") or {}) for name, run in runs.items()}
    first = next(iter(settings))
    if other := [name for name, value in settings.items() if value != settings[first]]:
        notes.append(
            f"the evaluation settings of {first} are used for all runs; those of {listed(other)} differ"
        )
    if mixed := {run.synthetic for run in runs.values()} == {True, False} and [
        n for n, r in runs.items() if r.synthetic
    ]:
        notes.append(f"SYNTHETIC runs among real ones: {listed(list(mixed))}")
    return [*blocks, *([Notice("Remarks", notes, tone="")] if notes else [])]


def pairs_caution(board: Leaderboard) -> list[str]:
    """How large a difference these patients can show, in sentences."""
    lines = []
    for task, pairs in board.pairs.items():
        if pd.notna(smallest := pairs.smallest_detectable):
            n = int(board.estimates.loc[board.estimates["task"] == task, "n"].max())
            several = len(pairs.names)
            which = "the two runs" if several == 2 else f"two of these {count(several)} runs"
            lines.append(
                f"{task}: with {count(n)} patients {which} are told apart only if their "
                f"{label(PRIMARY[board.tasks[task]])} differs by about {number(smallest)} or more."
            )
    if lines:
        lines.append(
            "For comparison, in simulated studies of 200 patients (40 positive) one of sixteen methods that was "
            "truly ahead by .18 in AUROC was told apart from about a fifth of the others, and one ahead by .07 from "
            "fewer than 1 %. The absence of a difference does not prove equality; another training seed would move "
            "the numbers too."
        )
    return lines


def _pairs(board: Leaderboard, prefix: str) -> Section:
    """All pairs of runs as matrices of corrected p, the runs that may be the best, and why there is no rank test."""
    blocks: list[Block] = []
    tables = dict(board.pairs)
    if board.overall is not None and len(tables) > 1:
        tables = {"Mean over the tasks": board.overall} | tables
    for name, pairs in tables.items():
        blocks.append(Heading(name))
        blocks.append(Text(_pairs_sentence(pairs)))
        blocks.append(_matrix(name, pairs, board, prefix))
    if not blocks:
        blocks.append(Text("No main metric has an interval in two runs.", tone="muted"))
    blocks.append(Notice("Why there is no Friedman test", [why_no_ranking(1)], tone=""))
    lead = (
        "Every pair of runs on the same test patients, with p corrected for all pairs (max-T over influence values), "
        "so that it holds for the best run too, which was chosen by the same results."
    )
    return Section("All pairs", lead, blocks)


def _pairs_sentence(pairs: AllPairs) -> str:
    total = len(pairs.names) * (len(pairs.names) - 1) // 2
    names = pairs.best_set
    verb = "pair differs" if pairs.separated == 1 else "pairs differ"
    best = "every run" if len(names) == len(pairs.names) else listed(names, 8)
    return (
        f"{count(pairs.separated)} of {count(total)} {verb} at the {percent(pairs.alpha)} level; not excluded as the "
        f"best: {best}."
    )


def _matrix(name: str, pairs: AllPairs, board: Leaderboard, prefix: str) -> Table:
    order = [n for n in board.order if n in pairs.names]
    table = pairs.matrix().loc[order, order]
    lines: list[list[str | Cell]] = []
    for i, row in enumerate(order):
        cells: list[str | Cell] = [f"{i + 1}  {row}"]
        for column in order:
            p = table.loc[row, column]
            if row == column:
                cells.append(Cell("", tone="muted"))
            else:
                tone: Tone = "good" if p < pairs.alpha else ""
                cells.append(Cell(p_value(p).removeprefix("p = ").removeprefix("p "), tone=tone))
        lines.append(cells)
    return Table(
        ["Run", *(str(i + 1) for i in range(len(order)))],
        lines,
        caption=f"{name}: p of each pair, corrected for all pairs of the table",
        numeric=frozenset(range(1, len(order) + 1)),
        download=Download(f"{prefix}pairs-{slug(name)}.csv", table.rename_axis("method").reset_index()),
        folded=len(order) > 6,
    )


def _tasks(board: Leaderboard) -> Section:
    """A forest plot per task."""
    blocks: list[Block] = []
    small = len(board.candidates) <= _MOST_SIDE_BY_SIDE
    for task, kind in board.tasks.items():
        metric = PRIMARY[kind]
        blocks.append(Heading(task))
        of_task = [r for r in _primary(board) if r["task"] == task]
        datasets = list(dict.fromkeys((r["role"], r["cohort"]) for r in of_task))
        for group in [datasets] if small else [[dataset] for dataset in datasets]:
            rows = [{**r, "name": _row_name(r, len(group) > 1), "n_pos": None, "method": r["how"]}
                    for dataset in group for r in of_task if (r["role"], r["cohort"]) == dataset]  # fmt: skip
            figure = forest(
                rows,
                f"{task} {_dataset(*group[0])}",
                metric,
                CHANCE_LEVEL.get(metric),
                board.params.confidence,
                what="run" if len(group) > 1 else f"run, {_dataset(*group[0])}",
                overlap="do not show a difference between runs; the paired differences below are more sensitive",
            )
            blocks += [Figures([figure])] if figure else []
    return Section("Single tasks", "The main metric of each task with its interval, run by run.", blocks)


def _differences(board: Leaderboard, prefix: str) -> Section:
    blocks: list[Block] = []
    if board.best == board.baseline or board.baseline is None:
        references = [board.best]
    else:
        references = [board.baseline, board.best]
    for reference in references:
        title = "the baseline" if reference == board.baseline else "the best mean rank"
        blocks.append(Heading(f"Against {reference}, {title}"))
        if reference == board.best and reference != board.baseline:
            blocks.append(
                Text("The best run was chosen by the same results; p over all pairs takes this into account.")
            )
        rows = _difference_rows(board, reference)
        figures = []
        for task, kind in board.tasks.items():
            internal = [r for r in rows if r["task"] == task and r["role"] == "test"]
            figures.append(
                differences_figure(internal, task, PRIMARY[kind], reference, board.params.confidence)
            )
        if drawn := [f for f in figures if f is not None]:
            blocks.append(Figures(drawn))
        blocks.append(_difference_table(rows, reference, board, prefix))
    lead = (
        "Run minus reference on the same patients, from paired influence values (over three repeats or more: the "
        "corrected resampled t); silhouettes by the paired bootstrap."
    )
    return Section("Paired differences", lead, blocks)


def _difference_rows(board: Leaderboard, reference: str) -> list[Row]:
    """Primary metrics of shared tasks, runs in the order of the leaderboard."""
    primary = {task: PRIMARY[kind] for task, kind in board.tasks.items()}
    table = board.differences
    keep = (table["reference"] == reference) & (table["class"] == "") & (table["predictor"] == MODEL)
    keep &= table["metric"] == table["task"].map(primary)
    keep &= (table["role"] == "test") == (
        table["cohort"] == ALL
    )  # all test folds, external cohorts one by one
    rows = (
        table[keep]
        .assign(position=table["run"].map(board.order.index))
        .sort_values("position", kind="stable")
    )
    return rows.to_dict("records")


def _difference_table(rows: list[Row], reference: str, board: Leaderboard, prefix: str) -> Table:
    every = board.differences[board.differences["reference"] == reference]
    lines: list[list[str | Cell]] = []
    for r in rows:
        tone: Tone = "good" if pd.notna(r["p_pairs"]) and r["p_pairs"] < 1 - board.params.confidence else ""
        lines.append(
            [
                r["run"],
                f"{r['task']}, {label(r['metric'])}",
                _dataset(r["role"], r["cohort"]),
                f"{number(r['difference'])} ({interval(r['low'], r['high'])})",
                Cell(p_value(r["p"]), tone="muted"),
                Cell(p_value(r["p_pairs"]), tone=tone),
                p_value(r["p_joint"]),
                Cell(r["method"], note=r["note"], tone="muted"),
            ]
        )
    return Table(
        [
            "Run",
            "Task and metric",
            "Patients",
            f"Difference to {reference}",
            "p of this pair",
            "p over all pairs",
            "p over pairs and tasks",
            "Method",
        ],
        lines,
        caption=f"Differences to {reference} (the CSV file contains every metric)",
        numeric=frozenset([3, 4, 5, 6]),
        download=Download(f"{prefix}differences.csv", every),
        folded=len(lines) > 20,
    )


def _metrics(board: Leaderboard) -> Section:
    """Every metric of every task, folded; external cohorts by ensemble and by the mean of the fold models."""
    blocks: list[Block] = []
    table = board.estimates[board.estimates["class"] == ""]
    table = table[(table["role"] == "test") == (table["cohort"] == ALL)]
    order = [*board.tasks, *sorted(set(table["task"]) - set(board.tasks))]
    table = table.assign(position=table["task"].map(order.index)).sort_values("position", kind="stable")
    for (task, role, cohort), part in table.groupby(["task", "role", "cohort"], sort=False):
        for predictor in (MODEL, FOLD_MODELS):
            of_predictor = part[part["predictor"] == predictor]
            metrics = [m for m in ORDER if m in set(of_predictor["metric"])]
            if not metrics:
                continue
            by_key = {(r["method"], r["metric"]): r for r in of_predictor.to_dict("records")}
            lines: list[list[str | Cell]] = [
                [n, *(estimate(by_key[(n, m)]) if (n, m) in by_key else "–" for m in metrics)]
                for n in board.order
                if any((n, m) in by_key for m in metrics)
            ]
            how = {MODEL: "ensemble of the fold models", FOLD_MODELS: "mean of the fold models"}[predictor]
            what = "test folds" if role == "test" else f"{_dataset(str(role), str(cohort))}, {how}"
            caption = f"{task}, {what}"
            columns = ["Run", *map(label, metrics)]
            blocks.append(Table(columns, lines, caption, frozenset(range(1, len(columns))), folded=True))
    lead = "All metrics of all runs; silhouettes are Equipoise's definition."
    return Section("All metrics", lead, blocks)


def _runs(board: Leaderboard, runs: Mapping[str, RunFiles]) -> Section:
    lines: list[list[str | Cell]] = []
    for name in board.order:
        run = runs[name]
        metadata = next(c.metadata for c in board.candidates if c.name == name)
        code = run.environment.get("code")
        commit = str(code.get("commit", ""))[:12] if isinstance(code, dict) else ""
        lines.append(
            [
                name,
                str(metadata.get("model", "")),
                str(metadata.get("balancing", "")),
                str(metadata.get("seed", "")),
                "SYNTHETIC" if run.synthetic else "as given",
                commit or "–",
            ]
        )
    columns = ["Run", "Model", "Balancing", "Seed", "Data", "Commit"]
    return Section("Runs", "The runs that the predictions come from.", [Table(columns, lines)])


def _primary(board: Leaderboard) -> list[Row]:
    """Estimates of the primary metrics of shared tasks: test folds, then each external cohort; ensembles only."""
    table = board.estimates
    keep = (table["class"] == "") & (table["predictor"] == MODEL) & table["task"].isin(list(board.tasks))
    keep &= table["metric"] == table["kind"].map(PRIMARY)
    keep &= (table["role"] == "test") == (table["cohort"] == ALL)
    rows = table[keep].assign(position=table["method"].map(board.order.index))
    rows["task_position"] = rows["task"].map(list(board.tasks).index)
    rows["is_external"] = rows["role"] != "test"
    order = ["task_position", "is_external", "cohort", "position"]
    return rows.sort_values(order, kind="stable").to_dict("records")


def _dataset(role: str, cohort: str) -> str:
    if role == "test":
        return "test folds" if cohort == ALL else f"test folds, {cohort}"
    return {ALL: "all external", POOLED: "all external, pooled"}.get(cohort, f"external {cohort}")


def _row_name(row: Row, several: bool) -> str:
    return f"{row['method']}, {_dataset(row['role'], row['cohort'])}" if several else str(row["method"])
