"""The metrics table against scikit-learn on the predictions, and values that are not estimable."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from equipoise.platform.evaluation.evaluate import METRIC_COLUMNS, evaluate
from equipoise.platform.evaluation.intervals import delong_interval
from equipoise.platform.evaluation.params import EvaluationParams, ThresholdParams

Rows = Callable[..., pd.DataFrame]
FAST = EvaluationParams(bootstrap=200)


def row(metrics: pd.DataFrame, metric: str, **wanted: str) -> pd.Series:
    """The only row that matches."""
    cohort = "all" if wanted.get("role", "test") != "external" else "a"
    base = {"role": "test", "cohort": cohort, "site": "all", "class": "", "predictor": "model", "fold": "all"}
    keep = metrics["metric"] == metric
    for column, value in (base | {k.rstrip("_"): v for k, v in wanted.items()}).items():
        keep &= metrics[column] == value
    assert keep.sum() == 1, metrics[keep]
    return metrics[keep].iloc[0]


def test_cross_validation_is_the_mean_of_the_folds_not_the_pool(binary: Rows) -> None:
    from sklearn.metrics import average_precision_score, roc_auc_score

    rows = binary()
    metrics = evaluate(rows, FAST)
    assert tuple(metrics) == METRIC_COLUMNS
    for metric, oracle in (("auroc", roc_auc_score), ("auprc", average_precision_score)):
        by_fold = [oracle(g["target"], g["score"]) for _, g in rows.groupby("fold")]
        result = row(metrics, metric)
        assert result["value"] == pytest.approx(np.mean(by_fold))
        assert result["low"] < result["value"] < result["high"]
        folds = metrics[
            (metrics["metric"] == metric) & (metrics["predictor"] == "model") & (metrics["fold"] != "all")
        ]
        assert folds["value"].tolist() == pytest.approx(by_fold)
        assert folds["fold"].tolist() == ["0-0", "0-1", "0-2", "0-3"]
    pooled = roc_auc_score(rows["target"], rows["score"])
    assert abs(pooled - row(metrics, "auroc")["value"]) > 0.05
    result = row(metrics, "auroc")
    assert "variance x 2.33" in result["method"]
    assert result["estimand"] == "these 4 models; procedure trained on 75 % of the patients"


def test_external_is_the_metric_of_the_mean_score(binary: Rows) -> None:
    from sklearn.metrics import average_precision_score, roc_auc_score

    rows = pd.concat([binary("val"), binary("external", models=4)])
    metrics = evaluate(rows, FAST)
    mean = rows[rows["role"] == "external"].groupby("patient")[["score", "target"]].mean()
    result = row(metrics, "auroc", role="external")
    assert result["value"] == pytest.approx(roc_auc_score(mean["target"], mean["score"]))
    exact = delong_interval(mean["target"], mean["score"])
    assert (result["low"], result["high"]) == pytest.approx((exact.low, exact.high))
    assert result["estimand"] == "this ensemble"
    assert np.isnan([result["low_procedure"], result["high_procedure"]]).all()
    expected = average_precision_score(mean["target"], mean["score"])
    assert row(metrics, "auprc", role="external")["value"] == pytest.approx(expected)
    assert result["n"] == 40


def test_external_cohorts_are_apart_and_together_only_if_several(binary: Rows) -> None:
    one = binary("external", cohort="x")
    metrics = evaluate(one, FAST)
    assert set(metrics["cohort"]) == {"x"}
    metrics = evaluate(pd.concat([one, binary("external", cohort="y", prefix="q")]), FAST)
    assert set(metrics["cohort"]) == {"x", "y", "all", "pooled"}


def test_thresholds_are_those_of_the_folds_validation_patients(binary: Rows) -> None:
    from equipoise.platform.evaluation.thresholds import fold_thresholds

    rows = pd.concat([binary("val"), binary("test"), binary("external", models=4)])
    rule = ThresholdParams(metric="sensitivity", value=0.8)
    params = EvaluationParams(bootstrap=100, threshold=rule)
    metrics = evaluate(rows, params)
    cuts = fold_thresholds(rows, rule)
    test = rows[rows["role"] == "test"]
    by_fold = [((g["score"] >= cuts[(0, k)]) & (g["target"] == 1)).sum() / (g["target"] == 1).sum()
               for k, g in test.groupby("fold")]  # fmt: skip
    assert row(metrics, "sensitivity")["value"] == pytest.approx(np.mean(by_fold))
    assert row(metrics, "threshold")["value"] == pytest.approx(cuts.mean())
    mean = rows[rows["role"] == "external"].groupby("patient")[["score", "target"]].mean()
    called = mean["score"] >= cuts.mean()
    expected = (~called & (mean["target"] == 0)).sum() / (mean["target"] == 0).sum()
    assert row(metrics, "specificity", role="external")["value"] == pytest.approx(expected)
    assert "sensitivity >= 0.8, chosen on validation" in row(metrics, "threshold")["method"]
    # With a threshold chosen on the same patients the values would be too optimistic.
    assert not metrics[(metrics["role"] == "val") & (metrics["metric"] == "sensitivity")].size


def test_without_validation_there_is_no_threshold_and_the_row_says_so(binary: Rows) -> None:
    result = row(evaluate(binary(), FAST), "balanced_accuracy")
    assert np.isnan([result["value"], result["low"], result["high"]]).all()
    assert "there are no validation patients" in result["note"]
    one_class = pd.concat([binary(), binary("val", prefix="v").query("target == 0")])
    assert "validation part lacks a class" in row(evaluate(one_class, FAST), "balanced_accuracy")["note"]


def test_an_ensemble_threshold_over_some_folds_says_so(binary: Rows) -> None:
    val = binary("val")
    val = val.assign(target=np.where(val["fold"] == 1, 0.0, val["target"]))
    result = row(
        evaluate(pd.concat([val, binary("external", models=4)]), FAST), "sensitivity", role="external"
    )
    assert "threshold is the mean of 3 of 4 folds" in result["note"]


def test_a_fold_with_one_class_is_left_out_and_named(binary: Rows) -> None:
    rows = binary()
    rows = rows.assign(target=np.where(rows["fold"] == 2, 0.0, rows["target"]))
    metrics = evaluate(rows, FAST)
    result = row(metrics, "auroc")
    rest = metrics[(metrics["metric"] == "auroc") & (metrics["fold"] != "all")]["value"]
    assert result["value"] == pytest.approx(rest.dropna().mean())
    assert rest.isna().sum() == 1
    assert "mean of 3 of 4 folds; not estimable in 0-2 (0-2: all 10 patients are negative)" in result["note"]


def test_one_class_everywhere_is_nan_with_its_reason(binary: Rows) -> None:
    result = row(evaluate(binary().assign(target=1.0), FAST), "auroc")
    assert np.isnan(result["value"])
    assert "all 10 patients are positive" in result["note"]


def test_no_label_is_nan_with_its_reason(binary: Rows) -> None:
    result = row(evaluate(binary().assign(target=np.nan), FAST), "auroc")
    assert np.isnan(result["value"])
    assert result["n"] == 0
    assert "no labelled patient" in result["note"]


def test_perfect_scores_have_no_interval(binary: Rows) -> None:
    rows = binary().assign(score=lambda t: 0.2 + 0.6 * t["target"])
    result = row(evaluate(rows, FAST), "auroc")
    assert result["value"] == 1.0
    assert np.isnan([result["low"], result["high"]]).all()
    assert "not estimable" in result["note"]


def test_few_positives_are_pointed_out(binary: Rows) -> None:
    assert "fewer than 5 positives in 0-0, 0-1, 0-2, 0-3" in row(evaluate(binary(), FAST), "auroc")["note"]
    assert row(evaluate(binary(n=120), FAST), "auroc")["note"] == ""


def test_the_same_seed_gives_the_same_table(binary: Rows, survival: Rows) -> None:
    rows = pd.concat([binary(), survival()])
    first = evaluate(rows, FAST, 3)
    pd.testing.assert_frame_equal(first, evaluate(rows.sample(frac=1, random_state=1), FAST, 3))
    # Nothing but the bootstrap of silhouettes is random.
    pd.testing.assert_frame_equal(first, evaluate(rows, FAST, 4))


def test_an_interval_does_not_depend_on_other_tasks_or_cohorts(binary: Rows, regression: Rows) -> None:
    alone = row(evaluate(binary(), FAST), "auroc")
    more = pd.concat([binary(), regression(), binary("external", cohort="x")])
    pd.testing.assert_series_equal(alone, row(evaluate(more, FAST), "auroc"), check_names=False)


def test_the_procedure_is_less_certain_than_these_models(binary: Rows) -> None:
    result = row(evaluate(binary(n=200), FAST), "auroc")
    assert result["low_procedure"] < result["low"] < result["value"]
    assert result["value"] < result["high"] < result["high_procedure"]
    assert result["note"] == ""


def test_repeating_the_same_folds_does_not_shrink_the_interval(binary: Rows) -> None:
    rows = binary(n=200)
    once = row(evaluate(rows, FAST), "auroc")
    thrice = row(evaluate(pd.concat([rows.assign(repeat=r) for r in range(3)]), FAST), "auroc")
    exact = influence_of(rows)
    assert (thrice["low"], thrice["high"]) == pytest.approx(exact)  # of fixed models, never less
    assert (thrice["low_procedure"], thrice["high_procedure"]) == pytest.approx((once["low"], once["high"]))
    assert once["n"] == thrice["n"] == 200


def influence_of(rows: pd.DataFrame) -> tuple[float, float]:
    """DeLong's variances of the folds added up, on the logit scale."""
    from equipoise.platform.evaluation.intervals import delong

    parts = [delong(g["target"], g["score"]) for _, g in rows.groupby("fold")]
    a = np.mean([auc[0] for auc, _ in parts])
    half = 1.959964 * np.sqrt(sum(c[0, 0] for _, c in parts)) / len(parts) / (a * (1 - a))
    return tuple(1 / (1 + np.exp(-(np.log(a / (1 - a)) + np.array([-half, half])))))  # type: ignore[return-value]


