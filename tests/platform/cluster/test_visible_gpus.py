"""Workers see the GPUs that they asked for; a Ray that believes in one GPU shows it on any machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

SEEN = """
    import functools, json, os, sys
    from pathlib import Path
    import ray
    from equipoise.platform.cluster.params import RayOptions
    from equipoise.platform.cluster.session import ray_session
    from equipoise.platform.federation.simulation.ray_backend import WorkerPool
    from equipoise.platform.training.on_ray import run_folds_in_parallel, shared_gpu
    from equipoise.platform.training.params import TrainingParams

    def seen(*_):
        return os.environ.get("CUDA_VISIBLE_DEVICES")

    def fold(path):
        path.write_text(str(seen()))
        return path

    root = Path(sys.argv[1])
    with ray_session(RayOptions(address="local", cpus=2, gpus=1, object_store_mb=100, dashboard=False)):
        task = ray.remote(seen)
        found = {
            "none": ray.get(task.remote()),
            "half": ray.get(task.options(num_gpus=0.5).remote()),
        }
        for device in ("auto", "cpu"):
            path = root / device
            share = shared_gpu(TrainingParams(device=device))
            run_folds_in_parallel([functools.partial(fold, path)], max_concurrent=2, cpus=1, gpus=share)
            found[f"fold on {device}"] = path.read_text()
        pool = WorkerPool(1)
        found["client"] = ray.get(pool.actors[0].__ray_call__.remote(seen))
        pool.shutdown()
    print(json.dumps(found))
"""


def test_only_workers_that_ask_for_a_gpu_see_one(tmp_path: Path) -> None:
    """Without that, ``resources.gpus: 0`` would put every encoder worker on the first GPU of the node."""
    command = [sys.executable, "-c", textwrap.dedent(SEEN), str(tmp_path)]
    environ = os.environ | {"CUDA_VISIBLE_DEVICES": "0"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environ)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == {
        "none": "",
        "half": "0",
        "fold on auto": "0",
        "fold on cpu": "",
        "client": "0",  # as inline, where it is this process's
    }
