"""Reads a study file: text → values → overrides → checked :class:`~equipoise.platform.study.schema.Study`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from equipoise.datasets.redaction import CREDENTIALS_FIX, has_credentials, masked
from equipoise.platform.errors import StudyError
from equipoise.platform.renamed import current_key, current_study
from equipoise.platform.study.messages import describe_errors, duplicate_keys
from equipoise.platform.study.schema import CHECKS, Study, StudyCheck
from equipoise.platform.yaml_files import parse, read_text


def read_study(
    path: str | Path, overrides: dict[str, Any] | None = None, checks: Sequence[StudyCheck] = ()
) -> Study:
    """Read a study, apply the overrides and check it.

    Jobs call :func:`equipoise.platform.run.loading.load_study`, which adds the checks of the components.

    Parameters
    ----------
    path
        The YAML file.
    overrides
        Dotted key → value, as given by ``--set``; list items by number (``cohorts.0.role``).
    checks
        Further checks of the whole study.

    Raises
    ------
    StudyError
        With every problem at once, each with its line.
    """
    file = Path(path)
    try:
        text = read_text(file)
    except FileNotFoundError:
        raise StudyError(
            "no such study file", where=str(file), fix="`equipoise init -o study.yaml` writes a commented one"
        ) from None
    return study_of_text(text, file, overrides, checks)


def study_of_text(
    text: str, file: Path, overrides: dict[str, Any] | None = None, checks: Sequence[StudyCheck] = ()
) -> Study:
    """The study of a text, as :func:`read_study` reads it from the file.

    Parameters
    ----------
    text
        YAML.
    file
        The file that it is or will be: messages name it, and relative paths start from its folder.
    overrides, checks
        As in :func:`read_study`.
    """
    data, tree = parse(text, str(file))
    if not isinstance(data, dict):
        raise StudyError(
            "a study is a mapping of sections (version, name, cohorts, tasks, …)", where=str(file)
        )
    if repeated := duplicate_keys(tree):
        raise StudyError("not valid\n" + "\n".join(f"  {line}" for line in repeated), where=str(file))
    data = current_study(data, str(file))
    overrides = {current_key(key, "--set"): value for key, value in (overrides or {}).items()}
    for key, value in overrides.items():
        set_override(data, key, value)
    data = current_study(data, "--set")
    if hidden := _credentials(data):
        raise StudyError(
            "addresses hold credentials\n" + "\n".join(hidden), where=str(file), fix=CREDENTIALS_FIX
        )
    try:
        study = Study.model_validate(data, context={CHECKS: checks})
    except ValidationError as error:
        lines = describe_errors(error, tree, Study, set(overrides))
        total = max(error.error_count(), len(lines))
        count = f"{total} problem{'s' if total != 1 else ''}"
        if total > len(lines):
            lines.append(f"… and {total - len(lines)} more")
        raise StudyError(
            f"not valid, {count}\n" + "\n".join(f"  {line}" for line in lines), where=str(file)
        ) from None
    study._file = file.resolve()
    return study


def _credentials(value: Any, key: str = "") -> list[str]:
    """A line for every address with credentials in a study, which is copied into run folders; they are masked."""
    if isinstance(value, str):
        return [f"  {key}: {masked(value)}"] if has_credentials(value) else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [
        line for name, item in items for line in _credentials(item, f"{key}.{name}" if key else str(name))
    ]


def set_override(data: dict[str, Any], key: str, value: Any) -> None:
    """Set ``a.b.0.c`` in nested dictionaries and lists; missing dictionaries are created.

    Raises
    ------
    StudyError
        If the path meets a plain value or a list item that is not there.
    """
    node: Any = data
    *path, last = key.split(".")
    for depth, part in enumerate([*path, last]):
        if isinstance(node, list):
            if not part.isdigit() or int(part) >= len(node):
                raise StudyError(
                    f"--set {key}: {part!r} is not an item of {'.'.join(key.split('.')[:depth])!r}, "
                    f"which has items 0 to {len(node) - 1}"
                )
            index: str | int = int(part)
        elif isinstance(node, dict):
            index = part
        else:
            raise StudyError(f"--set {key}: {'.'.join(key.split('.')[:depth])!r} is a plain value")
        if depth == len(path):
            node[index] = value
        else:
            if isinstance(node, dict) and not isinstance(node.get(part), dict | list):
                node[index] = {}
            node = node[index]


def parse_overrides(pairs: list[str]) -> dict[str, Any]:
    """``["a.b=1", …]`` → ``{"a.b": 1}``, values typed as YAML types them.

    Raises
    ------
    StudyError
        If a pair has no ``=`` or its value is not YAML.
    """
    parsed = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise StudyError(
                f"--set {pair!r} is not of the form key=value", fix="for example --set training.lr=1e-4"
            )
        parsed[key.strip()] = parse(value, f"--set {key}")[0] if value else None
    return parsed
