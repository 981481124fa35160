"""Kills at random moments: what is finished in the end must equal what an uninterrupted process writes.

``extract`` by SIGKILL: a driver extracts synthetic slides on its own Ray, slowed down so that there is something to
interrupt. Processes are killed one after another, be it the driver (its Ray then dies with it, and the same command is
run again) or one of its workers, whether it is starting or working. Then the run is left to end.

``train``, ``search`` and ``federate`` by SIGTERM and SIGKILL (:mod:`benchmarks.job_kills`): equal predictions and
records, no stale file, and ``equipoise status`` says how each ended. SYNTHETIC data throughout.

Prints the kills, a table and a last line of JSON; every ``identical`` and ``status_right`` must be 1, and
``stale_files`` 0. ``--parts`` runs some of them; the others keep their last figures.
"""

import argparse
import hashlib
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.job_kills import kill_job
from benchmarks.tree import _tree as tree_of
from equipoise.models.encoders.handcrafted import Handcrafted
from equipoise.platform.extraction import pipeline
from equipoise.platform.extraction.params import ExtractionParams
from equipoise.platform.extraction.pipeline import extract
from equipoise.platform.extraction.summary import ExtractionSummary

PARAMS = ExtractionParams.model_validate({"tile_px": 112, "shard_slides": 4, "max_fail": 1.0})
BATCH = 8
#: Job → how often it is killed.
JOB_KILLS = {"train": 10, "search": 5, "federate": 5}


class Slow(Handcrafted):
    """The handcrafted encoder with small batches and a pause after each."""

    batch_size = BATCH
    pause_s = 0.0

    def __call__(self, tiles: np.ndarray) -> np.ndarray:
        """Encode, then rest."""
        vectors = super().__call__(tiles)
        time.sleep(self.pause_s)
        return vectors


class Encoder:
    """Builds the encoder in every process."""

    def __init__(self, pause_s: float) -> None:
        self.pause_s = pause_s

    def __call__(self, params: ExtractionParams) -> Slow:
        """As ``load_encoder``."""
        encoder = Slow()
        encoder.pause_s = self.pause_s
        return encoder


