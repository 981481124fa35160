"""Table files as grids of text: csv, tsv and JSON records (also compressed), xlsx and parquet.

Nothing is interpreted here. A code ``01`` must not become 1 and the code ``NA`` (Duke University among the
TCGA tissue source sites) must not become missing, so every cell is text and missing is the empty string.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import lzma
import re
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from equipoise.datasets.errors import DataError
from equipoise.datasets.suggestions import nearest
from equipoise.datasets.tables.cells import cell_text
from equipoise.datasets.tables.records import JSON_SUFFIXES, record_rows

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow.parquet as pq

TEXT_SUFFIXES = (".csv", ".tsv", ".txt")
#: Most bytes of a workbook's parts, unpacked.
MAX_UNPACKED = 500_000_000

COMPRESSIONS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
DELIMITERS = (",", ";", "\t")
#: Beginning of a text file → its encoding.
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
#: First line by which a spreadsheet is told the delimiter.
SEPARATOR_LINE = re.compile(r'"?sep=(.)"?\s*', re.IGNORECASE)
#: Lines that decide on the delimiter.
SNIFFED_LINES = 20


def read_grid(
    path: Path, *, sheet: str | None = None, header: int = 1, encoding: str = "utf-8"
) -> pd.DataFrame:
    """Read a table file as stripped text.

    Parameters
    ----------
    path
        File; its ending tells the format.
    sheet
        Sheet of a workbook.
    header
        Row (line of a text file) with the column names, counted from 1.
    encoding
        Of text files.

    Returns
    -------
    pandas.DataFrame
        Text; the index is the row (line) number in the file, so that messages can name rows.

    Raises
    ------
    DataError
        If the file is not what its name says, or a row does not fit the header.
    """
    kind = table_format(path)
    if sheet is not None and kind != "xlsx":
        raise DataError(
            f"a sheet ({sheet!r}) is given for a file that has none", where=str(path), fix="remove 'sheet'"
        )
    if kind == "parquet":
        return _read_parquet(path)
    if kind == "text":
        with open_text(path, encoding) as stream:
            return _frame(_text_rows(stream, header), path, header)
    if kind == "json":
        with open_text(path, encoding) as stream:
            return _frame(enumerate(record_rows(stream.read(), path), start=1), path, header)
    return _frame(_xlsx_rows(path, sheet), path, header)


def table_format(path: Path) -> str:
    """``text``, ``json``, ``xlsx`` or ``parquet``, from the file's ending."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    while suffixes and suffixes[-1] in (*COMPRESSIONS, ".zip"):
        suffixes.pop()
    ending = suffixes[-1] if suffixes else ""
    if ending in TEXT_SUFFIXES:
        return "text"
    if ending in JSON_SUFFIXES:
        return "json"
    if ending in (".xlsx", ".xlsm"):
        return "xlsx"
    if ending in (".parquet", ".pq"):
        return "parquet"
    raise DataError(
        f"{path.name!r} does not end like a table",
        where=str(path),
        fix="save it as .csv, .tsv, .xlsx, .parquet or .json (text also with .gz, .bz2, .xz or .zip behind it)",
    )


@contextmanager
def open_text(path: Path, encoding: str = "utf-8") -> Iterator[IO[str]]:
    """Open a text file, through its compression; a byte order mark is skipped.

    Raises
    ------
    DataError
        Also for what goes wrong while the text is read inside the ``with`` block.
    """
    encoding = "utf-8-sig" if encoding.lower().replace("_", "-") in ("utf-8", "utf8") else encoding
    try:
        codecs.lookup(encoding)
    except LookupError as error:
        raise DataError(f"unknown encoding {encoding!r}", where=str(path), fix="encoding: utf-8") from error
    try:
        with _opened(path, encoding) as stream:
            yield stream
    except UnicodeDecodeError as error:
        raise DataError(
            f"the file is not {encoding.removesuffix('-sig')} text ({error.reason} at byte {error.start})",
            where=str(path),
            fix="name its encoding, for instance 'encoding: cp1252', or save it as UTF-8",
        ) from error
    except csv.Error as error:
        raise DataError(
            f"not readable as text ({error})", where=str(path), fix="save the table again as .csv"
        ) from error
    except (OSError, EOFError, zipfile.BadZipFile, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"the file cannot be read ({error})", where=str(path), fix="copy it again") from error


