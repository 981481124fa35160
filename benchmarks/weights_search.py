"""The 16 balancing methods against a search over simplex loss weights, with equal budget, side by side. SYNTHETIC.

Which is the better use of 16 configurations x K trained folds on the built-in bench cohorts: trying the 16 methods of
``benchmarks.methods``, or trying 16 points of the simplex of explicit loss weights (equal shares first, then random
search over the product's own space)? Each side chooses as a search does, by inner validation alone: in every fold the
configuration with the best ``val/mean`` over the patients that stopped its training. That fold's model predicts the
fold's test patients and the external cohorts, which chose nothing. Both sides train the same number of folds, none
twice, and no tested patient takes part in the choice.

``leaderboard.html`` shows both sides, all 16 methods, all pairs, intervals and paired differences; the first section
says which side wins on which task. Runs are ordinary runs of the product: with the ``--work`` folder of
``benchmarks.methods`` its 16 runs are used as they are. What is finished is not run again.
"""

import argparse
import json
import math
import os
import platform
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import product
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks import bench_cohort, methods
from equipoise.datasets.atomic_io import read_json

#: Contenders whose models were chosen fold by fold.
METHODS, WEIGHTS = "best-of-methods", "search-of-weights"
BASELINE = "equal+none"
CONFIGURATIONS = 16
#: Smoke test: shows that everything runs, and nothing else.
SMOKE = {"training.epochs": 1, "patients_per_site": 6, "evaluation.bootstrap": 50}


@dataclass(frozen=True)
class Choice:
    """What inner validation chose in a fold."""

    fold: str
    run: Path
    score: float


def main() -> None:
    """Print the figures, keep them beside this file and the page in ``--out``."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--processes", type=int, default=2, help="runs at a time")
    parser.add_argument("--folds", type=int, default=5, help="folds of every run")
    parser.add_argument("--work", default=None, help="folder of cohorts and runs [a temporary folder]")
    parser.add_argument("--out", type=Path, default=Path("runs/weights-search"), help="page and tables")
    parser.add_argument("--smoke", action="store_true", help="two folds, three configurations, an epoch")
    arguments = parser.parse_args()
    folds = 2 if arguments.smoke else arguments.folds
    count = 3 if arguments.smoke else CONFIGURATIONS
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(arguments.work or scratch).resolve()
        study = bench_cohort.prepare(work)
        figures = compare_sides(
            study, work, arguments.out, folds, count, arguments.processes, smoke=arguments.smoke
        )
    figures |= {
        "synthetic": True,
        "smoke": arguments.smoke,
        "settings": bench_cohort.SETTINGS,
        "load_before": round(load, 1),
        "cores": os.cpu_count(),
        "versions": {name: version(name) for name in ("torch", "numpy")}
        | {"python": platform.python_version()},
    }
    if not arguments.smoke:
        results = Path(__file__).parent / "results"
        results.mkdir(exist_ok=True)
        (results / "weights_search.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures))


def compare_sides(
    study: Path, work: Path, out: Path, folds: int, count: int, processes: int, *, smoke: bool
) -> dict[str, Any]:
    """Train both sides, choose, compare, write page and tables to ``out``."""
    extra = {"splits.folds": folds} | (SMOKE if smoke else {})
    same = folds == 5 and not smoke  # the runs of benchmarks.methods
    root = work / ("runs" if same else f"runs-{'smoke' if smoke else folds}")
    names = ["+".join(cell) for cell in product(methods.WEIGHTINGS, methods.AGGREGATORS)]
    tried: dict[Path, dict[str, Any]] = {
        root / n: {"name": n.replace("+", "-"), "balancing": n} for n in names[:count]
    }
    weighed: dict[Path, dict[str, Any]] = {
        root / f"weights-{index:02d}": {"name": f"weights-{index:02d}", "balancing": balancing}
        for index, balancing in enumerate(points_of_simplex(study, count))
    }
    if not same:
        tried = {path: what | extra for path, what in tried.items()}
    # Metrics of single points of the simplex are not looked at, only their predictions.
    weighed = {path: what | extra | {"evaluation.bootstrap": 50} for path, what in weighed.items()}
    run_all(study, tried | weighed, processes)
    chosen = {METHODS: choose(list(tried)), WEIGHTS: choose(list(weighed))}
    for name, choices in chosen.items():
        assemble(root / name, name, choices)
    return leaderboard([*tried, root / METHODS, root / WEIGHTS], chosen, out) | {
        "configurations": count,
        "trained_folds": {METHODS: len(tried) * folds, WEIGHTS: len(weighed) * folds},
    }


def run_all(study: Path, runs: Mapping[Path, dict[str, Any]], processes: int) -> None:
    """Runs that are not finished: features one after the other, for a store has one writer; then side by side."""
    left = {out: bench_cohort.SETTINGS | what for out, what in runs.items() if not finished(out)}
    for out, settings in left.items():
        bench_cohort.run_study(study, out, settings, ("validate", "extract"))
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        steps = ("train", "evaluate")
        waiting = {pool.submit(bench_cohort.run_study, study, out, s, steps): out for out, s in left.items()}
        for done, future in enumerate(as_completed(waiting), 1):
            future.result()
            print(f"{done} of {len(left)}: {waiting[future].name}", flush=True)


def finished(run: Path) -> bool:
    """Whether a run has been evaluated."""
    steps = read_json(run / "status.json", {"steps": {}})["steps"]
    return bool(steps.get("evaluate", {}).get("status") == "done")


def points_of_simplex(study: Path, count: int) -> list[dict[str, Any]]:
    """``balancing`` of equal shares, then of random points of the product's space."""
    from equipoise.platform.run.loading import load_study
    from equipoise.platform.search.configuration import merge_config
    from equipoise.platform.search.params import SearchParams
    from equipoise.platform.search.searchers import RandomSearch
    from equipoise.platform.search.space import LOSS_WEIGHTS
    from equipoise.platform.search.space_builder import build_space

    loaded = load_study(study, bench_cohort.SETTINGS)
    space = build_space(loaded, SearchParams(space={LOSS_WEIGHTS: "simplex"}))
    searcher = RandomSearch(space, loaded.seed)
    equal = space.arms[0].config() | {f"{LOSS_WEIGHTS}.{task}": 1 / len(space.tasks) for task in space.tasks}
    drawn = [searcher.ask(index) for index in range(1, count)]
    configs = [_without_training(config) for config in (equal, *drawn)]
    return [merge_config(loaded.resolved(), config)["balancing"] for config in configs]


