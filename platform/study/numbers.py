"""Numbers that no setting can have, wherever they stand in a study: also among parameters of entries."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

#: Largest whole number, and largest number, that a setting may have; seeds may be as large as generators take.
MAX_WHOLE, MAX_NUMBER, MAX_SEED = 10**8, 1e15, 2**63 - 1


def absurd_numbers(settings: Mapping[str, Any]) -> list[str]:
    """Problems of numbers that are infinite, or larger than any setting can be, each with its dotted key.

    Parameters
    ----------
    settings
        The study as plain data.
    """
    problems = []
    for key, number in _numbers(settings, ""):
        if not math.isfinite(number):
            problems.append(f"{key}: {number:g} is no finite number")
            continue
        whole = isinstance(number, int)
        most = MAX_NUMBER if not whole else MAX_SEED if key.rpartition(".")[2].endswith("seed") else MAX_WHOLE
        if abs(number) > most:
            problems.append(f"{key}: {number:.6g} is larger than any such setting can be (at most {most:g})")
    return problems


def _numbers(value: Any, key: str) -> Iterator[tuple[str, int | float]]:
    """Dotted key and value of every number."""
    if isinstance(value, bool):
        return
    if isinstance(value, int | float):
        yield key, value
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _numbers(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for k, inner in enumerate(value):
            yield from _numbers(inner, f"{key}.{k}")
