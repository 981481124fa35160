"""Checkpoints of rounds: written atomically, verified by hashes, tied to one federation.

``round_000012/`` holds ``global.safetensors`` (weights by name), ``strategy.npz`` (vectors of the server),
``clients/`` (the state of each client, under a hash of its name), ``state.json`` (history, validator, aggregation,
privacy, virtual clock) and ``manifest.json`` with the SHA-256 of every file. It holds no random generator: everything
random is a function of seed and round. Unchanged states of clients are hard links to the previous round.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from equipoise.datasets.atomic_io import atomic_path, read_json, read_whole_json
from equipoise.platform.federation.params import FREE, FederationParams
from equipoise.platform.federation.privacy.mechanism import PrivacyMechanism
from equipoise.platform.federation.vector import Schema
from equipoise.platform.fingerprints import require_same

log = logging.getLogger("equipoise")

FORMAT = "equipoise-federation/1"
_ROUND = "round_"


@dataclass(frozen=True)
class RoundCheckpoint:
    """The state from which a federation continues.

    Parameters
    ----------
    rounds
        Rounds done.
    vector
        ``[P]`` float32 global weights.
    arrays
        Vectors of the server by name.
    clients
        Client → its state.
    plain
        Everything else, as plain data.
    """

    rounds: int
    vector: np.ndarray
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    clients: dict[str, bytes] = field(default_factory=dict)
    plain: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(
    folder: Path, saved: RoundCheckpoint, schema: Schema, identity: Mapping[str, Any], *, keep: int
) -> Path:
    """Write a round, then delete all but the last ``keep``."""
    from safetensors.numpy import save_file

    path = folder / f"{_ROUND}{saved.rounds:06d}"
    earlier = _rounds(folder)
    with atomic_path(path) as partial:
        (partial / "clients").mkdir(parents=True)
        save_file(
            {n: np.ascontiguousarray(a) for n, a in schema.named(saved.vector).items()},
            partial / "global.safetensors",
        )
        np.savez(partial / "strategy.npz", **saved.arrays)  # type: ignore[arg-type]
        hashes = {}
        for client, state in saved.clients.items():
            name = _file_of(client)
            hashes[name] = hashlib.sha256(state).hexdigest()
            _write_state(partial / name, state, hashes[name], earlier)
        plain = saved.plain | {"clients": sorted(saved.clients)}
        (partial / "state.json").write_text(json.dumps(plain), encoding="utf-8")
        hashes |= {
            name: _hash(partial / name) for name in ("global.safetensors", "strategy.npz", "state.json")
        }
        manifest = {"format": FORMAT, "rounds": saved.rounds, "identity": dict(identity), "sha256": hashes}
        (partial / "manifest.json").write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    for old in _rounds(folder)[:-keep]:
        shutil.rmtree(old)
    return path


def load_checkpoint(folder: Path, schema: Schema, identity: Mapping[str, Any]) -> RoundCheckpoint | None:
    """The last intact round, or None if there is none.

    A round whose files do not match their hashes is skipped with a warning.

    Raises
    ------
    StudyError
        If it belongs to another federation, naming what differs.
    """
    for path in reversed(_rounds(folder)):
        manifest = read_whole_json(path / "manifest.json") or {}
        if manifest.get("format") != FORMAT or not _intact(path, manifest.get("sha256", {})):
            log.warning("%s is damaged; continuing from the previous round", path.name)
            continue
        require_same(
            manifest["identity"],
            dict(identity),
            "the checkpoint belongs to another federation",
            where=path,
            fix="remove the folder to start again, or undo the change",
        )
        return _read(path, schema, int(manifest["rounds"]))
    return None


def identity_of(
    params: FederationParams, schema: Schema, initial: np.ndarray, privacy: PrivacyMechanism, seed: int
) -> dict[str, Any]:
    """The part of a federation's identity that does not depend on its data."""
    settings = params.model_dump(mode="json", exclude=set(FREE))
    if params.local.schedule != "cosine":
        settings.pop("rounds")
    if params.keep == "last":  # then nothing ends a federation early
        settings.pop("patience")
    return {
        "federation": settings,
        "schema": schema.hash,
        "initial weights": hashlib.sha256(initial.tobytes()).hexdigest()[:16],
        "shield": privacy.identity,
        "seed": seed,
    }


def _read(path: Path, schema: Schema, rounds: int) -> RoundCheckpoint:
    from safetensors.numpy import load_file

    plain = read_json(path / "state.json")
    with np.load(path / "strategy.npz", allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    vector = schema.from_named(load_file(path / "global.safetensors"))
    clients = {client: (path / _file_of(client)).read_bytes() for client in plain.pop("clients")}
    return RoundCheckpoint(rounds, vector, arrays, clients, plain)


def _rounds(folder: Path) -> list[Path]:
    folders = folder.glob(f"{_ROUND}*") if folder.exists() else []
    return sorted(path for path in folders if path.is_dir() and path.name.removeprefix(_ROUND).isdigit())


def _file_of(client: str) -> str:
    """File of a client's state; a hash, because a client's name may not be a valid file name."""
    return f"clients/{hashlib.sha256(client.encode()).hexdigest()[:24]}.bin"


def _write_state(path: Path, state: bytes, digest: str, earlier: list[Path]) -> None:
    if earlier:
        before = earlier[-1] / "clients" / path.name
        known = (read_whole_json(earlier[-1] / "manifest.json") or {}).get("sha256", {})
        if before.exists() and known.get(f"clients/{path.name}") == digest:
            try:
                os.link(before, path)
                return
            except OSError:  # a file system without links
                pass
    path.write_bytes(state)


def _intact(path: Path, hashes: Mapping[str, str]) -> bool:
    return bool(hashes) and all(
        (path / name).is_file() and _hash(path / name) == digest for name, digest in hashes.items()
    )


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
