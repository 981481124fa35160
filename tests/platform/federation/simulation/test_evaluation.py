"""The table of sites: scopes by hand, clients replace cohorts, small sites get no value."""

import math

import numpy as np
import pandas as pd
import pytest

from equipoise.platform.evaluation.influence import CellMean, concordance_influence
from equipoise.platform.evaluation.params import EvaluationParams
from equipoise.platform.federation.simulation.evaluation import PlanPredictions, of_clients, site_table
from equipoise.platform.federation.simulation.site_estimates import (
    SiteEstimate,
    interval_of,
    interval_of_worst,
)
from equipoise.platform.federation.simulation.sites import Client

PARAMS = EvaluationParams(bootstrap=50, min_site=5, min_site_events=1)
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
    local = rows(perfect(a))
    evaluated = PlanPredictions(
        {"federated": federated, "local": local}, {"B": {"all": "fold 0-0: 3 patients are too few to split"}}
    )
    return site_table("folds", evaluated, CLIENTS, PARAMS, seed=1)


def value(table: pd.DataFrame, method: str, scope: str, client: str = "all", role: str = "test") -> float:
    rows = table.query("method == @method and scope == @scope and client == @client and role == @role")[
        "value"
    ]
    assert len(rows) == 1
    return float(rows.iloc[0])


def note(table: pd.DataFrame, method: str, scope: str, client: str = "all") -> str:
    rows = table.query("method == @method and scope == @scope and client == @client")["note"]
    assert len(rows) == 1
    return str(rows.iloc[0])


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
    assert note(table, "federated", "client", "C") == "3 labelled patients; sites below 5 get no metric"
    assert note(table, "federated", "mean") == (
        "2 of 3 sites; without C (3 labelled patients; sites below 5 get no metric)"
    )


def test_a_site_that_one_method_lacks_stays_in_the_worst_of_the_others(table: pd.DataFrame) -> None:
    """The worst site of federated training is B; local training has no model there."""
    assert value(table, "federated", "worst", "B") == 0.5
    assert value(table, "local", "worst", "A") == 1.0
    assert "B (fold 0-0: 3 patients are too few to split)" in note(table, "local", "mean")
    assert value(table, "federated - local", "mean") == 0.0, "over A, which both have"


def test_pooled_counts_positives_once(table: pd.DataFrame) -> None:
    row = table.query("method == 'federated' and scope == 'pooled'").iloc[0]
    assert (row["n"], row["n_pos"]) == (17, 8)
    assert 0.5 < row["value"] < 1
    assert row["low"] <= row["value"] <= row["high"]


def test_local_models_are_evaluated_on_their_own_patients_only(table: pd.DataFrame) -> None:
    assert table.query("method == 'local' and scope == 'pooled'").empty
    assert value(table, "local", "client", "A") == 1.0
    assert math.isnan(value(table, "local", "client", "B"))
    assert note(table, "local", "client", "B") == "fold 0-0: 3 patients are too few to split"
    assert math.isnan(value(table, "local", "client", "EXT", role="external"))
    assert note(table, "local", "client", "EXT") == "an external cohort trains no model of its own"


def survival(seed: int, sites: dict[str, int], folds: int = 1, error: float = 1.0) -> pd.DataFrame:
    """Predictions of survival times of patients at sites, with noise of its own per seed."""
    truth, noise = np.random.default_rng(0), np.random.default_rng(seed)
    made = []
    for site, n in sites.items():
        time = truth.exponential(size=n)
        made.append(
            pd.DataFrame(
                {
                    "patient": [f"{site}{i}" for i in range(n)], "cohort": "X", "site": "s", "repeat": 0,
                    "fold": np.arange(n) % folds, "role": "test", "task": "OS", "class": "",
                    "score": -np.log(time) + error * noise.normal(size=n), "target": np.nan, "time": time,
                    "event": truth.integers(0, 2, n).astype(float),
                }
            )
        )  # fmt: skip
    return pd.concat(made, ignore_index=True)


SITES = {"a": 30, "b": 40, "c": 20}
OF_SITES = tuple(Client(name, tuple(f"{name}{i}" for i in range(n)), (name,)) for name, n in SITES.items())


def test_pairs_within_sites_and_folds_by_hand() -> None:
    table = survival(1, SITES, folds=2)
    made = site_table("folds", PlanPredictions({"federated": table}), OF_SITES, PARAMS, seed=1)
    right = pairs = 0.0
    rows_of = table.to_dict("records")
    for one in rows_of:
        for two in rows_of:
            together = one["patient"][0] == two["patient"][0] and one["fold"] == two["fold"]
            later = two["time"] > one["time"]
            if together and one["event"] == 1 and later:
                pairs += 1
                right += float(one["score"] > two["score"])
    assert value(made, "federated", "pairs") == pytest.approx(right / pairs)


