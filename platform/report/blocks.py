"""Blocks of a section: plain text and numbers. Only the template produces HTML, and it escapes all text."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

from markupsafe import Markup

from equipoise.platform.report.style import Download, Figure, TextFile

Tone = Literal["", "good", "warn", "bad", "muted"]


@dataclass(frozen=True)
class Cell:
    """A table cell with a tone, a second line, a footnote mark, or a drawing."""

    text: str
    tone: Tone = ""
    note: str = ""
    mark: str = ""
    drawing: Markup | None = None


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    kind: ClassVar[str] = "text"
    text: str
    tone: Tone = ""


@dataclass(frozen=True)
class Heading:
    """A heading inside a section."""

    kind: ClassVar[str] = "heading"
    text: str


@dataclass(frozen=True)
class Notice:
    """A framed remark, with a list if there are several."""

    kind: ClassVar[str] = "notice"
    title: str
    items: Sequence[str] = ()
    tone: Tone = "warn"


@dataclass(frozen=True)
class Missing:
    """A file that the section needs and that is missing."""

    kind: ClassVar[str] = "missing"
    file: str
    what: str
    command: str
    problem: str = ""


@dataclass(frozen=True)
class KeyNumber:
    """One number with its label."""

    label: str
    value: str
    detail: str = ""


@dataclass(frozen=True)
class KeyNumbers:
    """A row of key numbers."""

    kind: ClassVar[str] = "key_numbers"
    items: Sequence[KeyNumber]


@dataclass(frozen=True)
class Score:
    """One result in large type."""

    dataset: str
    metric: str
    value: str
    interval: str
    detail: str
    note: str = ""
    tone: Tone = ""
    drawing: Markup | None = None


@dataclass(frozen=True)
class Scores:
    """Results side by side."""

    kind: ClassVar[str] = "scores"
    items: Sequence[Score]


@dataclass(frozen=True)
class Table:
    """A table; ``numeric`` columns are aligned right, a ``folded`` table is hidden until opened."""

    kind: ClassVar[str] = "table"
    columns: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    caption: str = ""
    numeric: frozenset[int] = frozenset()
    footnotes: Sequence[str] = ()
    download: Download | None = None
    folded: bool = False


@dataclass(frozen=True)
class Tables:
    """Small tables side by side if there is room."""

    kind: ClassVar[str] = "tables"
    items: Sequence[Table]


@dataclass(frozen=True)
class Figures:
    """Figures side by side if there is room, then the table ``beside`` them if half a row is left."""

    kind: ClassVar[str] = "figures"
    items: Sequence[Figure]
    beside: Table | None = None


@dataclass(frozen=True)
class Drawing:
    """An inline SVG with its caption."""

    title: str
    svg: Markup


@dataclass(frozen=True)
class Drawings:
    """Drawings side by side if there is room."""

    kind: ClassVar[str] = "drawings"
    items: Sequence[Drawing]
    how_to_read: str = ""
    download: Download | None = None


@dataclass(frozen=True)
class Picture:
    """A small picture as data URI; ``href`` links it to a file beside the page, ``alt`` says what it shows."""

    uri: str
    caption: str
    href: str = ""
    alt: str = ""


@dataclass(frozen=True)
class Gallery:
    """Small pictures in a grid; ``large`` ones get twice the room."""

    kind: ClassVar[str] = "gallery"
    items: Sequence[Picture]
    caption: str = ""
    large: bool = False


@dataclass(frozen=True)
class Code:
    """Text to copy; ``folded`` hides long text behind its title until opened or printed."""

    kind: ClassVar[str] = "code"
    text: str
    title: str = ""
    folded: bool = False
    downloads: Sequence[TextFile] = ()


Block = (
    Text
    | Heading
    | Notice
    | Missing
    | KeyNumbers
    | Scores
    | Table
    | Tables
    | Figures
    | Drawings
    | Gallery
    | Code
)


def figures_with(figures: Sequence[Figure], table: Table | None) -> list[Block]:
    """Figures and their table: beside a single figure, below several figures."""
    if len(figures) == 1 and not figures[0].wide:
        return [Figures(figures, table)]
    shown: list[Block] = [Figures(figures)] if figures else []
    return [*shown, table] if table else shown


@dataclass(frozen=True)
class Section:
    """A section of the report: title, one introductory sentence, blocks."""

    title: str
    lead: str
    blocks: Sequence[Block] = field(default_factory=tuple)
