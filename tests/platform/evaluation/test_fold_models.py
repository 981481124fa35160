"""External cohorts by ensemble and by fold model, and silhouettes of the inputs of the heads."""

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest

from equipoise.platform.evaluation.evaluate import evaluate
from equipoise.platform.evaluation.params import EvaluationParams

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


def test_fold_models_are_evaluated_one_by_one_beside_the_ensemble(everything: pd.DataFrame) -> None:
    from sklearn.metrics import roc_auc_score

    metrics = evaluate(everything, FAST)
    rows = everything.query("role == 'external' and task == 'MSI'")
    by_model = [roc_auc_score(g["target"], g["score"]) for _, g in rows.groupby("fold")]
    result = row(metrics, "auroc", role="external", task="MSI", predictor="fold models")
    assert result["value"] == pytest.approx(np.mean(by_model))
    assert result["low"] < result["value"] < result["high"]
    assert result["method"].startswith(
        "mean of 2 fold models, each on every patient; influence values, logit"
    )
    assert result["estimand"] == "these 2 models"
    each = [
        row(metrics, "auroc", role="external", task="MSI", predictor="fold models", fold=f"0-{k}")["value"]
        for k in range(2)
    ]
    assert each == pytest.approx(by_model)
    assert row(metrics, "auroc", role="external", task="MSI")["value"] != pytest.approx(np.mean(by_model))
    # Baselines occur once, and sites have the ensemble only.
    assert not metrics.query("predictor == 'fold models' and site != 'all'").size
    row(metrics, "auroc", role="external", task="MSI", predictor="chance")


def test_the_interval_of_fold_models_is_that_of_the_patients(binary: Rows) -> None:
    """Five equal models have no spread of metrics, but as few patients as one."""
    one = binary("external", models=1)
    equal = pd.concat([one.assign(fold=k) for k in range(5)])
    metrics = evaluate(equal, FAST)
    result = row(metrics, "auprc", role="external", predictor="fold models")
    ensemble = row(metrics, "auprc", role="external")
    assert (result["value"], result["low"], result["high"]) == pytest.approx(
        (ensemble["value"], ensemble["low"], ensemble["high"])
    )


def test_external_survival_is_the_concordance_of_standardised_risks(survival: Rows) -> None:
    from lifelines.utils import concordance_index

    rows = pd.concat([survival("val"), survival("external")])
    rows["score"] *= np.where(rows["fold"] == 1, 50, 1)
    result = row(evaluate(rows, FAST), "c_index", role="external")
    of_fold = rows[rows["role"] == "val"].groupby("fold")["score"]
    external = rows[rows["role"] == "external"]
    scaled = (external["score"] - external["fold"].map(of_fold.mean())) / external["fold"].map(
        of_fold.std(ddof=0)
    )
    risk = scaled.groupby(external["patient"]).mean()
    facts = external.drop_duplicates("patient").set_index("patient").loc[risk.index]
    assert result["value"] == pytest.approx(concordance_index(facts["time"], -risk, facts["event"]))
    assert result["method"].startswith("mean standardised log risk of the fold models")
    unscaled = row(evaluate(external, FAST), "c_index", role="external")
    assert "no fold has validation risks to scale by" in unscaled["note"]


def latents_for(rows: pd.DataFrame, seed: int = 0) -> pd.DataFrame:
    """Latents in which the classes lie apart."""
    rng = np.random.default_rng(seed)
    subset = rows.sort_values("target").drop_duplicates(
        ["patient", "repeat", "fold", "role", "task"], keep="last"
    )
    shift = subset["target"].to_numpy()[:, None] * pd.factorize(subset["class"])[0][:, None].clip(1)
    vectors = rng.normal(size=(len(subset), 5)) + 1.5 * shift
    return subset[["patient", "repeat", "fold", "role", "task"]].assign(latent=list(vectors))


def test_silhouettes_per_fold_and_outside(everything: pd.DataFrame) -> None:
    from sklearn.metrics import silhouette_score

    classes = everything[everything["class"] != ""]
    latents = latents_for(classes)
    metrics = evaluate(everything, FAST, latents=latents)
    truth = classes[classes["target"] == 1].set_index(["task", "patient"])["class"].to_dict()
    for task in ("MSI", "Grade"):
        for role in ("test", "external"):
            subset = latents.query("task == @task and role == @role")
            for distance in ("cosine", "euclidean"):
                expected = [
                    silhouette_score(
                        np.stack(g["latent"].to_list()),
                        [truth.get((task, p), "rest") for p in g["patient"]],
                        metric=distance,
                    )
                    for _, g in subset.groupby("fold")
                ]
                result = row(metrics, f"silhouette_{distance}", role=role, task=task)
                assert result["value"] == pytest.approx(np.mean(expected))
                assert result["low"] < result["value"] < result["high"]
                assert "Equipoise's definition" in result["note"]
                one = row(metrics, f"silhouette_{distance}", role=role, task=task, fold="0-1")
                assert one["value"] == pytest.approx(expected[1])
    assert metrics[metrics["metric"].str.startswith("silhouette")]["task"].isin(["MSI", "Grade"]).all()


def test_latents_change_no_other_number(everything: pd.DataFrame) -> None:
    latents = latents_for(everything[everything["class"] != ""])
    metrics = evaluate(everything, FAST, latents=latents)
    rest = metrics[~metrics["metric"].str.startswith("silhouette")].reset_index(drop=True)
    pd.testing.assert_frame_equal(rest, evaluate(everything, FAST))


def test_a_patient_without_latents_means_no_silhouette(binary: Rows) -> None:
    rows = binary()
    metrics = evaluate(rows, FAST, latents=latents_for(rows).iloc[1:])
    assert not metrics["metric"].str.startswith("silhouette").any()


def test_a_fold_of_one_class_has_no_silhouette_and_says_so(binary: Rows) -> None:
    rows = binary()
    rows = rows.assign(target=np.where(rows["fold"] == 2, 0.0, rows["target"]))
    result = row(evaluate(rows, FAST, latents=latents_for(rows)), "silhouette_cosine")
    assert (
        "mean of 3 of 4 folds; not estimable in 0-2 (0-2: all 10 patients are of one class)" in result["note"]
    )
