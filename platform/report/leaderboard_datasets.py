"""A leaderboard over several data sets: the same methods, each trained and tested within every one of them.

Runs that share a patient belong to one data set. Every data set gets its own leaderboard in a folder below; the page
above them ranks the methods over the data sets, which are independent, so that Friedman's test applies to three or
more.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from equipoise.platform.errors import DataError
from equipoise.platform.evaluation.comparison import (
    SCORE_COLUMNS,
    Ranking,
    ranking,
    ranking_caution,
    why_no_ranking,
)
from equipoise.platform.evaluation.metric_definitions import PRIMARY
from equipoise.platform.evaluation.predictions import read_predictions
from equipoise.platform.evaluation.samples import ALL, MODEL
from equipoise.platform.report.blocks import Block, Cell, Figures, Notice, Section, Table, Text
from equipoise.platform.report.comparison_figures import critical_difference_diagram
from equipoise.platform.report.formatting import count, listed, number, p_value, plural
from equipoise.platform.report.leaderboard import (
    WrittenLeaderboard,
    leaderboard_text,
    unique_names,
    write_leaderboard,
)
from equipoise.platform.report.page import Page, PageSection, installed_version, render_page
from equipoise.platform.report.run_files import RunFiles
from equipoise.platform.report.style import Download


@dataclass(frozen=True)
class DatasetLeaderboards:
    """Leaderboards by data set, the ranking over them (None with fewer than three), page and table."""

    boards: Mapping[str, WrittenLeaderboard]
    ranking: Ranking | None
    page: Path
    table: Path

    @property
    def synthetic(self) -> bool:
        """Whether any run has synthetic patients."""
        return any(written.synthetic for written in self.boards.values())

    @property
    def best(self) -> str:
        """The method with the best mean rank over the data sets."""
        return str(_mean_ranks(self.boards).index[0])


def group_by_patients(runs: Sequence[Path]) -> list[list[Path]]:
    """Run folders by data set: runs that share a patient, directly or through other runs, stay together."""
    groups: list[tuple[set[str], list[Path]]] = []
    for run in runs:
        path = Path(run) / "evaluation/predictions.parquet"
        patients = set(read_predictions(path)["patient"]) if path.exists() else set()
        joined = [g for g in groups if g[0] & patients]
        groups = [g for g in groups if not g[0] & patients]
        together = [one for _, members in joined for one in members]
        groups.append((patients.union(*(g[0] for g in joined)), [*together, Path(run)]))
    return [sorted(members, key=list(map(Path, runs)).index) for _, members in groups]


def write_dataset_leaderboards(
    groups: Sequence[Sequence[Path]], out: Path, baseline: str | None = None
) -> DatasetLeaderboards:
    """One leaderboard per data set in ``out/<data set>``, and ``leaderboard.html`` and ``.csv`` over all of them.

    Parameters
    ----------
    groups
        Run folders by data set (:func:`group_by_patients`). The runs of a method have the same name in every group.
    out
        Folder to write to.
    baseline
        Name of a run to compare the others with.

    Raises
    ------
    DataError
        If a data set lacks a method that another one has.
    """
    from equipoise.datasets.atomic_io import atomic_path, write_text

    folders = [[Path(run).resolve() for run in group] for group in groups]
    methods = [unique_names(group) for group in folders]
    for names in methods[1:]:
        if odd := sorted(set(names) ^ set(methods[0])):
            raise DataError(
                f"the runs belong to {len(groups)} data sets without a common patient, and not every method is in "
                f"each of them: {', '.join(odd)}",
                fix="name the runs of a method alike in every data set, such as brca/pcgrad and luad/pcgrad",
            )
    boards = {
        name: write_leaderboard(group, out / name, baseline, strategies=False)
        for name, group in zip(_dataset_names(folders), folders, strict=True)
    }
    scores = _scores(boards)
    metric_of = {t: PRIMARY[kind] for w in boards.values() for t, kind in w.board.tasks.items()}
    ranked = ranking(scores, metric_of)
    synthetic = any(written.synthetic for written in boards.values())
    with atomic_path(out / "leaderboard.csv") as temporary:
        tables = [w.board.table.assign(dataset=name) for name, w in boards.items()]
        pd.concat(tables, ignore_index=True).assign(synthetic=synthetic).to_csv(temporary, index=False)
    page = _page(boards, ranked, scores, RunFiles(folders[0][0]), synthetic=synthetic)
    write_text(out / "leaderboard.html", render_page(page))
    return DatasetLeaderboards(boards, ranked, out / "leaderboard.html", out / "leaderboard.csv")


def dataset_leaderboards_text(written: DatasetLeaderboards) -> str:
    """The ranking over data sets as lines for a terminal."""
    means = _mean_ranks(written.boards)
    lines = ["SYNTHETIC DATA: these numbers say nothing about patients"] if written.synthetic else []
    lines.append(f"{plural(len(written.boards), 'data set')}: {', '.join(written.boards)}")
    lines += [f"{number(value, 2)}  {name}" for name, value in means.items()]
    return "\n".join([*lines, _statement(written.ranking, len(written.boards))])


def _dataset_names(folders: Sequence[Sequence[Path]]) -> list[str]:
    """The name of the folder around the runs of a data set, made unique by a number."""
    names: list[str] = []
    for group in folders:
        name = Path(os.path.commonpath([run.parent for run in group])).name or "dataset"
        names.append(name if name not in names else f"{name}-{len(names) + 1}")
    return names


def _scores(boards: Mapping[str, WrittenLeaderboard]) -> pd.DataFrame:
    """Main metrics of the test folds, one row per data set, method and task."""
    parts = []
    for name, written in boards.items():
        table = written.board.estimates
        keep = (table["role"] == "test") & (table["cohort"] == ALL) & (table["class"] == "")
        keep &= (table["predictor"] == MODEL) & (table["metric"] == table["kind"].map(PRIMARY))
        parts.append(table[keep & table["task"].isin(list(written.board.tasks))].assign(dataset=name))
    return pd.concat(parts, ignore_index=True)[list(SCORE_COLUMNS)]


def _mean_ranks(boards: Mapping[str, WrittenLeaderboard]) -> pd.Series:
    by_dataset = pd.DataFrame({name: written.board.mean_ranks for name, written in boards.items()})
    return by_dataset.rank().mean(axis=1).sort_values(kind="stable")


def _statement(ranked: Ranking | None, datasets: int) -> str:
    if ranked is None:
        return why_no_ranking(datasets) or "A method lacks a value in too many data sets for a test of ranks."
    freedom = plural(ranked.friedman.df, "degree")
    return (
        f"Friedman's test over the data sets: χ² = {number(ranked.friedman.chi2, 2)} with {freedom} of freedom, "
        f"{p_value(ranked.friedman.p)}. {ranking_caution(ranked)}"
    )


def _page(
    boards: Mapping[str, WrittenLeaderboard],
    ranked: Ranking | None,
    scores: pd.DataFrame,
    first_run: RunFiles,
    *,
    synthetic: bool,
) -> Page:
    means = _mean_ranks(boards)
    rows: list[list[str | Cell]] = [
        [str(name), number(value, 2), *(number(w.board.mean_ranks[name], 2) for w in boards.values())]
        for name, value in means.items()
    ]
    table = Table(
        ["Method", "Mean rank", *boards],
        rows,
        caption="Mean rank over the data sets, which count once each, and the mean rank over the tasks of each data "
        "set",
        numeric=frozenset(range(1, 2 + len(boards))),
        download=Download(f"{'SYNTHETIC-' if synthetic else ''}scores.csv", scores),
    )
    blocks: list[Block] = [table, Text(_statement(ranked, len(boards)))]
    if ranked is not None:
        blocks.insert(1, Figures([critical_difference_diagram(ranked)]))
        if ranked.dropped:
            blocks.append(
                Notice("Data sets left out", [f"a method has no value in {listed(list(ranked.dropped))}"])
            )
    pages = Text("Comparisons within a data set: " + ", ".join(f"{name}/leaderboard.html" for name in boards))
    section = Section("Ranks over data sets", f"{means.index[0]} has the best mean rank.", [*blocks, pages])
    return Page(
        title=f"Leaderboard over {plural(len(boards), 'data set')}",
        synthetic=synthetic,
        version=installed_version(first_run),
        meta=(("Data sets", ", ".join(boards)), ("Methods", count(len(means)))),
        sections=(PageSection("datasets", section.title, section.lead, tuple(section.blocks)),),
        kicker="Equipoise leaderboard",
    )


@dataclass(frozen=True)
class Comparison:
    """What a comparison of run folders wrote: its text for a terminal, its page, the best run."""

    text: str
    page: Path
    best: str
    synthetic: bool


def compare_runs(runs: Sequence[Path], out: Path, baseline: str | None = None) -> Comparison:
    """One leaderboard, or several and ranks over them where runs have no common patient."""
    groups = group_by_patients(list(runs))
    if len(groups) > 1 and min(map(len, groups)) > 1:
        several = write_dataset_leaderboards(groups, out, baseline)
        return Comparison(dataset_leaderboards_text(several), several.page, several.best, several.synthetic)
    written = write_leaderboard(list(runs), out, baseline)
    return Comparison(leaderboard_text(written), written.page, written.board.best, written.synthetic)