def _without_training(config: Mapping[str, Any]) -> dict[str, Any]:
    """Only what says how tasks are weighed: everything else is as for the methods."""
    return {k: v for k, v in config.items() if k.startswith(("balancing.", "loss_weights."))}


def choose(runs: Sequence[Path]) -> list[Choice]:
    """In every fold the run with the best mean over tasks on the fold's inner validation patients."""
    scores: dict[str, list[Choice]] = {}
    for run in runs:
        for fold, score in inner_scores(run).items():
            scores.setdefault(fold, []).append(Choice(fold, run, score))
    return [max(candidates, key=lambda choice: choice.score) for candidates in scores.values()]


def inner_scores(run: Path) -> dict[str, float]:
    """Fold → ``val/mean``: mean over tasks of AUROC and (r + 1) / 2 of its validation patients."""
    from equipoise.platform.evaluation.metrics import auroc, normalised, pearson
    from equipoise.platform.evaluation.predictions import kind_of, read_predictions

    rows = read_predictions(run / "evaluation" / "predictions.parquet")
    rows = rows[rows["role"] == "val"].dropna(subset=["target"])
    scores: dict[str, float] = {}
    for (repeat, fold), fold_rows in rows.groupby(["repeat", "fold"]):
        values = []
        for _, task in fold_rows.groupby("task"):
            target, score = task["target"].to_numpy(float), task["score"].to_numpy(float)
            if kind_of(task) == "binary":
                values.append(float(auroc(target == 1, score)))
            else:
                values.append(normalised("val/task/pearson", float(pearson(target, score))))
        known = [value for value in values if not math.isnan(value)]
        scores[f"{repeat}-{fold}"] = sum(known) / len(known)
    return scores


