"""Folders of RNA encoders: ``config.json``, ``genes.txt`` (one gene a line, in the order of the weights) and weights.

Written whole or not at all, and read as text and tensors only. Messages of two lines: what is wrong, then what to do.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

CONFIG, GENES, WEIGHTS = "config.json", "genes.txt", "model.safetensors"


def existing_folder(name: str, folder: str | Path, files: Sequence[str] = (CONFIG, GENES, WEIGHTS)) -> Path:
    """The folder, with all of these files.

    Raises
    ------
    FileNotFoundError
        Naming what is missing.
    """
    path = Path(folder).expanduser()
    if not path.is_dir():
        raise FileNotFoundError(
            f"RNA encoder {name!r}: there is no folder {path}\nname the folder that holds {', '.join(files)}"
        )
    if missing := [file for file in files if not (path / file).is_file()]:
        raise FileNotFoundError(
            f"RNA encoder {name!r}: {path} has no {', '.join(missing)}\n"
            f"name the folder that holds {', '.join(files)}"
        )
    return path


def read_config(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises
    ------
    ValueError
        If the file is something else.
    """
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: not a JSON file ({error})\nget the file again") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: holds no JSON object\nget the file again")
    return config


def read_genes(path: Path) -> tuple[str, ...]:
    """One gene a line; empty lines and lines that begin with ``#`` do not count.

    Raises
    ------
    ValueError
        If there is none, or one stands twice.
    """
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    genes = tuple(line for line in lines if line and not line.startswith("#"))
    if not genes or len(set(genes)) < len(genes):
        problem = "lists a gene twice" if genes else "lists no gene"
        raise ValueError(f"{path}: {problem}\nwrite one gene a line, each once")
    return genes


def write_folder(
    folder: str | Path, config: Mapping[str, Any], genes: Sequence[str], tensors: Mapping[str, Tensor]
) -> None:
    """Write a new folder of an encoder, whole or not at all.

    Raises
    ------
    FileExistsError
        If there is such a folder already.
    """
    from safetensors.torch import save_file

    target = Path(folder).expanduser()
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        raise FileExistsError(f"{target} exists already\nname a new folder")
    with TemporaryDirectory(dir=target.parent) as temporary:
        made = Path(temporary) / "encoder"
        made.mkdir()
        (made / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        (made / GENES).write_text("\n".join(genes) + "\n", encoding="utf-8")
        save_file(dict(tensors), made / WEIGHTS)
        made.rename(target)


def fingerprint(identity: Mapping[str, Any], files: Iterable[Path] = ()) -> str:
    """SHA-256 of plain data and of files, in this order."""
    total = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
    for file in files:
        total.update(f"\n{file.name} {sha256(file)}".encode())
    return total.hexdigest()


def sha256(path: Path) -> str:
    """Of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def require_tensors(wanted: Mapping[str, Sequence[int]], state: Mapping[str, Tensor], where: str) -> None:
    """All tensors are there in these shapes; tensors beyond them are the caller's affair.

    Raises
    ------
    ValueError
        Naming the first ones that are missing or of another shape.
    """
    missing = [name for name in wanted if name not in state]
    shapes = [
        f"{name} {list(state[name].shape)} instead of {list(shape)}"
        for name, shape in wanted.items()
        if name in state and list(state[name].shape) != list(shape)
    ]
    problems = [
        f"{len(names)} {problem} ({', '.join(names[:4])}{', …' if len(names) > 4 else ''})"
        for problem, names in (("missing", missing), ("of another shape", shapes))
        if names
    ]
    if problems:
        raise ValueError(
            f"{where}: these are not the weights of this encoder: {'; '.join(problems)}\n"
            "name the folder whose configuration belongs to these weights"
        )
