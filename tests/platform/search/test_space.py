"""The space of a study: conditional dimensions, valid combinations, narrowing, and requests that are refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from equipoise.platform.errors import StudyError
from equipoise.platform.registry import entries
from equipoise.platform.run.loading import load_study
from equipoise.platform.search.configuration import config_from_study, merge_config, trial_label
from equipoise.platform.search.params import SearchParams
from equipoise.platform.search.space import Space, simplex_lattice
from equipoise.platform.search.space_builder import SearchSpaceError, build_space
from equipoise.platform.study.schema import Study
from equipoise.platform.training.params import refusal

TASKS = [
    {"name": "MSI", "type": "binary", "column": "MSI", "positive": "H"},
    {"name": "LF", "type": "regression", "column": "LF"},
    {
        "name": "OS",
        "type": "survival",
        "time": {"column": "t", "unit": "days"},
        "event": {"column": "e", "event_value": "1"},
    },
]


def data(tasks: int = 3, **sections: Any) -> dict[str, Any]:
    cohort = {"name": "A", "role": "develop", "clinical": "a.csv", "slides": "s.csv"}
    return {"version": 1, "name": "x", "cohorts": [cohort], "tasks": TASKS[:tasks], **sections}


def study(tasks: int = 3, **sections: Any) -> Study:
    return Study.model_validate(data(tasks, **sections))


def space(made: Study | None = None, **narrow: Any) -> Space:
    return build_space(made or study(), SearchParams(space=narrow))


def test_every_combination_that_makes_sense_and_no_other() -> None:
    pairs = {(arm.weighting, arm.aggregation) for arm in space().arms}
    for weighting in entries("weightings"):
        for aggregation in entries("aggregators"):
            assert ((weighting, aggregation) in pairs) == (refusal(weighting, aggregation) is None)


def test_methods_that_cannot_work_at_the_representation_are_refused_with_the_reason() -> None:
    made = space(study(balancing={"at": "representation"}))
    assert {arm.weighting for arm in made.arms} == set(entries("weightings")) - {"auto_lambda"}
    reasons = dict(made.refused)
    assert "representations of their own" in reasons["auto_lambda+none"]


def test_methods_bring_their_own_parameters() -> None:
    result = space()
    names = {dimension.name for dimension in result.dimensions}
    assert {"balancing.dwa.temperature", "balancing.cagrad.c", "model.dropout", "training.lr"} <= names
    assert len(result.arms) > 0
    for arm in result.arms:
        for dimension in result.dimensions_of(arm):
            if dimension.name.startswith("balancing."):
                assert dimension.name.split(".")[1] in (arm.weighting, arm.aggregation)


def test_a_study_of_one_task_has_nothing_to_balance() -> None:
    result = space(study(1))
    assert [arm.config() for arm in result.arms] == [{}]
    assert not result.tasks
    assert not any(dimension.name.startswith("balancing") for dimension in result.dimensions)
    with pytest.raises(ValueError, match="a study of one task has nothing to balance"):
        space(study(1), balancing=["equal"])


def test_narrowing() -> None:
    narrow = {
        "balancing": ["equal", "uncertainty+pcgrad"],
        "training.lr": ["1e-4", 1e-3],
        "training.weight_decay": 0.01,
        "training.batch": 8,
        "training.grad_clip": [None, 1.0],
        "model.dim": [192, 384],
        "model.encoder_layers": 1,
        "model.decoder_layers": 1,
        "model.dropout": {"uniform": [0.0, 0.2]},
        "balancing.uncertainty.lr": [0.01, 0.1],
    }
    result = space(None, **narrow)
    assert result.size() is None
    result = space(None, **narrow | {"model.dropout": 0.1})
    assert result.size() == 2 * 2 * 2 * (1 + 2)
    points = [result.grid_point(number, 3) for number in range(result.grid_size(3))]
    assert len({str(point) for point in points}) == result.size() == len(points)
    assert {trial_label(point) for point in points} == {"equal+none", "uncertainty+pcgrad"}
    assert all(
        ("balancing.uncertainty.lr" in point) == ("uncertainty" in trial_label(point)) for point in points
    )
    assert "training.lr" in result.table()


def test_simplex_alone_and_beside_others() -> None:
    alone = space(loss_weights="simplex")
    assert [arm.config() for arm in alone.arms] == [
        {"balancing.weighting": "static", "balancing.aggregation": "none"}
    ]
    beside = space(loss_weights="simplex", balancing=["equal", "dwa"])
    assert {arm.weighting for arm in beside.arms} == {"equal", "dwa", "static"}
    points = list(simplex_lattice(3, 3))
    assert len(points) == 6
    assert all(sum(point) == pytest.approx(1) and min(point) > 0 for point in points)
    settings = merge_config(study().resolved(), {
        "balancing.weighting": "static", "balancing.aggregation": "none",
        "loss_weights.MSI": 0.5, "loss_weights.LF": 0.25, "loss_weights.OS": 0.25,
    })  # fmt: skip
    weights = settings["balancing"]["weighting_params"]["weights"]
    assert weights == {"MSI": 1.5, "LF": 0.75, "OS": 0.75}, "equal shares are weights of 1"


@pytest.mark.parametrize(
    ("narrow", "problem"),
    [
        ({"balancing": "famo+pcgrad"}, "famo\\+pcgrad makes no sense"),
        ({"balancing.weighting": ["equall"]}, "no weighting 'equall'. Did you mean 'equal'"),
        ({"training.lrr": [1]}, "not something that is searched here.*Did you mean 'training.lr'"),
        ({"training.lr": [-1]}, "training.lr: -1.*greater than 0"),
        ({"training.workers": [1, 2]}, "not something that is searched"),
        ({"splits.folds": [3, 5]}, "not something that is searched"),
        ({"tasks.0.column": ["a", "b"]}, "not something that is searched"),
        ({"training.schedule": {"uniform": [0, 1]}}, "takes names, not a range"),
        ({"balancing.dwa.temperature": 2, "balancing": ["equal"]}, "not something that is searched"),
        ({"model.kind": ["joint", "omics"]}, "omics reads other data than joint"),
        ({"loss_weights": "dirichlet"}, "write simplex"),
    ],
)
def test_what_makes_no_sense_is_refused_in_the_study(narrow: dict, problem: str, tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(data(search={"space": narrow})))
    with pytest.raises(StudyError, match=problem):
        load_study(file)


def test_the_study_as_written_is_a_configuration() -> None:
    own = study(balancing={"weighting": "dwa", "weighting_params": {"temperature": 3}}, training={"lr": 3e-4})
    result = space(own)
    config = config_from_study(own, result)
    assert config["balancing.dwa.temperature"] == 3
    assert config["training.lr"] == 3e-4
    again = Study.model_validate(merge_config(own.resolved(), config))
    assert again.balancing == own.balancing
    assert again.model == own.model
    other = merge_config(
        own.resolved(), {"balancing.weighting": "uncertainty", "balancing.aggregation": "none"}
    )
    assert other["balancing"]["weighting_params"] == {}, "parameters of another method do not stay"


def test_kinds_of_model_have_their_own_dimensions() -> None:
    result = space(**{"model.kind": ["joint", "abmil"], "balancing": "equal"})
    assert {arm.kind for arm in result.arms} == {"joint", "abmil"}
    for arm in result.arms:
        assert all(
            d.name.split(".")[1] == arm.kind for d in result.dimensions_of(arm) if d.name.startswith("model.")
        )
    settings = merge_config(study().resolved(), {"model.kind": "abmil", "model.abmil.dim": 256})
    assert settings["model"] == {"kind": "abmil", "dim": 256}


GPTOMIC = {"kind": "gptomic", "modulation": "gradmod", "modulation_params": {"alpha": 0.5}}


def test_fusion_and_modulation_are_searched_with_their_own_parameters() -> None:
    wishes = {
        "model.fusion": ["concat", "kronecker"],
        "model.modulation": ["none", "gradmod"],
        "balancing": "equal",
    }
    made = space(study(model=GPTOMIC), **wishes)
    assert {(arm.fusion, arm.modulation) for arm in made.arms} == {
        (fusion, modulation) for fusion in ("concat", "kronecker") for modulation in ("none", "gradmod")
    }
    for arm in made.arms:
        names = {d.name for d in made.dimensions_of(arm)}
        assert ("model.modulation.gradmod.alpha" in names) is (arm.modulation == "gradmod")
        assert ("model.fusion.kronecker.dropout" in names) is (arm.fusion == "kronecker")
    first = config_from_study(study(model=GPTOMIC), made)
    assert first["model.fusion"] == "concat"
    assert first["model.modulation.gradmod.alpha"] == 0.5
    assert trial_label(first) == "equal+none-concat-gradmod"


def test_a_configuration_of_components_becomes_a_study() -> None:
    own = study(model=GPTOMIC)
    config = {
        "model.fusion": "kronecker",
        "model.fusion.kronecker.dim": 16,
        "model.modulation": "gradmod",
        "model.modulation.gradmod.ratio": "geometric",
        "model.dim": 32,
    }
    model = merge_config(own.resolved(), config)["model"]
    assert (model["fusion"], model["fusion_params"]) == ("kronecker", {"dim": 16})
    assert model["modulation_params"] == {"alpha": 0.5, "ratio": "geometric"}
    assert model["dim"] == 32
    Study.model_validate(merge_config(own.resolved(), config))
    other = merge_config(own.resolved(), {"model.modulation": "ogm_ge"})["model"]
    assert other["modulation_params"] == {}, "parameters of another modulation do not stay"


def test_components_are_checked() -> None:
    made = study(model=GPTOMIC)
    for wishes, problem in (
        ({"model.fusion": ["kroneker"]}, "no fusion 'kroneker'. Did you mean 'kronecker'"),
        ({"model.modulation.gradmod.alpha": [-1.0]}, "greater than 0"),
    ):
        with pytest.raises(SearchSpaceError, match=problem):
            space(made, **wishes)
    with pytest.raises(SearchSpaceError, match="model joint has no fusion"):
        space(study(), **{"model.fusion": ["late"]})
    alone = space(study(1, model=GPTOMIC), **{"model.modulation.gradmod.alpha": [0.1, 1.0]})
    (alpha,) = [d for d in alone.dimensions if d.name.endswith("alpha")]
    assert alpha.choices == (0.1, 1.0)


def test_branches_as_tasks_can_be_balanced_in_a_study_of_one_task() -> None:
    parts = {"kind": "gptomic", "modulation": "aux_losses", "modulation_params": {"enter": "tasks"}}
    made = space(study(1, model=parts), balancing=["equal", "uncertainty+pcgrad"])
    assert {(arm.weighting, arm.aggregation) for arm in made.arms} == {
        ("equal", "none"),
        ("uncertainty", "pcgrad"),
    }
    with pytest.raises(SearchSpaceError, match="nothing to balance"):
        space(study(1, model=GPTOMIC), balancing=["equal"])


@pytest.mark.parametrize(
    "metric",
    [
        "test/MSI/auroc",
        "test",
        "external/MSI/auroc",
        "val/MSI/test",
        "holdout/MSI/auroc",
        "Test/MSI/auroc",
        "MSI/auroc",
    ],
)
def test_no_metric_but_of_inner_validation(metric: str, tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump(data(search={"metric": metric})))
    with pytest.raises(StudyError, match=r"line \d+, search.metric: .*inner\s+validation"):
        load_study(file)


def test_metrics_belong_to_tasks(tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    for metric, problem in {
        "val/MSS/auroc": "no task 'MSS'.*Did you mean 'MSI'",
        "val/LF/auroc": "LF is regression and has pearson, r2",
    }.items():
        file.write_text(yaml.safe_dump(data(search={"metric": metric})))
        with pytest.raises(StudyError, match=problem):
            load_study(file)
    file.write_text(yaml.safe_dump(data(search={"metric": "val/OS/c_index"})))
    assert load_study(file).search is not None


def test_what_does_not_go_together() -> None:
    for section, problem in (
        ({"searcher": "bohb"}, "scheduler: hyperband"),
        ({"searcher": "nsga2", "scheduler": "asha"}, "scheduler: none"),
        ({"searcher": "optuna", "scheduler": "pbt"}, "moves its population itself"),
        ({"scheduler": "pb2", "trials": 2}, "needs a population"),
        ({"space": {"training.lr": {"uniform": [2, 1]}}}, "is empty"),
        ({"space": {"training.lr": {"loguniform": [0, 1]}}}, "positive"),
    ):
        with pytest.raises(ValueError, match=problem):
            SearchParams.model_validate(section)
    with pytest.raises(ValueError, match="changes training.lr and loss_weights"):
        build_space(study(), SearchParams(scheduler="pbt", space={"model.dim": 192}))


def test_the_schema_stays_light() -> None:
    code = (
        "import sys; from equipoise.platform.search import configuration, params, space, space_builder;"
        "print([m for m in ('torch', 'ray', 'numpy', 'pandas', 'optuna') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
