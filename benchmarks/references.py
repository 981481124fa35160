"""References that a change of names, folders or seams must leave equal bit for bit, recorded and compared.

    python -m benchmarks.references record FILE                   # with the code before the change
    python -m benchmarks.references compare FILE                  # with the code after it; exit code 1 if any differs
    python -m benchmarks.references compare FILE --only 'federation/*' --near 1e-6
    python -m benchmarks.references resume FILE --kept WORK       # old runs (record --work WORK) under the new code

Only the command line and files of a study are used, so that the tool survives renames inside the product;
``--python`` names the interpreter that has the product. The synthetic cohorts of preset ``quick`` are made and their
slides extracted once; every other case trains a small model on them for an epoch or two.

A reference is the SHA-256 of one output (a table with sorted rows and columns, weights by name, a shard of the feature
store) without times, paths, host names and free text. Their numbers are kept beside ``FILE`` in ``FILE.npz``, so that
a reference that differs is shown with how much it differs: the largest difference and the same relative to the largest
number of the reference. ``--near`` accepts relative differences up to a bound. ``record --only`` replaces the
references of some cases.

``resume`` takes finished runs of the old code, removes the end of each (the last round of a federation, a fold, the
record of a trial) and lets the code at hand go on: it has to read checkpoints, records and stores of the old code, must
not repeat what is finished, and must end with the recorded references.

Bits depend on machine and versions: record and compare on the same machine.
"""

import argparse
import fnmatch
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from benchmarks.reference_cases import Case, cases
from benchmarks.reference_outputs import RENAMED, Output, of_demo

PRESET, SEED = "quick", 7


class Product:
    """The product's command line over one work folder: ``cohort/`` with studies and stores, ``runs/``, ``logs/``."""

    def __init__(self, python: str, work: Path, old_keys: bool) -> None:
        self.python, self.work = python, work
        self.renamed = {new: old for old, new in RENAMED.items()} if old_keys else {}
        for name in ("runs", "logs"):
            (work / name).mkdir(parents=True, exist_ok=True)

    @property
    def cohort(self) -> Path:
        """Slides, tables, studies, feature stores."""
        return self.work / "cohort"

    def call(self, name: str, *arguments: str) -> float:
        """Run one command and give its seconds; its output goes to ``logs/<name>.txt``."""
        started = time.perf_counter()
        log = self.work / "logs" / f"{name}.txt"
        environment = {
            key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "RAY_ADDRESS")
        }
        environment |= {"OMP_NUM_THREADS": "1", "EQUIPOISE_CACHE": str(self.work / "cache")}
        with log.open("w") as file:
            ended = subprocess.run(
                [self.python, "-m", "equipoise.jobs.cli", *arguments],
                cwd=self.work, env=environment, stdout=file, stderr=subprocess.STDOUT, check=False,
            )  # fmt: skip
        if ended.returncode:
            raise RuntimeError(f"exit code {ended.returncode}\n{_tail(log)}")
        return time.perf_counter() - started

    def prepare(self, given: Path | None) -> tuple[dict[str, Output], float]:
        """The cohorts with their store: by the demo, whose outputs are references, or a copy of given ones."""
        if given is None:
            seconds = self.call(
                "preset",
                "demo",
                "--preset",
                PRESET,
                "--seed",
                str(SEED),
                "--out",
                str(self.cohort),
                "--max-cpus",
                "2",
            )
            return of_demo(self.cohort / "run"), seconds
        if not self.cohort.exists():
            shutil.copytree(given, self.cohort, ignore=shutil.ignore_patterns("run", "stores", "writer.lock"))
        # The store learns where the slides are now, before several runs read it at the same time.
        return {}, self.call(
            "extract",
            "extract",
            "-c",
            str(self.cohort / "study.yaml"),
            "-o",
            str(self.work / "runs" / "extract"),
        )

    def run_case(self, case: Case) -> tuple[dict[str, Output], float]:
        """One case."""
        study = self.write_study(case)
        run = self.work / "runs" / case.folder
        job, *own = case.job
        options = ["-c", str(study), "-o", str(run), "--max-cpus", "2"]
        seconds = self.call(case.folder, job, *own, *options)
        return case.collect(run), seconds

    def write_study(self, case: Case) -> Path:
        """The generated study with the settings of the case, beside it."""
        study = yaml.safe_load((self.cohort / "study.yaml").read_text("utf-8"))
        for key, value in (case.settings | {"name": case.folder}).items():
            put(study, key, value)
        for old, new in self.renamed.items():
            rename(study, old, new)
        path = self.cohort / f"{case.folder}.yaml"
        path.write_text(yaml.safe_dump(study, sort_keys=False), "utf-8")
        return path


