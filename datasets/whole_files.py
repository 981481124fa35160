"""Files and folders that are there as a whole or not at all: a temporary sibling, then a rename."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: How a temporary sibling's name begins and ends; whoever finds one whose writer is dead may remove it.
ASIDE_PREFIX, ASIDE_SUFFIX = ".", ".tmp"


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A sibling of ``path`` to write a file or folder to; takes its place on success, is removed otherwise.

    Nothing is there under the sibling's name yet. It ends in ``.tmp``, so a writer that chooses a format by the
    name's ending must be told the format. The name is unlike that of any other writer: two that make the same file
    do not write into each other's, the last one to end wins. Folders of the way are made. A file gets mode 0644,
    whatever the umask: what is written here is shared.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f"{ASIDE_PREFIX}{path.name}.{os.getpid()}-{secrets.token_hex(4)}{ASIDE_SUFFIX}")
    try:
        yield aside
        if aside.is_dir():
            if path.is_dir():
                shutil.rmtree(path)  # a folder does not replace a folder
        else:
            aside.chmod(0o644)
        aside.replace(path)
    finally:
        if aside.is_dir():
            shutil.rmtree(aside)
        aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text with Unix line ends, whole or not at all."""
    with atomic_path(path) as aside:
        aside.write_text(text, encoding="utf-8", newline="\n")


def write_json(path: Path, value: Any) -> None:
    """Write JSON, whole or not at all; what JSON does not know becomes text."""
    write_text(path, json.dumps(value, indent=2, default=str) + "\n")


def read_json(path: Path, default: Any = None) -> Any:
    """Read JSON, or return ``default`` where the file is absent."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else default
