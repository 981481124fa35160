"""What a mark says of itself: the figure's hover template as the text of a tooltip."""

import re
from collections.abc import Mapping
from typing import Any

from equipoise.platform.report.charts.text_size import lines_of
from equipoise.platform.report.charts.ticks import number

_EXTRA = re.compile(r"<extra>(.*?)</extra>", re.DOTALL)
_FIELD = re.compile(r"%\{([^}:|]+)(?::([^}|]*))?[^}]*\}")
_PART = re.compile(r"[^.\[\]]+")


def tooltip(trace: Mapping[str, Any], point: Mapping[str, Any]) -> str:
    """The text for one point; empty if the trace wants none.

    Parameters
    ----------
    point
        ``x``, ``y``, ``z``, ``text``, ``customdata`` of the point, as far as it has them.
    """
    template = trace.get("hovertemplate")
    if trace.get("hoverinfo") == "skip":
        return ""
    if template is None:
        parts = [point.get("text") or "", f"{number(point.get('x'))}, {number(point.get('y'))}"]
        return "\n".join(line for part in parts for line in lines_of(part) if line)
    extra = _EXTRA.search(template)
    shown = _EXTRA.sub("", template) + (f"<br>{extra[1]}" if extra and extra[1] else "")
    values = {**point, "fullData": {"name": trace.get("name", "")}}
    filled = _FIELD.sub(lambda found: _value(values, found[1], found[2] or ""), shown)
    return "\n".join(line for line in lines_of(filled) if line.strip())


def _value(values: Mapping[str, Any], path: str, spec: str) -> str:
    value: Any = values
    for key in _PART.findall(path):
        try:
            value = value[int(key)] if isinstance(value, list | tuple) else value[key]
        except (KeyError, IndexError, ValueError, TypeError):
            return ""
    return number(value, spec) if isinstance(value, int | float) else str("" if value is None else value)