def put(study: dict[str, Any], key: str, value: Any) -> None:
    """Set ``a.b.0.c``."""
    *path, last = key.split(".")
    node: Any = study
    for part in path:
        node = node[int(part)] if isinstance(node, list) else node.setdefault(part, {})
    node[last] = json.loads(json.dumps(value))  # a copy: cases share their settings


def rename(study: dict[str, Any], old: str, new: str) -> None:
    """Move a setting to its new key, also where a search narrows it."""
    *path, last = old.split(".")
    node: Any = study
    for part in path:
        node = node.get(part) if isinstance(node, dict) else None
    if isinstance(node, dict) and last in node:
        put(study, new, node.pop(last))
    space = (study.get("search") or {}).get("space") or {}
    if old in space:
        space[new] = space.pop(old)


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-12:])


def measure(
    product: Product, arguments: argparse.Namespace
) -> tuple[dict[str, Output], dict[str, float], list[str]]:
    """Outputs by name, seconds by case, problems."""
    chosen = [case for case in cases() if _wanted(case.name, arguments.only)]
    outputs, seconds, problems = {}, {}, []
    own, took = product.prepare(arguments.cohort)
    if _wanted("preset", arguments.only):
        outputs |= {f"preset/{part}": output for part, output in own.items()}
    seconds["preset"] = round(took, 1)
    print(f"preset: {took:.0f} s", flush=True)

    def one(case: Case) -> None:
        try:
            found, took = product.run_case(case)
        except Exception as error:  # shown with the other problems
            problems.append(f"{case.name}: {type(error).__name__}: {error}")
            print(f"{case.name}: FAILED", flush=True)
            return
        outputs.update({f"{case.name}/{part}": output for part, output in found.items()})
        seconds[case.name] = round(took, 1)
        print(f"{case.name}: {took:.0f} s", flush=True)

    with ThreadPoolExecutor(arguments.processes) as pool:
        list(pool.map(one, chosen))
    return outputs, seconds, problems


def _wanted(name: str, patterns: Sequence[str] | None) -> bool:
    return not patterns or any(fnmatch.fnmatch(name, f"{pattern}*") for pattern in patterns)


def write(
    file: Path, outputs: dict[str, Output], seconds: dict[str, float], patterns: Sequence[str] | None
) -> None:
    """References by name, numbers beside them; with patterns, in place of those of the same cases in the file."""
    known: dict[str, Any] = {"seconds": {}, "references": {}}
    numbers: dict[str, np.ndarray] = {}
    if patterns and file.exists():
        known = json.loads(file.read_text("utf-8"))
        known["references"] = {n: r for n, r in known["references"].items() if not _wanted(n, patterns)}
        with np.load(_numbers_of(file)) as before:
            numbers = {name: before[name] for name in known["references"]}
    references = known["references"] | {
        name: {
            "sha256": output.sha256,
            "numbers": len(output.numbers),
            "mean": float(np.nanmean(output.numbers)) if np.isfinite(output.numbers).any() else None,
        }
        for name, output in outputs.items()
    }
    content = {"seconds": known["seconds"] | seconds, "references": dict(sorted(references.items()))}
    file.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    numbers |= {name: output.numbers for name, output in outputs.items()}
    np.savez_compressed(_numbers_of(file), **numbers)  # type: ignore[arg-type]


