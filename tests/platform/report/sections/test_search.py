"""The section on a search: its sentences, its figures, and when it is left out."""

import importlib.util
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from equipoise.platform.report.blocks import Block, Cell, Figures, Heading, Notice, Section, Table, Text
from equipoise.platform.report.entries import SearchSectionParams
from equipoise.platform.report.page import write_report
from equipoise.platform.report.run_files import RunFiles
from equipoise.platform.report.sections.search import build
from equipoise.platform.report.sections.search_figures import parallel_coordinates
from equipoise.platform.report.sections.search_trials import metric_text
from equipoise.platform.report.style import Figure
from equipoise.platform.search.analysis import rank_trials, varied
from equipoise.platform.search.trial_records import trial_table, write_table

_file = Path(__file__).parents[2] / "search" / "searched.py"
_spec = importlib.util.spec_from_file_location("searched", _file)
searched = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(searched)


def run_with(folder: Path, trials: list) -> RunFiles:
    """A run folder of nothing but a search."""
    (folder / "provenance").mkdir(parents=True)
    (folder / "provenance" / "resolved.yaml").write_text(yaml.safe_dump(searched.STUDY))
    write_table(trials, folder / "search" / "trials.parquet")
    return RunFiles(folder)


def section_of(run: RunFiles) -> Section:
    section = build(run, SearchSectionParams())
    assert section is not None
    return section


def of_kind(section: Section, kind: type) -> Iterator:
    yield from (block for block in section.blocks if isinstance(block, kind))


def drawn(section: Section) -> dict[str, Figure]:
    return {figure.slug: figure for block in of_kind(section, Figures) for figure in block.items}


