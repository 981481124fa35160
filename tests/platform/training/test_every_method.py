"""Every balancing method trains, records its weights, and resumes after an interruption bit for bit."""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("balancing_case.py")
_spec = importlib.util.spec_from_file_location("balancing_case", SCRIPT)
assert _spec is not None
assert _spec.loader is not None
balancing_case = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(balancing_case)


class InterruptError(Exception):
    """Stands for anything that ends a process."""


def interrupt(row: dict[str, float]) -> None:
    raise InterruptError


@pytest.mark.parametrize("method", balancing_case.methods())
def test_every_method_trains_and_resumes(method: str, tmp_path: Path) -> None:
    expected = balancing_case.train(method)
    assert all(torch.isfinite(value).all() for value in expected["weights"].values())
    row = expected["history"][-1]
    assert math.isfinite(row["weight/MSI"])
    assert 0 <= row["conflict_rate"] <= 1
    checkpoint = tmp_path / "checkpoint.pt"
    with pytest.raises(InterruptError):
        balancing_case.train(method, report=interrupt, checkpoint=checkpoint)
    resumed = balancing_case.train(method, checkpoint=checkpoint)
    for again, first in zip(resumed["history"], expected["history"], strict=True):
        assert again == pytest.approx(first, abs=0, rel=0, nan_ok=True)
    for name, value in expected["weights"].items():
        assert torch.equal(resumed["weights"][name], value), name


def test_methods_differ() -> None:
    """Methods act from the first step on, so their weights differ from those of equal weighting."""
    methods = ["equal+none", "uncertainty+none", "equal+pcgrad", "equal+cagrad", "equal+graddrop", "rlw+none"]
    weights = [balancing_case.train(method)["weights"]["project.weight"] for method in methods]
    for i, one in enumerate(weights):
        for other in weights[:i]:
            assert not torch.equal(one, other)
