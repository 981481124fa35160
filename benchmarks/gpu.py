"""Extraction and training on a GPU: equal to the CPU within tolerance, how fast, and how busy the GPU is.

Without a CUDA device nothing runs, and the reason is printed. An encoder of the shape of ViT-B/16 with random weights
extracts the same synthetic slides on CPUs, with one worker on the whole GPU and with two workers that share it
(``resources.gpus_per_worker: 0.5``); the tiny study is trained in float32 and in bfloat16; one worker of Ray Train
starts with nccl.

``difference_whole``, ``difference_shared``: largest difference of a feature from the CPU's beyond one rounding step of
float16, in which features are stored, in standard deviations of that feature. ``tiles_per_s_whole``,
``tiles_per_s_shared``: tiles by wall time, with the start of the workers.
``busy_whole``, ``busy_shared``: mean of the share of time in which the GPU worked, as ``nvidia-smi`` says it; null
without that program, or where it says nothing (a part of a GPU). ``bf16_loss_difference``: of the last training loss,
relative, of the task with the largest. ``nccl_sum``: the sum of ones over the workers, 1.0.
"""

import argparse
import csv
import hashlib
import json
import os
import secrets
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.extraction import table_of
from benchmarks.tiles import slide
from equipoise.datasets.store.feature_store import FeatureStore
from equipoise.platform.extraction.params import ExtractionParams
from equipoise.platform.extraction.pipeline import extract
from equipoise.platform.extraction.summary import ExtractionSummary

#: ViT-B/16, and 224 px at 0.5 um/px.
SHAPE = {"width": 768, "depth": 12, "heads": 12, "patch": 16, "mlp": 3072, "image": 224}
PX, MPP = 224, 0.5


class BusyGpu:
    """Mean utilisation of the GPU while the block runs.

    Attributes
    ----------
    share
        From 0 to 1; None if no reading succeeded.

    Parameters
    ----------
    read
        The utilisation now, from 0 to 1; None if it is not known.
    interval_s
        Between two readings.
    """

    def __init__(self, read: Callable[[], float | None], interval_s: float = 0.2) -> None:
        self.share: float | None = None
        self._read, self._interval_s = read, interval_s
        self._done = threading.Event()
        self._samples: list[float] = []
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._done.wait(self._interval_s):
            if (busy := self._read()) is not None:
                self._samples.append(busy)

    def __enter__(self) -> "BusyGpu":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        if self._samples:
            self.share = round(statistics.mean(self._samples), 3)


