"""``equipoise leaderboard``: files, page, refusals, and the command itself."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from equipoise.platform.errors import DataError
from equipoise.platform.evaluation.predictions import read_predictions, write_predictions
from equipoise.platform.report.blocks import Table, Text
from equipoise.platform.report.formatting import number
from equipoise.platform.report.leaderboard import (
    WrittenLeaderboard,
    leaderboard_text,
    unique_names,
    write_leaderboard,
)
from equipoise.platform.report.run_files import RunFiles
from equipoise.platform.report.sections.federation_ranking import beside_own_training

WAYS = (("equal", "none"), ("uncertainty", "none"), ("equal", "pcgrad"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, made: type, write: object) -> list[Path]:
    root = tmp_path_factory.mktemp("runs")
    return [
        write(root / f"{w}-{a}", made(model_seed=i, noise=i / 2, balancing=(w, a)))  # type: ignore[operator]
        for i, (w, a) in enumerate(WAYS)
    ]


@pytest.fixture(scope="module")
def written(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> WrittenLeaderboard:
    return write_leaderboard(runs, tmp_path_factory.mktemp("out"), "equal-pcgrad")


def test_tables_are_written_and_marked(written: WrittenLeaderboard) -> None:
    table = pd.read_csv(written.table)
    assert table["method"].tolist() == written.board.order
    assert set(table["balancing"]) == {"equal", "uncertainty", "pcgrad"}
    assert table["synthetic"].all()
    assert {"test/MSI/auroc", "test/MSI/auroc/low", "external/crc-x/OS/c_index", "mean_rank"} <= set(table)
    assert {"test/MSI/silhouette_cosine", "test/Grade/silhouette_euclidean"} <= set(table)
    differences = pd.read_csv(written.table.with_name("differences.csv"))
    assert set(differences["reference"]) == {written.board.best, "equal-pcgrad"}
    assert {"silhouette_cosine", "auroc", "mae", "c_index"} <= set(differences["metric"])


def test_values_are_those_of_each_runs_own_metrics(written: WrittenLeaderboard, runs: list[Path]) -> None:
    table = pd.read_csv(written.table, index_col="method")
    assert len(runs) > 0
    for run in runs:
        metrics = pd.read_csv(run / "evaluation/metrics.csv", keep_default_na=False)
        subset = metrics.query("site == 'all' and fold == 'all' and predictor == 'model' and `class` == ''")
        for column, where in (
            ("test/MSI/auroc", "role == 'test' and cohort == 'all' and task == 'MSI' and metric == 'auroc'"),
            ("external/crc-x/OS/c_index", "role == 'external' and task == 'OS' and metric == 'c_index'"),
        ):
            row = subset.query(where).iloc[0]
            for suffix, name in (("", "value"), ("/low", "low"), ("/high", "high")):
                assert table.loc[run.name, column + suffix] == pytest.approx(float(row[name]))


def test_the_page_is_whole_and_says_synthetic(written: WrittenLeaderboard) -> None:
    html = written.page.read_text()
    sections = re.findall(r'<section id="(\w+)"', html)
    assert sections == ["ranking", "pairs", "tasks", "differences", "metrics", "runs"]
    assert "SYNTHETIC DATA" in html
    assert not re.search(r'(?:src|href)="https?:', re.sub(r"<script>.*?</script>", "", html, flags=re.S))
    slugs = " ".join(re.findall(r'<figure id="figure-\d+-([^"]+)"', html))
    assert "critical-difference" not in slugs
    assert "forest-msi" in slugs
    assert "differences-msi-auroc-equal-pcgrad" in slugs
    assert "need at least 3 independent data sets" in html
    assert "corrected for all pairs" in html
    assert "not excluded as the best" in html


def test_the_terminal_gets_the_caution_too(written: WrittenLeaderboard) -> None:
    lines = leaderboard_text(written).splitlines()
    assert lines[0].startswith("SYNTHETIC DATA")
    assert lines[1].split()[:3] == ["run", "mean", "rank"]
    assert lines[2].startswith(written.board.order[0])
    assert any("MSI AUROC, test" in line for line in lines)
    assert max(map(len, lines)) <= 100
    assert sum(line.startswith(f"{written.board.order[0]} ") for line in lines) > 1, "a table goes on below"
    text = " ".join(lines)
    assert "this is one data set" in text
    assert any(line.startswith("MSI: ") and "not excluded as the best" in line for line in lines)


def test_runs_without_latents_have_no_silhouettes(runs: list[Path], tmp_path: Path) -> None:
    copies = [Path(shutil.copytree(run, tmp_path / run.name)) for run in runs[:2]]
    (copies[1] / "folds/0-0/latents.parquet").unlink()
    board = write_leaderboard(copies, tmp_path / "out").board
    has = {c.name: c.latents is not None for c in board.candidates}
    assert has == {"equal-none": True, "uncertainty-none": False}
    assert not board.differences["metric"].str.startswith("silhouette").any()


def test_runs_of_other_patients_are_refused_by_name(
    runs: list[Path], tmp_path: Path, made: type, write: object
) -> None:
    other = write(tmp_path / "other", made(patients=30))  # type: ignore[operator]
    with pytest.raises(DataError, match=r"task \w+, val patients: .* only in equal-none"):
        write_leaderboard([runs[0], other], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_no_run_is_refused(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such run folder"):
        write_leaderboard([runs[0], tmp_path / "absent"], tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no predictions yet"):
        write_leaderboard([runs[0], tmp_path / "empty"], tmp_path / "out")
    with pytest.raises(DataError, match="named twice"):
        write_leaderboard([runs[0], runs[0]], tmp_path / "out")
    with pytest.raises(DataError, match="no run 'x'"):
        write_leaderboard(runs[:2], tmp_path / "out", "x")


def test_names_are_as_short_as_they_can_be() -> None:
    assert unique_names([Path("/a/one"), Path("/a/two")]) == ["one", "two"]
    assert unique_names([Path("/a/one/run"), Path("/a/two/run"), Path("/b")]) == ["one/run", "two/run", "//b"]


def test_the_command_writes_what_it_says(runs: list[Path], tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "equipoise.jobs.leaderboard",
        *map(str, runs[:2]),
        "-o",
        str(tmp_path / "lb"),
    ]
    done = subprocess.run(
        [*command, "--baseline", "uncertainty-none"], capture_output=True, text=True, timeout=120, check=True
    )
    result = json.loads(done.stderr.strip().splitlines()[-1].removeprefix("EQUIPOISE-RESULT "))
    assert result["status"] == "ok"
    assert result["synthetic"] is True
    assert Path(result["page"]).exists()
    assert "may be best" in done.stdout


def test_a_federation_is_ranked_beside_balancing_methods(
    runs: list[Path], written: WrittenLeaderboard, tmp_path: Path
) -> None:
    first = Path(shutil.copytree(runs[0], tmp_path / runs[0].name))
    home = first / "federated"
    (home / "predictions/folds").mkdir(parents=True)
    setting = {"federation": {"strategy": "fedprox", "server_aggregation": "median"}}
    (home / "setting.json").write_text(json.dumps(setting))
    # The federated model predicts what another run's model does: so it must have that run's values.
    predictions = read_predictions(runs[1] / "evaluation/predictions.parquet")
    write_predictions(predictions, home / "predictions/folds/federated.parquet")
    alone = write_leaderboard([first], tmp_path / "out")
    name = "equal-none (fedprox, median)"
    assert set(alone.board.order) == {"equal-none", name}
    columns = ["test/MSI/auroc", "test/LISS/pearson", "external/crc-x/OS/c_index"]
    known = pd.read_csv(written.table, index_col="method")
    table = pd.read_csv(alone.table, index_col="method")
    assert table.loc[name, columns].to_list() == pytest.approx(
        known.loc["uncertainty-none", columns].to_list()
    )
    assert table.loc[name, "balancing"] == "equal, federated by fedprox, median"
    assert alone.remarks == ()
    assert name in alone.page.read_text()
    _, shown = beside_own_training(RunFiles(first))
    assert isinstance(shown, Table)
    assert shown.rows[0][0] == "MSI, AUROC"
    difference = known.loc["uncertainty-none", columns[0]] - known.loc["equal-none", columns[0]]
    assert shown.rows[0][3].text.startswith(f"{number(difference)} (")


def test_a_federation_of_other_folds_is_left_out_with_a_reason(runs: list[Path], tmp_path: Path) -> None:
    first = Path(shutil.copytree(runs[0], tmp_path / "run"))
    (first / "federated/predictions/folds").mkdir(parents=True)
    (first / "federated/setting.json").write_text(json.dumps({"federation": {"strategy": "fedavg"}}))
    predictions = read_predictions(first / "evaluation/predictions.parquet")
    write_predictions(
        predictions[predictions["fold"] == 0], first / "federated/predictions/folds/federated.parquet"
    )
    _, text = beside_own_training(RunFiles(first))
    assert isinstance(text, Text)
    assert text.text.startswith("Not compared: task ")
    with pytest.raises(DataError, match="two runs or more"):
        write_leaderboard([first], tmp_path / "out")
