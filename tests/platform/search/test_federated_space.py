"""The space of a federated study: its strategies, the settings of its clients, and requests that are refused."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from equipoise.datasets.synthetic.catalogue import PRESETS_BY_NAME
from equipoise.datasets.synthetic.study_text import study_yaml
from equipoise.platform.federation.params import FederationParams
from equipoise.platform.registry import entries
from equipoise.platform.search.configuration import (
    config_from_study,
    merge_config,
    merge_federation_config,
    trial_label,
)
from equipoise.platform.search.params import SearchParams
from equipoise.platform.search.searchers import OptunaSearch, RandomSearch
from equipoise.platform.search.space import Space
from equipoise.platform.search.space_builder import SearchSpaceError, build_space
from equipoise.platform.search.trackers import TrackedSearch, parameters_of
from equipoise.platform.search.trial_records import Trial
from equipoise.platform.study.schema import Study

SURVIVAL = {
    "name": "OS",
    "type": "survival",
    "time": {"column": "t", "unit": "days"},
    "event": {"column": "e", "event_value": "1"},
}
TASKS = [
    {"name": "MSI", "type": "binary", "column": "MSI", "positive": "H"},
    {"name": "LF", "type": "regression", "column": "LF"},
]


def study(federation: dict[str, Any] | None = None, **sections: Any) -> Study:
    cohort = {"name": "A", "role": "develop", "clinical": "a.csv", "slides": "s.csv"}
    whole = {"version": 1, "name": "x", "cohorts": [cohort], "tasks": TASKS, "federation": federation or {}}
    return Study.model_validate(whole | sections)


def space(made: Study | None = None, **narrow: Any) -> Space:
    return build_space(made or study(), SearchParams(space=narrow))


def strategies(result: Space) -> list[str | None]:
    return list(dict.fromkeys(arm.strategy for arm in result.arms))


def test_strategies_are_those_that_the_federation_accepts() -> None:
    result = space()
    refused = dict(result.refused_strategies)
    unnamed = {"fedbuff", "fedbn", "fedper", "moon"}  # clients and layers that a study does not tell
    assert set(refused) == {"scaffold", "fednova", *unnamed}
    assert {*refused, *strategies(result)} == set(entries("strategies"))
    assert "without scaffold: scaffold is defined for SGD" in result.table()
    for sgd in (
        space(study({"local": {"optimizer": "sgd"}})),
        space(**{"federation.local.optimizer": "sgd"}),  # a fixed value counts
    ):
        assert set(dict(sgd.refused_strategies)) == unnamed
    named = space(**{"federation.strategy": ["fedavg", "fedper"]})
    assert strategies(named) == ["fedavg", "fedper"]
    assert "fedbn" in strategies(space(study({"strategy": "fedbn"})))
    private = space(study({"privacy": {"record_level": {"noise": 1.0}, "statistics": "public"}}))
    assert "moon compares the features of patients" in dict(private.refused_strategies)["moon"]
    assert {(arm.weighting, arm.aggregation) for arm in private.arms} == {
        ("equal", "none"),
        ("static", "none"),
    }
    held = dict(space(**{"federation.server_aggregation": ["mean", "median"]}).refused_strategies)
    assert held["cyclic"].startswith("with server_aggregation median: cyclic passes one model from")


def test_strategies_bring_their_own_parameters() -> None:
    result = space(balancing="equal")
    names = {dimension.name: dimension for dimension in result.dimensions}
    assert names["federation.fedprox.mu"].key == "federation.strategy_params.mu"
    assert {"federation.fedavgm.momentum", "federation.feddyn.alpha", "training.lr"} <= set(names)
    assert len(result.arms) > 0
    for arm in result.arms:
        for dimension in result.dimensions_of(arm):
            if dimension.slot == "strategy":
                assert dimension.name.split(".")[1] == arm.strategy
    flamby = {"strategy": "scaffold", "strategy_params": {"variant": "flamby"}, "local": {"optimizer": "sgd"}}
    own = space(study(flamby), **{"federation.strategy": "scaffold"})
    assert not any(d.slot == "strategy" for d in own.dimensions), "flamby is defined for server_lr 1"


def test_a_study_without_the_section_knows_no_strategy() -> None:
    plain = study().model_copy(update={"federation": None})
    assert strategies(space(plain)) == [None]
    assert not any(d.name.startswith("federation") for d in space(plain).dimensions)
    for key in ("federation.strategy", "federation.rounds"):
        with pytest.raises(SearchSpaceError, match="no federation section, its trials train in one place"):
            space(plain, **{key: [1, 2]})


def test_only_what_clients_use_is_searched() -> None:
    assert {d.name for d in space().dimensions if not d.slot} == {
        "training.lr", "training.batch", "model.dim", "model.encoder_layers", "model.decoder_layers", "model.dropout",
    }  # fmt: skip
    local = space(study({"local": {"lr": 0.02, "batch": 4}}))
    names = {d.name: d.default for d in local.dimensions if not d.slot}
    assert names["federation.local.lr"] == 0.02
    assert not {"training.lr", "training.batch"} & set(names)
    asked = space(None, **{"federation.local.lr": {"loguniform": [1e-4, 1e-2]}})
    assert not any(d.name == "training.lr" for d in asked.dimensions)
    # Cox's model without tiles takes a client's patients as one batch, which is no number of patients.
    tables = {
        "cohorts": [{"name": "A", "role": "develop", "clinical": "a.csv"}],
        "tasks": [SURVIVAL],
        "model": {"kind": "clinical"},
        "tables": {"clinical": [{"column": "AGE", "type": "number"}]},
    }
    result = space(study(None, **tables))
    assert not any(d.name == "training.batch" for d in result.dimensions)


@pytest.mark.parametrize(
    ("narrow", "problem"),
    [
        ({"federation.strategy": ["fedavg", "scaffold"]}, "scaffold: .*write local: {optimizer: sgd}"),
        ({"federation.strategy": "fedavgg"}, "no strategy 'fedavgg'. Did you mean 'fedavg'"),
        (
            {"federation.strategy": ["cyclic"], "federation.server_aggregation": ["mean", "median"]},
            "with server_aggregation median: cyclic",
        ),
        ({"federation.server_aggregation": "medain"}, "no server aggregation 'medain'. Did you mean 'median'"),
        ({"federation.rounds": [0, 3]}, "federation.rounds: 0: .*greater than or equal to 1"),
        ({"federation.sites": "iid"}, "not something that is searched"),
        ({"federation.local.steps": [2], "federation.local.epochs": [1]}, "or federation.local.steps, not both"),
        ({"federation.local.steps": [2, 4], "federation.local.epochs": [1, 2]}, "not both"),
        ({"federation.strategy": "fedavg", "federation.fedprox.mu": 0.1}, "not something that is searched"),
        ({"federation.fedprox.mu": -1}, "fedprox.mu: -1: .*greater than or equal to 0"),
        ({"training.epochs": [1, 2]}, "clients .* do not use it; use federation.rounds"),
        ({"training.weight_decay": 0.01}, "use federation.local.weight_decay"),
        ({"training.lr": 0.1, "federation.local.lr": 0.1}, "training.lr: clients use federation.local.lr"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(narrow: dict[str, Any], problem: str) -> None:
    with pytest.raises(SearchSpaceError, match=problem):
        space(**narrow)


def test_a_population_trains_in_one_place() -> None:
    for scheduler in ("pbt", "pb2"):
        with pytest.raises(SearchSpaceError, match=f"scheduler {scheduler} .* train in one place"):
            build_space(study(), SearchParams(scheduler=scheduler))  # type: ignore[arg-type]
    assert build_space(study(), SearchParams(scheduler="asha")).arms


def test_the_study_as_written_is_a_configuration() -> None:
    own = study(
        {
            "strategy": "fedprox",
            "strategy_params": {"mu": 0.3},
            "server_aggregation": "trimmed_mean",
            "local": {"steps": 4},
        }
    )
    result = space(own, **{"federation.rounds": [5, 10], "federation.local.lr": [1e-4, 1e-2]})
    config = config_from_study(own, result)
    assert (config["federation.strategy"], config["federation.fedprox.mu"]) == ("fedprox", 0.3)
    assert config["federation.local.lr"] == own.training.lr, "what clients use"
    again = Study.model_validate(merge_config(own.resolved(), config)).federation
    assert again is not None
    assert own.federation is not None
    assert again.strategy_params == {"mu": 0.3, "server_lr": 1.0}
    said = {"strategy_params": {"mu": 0.3}}
    assert again.model_copy(update=said).in_training(own.training) == own.federation.in_training(own.training)
    assert trial_label(config) == "equal+none-fedprox"


def test_parameters_go_with_strategy_and_rule() -> None:
    section = FederationParams(
        strategy="fedprox",
        strategy_params={"mu": 0.3},
        server_aggregation="trimmed_mean",
        server_aggregation_params={},
        local={"steps": 4},
    ).model_dump(mode="json")  # fmt: skip
    made = merge_federation_config(
        section,
        {"federation.strategy": "ditto", "federation.ditto.lam": 0.5, "federation.server_aggregation": "mean"}
        | {"federation.local.epochs": 2},
    )  # fmt: skip
    assert made is not None
    assert (made["strategy"], made["strategy_params"], made["server_aggregation"]) == (
        "ditto",
        {"lam": 0.5},
        "mean",
    )
    assert (made["local"]["epochs"], made["local"]["steps"]) == (2, None)
    assert section["strategy_params"] == {"mu": 0.3}, "what is given stays as it is"
    assert merge_federation_config(None, {"training.lr": 0.1}) is None


def test_estimators_and_dashboards_know_strategies() -> None:
    made = study()
    result = space(made, **{"balancing": ["equal", "dwa"], "federation.strategy": ["fedavg", "fedprox"]})
    searcher = OptunaSearch(result, SearchParams(searcher="optuna"), made.tasks, 0)
    config = RandomSearch(result, 3).ask(1)
    searcher.tell(Trial(1, "001", config, "failed", "val/mean"))
    (told,) = searcher.study.trials
    assert told.params["strategy"] == config["federation.strategy"]
    columns = TrackedSearch.from_study(made, result, "val/mean", made.base).columns
    assert {
        "federation.strategy",
        "federation.fedprox.mu",
        "federation.rounds",
        "federation.local.optimizer",
    } <= set(columns)
    assert not {"training.epochs", "training.patience", "training.weight_decay"} & set(columns)
    own = parameters_of(made.resolved(), {"federation.strategy": "fedprox", "federation.fedprox.mu": 0.2})
    assert (own["federation.strategy"], own["federation.fedprox.mu"]) == ("fedprox", 0.2)
    assert own["federation.fedprox.server_lr"] == 1.0


def test_built_in_studies_can_be_searched() -> None:
    assert len(PRESETS_BY_NAME) > 0
    for preset in PRESETS_BY_NAME:
        made = Study.model_validate(yaml.safe_load(study_yaml(preset, 7)))
        if made.search is not None:
            assert build_space(made, made.search).arms
