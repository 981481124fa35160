"""YAML from users: mappings, lists and plain values, bounded in size, depth and number.

Tags that make Python objects, sets or bytes are refused; dates stay text; aliases are allowed as far as the document
that they stand for stays small, so that nothing written in a few lines can fill the memory.
"""

import os
import stat
from pathlib import Path
from typing import Any

import yaml

from equipoise.platform.errors import DataError, StudyError

#: Largest file in bytes, deepest nesting, most values (aliases written out), longest number in characters.
MAX_BYTES, MAX_DEPTH, MAX_VALUES, MAX_DIGITS = 2_000_000, 50, 100_000, 300

_CORE = {f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null", "map", "seq")}


class _Loader(yaml.SafeLoader):
    """The safe loader, to which a date is text."""

    yaml_implicit_resolvers = {  # noqa: RUF012 - as declared in the base class
        first: [(tag, pattern) for tag, pattern in rules if not tag.endswith(":timestamp")]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def read_text(path: Path) -> str:
    """The text of a file of at most :data:`MAX_BYTES`.

    Raises
    ------
    StudyError
        If it is no regular file, is larger, or is not UTF-8.
    FileNotFoundError
        If there is none.
    """
    try:
        descriptor = os.open(
            path, os.O_RDONLY | os.O_NONBLOCK
        )  # a pipe that nobody writes would wait for ever
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise StudyError("cannot be read: it is no regular file", where=str(path))
            data = file.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise StudyError(f"cannot be read: it is larger than {MAX_BYTES:,} bytes", where=str(path))
        return data.decode("utf-8-sig")
    except FileNotFoundError:
        raise
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        fix = "save the file as UTF-8"
        raise StudyError("cannot be read: it is not UTF-8", where=f"{path}, line {line}", fix=fix) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise StudyError(f"cannot be read: {reason}", where=str(path)) from None


def parse(text: str, where: str) -> tuple[Any, yaml.Node | None]:
    """Values and nodes of a document.

    Parameters
    ----------
    text
        One YAML document.
    where
        What it is, for the message.

    Returns
    -------
    value, node
        Dictionaries, lists, texts, numbers, booleans and None; the same as nodes, which know their lines.

    Raises
    ------
    StudyError
        If it is not YAML, or more than this module allows; with line and column.
    """
    try:
        _check_size(text, where)
        node = yaml.compose(text, Loader=_Loader)
        loader = _Loader(text)
        try:
            return loader.get_single_data(), node
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or " ".join(str(error).split())
        raise StudyError(
            f"not valid YAML: {problem}",
            where=where if mark is None else _at(where, mark),
            fix="YAML needs spaces (no tabs), aligned keys and a space after each colon",
        ) from None
    except ValueError as error:  # a number that Python does not read
        raise StudyError(f"not valid YAML: {error}", where=where) from None


def read_own(path: Path) -> Any:
    """Values of a YAML file that this product wrote.

    Raises
    ------
    DataError
        If it is damaged.
    """
    try:
        value, _ = parse(read_text(path), str(path))
    except StudyError as error:
        raise DataError(
            f"the file is damaged: {error.what}",
            where=error.where,
            fix="restore it from a copy, or choose another folder with -o",
        ) from error
    if not isinstance(value, dict):
        raise DataError("the file is damaged: it holds no settings", where=str(path))
    return value


def _check_size(text: str, where: str) -> None:
    """Walk over the events of the parser, which needs no recursion, and count what aliases stand for."""
    sizes: dict[str, int] = {}
    open_: list[tuple[str | None, int]] = [(None, 0)]
    for event in yaml.parse(text, Loader=_Loader):
        mark: Any = event.start_mark
        tag = getattr(event, "tag", None)
        if tag not in (None, "!") and tag not in _CORE:
            raise StudyError(f"not valid: the tag {tag!r} is not allowed", where=_at(where, mark))
        if isinstance(event, yaml.CollectionStartEvent):
            open_.append((event.anchor, 1))
            if len(open_) > MAX_DEPTH:
                raise StudyError(f"not valid: nested more than {MAX_DEPTH} deep", where=_at(where, mark))
            continue
        if isinstance(event, yaml.CollectionEndEvent):
            anchor, size = open_.pop()
        elif isinstance(event, yaml.ScalarEvent):
            anchor, size = event.anchor, 1
            if event.implicit[0] and len(event.value) > MAX_DIGITS and event.value[-1].isdigit():
                digits = len(event.value)
                raise StudyError(f"not valid: a number of {digits} characters", where=_at(where, mark))
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor in (name for name, _ in open_):
                raise StudyError(f"not valid: *{event.anchor} contains itself", where=_at(where, mark))
            anchor, size = None, sizes.get(str(event.anchor), 1)
        else:
            continue
        if anchor is not None:
            sizes[anchor] = size
        above, so_far = open_[-1]
        open_[-1] = above, so_far + size
        if so_far + size > MAX_VALUES:
            raise StudyError(f"not valid: more than {MAX_VALUES:,} values", where=_at(where, mark))


def _at(where: str, mark: Any) -> str:
    return f"{where}, line {mark.line + 1}, column {mark.column + 1}"
