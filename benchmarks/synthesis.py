"""What `equipoise synthesize --preset demo` takes: wall time, CPU seconds, memory of a worker, disk.

Not a comparison but a budget: five cohorts of 24 patients in under 75 s of wall time on 2 idle cores, under 350 MB on
disk, no worker above 400 MB. Beforehand the preset ``tiny`` is written by one worker and by two: every file must have
the same bytes.
"""

import argparse
import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path

from benchmarks.tree import TICK, Usage, measure


def synthesize(preset: str, out: Path, cpus: int, seed: int = 7) -> Usage:
    """Run the job in a process of its own."""
    command = [sys.executable, "-m", "equipoise.jobs.synthesize", "--preset", preset, "--out", str(out)]
    usage = measure([*command, "--seed", str(seed), "--max-cpus", str(cpus)], out.parent)
    if usage.code != 0:
        sys.exit(usage.output)
    return usage


def file_hashes(root: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder."""
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def busy_s() -> float:
    """CPU seconds that this machine has worked since it started, for anybody (user, nice, system, interrupts)."""
    fields = [int(value) for value in Path("/proc/stat").read_text().splitlines()[0].split()[1:8]]
    return (sum(fields) - fields[3] - fields[4]) / TICK  # without idle and waiting for disks


def main() -> None:
    """Write cohorts into empty folders and print the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--preset", default="demo")
    parser.add_argument("--cpus", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        one, two, other = (Path(folder) / name for name in ("one", "two", "other"))
        synthesize("tiny", one, 1)
        synthesize("tiny", two, 2)
        synthesize("tiny", other, 2, seed=8)
        same = file_hashes(one) == file_hashes(two)
        told_apart = file_hashes(one) != file_hashes(other)
        files = len(file_hashes(one))
        out = Path(folder) / "measured"
        load = os.getloadavg()[0]
        before = busy_s()
        usage = synthesize(arguments.preset, out, arguments.cpus)
        others = busy_s() - before - usage.cpu_s
        slides = [path for path in out.glob("*/slides/*") if not path.name.startswith(".")]
        size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    workers = [mb for title, mb in usage.process_mb.items() if title.startswith("ray::write_patient")]
    figures = {
        "preset": arguments.preset,
        "wall_s": round(usage.wall_s, 1),
        "cpu_s": round(usage.cpu_s, 1),
        "cpu_s_of_others": round(
            others, 1
        ),  # what else the machine did meanwhile (and processes too short to see)
        "worker_peak_mib": round(max(workers)),
        "tree_peak_mib": round(usage.peak_mb),
        "disk_mb": round(size / 1e6),
        "slides": len(slides),
        "same_bytes_1_and_2_workers": same,
        "other_bytes_with_other_seed": told_apart,
        "files_compared": files,
        "load_before": round(load, 1),
        "cpus": arguments.cpus,
        "cores": os.cpu_count(),
    }
    for key, value in figures.items():
        print(f"{key:<28} {value}")
    if arguments.preset == "demo":
        results = Path(__file__).parent / "results"
        results.mkdir(exist_ok=True)
        (results / "synthesis.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