def test_regression_with_its_trivial_predictor(regression: Rows) -> None:
    from sklearn.metrics import mean_absolute_error, r2_score

    rows = pd.concat([regression("val"), regression("test")])
    metrics = evaluate(rows, FAST)
    test = rows[rows["role"] == "test"].groupby("fold")
    means = rows[rows["role"] == "val"].groupby("fold")["target"].mean()
    assert row(metrics, "pearson")["value"] == pytest.approx(
        np.mean([np.corrcoef(g["target"], g["score"])[0, 1] for _, g in test])
    )
    assert row(metrics, "r2")["value"] == pytest.approx(
        np.mean([r2_score(g["target"], g["score"]) for _, g in test])
    )
    for metric, oracle in (("r2", r2_score), ("mae", mean_absolute_error)):
        expected = np.mean([oracle(g["target"], np.full(len(g), means[k])) for k, g in test])
        result = row(metrics, metric, predictor="validation mean")
        assert result["value"] == pytest.approx(expected)
        assert np.isnan(result["low"])
        assert result["method"] == "baseline"
    assert pd.isna(row(metrics, "pearson")["n_pos"])


@pytest.mark.parametrize(
    ("change", "metric", "why"),
    [
        ({"score": 1.0}, "pearson", "all predictions are equal"),
        ({"target": 2.0}, "pearson", "all targets are equal"),
        ({"target": 2.0}, "r2", "all targets are equal"),
    ],
)
def test_constant_columns_say_what_is_constant(regression: Rows, change: dict, metric: str, why: str) -> None:
    result = row(evaluate(regression().assign(**change), FAST), metric)
    assert np.isnan(result["value"])
    assert why in result["note"]


