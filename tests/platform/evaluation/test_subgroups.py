"""Subgroups against brute force over pairs, and against scikit-learn where there is one fold."""

from collections.abc import Callable
from itertools import product

import numpy as np
import pandas as pd
import pytest

from equipoise.datasets.errors import DataError
from equipoise.platform.evaluation.intervals import delong_interval
from equipoise.platform.evaluation.params import EvaluationParams, split_comparison
from equipoise.platform.evaluation.pooled import pooled_samples
from equipoise.platform.evaluation.predictions import validate
from equipoise.platform.evaluation.subgroups import (
    MISSING,
    SUBGROUP_COLUMNS,
    heterogeneity,
    subgroup_table,
    subgroup_values,
)

Rows = Callable[..., pd.DataFrame]
PARAMS = EvaluationParams()


def table_of(
    predictions: pd.DataFrame, values: pd.DataFrame, params: EvaluationParams = PARAMS
) -> pd.DataFrame:
    known = validate(predictions)
    return subgroup_table(pooled_samples(known, params), known, values, params)


def sexes(predictions: pd.DataFrame) -> pd.DataFrame:
    patients = predictions["patient"].unique()
    return pd.DataFrame({"SEX": np.where(np.arange(len(patients)) % 5 < 2, "f", "m")}, index=patients)


def test_values_of_columns_and_comparisons() -> None:
    columns = pd.DataFrame(
        {"AGE": ["69", "70", "81", None], "SEX": ["f", "m", None, "f"]}, index=list("abcd"), dtype=object
    )
    values = subgroup_values(columns, ["SEX", "AGE >= 70", "AGE<70", "SEX == f", "SEX != 'f'"])
    assert values["SEX"].tolist() == ["f", "m", MISSING, "f"]
    assert values["AGE >= 70"].tolist() == ["AGE < 70", "AGE >= 70", "AGE >= 70", MISSING]
    assert values["AGE<70"].tolist() == ["AGE < 70", "AGE >= 70", "AGE >= 70", MISSING]
    assert values["SEX == f"].tolist() == ["SEX == f", "not SEX == f", MISSING, "SEX == f"]
    assert values["SEX != 'f'"].tolist() == ["not SEX != f", "SEX != f", MISSING, "not SEX != f"]


def test_many_numbers_are_cut_at_their_median_and_many_texts_refused() -> None:
    columns = pd.DataFrame({"AGE": [str(v) for v in range(41, 61)], "ID": [f"v{k}" for k in range(20)]})
    cut = subgroup_values(columns, ["AGE"])["AGE"]
    assert cut.value_counts().to_dict() == {"AGE < 50.5": 10, "AGE >= 50.5": 10}
    more = pd.concat([columns, columns.assign(ID=columns["ID"] + "x")], ignore_index=True)
    with pytest.raises(DataError, match="ID has 40 different values"):
        subgroup_values(more, ["ID"])
    with pytest.raises(DataError, match="ID is compared with 3, but holds 'v0'"):
        subgroup_values(columns, ["ID > 3"])


def test_what_is_no_subgroup() -> None:
    assert split_comparison("stage") == ("stage", "", "")
    for text in ("", ">= 70", "AGE >=", "AGE >= old"):
        with pytest.raises(ValueError, match="neither a column|no number"):
            split_comparison(text)
    with pytest.raises(ValueError, match="named twice: SEX"):
        EvaluationParams(subgroups=["SEX", "SEX"])


def test_auroc_of_a_subgroup_counts_pairs_within_folds(binary: Rows) -> None:
    predictions = pd.concat([binary(role, n=100) for role in ("val", "test")], ignore_index=True)
    values = sexes(predictions)
    table = table_of(predictions, values)
    assert list(table.columns) == list(SUBGROUP_COLUMNS)
    row = table[(table["group"] == "f") & (table["metric"] == "auroc")].iloc[0]
    women = predictions[
        (predictions["role"] == "test") & (values.loc[predictions["patient"], "SEX"] == "f").to_numpy()
    ]
    right = pairs = 0.0
    for _, fold in women.groupby("fold"):
        positive, negative = (fold.loc[fold["target"] == t, "score"] for t in (1, 0))
        for a, b in product(positive, negative):
            right, pairs = right + (a > b) + 0.5 * (a == b), pairs + 1
    assert row["value"] == pytest.approx(right / pairs)
    assert (row["n"], row["n_pos"]) == (len(women), (women["target"] == 1).sum())
    assert row["low"] < row["value"] < row["high"]
    assert row["p"] == table[(table["group"] == "m") & (table["metric"] == "auroc")].iloc[0]["p"]


def test_an_external_subgroup_has_nearly_the_interval_of_delong(binary: Rows) -> None:
    predictions = pd.concat([binary("val"), binary("external", n=200, models=1)], ignore_index=True)
    values = sexes(predictions)
    table = table_of(predictions, values)
    row = table[(table["group"] == "m") & (table["metric"] == "auroc")].iloc[0]
    men = predictions[
        (predictions["role"] == "external") & (values.loc[predictions["patient"], "SEX"] == "m").to_numpy()
    ]
    from sklearn.metrics import roc_auc_score

    assert row["value"] == pytest.approx(roc_auc_score(men["target"], men["score"]))
    delong = delong_interval(men["target"], men["score"])
    assert (row["low"], row["high"]) == pytest.approx((delong.low, delong.high), abs=0.004)
    right = table[(table["group"] == "m") & (table["metric"] == "specificity")].iloc[0]
    assert right["n"] == (men["target"] == 0).sum()


def test_every_kind_of_task_and_groups_that_are_too_small(everything: pd.DataFrame) -> None:
    values = sexes(everything)
    values.iloc[:4, 0] = "other"
    values = values.iloc[:-3]
    table = table_of(everything, values)
    assert set(table["kind"]) == {"binary", "multiclass", "regression", "survival"}
    assert (table.groupby(["role", "task", "metric"]).size() >= 3).all()
    small = table[table["group"].isin(["other", MISSING])]
    assert len(small)
    assert small["value"].isna().all()
    assert (small["note"] != "").all()
    main = table[
        ~table["group"].isin(["other", MISSING]) & ~table["metric"].isin(["sensitivity", "specificity"])
    ]
    assert main["value"].notna().mean() > 0.8


def test_heterogeneity_in_closed_form() -> None:
    # Two groups: Q is the squared difference over the sum of the variances, with one degree of freedom.
    from scipy.stats import norm

    assert heterogeneity([(1.0, 0.3), (0.2, 0.4)]) == pytest.approx(2 * norm.sf(0.8 / 0.5))
    assert np.isnan(heterogeneity([(1.0, 0.3), (np.nan, np.nan)]))
    assert heterogeneity([(1.0, 0.3)] * 4) == pytest.approx(1.0)