def utilisation() -> float | None:
    """Of the GPU that torch calls the first, now; None without ``nvidia-smi``, or if it cannot tell (MIG).

    By its UUID: ``nvidia-smi`` numbers the GPUs of the machine in another order, and knows no CUDA_VISIBLE_DEVICES.
    """
    import torch

    if not torch.cuda.is_available() or shutil.which("nvidia-smi") is None:
        return None
    gpu = f"--id=GPU-{torch.cuda.get_device_properties(0).uuid}"
    query = ["nvidia-smi", gpu, "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    return percentage(subprocess.run(query, capture_output=True, text=True, check=False).stdout)


def percentage(answer: str) -> float | None:
    """A line of ``nvidia-smi`` as a share; None for ``[N/A]`` and messages."""
    text = answer.strip()
    return int(text) / 100 if text.isdecimal() else None


def main() -> None:
    """Run all parts, print the figures; or say why not."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--slides", type=int, default=4, help="slides of some 2,100 tiles")
    arguments = parser.parse_args()
    import torch

    if not torch.cuda.is_available():
        reason = "no CUDA device is visible"
        print(f"skipped: {reason}")
        print(json.dumps({"skipped": reason}))
        return
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32), OMP_NUM_THREADS="1")
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        template = slide("20x", root / "templates")
        table = table_of([template], arguments.slides, root / "slides")
        encoder = write_encoder(root, SHAPE)
        figures = compare_extractions(table, encoder, root, device="cuda", px=PX)
        figures |= compare_precisions(root, device="cuda")
        figures["nccl_sum"] = sum_over_workers(root / "nccl", gpus=True)
    figures |= {"slides": arguments.slides, "gpu": torch.cuda.get_device_name(0), "cores": os.cpu_count()}
    figures |= {"python": sys.version.split()[0], "torch": torch.__version__, "ray": version("ray")}
    (Path(__file__).parent / "results" / "gpu.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures))


def write_encoder(folder: Path, shape: dict[str, int]) -> dict[str, Any]:
    """Parameters of ``from_description`` for a vision transformer of this shape with random weights."""
    from dataclasses import replace

    import torch
    from safetensors.torch import save_file

    from equipoise.models.encoders.cards import CARDS
    from equipoise.models.encoders.vit import VisionTransformer

    torch.manual_seed(0)
    network = VisionTransformer(replace(CARDS["uni"].shape, **shape))
    weights = folder / "random.safetensors"
    save_file(network.state_dict(), weights)
    card = {
        "name": "random",
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
        "shape": shape,
        "pairings": [[MPP, shape["image"]]],
        "normalisation": [[0.5, 0.5, 0.5], [0.25, 0.25, 0.25]],
        "fit": "bilinear",
        "precision": "float32",
        "renames": [],
    }
    description = folder / "random.json"
    description.write_text(json.dumps(card), "utf-8")
    return {"description": str(description), "weights": str(weights)}


def compare_extractions(
    table: Any, encoder: dict[str, Any], root: Path, *, device: str, px: int
) -> dict[str, Any]:
    """The same slides on CPUs, with a worker on a whole GPU, and with two workers that share it."""
    from equipoise.platform.cluster.params import RayOptions
    from equipoise.platform.cluster.session import ray_session

    def run(name: str, where: str, workers: int, share: float | None) -> tuple[ExtractionSummary, BusyGpu]:
        params = ExtractionParams.model_validate(
            {
                "encoder": "from_description",
                "encoder_params": encoder | {"device": where},
                "mpp": MPP,
                "tile_px": px,
                "max_fail": 0.0,
            }
        )
        with BusyGpu(utilisation) as busy:
            made = extract(table, params, root / name, workers=workers, gpus_per_worker=share)
        if made.counts != {"ok": len(table)}:
            raise SystemExit(f"{name}: {made.counts}\n{made.failures_text()}")
        return made, busy

    # One GPU, also where there are more: two workers are to share it, and it is the one that is watched.
    gpus = 1 if device == "cuda" else None
    with ray_session(RayOptions(address="local", gpus=gpus, object_store_mb=300, dashboard=False)):
        expected, _ = run("cpu", "cpu", 2, None)
        figures: dict[str, Any] = {"tiles": expected.tiles}
        for name, workers, share in (("whole", 1, 1.0), ("shared", 2, 0.5)):
            made, busy = run(name, device, workers, share)
            figures[f"difference_{name}"] = round(difference(expected.store, made.store, table["slide"]), 5)
            figures[f"tiles_per_s_{name}"] = round(made.tiles / made.seconds, 1)
            figures[f"busy_{name}"] = busy.share
    return figures


def difference(expected: Path, found: Path, slides: Any) -> float:
    """Largest difference of a feature over all tiles of all slides, in standard deviations of the feature.

    One rounding step of float16 is taken off: numbers that differ in the seventh digit may be rounded to neighbours,
    and a step is up to some hundredths of the standard deviation of a feature with a large mean.
    """
    one, other = FeatureStore.open(expected), FeatureStore.open(found)
    pairs = [(np.asarray(one.read(name)[0]), np.asarray(other.read(name)[0])) for name in slides]
    ours = np.concatenate([a for a, _ in pairs])
    theirs = np.concatenate([b for _, b in pairs])
    step = np.spacing(np.maximum(np.abs(ours), np.abs(theirs))).astype(np.float32)
    ours, theirs = ours.astype(np.float32), theirs.astype(np.float32)
    return float((np.maximum(np.abs(ours - theirs) - step, 0).max(0) / ours.std(0)).max())


def compare_precisions(root: Path, *, device: str) -> dict[str, float]:
    """The tiny study, trained with and without bfloat16; relative difference of the last loss, of the worst task."""
    command = [sys.executable, "-m", "equipoise.jobs.cli"]
    study = root / "tiny"
    for words in (
        ["synthesize", "--preset", "tiny", "--out", str(study)],
        ["extract", "-c", str(study / "study.yaml"), "-o", str(study / "extracted")],
    ):
        subprocess.run([*command, *words], check=True, capture_output=True)
    losses: dict[str, dict[str, float]] = {}
    for amp in ("off", "bf16"):
        words = ["train", "-c", str(study / "study.yaml"), "-o", str(study / amp)]
        words += ["-s", f"training.device={device}", "-s", f"training.amp={amp}", "-s", "training.epochs=3"]
        subprocess.run([*command, *words], check=True, capture_output=True)
        with (study / amp / "folds" / "0-0" / "history.csv").open() as file:
            last = list(csv.DictReader(file))[-1]
        losses[amp] = {name: float(loss) for name, loss in last.items() if name.startswith("train/")}
    differences = [abs(losses["bf16"][name] - loss) / abs(loss) for name, loss in losses["off"].items()]
    return {"bf16_loss_difference": round(max(differences), 5)}


def sum_over_workers(scratch: Path, *, gpus: bool) -> float:
    """One worker of Ray Train in a process group (nccl with GPUs, gloo without) that sums a one over all workers."""
    from equipoise.platform.cluster.params import RayOptions
    from equipoise.platform.cluster.session import ray_session
    from equipoise.platform.training.on_ray import run_workers

    found = scratch.with_suffix(".sum")
    with ray_session(RayOptions(address="local", object_store_mb=300, dashboard=False)):
        run_workers(sum_of_ones, str(found), workers=1, threads=1, gpus=gpus, scratch=scratch)
    return float(found.read_text())


def sum_of_ones(config: dict[str, Any]) -> None:
    """What each worker does."""
    import ray
    import torch

    one = torch.ones(1, device="cuda" if torch.distributed.get_backend() == "nccl" else "cpu")
    torch.distributed.all_reduce(one)
    Path(ray.get(config["job"])).write_text(str(one.item()))


if __name__ == "__main__":
    main()
