"""Nodes and workers of a cluster of three are killed at random while jobs run: nothing is lost, everything is equal.

``extract``, ``train`` (two folds at a time), ``search`` (random trials without a scheduler, and under ASHA) and
``federate`` (clients in workers) run with ``--address`` on SYNTHETIC data, first undisturbed, then with nodes and
workers dying under them at moments that a seed draws: SIGKILL for one worker that works, or for all processes of a
node, which is then replaced (:mod:`benchmarks.chaos_cluster`). A job that gives up is run again, as a user would.

Keys: ``kills``, of workers and of nodes; ``lost``: slides, folds, trials, rounds that are missing at the end, or trials
that ran twice; ``unequal``: results whose bytes differ from the undisturbed run's (under ASHA, which depends on the
order in which trials end, only lost and double trials count); ``reruns``: how often a job had to be run again.
"""

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.chaos_cluster import ChaosCluster
from benchmarks.job_kills import RESULTS, write_study

#: Runs of a job after which it has failed.
MAX_RUNS = 6


class Row(NamedTuple):
    """One job under chaos: its command, what differs from the study, what must be equal, and how often it is hit."""

    job: str
    settings: tuple[str, ...]
    results: Callable[[Path], dict[str, str]]
    kills: int


def extracted(folder: Path) -> dict[str, str]:
    """Of every slide: status, and the hash of its features and places."""
    from equipoise.datasets.store.feature_store import FeatureStore

    (store,) = {file.parent for file in (folder.parent / f"{folder.name}-cohorts").rglob("index.parquet")}
    opened = FeatureStore.open(store)
    rows = {}
    index = opened.index()
    for slide, status in zip(index["slide"], index["status"], strict=True):
        digest = ""
        if status == "ok":
            features, places = opened.read(slide)
            digest = hashlib.sha256(features.tobytes() + places.tobytes()).hexdigest()
        rows[str(slide)] = f"{status} {digest}"
    return rows


def tried(folder: Path) -> dict[str, str]:
    """Trials by name: under ASHA what they find depends on the order in which they end."""
    return {path.name: "" for path in (folder / "search" / "trials").glob("*.json")}


_SEARCH = ("federation=null", "training.epochs=40", "training.min_epochs=40", "search.trials=8")
_LONG = ("training.epochs=400", "training.min_epochs=400", "training.patience=400")
ROWS = {
    "extract": Row("extract", ("resources.workers=2",), extracted, 6),
    "train": Row("train", ("federation=null", "resources.folds=2", *_LONG), RESULTS["train"], 5),
    "search": Row("search", _SEARCH, RESULTS["search"], 5),
    "search_asha": Row("search", (*_SEARCH, "search.scheduler=asha"), tried, 4),
    "federate": Row(
        "federate", ("federation.backend=ray", "federation.workers=2", "federation.rounds=40"),
        RESULTS["federate"], 5,
    ),
}  # fmt: skip


def main() -> None:
    """Run the rows that are asked for, print a table and the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", nargs="+", choices=tuple(ROWS), default=tuple(ROWS))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kills", type=int, help="of each row, in place of its own number")
    parser.add_argument(
        "--out", type=Path, help="file of the results; default: benchmarks/results/chaos.json"
    )
    arguments = parser.parse_args()
    file = arguments.out or Path(__file__).parent / "results" / "chaos.json"
    before = json.loads(file.read_text())["rows"] if file.exists() else {}
    rows = {name: row for name, row in before.items() if name in ROWS}
    for name in arguments.rows:
        with tempfile.TemporaryDirectory(prefix="chaos-") as folder, ChaosCluster() as cluster:
            rows[name] = disturb(name, ROWS[name], Path(folder), cluster, arguments.seed, arguments.kills)
        print(name, rows[name], flush=True)
        figures = summary(rows) | {"seed": arguments.seed, "python": sys.version.split()[0]}
        file.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures))
    sys.exit(1 if figures["lost"] or figures["unequal"] else 0)


def summary(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Sums over the rows, and the rows."""
    sums = {key: sum(row[key] for row in rows.values()) for key in ("kills", "lost", "unequal", "reruns")}
    return {**sums, "rows": {name: rows[name] for name in ROWS if name in rows}}


