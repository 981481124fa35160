"""Bad input of every kind: is each case refused with a reason, or taken for what it is, and nothing left half-written?

The cases are drawn by seeded generators (:mod:`benchmarks.bad_input_cases`): study keys, YAML, tables, slides, ``.h5``
files, feature stores, run folders, checkpoints, messages of clients, exported models, options of the jobs that read
them, cluster files, addresses of clusters and buckets, submissions. Each runs in a folder of its own, in a worker
process that has imported the product, as ``equipoise`` would be called; a worker that dies or hangs is replaced.

``traceback`` counts uncaught errors, "this is a defect of Equipoise" and processes that died; ``nonsense_accepted``
cases that had to be refused, or to be remarked on, and were not; ``hang`` cases over ``--limit`` CPU seconds;
``half_written`` cases that left temporary or unreadable files behind. Prints what failed, a table and a line of JSON.

    python -m benchmarks.bad_input [--only KIND] [--every N] [--show NAME]
"""

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import re
import resource
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from benchmarks.bad_input_cases import KINDS, Case, cases
from benchmarks.bad_input_template import make_template

#: CPU seconds of a case on an idle core, and the wall-clock seconds after which its process is ended.
LIMIT_S, WALL_S = 20.0, 120.0
FIGURES = ("tried", "traceback", "nonsense_accepted", "hang", "half_written")
DEFECT = re.compile(r"Traceback \(most recent call last\)|this is a defect of Equipoise|Segmentation fault")


@dataclass(frozen=True)
class Verdict:
    """What a case did."""

    kind: str
    name: str
    fault: str
    code: int | None
    said: str
    cpu_s: float


def run_case(case: Case, template: Path) -> Verdict:
    """Build a case in a folder of its own, run it, and judge it by what it had to do."""
    with tempfile.TemporaryDirectory(prefix="bad-") as name:
        folder = Path(name)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_utime
        work = case.build(folder, template)
        kept = set(folder.rglob("*"))
        code, said = call(work, folder)
        cpu = resource.getrusage(resource.RUSAGE_SELF).ru_utime - before
        fault = ""
        if DEFECT.search(said):
            fault = "traceback"
        elif cpu > LIMIT_S:
            fault = "hang"
        elif leftovers(folder, kept):
            fault = "half_written"
        elif not case.as_expected(code, said):
            fault = "nonsense_accepted"
        for path in folder.rglob("*"):  # a case may have taken the permission to delete
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o700)
        return Verdict(case.kind, case.name, fault, code, said[-1500:], round(cpu, 2))


def call(work: Any, folder: Path) -> tuple[int, str]:
    """Exit code and everything that was said; ``work`` is a command line or a function that returns its answer."""
    from equipoise.jobs import cli

    out = io.StringIO()
    code = 0
    here = Path.cwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
            try:
                if callable(work):
                    out.write(str(work()))
                else:
                    name = work[0]
                    cli._call({name: cli.JOBS[name]}, [str(part) for part in work])
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 1
            except BaseException as error:
                from equipoise.datasets.errors import EquipoiseError

                code = getattr(error, "exit_code", 1)
                if not isinstance(error, EquipoiseError | ValueError):
                    out.write("Traceback (most recent call last): ")
                out.write(f"{type(error).__name__}: {error}")
    finally:
        os.chdir(here)
    return code, out.getvalue()


