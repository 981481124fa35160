"""Cluster files that say nonsense, addresses where nothing answers, and submissions that nobody would take."""

import random
from collections.abc import Iterator
from pathlib import Path

import yaml

from benchmarks.bad_input_template import CONFIG, Work, damaged, everything_of, replaced, tables_of

ROOT = Path(__file__).parent.parent
NOWHERE = "127.0.0.1:9"  # the port of discard: nobody listens


def cluster_files() -> Iterator[tuple]:
    """Files of clusters with values of another kind, keys that are misspelt, and damage."""
    from equipoise.platform.cluster.cluster_file import validate_cluster

    draw = random.Random(29)
    for file in ("cluster.yaml", "deploy/gcp.yaml"):
        content = yaml.safe_load((ROOT / file).read_text())
        places = [(key,) for key in content]
        places += [("available_node_types", name) for name in content["available_node_types"]]
        places += [
            ("available_node_types", name, key)
            for name, node in content["available_node_types"].items()
            for key in node
        ]
        for place in places:
            wrong = draw.choice([-1, "nonsense", [], True, {"nonsense": 1}])

            def changed(
                folder: Path,
                template: Path,
                content: dict = content,
                place: tuple = place,
                wrong: object = wrong,
            ) -> Work:
                return _checked(folder, yaml.safe_dump(replaced(content, place, wrong)))

            yield f"{file}: {'.'.join(place)} is {wrong!r}", changed, "answered"
        for how in ("cut", "flip", "empty", "noise"):
            seed = draw.randrange(2**31)

            def spoilt(
                folder: Path, template: Path, file: str = file, how: str = how, seed: int = seed
            ) -> Work:
                (folder / "cluster.yaml").write_bytes(
                    damaged((ROOT / file).read_bytes(), how, random.Random(seed))
                )
                return lambda: validate_cluster(folder / "cluster.yaml")

            yield f"{file} {how}", spoilt, "answered"
        for name, old, new in (
            ("head that works", '"CPU": 0', '"CPU": 8'),
            ("no tokens", "RAY_AUTH_MODE=token", "RAY_AUTH_MODE=disabled"),
            ("open dashboard", "--dashboard-host=127.0.0.1", "--dashboard-host=0.0.0.0"),
            ("unpinned image", "rayproject/ray:2.60.0-py311", "rayproject/ray:latest"),
        ):

            def edited(
                folder: Path, template: Path, file: str = file, old: str = old, new: str = new
            ) -> Work:
                text = (ROOT / file).read_text()
                assert old in text, (file, old)
                return _checked(folder, text.replace(old, new))

            yield f"{file}: {name}", edited, "remarked", "cluster.yaml:"


def _checked(folder: Path, text: str) -> Work:
    from equipoise.platform.cluster.cluster_file import validate_cluster

    (folder / "cluster.yaml").write_text(text)

    def check() -> str:
        return "\n".join(map(str, validate_cluster(folder / "cluster.yaml")))

    return check


def addresses() -> Iterator[tuple]:
    """Addresses of clusters, dashboards and buckets that are none, or where nothing answers."""
    for address in (
        NOWHERE, f"ray://{NOWHERE}", "nonsense", "http://", "127.0.0.1", "127.0.0.1:99999", "ray://", "[::1", "-h",
        "a b:6379", "ray://user:secret@host:10001", "\u2028:1",
    ):  # fmt: skip

        def joined(folder: Path, template: Path, address: str = address) -> Work:
            everything_of(folder, template)
            return ["search", *CONFIG, "--trials", "1", "--address", address]

        yield f"Ray at {address!r}", joined, "answered" if address == "-h" else "refused"

        def submitted(folder: Path, template: Path, address: str = address) -> Work:
            tables_of(folder, template)
            return ["submit", "run", *CONFIG, "--address", address, "--start-timeout", "1"]

        yield f"dashboard at {address!r}", submitted, "answered" if address == "-h" else "refused"
    for place in (
        "s3://", "s3:///x", "s3://no_such_bucket_here/x", "gs://", "ftp://127.0.0.1/x", "nonsense://x", "http://127.0.0.1:9/x",
        "s3://user:secret@bucket/x", "file:///proc/nothing", "memory://nothing/store",
    ):  # fmt: skip
        for what, command in {
            "store": ["store", "ls", place],
            "model": ["import", place],
            "run": ["status", place],
        }.items():

            def asked(folder: Path, template: Path, command: list[str] = command) -> Work:
                return command

            yield (
                f"{what} at {place}",
                asked,
                "answered" if what == "store" and "memory" in place else "refused",
            )


def submissions() -> Iterator[tuple]:
    """Submissions to SLURM and to clusters with options that no scheduler would take."""
    there = ["submit", "run", *CONFIG, "--address", f"http://{NOWHERE}"]
    write = ["submit", "run", *CONFIG, "--slurm", "--write-only"]
    commands = {
        "no nodes": [*write, "--nodes", "0"],
        "nine nodes": [*write, "--nodes", "9"],
        "half a node": [*write, "--nodes", "1.5"],
        "no CPUs": [*write, "--cpus-per-node", "0"],
        "-1 GPUs": [*write, "--gpus-per-node", "-1"],
        "a time that is none": [*write, "--time", "tomorrow"],
        "a time with a command": [*write, "--time", "1:00:00\ntouch x"],
        "a partition with a command": [*write, "--partition", "gpu\ntouch x"],
        "an option with a line": [*write, "--sbatch", "qos=long\ntouch x"],
        "an option of ours": [*write, "--sbatch", "nodes=3"],
        "memory that is none": [*write, "--mem", "much"],
        "a job that is none": ["submit", "dance", *CONFIG, "--slurm", "--write-only"],
        "a study that is none": ["submit", "run", "-c", "nowhere.yaml", "--slurm", "--write-only"],
        "a script in a folder that is none": [*write, "--script", "/proc/nothing/job.sh"],
        "nowhere to submit": ["submit", "run", *CONFIG],
        "SLURM that is not there": ["submit", "run", *CONFIG, "--slurm"],
        "a status of nothing": ["submit", "status"],
        "a status without SLURM": ["submit", "status", "4711", "--slurm"],
        "a stop with a command": ["submit", "stop", "4711; touch x", "--slurm"],
        "a resource without amount": [*there, "--driver-resource", "x"],
        "a label without value": [*there, "--driver-label", "x"],
        "-1 retries": [*there, "--retries", "-1"],
    }  # fmt: skip
    for name, command in commands.items():

        def build(folder: Path, template: Path, command: list[str] = command) -> Work:
            tables_of(folder, template)
            return command

        yield name, build, "refused"
