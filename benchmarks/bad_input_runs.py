"""Feature stores, run folders and checkpoints whose files are damaged, lost or exchanged."""

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

from benchmarks.bad_input_template import CONFIG, Work, damaged, everything_of


def stores() -> Iterator[tuple]:
    """A feature store whose files are damaged, lost or exchanged."""
    draw = random.Random(13)
    commands = {
        "verify": ["store", "verify", "features"],
        "ls": ["store", "ls", "features"],
        "gc": ["store", "gc", "features"],
        "train": ["extract", *CONFIG],
    }
    patterns = {"index": "index*", "shard": "*.arrow", "spec": "store.json"}
    for part, pattern in patterns.items():
        for how in ("cut", "flip", "empty", "noise", "absent", "a folder"):
            for name, command in commands.items():
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
                    file = sorted((folder / "features").rglob(pattern))[0]
                    spoil(file, how, random.Random(seed))
                    return command

                strict = name == "verify" and not (part == "index" and how == "absent")
                yield f"{part} {how}: {name}", build, "refused" if strict else "answered"


def spoil(file: Path, how: str, draw: random.Random) -> None:
    """Damage a file, remove it, or put a folder in its place."""
    if how == "absent":
        file.unlink()
    elif how == "a folder":
        file.unlink()
        file.mkdir()
    else:
        file.write_bytes(damaged(file.read_bytes(), how, draw))


def run_folders() -> Iterator[tuple]:
    """A run folder whose files are damaged, lost or replaced by folders."""
    draw = random.Random(17)
    files = (
        "status.json",
        "events.jsonl",
        "provenance/resolved.yaml",
        "provenance/inputs.json",
        "manifest/patients.parquet",
        "manifest/splits.json",
        "manifest/exclusions.csv",
        "evaluation/predictions.parquet",
        "evaluation/metrics.csv",
    )
    commands = {
        "status": ["status", "runs/t"],
        "report": ["report", *CONFIG],
        "leaderboard": ["leaderboard", "runs/t", "runs/u"],
    }
    for name in files:
        for how in ("cut", "noise", "empty", "absent", "a folder"):
            for job, command in commands.items():
                seed = draw.randrange(2**31)

                def build(
                    folder: Path,
                    template: Path,
                    name: str = name,
                    how: str = how,
                    seed: int = seed,
                    command: list[str] = command,
                ) -> Work:
                    everything_of(folder, template)
                    if command[0] == "leaderboard":
                        shutil.copytree(folder / "runs/t", folder / "runs/u")
                    file = folder / "runs/t" / name
                    spoil(file, how, random.Random(seed))
                    return command

                yield f"{name} {how}: {job}", build, "answered"
    for what, arguments in {
        "a file in place of the run folder": ["validate", *CONFIG, "-o", "clini.csv"],
        "a file in place of a folder above": ["validate", *CONFIG, "-o", "clini.csv/run"],
        "a folder that cannot be made": ["validate", *CONFIG, "-o", "/proc/nothing/run"],
        "a very long name": ["validate", *CONFIG, "-o", "n" * 5000],
        "no run folder": ["status", "h5"],
        "one run": ["leaderboard", "runs/t"],
        "twice the same run": ["leaderboard", "runs/t", "runs/t"],
        "--resume must in a new folder": ["validate", *CONFIG, "-o", "new", "--resume", "must"],
        "--resume never in a folder of others": ["validate", *CONFIG, "-o", "h5", "--resume", "never"],
        "an unknown fold": ["train", *CONFIG, "--fold", "9-9"],
        "another study in the folder": ["validate", *CONFIG, "-s", "seed=99"],
        "a study file that is a folder": ["validate", "-c", "h5"],
        "a study file that is a pipe": ["validate", "-c", "pipe"],
        "a study file that is a device": ["validate", "-c", "/dev/zero"],
        "a study over itself": ["init", "-o", "study.yaml"],
        "tables that are no folder": ["init", "--tables", "nowhere", "-o", "n.yaml"],
        "an empty folder of tables": ["init", "--tables", "none", "-o", "n.yaml"],
        "an unknown template": ["init", "--template", "x", "-o", "n.yaml"],
        "an unknown kind": ["ls", "nothing"],
    }.items():

        def other(folder: Path, template: Path, arguments: list[str] = arguments) -> Work:
            everything_of(folder, template)
            os.mkfifo(folder / "pipe")
            (folder / "none").mkdir()
            return arguments

        yield what, other


def checkpoints() -> Iterator[tuple]:
    """Weights, configuration and predictions of a fold: cut, changed, exchanged."""
    draw = random.Random(19)
    files = ("model.safetensors", "config.json", "targets.json", "preds.parquet")
    for name in files:
        for how in ("cut", "flip", "flip", "noise", "empty", "absent", "a folder"):
            seed = draw.randrange(2**31)

            def build(
                folder: Path, template: Path, name: str = name, how: str = how, seed: int = seed
            ) -> Work:
                everything_of(folder, template)
                spoil(folder / "runs/t/folds/0-1" / name, how, random.Random(seed))
                return ["evaluate", *CONFIG]

            yield (
                f"{name} {how} {seed}",
                build,
                "answered" if how == "flip" and name.endswith("json") else "refused",
            )
    for name in files:

        def exchanged(folder: Path, template: Path, name: str = name) -> Work:
            everything_of(folder, template)
            one, other = (folder / "runs/t/folds" / fold / name for fold in ("0-0", "0-1"))
            kept = one.read_bytes()
            one.write_bytes(other.read_bytes())
            other.write_bytes(kept)
            return ["evaluate", *CONFIG]

        same = name == "targets.json"  # two folds may have the same scales
        yield f"{name} of two folds exchanged", exchanged, "answered" if same else "refused"