def _opened(path: Path, encoding: str) -> IO[str]:
    """The text of a file; UTF-16 and UTF-32 are recognised by the mark that Windows programs put at the beginning."""
    if path.suffix.lower() == ".zip":
        raw: Any = _zip_member(path)
    else:
        raw = COMPRESSIONS.get(path.suffix.lower(), open)(path, "rb")
    try:
        start = raw.peek(4)[:4]
        if encoding == "utf-8-sig":
            encoding = next((name for mark, name in MARKS if start.startswith(mark)), encoding)
            if len(start) == 4 and encoding == "utf-8-sig" and start.count(0) == 2:
                little = start[1] == start[3] == 0
                raise DataError(
                    "the file looks like UTF-16 text without the mark that says so",
                    where=str(path),
                    fix=f"write encoding: {'utf-16-le' if little else 'utf-16-be'}, or save it as UTF-8",
                )
        return io.TextIOWrapper(raw, encoding=encoding, newline="")
    except BaseException:
        raw.close()
        raise


def _zip_member(path: Path) -> IO[bytes]:
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile as error:
        raise DataError(
            f"not a zip archive ({error})", where=str(path), fix="unpack it and name the table"
        ) from error
    # macOS adds a shadow entry per file.
    members = [m for m in archive.namelist() if not m.endswith("/") and not m.startswith("__MACOSX/")]
    if len(members) != 1:
        raise DataError(
            f"the archive holds {len(members)} files, not one table",
            where=str(path),
            fix="unpack it and name the table",
        )
    return archive.open(members[0])


def sniff_delimiter(lines: Iterable[str]) -> str:
    """Comma, semicolon or tab: what cuts the first lines into most columns of equal number.

    A decimal comma or a comma in one free text does not win over a semicolon that fits every line.
    """
    lines = [line for line in lines if line.strip()]
    best, best_score = ",", (False, 1)
    for delimiter in DELIMITERS:
        widths = [len(row) for row in csv.reader(lines, delimiter=delimiter)]
        if widths and (score := (len(set(widths)) == 1 and widths[0] > 1, widths[0])) > best_score:
            best, best_score = delimiter, score
    return best


@dataclass(frozen=True)
class TextHead:
    """The beginning of a text file.

    Attributes
    ----------
    delimiter
        What separates cells: what the first line says (``sep=;``), else what fits the first lines.
    skipped
        Lines above the one with the column names.
    lines
        First lines, from the one with the column names on.
    """

    delimiter: str
    skipped: int
    lines: list[str]


def text_head(stream: IO[str], header: int) -> TextHead:
    """Read the beginning of a text file; a first line ``sep=;`` and lines of remarks (``#``) stand above row 1.

    Parameters
    ----------
    stream
        Open text at its beginning.
    header
        Row with the column names, counted from 1.
    """
    head = list(islice(stream, header - 1 + SNIFFED_LINES))
    said = SEPARATOR_LINE.fullmatch(head[0]) if head else None
    skipped = header - 1
    if header == 1:
        skipped = 1 if said else _comments(head)
    lines = head[skipped:]  # title rows above the header have no vote
    return TextHead(said[1] if said else sniff_delimiter(lines), skipped, lines)


def _comments(lines: list[str]) -> int:
    """Lines of remarks above the column names: several that start with # (cBioPortal), or one of another width."""
    marked = next((i for i, line in enumerate(lines) if not line.startswith("#")), 0)
    if marked == 1:
        delimiter = sniff_delimiter(lines[1:])
        widths = [len(row) for row in csv.reader(lines[:2], delimiter=delimiter)]
        return int(widths[0] != widths[1])
    return marked


def _text_rows(stream: IO[str], header: int) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(2**31 - 1)
    head = text_head(stream, header)
    reader = csv.reader(chain(head.lines, stream), delimiter=head.delimiter)
    for row in reader:
        if row:  # blank lines
            yield head.skipped + reader.line_num, [cell.strip() for cell in row]


def _xlsx_rows(path: Path, sheet: str | None) -> Iterator[tuple[int, list[str]]]:
    book = _workbook(path)
    try:
        names = book.sheetnames
        if sheet is None and len(names) > 1:
            raise DataError(
                f"the workbook has {len(names)} sheets: {', '.join(map(repr, names))}",
                where=str(path),
                fix=f"say which one: sheet: {names[0]}",
            )
        if sheet is not None and sheet not in names:
            raise DataError(
                f"no sheet {sheet!r}{nearest(sheet, names)}",
                where=str(path),
                fix=f"sheets: {', '.join(names)}",
            )
        with _workbook_errors(path), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            for number, row in enumerate(book[sheet or names[0]].iter_rows(), start=1):
                cells = [_shown(cell) for cell in row]
                if any(cells):
                    yield number, cells
    finally:
        book.close()


