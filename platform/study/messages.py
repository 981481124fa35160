"""Turns pydantic's errors into messages with the line of the file, the valid values and the nearest one.

PyYAML's node tree knows the line of every key; pydantic's ``loc`` is the path to walk. Inside a discriminated union
``loc`` also holds the tag, which is no YAML key and is skipped.
"""

import re
import types
from typing import Annotated, Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from equipoise.platform.registry import nearest
from equipoise.platform.renamed import current_key

#: Most problems that are described at once, and most characters of a value that is shown.
MAX_PROBLEMS, _SHOWN = 50, 80

#: A pattern of names: what they begin with, and of what they are.
_NAME = re.compile(r"\^\[(?P<first>[^]]+)\]\[(?P<others>[^]]+)\]\*\$")

_SECTION = "keys of its own (key: value, indented below it)"
#: What pydantic's errors of type say, in words.
_WANTED = {
    **dict.fromkeys(("model_type", "model_attributes_type", "dict_type"), _SECTION),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(("list_type", "tuple_type"), "a list"),
    "string_type": "text",
}


def describe_errors(
    error: ValidationError, tree: yaml.Node | None, root: type[BaseModel], overridden: set[str]
) -> list[str]:
    """One line per problem, in the order of the file; of more than :data:`MAX_PROBLEMS` the first ones.

    Parameters
    ----------
    error
        The error of pydantic.
    tree
        The composed YAML document.
    root
        The model that was validated; its field names are the suggestions for unknown keys.
    overridden
        Keys given by ``--set``: their problems name the option instead of a line.
    """
    lines: list[tuple[int, str]] = []
    for item in error.errors()[:MAX_PROBLEMS]:
        location = item["loc"]
        if item["type"] == "union_tag_invalid":
            location = (*location, item["ctx"]["discriminator"].strip("'"))
        for text in _describe_error(item, root).split("\n"):
            keys, line = _locate(tree, location, root)
            dotted = ".".join(str(key) for key in keys)
            if not item["loc"]:  # a check of the whole study names its own section first
                section, _, _ = text.partition(":")
                parts = tuple(int(part) if part.isdigit() else part for part in section.split("."))
                _, line = _locate(tree, parts, root)
                dotted = ""
            given = next((key for key in overridden if f"{dotted}.".startswith(f"{key}.")), None)
            if given is None and item["type"] == "extra_forbidden" and not _is_written(tree, keys):
                given = next((key for key in overridden if key.startswith(f"{dotted}.")), None)
            head = f"line {line}" if given is None else f"--set {given}"
            if dotted and dotted != given:
                head = f"{head}, {dotted}"
            lines.append((line, f"{head}: {text}" if dotted else f"{head}, {text}"))
    return [text for _, text in sorted(lines, key=lambda pair: pair[0])]


def duplicate_keys(node: yaml.Node | None, path: str = "") -> list[str]:
    """Keys written twice in one mapping; YAML itself would silently keep the last one."""
    duplicates: list[str] = []
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            name, line = str(key.value), key.start_mark.line + 1
            if name in seen:
                duplicates.append(f"line {line}, {path}{name}: written twice (first on line {seen[name]})")
            seen[name] = line
            duplicates += duplicate_keys(value, f"{path}{name}.")
    elif isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            duplicates += duplicate_keys(item, f"{path}{number}.")
    return duplicates


