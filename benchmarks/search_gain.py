"""Whether a search is worth it: the winner against the study as written, on patients that no trial saw. SYNTHETIC.

The study of ``examples/joint_msi_hrd.yaml`` in the size of ``benchmarks.methods``, as it is, and after a random search
over balancing method, learning rate, weight decay, dropout and batch. A quarter of the development patients are held
out from all trials; they and the two external cohorts measure both once, with models trained by the study's own
cross-validation. Reported for every task, whatever the outcome: inner validation, which chose the winner and favours
it, and both untouched parts with intervals and the paired difference. Nothing was tuned for it.

A finished search in ``--work`` is not run again; the folder may be that of ``benchmarks.methods``.
"""

import argparse
import json
import os
import platform
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks import bench_cohort
from equipoise.datasets.atomic_io import read_json

SEARCH: dict[str, Any] = {
    "trials": 16,
    "folds": 3,
    "holdout": 0.25,
    "space": {
        "balancing": ["equal", "uncertainty", "dwa", "equal+pcgrad", "uncertainty+pcgrad", "dwa+cagrad"],
        "training.lr": {"loguniform": [1e-4, 1e-2]},
        "training.weight_decay": {"loguniform": [1e-4, 1e-1]},
        "training.batch": [8, 16, 32],
        "training.bag_tiles": 48,
        "model.dim": 64,
        "model.heads": 4,
        "model.encoder_layers": 1,
        "model.decoder_layers": 1,
        "model.dropout": {"uniform": [0.0, 0.4]},
    },
}


def main() -> None:
    """Print the table and the figures, keep them beside this file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=SEARCH["trials"])
    parser.add_argument("--work", default=None, help="folder of cohorts and runs [a temporary folder]")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(arguments.work or scratch).resolve()
        study = bench_cohort.prepare(work)
        out = work / "runs" / "search-gain"
        settings = bench_cohort.SETTINGS | {
            "name": "search-gain",
            "balancing": "equal+none",
            "search": SEARCH | {"trials": arguments.trials},
        }
        bench_cohort.run_study(study, out, settings, ("validate", "extract", "search"))
        measured = read_json(out / "search" / "test.json")
    rows = side_by_side(measured)
    print(text(rows))
    figures: dict[str, Any] = {
        "winner": measured["winner"],
        "looks": measured["looks"],
        "trials": arguments.trials,
        "tasks": rows,
        "synthetic": True,
        "load_before": round(load, 1),
        "cores": os.cpu_count(),
        "versions": {name: version(name) for name in ("ray", "torch", "numpy")}
        | {"python": platform.python_version()},
    }
    if arguments.trials == SEARCH["trials"]:
        results = Path(__file__).parent / "results"
        results.mkdir(exist_ok=True)
        (results / "search_gain.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures))


def side_by_side(measured: dict[str, Any]) -> list[dict[str, Any]]:
    """A row per part and task: the study as written, the winner, and their paired difference where there is one."""
    entries: dict[tuple[str, str, str], dict[str, Any]] = {}
    for row in measured["rows"]:
        who = "winner" if row["who"] == measured["winner"] else "default"
        entry = entries.setdefault((row["part"], row["task"], row["metric"]), {"n": row["n"]})
        entry |= {who: row["value"], f"{who}_low": row["low"], f"{who}_high": row["high"]}
        if measured["winner"] == measured["default"]:
            entry |= {"default": row["value"], "default_low": row["low"], "default_high": row["high"]}
    for row in measured["differences"]:
        entry = entries[(row["cohort"], row["task"], row["metric"])]
        entry |= {name: row[name] for name in ("difference", "low", "high", "p_joint")}
    rows = [
        {"part": part, "task": task, "metric": metric, **row} for (part, task, metric), row in entries.items()
    ]
    return [{k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in rows]


def text(rows: list[dict[str, Any]]) -> str:
    """The table on screen."""

    def shown(value: float | None, form: str = ".3f") -> str:
        return "-" if value is None else format(value, form)

    lines = [f"{'part':<18} {'task':<8} {'metric':<9} {'as written':>10} {'winner':>8}  difference"]
    for row in rows:
        difference = [shown(row.get(name), "+.3f") for name in ("difference", "low", "high")]
        lines.append(
            f"{row['part']:<18} {row['task']:<8} {row['metric']:<9} {shown(row['default']):>10} "
            f"{shown(row['winner']):>8}  "
            + (f"{difference[0]} ({difference[1]} to {difference[2]})" if "difference" in row else "")
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
