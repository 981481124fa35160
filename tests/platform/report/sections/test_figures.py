"""Figures: what is in the data is in the picture and in its CSV, and nothing breaks JSON or HTML."""

import base64
import io
import xml.etree.ElementTree as ET

import numpy as np
import pandas as pd
import pytest

from equipoise.platform.report import forest
from equipoise.platform.report.charts import chart
from equipoise.platform.report.sections import classification, quality, regression, survival, training
from equipoise.platform.report.style import MAX_POINTS, Download, Figure, layout, plain, slug, text


def binary(n: int = 60, folds: int = 3) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    y = (np.arange(n) // folds % 3 == 0).astype(float)
    score = 1 / (1 + np.exp(-(2 * y - 1 + rng.normal(size=n))))
    rows = pd.DataFrame({"patient": [f"p{i}" for i in range(n)], "fold": np.arange(n) % folds, "target": y})
    return rows.assign(score=score, cohort="a", repeat=0, **{"class": "x"})


def test_roc_has_a_line_per_fold_and_their_mean() -> None:
    figure = classification.roc_of_folds(binary(), "MSI")
    assert figure is not None
    names = [t["name"] for t in figure.data]
    assert names == ["chance", "fold 0-0", "fold 0-1", "fold 0-2", "mean of 3 folds"]
    assert set(figure.table["curve"]) == {"fold 0-0", "fold 0-1", "fold 0-2", "mean"}
    ET.fromstring(chart.draw(figure, chart.HALF, "f"))


def test_folds_with_one_class_are_left_out_of_roc() -> None:
    rows = binary()
    rows.loc[rows["fold"] == 1, "target"] = 0.0
    figure = classification.roc_of_folds(rows, "MSI")
    assert figure is not None
    assert "fold 0-1" not in set(figure.table["curve"])
    assert classification.roc_of_folds(rows.assign(target=0.0), "MSI") is None
    assert classification.precision_recall_figure(rows.assign(target=0.0), "MSI", "x", external=False) is None


def test_external_roc_has_a_band() -> None:
    rows = binary(folds=1)
    figure = classification.roc_external(rows, "MSI", "<b>X</b>", 0.9, np.random.SeedSequence(0))
    assert figure is not None
    names = [t.get("name") for t in figure.data]
    assert "90 % band" in names
    assert "&lt;b&gt;X&lt;/b&gt;" in names
    band = figure.table[figure.table["curve"] == "band"]
    assert (band["low"] <= band["high"]).all()
    none = classification.roc_external(rows.assign(target=1.0), "MSI", "X", 0.9, np.random.SeedSequence(0))
    assert none is None


def test_precision_recall_shows_the_prevalence() -> None:
    figure = classification.precision_recall_figure(binary(), "MSI", "test folds", external=False)
    assert figure is not None
    assert figure.data[0]["y"] == pytest.approx([1 / 3, 1 / 3], abs=0.03)


def test_kaplan_meier_has_both_groups_risk_table_and_test() -> None:
    from lifelines.statistics import logrank_test

    rng = np.random.default_rng(1)
    high = rng.random(80) < 0.5
    time = rng.exponential(np.where(high, 300, 900)) + 1
    event = (rng.random(80) < 0.7).astype(float)
    groups = pd.DataFrame({"time": time, "event": event, "positive": high})
    figure = survival.kaplan_meier_figure(groups, "OS", "test folds", 0.95)
    assert figure is not None
    expected = logrank_test(time[high], time[~high], event[high], event[~high]).p_value
    shown = figure.layout["annotations"][0]["text"]
    assert shown == ("log-rank p < 0.001" if expected < 0.001 else f"log-rank p = {expected:.3f}")
    assert "number" in figure.layout["annotations"][1]["text"].lower()
    at_risk = [t for t in figure.data if t.get("name") == "at risk"]
    assert [t["text"][0] for t in at_risk] == [str((~high).sum()), str(high.sum())]
    ET.fromstring(chart.draw(figure, chart.HALF, "f"))


def test_kaplan_meier_of_one_group_or_nobody() -> None:
    groups = pd.DataFrame({"time": [10.0, 20.0], "event": [1.0, 0.0], "positive": [True, True]})
    figure = survival.kaplan_meier_figure(groups, "OS", "x", 0.95)
    assert figure is not None
    assert figure.layout["annotations"][0]["text"] == "log-rank p not estimable"
    assert survival.kaplan_meier_figure(groups.iloc[:0], "OS", "x", 0.95) is None


def test_scatter_is_thinned_and_says_so() -> None:
    n = 4 * MAX_POINTS
    rows = pd.DataFrame({"patient": [str(i) for i in range(n)], "cohort": "a", "target": np.arange(n) * 1.0,
                         "score": np.arange(n) * 0.9})  # fmt: skip
    figure = regression.scatter(rows, "LISS", "test folds")
    assert figure is not None
    assert len(figure.table) == MAX_POINTS
    assert f"{MAX_POINTS} of {n} patients are drawn" in figure.how_to_read
    few = regression.scatter(rows.head(10), "LISS", "test folds")
    assert few is not None
    assert "are drawn" not in few.how_to_read
    assert regression.scatter(rows.head(0), "LISS", "x") is None


def test_forest_leaves_out_rows_without_value_and_bars_without_interval() -> None:
    base = {"role": "test", "n": 10, "n_pos": 3, "method": "", "note": "", "high": np.nan, "low": np.nan}
    rows = [
        {**base, "name": "all", "value": 0.8, "low": 0.7, "high": 0.9},
        {**base, "name": "tiny", "value": np.nan},
        {**base, "name": "perfect", "value": 1.0, "role": "external"},
    ]
    figure = forest.forest(rows, "MSI", "auroc", 0.5, 0.95)
    assert figure is not None
    inside, outside = figure.data
    assert inside["error_x"]["array"] == pytest.approx([0.1])
    assert outside["error_x"]["array"] == [None]
    assert figure.layout["yaxis"]["ticktext"] == ["perfect", "all"]
    low, high = figure.layout["xaxis"]["range"]
    assert low < 0.5 < 1.0 < high
    assert forest.forest(rows[1:2], "MSI", "auroc", 0.5, 0.95) is None


def test_histogram_counts_every_used_slide() -> None:
    slides = pd.DataFrame({"cohort": ["a"] * 30 + ["b"] * 10, "status": ["ok"] * 38 + ["unreadable"] * 2,
                           "n": np.r_[np.arange(38.0) + 5, np.nan, np.nan]})  # fmt: skip
    figure = quality.tiles_histogram(slides)
    assert figure is not None
    assert figure.table["slides"].sum() == 38
    same = quality.tiles_histogram(slides.assign(n=64.0))
    assert same is not None
    assert same.table["slides"].sum() == 38
    assert quality.tiles_histogram(slides.assign(status="error")) is None


def test_training_curves() -> None:
    history = pd.DataFrame({"epoch": [1, 2, 3], "train/MSI": [0.7, 0.5, 0.3], "val/MSI": [0.7, np.nan, 0.8],
                            "monitor": [0.7, 0.6, 0.8]})  # fmt: skip
    figure = training.loss_curves({"0-0": history, "0-1": history}, "train/MSI", "val/MSI", "MSI")
    assert figure is not None
    assert len(figure.data) == 4
    assert plain(figure.data[2]["y"]) == [0.7, None, 0.8]
    watched = training.monitor_curves({"0-0": history})
    assert watched is not None
    assert watched.data[1]["x"] == [2]
    assert training.loss_curves({"0-0": history}, "train/OS", "val/OS", "OS") is None
    assert training.monitor_curves({"0-0": history.drop(columns="monitor")}) is None


def test_the_monitors_of_a_history_say_which_epochs_they_keep() -> None:
    first = pd.DataFrame({"epoch": [1, 2, 3], "monitor": [0.2, 0.1, 0.1], "monitor/mean_metric": [0.2, 0.1, 0.1],
                          "monitor/mean_loss": [0.9, 0.8, 0.7], "monitor/val_loss": [3.0, 4.0, 5.0]})  # fmt: skip
    second = first.assign(
        **{"monitor/val_loss": [3.0, 2.0, 4.0], "monitor/mean_metric": np.nan, "monitor": [3, 2, 4]}
    )
    table = training.monitor_sensitivity({"0-0": first, "0-1": second})
    assert table is not None
    assert table.rows == [
        ["mean_metric", "3", "1 of 1", "0.900", "0.700"],
        ["mean_loss", "3, 3", "1 of 2", "0.900", "0.700"],
        ["val_loss", "1, 2", "1 of 2", "0.800", "0.850"],
    ]
    watched = training.monitor_curves({"0-0": first})
    assert watched is not None
    assert watched.data[1]["x"] == [3]  # equal values are told apart by the relative loss, as training does
    assert training.monitor_sensitivity({"0-0": first[["epoch", "monitor"]]}) is None


def test_synthetic_figures_carry_the_word_inside_and_in_the_file_name() -> None:
    figure = Figure("roc", "ROC", [], layout("x", "y"), "", pd.DataFrame({"a": [1]}))
    assert ">SYNTHETIC DATA</text>" in chart.draw(figure, chart.HALF, "f", synthetic=True)
    assert "SYNTHETIC" not in chart.draw(figure, chart.HALF, "f")
    assert figure.download(synthetic=True).name == "SYNTHETIC-roc.csv"
    assert figure.download(synthetic=False).name == "roc.csv"


def test_csv_link_holds_the_table() -> None:
    table = pd.DataFrame({"name": ["a,b", '"q"', "ä"], "value": [1.5, np.nan, 1e-9]})
    head, _, body = Download("t.csv", table).uri.partition(",")
    assert head == "data:text/csv;charset=utf-8;base64"
    back = pd.read_csv(io.BytesIO(base64.b64decode(body)))
    pd.testing.assert_frame_equal(back, table)


def test_plain_slug_text() -> None:
    value = {"a": np.array([1.0, np.nan]), "b": (np.int64(3), float("inf")), "c": np.float32(0.1)}
    assert plain(value) == {"a": [1.0, None], "b": [3, None], "c": 0.1}
    assert slug("ROC", "MSI / <x>") == "roc-msi-x"
    assert slug("<>") == "figure"
    assert text("<a href='http://x'>&") == "&lt;a href='http://x'&gt;&amp;"