def _describe_error(item: Any, root: type[BaseModel]) -> str:
    """What is wrong, the valid values and the nearest one."""
    context = item.get("ctx", {})
    kind = item["type"]
    if kind == "extra_forbidden":
        known = _field_names(root, item["loc"])
        meant = nearest(str(item["loc"][-1]), known)
        return f"unknown key{meant or ('; known: ' + ', '.join(known) if known else '')}"
    if kind == "missing":
        return "is required"
    if kind in ("literal_error", "enum", "union_tag_invalid"):
        expected = context.get("expected_tags") or context.get("expected", "")
        options = re.findall(r"'([^']*)'", expected) or [expected]
        given = context.get("tag", item["input"])
        return f"{_shown(given)} is not one of {', '.join(options)}{nearest(given, options)}"
    if kind == "union_tag_not_found":
        return f"needs the key {context.get('discriminator', 'kind')} to say what it is"
    if kind == "value_error":
        return str(context.get("error", item["msg"])).removeprefix("Value error, ")
    if kind in _WANTED:
        given = "nothing" if item["input"] is None else _shown(item["input"])
        return f"needs {_WANTED[kind]}, not {given}"
    if kind == "string_pattern_mismatch" and (name := _NAME.fullmatch(context["pattern"])):
        first, others = (_characters(name[part]) for part in ("first", "others"))
        return f"{_shown(item['input'])} has to begin with one of {first}; the rest may be {others}"
    given = item["input"]
    shown = f" (given: {_shown(given)})" if isinstance(given, str | int | float | bool | type(None)) else ""
    return item["msg"].removeprefix("Input ") + shown


def _characters(allowed: str) -> str:
    """A character class in words: ``A-Za-z0-9_`` becomes ``A-Z, a-z, 0-9, _``."""
    return ", ".join(re.findall(r".-.|.", allowed))


def _shown(value: Any) -> str:
    """A value as it was written, cut where it is long."""
    text = repr(value[:_SHOWN] if isinstance(value, str) else value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _locate(tree: yaml.Node | None, loc: tuple[Any, ...], root: type[BaseModel]) -> tuple[list[Any], int]:
    """The keys of ``loc`` without the tags of unions, and the line of the deepest one that is in the file."""
    node = tree
    keys: list[Any] = []
    line = tree.start_mark.line + 1 if tree is not None else 1
    for depth, part in enumerate(loc):
        below = None
        if isinstance(node, yaml.MappingNode):
            below = next(((k, v) for k, v in node.value if _is_key(k.value, part, keys)), None)
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            below = (node.value[part], node.value[part])
        if below is not None:
            line, node = below[0].start_mark.line + 1, below[1]
            keys.append(part)
        elif depth == len(loc) - 1 or part in _field_names(root, loc[: depth + 1]):
            keys.append(part)  # not in the file: a missing key, or one given by --set
            node = None
    return keys, line


def _is_written(tree: yaml.Node | None, keys: list[Any]) -> bool:
    """Whether the file has a key at this place."""
    node = tree
    for part in keys:
        below = (
            [value for key, value in node.value if key.value == part]
            if isinstance(node, yaml.MappingNode)
            else []
        )
        if not below:
            return False
        node = below[0]
    return True


def _is_key(written: str, part: Any, above: list[Any]) -> bool:
    """Whether a key of the file is this part of a path, perhaps under its earlier name."""
    path = "".join(f"{key}." for key in above)
    return written == str(part) or current_key(f"{path}{written}") == f"{path}{part}"


def _field_names(root: type[BaseModel], loc: tuple[Any, ...]) -> list[str]:
    """Field names of the model that has the unknown key."""
    candidates: list[type[BaseModel]] = [root]
    for part in loc[:-1]:
        if isinstance(part, int):
            continue
        inner = [
            m
            for c in candidates
            if part in c.model_fields
            for m in _models_in(c.model_fields[part].annotation)
        ]
        # A tag of a discriminated union narrows the candidates; it is no field of theirs.
        candidates = inner or [c for c in candidates if _has_tag(c, part)] or candidates
    return sorted({name for model in candidates for name in model.model_fields})


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    """All pydantic models inside an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (list, tuple, dict, Union, types.UnionType, Annotated):
        return [model for inner in get_args(annotation) for model in _models_in(inner)]
    return []


def _has_tag(model: type[BaseModel], tag: Any) -> bool:
    return any(tag in get_args(field.annotation) for field in model.model_fields.values())
