"""How four and eight nodes compare with one: slides of an extraction, and trials of a search. No torch in the work.

Nodes are further raylets of one Ray on this machine, one CPU each, behind a head without CPUs. Their work waits
instead of computing, so that nodes do not take the processor from each other: an encoder that sleeps three seconds per
batch of eight tiles, of slides whose tiles are coarse and few, and trials whose two folds sleep. What remains is what
Equipoise and Ray do for every slide and every trial: planning, scheduling, the store, the records. All nodes, and
Ray's own processes of each, share the processor of this machine: where their work asks for more than it has, as eight
nodes do with a second per batch on two hardware threads (``--latency 1``), it is the machine that is measured.
Networks, disks and the memory of real nodes are not.

``efficiency_4_nodes`` and ``efficiency_8_nodes``: slides, or trials, per second on N nodes, divided by N times those
on one; the lower of both, each of which stands beside it. Every node has the same number of slides and of trials.
Rates are those of the steady state, from when the last worker had begun to when the first had nothing left to do; of a
batch or a trial that is only partly inside, that part counts. ``with_start`` is over everything from the first call,
with the start of all workers, which takes processor time that the nodes here have to share, and with the end, when some
of them wait for the others.
"""

import argparse
import json
import logging
import math
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.extraction import Sleeper, table_of
from benchmarks.tiles import slide
from equipoise.datasets.cohorts.splits import Fold
from equipoise.models.encoders.protocol import Identity
from equipoise.platform.extraction.params import ExtractionParams
from equipoise.platform.extraction.pipeline import extract
from equipoise.platform.search.context import TrialInputs
from equipoise.platform.search.params import SearchParams
from equipoise.platform.search.space import Config
from equipoise.platform.search.trial import Report, TrialRun
from equipoise.platform.search.trial_records import FoldScore, Trial
from equipoise.platform.training.params import TrainingParams

COUNTS = (1, 4, 8)
BATCH = 8
PARAMS = ExtractionParams.model_validate({"mpp": 4.0, "tile_px": 224, "max_fail": 0.0, "stain": "any"})


class Small(Sleeper):
    """An encoder of fixed latency with small batches, which notes when each of them began and ended."""

    batch_size = BATCH

    def __init__(self, latency_s: float, notes: Path) -> None:
        super().__init__(latency_s)
        self._notes = notes / secrets.token_hex(8)

    def __call__(self, tiles: np.ndarray) -> np.ndarray:
        """``[B, H, W, 3]`` to ``[B, 3]``."""
        began = time.time()
        found = super().__call__(tiles)
        note(self._notes, began)
        return found


class Rates(NamedTuple):
    """Ends per second: in the steady state, and over everything from the start."""

    steady: float
    whole: float


def main() -> None:
    """Run both parts on one, four and eight nodes, print a table and the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--latency", type=float, default=3.0, help="seconds per batch; at least 0.2")
    parser.add_argument("--slides", type=int, default=4, help="slides for each node")
    parser.add_argument("--trials", type=int, default=5, help="trials for each node")
    parser.add_argument("--fold", type=float, default=8.0, help="seconds of each of the two folds of a trial")
    parser.add_argument("--templates", type=Path, help="folder that keeps the slide for another run")
    arguments = parser.parse_args()
    if arguments.latency < 0.2:
        parser.error("--latency: at least 0.2 s, or Ray's own work is measured and not that of nodes")
    os.environ.update(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32), OMP_NUM_THREADS="1")
    # Ray's workers are nicer than other processes by default; here they would wait for Ray's own.
    os.environ.setdefault("RAY_worker_niceness", "0")
    load = os.getloadavg()[0]
    rates: dict[str, dict[int, Rates]] = {"extraction": {}, "trials": {}}
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        template = slide("20x", arguments.templates or root / "templates")
        for count in COUNTS:
            with nodes(count):
                found = slides_per_s(root / f"{count}", template, count, arguments.slides, arguments.latency)
                rates["extraction"][count] = found
                rates["trials"][count] = trials_per_s(
                    root / f"search-{count}", count, arguments.trials, arguments.fold
                )
            print(
                f"{count} nodes: {found.steady:.3f} slides/s, {rates['trials'][count].steady:.3f} trials/s",
                flush=True,
            )
    figures = summary(rates) | vars(arguments) | {"templates": None, "load_before": round(load, 1)}
    figures |= {"cores": os.cpu_count(), "python": sys.version.split()[0], "ray": version("ray")}
    (Path(__file__).parent / "results" / "scaling.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures))


def summary(rates: dict[str, dict[int, Rates]]) -> dict[str, Any]:
    """Efficiencies of both parts, the lower of them, and the rates."""
    figures: dict[str, Any] = {}
    for count in COUNTS[1:]:
        efficiency = {
            part: {
                name: round(getattr(of[count], name) / count / getattr(of[1], name), 3)
                for name in Rates._fields
            }
            for part, of in rates.items()
        }
        figures[f"efficiency_{count}_nodes"] = min(of["steady"] for of in efficiency.values())
        for part, of in efficiency.items():
            figures[f"{part}_{count}_nodes"] = of["steady"]
            figures[f"{part}_{count}_nodes_with_start"] = of["whole"]
    for part, by_count in rates.items():
        figures[f"{part}_per_s"] = {str(count): round(rate.steady, 4) for count, rate in by_count.items()}
    return figures


@contextmanager
def nodes(count: int) -> Iterator[None]:
    """A Ray with this many nodes of one CPU, and a head that has none."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": 200_000_000}
    )
    try:
        for _ in range(count):
            cluster.add_node(num_cpus=1, object_store_memory=100_000_000)
        cluster.wait_for_nodes()
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.WARNING)
        ray.get([ray.remote(_import).remote() for _ in range(count)])
        yield
    finally:
        ray.shutdown()
        cluster.shutdown()