def _numbers_of(file: Path) -> Path:
    return file.with_suffix(".npz")


def compared(
    file: Path, outputs: dict[str, Output], patterns: Sequence[str] | None, near: float
) -> tuple[list[str], list[str]]:
    """Lines on references that differ, and on those that differ within the bound."""
    references = json.loads(file.read_text("utf-8"))["references"]
    differ, close = [], []
    with np.load(_numbers_of(file)) as numbers:
        for name in sorted({*outputs, *(name for name in references if _wanted(name, patterns))}):
            if name not in outputs:
                differ.append(f"{name}: missing now")
            elif name not in references:
                differ.append(f"{name}: not recorded")
            elif outputs[name].sha256 != references[name]["sha256"]:
                text, relative = _difference(numbers[name], outputs[name].numbers)
                (close if relative <= near else differ).append(f"{name}: {text}")
    return differ, close


def _difference(before: np.ndarray, now: np.ndarray) -> tuple[str, float]:
    """Words, and the largest difference relative to the largest number; infinite where numbers do not explain it."""
    if before.shape != now.shape:
        return f"{len(before)} numbers before, {len(now)} now", math.inf
    if not np.array_equal(np.isfinite(before), np.isfinite(now)):
        return "other numbers are missing", math.inf
    known = np.isfinite(before)
    largest = float(np.abs(now[known] - before[known]).max(initial=0.0))
    scale = float(np.abs(before[known]).max(initial=0.0)) or 1.0
    if largest == 0:
        return "same numbers, another text, type, name or order", math.inf
    return f"largest difference {largest:.3g}, relative {largest / scale:.3g}", largest / scale


def cut(product: Product, case: Case) -> str:
    """Take the end of a finished run away; what was taken."""
    run = product.work / "runs" / case.folder
    removed = []
    for facts in sorted(run.glob("federated/*/*/facts.json")):
        rounds = sorted((facts.parent / "rounds").glob("round_*"))
        for path in (facts, facts.parent / "predictions.parquet"):
            path.unlink()
        if len(rounds) > 1:
            shutil.rmtree(rounds[-1])
        removed.append(f"round {len(rounds)} of {facts.parent.parent.name}/{facts.parent.name}")
    trials = sorted(run.glob("search/trials/*.json"))
    if trials and case.name != "search/nsga2":
        trials[-1].unlink()
        removed.append(f"trial {trials[-1].stem}")
    folds = sorted(path for path in run.glob("folds/*") if path.is_dir())
    if len(folds) > 1 and not removed:
        shutil.rmtree(folds[-1])
        removed.append(f"fold {folds[-1].name}")
    return ", ".join(removed) or "nothing"


def made(run: Path) -> dict[str, int]:
    """Times of the weights in a run: what is finished is not made again."""
    return {str(path.relative_to(run)): path.stat().st_mtime_ns for path in run.rglob("model.safetensors")}


