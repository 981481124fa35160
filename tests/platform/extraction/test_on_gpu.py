"""Workers on GPUs: what can be seen without one, and, where there is one, that the features are the CPU's."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
from benchmarks.gpu import (
    SHAPE,
    BusyGpu,
    compare_extractions,
    compare_precisions,
    difference,
    percentage,
    sum_over_workers,
    write_encoder,
)

on_gpu = [
    pytest.mark.gpu,
    pytest.mark.slow,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device is visible"),
]
SMALL = SHAPE | {"width": 48, "depth": 2, "heads": 4, "mlp": 96}

#: A Ray that believes in one GPU; every encoder writes down what it sees, and when.
SHARED = """
    import json, os, sys, time
    from pathlib import Path
    import pandas as pd, ray
    from equipoise.models.encoders.handcrafted import Handcrafted
    from equipoise.models.encoders.protocol import Identity
    from equipoise.platform.extraction.params import ExtractionParams
    from equipoise.platform.extraction.pipeline import extract

    root, share, workers = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])

    class Seen(Handcrafted):
        def __call__(self, tiles):
            began = time.time()
            time.sleep(0.5)
            found = super().__call__(tiles)
            line = [os.getpid(), os.environ.get("CUDA_VISIBLE_DEVICES"), began, time.time()]
            with (root / "seen").open("a") as file:
                file.write(json.dumps(line) + "\\n")
            return found

    encoder = Handcrafted()
    params = ExtractionParams(encoder="ctranspath", encoder_params={"weights": "w"}, mpp=0.5, tile_px=224)
    ray.init("local", num_cpus=4, num_gpus=1, object_store_memory=150_000_000, include_dashboard=False)
    summary = extract(
        pd.read_parquet(root / "slides.parquet"), params, root / "store", workers=workers, gpus_per_worker=share,
        make_encoder=lambda _: Seen(), identify=lambda _: Identity(encoder.dim, encoder.hash, encoder.batch_size),
    )
    print(summary.counts["ok"])
"""


@pytest.mark.parametrize(("share", "workers", "at_once"), [(0.5, 2, 2), (1.0, 2, 1)])
def test_as_many_workers_as_their_shares_allow_see_the_gpu(
    slides: pd.DataFrame, tmp_path: Path, share: float, workers: int, at_once: int
) -> None:
    slides.to_parquet(tmp_path / "slides.parquet")
    command = [sys.executable, "-c", textwrap.dedent(SHARED), str(tmp_path), str(share), str(workers)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    seen = [json.loads(line) for line in (tmp_path / "seen").read_text().splitlines()]
    assert {devices for _, devices, _, _ in seen} == {"0"}
    assert len({pid for pid, *_ in seen}) == at_once
    overlapping = any(
        pid != other and began < ended and begins < end
        for pid, _, began, end in seen
        for other, _, begins, ended in seen
    )
    assert overlapping == (at_once > 1)


@pytest.fixture
def two_slides(table_of: Callable[..., pd.DataFrame], make_slide: Callable[..., Path]) -> pd.DataFrame:
    return table_of([make_slide(name, seed=at) for at, name in enumerate(("a", "b"))])


def test_the_comparison_finds_a_difference(
    two_slides: pd.DataFrame, tmp_path: Path, ray_session: None
) -> None:
    """On CPUs, where all three ways are the same; a feature that is changed in a copy is seen."""
    (tmp_path / "encoder").mkdir()
    encoder = write_encoder(tmp_path / "encoder", SMALL)
    figures = compare_extractions(two_slides, encoder, tmp_path, device="cpu", px=224)
    assert (figures["difference_whole"], figures["difference_shared"]) == (0, 0)
    assert figures["tiles_per_s_shared"] > 0
    (tmp_path / "other").mkdir()
    torch.manual_seed(1)
    other = write_encoder(tmp_path / "other", SMALL | {"depth": 1})
    others = compare_extractions(two_slides, other, tmp_path / "other", device="cpu", px=224)
    assert others["tiles"] == figures["tiles"]
    (one,), (two,) = (list((folder / "whole").iterdir()) for folder in (tmp_path, tmp_path / "other"))
    assert difference(one, two, two_slides["slide"]) > 1


def test_busy_is_the_mean_of_what_was_read() -> None:
    readings = iter([0.25, None, 0.75])
    read_all = threading.Event()

    def read() -> float | None:
        try:
            return next(readings)
        except StopIteration:
            read_all.set()
            return None

    with BusyGpu(read, interval_s=0.001) as busy:
        assert read_all.wait(60)
    assert busy.share == 0.5
    with BusyGpu(lambda: None, interval_s=0.001) as unknown:
        pass
    assert unknown.share is None


@pytest.mark.parametrize(
    ("answer", "share"),
    [("37\n", 0.37), ("0\n", 0.0), ("[N/A]\n", None), ("No devices were found\n", None), ("", None)],
)
def test_answers_of_nvidia_smi(answer: str, share: float | None) -> None:
    assert percentage(answer) == share


@pytest.mark.slow
def test_bfloat16_trains_to_nearly_the_same_loss(tmp_path: Path) -> None:
    assert 0 < compare_precisions(tmp_path, device="cpu")["bf16_loss_difference"] < 0.05


def test_a_worker_of_ray_train_joins_a_group(tmp_path: Path, ray_session: None) -> None:
    assert sum_over_workers(tmp_path / "group", gpus=False) == 1


class TestOnAGpu:
    pytestmark = on_gpu

    def test_features_on_a_whole_and_on_a_shared_gpu_are_those_of_the_cpu(
        self, two_slides: pd.DataFrame, tmp_path: Path
    ) -> None:
        encoder = write_encoder(tmp_path, SHAPE)
        figures = compare_extractions(two_slides, encoder, tmp_path, device="cuda", px=224)
        assert max(figures["difference_whole"], figures["difference_shared"]) < 0.01

    def test_bfloat16_trains_to_nearly_the_same_loss(self, tmp_path: Path) -> None:
        assert compare_precisions(tmp_path, device="cuda")["bf16_loss_difference"] < 0.05

    def test_nccl_starts(self, tmp_path: Path) -> None:
        assert sum_over_workers(tmp_path / "group", gpus=True) == 1
