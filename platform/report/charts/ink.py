"""SVG elements as text: numbers, escaped strings, and colours as the page's variables.

A colour of :data:`~equipoise.platform.report.style.DARK` becomes ``var(--name)``, so that dark mode replaces it; any
other colour is written as it is. :func:`resolve` puts the light colours in for a file that leaves the page.
"""

import html
import math
import re
from typing import TypeGuard

from equipoise.platform.report.style import NAMES

_VARIABLE = re.compile(r"var\(--([a-z-]+)\)")
_RGBA = re.compile(r"^rgba?\(\s*([\d.]+)\s*,\s*([\d.]+)\s*,\s*([\d.]+)\s*(?:,\s*([\d.]+)\s*)?\)$")
_LIGHT = {name: colour for colour, name in NAMES.items()}
_DASHES = {
    "dot": "1.5 3.5",
    "dash": "6 4",
    "dashdot": "6 3 1.5 3",
    "longdash": "10 5",
    "longdashdot": "10 4 2 4",
}


def n(value: float) -> str:
    """A coordinate with one decimal at most."""
    text = f"{value:.1f}"
    text = text.removesuffix(".0")
    return "0" if text == "-0" else text


def text(value: object) -> str:
    """Text between tags or inside an attribute. Characters that XML forbids become the replacement character."""
    allowed = "".join(c if c >= " " or c in "\t\n" else "\ufffd" for c in str(value))
    return html.escape(allowed, quote=True)


def colour(value: object) -> tuple[str, float]:
    """A colour as it stands in an attribute, and its opacity."""
    given = str(value or "").strip().lower()
    if given in ("", "none", "transparent"):
        return "none", 1.0
    if found := _RGBA.match(given):
        r, g, b = (min(255, int(float(part))) for part in found.groups()[:3])
        given, opacity = f"#{r:02x}{g:02x}{b:02x}", float(found[4] or 1.0)
    else:
        opacity = 1.0
    if given in NAMES:
        return f"var(--{NAMES[given]})", opacity
    return given, opacity


def fill(value: object, opacity: float = 1.0) -> str:
    """Attributes of a fill; ``none`` if it is invisible."""
    name, own = colour(value)
    return _paint("fill", name, own * opacity)


def stroke(value: object, line_width: float, dash: object = None, opacity: float = 1.0) -> str:
    """Attributes of a stroke."""
    name, own = colour(value)
    if line_width <= 0:
        return 'stroke="none"'
    pattern = _DASHES.get(str(dash), "" if dash in (None, "", "solid") else str(dash).replace("px", ""))
    dashes = f' stroke-dasharray="{text(pattern)}"' if pattern else ""
    return f'{_paint("stroke", name, own * opacity)} stroke-width="{line_width:g}"{dashes}'


def _paint(what: str, name: str, opacity: float) -> str:
    if name == "none" or opacity <= 0:
        return f'{what}="none"'
    faint = f' {what}-opacity="{opacity:.3g}"' if opacity < 1 else ""
    return f'{what}="{text(name)}"{faint}'


def title(value: str) -> str:
    """A tooltip, or nothing."""
    return f"<title>{text(value)}</title>" if value else ""


def known(value: object) -> TypeGuard[float]:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def resolve(svg: str) -> str:
    """The SVG with its light colours in place of variables."""
    return _VARIABLE.sub(lambda found: _LIGHT[found[1]], svg)