def test_two_patients_make_no_correlation(regression: Rows) -> None:
    result = row(evaluate(regression(n=8), FAST), "pearson")
    assert np.isnan(result["value"])
    assert "a correlation needs three" in result["note"]


def test_survival_equals_lifelines_per_fold(survival: Rows) -> None:
    from lifelines.utils import concordance_index

    rows = survival()
    metrics = evaluate(rows, FAST)
    by_fold = [concordance_index(g["time"], -g["score"], g["event"]) for _, g in rows.groupby("fold")]
    result = row(metrics, "c_index")
    assert result["value"] == pytest.approx(np.mean(by_fold))
    assert result["n_pos"] == rows["event"].sum()
    assert row(metrics, "c_index", predictor="chance")["value"] == 0.5


def test_no_event_is_nan_with_its_reason(survival: Rows) -> None:
    result = row(evaluate(survival().assign(event=0.0), FAST), "c_index")
    assert np.isnan(result["value"])
    assert "no event among 10 patients" in result["note"]


def test_multiclass_per_class_and_macro(multiclass: Rows) -> None:
    from sklearn.metrics import balanced_accuracy_score, roc_auc_score

    rows = multiclass("external")
    metrics = evaluate(rows, FAST)
    score = rows.pivot_table(index="patient", columns="class", values="score")
    truth = rows.pivot_table(index="patient", columns="class", values="target").to_numpy().argmax(1)
    result = row(metrics, "auroc", role="external")
    share = score / score.sum(1).to_numpy()[:, None]
    assert result["value"] == pytest.approx(roc_auc_score(truth, share, multi_class="ovr"))
    assert result["low"] < result["value"] < result["high"]
    one = row(metrics, "auroc", role="external", class_="G2")
    assert one["value"] == pytest.approx(roc_auc_score(truth == 1, score["G2"]))
    exact = delong_interval(truth == 1, score["G2"])
    assert (one["low"], one["high"]) == pytest.approx((exact.low, exact.high))
    expected = balanced_accuracy_score(truth, score.to_numpy().argmax(1))
    assert row(metrics, "balanced_accuracy", role="external")["value"] == pytest.approx(expected)
    chance = row(metrics, "balanced_accuracy", role="external", predictor="chance")
    assert chance["value"] == pytest.approx(1 / 3)