def words(blocks: list[Block]) -> str:
    return json.dumps([repr(block) for block in blocks], ensure_ascii=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Section:
    folder = tmp_path_factory.mktemp("search") / "run"
    return section_of(run_with(folder, searched.trials_of(searched.study_of(), 40)))


def test_the_sentence_names_winner_default_and_who_may_be_best(whole: Section) -> None:
    result = rank_trials(trial_table(searched.trials_of(searched.study_of(), 40)))
    best, first = result.iloc[0], result[result["index"] == 0].iloc[0]
    assert whole.lead == (
        f"Of 40 trials, {best['name']} was chosen: mean over tasks {best['objective']:.3f} "
        f"± {best['objective_se']:.3f} on inner validation; the study as written has {first['objective']:.3f} "
        f"± {first['objective_se']:.3f}. "
        f"{int(result['may_be_best'].sum())} of 37 finished trials cannot be excluded as the best: their order among "
        "themselves may be chance."
    )


def test_everything_is_drawn(whole: Section) -> None:
    assert list(drawn(whole)) == [
        "search-parallel",
        "search-importance",
        "search-methods",
        "search-trials",
        "search-time",
    ]
    assert "need at least 3 independent data sets" in words(list(of_kind(whole, Notice)))
    headings = [block.text for block in of_kind(whole, Heading)]
    assert headings == [
        "Patients that no trial has seen",
        "Settings",
        "Balancing methods",
        "Course of the search",
    ]


def test_the_leaderboard_ends_with_the_study_as_written(whole: Section) -> None:
    board = next(of_kind(whole, Table))
    assert len(board.rows) == 11
    last = board.rows[-1][1]
    assert isinstance(last, Cell)
    assert (last.text, last.note) == ("000-equal+none", "the study as written")
    first = board.rows[0][1]
    assert isinstance(first, Cell)
    assert first.note == "chosen"
    assert list(board.columns)[4:7] == ["MSI, AUROC", "LISS, Pearson r", "OS, Harrell C"]
    assert board.download is not None
    assert board.download.name == "SYNTHETIC-search-leaderboard.csv"
    assert len(board.download.table) == 40


def test_every_setting_of_a_trial_has_a_column(whole: Section) -> None:
    _, settings, *_ = of_kind(whole, Table)
    assert list(settings.columns)[:2] == ["Trial", "Balancing"]
    assert {"lr", "dropout"} <= set(settings.columns)
    last = dict(zip(settings.columns, settings.rows[-1], strict=True))
    assert (last["Trial"], last["Balancing"], last["lr"]) == ("000", "equal+none", "0.0001")
    assert last["uncertainty.lr"] == "–"  # equal weights have no such setting


def test_the_mean_over_tasks_is_explained(whole: Section) -> None:
    board = next(of_kind(whole, Table))
    assert (
        "The mean over tasks is that of their first metrics (AUROC of MSI; Pearson r of LISS; Harrell C of OS), with a "
        "correlation r counted as (r + 1) / 2, so that each runs from 0 to 1."
    ) in board.caption


def test_failures_stand_with_their_reasons(whole: Section) -> None:
    lost = list(of_kind(whole, Table))[-1]
    assert lost.caption == "2 trials of 40 failed"
    assert ["the loss of MSI is nan" in str(row[3]) for row in lost.rows] == [True, True]
    assert any("stopped 1 trial early" in block.text for block in of_kind(whole, Text))


def test_what_chose_is_not_what_measures(whole: Section, tmp_path: Path) -> None:
    assert any("equipoise search --test" in block.text for block in of_kind(whole, Text))
    trials = searched.trials_of(searched.study_of(), 8)
    run = run_with(tmp_path / "run", trials)
    rows = [
        {
            "who": who,
            "part": part,
            "task": "MSI",
            "metric": "auroc",
            "value": v,
            "low": None,
            "high": None,
            "n": 30,
        }
        for part in ("inner validation", "hold-out")
        for who, v in (("000-equal+none", 0.7), ("003-x", 0.8))
    ]
    difference = {"cohort": "hold-out", "task": "MSI", "metric": "auroc", "difference": -0.02, "low": -0.1}
    difference |= {"high": 0.06, "p": 0.6, "p_joint": 0.6, "method": "paired"}
    facts = {
        "winner": "003-x",
        "default": "000-equal+none",
        "looks": 2,
        "rows": rows,
        "differences": [difference],
    }
    (tmp_path / "run" / "search" / "test.json").write_text(json.dumps(facts))
    section = section_of(run)
    # What the trials saw is not among what no trial saw.
    _, _, table, seen, *_ = of_kind(section, Table)
    assert [str(c) for c in table.columns[2:4]] == ["003-x (winner)", "000-equal+none (as written)"]
    assert table.columns[-1] == "Labelled patients"
    assert [row[0] for row in table.rows] == ["hold-out"]
    assert [row[0] for row in seen.rows] == ["inner validation"]
    assert "Difference" not in seen.columns
    assert table.rows[0][2:4] == ["0.800", "0.700"]
    cell = table.rows[0][4]
    assert isinstance(cell, Cell)
    assert cell.text == "−0.020 (−0.100 to 0.060)"
    assert any("2 winners" in item for block in of_kind(section, Notice) for item in block.items)


def test_strategies_are_ranked_beside_balancing_methods(tmp_path: Path) -> None:
    trials = [
        replace(trial, config={**trial.config, "federation.strategy": ("fedavg", "fedprox")[trial.index % 2]})
        for trial in searched.trials_of(searched.study_of(), 24)
    ]
    section = section_of(run_with(tmp_path / "run", trials))
    title = "Balancing methods and federation strategies"
    assert title in [block.text for block in of_kind(section, Heading)]
    (board,) = [t for t in of_kind(section, Table) if t.columns[0] == "Method"]
    kinds = {cell.text: cell.note for cell, *_ in board.rows}
    assert {"fedavg": "federation strategy", "fedprox": "federation strategy"}.items() <= kinds.items()
    assert kinds["equal+none"] == "balancing"
    medians = [float(str(row[2])) for row in board.rows]
    assert medians == sorted(medians)  # one order for both
    assert len(drawn(section)["search-methods"].data) == len(board.rows)


def test_few_trials_are_said_to_be_few(tmp_path: Path) -> None:
    section = section_of(run_with(tmp_path / "run", searched.trials_of(searched.study_of(), 8)))
    assert "search-importance" not in drawn(section)
    assert any("too few" in block.text for block in of_kind(section, Text))


def test_a_search_over_the_simplex_has_no_methods(tmp_path: Path) -> None:
    study = searched.study_of({"space": {"loss_weights": "simplex"}})
    section = section_of(run_with(tmp_path / "run", searched.trials_of(study, 10)))
    assert "search-methods" not in drawn(section)
    assert "Balancing methods" not in [block.text for block in of_kind(section, Heading)]
    assert "loss_weights.MSI" in repr(drawn(section)["search-parallel"].layout)


def test_the_chosen_trial_may_be_a_simpler_one(tmp_path: Path) -> None:
    trials = searched.trials_of(searched.study_of(), 8)
    run = run_with(tmp_path / "run", trials)
    (tmp_path / "run" / "search" / "best.json").write_text(json.dumps({"trial": trials[0].name}))
    lead = section_of(run).lead
    assert "It is the study as written." in lead
    best = rank_trials(trial_table(trials)).iloc[0]["name"]
    assert lead.endswith(f"{best} is told apart from each of the other 4 finished trials.")


def test_nothing_but_failures_is_said(tmp_path: Path) -> None:
    section = section_of(run_with(tmp_path / "run", searched.trials_of(searched.study_of(), 4, failed=4)))
    assert section.lead == "None of 4 trials finished all its folds."
    assert not drawn(section)


def test_a_run_without_a_search_has_no_section_and_a_broken_table_is_named(tmp_path: Path) -> None:
    assert build(RunFiles(tmp_path), SearchSectionParams()) is None
    (tmp_path / "search").mkdir()
    (tmp_path / "search" / "trials.parquet").write_text("no parquet")
    section = build(RunFiles(tmp_path), SearchSectionParams())
    assert section is not None
    assert any("cannot be read" in block.title for block in of_kind(section, Notice))


def test_lines_cross_their_axes_where_their_settings_are() -> None:
    table = trial_table(searched.trials_of(searched.study_of(), 30))
    result = rank_trials(table)
    figure = parallel_coordinates(result, varied(table), "mean over tasks")
    assert figure is not None
    (best,) = [trace for trace in figure.data if trace.get("name") == "the best"]
    assert best["y"][-2] == 1  # the last axis is the objective
    lines = [t for t in figure.data if str(t.get("name")).endswith("third")]
    assert sum(list(t["x"]).count(None) for t in lines) == int(result["rank"].notna().sum())
    assert any(note["text"] == "none" for note in figure.layout["annotations"])


def test_the_page_has_the_section_and_names_stay_text(tmp_path: Path) -> None:
    trials = searched.trials_of(searched.study_of(), 8)
    run_with(tmp_path / "run", [replace(trials[0], reason="<b>x</b>", status="failed"), *trials[1:]])
    html = write_report(tmp_path / "run").read_text()
    assert '<section id="search"' in html
    assert "<b>x</b>" not in re.sub(r"<script.*?</script>", "", html, flags=re.S)


def test_metrics_in_words() -> None:
    assert metric_text("val/MSI/auroc") == "AUROC of MSI"
    assert metric_text("val/mean") == "mean over tasks"
    assert metric_text("objective") == "objective"
