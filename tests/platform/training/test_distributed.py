"""Two workers with the same effective batch give the result of one worker, for every balancing method."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

COX_BIASES = ("heads.2.bias", "own_heads.image.2.bias", "own_heads.omics.2.bias")
#: A softmax does not see a constant.
NO_GRADIENT = ("in_proj_bias", "attention.score.bias")
SCRIPT = Path(__file__).with_name("balancing_case.py")
_spec = importlib.util.spec_from_file_location("balancing_case", SCRIPT)
assert _spec is not None
assert _spec.loader is not None
balancing_case = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(balancing_case)


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the results of both workers for every method; one process group for all."""
    folder = tmp_path_factory.mktemp("two")
    workers = [
        subprocess.Popen([sys.executable, SCRIPT, str(rank), folder], stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    errors = [worker.communicate()[1] for worker in workers]
    assert [worker.returncode for worker in workers] == [0, 0], errors
    return folder


@pytest.mark.parametrize("method", balancing_case.methods())
def test_two_workers_equal_one(two_workers: Path, method: str) -> None:
    check(balancing_case.train(method), two_workers, method)


@pytest.mark.parametrize("name", list(balancing_case.MODULATED))
def test_two_workers_equal_one_where_branches_are_slowed(two_workers: Path, name: str) -> None:
    one = balancing_case.train_branches(name)
    assert {"rho/image", "coefficient/omics", "c/OS/omics"} <= set(one["history"][0])
    check(one, two_workers, f"branches-{name}")


def check(one: dict[str, Any], two_workers: Path, method: str) -> None:
    """Weights and history of two workers beside those of one."""
    first, second = (torch.load(two_workers / f"{method}-{rank}.pt", weights_only=True) for rank in range(2))
    assert len(one["weights"]) > 0
    for name, value in one["weights"].items():
        assert torch.equal(first["weights"][name], second["weights"][name]), name
        if name.endswith(NO_GRADIENT) or name in COX_BIASES:
            continue  # no gradient but rounding, which Adam magnifies: a key's bias, a log risk's constant
        torch.testing.assert_close(first["weights"][name], value, rtol=1e-4, atol=1e-5, msg=name)
    assert len(one["history"]) > 0
    for alone, together in zip(one["history"], first["history"], strict=True):
        assert alone.keys() == together.keys()
        assert len(alone) > 0
        for key, value in alone.items():
            assert together[key] == pytest.approx(value, rel=1e-3, abs=1e-4, nan_ok=True), key
