"""Places of files in settings: left out when a model is exported, given again where it is used.

An exported model names no folder of the machine that trained it. Weights that are not part of the export (of a
published tile encoder, of a frozen slide encoder) are named by a key, and whoever uses the model says where they are;
their digests are compared with those of training.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel

from equipoise.datasets.params import StrictParams
from equipoise.platform.errors import StudyError
from equipoise.platform.registry import nearest

Config = TypeVar("Config", bound=BaseModel)


class LocalFile(StrictParams):
    """A file or folder that the export does not hold."""

    key: str
    """Where it stands in ``config.json``: ``features.extraction.encoder_params.weights``."""
    name: str
    """Its name, without folders."""


def without_places(settings: Any, base: Path, key: str) -> tuple[Any, list[LocalFile]]:
    """Settings in which every value that is a place of this machine is None, and what was there.

    Parameters
    ----------
    settings
        Plain data.
    base
        Folder that relative paths start from.
    key
        Where the settings stand.
    """
    found: list[LocalFile] = []

    def strip(value: Any, at: str) -> Any:
        if isinstance(value, Mapping):
            return {name: strip(part, f"{at}.{name}") for name, part in value.items()}
        if isinstance(value, list | tuple):
            return [strip(part, f"{at}.{i}") for i, part in enumerate(value)]
        if isinstance(value, str) and _is_place(value, base):
            found.append(LocalFile(key=at, name=Path(value).name))
            return None
        return value

    return strip(settings, key), found


def _is_place(value: str, base: Path) -> bool:
    """A path, an address, or the name of something beside the study file."""
    if not value or "\n" in value:
        return False
    return "/" in value or "\\" in value or (base / value).exists()


def with_local_files(config: Config, needed: Sequence[LocalFile], given: Mapping[str, str]) -> Config:
    """A configuration with the places of the files that it needs.

    Raises
    ------
    StudyError
        If a file is missing, is not asked for, or does not exist.
    """
    wanted = {file.key: file for file in needed}
    if unknown := sorted(set(given) - set(wanted)):
        known = f"it asks for {', '.join(wanted)}" if wanted else "it asks for none"
        raise StudyError(
            f"the model asks for no file {unknown[0]!r}: {known}{nearest(unknown[0], wanted)}", where="--file"
        )
    if missing := [file for key, file in wanted.items() if key not in given]:
        named = "; ".join(f"--file {file.key}={file.name}" for file in missing)
        raise StudyError(
            "the model needs files that are not part of the export",
            where="--file",
            fix=f"say where they are: {named}",
        )
    data = config.model_dump(mode="json")
    for key, place in given.items():
        path = Path(place).expanduser()
        if not path.exists():
            raise StudyError(f"there is no file {place}", where=f"--file {key}", fix="correct the path")
        parent, last = _parent(data, key)
        parent[last] = str(path.resolve())
    return type(config).model_validate(data)


def _parent(data: Any, key: str) -> tuple[Any, Any]:
    """The container that holds the value at a dotted key, and its last part; names may hold dots."""
    for names in _paths(data):
        if ".".join(map(str, names)) == key:
            parent = data
            for name in names[:-1]:
                parent = parent[name]
            return parent, names[-1]
    raise StudyError(f"config.json has no {key}", where="--file", fix="export the model again")


def _paths(data: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Keys and positions of every value below."""
    items: Callable[[], Any] | None = data.items if isinstance(data, dict) else None
    pairs = items() if items is not None else enumerate(data) if isinstance(data, list) else ()
    for name, value in pairs:
        yield (*above, name)
        yield from _paths(value, (*above, name))


def parse_files(pairs: list[str]) -> dict[str, str]:
    """``["key=PATH", …]`` of the command line.

    Raises
    ------
    StudyError
        If one is not of this form.
    """
    given = {}
    for pair in pairs:
        key, equals, place = pair.partition("=")
        if not (key and equals and place):
            raise StudyError(
                f"--file {pair!r} is not of the form KEY=PATH",
                where="command line",
                fix="`equipoise import` lists the keys of the files that the model asks for",
            )
        given[key] = place
    return given
