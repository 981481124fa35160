"""Permutation importance finds the planted effects, also of a parameter that exists in some trials only."""

import numpy as np
import pandas as pd
import pytest

from equipoise.platform.search.importance import importance


def made(count: int, seed: int = 0) -> pd.DataFrame:
    """Trials in which lr matters much, tau matters where the weighting is dwa, and dropout does not matter."""
    rng = np.random.default_rng(seed)
    lr, dropout = rng.uniform(-5, -3, count), rng.uniform(0, 0.4, count)
    dwa = rng.random(count) < 0.5
    tau = np.where(dwa, rng.uniform(0, 4, count), np.nan)
    value = (
        0.7
        - 0.1 * (lr + 4) ** 2
        + np.where(dwa, 0.03 * np.nan_to_num(tau), 0.06)
        + rng.normal(0, 0.002, count)
    )
    return pd.DataFrame(
        {
            "status": "ok",
            "objective": value,
            "param/training.lr": 10.0**lr,
            "param/model.dropout": dropout,
            "param/balancing.weighting": np.where(dwa, "dwa", "equal").astype(object),
            "param/balancing.dwa.temperature": tau,
            "param/training.batch": 8.0,
        }
    )


def test_what_matters_is_found() -> None:
    table = made(120)
    result = importance(table)
    by_name = result.table.set_index("parameter")
    assert result.reason == ""
    assert result.r2 > 0.6
    assert "training.batch" not in by_name.index
    assert {"training.lr", "balancing.dwa.temperature"} == set(result.table["parameter"][:2])
    assert by_name.loc["training.lr", "importance"] > 0.3
    assert by_name.loc["balancing.dwa.temperature", "importance"] > 0.1
    assert abs(by_name.loc["model.dropout", "importance"]) < 0.03
    assert by_name.loc["balancing.dwa.temperature", "trials"] == int(
        (table["param/balancing.weighting"] == "dwa").sum()
    )
    assert by_name.loc["model.dropout", "trials"] == 120


def test_absence_of_a_parameter_does_not_tell_the_arm() -> None:
    table = made(90)
    dwa = table["param/balancing.weighting"] == "dwa"
    table["objective"] = np.where(dwa, 0.8, 0.6) + np.random.default_rng(1).normal(0, 0.005, 90)
    by_name = importance(table).table.set_index("parameter")["importance"]
    assert by_name["balancing.weighting"] > 1
    assert by_name["balancing.dwa.temperature"] < 0.05


def test_shares_of_loss_weights_are_one_parameter() -> None:
    rng = np.random.default_rng(0)
    shares = rng.dirichlet(np.ones(3), 60)
    table = pd.DataFrame(shares, columns=[f"param/loss_weights.{task}" for task in "ABC"])
    table = table.assign(status="ok", objective=0.5 + 0.3 * shares[:, 0])
    result = importance(table)
    assert result.table["parameter"].tolist() == ["loss_weights"]
    assert result.table["importance"].iloc[0] > 1
    pd.testing.assert_frame_equal(importance(table).table, result.table)  # the same seed, the same numbers


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        (made(19), "19 finished trials are too few to tell 4 parameters apart; 20 are needed"),
        (made(40).assign(status="failed"), "no parameter differs between finished trials"),
        (made(40).assign(objective=0.5), "all trials came to the same value"),
    ],
)
def test_it_says_why_it_cannot_tell(table: pd.DataFrame, reason: str) -> None:
    result = importance(table)
    assert result.reason == reason
    assert result.table.empty