def main() -> None:
    """Kill, resume, compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=10, help="of extract")
    parser.add_argument(
        "--parts", nargs="+", choices=("extract", *JOB_KILLS), default=("extract", *JOB_KILLS)
    )
    parser.add_argument("--seed", type=int, default=None, help="of the moments [a new one every time]")
    parser.add_argument("--pause", type=float, default=0.5, help="seconds of rest per batch")
    parser.add_argument("--drive", default=None, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.drive:
        drive(Path(arguments.drive), arguments.pause)
        return
    seed = random.SystemRandom().randrange(2**32) if arguments.seed is None else arguments.seed
    file = Path(__file__).parent / "results" / "kills.json"
    file.parent.mkdir(exist_ok=True)
    figures = json.loads(file.read_text()) if file.exists() else {}
    for part in arguments.parts:
        started, rng = time.perf_counter(), random.Random(f"{seed} {part}")
        with tempfile.TemporaryDirectory(prefix="kills-") as folder:
            if part == "extract":
                found = disturbed(Path(folder), arguments.kills, arguments.pause, rng)
                figures |= found | {"seed": seed, "wall_s": round(time.perf_counter() - started, 1)}
            else:
                row = kill_job(part, Path(folder), JOB_KILLS[part], rng).row()
                figures.setdefault("jobs", {})[part] = row | {"seed": seed}
        file.write_text(json.dumps(figures, indent=2) + "\n")
    for key, value in figures.items():
        if key != "jobs":
            print(f"{key:<16} {value}")
    for job, row in figures.get("jobs", {}).items():
        print(f"{job}: {row}")
    print(json.dumps(figures))
    jobs = figures.get("jobs", {}).values()
    good = all(row["identical"] and row["status_right"] and not row["stale_files"] for row in jobs)
    sys.exit(0 if good and figures.get("identical", 1) else 1)


def drive(root: Path, pause_s: float) -> None:
    """The driver that is killed."""
    from equipoise.platform.cluster.params import RayOptions
    from equipoise.platform.cluster.session import ray_session

    options = RayOptions(address="local", cpus=2, object_store_mb=200, dashboard=False)
    pipeline._COMMIT_EVERY = 3.0  # so that commits are hit too
    slides = pd.read_parquet(root / "slides.parquet")
    extract(
        slides, PARAMS, root / "killed", session=lambda: ray_session(options), make_encoder=Encoder(pause_s)
    )


def disturbed(root: Path, kills: int, pause_s: float, rng: random.Random) -> dict[str, object]:
    """Kill as often as asked, let the run end, compare with an undisturbed one."""
    slides = make_slides(root)
    slides.to_parquet(root / "slides.parquet")
    alone = extract(slides, PARAMS, root / "alone", workers=0, make_encoder=Encoder(0.0))
    hit = {"driver": 0, "worker": 0}
    ours: set[int] = set()
    runs = 0
    code: int | None = None
    while code != 0:
        runs += 1
        if runs > kills + 5:
            raise RuntimeError(f"the driver ended with code {code} once more, {sum(hit.values())} kills done")
        driver = start(root, pause_s)
        while driver.poll() is None and sum(hit.values()) < kills:
            wait(driver, root, rng)
            if driver.poll() is None:
                ours |= set(tree_of(driver.pid))
                what = kill(driver, rng)
                hit[what] += 1
                print(f"{time.strftime('%H:%M:%S')} killed {what}: {progress(root)}", flush=True)
        code = driver.wait()
    summary = extract(slides, PARAMS, root / "killed", workers=0, make_encoder=Encoder(0.0))
    end_all(ours)
    return compared(alone, summary) | {
        "kills": sum(hit.values()),
        "killed_drivers": hit["driver"],
        "killed_workers": hit["worker"],
        "runs": runs,
        "slides": len(slides),
        "tiles": alone.tiles,
    }


def start(root: Path, pause_s: float) -> subprocess.Popen[bytes]:
    """A driver; what it says goes to a file."""
    command = [sys.executable, "-m", "benchmarks.kills", "--drive", str(root), "--pause", str(pause_s)]
    with (root / "log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


def wait(driver: subprocess.Popen[bytes], root: Path, rng: random.Random) -> None:
    """Until a random moment: of the start, or three times out of four of the work, which a busy machine begins late."""
    if rng.random() < 3 / 4:
        before = marks(root)
        while driver.poll() is None and marks(root) <= before:
            time.sleep(0.05)
    until = time.monotonic() + rng.uniform(0.2, 10.0)
    while driver.poll() is None and time.monotonic() < until:
        time.sleep(0.05)


def marks(root: Path) -> float:
    """When a slide was last taken up."""
    with suppress(OSError):
        return max(
            (folder.stat().st_mtime for folder in (root / "killed").glob("*/staging/attempts")), default=0.0
        )
    return 0.0


def kill(driver: subprocess.Popen[bytes], rng: random.Random) -> str:
    """SIGKILL a worker, or the driver: every third time, and while there are no workers yet."""
    workers = [pid for pid in tree_of(driver.pid) if title(pid).startswith(("ray::Map", "ray::IDLE"))]
    if workers and rng.random() < 2 / 3:
        with suppress(ProcessLookupError):
            os.kill(rng.choice(workers), signal.SIGKILL)
        return "worker"
    driver.kill()
    return "driver"


def title(pid: int) -> str:
    """What a process calls itself."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    except OSError:
        return ""


def progress(root: Path) -> str:
    """What the store holds."""
    shards, staged = ("*/shards/[0-9]*.arrow", "*/staging/[0-9a-f]*.arrow")
    count = {name: len(list((root / "killed").glob(name))) for name in (shards, staged)}
    return f"{count[shards]} shards, {count[staged]} slides staged"


def end_all(pids: set[int]) -> None:
    """End what dead drivers left running: Ray's own processes, a few seconds at most."""
    for pid in pids:
        if "ray" in title(pid):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def compared(alone: ExtractionSummary, killed: ExtractionSummary) -> dict[str, object]:
    """Whether both stores hold the same files with the same bytes, and which differ."""
    expected, actual = digests(alone.store), digests(killed.store)
    names = sorted({*expected, *actual})
    different = [name for name in names if expected.get(name) != actual.get(name)]
    return {
        "identical": int(not different),
        "files": len(expected),
        "different": different[:10],
        "statuses": killed.counts,
        "worked_after_end": killed.tried,
    }


def digests(root: Path) -> dict[str, str]:
    """SHA-256 of every file."""
    files = (file for file in sorted(root.rglob("*")) if file.is_file())
    return {str(file.relative_to(root)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def make_slides(root: Path) -> pd.DataFrame:
    """The slides of the preset ``tiny``, twice, and one that is missing."""
    from equipoise.datasets.synthetic.catalogue import resolve_preset
    from equipoise.datasets.synthetic.jobs import plan
    from equipoise.datasets.synthetic.slide import write_patient

    paths = []
    for job in plan(resolve_preset("tiny"), 7):
        paths += [root / "cohorts" / file for file in write_patient(job, root / "cohorts")["files"]]  # type: ignore[attr-defined]
    paths.append(root / "cohorts" / "missing.svs")
    table = pd.DataFrame({"slide": [path.name for path in paths], "path": [str(path) for path in paths]})
    table = pd.concat([table, table.assign(slide="again-" + table["slide"])], ignore_index=True)
    return table.assign(patient=table["slide"], cohort="tiny", mpp=math.nan)


if __name__ == "__main__":
    main()
