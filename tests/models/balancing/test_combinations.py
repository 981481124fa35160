"""Which weighting goes with which aggregator."""

from __future__ import annotations

import subprocess
import sys
from itertools import product

import pytest

from equipoise.models.balancing.combinations import (
    SCALE_INVARIANT,
    WEIGHING_AGGREGATORS,
    WHOLE_OBJECTIVES,
    refusal,
)
from equipoise.models.balancing.entries import AGGREGATORS, WEIGHTINGS


@pytest.mark.parametrize(
    ("weighting", "aggregation"),
    list(product(["equal", "uncertainty", "dwa", "auto_lambda"], ["none", "graddrop", "pcgrad", "cagrad"])),
)
def test_the_sixteen_of_the_paper_are_allowed(weighting: str, aggregation: str) -> None:
    assert refusal(weighting, aggregation) is None


def test_equal_goes_with_everything_and_everything_with_none() -> None:
    assert all(refusal("equal", aggregation) is None for aggregation in AGGREGATORS)
    assert all(refusal(weighting, "none") is None for weighting in WEIGHTINGS)


@pytest.mark.parametrize("weighting", ["famo", "gls", "stch"])
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
    others = set(WEIGHTINGS) - {"equal"} - set(WHOLE_OBJECTIVES)
    assert refusal("imtl_l", "imtl_g") is None
    assert all(refusal(weighting, "imtl_g") for weighting in others - {"imtl_l"})
    assert all(refusal(weighting, "nash_mtl") for weighting in others)
    assert "norms it brings in step are lost" in (refusal("gradnorm", "nash_mtl") or "")
    assert "use weighting equal or imtl_l, not dwa" in (refusal("dwa", "imtl_g") or "")


def test_what_others_add_is_not_judged() -> None:
    assert refusal("their_weighting", "pcgrad") is None
    assert refusal("dwa", "their_aggregator") is None


def test_tables_name_what_exists() -> None:
    assert set(WHOLE_OBJECTIVES) <= set(WEIGHTINGS)
    assert {*WEIGHING_AGGREGATORS, *SCALE_INVARIANT} <= set(AGGREGATORS)
    allowed = {name for names, _ in WEIGHING_AGGREGATORS.values() for name in names}
    assert allowed | {name for names in SCALE_INVARIANT.values() for name in names} <= set(WEIGHTINGS)


def test_no_torch_is_needed_to_ask() -> None:
    code = "import sys, equipoise.models.balancing.combinations, equipoise.models.balancing.entries; "
    code += "sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
