"""The files of two runs, compared without times and places."""

import json
import re
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd

from equipoise.datasets.remote.commits import local_files

#: Files of which every line may hold a time or a place.
_PRESENT = re.compile(r"events\.jsonl|report\.html|provenance/(environments?\.jsonl?|command\.txt)")
_TIMES = re.compile(
    r"at|seconds.*|.*_seconds|.*_s|started|ended|finished|sha256|command|out|report|store|node|process"
)


def comparable(root: Path) -> dict[str, Any]:
    """Path → content of the files of a run folder.

    Names of TensorBoard's files and all that they hold are times.
    """
    content: dict[str, Any] = {}
    for path, file in local_files(root).items():
        if path.startswith("tb/"):
            content[path.partition(".tfevents")[0]] = None
        elif _PRESENT.fullmatch(path):
            content[path] = None
        elif file.suffix == ".json":
            content[path] = _without_times(json.loads(file.read_text()))
        elif file.suffix == ".yaml":
            content[path] = re.sub(r"(path|store): .*", "", file.read_text())
        elif path.startswith("search/") and file.suffix in (".csv", ".parquet"):
            table = pd.read_csv(file) if file.suffix == ".csv" else pd.read_parquet(file)
            text = StringIO()
            table[[name for name in table if not _TIMES.fullmatch(name)]].to_csv(text)
            content[path] = text.getvalue()
        else:
            content[path] = file.read_bytes()
    return content


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(one) for key, one in value.items() if not _TIMES.fullmatch(key)}
    return [_without_times(one) for one in value] if isinstance(value, list) else value
