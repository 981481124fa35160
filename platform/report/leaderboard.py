"""``leaderboard.csv`` and ``leaderboard.html``: run folders side by side, read and written.

The comparison is computed in :mod:`equipoise.platform.evaluation.leaderboard`; the page is in ``leaderboard_page``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap

from equipoise.platform.errors import DataError
from equipoise.platform.evaluation.comparison import why_no_ranking
from equipoise.platform.evaluation.latents import read_fold_latents
from equipoise.platform.evaluation.leaderboard import Leaderboard, compare
from equipoise.platform.evaluation.metric_definitions import PRIMARY
from equipoise.platform.evaluation.paired import Candidate
from equipoise.platform.evaluation.params import EvaluationParams
from equipoise.platform.evaluation.predictions import read_predictions
from equipoise.platform.evaluation.samples import ALL, MODEL
from equipoise.platform.report.formatting import estimate, label, listed, number, plural
from equipoise.platform.report.leaderboard_page import leaderboard_page, pairs_caution
from equipoise.platform.report.page import render_page
from equipoise.platform.report.run_files import RunFiles
from equipoise.platform.report.sections.balancing import method_name
from equipoise.platform.report.strategies import federated_candidate, why_not_comparable

#: Characters of a line on a terminal, and of a run's name in it; a longer name keeps its end.
COLUMNS, _NAME = 100, 40


@dataclass(frozen=True)
class WrittenLeaderboard:
    """Result and files of :func:`write_leaderboard`."""

    board: Leaderboard
    page: Path
    table: Path
    synthetic: bool
    remarks: tuple[str, ...] = ()


def write_leaderboard(
    runs: Sequence[Path], out: Path, baseline: str | None = None, *, strategies: bool = True
) -> WrittenLeaderboard:
    """Compare run folders and write ``leaderboard.csv``, ``differences.csv``, ``scores.csv`` and the page.

    Parameters
    ----------
    runs
        Two or more evaluated run folders, or one with a federation. They are named by their folders, with as much of
        the path before it as is needed to make the names unique.
    out
        Folder to write to.
    baseline
        Name of a run to compare the others with, in addition to the best.
    strategies
        Whether the federation of a run is one more candidate, ``<run> (<strategy>)``.

    Raises
    ------
    DataError
        If a folder is not an evaluated run, or the runs do not share patients, folds and labels.
    """
    from equipoise.datasets.atomic_io import atomic_path, write_text

    folders = [Path(run).resolve() for run in runs]
    if twice := sorted({str(f) for f in folders if folders.count(f) > 1}):
        raise DataError("the same run is named twice", where=", ".join(twice))
    files = {name: RunFiles(folder) for name, folder in zip(unique_names(folders), folders, strict=True)}
    candidates = [_candidate(name, run) for name, run in files.items()]
    remarks = []
    for name, run in list(files.items()) if strategies else ():
        federated = federated_candidate(name, run)
        if federated is None:
            continue
        if reason := why_not_comparable(federated, candidates[0]):
            remarks.append(
                f"{federated.name} is left out, it was not evaluated on the same patients: {reason}"
            )
            continue
        candidates.append(federated)
        files[federated.name] = run
    first = next(iter(files.values()))
    params = EvaluationParams.model_validate(first.study.get("evaluation") or {})
    order = [task.name for task in first.tasks]
    board = compare(candidates, params, int(first.study.get("seed") or 0), baseline, order)
    synthetic = any(run.synthetic for run in files.values())
    prefix = "SYNTHETIC-" if synthetic else ""
    out.mkdir(parents=True, exist_ok=True)
    tables = {"leaderboard": board.table, "differences": board.differences, "scores": board.scores}
    for name, table in tables.items():
        with atomic_path(out / f"{name}.csv") as temporary:
            table.assign(synthetic=synthetic).to_csv(temporary, index=False)
    page = leaderboard_page(board, files, prefix, remarks)
    write_text(out / "leaderboard.html", render_page(page))
    return WrittenLeaderboard(
        board, out / "leaderboard.html", out / "leaderboard.csv", synthetic, tuple(remarks)
    )


def unique_names(folders: Sequence[Path]) -> list[str]:
    """The shortest unique ends of the paths, of equal length."""
    longest = max((len(folder.parts) for folder in folders), default=1)
    for length in range(1, longest + 1):
        names = ["/".join(folder.parts[-length:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def leaderboard_text(written: WrittenLeaderboard) -> str:
    """The leaderboard as lines for a terminal of :data:`COLUMNS` characters, with its limits."""
    board = written.board
    columns = [("run", board.order)]
    columns.append(("mean rank", [number(board.mean_ranks[n], 2) for n in board.order]))
    if board.overall is not None:
        may = set(board.overall.best_set)
        columns.append(("may be best", ["yes" if n in may else "no" for n in board.order]))
    estimates = board.estimates[(board.estimates["class"] == "") & (board.estimates["predictor"] == MODEL)]
    for task, kind in board.tasks.items():
        rows = estimates[(estimates["task"] == task) & (estimates["metric"] == PRIMARY[kind])]
        for (role, cohort), part in rows.groupby(["role", "cohort"], sort=False):
            if (role == "test") != (cohort == ALL):  # all test folds, and external cohorts one by one
                continue
            values = {r["method"]: estimate(r) for r in part.to_dict("records")}
            dataset = "test" if role == "test" else cohort
            columns.append((f"{task} {label(PRIMARY[kind])}, {dataset}", [values[n] for n in board.order]))
    lines = _tables(columns)
    if written.synthetic:
        lines.insert(0, "SYNTHETIC DATA: these numbers say nothing about patients")
    for task, pairs in board.pairs.items():
        best = "every run" if len(pairs.best_set) == len(pairs.names) else listed(pairs.best_set, 8)
        lines.append(
            f"{task}: {plural(pairs.separated, 'pair of runs differs', 'pairs of runs differ')}; not excluded as the "
            f"best: {best}"
        )
    lines += [*pairs_caution(board), why_no_ranking(1), *written.remarks]
    return "\n".join(
        part for line in lines for part in (wrap(line, COLUMNS) if len(line) > COLUMNS else [line])
    )


def _tables(columns: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    """Lines of a table; one that is wider than the terminal goes on below, with its first column again."""
    (title, names), *rest = columns
    shown = [name if len(name) <= _NAME else f"…{name[1 - _NAME :]}" for name in names]
    blocks: list[list[tuple[str, Sequence[str]]]] = [[(title, shown)]]
    for column in rest:
        if len(_lines([*blocks[-1], column])[0]) > COLUMNS and len(blocks[-1]) > 1:
            blocks.append([(title, shown)])
        blocks[-1].append(column)
    return [line.rstrip() for block in blocks for line in _lines(block)]


def _lines(columns: Sequence[tuple[str, Sequence[str]]]) -> list[str]:
    widths = [max(len(title), *map(len, cells)) for title, cells in columns]
    rows = ([title for title, _ in columns], *zip(*(cells for _, cells in columns), strict=True))
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def _candidate(name: str, run: RunFiles) -> Candidate:
    if not run.folder.is_dir():
        raise DataError("there is no such run folder", where=str(run.folder))
    predictions = read_predictions(run.folder / "evaluation/predictions.parquet")
    folds = predictions[["repeat", "fold"]].drop_duplicates().itertuples(index=False)
    latents = read_fold_latents(run.folder / "folds" / f"{repeat}-{fold}" for repeat, fold in folds)
    metadata = {
        "model": str((run.study.get("model") or {}).get("kind", "")),
        "balancing": method_name(run.study),
        "seed": str(run.study.get("seed", "")),
    }
    return Candidate(name, predictions, latents, metadata)