def assemble(folder: Path, name: str, choices: Sequence[Choice]) -> None:
    """A run folder of the chosen models' predictions and latents, one fold from one run."""
    import yaml

    from equipoise.platform.evaluation.latents import EXTERNAL_LATENTS, FOLD_LATENTS
    from equipoise.platform.evaluation.predictions import read_predictions, write_predictions

    shutil.rmtree(folder, ignore_errors=True)
    parts = []
    for choice in choices:
        rows = read_predictions(choice.run / "evaluation" / "predictions.parquet")
        repeat, fold = map(int, choice.fold.split("-"))
        parts.append(rows[(rows["repeat"] == repeat) & (rows["fold"] == fold)])
        (folder / "folds" / choice.fold).mkdir(parents=True)
        for table in (FOLD_LATENTS, EXTERNAL_LATENTS):
            if (source := choice.run / "folds" / choice.fold / table).exists():
                shutil.copy(source, folder / "folds" / choice.fold / table)
    write_predictions(pd.concat(parts, ignore_index=True), folder / "evaluation" / "predictions.parquet")
    shutil.copytree(choices[0].run / "provenance", folder / "provenance")
    path = folder / "provenance" / "resolved.yaml"
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    settings |= {"name": name, "balancing": {"weighting": "chosen in each fold", "aggregation": "none"}}
    path.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    chosen = [{"fold": c.fold, "run": c.run.name, "val/mean": c.score} for c in choices]
    (folder / "chosen.json").write_text(json.dumps(chosen, indent=2) + "\n", encoding="utf-8")