def leftovers(folder: Path, kept: set[Path]) -> list[str]:
    """New files that are temporary, or that are JSON, Parquet or Arrow and cannot be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from equipoise.datasets.atomic_io import is_temporary

    bad = []
    for path in sorted(set(folder.rglob("*")) - kept):
        if is_temporary(path.name):
            bad.append(str(path))
        if not path.is_file() or path.is_symlink():
            continue
        try:
            if path.suffix == ".json":
                json.loads(path.read_text(encoding="utf-8"))
            elif path.suffix == ".parquet":
                pq.read_schema(path)
            elif path.suffix == ".arrow":
                with pa.ipc.open_file(path):
                    pass
        except (ValueError, OSError, pa.ArrowException):
            bad.append(str(path))
    return bad


def worker(link: Connection, template: str) -> None:
    """Run cases until there are none; they are named by kind and position, since functions are not sent."""
    os.environ["OMP_NUM_THREADS"] = "1"
    known: dict[str, list[Case]] = {}
    while True:
        task = link.recv()
        if task is None:
            return
        kind, position = task
        if kind not in known:
            known[kind] = list(cases(kind))
        link.send(asdict(run_case(known[kind][position], Path(template))))


def run_all(chosen: list[tuple[str, int, str]], template: Path, workers: int) -> Iterator[Verdict]:
    """Verdicts of the cases in the order in which they end."""
    context = multiprocessing.get_context("spawn")
    waiting = list(reversed(chosen))
    busy: dict[Connection, tuple[Any, tuple[str, int, str], float]] = {}
    idle: list[tuple[Connection, Any]] = []
    while waiting or busy:
        while waiting and len(busy) < workers:
            if idle:
                link, process = idle.pop()
            else:
                link, other = context.Pipe()
                process = context.Process(target=worker, args=(other, str(template)), daemon=True)
                process.start()
                other.close()
            task = waiting.pop()
            link.send(task[:2])
            busy[link] = (process, task, time.monotonic())
        for link in wait(list(busy), timeout=1.0):
            process, task, _ = busy.pop(link)  # type: ignore[arg-type]
            try:
                yield Verdict(**link.recv())  # type: ignore[union-attr]
                idle.append((link, process))  # type: ignore[arg-type]
            except EOFError:
                process.join()
                said = f"the process died with {process.exitcode}"
                yield Verdict(task[0], task[2], "traceback", process.exitcode, said, 0.0)
        for link, (process, task, started) in list(busy.items()):
            if time.monotonic() - started > WALL_S:
                process.kill()
                del busy[link]
                yield Verdict(task[0], task[2], "hang", None, f"no answer in {WALL_S:g} s", WALL_S)
    for link, process in idle:
        link.send(None)
        process.join(5)


def main() -> None:
    """Run the cases and print what failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=KINDS, action="append")
    parser.add_argument("--every", type=int, default=1, help="run one case in so many")
    parser.add_argument("--show", help="print everything that the case of this name says")
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    started = time.perf_counter()
    template = Path(tempfile.mkdtemp(prefix="bad-template-"))
    verdicts: list[Verdict] = []
    try:
        make_template(template)
        chosen = [
            (kind, i, case.name)
            for kind in arguments.only or KINDS
            for i, case in enumerate(cases(kind))
            if i % arguments.every == 0 and arguments.show in (None, case.name)
        ]
        for verdict in run_all(chosen, template, arguments.workers):
            verdicts.append(verdict)
            if verdict.fault or arguments.show:
                print(f"{verdict.fault or 'ok':<18} {verdict.kind}/{verdict.name}  exit code {verdict.code}")
                said = verdict.said.strip().splitlines()
                print("".join(f"    {line[:300]}\n" for line in (said if arguments.show else said[-3:])))
                sys.stdout.flush()
    finally:
        shutil.rmtree(template)
    print(f"{'kind':<14}{'tried':>7}" + "".join(f"{name:>19}" for name in FIGURES[1:]))
    for kind in KINDS:
        of_kind = [verdict for verdict in verdicts if verdict.kind == kind]
        faults = Counter(verdict.fault for verdict in of_kind)
        print(f"{kind:<14}{len(of_kind):>7}" + "".join(f"{faults[name]:>19}" for name in FIGURES[1:]))
    faults = Counter(verdict.fault for verdict in verdicts)
    figures: dict[str, Any] = {"tried": len(verdicts)} | {name: faults[name] for name in FIGURES[1:]}
    figures["slowest_cpu_s"] = max((verdict.cpu_s for verdict in verdicts), default=0.0)
    figures["failed"] = sorted(f"{verdict.kind}/{verdict.name}" for verdict in verdicts if verdict.fault)
    figures["seconds"] = round(time.perf_counter() - started, 1)
    if arguments.only is None and arguments.every == 1 and arguments.show is None:
        results = Path(__file__).parent / "results" / "bad_input.json"
        results.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