def test_multiclass_without_a_class_has_no_macro_value(multiclass: Rows) -> None:
    rows = multiclass()
    g3 = rows["class"] == "G3"
    patients = set(rows.loc[g3 & (rows["target"] == 1), "patient"])
    moved = rows["patient"].isin(patients)
    rows.loc[moved & g3, "target"] = 0.0
    rows.loc[moved & (rows["class"] == "G1"), "target"] = 1.0
    result = row(evaluate(rows, FAST), "auroc")
    assert np.isnan(result["value"])
    assert "class G3" in result["note"]


def test_sites_get_the_primary_metric_or_the_reason_why_not(binary: Rows) -> None:
    rows = binary(n=120)
    metrics = evaluate(rows, EvaluationParams(bootstrap=100, min_site=20))
    sites = metrics[metrics["site"] != "all"]
    assert set(sites["site"]) == {"a0", "a1"}
    assert set(sites["metric"]) == {"auroc"}
    few = evaluate(rows, EvaluationParams(bootstrap=100, min_site=61))
    few = few[few["site"] != "all"]
    assert few["value"].isna().all()
    assert few["note"].str.contains("60 labelled patients; sites below 61 get no metric").all()


def test_a_site_needs_events_for_a_concordance_of_its_own(survival: Rows) -> None:
    rows = survival(n=80)
    first = rows["site"] == rows["site"].unique()[0]
    rows.loc[first, "event"] = 0.0
    rows.loc[rows.index[first][:4], "event"] = 1.0  # enough patients, four events
    metrics = evaluate(rows, EvaluationParams(bootstrap=100, within=[], min_site=10))
    sites = metrics[metrics["site"] != "all"].set_index("site")
    assert set(sites["metric"]) == {"c_index"}
    poor, rich = (sites.loc[name] for name in rows["site"].unique())
    assert np.isnan(poor["value"])
    assert "4 events among" in poor["note"]
    assert "sites below 5 events get no C-index" in poor["note"]
    assert 0 <= rich["value"] <= 1
    one = evaluate(rows, EvaluationParams(bootstrap=100, within=[], min_site=10, min_site_events=4))
    assert one[one["site"] != "all"]["value"].notna().all()


def test_prevalence_is_the_baseline_of_average_precision(binary: Rows) -> None:
    rows = binary()
    result = row(evaluate(rows, FAST), "auprc", predictor="prevalence")
    assert result["value"] == pytest.approx(rows.groupby("fold")["target"].mean().mean())


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    """50 studies of 200 patients: mean AUROC of 5 folds, nominal 90 %."""
    rng = np.random.default_rng(1)
    result = []
    for study in range(50):
        n = 200
        y = (rng.random(n) < 0.3).astype(float)
        rows = pd.DataFrame(
            {"patient": [f"p{i:03d}" for i in range(n)], "fold": np.arange(n) % 5, "target": y}
        )
        rows["score"] = 1 / (1 + np.exp(-y - rng.normal(size=n)))
        same = {"cohort": "c", "site": "s", "repeat": 0, "role": "test", "task": "B", "class": "x"}
        rows = rows.assign(**same, time=np.nan, event=np.nan)
        result.append(row(evaluate(rows, EvaluationParams(bootstrap=200, confidence=0.9), study), "auroc"))
    table = pd.DataFrame(result)
    truth = 0.7602  # P(N(1, 2) > 0) = Phi(1 / sqrt(2))
    covered = ((table["low"] <= truth) & (truth <= table["high"])).mean()
    assert 0.8 <= covered <= 0.98


