"""Resources that `equipoise demo` needs in a prepared environment: wall time, CPU seconds, memory, disk.

Not a comparison but a budget: the demo should end within 3 minutes and 6 GiB on 2 idle cores.
"""

import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

from benchmarks.tree import measure


def main() -> None:
    """Run the demo in an empty folder and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="quick")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "equipoise.jobs.demo", "--preset", arguments.preset, "--out", "demo"]
        usage = measure(command, Path(folder))
        disk = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()) / 2**20
    if usage.code != 0:
        sys.exit(usage.output)
    figures = {
        "preset": arguments.preset,
        "wall_s": round(usage.wall_s, 1),
        "cpu_s": round(usage.cpu_s, 1),
        "peak_mb": round(usage.peak_mb),
        "disk_mb": round(disk),
        "load_before": round(load, 1),
        "cores": os.cpu_count(),
    }
    for key, value in figures.items():
        print(f"{key:<12} {value}")
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    (results / "demo.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
