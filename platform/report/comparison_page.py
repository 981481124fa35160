"""The page of a leaderboard: who leads, by how much, and how far that can be trusted."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from equipoise.platform.evaluation.comparison import caution
from equipoise.platform.evaluation.leaderboard import Leaderboard
from equipoise.platform.evaluation.measures import CHANCE, PRIMARY
from equipoise.platform.evaluation.samples import ALL, FOLD_MODELS, MODEL
from equipoise.platform.report.blocks import Block, Cell, Figures, Heading, Notice, Section, Table, Text, Tone
from equipoise.platform.report.figures.comparison import critical_difference_diagram, differences_figure
from equipoise.platform.report.figures.forest import forest
from equipoise.platform.report.figures.style import Download
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
from equipoise.platform.report.report import Page, Part, installed_version
from equipoise.platform.report.run_files import RunFiles

Row = dict[str, Any]

#: Runs up to which every forest plot shows the external cohorts beside the test folds.
_MOST_SIDE_BY_SIDE = 8


def comparison_page(board: Leaderboard, runs: Mapping[str, RunFiles], prefix: str) -> Page:
    """The page of a leaderboard.

    Parameters
    ----------
    board
        What was compared.
    runs
        Name → run folder, for what the page says of each.
    prefix
        Before the names of tables to download (``SYNTHETIC-``).
    """
    sections = {
        "standing": _standing(board, runs, prefix),
        "ranks": _ranks(board),
        "tasks": _tasks(board),
        "differences": _differences(board, prefix),
        "metrics": _metrics(board),
        "runs": _runs(board, runs),
    }
    some = next(iter(runs.values()))
    return Page(
        title=f"Leaderboard of {plural(len(board.contenders), 'run')}",
        synthetic=any(run.synthetic for run in runs.values()),
        version=installed_version(some),
        meta=(
            ("Runs", count(len(board.contenders))),
            ("Tasks", ", ".join(board.tasks)),
            ("Baseline", board.baseline or "–"),
        ),
        sections=tuple(Part(name, s.title, s.lead, tuple(s.blocks)) for name, s in sections.items()),
        kicker="Equipoise leaderboard",
    )


def _standing(board: Leaderboard, runs: Mapping[str, RunFiles], prefix: str) -> Section:
    own = _primary(board)
    places = list(dict.fromkeys((r["task"], r["role"], r["cohort"]) for r in own))
    rows: list[list[str | Cell]] = []
    for place, name in enumerate(board.order, start=1):
        facts = next(c.facts for c in board.contenders if c.name == name)
        mark = " (baseline)" if name == board.baseline else ""
        cells: list[str | Cell] = [
            str(place),
            Cell(name + mark, note="SYNTHETIC" if runs[name].synthetic else ""),
            Cell(str(facts.get("balancing", "")), note=str(facts.get("model", ""))),
            *_rank_cells(board, name),
        ]
        for task, role, cohort in places:
            row = next(
                r
                for r in own
                if (r["method"], r["task"], r["role"], r["cohort"]) == (name, task, role, cohort)
            )
            rank = "" if pd.isna(row["rank"]) else f"rank {row['rank']:g}"
            cells.append(Cell(estimate(row), note=rank, tone="" if pd.notna(row["value"]) else "muted"))
        rows.append(cells)
    level = percent(board.params.confidence)
    columns = ["", "Run", "Balancing, model", "Mean rank", "P(best)"]
    columns += [
        f"{task}, {label(PRIMARY[board.tasks[task]])}, {_place(role, cohort)}"
        for task, role, cohort in places
    ]
    table = Table(
        columns,
        rows,
        caption=f"Mean rank over tasks and test folds; in brackets and in P(best) patients are drawn anew "
        f"{count(board.params.bootstrap)} times. Metrics with {level} intervals; ranks of external cohorts do not "
        "enter the mean rank.",
        numeric=frozenset(range(3, len(columns))),
        download=Download(f"{prefix}leaderboard.csv", board.table),
    )
    return Section("Standing", _verdict(board), [table, *_cautions(board, runs)])


def _rank_cells(board: Leaderboard, name: str) -> list[str | Cell]:
    if board.ranking is None:
        return ["–", "–"]
    mean = number(board.ranking.mean_ranks[name], 2)
    if "p_best" not in board.shares:
        return [mean, "–"]
    share = board.shares.loc[name]
    return [Cell(mean, note=interval(share["rank_low"], share["rank_high"], 1)), percent(share["p_best"])]


def _verdict(board: Leaderboard) -> str:
    """One sentence: who leads, and who cannot be told apart from the leader."""
    if board.ranking is None:
        return "No fold has a value of every run, so there is no ranking."
    lead = f"{board.best} has the best mean rank ({number(board.ranking.mean_ranks[board.best], 2)})"
    near = next((clique for clique in board.ranking.cliques if board.best in clique), ())
    others = [name for name in near if name != board.best]
    if not others:
        return f"{lead}, and by more than the critical difference over every other run."
    if len(others) == len(board.order) - 1:
        return f"{lead}, but no run can be told apart from it."
    return f"{lead}; it cannot be told apart from {listed(others)}."


def _cautions(board: Leaderboard, runs: Mapping[str, RunFiles]) -> list[Block]:
    blocks: list[Block] = []
    if board.ranking is not None:
        blocks.append(Notice("How far this can be trusted", [caution(board.ranking)]))
    notes = []
    if skipped := sorted(
        {t for c in board.contenders for t in c.predictions["task"].unique()} - set(board.tasks)
    ):
        notes.append(f"not in every run, so not ranked: {', '.join(skipped)}")
    if board.ranking is not None and board.ranking.dropped:
        left = board.ranking.dropped
        notes.append(f"{plural(len(left), 'block')} left out, no value in some run: {listed(list(left))}")
    settings = {name: (run.study.get("evaluation") or {}) for name, run in runs.items()}
    first = next(iter(settings))
    if other := [name for name, value in settings.items() if value != settings[first]]:
        notes.append(f"evaluation settings of {first} are used for all; those of {listed(other)} differ")
    if mixed := {run.synthetic for run in runs.values()} == {True, False} and [
        n for n, r in runs.items() if r.synthetic
    ]:
        notes.append(f"SYNTHETIC runs among real ones: {listed(list(mixed))}")
    return [*blocks, *([Notice("Remarks", notes, tone="")] if notes else [])]


def _ranks(board: Leaderboard) -> Section:
    lead = "Ranks within each task and test fold, averaged."
    if board.ranking is None:
        return Section("Ranks", lead, [Text("There is no block with a value of every run.", tone="muted")])
    found = board.ranking
    statement = f"Friedman's test that all runs are alike: χ² = {number(found.friedman.chi2, 2)} with "
    statement += f"{found.friedman.df} degrees of freedom, {p_value(found.friedman.p)}."
    return Section("Ranks", lead, [Figures([critical_difference_diagram(found)]), Text(statement)])


def _tasks(board: Leaderboard) -> Section:
    """A forest plot per task."""
    blocks: list[Block] = []
    small = len(board.contenders) <= _MOST_SIDE_BY_SIDE
    for task, kind in board.tasks.items():
        metric = PRIMARY[kind]
        blocks.append(Heading(task))
        own = [r for r in _primary(board) if r["task"] == task]
        places = list(dict.fromkeys((r["role"], r["cohort"]) for r in own))
        for group in [places] if small else [[place] for place in places]:
            rows = [{**r, "name": _row_name(r, len(group) > 1), "n_pos": None, "method": r["how"]}
                    for place in group for r in own if (r["role"], r["cohort"]) == place]  # fmt: skip
            figure = forest(
                rows,
                f"{task} {_place(*group[0])}",
                metric,
                CHANCE.get(metric),
                board.params.confidence,
                what="run" if len(group) > 1 else f"run, {_place(*group[0])}",
                alike="that runs may well be alike; the paired differences below are sharper",
            )
            blocks += [Figures([figure])] if figure else []
    return Section("Tasks one by one", "The main metric of each task with its interval, run by run.", blocks)


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
                Text("The best was chosen on these very results, which flatters it: read p as a lower bound.")
            )
        rows = _difference_rows(board, reference)
        figures = []
        for task, kind in board.tasks.items():
            inside = [r for r in rows if r["task"] == task and r["role"] == "test"]
            figures.append(
                differences_figure(inside, task, PRIMARY[kind], reference, board.params.confidence)
            )
        if drawn := [f for f in figures if f is not None]:
            blocks.append(Figures(drawn))
        blocks.append(_difference_table(rows, reference, board, prefix))
    lead = (
        "Run minus reference on the same patients: DeLong for the AUROC of binary tasks, the paired bootstrap "
        "otherwise."
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
    rows = table[keep].assign(place=table["run"].map(board.order.index)).sort_values("place", kind="stable")
    return rows.to_dict("records")


def _difference_table(rows: list[Row], reference: str, board: Leaderboard, prefix: str) -> Table:
    every = board.differences[board.differences["reference"] == reference]
    lines: list[list[str | Cell]] = []
    for r in rows:
        tone: Tone = "good" if pd.notna(r["p_holm"]) and r["p_holm"] < 1 - board.params.confidence else ""
        lines.append(
            [
                r["run"],
                f"{r['task']}, {label(r['metric'])}",
                _place(r["role"], r["cohort"]),
                f"{number(r['difference'])} ({interval(r['low'], r['high'])})",
                Cell(p_value(r["p"]), tone="muted"),
                Cell(p_value(r["p_holm"]), tone=tone),
                Cell(r["method"], note=r["note"], tone="muted"),
            ]
        )
    return Table(
        ["Run", "Task and metric", "Patients", f"Difference to {reference}", "p", "p after Holm", "Method"],
        lines,
        caption=f"Differences to {reference}; Holm over the runs and tasks of a metric in one place "
        "(the file has every metric)",
        numeric=frozenset([3, 4, 5]),
        download=Download(f"{prefix}differences.csv", every),
        folded=len(lines) > 20,
    )


def _metrics(board: Leaderboard) -> Section:
    """Every metric of every task, folded; external cohorts by ensemble and by the mean of the fold models."""
    blocks: list[Block] = []
    table = board.estimates[board.estimates["class"] == ""]
    table = table[(table["role"] == "test") == (table["cohort"] == ALL)]
    order = [*board.tasks, *sorted(set(table["task"]) - set(board.tasks))]
    table = table.assign(place=table["task"].map(order.index)).sort_values("place", kind="stable")
    for (task, role, cohort), part in table.groupby(["task", "role", "cohort"], sort=False):
        for predictor in (MODEL, FOLD_MODELS):
            own = part[part["predictor"] == predictor]
            metrics = [m for m in ORDER if m in set(own["metric"])]
            if not metrics:
                continue
            found = {(r["method"], r["metric"]): r for r in own.to_dict("records")}
            lines: list[list[str | Cell]] = [
                [n, *(estimate(found[(n, m)]) if (n, m) in found else "–" for m in metrics)]
                for n in board.order
                if any((n, m) in found for m in metrics)
            ]
            how = {MODEL: "ensemble of the fold models", FOLD_MODELS: "mean of the fold models"}[predictor]
            what = "test folds" if role == "test" else f"{_place(str(role), str(cohort))}, {how}"
            caption = f"{task}, {what}"
            columns = ["Run", *map(label, metrics)]
            blocks.append(Table(columns, lines, caption, frozenset(range(1, len(columns))), folded=True))
    lead = "What the runs reached in everything that is measured; silhouettes are Equipoise's definition."
    return Section("All metrics", lead, blocks)


def _runs(board: Leaderboard, runs: Mapping[str, RunFiles]) -> Section:
    lines: list[list[str | Cell]] = []
    for name in board.order:
        run = runs[name]
        facts = next(c.facts for c in board.contenders if c.name == name)
        code = run.environment.get("code")
        commit = str(code.get("commit", ""))[:12] if isinstance(code, dict) else ""
        lines.append(
            [
                name,
                str(facts.get("model", "")),
                str(facts.get("balancing", "")),
                str(facts.get("seed", "")),
                "SYNTHETIC" if run.synthetic else "as given",
                commit or "–",
            ]
        )
    columns = ["Run", "Model", "Balancing", "Seed", "Data", "Commit"]
    return Section("Runs", "Where the predictions come from.", [Table(columns, lines)])


def _primary(board: Leaderboard) -> list[Row]:
    """Estimates of the primary metrics of shared tasks: test folds, then each external cohort; ensembles only."""
    table = board.estimates
    keep = (table["class"] == "") & (table["predictor"] == MODEL) & table["task"].isin(list(board.tasks))
    keep &= table["metric"] == table["kind"].map(PRIMARY)
    keep &= (table["role"] == "test") == (table["cohort"] == ALL)
    rows = table[keep].assign(place=table["method"].map(board.order.index))
    rows["task_place"] = rows["task"].map(list(board.tasks).index)
    rows["inside"] = rows["role"] != "test"
    return rows.sort_values(["task_place", "inside", "cohort", "place"], kind="stable").to_dict("records")


def _place(role: str, cohort: str) -> str:
    if role == "test":
        return "test folds" if cohort == ALL else f"test folds, {cohort}"
    return "all external" if cohort == ALL else f"external {cohort}"


def _row_name(row: Row, several: bool) -> str:
    return f"{row['method']}, {_place(row['role'], row['cohort'])}" if several else str(row["method"])
