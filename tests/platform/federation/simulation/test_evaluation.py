"""The table of sites: scopes by hand, clients replace cohorts, small sites get no value."""

import math

import numpy as np
import pandas as pd
import pytest

from equipoise.platform.evaluation.params import EvaluationParams
from equipoise.platform.federation.simulation.baselines import LocalModels
from equipoise.platform.federation.simulation.evaluation import PlanPredictions, of_clients, site_table
from equipoise.platform.federation.simulation.sites import Client

PARAMS = EvaluationParams(bootstrap=50, min_site=5)
CLIENTS = (
    Client("A", tuple(f"a{i}" for i in range(8)), ("A",)),
    Client("B", tuple(f"b{i}" for i in range(6)), ("B",)),
    Client("C", tuple(f"c{i}" for i in range(3)), ("C",)),
)


def rows(scores: dict[str, float], role: str = "test", cohort: str = "X") -> pd.DataFrame:
    """Binary predictions; the label is the parity of a patient's number."""
    return pd.DataFrame(
        [
            {
                "patient": patient, "cohort": cohort, "site": "s", "repeat": 0, "fold": 0, "role": role,
                "task": "MSI", "class": "MSI-H", "score": score, "target": float(int(patient[1:]) % 2),
                "time": np.nan, "event": np.nan,
            }
            for patient, score in scores.items()
        ]
    )  # fmt: skip


def perfect(client: Client) -> dict[str, float]:
    return {p: 0.9 if int(p[1:]) % 2 else 0.1 for p in client.patients}


def half(client: Client) -> dict[str, float]:
    """Equal scores: an AUROC of one half."""
    return dict.fromkeys(client.patients, 0.5)


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    a, b, c = CLIENTS
    external = {f"e{i}": 0.8 if i % 2 else 0.2 for i in range(6)}
    federated = pd.concat([rows(perfect(a) | half(b) | perfect(c)), rows(external, "external", "EXT")])
    everywhere = perfect(a) | perfect(b) | perfect(c)
    models = {
        "A": pd.concat([rows(everywhere), rows(external, "external", "EXT")]),
        "B": pd.concat(
            [rows(half(a) | half(b) | half(c)), rows(dict.fromkeys(external, 0.5), "external", "EXT")]
        ),
    }
    local = pd.concat([rows(perfect(a)), rows(half(b))])
    judged = PlanPredictions(
        {"federated": federated, "local": local}, [LocalModels(models, {"C": "too few"})]
    )
    return site_table("folds", judged, CLIENTS, PARAMS, seed=1)


def value(table: pd.DataFrame, method: str, scope: str, client: str = "all", role: str = "test") -> float:
    rows = table.query("method == @method and scope == @scope and client == @client and role == @role")[
        "value"
    ]
    assert len(rows) == 1
    return float(rows.iloc[0])


def test_clients_stand_in_the_place_of_cohorts() -> None:
    owner = {patient: client.name for client in CLIENTS for patient in client.patients}
    result = of_clients(pd.concat([rows({"a1": 0.5}), rows({"a2": 0.5}, "external", "EXT")]), owner)
    assert list(result["cohort"]) == ["A", "EXT"]


def test_scopes_by_hand(table: pd.DataFrame) -> None:
    assert value(table, "federated", "client", "A") == 1.0
    assert value(table, "federated", "client", "B") == 0.5
    assert math.isnan(value(table, "federated", "client", "C"))
    assert value(table, "federated", "mean") == pytest.approx(0.75)
    assert value(table, "federated", "weighted") == pytest.approx((8 * 1.0 + 6 * 0.5) / 14)
    assert value(table, "federated", "worst", "B") == 0.5
    assert value(table, "federated", "client", "EXT", role="external") == 1.0
    note = table.query("method == 'federated' and scope == 'client' and client == 'C'")["note"].iloc[0]
    assert note == "3 labelled patients; sites below 5 get no metric"
    over = table.query("method == 'federated' and scope == 'mean'")["note"].iloc[0]
    assert over == "2 of 3 sites"


def test_pooled_counts_positives_once(table: pd.DataFrame) -> None:
    row = table.query("method == 'federated' and scope == 'pooled'").iloc[0]
    assert (row["n"], row["n_pos"]) == (17, 8)
    assert 0.5 < row["value"] < 1
    assert row["low"] <= row["value"] <= row["high"]


def test_local_models_are_not_pooled_and_travel_as_a_mean(table: pd.DataFrame) -> None:
    assert table.query("method == 'local' and scope == 'pooled'").empty
    assert value(table, "local", "client", "A") == 1.0
    assert value(table, "local", "client", "B") == 0.5
    away = table.query("method == 'local' and client == 'EXT'").iloc[0]
    assert away["value"] == pytest.approx(0.75)
    assert away["note"] == "mean of 2 models of other sites"
    assert math.isnan(away["low"])