def disturb(
    name: str, row: Row, root: Path, cluster: ChaosCluster, seed: int, kills: int | None = None
) -> dict[str, Any]:
    """A job undisturbed, then under kills; what is missing or different afterwards."""
    calm, stormy = (_study(row.job, root, part) for part in ("calm", "stormy"))
    started = time.perf_counter()
    if _run(row, calm, root / "calm", cluster).wait():
        raise SystemExit(f"{name} fails undisturbed:\n{_log(root / 'calm')}")
    expected = row.results(root / "calm")
    quiet_s = time.perf_counter() - started
    wanted, rng = row.kills if kills is None else kills, random.Random(f"{seed} {name}")
    hit: Counter[str] = Counter()
    reruns, code = -1, -1
    started = time.perf_counter()
    while code and reruns + 1 < MAX_RUNS:
        reruns += 1
        process = _run(row, stormy, root / "stormy", cluster)
        while process.poll() is None:
            if hit.total() < wanted:
                _kill_one(process, cluster, rng, hit)
            time.sleep(0.2)
        code = process.returncode
        if not code and row.job == "extract" and _quarantined(row.results(root / "stormy")):
            row = row._replace(settings=(*row.settings, "features.retry=[quarantined]"))
            code = -1
    if code:
        raise SystemExit(
            f"{name} still ends with code {code} after {MAX_RUNS} runs:\n{_log(root / 'stormy')}"
        )
    found = row.results(root / "stormy")
    twice = _double_trials(root / "stormy")
    return {
        "kills": hit.total(),
        "nodes": hit["node"],
        "workers": hit["worker"],
        "results": len(expected),
        "lost": len(expected.keys() - found.keys()) + twice,
        "unequal": sum(found.get(key, value) != value for key, value in expected.items()),
        "reruns": reruns,
        "calm_s": round(quiet_s),
        "stormy_s": round(time.perf_counter() - started),
    }


def _quarantined(results: dict[str, str]) -> bool:
    """Whether slides were given up because two of their workers died, which is what happened here."""
    return any(value.startswith("quarantined") for value in results.values())


def _double_trials(folder: Path) -> int:
    """Trials that more than one record has."""
    numbers = Counter(
        json.loads(path.read_text())["index"] for path in (folder / "search" / "trials").glob("*.json")
    )
    return sum(count - 1 for count in numbers.values())


def _kill_one(
    process: "subprocess.Popen[bytes]", cluster: ChaosCluster, rng: random.Random, hit: Counter[str]
) -> None:
    """Wait for a random moment of the work, then kill a worker or a node that has some."""
    until = time.monotonic() + rng.uniform(1.0, 5.0)
    while time.monotonic() < until:
        if process.poll() is not None:
            return
        time.sleep(0.05)
    kind = "node" if rng.random() < 0.4 else "worker"
    if killed := cluster.kill_node(rng) if kind == "node" else cluster.kill_worker(rng):
        hit[kind] += 1
        print(f"  {time.strftime('%H:%M:%S')} killed {kind}: {killed}", flush=True)


def _study(job: str, root: Path, part: str) -> Path:
    """The study of a job; an extraction has slides, and a store, of its own."""
    if job != "extract":  # the same for both: paths of its tables are in best.yaml
        return write_study(root / "tables")
    cohorts = root / f"{part}-cohorts"
    command = [sys.executable, "-m", "equipoise.jobs.synthesize", "--preset", "tiny", "--out", str(cohorts)]
    subprocess.run(command, check=True, capture_output=True)
    return cohorts / "study.yaml"


def _run(row: Row, study: Path, out: Path, cluster: ChaosCluster) -> "subprocess.Popen[bytes]":
    command = [sys.executable, "-m", f"equipoise.jobs.{row.job}", "-c", str(study), "-o", str(out)]
    command += ["--address", cluster.address]
    for setting in row.settings:
        command += ["-s", setting]
    with open(f"{out}.log", "ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | cluster.environ)


def _log(out: Path) -> str:
    return Path(f"{out}.log").read_text(errors="replace")[-3000:]


if __name__ == "__main__":
    main()