def test_intervals_over_sites_are_those_of_independent_sites() -> None:
    """A mean of three sites has a ninth of the sum of their variances; a difference is taken patient by patient."""
    one, two = survival(1, SITES), survival(2, SITES)
    tables = {"federated": one, "pooled": two, "local": two}
    made = site_table("folds", PlanPredictions(tables), OF_SITES, PARAMS, seed=1)
    parts = []
    for site in SITES:
        a, b = (t[t["patient"].str[0] == site] for t in (one, two))
        influences = [concordance_influence(t["time"], t["event"], t["score"]) for t in (a, b)]
        parts.append(
            (influences[0].value - influences[1].value, influences[0].influence - influences[1].influence)
        )
    variance = sum((influence**2).sum() for _, influence in parts) / 9
    row = made.query("method == 'federated - pooled' and scope == 'mean'").iloc[0]
    assert row["value"] == pytest.approx(np.mean([d for d, _ in parts]))
    assert row["high"] - row["low"] == pytest.approx(2 * 1.959964 * np.sqrt(variance), rel=1e-5)
    same = made.query("method == 'federated - local'").set_index("scope")["value"]
    assert same["weighted"] == pytest.approx(np.average([d for d, _ in parts], weights=list(SITES.values())))


def test_the_interval_of_the_worst_site_covers_the_smallest_true_value() -> None:
    """Six sites of one true value: the smallest estimate is too low, and its own interval covers too seldom."""
    rng, sd, truth, runs = np.random.default_rng(0), 0.04, 0.7, 600
    whole = own = 0
    for values in rng.normal(truth, sd, (runs, 6)):
        sites = [
            SiteEstimate(
                v, 0, 0, 10, 5, "", CellMean(v, np.array([[sd]]), np.array([v]), np.array([v]), 1, 1)
            )
            for v in values
        ]
        low, high = interval_of_worst(
            sites, 0.95, lambda site, level: interval_of(site.mean, "c_index", level)
        )
        whole += low <= truth <= high
        low, high = interval_of(min(sites, key=lambda site: site.value).mean, "c_index", 0.95)
        own += low <= truth <= high
    assert whole / runs >= 0.94
    assert own / runs < 0.9


def test_a_site_with_one_event_has_its_distance_from_the_others_for_its_influence() -> None:
    table = survival(1, SITES)
    lonely = table["patient"].str[0] == "c"
    table.loc[lonely, "event"] = 0.0
    table.loc[table.index[lonely][np.argmin(table.loc[lonely, "time"])], "event"] = 1.0
    made = site_table("folds", PlanPredictions({"federated": table}), OF_SITES, PARAMS, seed=1)
    made = made[made["method"] == "federated"]
    of_site = made[made["scope"] == "client"].set_index("client")
    assert of_site["low"].isna().to_dict() == {"a": False, "b": False, "c": True}
    variance = 0.0
    for site in "ab":
        part = table[table["patient"].str[0] == site]
        variance += float(
            (concordance_influence(part["time"], part["event"], part["score"]).influence ** 2).sum()
        )
    values = of_site["value"]
    variance += float((values["c"] - (values["a"] + values["b"]) / 2) ** 2 * 2 / 3)
    row = made[made["scope"] == "mean"].iloc[0]
    mean = values.mean()
    logit = np.log(mean / (1 - mean))
    half = 1.959964 * np.sqrt(variance / 9) / (mean * (1 - mean))
    assert row["low"] == pytest.approx(1 / (1 + np.exp(half - logit)), rel=1e-4)


def test_a_site_needs_events_for_a_concordance_of_its_own() -> None:
    table = survival(1, SITES)
    lonely = table["patient"].str[0] == "c"
    table.loc[lonely, "event"] = 0.0
    table.loc[table.index[lonely][:4], "event"] = 1.0
    params = PARAMS.model_copy(update={"min_site_events": 5})
    made = site_table("folds", PlanPredictions({"federated": table}), OF_SITES, params, seed=1)
    of_site = made[(made["method"] == "federated") & (made["scope"] == "client")].set_index("client")
    assert of_site["value"].notna().to_dict() == {"a": True, "b": True, "c": False}
    assert f"4 events among {lonely.sum()} labelled patients; sites below 5 events" in of_site["note"]["c"]
    mean = made[(made["method"] == "federated") & (made["scope"] == "mean")].iloc[0]
    assert mean["value"] == pytest.approx(of_site["value"][["a", "b"]].mean())
    assert "2 of 3 sites; without c (4 events" in mean["note"]


def test_tasks_count_their_own_sites() -> None:
    """A task that a single site has keeps its row, although other sites have other tasks in the same role."""
    hrd = rows(perfect(CLIENTS[0])).assign(task="HRD")
    both = pd.concat([rows(perfect(CLIENTS[0]) | half(CLIENTS[1])), hrd])
    made = site_table("folds", PlanPredictions({"federated": both}), CLIENTS, PARAMS, seed=1)
    row = made.query("task == 'HRD' and method == 'federated' and scope == 'client' and client == 'A'").iloc[
        0
    ]
    assert (row["value"], row["n"]) == (1.0, 8)