def study_of_repeats(rng: np.random.Generator, repeats: int, positives: int = 2) -> pd.DataFrame:
    """Repeated cross-validation with so many positives per fold: each repeat assigns the patients to folds again."""
    n, folds = 60, 5
    y = (np.arange(n) < positives * folds).astype(float)
    subset = rng.normal(size=n)
    parts = []
    for repeat in range(repeats):
        fold = np.empty(n, int)
        for label in (0, 1):  # stratified, as make_folds assigns patients
            indices = rng.permutation(np.flatnonzero(y == label))
            fold[indices] = np.arange(len(indices)) % folds
        score = 1 / (1 + np.exp(-y - 0.9 * subset - np.sqrt(0.19) * rng.normal(size=n)))
        parts.append(pd.DataFrame({"fold": fold, "repeat": repeat, "target": y, "score": score}))
    rows = pd.concat(parts, ignore_index=True)
    rows["patient"] = [f"p{i % n:03d}" for i in range(len(rows))]
    same = {"cohort": "c", "site": "s", "role": "test", "task": "B", "class": "x"}
    return rows.assign(**same, time=np.nan, event=np.nan)


def test_repeats_keep_their_interval_and_cover() -> None:
    """30 studies of 60 patients, 3 x 5 folds with 4 positives each, nominal 90 % (fewer than 5: too narrow)."""
    rng = np.random.default_rng(2)
    params = EvaluationParams(bootstrap=100, confidence=0.9)
    result = []
    for study in range(30):
        rows = study_of_repeats(rng, 3, positives=4)
        result.append(row(evaluate(rows, params, study), "auroc"))
    table = pd.DataFrame(result)
    assert table["low"].notna().all()
    truth = 0.7602  # P(N(1, 2) > 0)
    covered = ((table["low"] <= truth) & (truth <= table["high"])).mean()
    assert 0.75 <= covered <= 0.98


def test_three_repeats_have_an_interval_where_one_has() -> None:
    rows = study_of_repeats(np.random.default_rng(3), 3)
    once = row(evaluate(rows[rows["repeat"] == 0], FAST), "auroc")
    thrice = row(evaluate(rows, FAST), "auroc")
    for result in (once, thrice):
        assert result["low"] < result["value"] < result["high"]
    by_fold = [
        row(evaluate(rows, FAST), "auroc", fold=f"{r}-{k}")["value"] for r in range(3) for k in range(5)
    ]
    assert thrice["value"] == pytest.approx(np.mean(by_fold))


def test_splits_drawn_anew_have_an_interval_too() -> None:
    rng = np.random.default_rng(4)
    drawn = [study_of_repeats(rng, 1).query("fold == 0").assign(repeat=r) for r in range(20)]
    result = row(evaluate(pd.concat(drawn), FAST), "auroc")
    assert result["low"] < result["value"] < result["high"]


def test_a_replicate_without_a_whole_repeat_is_undefined() -> None:
    from equipoise.platform.evaluation.estimates import mean_of_folds
    from equipoise.platform.evaluation.samples import ScoredPatients

    def group(repeat: int) -> ScoredPatients:
        nothing = np.empty(0)
        return ScoredPatients("g", nothing.astype(int), nothing, nothing, nothing, nothing, repeat=repeat)

    nan = np.nan
    values = [np.array([0.5, 0.5, nan]), np.array([0.7, nan, nan]), np.array([0.9, 0.9, 0.9])]
    values.append(np.array([0.9, nan, nan]))
    mean, gaps = mean_of_folds([group(0), group(0), group(1), group(1)], values)
    np.testing.assert_allclose(mean, [0.75, 0.7, nan])
    assert gaps == pytest.approx(2 / 8)
    single, gaps = mean_of_folds([group(0), group(0)], values[:2])
    np.testing.assert_allclose(single, [0.6, nan, nan])  # one repeat: as ever, all folds or nothing
    assert gaps == 0