def _import() -> None:
    """Workers that have imported what trials need; each stays busy until the others are, too."""
    from equipoise.platform.search.trial import import_trial_code

    import_trial_code()
    time.sleep(2)


def rates_of(spans: list[list[tuple[float, float]]], started: float) -> Rates:
    """From the beginnings and ends of what each worker did, one after the other, and the time of the first call."""
    first, last = max(worker[0][0] for worker in spans), min(worker[-1][1] for worker in spans)
    every = [span for worker in spans for span in worker]
    inside = sum(max(0.0, min(end, last) - max(begin, first)) / (end - begin) for begin, end in every)
    return Rates(inside / (last - first), len(every) / (max(end for _, end in every) - started))


def noted(folder: Path, count: int) -> list[list[tuple[float, float]]]:
    """What :func:`note` wrote, worker by worker."""
    lines = [file.read_text().splitlines() for file in folder.iterdir()]
    if len(lines) != count:
        raise SystemExit(f"{len(lines)} workers for {count} nodes")
    return [[(float(a), float(b)) for a, b in (line.split() for line in worker)] for worker in lines]


def note(file: Path, began: float) -> None:
    """Something of this worker has ended."""
    with file.open("a") as lines:
        lines.write(f"{began} {time.time()}\n")


def slides_per_s(root: Path, template: Path, count: int, each: int, latency_s: float) -> Rates:
    """An extraction of ``each`` slides per node."""
    notes = root / "notes"
    notes.mkdir(parents=True)

    def make(_: ExtractionParams) -> Small:
        return Small(latency_s, notes)

    def identify(_: ExtractionParams) -> Identity:
        return Identity(Small.dim, Small.hash, Small.batch_size)

    table = table_of([template], each * count, root / "slides")
    started = time.time()
    summary = extract(table, PARAMS, root / "store", make_encoder=make, identify=identify)
    each_slide = summary.tiles // len(table)
    print(f"  {len(table)} slides of {each_slide} tiles: {summary.seconds:.0f} s", flush=True)
    a_slide = -(-each_slide // BATCH)
    return Rates(*(rate / a_slide for rate in rates_of(noted(notes, count), started)))


def trials_per_s(search: Path, count: int, each: int, fold_s: float) -> Rates:
    """A search of ``each`` trials per node whose folds sleep."""
    from equipoise.platform.search.tune_runner import run_trials

    folds = tuple(Fold(0, index, ("a",), ("b",), ("c",)) for index in range(2))
    notes = search / "notes"
    notes.mkdir(parents=True)
    settings = {"sleep": fold_s, "notes": str(notes)}
    inputs = TrialInputs(settings=settings, cases={}, folds=folds, metric="val/mean")
    params = SearchParams.model_validate({"trials": each * count, "scheduler": "none"})
    ended: list[Trial] = []
    started = time.time()
    run_trials(
        list(range(each * count)), _Planned(), inputs, params, search, started={},
        training=TrainingParams(), on_end=ended.append, run=asleep,
    )  # fmt: skip
    if len(ended) != each * count:
        raise SystemExit(f"{len(ended)} of {each * count} trials ended")
    print(f"  {len(ended)} trials: {time.time() - started:.0f} s", flush=True)
    return rates_of(noted(notes, count), started)


class _Planned:
    """A searcher whose trials differ by their learning rate."""

    def ask(self, index: int) -> Config:
        return {"balancing": "equal", "training.lr": 1e-4 * (1 + index)}

    def tell(self, trial: Trial) -> None:
        """Nothing is learned."""


def asleep(index: int, config: Config, inputs: TrialInputs, search: Path, report: Report) -> None:
    """A trial with the records of a real one, whose folds sleep."""
    began = time.time()
    run = TrialRun(index, config, inputs, search)
    run.begin()
    for fold in inputs.folds:
        time.sleep(inputs.settings["sleep"])
        value = float(np.exp(-abs(math.log10(float(str(config["training.lr"]))) + 3)))
        run.add(FoldScore(fold.name, {"val/mean": value}, 1, 1, 1, 0.0, inputs.settings["sleep"]))
        if run.complete:
            run.end("ok")
            note(Path(inputs.settings["notes"]) / str(os.getpid()), began)
        report(run.step())


if __name__ == "__main__":
    main()
