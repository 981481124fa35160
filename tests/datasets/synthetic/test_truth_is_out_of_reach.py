"""``truth/`` is read by tests and benchmarks only: no other code names it, and a whole run opens nothing below it.

The run is watched by the kernel (inotify), not by ``sys.addaudithook``: an audit hook sees what Python opens, in
one process, but not what pyarrow, OpenCV or OpenSlide open, nor what Ray's workers do.
"""

import ast
import ctypes
import os
import re
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest

from equipoise.platform.run import steps
from equipoise.platform.run.folder import STEPS, RunFolder
from equipoise.platform.run.loading import load_study

ROOMS = ("platform", "jobs", "models", "datasets")
GENERATOR = "equipoise.datasets.synthetic"
#: What other code imports of the generator. Only the job that writes cohorts uses its interface.
ALLOWED = {
    "platform/run/synthesis.py": {f"{GENERATOR}.generate"},
    "platform/cluster/doctor.py": {f"{GENERATOR}.tiff"},  # writes a slide to test the machine with
}
LIGHT = {f"{GENERATOR}.entries"}
IN_ACCESS, IN_OPEN, IN_Q_OVERFLOW = 0x1, 0x20, 0x4000


def outside_the_generator(root: Path) -> list[Path]:
    files = [file for room in ROOMS for file in (root / room).rglob("*.py")]
    return [file for file in files if (root / "datasets" / "synthetic") not in file.parents]


def named(source: str) -> list[str]:
    """Strings of a module that hold the word, docstrings aside."""
    tree = ast.parse(source)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    strings = [
        node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in docstrings
    ]
    return [s.value for s in strings if isinstance(s.value, str) and re.search(r"\btruth\b", s.value, re.I)]


def imported(source: str) -> set[str]:
    """Modules of the generator that a module imports anywhere in it, or has in a string to import later."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module in (GENERATOR, "equipoise.datasets"):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(node.value.partition(":")[0])
    return {name for name in found if name.startswith(GENERATOR)}


def test_no_module_outside_the_generator_names_the_folder(root: Path) -> None:
    files = outside_the_generator(root)
    assert {file.relative_to(root).parts[0] for file in files} == set(ROOMS)
    assert {
        str(file): named(file.read_text("utf-8")) for file in files if named(file.read_text("utf-8"))
    } == {}


def test_no_module_outside_the_generator_calls_what_makes_it(root: Path) -> None:
    """The truth can also be had without a file, from the code that draws it."""
    used = {
        file.relative_to(root).as_posix(): imported(file.read_text("utf-8")) - LIGHT
        for file in outside_the_generator(root)
    }
    assert {file: names for file, names in used.items() if names} == ALLOWED


@pytest.mark.parametrize(
    "source",
    [
        'path = root / "truth" / "latents.parquet"',
        'def f(root):\n    """Reads."""\n    return open(f"{root}/truth/masks/{name}.png")',
        "glob('*/truth/*')",
    ],
)
def test_naming_the_folder_would_be_noticed(source: str) -> None:
    assert named(source)


def test_words_in_docstrings_and_names_are_free() -> None:
    assert not named('"""The truth."""\ndef f():\n    "truth"\n    truth = 1\n    return truth\n')


def test_calling_what_makes_it_would_be_noticed() -> None:
    assert imported("def f():\n    from equipoise.datasets.synthetic.tables import build_tables")
    assert imported("from equipoise.datasets.synthetic import tables")
    assert imported("from equipoise.datasets import synthetic")
    assert imported("import equipoise.datasets.synthetic.manifest")
    assert imported("load('equipoise.datasets.synthetic.tables:build_tables')")


@contextmanager
def watched(root: Path) -> Iterator[list[str]]:
    """Collects what anybody on this machine opens or reads below the ``truth`` folders of some cohorts.

    The list is complete when the block is left.
    """
    if not sys.platform.startswith("linux"):
        pytest.skip("inotify is a part of Linux")
    libc = ctypes.CDLL(None, use_errno=True)
    handle = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    assert handle >= 0, os.strerror(ctypes.get_errno())
    truths = sorted(root.glob("*/truth"))
    assert truths
    folders = [folder for truth in truths for folder in (truth, *truth.rglob("*")) if folder.is_dir()]
    places = {}
    for folder in folders:
        watch = libc.inotify_add_watch(handle, os.fsencode(folder), IN_OPEN | IN_ACCESS)
        assert watch >= 0, os.strerror(ctypes.get_errno())
        places[watch] = folder
    seen: list[str] = []
    try:
        yield seen
        seen += _events(handle, places)
    finally:
        os.close(handle)


def _events(handle: int, places: dict[int, Path]) -> Iterator[str]:
    while True:
        try:
            data = os.read(handle, 1 << 16)
        except BlockingIOError:
            return
        while data:
            watch, mask, _, length = struct.unpack_from("iIII", data)
            name, data = data[16 : 16 + length].rstrip(b"\0"), data[16 + length :]
            yield "overflow" if mask & IN_Q_OVERFLOW else str(places[watch] / os.fsdecode(name))


READERS = {
    "open": "open(table, 'rb').read()",
    "pyarrow": "import pyarrow.parquet; pyarrow.parquet.read_table(table)",
    "pandas": "import pandas; pandas.read_parquet(table)",
    "opencv": "import cv2; assert cv2.imread(mask) is not None",
    "listing": "import os; os.listdir(os.path.dirname(table))",
}


@pytest.mark.parametrize("reader", READERS)
def test_reading_the_truth_would_be_noticed(reader: str, tiny, tmp_path: Path) -> None:
    """In another process, as Ray's workers are; and by code that no Python hook sees."""
    shutil.copytree(tiny.root / "syn-crc-a" / "truth", tmp_path / "syn-crc-a" / "truth")
    table = tmp_path / "syn-crc-a" / "truth" / "latents.parquet"
    mask = sorted(table.parent.glob("masks/*.png"))[0]
    program = f"table, mask = {str(table)!r}, {str(mask)!r}; {READERS[reader]}"
    with watched(tmp_path) as seen:
        subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
    expected = {"opencv": mask, "listing": table.parent}.get(reader, table)
    assert expected in {Path(place) for place in seen}


def test_reading_what_lies_beside_it_is_nobodys_business(tiny, tmp_path: Path) -> None:
    shutil.copytree(tiny.root / "syn-crc-a", tmp_path / "syn-crc-a")
    with watched(tmp_path) as seen:
        assert len(pd.read_csv(tmp_path / "syn-crc-a" / "clinical.csv"))
        assert len(pd.read_parquet(tmp_path / "syn-crc-a" / "omics" / "rna.parquet"))
    assert seen == []


def test_a_run_opens_nothing_below_it_and_does_not_miss_it(ray_session: None, tiny, tmp_path: Path) -> None:
    """All steps, extraction in Ray's workers included; then again where the folders are gone: the same bytes."""
    whole, without = tmp_path / "whole", tmp_path / "without"
    shutil.copytree(tiny.root, whole)
    with watched(whole) as seen:
        run_steps(whole)
    assert seen == []
    shutil.copytree(whole, without, ignore=shutil.ignore_patterns("truth", "run"))
    assert not list(without.glob("*/truth"))
    run_steps(without)
    first, second = (
        (root / "run" / "evaluation" / "predictions.parquet").read_bytes() for root in (whole, without)
    )
    assert first == second


def run_steps(root: Path) -> None:
    study = load_study(root / "study.yaml", {"cohorts.1.role": "external", "training.epochs": 1})
    steps.run_steps(study, RunFolder.open(study, str(root / "run"), "auto"), STEPS)
