"""Exported models that are damaged, changed or exchanged, and options of the jobs that make and read them."""

import hashlib
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.bad_input_runs import spoil
from benchmarks.bad_input_template import Work, everything_of, replaced, write_rows

PREDICT = ["predict", "--model", "exported", "--features", "features", "-o", "predicted", "--no-pages"]
IMPORT = ["import", "exported"]
COMMANDS = {"import": IMPORT, "predict": PREDICT}


def exports() -> Iterator[tuple]:
    """Every file of an export damaged, and the list of files changed."""
    draw = random.Random(23)
    for pattern in (
        "config.json",
        "manifest.json",
        "*.safetensors",
        "README.md",
        "preprocessing*",
        "trust.json",
    ):
        for how in ("cut", "flip", "empty", "noise", "absent", "a folder"):
            for name, command in COMMANDS.items():
                seed = draw.randrange(2**31)

                def build(
                    folder: Path,
                    template: Path,
                    pattern: str = pattern,
                    how: str = how,
                    seed: int = seed,
                    command: list[str] = command,
                ) -> Work:
                    everything_of(folder, template)
                    files = [file for file in sorted((folder / "exported").rglob(pattern)) if file.is_file()]
                    if not files:  # this export has none: any of its files
                        files = [file for file in sorted((folder / "exported").rglob("*")) if file.is_file()]
                    spoil(files[0], how, random.Random(seed))
                    return command

                yield f"{pattern} {how}: {name}", build, "refused"
    for name, value in {
        "a name above the folder": "../x.safetensors",
        "an absolute name": "/etc/passwd",
        "a name with a backslash": "..\\x",
        "an empty name": "",
        "a name with a zero": "a\0b",
    }.items():

        def renamed(folder: Path, template: Path, value: str = value) -> Work:
            everything_of(folder, template)
            seal = _seal(folder / "exported")
            content = json.loads(seal.read_text())
            seal.write_text(json.dumps(_rename_first(content, value)))
            return IMPORT

        yield f"list of files with {name}", renamed, "refused"
    for name, change in {
        "a link to a file outside": lambda f: (f / "exported/more.json").symlink_to("/etc/hostname"),
        "a file more": lambda f: (f / "exported/more.json").write_text("{}"),
        "a folder more": lambda f: (f / "exported/more").mkdir(),
        "a pickle more": lambda f: (f / "exported/model.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR."),
        "another fingerprint": lambda f: None,
    }.items():

        def added(folder: Path, template: Path, change: Any = change, name: str = name) -> Work:
            everything_of(folder, template)
            change(folder)
            return [*IMPORT, "--sha256", hashlib.sha256(b"").hexdigest()] if "fingerprint" in name else IMPORT

        # An empty folder holds nothing that could be read.
        yield name, added, "answered" if name == "a folder more" else "refused"


def _seal(exported: Path) -> Path:
    """The file that lists the others with their hashes."""
    for file in sorted(exported.glob("*.json")):
        if "sha256" in file.read_text() and "files" in json.loads(file.read_text()):
            return file
    raise RuntimeError("the export has no list of its files")


def _rename_first(content: dict[str, Any], value: str) -> dict[str, Any]:
    files = content["files"]
    if isinstance(files, dict):
        first, *others = files
        return content | {"files": {value: files[first]} | {name: files[name] for name in others}}
    key = next(key for key in files[0] if key in ("name", "path", "file"))
    return replaced(content, ("files", 0, key), value)


def options() -> Iterator[tuple]:
    """Options of export, import, predict, explain, report and evaluate that say nonsense or name nothing."""
    commands: dict[str, list[str]] = {
        "export of no run": ["export", "h5", "-o", "x"],
        "export over a folder of others": ["export", "runs/t", "-o", "h5"],
        "export onto a file": ["export", "runs/t", "-o", "clini.csv"],
        "refit without a study": ["export", "runs/t", "-o", "x", "--refit"],
        "import of a table": ["import", "clini.csv"],
        "import of a run": ["import", "runs/t"],
        "import of nothing": ["import", "nowhere"],
        "import with half a fingerprint": [*IMPORT, "--sha256", "abc"],
        "import with a store that is none": [*IMPORT, "--features", "h5"],
        "predict without cases": ["predict", "--model", "exported", "-o", "x"],
        "predict with a model that is none": [*PREDICT[:2], "runs/t", *PREDICT[3:]],
        "predict into the model": [*PREDICT[:-2], "exported", "--no-pages"],
        "predict with a store that is none": [*PREDICT[:4], "clini.csv", *PREDICT[5:]],
        "predict with an unknown table": [*PREDICT, "--tables", "proteins=rna.csv"],
        "predict with a table that is none": [*PREDICT, "--tables", "rna=h5"],
        "predict with half a table": [*PREDICT, "--tables", "rna"],
        "predict with a coverage of 95": [*PREDICT, "--coverage", "95"],
        "predict with a coverage of 0": [*PREDICT, "--coverage", "0"],
        "predict with a coverage of nan": [*PREDICT, "--coverage", "nan"],
        "predict with maps of no task": [*PREDICT, "--maps", "Foo"],
        "predict with slides that are none": [*PREDICT[:3], "--slides", "h5", *PREDICT[5:]],
        "predict with -1 workers": [*PREDICT, "--workers", "-1"],
        "explain a task that is none": ["explain", "-c", "study.yaml", "--tasks", "Foo"],
        "explain with no method": ["explain", "-c", "study.yaml", "--method", "magic"],
        "explain no slide": ["explain", "-c", "study.yaml", "--slides", "nobody"],
        "explain 0 patients": ["explain", "-c", "study.yaml", "--slides", "0"],
        "explain -1 tiles": ["explain", "-c", "study.yaml", "--top-k", "-1"],
        "report compared with nothing": ["report", "-c", "study.yaml", "--compare", "nowhere", "nothing"],
        "predictions that are a study": ["evaluate", "--predictions", "study.yaml", "-o", "x"],
        "predictions that are clinical": ["evaluate", "--predictions", "clini.csv", "-o", "x"],
        "predictions of nowhere": ["evaluate", "--predictions", "nowhere.csv", "-o", "x"],
        "predictions that are a folder": ["evaluate", "--predictions", "h5", "-o", "x"],
        "federate to a place that is none": ["federate", "-c", "study.yaml", "--export", "magic", "-o", "x"],
        "federate without a federation": ["federate", "-c", "study.yaml", "--export", "nvflare", "-o", "x"],
    }
    for name, command in commands.items():

        def build(folder: Path, template: Path, command: list[str] = command) -> Work:
            everything_of(folder, template)
            return command

        # A federation has defaults for everything, and 0 patients switch the explanation off.
        plain = name in ("federate without a federation", "explain 0 patients")
        yield name, build, "answered" if plain else "refused"
    for name, rows in {
        "an empty table of slides": [],
        "a table of slides without files": [{"PATIENT": "P1"}],
        "slides that are not there": [{"PATIENT": "P1", "FILENAME": "gone.svs"}],
        "a slide above the folder": [{"PATIENT": "P1", "FILENAME": "../../../etc/hostname"}],
    }.items():

        def tabled(folder: Path, template: Path, rows: list[dict[str, str]] = rows) -> Work:
            everything_of(folder, template)
            shutil.rmtree(folder / "runs")
            write_rows(folder / "new.csv", rows) if rows else (folder / "new.csv").write_text("")
            return [*PREDICT[:3], "--slides", "new.csv", "--slides-dir", "h5", *PREDICT[5:]]

        yield name, tabled, "refused"
