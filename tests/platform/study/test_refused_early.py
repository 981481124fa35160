"""What a later step would refuse is refused with the study: names, numbers, batches, methods."""

from __future__ import annotations

import inspect
import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from equipoise.platform.errors import StudyError
from equipoise.platform.registry import KINDS, entries
from equipoise.platform.run.loading import load_study
from equipoise.platform.study.schema import Study

STUDY = """\
version: 1
name: t
cohorts: [{name: A, role: develop, clinical: c.csv, slides: s.csv, omics: {rna: r.csv}}]
tasks:
  - {name: M, type: binary, column: m, positive: a, negative: b}
  - {name: OS, type: survival, time: {column: t, unit: days}, event: {column: e, event_value: 1}}
model: {kind: abmil}
training: {lr: 1.0e-4}
"""


def load(tmp_path: Path, overrides: dict[str, Any]) -> Study:
    (tmp_path / "study.yaml").write_text(STUDY)
    return load_study(tmp_path / "study.yaml", overrides)


def refused(tmp_path: Path, overrides: dict[str, Any]) -> str:
    with pytest.raises(StudyError) as caught:
        load(tmp_path, overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("features.encoder", "bogus"),
        ("features.slide_encoder", "bogus"),
        ("model.kind", "bogus"),
        ("model", {"kind": "gptomic", "image": "bogus"}),
        ("model", {"kind": "gptomic", "fusion": "bogus"}),
        ("model", {"kind": "gptomic", "modulation": "bogus"}),
        ("model", {"kind": "modaltune", "slide_encoder": "bogus"}),
        ("model", {"kind": "modaltune", "rna": "bogus"}),
        ("balancing", "bogus"),
        ("balancing", "equal+bogus"),
        ("splits.scheme", "bogus"),
        ("cohorts.0.site", "bogus"),
        ("federation", {"strategy": "bogus"}),
        ("federation", {"server_aggregation": "bogus"}),
        ("federation", {"sites": {"scheme": "bogus"}}),
        ("federation", {"candidates": [{"strategy": "bogus"}]}),
        ("federation", {"candidates": [{"server_aggregation": "bogus"}]}),
        ("training.text", {"encoder": "bogus"}),
        ("tables.rna.encoder", {"name": "bogus"}),
        ("report.sections", {"bogus": {}}),
        ("evaluation.within", ["bogus"]),
        ("evaluation.within", ["OS"]),
        ("search", {"metric": "val/bogus/auroc"}),
        ("search", {"space": {"balancing": ["equal+bogus"]}}),
        ("search", {"space": {"model.kind": ["bogus"]}}),
        ("search", {"space": {"balancing.aggregation": ["bogus"]}}),
    ],
)
def test_names_that_nobody_knows(tmp_path: Path, key: str, value: Any) -> None:
    said = refused(tmp_path, {key: value})
    assert "bogus" in said or "'OS' is not one of cohort, site, M" in said
    assert "study.yaml: not valid, 1 problem" in said


@pytest.mark.parametrize("name", ["training.lr", "balancing", "model.kind", "model.dropout", "loss_weights"])
def test_an_empty_list_is_no_space(tmp_path: Path, name: str) -> None:
    said = refused(tmp_path, {"search": {"space": {name: []}}})
    assert f"{name}: an empty list has nothing to search" in said


@pytest.mark.parametrize("number", [math.inf, -math.inf, math.nan])
@pytest.mark.parametrize("form", ["", "uniform", "loguniform"])
def test_a_space_without_end(tmp_path: Path, number: float, form: str) -> None:
    wish = {form: [0.1, number]} if form else [number]
    said = refused(tmp_path, {"search": {"space": {"training.lr": wish}}})
    assert "finite" in said


def models_of(root: type[BaseModel], seen: dict[type[BaseModel], None]) -> dict[type[BaseModel], None]:
    """A parameter model with all models inside its fields."""
    if root in seen:
        return seen
    seen[root] = None
    for field in root.model_fields.values():
        pending = [field.annotation]
        while pending:
            kind = pending.pop()
            pending += getattr(kind, "__args__", ())
            if inspect.isclass(kind) and issubclass(kind, BaseModel):
                models_of(kind, seen)
    return seen


def test_no_number_of_a_study_or_an_entry_may_be_infinite() -> None:
    models = models_of(Study, {})
    for kind in KINDS:
        for entry in entries(kind).values():
            models_of(entry.params, models)
    checked = 0
    for model in models:
        for name, field in model.model_fields.items():
            if "float" not in str(field.annotation):
                continue
            for number in (math.inf, math.nan):
                with pytest.raises(ValidationError) as caught:
                    model.model_validate({name: number})
                about = [e for e in caught.value.errors() if e["loc"][:1] == (name,)]
                before = [e for e in caught.value.errors() if e["loc"] == ()]
                assert about or before, f"{model.__name__}.{name} takes {number}"
                checked += 1
    assert checked > 200


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("training.lr", math.inf, "finite"),
        ("training.epochs", 10**12, "training.epochs: 1e+12 is larger than any such setting can be"),
        ("training.lr", 1e300, "training.lr: 1e+300 is larger"),
        ("training.weight_decay", math.nan, "finite"),
        ("features.max_fail", math.nan, "finite"),
        ("tasks.0", {"name": "M", "type": "binary", "column": "m", "cutoff": math.inf}, "finite"),
        ("seed", 10**30, "seed: 1e+30 is larger"),
        (
            "balancing",
            {"weighting": "static", "weighting_params": {"weights": {"M": math.inf, "OS": 1}}},
            "finite",
        ),
        ("features.encoder_params", {"seed": 10**30}, "larger"),
    ],
)
def test_infinite_and_absurd_numbers(tmp_path: Path, key: str, value: Any, said: str) -> None:
    extra = {"features.encoder": "random_conv"} if "encoder_params" in key else {}
    assert said in refused(tmp_path, extra | {key: value})


def test_an_absurd_number_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(STUDY.replace("1.0e-4", "1.0e+99"))
    with pytest.raises(StudyError, match=r"line 8, training\.lr: 1e\+99 is larger"):
        load_study(tmp_path / "study.yaml")


def test_seeds_may_be_large(tmp_path: Path) -> None:
    assert load(tmp_path, {"seed": 2**62}).seed == 2**62


def test_batches_that_no_training_can_use(tmp_path: Path) -> None:
    assert "OS cannot be learned from batches of one" in refused(tmp_path, {"training.batch": 1})
    said = refused(tmp_path, {"training.batch": 8, "training.workers": 16})
    assert "16 workers share batches of 8" in said
    assert load(tmp_path, {"training.batch": 8, "training.workers": 8}).training.workers == 8


@pytest.mark.parametrize(
    ("model", "balancing"),
    [
        ({"kind": "mean_pool", "layers": 0}, "equal+pcgrad"),
        ({"kind": "omics", "network": "linear"}, "gradnorm"),
        ({"kind": "elastic_net"}, "uncertainty"),
        ({"kind": "modaltune", "mode": "full"}, {"aggregation": "mgda", "at": "representation"}),
    ],
)
def test_methods_that_cannot_balance_the_tasks_of_the_model(
    tmp_path: Path, model: Any, balancing: Any
) -> None:
    said = refused(tmp_path, {"model": model, "balancing": balancing})
    assert "share no" in said or "fitted by a solver" in said
    one = [{"name": "M", "type": "binary", "column": "m", "positive": "a"}]
    if model["kind"] != "elastic_net":  # with one task there is nothing to compare
        load(tmp_path, {"model": model, "balancing": balancing, "tasks": one})
