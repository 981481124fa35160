"""What :mod:`benchmarks.references` compares: outputs of runs by their content, without times, paths and free text."""

import hashlib
import json
import math
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

#: Settings of a study with another spelling in the version before: earlier dotted key → key now. Names of references
#: keep the earlier one; ``--old-keys`` writes studies with it, for the code of that version.
RENAMED = {
    "federation.rule": "federation.server_aggregation",
    "federation.rule_params": "federation.server_aggregation_params",
    "federation.gate": "federation.validation",
    "features.region_tiles": "features.chunk_tiles",
}

#: Columns that hold times, hosts or free text.
LEFT_OUT = frozenset(
    {"note", "reason", "cpu_seconds", "wall_seconds", "seconds", "host", "started", "ended", "at"}
)


@dataclass(frozen=True)
class Output:
    """One thing to compare.

    Parameters
    ----------
    content
        What is hashed.
    numbers
        All numbers in it, in a fixed order.
    """

    content: bytes
    numbers: np.ndarray

    @property
    def sha256(self) -> str:
        """Hexadecimal digits."""
        return hashlib.sha256(self.content).hexdigest()


#: Run folder → part → output.
Collect = Callable[[Path], dict[str, Output]]


def of_run(run: Path) -> dict[str, Output]:
    """Predictions, metrics, and of every fold weights, scalers and history."""
    found = {
        "predictions": table(run / "evaluation" / "predictions.parquet"),
        "metrics": table(run / "evaluation" / "metrics.csv"),
    }
    folds = sorted(path for path in (run / "folds").iterdir() if path.is_dir())
    found["weights"] = joined(weights(path / "model.safetensors") for path in folds)
    found["scalers"] = joined(document(path / "targets.json") for path in folds)
    found["history"] = joined(table(path / "history.csv", sort=False) for path in folds)
    return found


def of_demo(run: Path) -> dict[str, Output]:
    """A run, and the feature store beside it."""
    return of_run(run) | {
        f"store/{part}": output for part, output in of_store(run.parent / "features").items()
    }


def of_extraction(run: Path) -> dict[str, Output]:
    """The store that the study names."""
    resolved = yaml.safe_load((run / "provenance" / "resolved.yaml").read_text("utf-8"))
    return of_store(run.parent.parent / "cohort" / resolved["features"]["store"])