@contextmanager
def _workbook_errors(path: Path) -> Iterator[None]:
    """Errors of a damaged workbook as data errors: openpyxl raises whatever its XML and zip layers raise."""
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        raise DataError(
            f"not a readable workbook ({type(error).__name__}: {error})",
            where=str(path),
            fix="save it again as .xlsx",
        ) from error


def _workbook(path: Path) -> Any:
    from openpyxl import load_workbook

    with _workbook_errors(path), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about styles and extensions that hold no values
        with zipfile.ZipFile(path) as parts:
            unpacked = sum(part.file_size for part in parts.infolist())
        if unpacked > MAX_UNPACKED:
            raise DataError(
                f"the workbook has {unpacked / 1e9:.1f} GB unpacked, more than {MAX_UNPACKED / 1e9:g} GB",
                where=str(path),
                fix="save its sheet as .csv or .parquet",
            )
        return load_workbook(path, read_only=True, data_only=True)


def sheet_names(path: Path) -> list[str]:
    """Sheets of a workbook; none for other files."""
    if table_format(path) != "xlsx":
        return []
    book = _workbook(path)
    try:
        return list(book.sheetnames)
    finally:
        book.close()


def _shown(cell: Any) -> str:
    # Looking a format up costs more than the cell itself, and only numbers have leading zeros in it.
    value = cell.value
    return cell_text(value, cell.number_format if isinstance(value, int | float) else None)


def _frame(rows: Iterator[tuple[int, list[str]]], path: Path, header: int) -> pd.DataFrame:
    """Cells below the header row, every row as wide as the header."""
    import pandas as pd

    columns: list[str] | None = None
    numbers: list[int] = []
    body: list[list[str]] = []
    for number, cells in rows:
        if number < header:
            continue
        if columns is None:
            columns = cells
            continue
        if len(cells) != len(columns):
            cells = _fitted(cells, len(columns), path, number)
        numbers.append(number)
        body.append(cells)
    if columns is None:
        raise DataError(
            "the table is empty" if header == 1 else f"no row {header} to take the column names from",
            where=str(path),
        )
    columns, body = _without_empty_columns(columns, body)
    index = pd.Index(numbers, name="row", dtype="int64")
    return pd.DataFrame(body, columns=unique_columns(columns), index=index, dtype=object)


def _fitted(cells: list[str], width: int, path: Path, number: int) -> list[str]:
    if len(cells) > width and not any(cells[width:]):
        return cells[:width]
    raise DataError(
        f"row {number} has {len(cells)} cells under {width} column names ({', '.join(cells[:3])}, …)",
        where=str(path),
        fix="add or remove a delimiter in that row, or put quotes around a text that contains one",
    )


def _without_empty_columns(columns: list[str], body: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """Drop trailing columns that have neither name nor content: spreadsheets leave them behind."""
    width = len(columns)
    while width and not columns[width - 1] and not any(row[width - 1] for row in body):
        width -= 1
    return (columns, body) if width == len(columns) else (columns[:width], [row[:width] for row in body])


def unique_columns(columns: list[str]) -> list[str]:
    """Number *all* columns that share a name: asking for the shared name is then an error, not a guess."""
    total = Counter(columns)
    seen: Counter[str] = Counter()
    out = []
    for name in columns:
        seen[name] += 1
        out.append(f"{name} ({seen[name]})" if total[name] > 1 else name)
    return out


def open_parquet(path: Path) -> pq.ParquetFile:
    """A Parquet file whose schema and columns can be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(
            f"not a readable Parquet file ({error})", where=str(path), fix="write it again"
        ) from error


def _read_parquet(path: Path) -> pd.DataFrame:
    import pandas as pd
    import pyarrow as pa
    import pyarrow.compute as pc

    table = open_parquet(path).read()
    columns = {}
    for name, column in zip(
        unique_columns([n.strip() for n in table.column_names]), table.columns, strict=True
    ):
        if pa.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        try:
            text = pc.fill_null(column.cast(pa.string()), "")
        except pa.ArrowInvalid as error:
            raise DataError(
                f"column {name!r} of type {column.type} is no text or number", where=str(path)
            ) from error
        columns[name] = pc.utf8_trim_whitespace(text).to_pandas().to_numpy(dtype=object)
    index = pd.RangeIndex(1, table.num_rows + 1, name="row")
    return pd.DataFrame(columns, index=index, dtype=object)