def leaderboard(runs: list[Path], chosen: Mapping[str, list[Choice]], out: Path) -> dict[str, Any]:
    """Write tables and the page with both sides first; the figures."""
    from equipoise.datasets.atomic_io import write_text
    from equipoise.platform.report.leaderboard import leaderboard_text, unique_names, write_leaderboard
    from equipoise.platform.report.leaderboard_page import leaderboard_page
    from equipoise.platform.report.page import render_page
    from equipoise.platform.report.run_files import RunFiles

    written = write_leaderboard(runs, out, baseline=METHODS)
    board = written.board
    rows = side_by_side(board)
    files = {name: RunFiles(run) for name, run in zip(unique_names(runs), runs, strict=True)}
    page = leaderboard_page(board, files, "SYNTHETIC-")
    page = replace(
        page,
        title="Balancing methods against a search over loss weights",
        sections=(first_section(rows, chosen, board.params.confidence), *page.sections),
    )
    write_text(out / "leaderboard.html", render_page(page))
    print(leaderboard_text(written))
    print(verdict(rows))
    return {
        "verdict": verdict(rows),
        "tasks": [{k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows],
        "mean_ranks": {str(n): round(float(r), 2) for n, r in board.mean_ranks.items()},
        "may_be_best": None if board.overall is None else board.overall.best_set,
        "chosen": {name: {c.fold: c.run.name for c in choices} for name, choices in chosen.items()},
    }


def side_by_side(board: Any) -> list[dict[str, Any]]:
    """The main metric of every task on test folds and external cohorts: equal weights, both sides, difference."""
    from equipoise.platform.evaluation.metric_definitions import PRIMARY
    from equipoise.platform.evaluation.samples import ALL, MODEL

    def of(table: pd.DataFrame, task: str, metric: str) -> pd.DataFrame:
        plain = (table["class"] == "") & (table["predictor"] == MODEL) & (table["cohort"] == ALL)
        return table[plain & (table["task"] == task) & (table["metric"] == metric)]

    rows = []
    for (task, kind), role in product(board.tasks.items(), ("test", "external")):
        metric = PRIMARY[kind]
        estimates = of(board.estimates, task, metric)
        estimates = estimates[estimates["role"] == role].set_index("method")
        pairs = of(board.differences, task, metric)
        pair = pairs[(pairs["role"] == role) & (pairs["run"] == WEIGHTS) & (pairs["reference"] == METHODS)]
        if estimates.empty or pair.empty:
            continue
        d = pair.iloc[0]
        row: dict[str, Any] = {"task": task, "metric": metric, "patients": role}
        for name in (BASELINE, METHODS, WEIGHTS):
            value, low, high = (float(estimates.loc[name, c]) for c in ("value", "low", "high"))
            row |= {name: value, f"{name}/low": low, f"{name}/high": high}
        row |= {"difference": float(d["difference"]), "low": float(d["low"]), "high": float(d["high"])}
        row |= {"p": float(d["p"]), "how": str(d["method"]), "winner": winner(d["low"], d["high"])}
        row["p_joint"] = float(d["p_joint"])
        rows.append(row)
    return rows


def winner(low: float, high: float) -> str:
    """The side that wins, if the interval of the difference (weights less methods) leaves no doubt about its sign."""
    if not low * high > 0:
        return "not told apart"
    return WEIGHTS if low > 0 else METHODS


def verdict(rows: Sequence[Mapping[str, Any]]) -> str:
    """Who is ahead where, and where the interval of the difference leaves 0 out."""
    sentences = []
    for role, where in (("test", "On test folds"), ("external", "on external cohorts")):
        role_rows = [row for row in rows if row["patients"] == role]
        if not role_rows:
            continue
        ahead = sum(row["difference"] > 0 for row in role_rows)
        clear = [
            f"{title} on {', '.join(names) if names else 'no task'}"
            for name, title in ((WEIGHTS, "weights win"), (METHODS, "methods win"))
            for names in [[row["task"] for row in role_rows if row["winner"] == name]]
        ]
        sentences.append(
            f"{where} the search over weights is ahead on {ahead} of {len(role_rows)} tasks; "
            f"by intervals that leave 0 out {', '.join(clear)}"
        )
    return ". ".join(sentence[0].upper() + sentence[1:] for sentence in sentences) + "."


def first_section(rows: list[dict[str, Any]], chosen: Mapping[str, list[Choice]], confidence: float) -> Any:
    """Which side wins on which task."""
    from equipoise.platform.report.blocks import Block, Cell, Figures, Notice, Table
    from equipoise.platform.report.comparison_figures import differences_figure
    from equipoise.platform.report.formatting import interval, label, number, p_value, percent
    from equipoise.platform.report.page import PageSection
    from equipoise.platform.report.style import Download

    def value(row: dict[str, Any], name: str) -> str:
        return f"{number(row[name])} ({interval(row[f'{name}/low'], row[f'{name}/high'])})"

    lines: list[list[str | Cell]] = []
    for row in rows:
        tone: Any = "muted" if row["winner"] == "not told apart" else "good"
        lines.append(
            [
                f"{row['task']}, {label(row['metric'])}",
                {"test": "test folds", "external": "external cohorts"}[row["patients"]],
                *(value(row, name) for name in (BASELINE, METHODS, WEIGHTS)),
                Cell(
                    f"{number(row['difference'])} ({interval(row['low'], row['high'])})",
                    note=f"{p_value(row['p'])}; {p_value(row['p_joint'])} over all pairs and tasks",
                ),
                Cell(row["winner"], tone=tone),
            ]
        )
    table = Table(
        ["Task and metric", "Patients", BASELINE, METHODS, WEIGHTS, "Weights less methods", "Wins"],
        lines,
        caption=f"{percent(confidence)} intervals; the difference is paired, patient by patient. A side wins where the "
        "interval leaves 0 out, which one in twenty does by chance; the second p is corrected for all pairs of runs "
        "and all tasks in one place.",
        numeric=frozenset([2, 3, 4, 5]),
        download=Download("SYNTHETIC-sides.csv", pd.DataFrame(rows)),
    )
    shown = [
        row | {"run": f"{row['task']}, {row['patients']}"} for row in rows if math.isfinite(row["difference"])
    ]
    figure = differences_figure(shown, "all tasks", "Main metric", METHODS, confidence)
    if figure is not None:
        text = (
            "Each point is the main metric of the search over weights less that of the best of methods on the same "
            f"patients, the bar its {percent(confidence)} interval. Right of the dotted line weights are ahead; a bar "
            "across it leaves the sign open."
        )
        figure = replace(figure, how_to_read=text)
    folds = [c.fold for c in chosen[METHODS]]
    picks = Table(
        ["Fold", *(f"{name}: chosen, mean over tasks on inner validation" for name in chosen)],
        [
            [
                fold,
                *(
                    f"{c.run.name}, {number(c.score)}"
                    for choices in chosen.values()
                    for c in choices
                    if c.fold == fold
                ),
            ]
            for fold in folds
        ],
        caption="What inner validation chose in each fold.",
    )
    blocks: list[Block] = [table, *([Figures([figure])] if figure else []), picks]
    trust = [
        "both sides chose by the patients that stopped training, one configuration a fold, from equally many trained "
        "folds; tested patients chose nothing",
        "intervals are those of patients: other draws of weights, seeds and folds would move both sides too",
    ]
    blocks.append(Notice("How far this can be trusted", trust))
    return PageSection("sides", "Methods or weights", verdict(rows), tuple(blocks))


if __name__ == "__main__":
    main()
