"""A bag of 50,000 tiles trains in memory that does not grow with its square."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

TILES = 50_000

#: One training step in a fresh process; prints its peak in GiB before the step and after it.
STEP = """
import json, sys
from importlib import import_module
import torch
from equipoise.models.batch import CaseBatch, CaseShape, TaskHead
from equipoise.models.entries import ENTRIES
from equipoise.models.losses import TaskLosses

def peak():
    # Not ru_maxrss: a child inherits its parent's.
    line = next(line for line in open("/proc/self/status") if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 2**20

torch.set_num_threads(1)
name, tiles, sizes = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3])
_, params, where = ENTRIES[name]
module, attribute = where.split(":")
heads = (TaskHead("MSI", "binary", 2, main=True),)
model = getattr(import_module(module), attribute)(params(**sizes), CaseShape(768), heads)
optimizer = torch.optim.AdamW(model.parameters())
bags, mask = torch.randn(1, tiles, 768), torch.ones(1, tiles, dtype=torch.bool)
coords, site = torch.zeros(1, tiles, 2, dtype=torch.int32), torch.zeros(1, dtype=torch.int64)
known = {"MSI": torch.ones(1, dtype=torch.bool)}
batch = CaseBatch(bags, mask, coords, {}, {}, {"MSI": torch.ones(1)}, known, site)
before = peak()
TaskLosses(heads)(model(batch), batch.targets, batch.label_mask).means().sum().backward()
optimizer.step()
assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())
print(json.dumps([before, peak()]))
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)  # seconds of a CPU that others may be using as well
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads peak memory from /proc (Linux)")
@pytest.mark.parametrize(
    ("name", "sizes", "gib"),
    [
        ("mean_pool", {}, 0.5),
        ("abmil", {}, 1.5),
        ("transmil", {}, 3.5),
        # One head and layer: N x N weights of 9.3 GiB, and a minute. Published sizes: benchmarks.training.
        ("joint", {"dim": 16, "heads": 1, "encoder_layers": 1, "decoder_layers": 1, "feedforward": 16}, 1.0),
    ],
)
def test_a_step_on_a_very_large_bag(name: str, sizes: dict[str, int], gib: float) -> None:
    square = TILES**2 * 4 / 2**30
    command = [sys.executable, "-c", STEP, name, str(TILES), json.dumps(sizes)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    before, after = json.loads(done.stdout)
    assert after - before < gib < square / 2
