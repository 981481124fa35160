"""Tables written as JSON: a list of records, as pandas, the GDC and many repositories export them.

``[{"case_id": "A", "age": 61}, …]``, the same under one key (``{"data": [...]}``), or one record per line. A record
inside a record becomes columns ``outer.inner``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from equipoise.datasets.errors import DataError
from equipoise.datasets.tables.cells import cell_text

JSON_SUFFIXES = (".json", ".jsonl", ".ndjson")
#: Records inside records that are followed.
MAX_DEPTH = 8


def record_rows(text: str, path: Path) -> Iterator[list[str]]:
    """The names of all keys, then a row per record, missing keys empty.

    Raises
    ------
    DataError
        If the text is no JSON, or holds no list of records.
    """
    records = [_flat(record, path) for record in _records(text, path)]
    names = list(dict.fromkeys(name for record in records for name in record))
    if not names:
        raise DataError("the records have no keys", where=str(path))
    yield names
    for record in records:
        yield [record.get(name, "") for name in names]


def _records(text: str, path: Path) -> list[dict[str, Any]]:
    try:
        data = _parsed(text)
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"not readable as JSON ({error})", where=str(path), fix="write the file again, or save it as .csv"
        ) from error
    if isinstance(data, dict):
        lists = [value for value in data.values() if isinstance(value, list)]
        data = lists[0] if len(lists) == 1 else data
    if not isinstance(data, list) or not data or not all(isinstance(record, dict) for record in data):
        raise DataError(
            "the file holds no list of records",
            where=str(path),
            fix='a table in JSON looks like [{"PATIENT": "A", "AGE": 61}, …]',
        )
    return data


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        lines = [line for line in text.splitlines() if line.strip()]
        if len(lines) < 2:
            raise
        return [json.loads(line) for line in lines]


def _flat(record: dict[str, Any], path: Path, prefix: str = "", depth: int = 0) -> dict[str, str]:
    """Cells of a record as text."""
    if depth > MAX_DEPTH:
        raise DataError(f"records inside records, {MAX_DEPTH} deep ({prefix}…)", where=str(path))
    cells: dict[str, str] = {}
    for key, value in record.items():
        name = f"{prefix}{key}".strip()
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
        if isinstance(value, dict):
            cells |= _flat(value, path, f"{name}.", depth + 1)
        elif isinstance(value, list):
            cells[name] = "; ".join(v if isinstance(v, str) else json.dumps(v) for v in value)
        elif isinstance(value, float) and value != value:
            cells[name] = ""
        else:
            cells[name] = cell_text(value)
    return cells