def resume(
    product: Product, arguments: argparse.Namespace
) -> tuple[dict[str, Output], dict[str, float], list[str]]:
    """Go on with old runs, once as they are and once with their end cut off."""
    for name in ("cohort", "runs"):
        target = product.work / name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(arguments.kept / name, target, ignore=shutil.ignore_patterns("writer.lock"))
    outputs, seconds, problems = {}, {}, []
    product.prepare(product.cohort)

    def one(case: Case) -> None:
        run = product.work / "runs" / case.folder
        if not run.exists():
            return
        try:
            before = made(run)
            whole, first = product.run_case(case)
            if remade := [name for name, at in made(run).items() if before.get(name) != at]:
                problems.append(f"{case.name}: finished, but made again: {', '.join(remade[:3])}")
            text = cut(product, case)
            again, second = product.run_case(case)
        except Exception as error:  # shown with the other problems
            problems.append(f"{case.name}: {type(error).__name__}: {error}")
            print(f"{case.name}: FAILED", flush=True)
            return
        changed = [part for part, output in whole.items() if again[part].sha256 != output.sha256]
        if changed:
            problems.append(f"{case.name}: without {text}: other {', '.join(changed)}")
        outputs.update({f"{case.name}/{part}": output for part, output in again.items()})
        seconds[case.name] = round(first + second, 1)
        print(f"{case.name}: {first + second:.0f} s, went on after removing {text}", flush=True)

    chosen = [case for case in cases() if _wanted(case.name, arguments.only)]
    with ThreadPoolExecutor(arguments.processes) as pool:
        list(pool.map(one, chosen))
    return outputs, seconds, problems


def main() -> int:
    """Record, compare or resume; the last line is JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    actions = ("record", "compare", "resume", "list")
    parser.add_argument("action", choices=actions, nargs="?", default="list")
    parser.add_argument("file", type=Path, nargs="?", help="references, JSON")
    parser.add_argument("--python", default=sys.executable, help="interpreter that has the product")
    parser.add_argument(
        "--only", action="append", metavar="PATTERN", help="cases that begin like this; repeatable"
    )
    parser.add_argument("--work", type=Path, help="folder to work in, which is kept [a temporary folder]")
    parser.add_argument("--cohort", type=Path, help="made cohorts with their store, in place of making them")
    parser.add_argument("--kept", type=Path, help="work folder of the old code, for resume")
    parser.add_argument(
        "--near", type=float, default=0.0, help="relative difference that passes, with a note"
    )
    parser.add_argument(
        "--old-keys", action="store_true", help="write studies with the old spelling of settings"
    )
    parser.add_argument("--processes", type=int, default=2, help="cases at a time")
    arguments = parser.parse_args()
    if arguments.action == "list":
        print("\n".join(["preset", *(case.name for case in cases())]))
        return 0
    if arguments.file is None or (arguments.action == "resume") != (arguments.kept is not None):
        parser.error("FILE is needed, and --kept for resume only")
    arguments.cohort = arguments.cohort and arguments.cohort.resolve()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="references-") as scratch:
        work = Path(arguments.work or scratch).resolve()
        shutil.rmtree(work / "runs", ignore_errors=True)
        product = Product(_absolute(arguments.python), work, arguments.old_keys)
        outputs, seconds, problems = (resume if arguments.action == "resume" else measure)(product, arguments)
    took = round(time.perf_counter() - started)
    figures: dict[str, Any] = {"references": len(outputs), "cases": len(seconds), "seconds": took}
    if arguments.action == "record":
        write(arguments.file, outputs, seconds, arguments.only)
        differ: list[str] = []
    else:
        failed = {problem.partition(":")[0] for problem in problems}
        recorded = arguments.only if arguments.only or arguments.action == "compare" else sorted(seconds)
        differ, close = compared(arguments.file, outputs, recorded, arguments.near)
        differ = [line for line in differ if not any(line.startswith(f"{name}/") for name in failed)]
        if arguments.cohort is not None or arguments.action == "resume":
            differ = [line for line in differ if not line.startswith("preset/")]
        for line in close:
            print(f"near     {line}")
        for line in differ:
            print(f"DIFFERS  {line}")
        figures |= {"differ": len(differ), "near": len(close)}
    for problem in problems:
        print(f"FAILED   {problem}")
    figures["failed"] = len(problems)
    print(json.dumps(figures))
    return 1 if problems or differ else 0


def _absolute(python: str) -> str:
    """The interpreter by its whole path; links are kept, a virtual environment is one."""
    return os.path.abspath(python) if os.sep in python else shutil.which(python) or python


if __name__ == "__main__":
    sys.exit(main())
