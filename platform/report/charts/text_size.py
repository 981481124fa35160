"""Widths of text without a browser, so that margins fit and no label is cut off.

Advance widths are those of Helvetica (Adobe font metrics), in thousandths of the font size. Fonts of the page differ
by some percent: :data:`MARGIN` is room for the widest of them.
"""

import html
import re

MARGIN = 1.07
_WIDTHS = dict(
    zip(
        " !\"#$%&'()*+,-./0123456789:;<=>?@ABCDEFGHIJKLMNOPQRSTUVWXYZ[\\]^_`abcdefghijklmnopqrstuvwxyz{|}~",
        (
            278, 278, 355, 556, 556, 889, 667, 191, 333, 333, 389, 584, 278, 333, 278, 278,
            556, 556, 556, 556, 556, 556, 556, 556, 556, 556, 278, 278, 584, 584, 584, 556,
            1015, 667, 667, 722, 722, 667, 611, 778, 722, 278, 500, 667, 556, 833, 722, 778, 667, 778, 722, 667, 611,
            722, 667, 944, 667, 667, 611, 278, 278, 278, 469, 556, 333,
            556, 556, 500, 556, 556, 278, 556, 556, 222, 222, 500, 222, 833, 556, 556, 556, 556, 333, 500, 278, 556,
            500, 722, 500, 500, 500, 334, 260, 334, 584,
        ),
        strict=True,
    )
)  # fmt: skip
_OTHER = 600
_TAG = re.compile(r"</?(?:b|i|em|strong|sub|sup|span)\b[^>]*>", re.IGNORECASE)
_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)
#: Where a word that is wider than its column may be broken.
_JOINTS = re.compile(r"(?<=[-_/·.,+])")


def width(text: str, size: float) -> float:
    """Width of one line in pixels."""
    return sum(_WIDTHS.get(letter, _OTHER) for letter in text) * size * MARGIN / 1000


def lines_of(text: object) -> list[str]:
    """The lines of a figure's text: ``<br>`` ends a line, other markup is dropped, entities become characters."""
    return [html.unescape(_TAG.sub("", part)) for part in _BREAK.split(str(text))]


def wrap(text: object, size: float, room: float) -> list[str]:
    """Lines that fit into ``room`` pixels: broken between words, then at joints of a word, then anywhere."""
    wrapped: list[str] = []
    for line in lines_of(text):
        wrapped += _wrap_line(line, size, room)
    return wrapped


def _wrap_line(line: str, size: float, room: float) -> list[str]:
    lines, current = [], ""
    for word in re.split(r"(?<= )", line):
        if width((current + word).rstrip(), size) <= room:
            current += word
            continue
        if current.strip():
            lines.append(current.rstrip())
        current = ""
        for piece in _JOINTS.split(word):
            if width((current + piece).rstrip(), size) > room:
                if current.strip():
                    lines.append(current.rstrip())
                *full, current = _cut(piece, size, room)
                lines += full
            else:
                current += piece
    return [*lines, current.rstrip()] if current.strip() or not lines else lines


def _cut(piece: str, size: float, room: float) -> list[str]:
    """A piece without joints, cut into parts that fit."""
    parts, current = [], ""
    for letter in piece:
        if current and width(current + letter, size) > room:
            parts.append(current)
            current = ""
        current += letter
    return [*parts, current]
