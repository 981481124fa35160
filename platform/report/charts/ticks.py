"""Ticks of an axis and numbers as text: round steps, decades, and the part of d3's formats that figures use."""

import itertools
import math
import re

_MINUS, _THIN = "\u2212", "\u202f"
_FORMAT = re.compile(r"^(?P<comma>,?)(?:\.(?P<digits>\d+))?(?P<kind>[fge%ds]?)$")


def step(low: float, high: float, most: int) -> float:
    """The smallest step of 1, 2 or 5 times a power of ten that divides the range into at most ``most`` parts."""
    span = abs(high - low)
    if not span or not math.isfinite(span):
        return 1.0
    rough = span / max(most, 1)
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))


def linear(low: float, high: float, size: float) -> list[float]:
    """Multiples of ``size`` in the range, ends included."""
    low, high = min(low, high), max(low, high)
    first, last = math.ceil(low / size - 1e-9), math.floor(high / size + 1e-9)
    return [round(k * size, 12) + 0.0 for k in range(first, last + 1)]


def logarithmic(low: float, high: float, most: int) -> list[float]:
    """Values between ``10 ** low`` and ``10 ** high``: decades, and 2 and 5 of each where there is room."""
    low, high = min(low, high), max(low, high)
    powers = range(math.floor(low), math.ceil(high) + 1)
    for factors in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
        values = [factor * 10.0**power for power in powers for factor in factors]
        inside = [value for value in values if low - 1e-9 <= math.log10(value) <= high + 1e-9]
        if len(inside) <= most:
            break
    every = math.ceil(len(inside) / max(most, 1))
    inside = inside[::every]
    if len(inside) >= 2:
        return inside
    size = step(10.0**low, 10.0**high, most)
    return [value for value in linear(10.0**low, 10.0**high, size) if value > 0]


def labels(values: list[float]) -> list[str]:
    """Numbers with as many decimals as their differences need."""
    if not values:
        return []
    if len(values) == 1:
        return [number(values[0], ".3g")]
    if max(abs(value) for value in values) >= 1e6 or 0 < max(abs(value) for value in values) < 1e-4:
        return [number(value, ".3g") for value in values]
    gap = min(b - a for a, b in itertools.pairwise(values) if b > a)
    digits = next((d for d in range(7) if abs(round(gap, d) - gap) <= gap * 1e-6), 6)
    return [number(value, f",.{digits}f") for value in values]


def number(value: object, spec: str = "") -> str:
    """``%{y:.3f}`` and its like: a true minus, narrow spaces between thousands; unknown formats are an error."""
    if value is None:
        return "–"
    if not isinstance(value, int | float):
        return str(value)
    if not math.isfinite(value):
        return "–"
    found = _FORMAT.match(spec)
    if found is None:
        raise ValueError(f"number format {spec!r} is not supported")
    kind, digits, comma = found["kind"], found["digits"], found["comma"]
    if kind == "%":
        text = f"{value:.{digits}%}" if digits else f"{100 * value:.6g}%"
    elif kind == "d":
        text = f"{round(value):,d}" if comma else f"{round(value):d}"
    elif kind in ("", "s"):
        text = f"{value:.{digits}g}" if digits else f"{value:.6g}"
    else:
        text = f"{value:{comma}.{digits or 6}{kind}}"
    text = text.replace(",", _THIN).replace("%", " %")
    bare = text.lstrip("-")
    zero = not re.search(r"[1-9]", bare)
    return (bare if zero else text).replace("-", _MINUS)