def of_store(root: Path) -> dict[str, Output]:
    """Bytes of shards with their names, address, and the index without paths."""
    found = {}
    for store in sorted(path.parent for path in root.glob("*/store.json")):
        shards = sorted((store / "shards").iterdir())
        names = "".join(f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n" for path in shards)
        name = store.name.rpartition("-")[0]
        found[f"{name}/shards"] = Output(f"{store.name}\n{names}".encode(), np.zeros(0))
        found[f"{name}/index"] = table(store / "index.parquet", without={"path", "error", "attempts"})
    return found


def of_search(run: Path) -> dict[str, Output]:
    """Trials, winner, and what it came to on patients that no trial saw."""
    folder = run / "search"
    found = {
        "trials": table(folder / "trials.parquet"),
        "ranking": table(folder / "leaderboard.csv"),
        "best": document(folder / "best.json", without={"text"}),
    }
    for path in sorted(folder.glob("final/*/predictions.parquet")):
        found[f"test/{path.parent.name}"] = table(path)
    return found


def of_federation(run: Path) -> dict[str, Output]:
    """Predictions of every method, and of every federation what its last checkpoint and its audit log hold."""
    folder = run / "federated"
    found = {
        f"predictions/{path.parent.name}/{path.stem}": table(path)
        for path in sorted(folder.glob("predictions/*/*.parquet"))
    }
    found["sites"] = table(folder / "sites.csv")
    found["traffic"] = table(folder / "traffic.csv")
    found["rounds"] = lines(folder / "rounds.jsonl")
    for path in sorted(folder.glob("*/*/facts.json")):
        parts = federation(path.parent)
        found |= {
            f"{path.parent.parent.name}/{path.parent.name}/{part}": output for part, output in parts.items()
        }
    return found


def federation(folder: Path) -> dict[str, Output]:
    """Of one federation."""
    last = max((folder / "rounds").glob("round_*"))
    clients = sorted((last / "clients").iterdir()) if (last / "clients").exists() else []
    with np.load(last / "strategy.npz", allow_pickle=False) as file:
        server = {name: file[name] for name in file.files}
    facts = json.loads((folder / "facts.json").read_text("utf-8"))
    return {
        "weights": weights(last / "global.safetensors"),
        "server_vectors": arrays(server),
        "server_state": document(last / "state.json"),
        "client_states": Output(b"".join(_named(path) for path in clients), np.zeros(0)),
        "ledger": lines(folder / "rounds" / "ledger.jsonl"),
        "scalers": document(folder / "targets.json"),
        "declared": plain(facts["clients"]),
        "clean_costs": plain(facts["clean_costs"]),
    }


def _named(path: Path) -> bytes:
    return path.name.encode() + path.read_bytes()


def table(path: Path, *, without: Iterable[str] = (), sort: bool = True) -> Output:
    """A table by its content: columns by name, rows in order (``sort``) or as they stand."""
    if path.suffix == ".parquet":
        frame = pd.read_parquet(path)
    else:
        frame = pd.read_csv(path, float_precision="round_trip", keep_default_na=False, na_values=[""])
    frame = frame.rename(columns=_old_name)
    columns = sorted(str(column) for column in frame.columns if str(column) not in {*LEFT_OUT, *without})
    cells = {name: [_cell(value) for value in frame[name].tolist()] for name in columns}
    rows = list(zip(*cells.values(), strict=True))
    order = sorted(range(len(rows)), key=lambda at: rows[at]) if sort else list(range(len(rows)))
    numbers = [
        frame[name].astype(float).to_numpy()[order]
        for name in columns
        if pd.api.types.is_numeric_dtype(frame[name]) and not pd.api.types.is_bool_dtype(frame[name])
    ]
    text = "\n".join(["\t".join(columns), *("\t".join(rows[at]) for at in order)])
    return Output(text.encode(), np.concatenate(numbers) if numbers else np.zeros(0))


def _old_name(column: Any) -> str:
    """``param/federation.server_aggregation`` → ``param/federation.rule``."""
    for old, new in RENAMED.items():
        if str(column) == f"param/{new}":
            return f"param/{old}"
    return str(column)


def _cell(value: Any) -> str:
    """Numbers by their bits, so that 1 and 1.0 are the same and nothing is rounded."""
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return repr(value)
    return struct.pack(">d", float(value)).hex()


def weights(path: Path) -> Output:
    """A safetensors file: name, type, shape and bytes of every tensor, by name."""
    from safetensors.numpy import load_file

    return arrays(load_file(path))


def arrays(found: dict[str, np.ndarray]) -> Output:
    """Arrays by name."""
    content, numbers = [], [np.zeros(0)]
    for name, array in sorted(found.items()):
        content.append(f"{name} {array.dtype.str} {array.shape} ".encode() + array.tobytes())
        numbers.append(array.astype(float).ravel())
    return Output(b"".join(content), np.concatenate(numbers))


def document(path: Path, *, without: Iterable[str] = ()) -> Output:
    """A JSON file; order of keys does not count."""
    return plain(json.loads(path.read_text("utf-8")), without)


def lines(path: Path) -> Output:
    """A file with one JSON document per line."""
    return plain([json.loads(line) for line in path.read_text("utf-8").splitlines()])


def plain(value: Any, without: Iterable[str] = ()) -> Output:
    """Plain data without times and free text."""
    left_out = {*LEFT_OUT, *without}

    def kept(node: Any) -> Any:
        if isinstance(node, dict):
            return {key: kept(item) for key, item in node.items() if key not in left_out}
        return [kept(item) for item in node] if isinstance(node, list) else node

    def numbers(node: Any) -> Iterable[float]:
        if isinstance(node, dict):
            for key in sorted(node):
                yield from numbers(node[key])
        elif isinstance(node, list):
            for item in node:
                yield from numbers(item)
        elif isinstance(node, int | float) and not isinstance(node, bool):
            yield float(node)

    tidy = kept(value)
    return Output(json.dumps(tidy, sort_keys=True).encode(), np.array(list(numbers(tidy))))


def joined(outputs: Iterable[Output]) -> Output:
    """Several as one."""
    found = list(outputs)
    numbers = [output.numbers for output in found]
    return Output(b"\0".join(output.content for output in found), np.concatenate([*numbers, np.zeros(0)]))
