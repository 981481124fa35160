"""A good study with its store and run folder, from which the cases of :mod:`benchmarks.bad_input` are made."""

import csv
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

Work = list[str] | Callable[[], object]
Build = Callable[[Path, Path], Work]

CONFIG = ["-c", "study.yaml"]
SLIDES = [f"s{i:02d}" for i in range(24)]

STUDY: dict[str, Any] = {
    "version": 1,
    "name": "t",
    "synthetic": True,
    "cohorts": [
        {
            "name": "A",
            "role": "develop",
            "clinical": "clini.csv",
            "slides": "slides.csv",
            "slides_dir": "h5",
            "omics": {"rna": "rna.csv"},
        }
    ],
    "tasks": [
        {
            "name": "MSI",
            "type": "binary",
            "column": "MSI",
            "positive": "MSI-H",
            "negative": ["MSS"],
            "main": True,
        },
        {"name": "SCORE", "type": "regression", "column": "SCORE"},
        {
            "name": "OS",
            "type": "survival",
            "time": {"column": "OS", "unit": "days"},
            "event": {"column": "DEAD", "event_value": 1, "censored_value": 0},
        },
    ],
    "features": {"imported": {"path": "h5"}, "max_fail": 0.5},
    "model": {"kind": "mean_pool"},
    "training": {"epochs": 1},
    "splits": {"scheme": "kfold", "folds": 2},
    "evaluation": {"bootstrap": 50, "baselines": {"enabled": False}},
    "resources": {"cpus": 1},
}


def write_study(folder: Path, study: dict[str, Any]) -> None:
    """``study.yaml`` of a case."""
    text = yaml.safe_dump(study, sort_keys=False, allow_unicode=True)
    (folder / "study.yaml").write_text(text, encoding="utf-8")


def clinical_rows() -> list[dict[str, str]]:
    """24 patients with all labels."""
    draw = random.Random(0)
    return [
        {
            "PATIENT": f"P{i:03d}",
            "MSI": "MSI-H" if i % 3 == 0 else "MSS",
            "AGE": str(40 + draw.randint(0, 40)),
            "SCORE": f"{draw.random() * 5:.3f}",
            "OS": str(draw.randint(10, 2000)),
            "DEAD": str(i % 2),
        }
        for i in range(24)
    ]


def slide_rows() -> list[dict[str, str]]:
    """A slide of every patient."""
    return [
        {"PATIENT": f"P{i:03d}", "FILENAME": f"{name}.svs", "MPP": "0.5"} for i, name in enumerate(SLIDES)
    ]


def write_rows(path: Path, rows: list[dict[str, str]], delimiter: str = ",", encoding: str = "utf-8") -> None:
    """A CSV file."""
    with path.open("w", newline="", encoding=encoding) as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)


def write_h5(path: Path, seed: int, n: int = 12, dim: int = 8) -> None:
    """Features of a slide in STAMP's layout."""
    import h5py

    draw = np.random.default_rng([seed, n])
    with h5py.File(path, "w") as file:
        file["feats"] = draw.normal(size=(n, dim)).astype(np.float32)
        file["coords"] = np.stack([np.arange(n) * 128.0, np.zeros(n)], axis=1)
        file.attrs["extractor"] = "uni"
        file.attrs["unit"] = "um"
        file.attrs["tile_size_um"] = 128.0
        file.attrs["tile_size_px"] = 256


def make_template(folder: Path, *, run: bool = True) -> None:
    """A study with its tables and features; if it is run its store, run folder and exported model, too. All good."""
    write_rows(folder / "clini.csv", clinical_rows())
    write_rows(folder / "slides.csv", slide_rows())
    genes = [f"G{j}" for j in range(12)]
    draw = np.random.default_rng(1)
    rows = [{"PATIENT": f"P{i:03d}"} | {gene: f"{draw.normal():.4f}" for gene in genes} for i in range(24)]
    write_rows(folder / "rna.csv", rows)
    (folder / "h5").mkdir()
    for i, name in enumerate(SLIDES):
        write_h5(folder / "h5" / f"{name}.h5", i)
    write_study(folder, STUDY)
    if not run:
        return
    for job in (["run", *CONFIG], ["export", "runs/t", "-o", "exported"]):
        command = [sys.executable, "-m", f"equipoise.jobs.{job[0]}", *job[1:]]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{job[0]} of the template does not run:\n{done.stderr[-3000:]}")


def tables_of(folder: Path, template: Path) -> None:
    """Copy tables and features of the template, not its store and its run."""
    for name in ("clini.csv", "slides.csv", "rna.csv", "study.yaml"):
        shutil.copyfile(template / name, folder / name)
    (folder / "h5").symlink_to(template / "h5")


def everything_of(folder: Path, template: Path) -> None:
    """Copy the template."""
    shutil.copytree(template, folder, dirs_exist_ok=True)


def damaged(data: bytes, how: str, draw: random.Random) -> bytes:
    """A file that was cut, emptied, or had bytes changed."""
    if how == "cut":
        return data[: draw.randrange(1, max(2, len(data) - 1))]
    if how == "empty":
        return b""
    if how == "noise":
        return bytes(draw.randrange(256) for _ in range(len(data)))
    changed = bytearray(data)
    for _ in range(draw.randrange(1, 9)):
        changed[draw.randrange(len(changed))] ^= 1 << draw.randrange(8)
    return bytes(changed)


def replaced(study: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy of a study with another value at a path."""
    if not path:
        return value
    copy = list(study) if isinstance(study, list) else dict(study)
    copy[path[0]] = replaced(study[path[0]], path[1:], value)
    return copy
