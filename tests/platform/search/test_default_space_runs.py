"""A space that is generated for a model draws nothing that cannot run: every trial is a valid study."""

from __future__ import annotations

from typing import Any

import pytest

from equipoise.models.batch import CaseShape, TaskHead
from equipoise.platform.registry import entries
from equipoise.platform.search.configuration import study_from_config
from equipoise.platform.search.params import SearchParams
from equipoise.platform.search.space import Arm, Config, Space
from equipoise.platform.search.space_builder import SearchSpaceError, build_space
from equipoise.platform.study.schema import Study
from equipoise.platform.training.build import build_balancer, build_model

HEADS = (TaskHead("MSI", "binary", 2, main=True), TaskHead("LF", "regression", 1))
SHAPE = CaseShape(32, {"clinical": 3, "rna": 8, "cnv": 4, "mutation": 4})
#: Settings with which a model is built in milliseconds.
SMALL: dict[str, dict[str, Any]] = {
    "joint": {"dim": 24, "heads": 2, "encoder_layers": 1, "feedforward": 8},
    "transmil": {"dim": 16, "heads": 2},
    "modaltune": {"bottleneck": 12, "embedding": 8},
}


def study(kind: str, **sections: Any) -> Study:
    cohort = {"name": "A", "role": "develop", "clinical": "a.csv", "slides": "s.csv"}
    cohort["omics"] = {name: f"{name}.csv" for name in ("rna", "cnv", "mutation")}
    tasks = [
        {"name": "MSI", "type": "binary", "column": "MSI", "positive": "H", "main": True},
        {"name": "LF", "type": "regression", "column": "LF"},
    ]
    model = {"kind": kind, **SMALL.get(kind, {}), **sections.pop("model", {})}
    data = {"version": 1, "name": "x", "cohorts": [cohort], "tasks": tasks, "model": model}
    data["tables"] = {"clinical": [{"column": "AGE", "type": "number"}]}
    return Study.model_validate(data | sections)


def trials(space: Space) -> list[Config]:
    """A trial with every weighting, with every aggregator, and with every value of every list."""
    arms: dict[tuple[str, str | None], Arm] = {}
    for arm in space.arms:
        arms.setdefault(("weighting", arm.weighting), arm)
        arms.setdefault(("aggregation", arm.aggregation), arm)
    drawn = []
    for arm in dict.fromkeys(arms.values()):
        dimensions = space.dimensions_of(arm)
        config = arm.config() | {d.name: d.choices[0] if d.choices else d.value_at(0.5) for d in dimensions}
        if space.has_loss_weights(arm):
            config |= {f"loss_weights.{task}": 0.5 for task in space.tasks}
        drawn.append(config)
    last = space.arms[-1]
    for dimension in space.dimensions_of(last):
        ends = dimension.choices or (dimension.value_at(0.0), dimension.value_at(1.0))
        drawn += [drawn[-1] | {dimension.name: value} for value in ends if dimension.name in drawn[-1]]
    return drawn


@pytest.mark.parametrize("kind", sorted(entries("models")))
def test_every_trial_of_a_default_space_is_a_study_whose_tasks_can_be_balanced(kind: str) -> None:
    made = study(kind)
    space = build_space(made, SearchParams())
    settings = made.resolved()
    built: dict[str, Any] = {}
    for config in trials(space):
        trial = study_from_config(settings, config)
        params = {k: v for k, v in trial.model.model_dump().items() if k != "kind"} | {"modalities": None}
        params = {k: v for k, v in params.items() if k in type(trial.model).model_fields}
        if entries("models")[kind].attribute("fit") == "exact":
            assert trial.balancing.name == "equal+none"
            continue
        key = repr(params)
        if key not in built:
            tables = {name: width for name, width in SHAPE.omics.items() if name in trial.reads}
            shape = CaseShape(SHAPE.features if "wsi" in trial.reads else 0, tables)
            built[key] = build_model(kind, params, shape, HEADS, seed=0)
        build_balancer(trial.balancing, built[key], HEADS)  # raises what a trial would


@pytest.mark.parametrize(
    ("kind", "model"), [("clinical", {}), ("mean_pool", {"layers": 0}), ("omics", {"network": "linear"})]
)
def test_models_whose_tasks_share_nothing_are_searched_by_losses(kind: str, model: dict[str, Any]) -> None:
    space = build_space(study(kind, model=model), SearchParams())
    assert {arm.aggregation for arm in space.arms} == {"none"}
    weightings = {arm.weighting for arm in space.arms}
    assert {"equal", "uncertainty", "dwa", "static"} <= weightings
    assert not {"gradnorm", "autoscale"} & weightings
    assert "share no parameter" in dict(space.refused)["equal+pcgrad"]
    with pytest.raises(SearchSpaceError, match=r"equal\+pcgrad makes no sense: tasks share no parameter"):
        build_space(study(kind, model=model), SearchParams(space={"balancing": ["equal", "equal+pcgrad"]}))


def test_a_network_that_shares_nothing_is_drawn_only_with_methods_that_look_at_losses() -> None:
    def network(**space: Any) -> tuple[Any, ...]:
        built = build_space(study("omics"), SearchParams(space=space))
        return next(d.choices for d in built.dimensions if d.name == "model.network")

    assert network() == ("snn", "relu")
    assert network(balancing=["equal", "uncertainty"]) == ("linear", "snn", "relu")
    with pytest.raises(
        SearchSpaceError, match=r"space\.model\.network: linear: tasks then share no parameter"
    ):
        network(**{"model.network": ["linear", "snn"], "balancing": ["equal+pcgrad"]})


def test_workers_share_every_batch_that_is_drawn() -> None:
    space = build_space(study("abmil", training={"workers": 6, "batch": 8}), SearchParams(scheduler="none"))
    assert next(d.choices for d in space.dimensions if d.name == "training.batch") == (6, 8, 16)


def test_branch_losses_are_weighted_by_no_person() -> None:
    added = study("gptomic", model={"modulation": "aux_losses", "modulation_params": {"enter": "tasks"}})
    space = build_space(added, SearchParams())
    assert "static" not in {arm.weighting for arm in space.arms}


def test_a_parameter_with_the_name_of_a_component_is_searched_like_others() -> None:
    made = study("elastic_net")
    for narrow in ({}, {"model.fusion": ["late", "early"]}):
        space = build_space(made, SearchParams(space=narrow))
        assert {arm.fusion for arm in space.arms} == {None}
        for fusion in ("early", "late"):
            config = space.arms[0].config() | {"model.fusion": fusion}
            assert study_from_config(made.resolved(), config).model.fusion == fusion
    with pytest.raises(SearchSpaceError, match="model abmil has no fusion"):
        build_space(study("abmil"), SearchParams(space={"model.fusion": ["concat"]}))
