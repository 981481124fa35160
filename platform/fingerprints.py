"""Fingerprints: what a stored result was made from, and what differs when it is read again.

Folds, checkpoints, federations, searches and run folders each store the settings and the content that their result is
a function of. A later command compares them with its own and refuses a result that was made from something else.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from equipoise.platform.errors import StudyError
from equipoise.platform.renamed import current_record, is_as_before

_MOST_SHOWN = 12


def content_hash(lines: Iterable[str]) -> str:
    """Hash of lines of text in their order: 16 hexadecimal digits.

    >>> content_hash(["patient-1", "patient-2"]) == content_hash(["patient-2", "patient-1"])
    False
    """
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def fingerprint(made_from: Mapping[str, Any]) -> dict[str, Any]:
    """Settings and hashes as the plain data that JSON gives back: tuples are lists, keys are text."""
    return json.loads(json.dumps(made_from))


def differences(before: Any, now: Any, path: str = "") -> list[str]:
    """``training.lr: 0.0001 → 0.001`` for every value that differs; a missing key equals None.

    A setting that ``before`` does not know is no difference where its value leaves everything as it was.
    """
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        keys = dict.fromkeys([*before, *now])
        pairs = [
            (key, before.get(key), now.get(key))
            for key in keys
            if key in before or not is_as_before(path, str(key), now[key])
        ]
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = [(i, b, n) for i, (b, n) in enumerate(zip(before, now, strict=True))]
    else:
        return [] if before == now else [f"{path}: {before!r} → {now!r}"]
    start = f"{path}." if path else ""
    return [line for key, b, n in pairs for line in differences(b, n, f"{start}{key}")]


def require_same(
    before: Mapping[str, Any], now: Mapping[str, Any], problem: str, *, where: str | Path, fix: str
) -> None:
    """Refuse a stored result whose fingerprint is not that of today.

    Parameters
    ----------
    before, now
        The stored fingerprint, perhaps under earlier names of keys, and that of the result that is asked for.
    problem
        What it means if they differ, for example ``the checkpoint belongs to another training``.
    where, fix
        Where the result is stored, and what the user can do.

    Raises
    ------
    StudyError
        Naming every value that differs, the first twelve in full.
    """
    # Both: a client or patient may be called what a key was called earlier.
    changed = differences(current_record(before), current_record(fingerprint(now)))
    if changed:
        shown = "\n".join(f"  {line}" for line in changed[:_MOST_SHOWN])
        more = f"\n  … and {len(changed) - _MOST_SHOWN} more" if len(changed) > _MOST_SHOWN else ""
        raise StudyError(f"{problem}; it differs in\n{shown}{more}", where=str(where), fix=fix)
