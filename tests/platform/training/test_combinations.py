"""Which weighting goes with which aggregator."""

from __future__ import annotations

import subprocess
import sys
from itertools import product

import pytest
from pydantic import ValidationError

from equipoise.models.balancing.entries import AGGREGATORS, WEIGHTINGS, AggregatorParams, WeightingParams
from equipoise.platform.errors import StudyError
from equipoise.platform.registry import Entry, entries
from equipoise.platform.training.params import BalancingParams, refusal

WHOLE = {"famo", "gls", "stch"}


def test_the_sixteen_of_the_paper_are_allowed() -> None:
    weightings, aggregators = (
        ["equal", "uncertainty", "dwa", "auto_lambda"],
        ["none", "graddrop", "pcgrad", "cagrad"],
    )
    assert [refusal(*pair) for pair in product(weightings, aggregators)] == [None] * 16


def test_equal_goes_with_everything_and_everything_with_none() -> None:
    assert all(refusal("equal", aggregation) is None for aggregation in AGGREGATORS)
    assert all(refusal(weighting, "none") is None for weighting in WEIGHTINGS)


@pytest.mark.parametrize("weighting", sorted(WHOLE))
def test_whole_objectives_stand_alone(weighting: str) -> None:
    for aggregation in set(AGGREGATORS) - {"none"}:
        reason = refusal(weighting, aggregation)
        assert reason is not None
        assert reason.startswith(weighting)
        assert reason.endswith(f"use aggregation none, not {aggregation}")


def test_aggregators_that_weigh_take_no_weights() -> None:
    learned = set(WEIGHTINGS) - {"equal", "static"}
    for aggregation in ("db_mtl", "excess_mtl", "sdmgrad"):
        assert all(refusal(weighting, aggregation) for weighting in learned)
    assert refusal("static", "excess_mtl") is None
    assert refusal("static", "sdmgrad") is None
    assert "cancels: use weighting equal, not static" in (refusal("static", "db_mtl") or "")


def test_scale_invariant_aggregators_lose_weights() -> None:
    """But IMTL as published is both of its halves."""
    others = set(WEIGHTINGS) - {"equal"} - WHOLE
    assert refusal("imtl_l", "imtl_g") is None
    assert all(refusal(weighting, "imtl_g") for weighting in others - {"imtl_l"})
    assert all(refusal(weighting, "nash_mtl") for weighting in others)
    assert "so that weights of the losses are lost: use weighting equal, not" in (
        refusal("gradnorm", "nash_mtl") or ""
    )
    assert "use weighting equal or imtl_l, not dwa" in (refusal("dwa", "imtl_g") or "")


def test_what_others_add_is_asked_and_not_looked_up_by_name(monkeypatch) -> None:
    class Whole(WeightingParams):
        whole_objective = "theirs has one gradient"

    class Picky(AggregatorParams):
        takes_weightings = ("static",)
        reason = "picky knows weights"

    class Plain(AggregatorParams):
        kind = "none"

    for kind, name, params in (
        ("weightings", "theirs", Whole),
        ("weightings", "free", WeightingParams),
        ("aggregators", "picky", Picky),
        ("aggregators", "plain", Plain),
    ):
        monkeypatch.setitem(entries(kind), name, Entry(name, "", params, "nowhere:nothing"))
    assert refusal("theirs", "pcgrad") == "theirs has one gradient: use aggregation none or plain, not pcgrad"
    assert refusal("theirs", "plain") is None
    assert refusal("free", "picky") == "picky knows weights: use weighting equal or static, not free"
    assert refusal("static", "picky") is None
    assert refusal("free", "pcgrad") is None
    assert "not free" in (refusal("free", "nash_mtl") or "")


def test_what_needs_parameters_or_every_step_is_refused() -> None:
    at, every = {"at": "representation"}, {"every": 2}
    kept = [name for name in AGGREGATORS if refusal("equal", name, **at) is None]
    assert set(AGGREGATORS) - set(kept) == {"db_mtl", "excess_mtl", "sdmgrad"}
    assert [name for name in WEIGHTINGS if refusal(name, "none", **at)] == ["auto_lambda"]
    assert {name for name in AGGREGATORS if refusal("equal", name, **every)} == {
        "graddrop",
        "db_mtl",
        "excess_mtl",
    }
    with pytest.raises(ValidationError, match="representations of their own"):
        BalancingParams.model_validate({"weighting": "auto_lambda", "aggregation": "pcgrad", **at})
    with pytest.raises(ValidationError, match="no coefficients to keep"):
        BalancingParams.model_validate({"aggregation": "graddrop", **every})


def test_unknown_names_are_refused() -> None:
    with pytest.raises(StudyError, match="Did you mean 'pcgrad'"):
        refusal("equal", "pcgrd")


def test_entries_name_what_exists() -> None:
    allowed = [entry.attribute("takes_weightings") or () for entry in entries("aggregators").values()]
    assert {name for names in allowed for name in names} == {"static", "imtl_l"}
    assert {name for name, (_, params, _) in WEIGHTINGS.items() if params.whole_objective} == WHOLE
    picky = [params for _, params, _ in AGGREGATORS.values() if params.takes_weightings is not None]
    assert len(picky) == 5
    assert all(params.reason for params in picky)


def test_no_torch_is_needed_to_ask() -> None:
    code = "import sys, equipoise.platform.training.params, equipoise.models.balancing.entries; "
    code += "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
