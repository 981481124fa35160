"""Commands in README and docs: every block of them runs from an empty folder, or says why it does not run here.

A page's blocks of shell are run in order by one shell, in a folder that holds what the page says that it starts from
and nothing else. A block of text behind a block of shell is what the commands print: each of its lines must occur in
their output, with ``…`` for anything. A block that is not run has ``<!-- not run: REASON -->`` in the line above it.
"""

import importlib
import inspect
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from equipoise.jobs.cli import JOBS, module_of
from equipoise.jobs.options import Quiet, StudyOptions, Verbose

SHELL = ("sh", "bash", "shell", "console")
BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<reason>[^\n]*?) -->\n+)?"
    r"^(?P<fence>`{3,})(?P<language>\w*)[^\n]*\n(?P<code>.*?)^(?P=fence)[ ]*$",
    re.MULTILINE | re.DOTALL,
)
PROGRAMS = ("equipoise", ".venv/bin/equipoise", "python", "make", "ray", "pip", "hf", "git")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; ``reason`` says why it is not run."""

    page: str
    line: int
    language: str
    code: str
    reason: str | None


def pages(root: Path) -> list[str]:
    """README, the other pages of the root, and docs; the changelog has no commands to follow."""
    listed = [*root.glob("*.md"), *root.glob("docs/**/*.md")]
    return sorted(str(file.relative_to(root)) for file in listed if file.name != "CHANGELOG.md")


def blocks(root: Path, page: str) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = (root / page).read_text(encoding="utf-8")
    return [
        Block(
            page,
            text[: found.start("fence")].count("\n") + 1,
            found["language"],
            found["code"],
            found["reason"],
        )
        for found in BLOCK.finditer(text)
    ]


def empty(folder: Path, root: Path) -> None:
    """The page starts from an empty folder."""


def made_up_tables(folder: Path) -> None:
    """``my_tables`` with 60 patients, a label that one of 100 genes tells, and the environment as ``.venv``."""
    rng = np.random.default_rng(2)
    ids = [f"TCGA-A{site}-{number:04d}" for site in "ABCD" for number in range(15)]
    rna = pd.DataFrame(rng.normal(5, 1, (60, 100)), ids, [f"GENE{number}" for number in range(100)])
    label = np.where(rna["GENE3"] + rng.normal(0, 0.5, 60) > 5, "MSI-H", "MSS")
    (folder / "my_tables").mkdir()
    pd.DataFrame({"PATIENT": ids, "MSI": label}).to_csv(folder / "my_tables" / "clinical.csv", index=False)
    rna.to_csv(folder / "my_tables" / "rna.csv", index_label="PATIENT")


def own_tables(folder: Path, root: Path) -> None:
    """A folder of tables, and the environment where ``make setup`` puts it."""
    made_up_tables(folder)
    (folder / ".venv").symlink_to(Path(sys.prefix))


def three_runs(folder: Path, root: Path) -> None:
    """Runs of one study with three balancing methods."""
    from equipoise.platform.run.folder import RunFolder
    from equipoise.platform.run.loading import load_study
    from equipoise.platform.run.steps import run_steps

    made_up_tables(folder)
    study = {
        "version": 1,
        "name": "leaderboard",
        "synthetic": True,
        "cohorts": [
            {"name": "TCGA", "role": "develop", "clinical": "my_tables/clinical.csv"}
            | {"omics": {"rna": {"path": "my_tables/rna.csv", "kind": "log", "log_base": 2}}}
        ],
        "tasks": [
            {"name": "MSI", "type": "binary", "column": "MSI", "positive": "MSI-H", "negative": ["MSS"]},
            {"name": "again", "type": "binary", "column": "MSI", "positive": "MSI-H", "negative": ["MSS"]},
        ],
        "model": {"kind": "omics", "dim": 4},
        "training": {"epochs": 2},
        "splits": {"scheme": "kfold", "folds": 3},
        "evaluation": {"bootstrap": 50},
    }
    (folder / "study.yaml").write_text(yaml.safe_dump(study), encoding="utf-8")
    for method in ("equal", "equal+pcgrad", "uncertainty"):
        run = load_study(folder / "study.yaml", {"balancing": method})
        out = folder / "runs" / method.rpartition("+")[2]
        run_steps(run, RunFolder.open(run, str(out), "auto"), ("validate", "train", "evaluate"))


def stores(folder: Path, root: Path) -> None:
    """A store of features of the handcrafted encoder, and files of TRIDENT."""
    import h5py

    from equipoise.platform.extraction.maintenance import import_store

    grid = np.array([(column, row) for row in range(4) for column in range(5)])
    rng = np.random.default_rng(6)
    for layout in ("from_stamp", "from_trident"):
        (folder / layout).mkdir()
    for number in range(3):
        with h5py.File(folder / "from_stamp" / f"slide{number}.h5", "w") as file:
            file["feats"], file["coords"] = rng.normal(size=(20, 6)).astype(np.float16), 224.0 * grid
            file.attrs.update(
                {"unit": "um", "tile_size_um": 224.0, "tile_size_px": 224, "extractor": "handcrafted"}
            )
        with h5py.File(folder / "from_trident" / f"slide{number}.h5", "w") as file:
            file["features"], file["coords"] = rng.normal(size=(20, 6)).astype(np.float32), 512 * grid
            about = {"patch_size": 256, "patch_size_level0": 512, "level0_magnification": 40}
            file["coords"].attrs.update(
                about | {"target_magnification": 20, "overlap": 0, "name": f"slide{number}"}
            )
    import_store(folder / "from_stamp", "stamp", folder / "features", "handcrafted", None, None)


#: Pages whose blocks are run, and what each starts from.
RUN: dict[str, Callable[[Path, Path], None]] = {
    "README.md": own_tables,
    "docs/evaluation.md": three_runs,
    "docs/feature-store.md": stores,
    "docs/how-to/from-stamp-trident-clam.md": empty,
    "docs/how-to/own-balancing-method.md": empty,
    "docs/how-to/own-encoder.md": empty,
    "docs/how-to/own-strategy.md": empty,
    "docs/tutorials/built-in-data.md": empty,
    "docs/tutorials/public-tables.md": empty,
}


def test_every_block_of_commands_is_run_or_says_why_not(root: Path) -> None:
    problems = []
    for page in pages(root):
        shell = [block for block in blocks(root, page) if block.language in SHELL]
        runs = [block for block in shell if block.reason is None]
        if page not in RUN:
            problems += [
                f"{page}:{block.line}: neither in RUN nor `<!-- not run: REASON -->`" for block in runs
            ]
        elif not runs:
            problems.append(f"{page}: nothing to run")
        problems += [
            f"{page}:{b.line}: a reason is a sentence"
            for b in shell
            if b.reason is not None and len(b.reason) < 10
        ]
    assert set(RUN) <= set(pages(root))
    assert problems == []


def test_blocks_of_commands_are_marked_as_shell(root: Path) -> None:
    """Commands in a block of another language, or of none, would escape."""
    problems = []
    for page in pages(root):
        for block in blocks(root, page):
            first = block.code.lstrip().split(" ")[0]
            if block.language not in (*SHELL, "python") and first in PROGRAMS:
                problems.append(f"{page}:{block.line}: a block of commands without `sh`")
    assert problems == []


def commands(root: Path) -> Iterator[tuple[str, list[str]]]:
    """Place and words of every command in blocks of shell and in code spans."""
    for page in pages(root):
        found = blocks(root, page)
        for block in found:
            if block.language in SHELL:
                for line in block.code.replace("\\\n", " ").splitlines():
                    yield f"{page}:{block.line}", words(line)
        text = BLOCK.sub("", (root / page).read_text(encoding="utf-8"))
        for span in re.findall(r"`((?:equipoise|make|python -m) [^`]+)`", text):
            yield page, words(" ".join(span.split()))


def words(line: str) -> list[str]:
    """The words of a command without environment variables, comments and what follows a pipe."""
    try:
        parts = shlex.split(line, comments=True)
    except ValueError:  # a quotation over several lines
        parts = line.split()
    while parts and re.fullmatch(r"\w+=\S*", parts[0]):
        parts = parts[1:]
    ends = [place for place, part in enumerate(parts) if part in ("|", "&&", ";", ">", "||")]
    return parts[: ends[0]] if ends else parts


def options_of(job: str) -> set[str]:
    """The options of a job."""
    command = importlib.import_module(module_of(job)).command
    annotations = [parameter.annotation for parameter in inspect.signature(command).parameters.values()]
    if "config" in inspect.signature(command).parameters:
        annotations += [field.type for field in StudyOptions.__dataclass_fields__.values()]
    names = {"-h", "--help"}
    for annotation in (*annotations, Quiet, Verbose):
        option = annotation.__metadata__[0]
        first = [option.default] if isinstance(option.default, str) else []
        names |= {name for name in (*first, *(option.param_decls or ())) if name.startswith("-")}
    return names


def test_commands_name_jobs_options_modules_and_targets_that_exist(root: Path) -> None:
    targets = set(
        re.findall(r"^([a-z][\w-]*):", (root / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    )
    problems, checked = [], 0
    for place, parts in commands(root):
        match parts:
            case [program, job, *rest] if program.rpartition("/")[2] == "equipoise":
                checked += 1
                if job.startswith(("<", "-", "…")):
                    continue
                if job not in JOBS:
                    problems.append(f"{place}: no job {job}")
                    continue
                used = {part.partition("=")[0] for part in rest if re.match(r"--?[a-z]", part)}
                submitted = {part for part in rest if part in JOBS} if job == "submit" else set()
                known = options_of(job).union(
                    *map(options_of, submitted)
                )  # those of the job that is submitted
                problems += [f"{place}: equipoise {job} has no {name}" for name in sorted(used - known)]
            case ["python", "-m", module, *_] if module.startswith(("equipoise.", "benchmarks.", "docs.")):
                checked += 1
                file = module.removeprefix("equipoise.").replace(".", "/") + ".py"
                placeholder = "<" in module or module.rpartition(".")[2].isupper()  # benchmarks.NAME
                if not placeholder and not (root / file).is_file():
                    problems.append(f"{place}: no module {module}")
            case ["make", *named]:
                checked += 1
                named = [name for name in named if "=" not in name and not name.startswith("-")]
                problems += [f"{place}: no target {name}" for name in named if name not in targets]
    assert checked > 100
    assert problems == []


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize("page", RUN)
def test_commands_of_a_page_run_as_written(root: Path, tmp_path: Path, page: str) -> None:
    RUN[page](tmp_path, root)
    shell = [block for block in blocks(root, page) if block.language in SHELL and block.reason is None]
    script = "set -euo pipefail\n" + "".join(f"echo '@@ {block.line}'\n{block.code}\n" for block in shell)
    scripts = Path(sys.executable).parent
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=os.environ | {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "120"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=540,
    )
    assert done.returncode == 0, done.stdout
    printed = dict(re.findall(r"^@@ (\d+)\n(.*?)(?=^@@ \d+\n|\Z)", done.stdout, re.MULTILINE | re.DOTALL))
    assert list(printed) == [str(block.line) for block in shell]
    last, absent = "", []
    for block in blocks(root, page):
        if block.language in SHELL:
            last = printed.get(str(block.line), "")
        elif block.language == "text" and last:
            absent += [
                f"{page}:{block.line}: not printed: {line}"
                for line in block.code.splitlines()
                if not re.search(".*?".join(map(re.escape, line.strip().split("…"))), last)
            ]
    assert absent == [], done.stdout
