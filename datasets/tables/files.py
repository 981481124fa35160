"""Table files as grids of text: csv and tsv (also compressed), xlsx and parquet.

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
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import date, datetime, time
from itertools import chain, islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from equipoise.datasets.errors import DataError
from equipoise.datasets.suggestions import nearest

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow.parquet as pq

TEXT_SUFFIXES = (".csv", ".tsv", ".txt")
COMPRESSIONS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
DELIMITERS = (",", ";", "\t")
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
    return _frame(_xlsx_rows(path, sheet), path, header)


def table_format(path: Path) -> str:
    """``text``, ``xlsx`` or ``parquet``, from the file's ending."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    while suffixes and suffixes[-1] in (*COMPRESSIONS, ".zip"):
        suffixes.pop()
    ending = suffixes[-1] if suffixes else ""
    if ending in TEXT_SUFFIXES:
        return "text"
    if ending in (".xlsx", ".xlsm"):
        return "xlsx"
    if ending in (".parquet", ".pq"):
        return "parquet"
    raise DataError(
        f"{path.name!r} does not end like a table",
        where=str(path),
        fix="save it as .csv, .tsv, .xlsx or .parquet (text also with .gz, .bz2, .xz or .zip behind it)",
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
    if path.suffix.lower() == ".zip":
        return io.TextIOWrapper(_zip_member(path), encoding=encoding, newline="")
    return COMPRESSIONS.get(path.suffix.lower(), open)(path, mode="rt", encoding=encoding, newline="")


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


def _text_rows(stream: IO[str], header: int) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(2**31 - 1)
    head = list(islice(stream, header - 1 + SNIFFED_LINES))
    delimiter = sniff_delimiter(head[header - 1 :])  # title rows above the header have no vote
    reader = csv.reader(chain(head, stream), delimiter=delimiter)
    for row in reader:
        if row:  # blank lines
            yield reader.line_num, [cell.strip() for cell in row]


def _xlsx_rows(path: Path, sheet: str | None) -> Iterator[tuple[int, list[str]]]:
    from openpyxl import load_workbook

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about styles and extensions that hold no values
            book = load_workbook(path, read_only=True, data_only=True)
    except Exception as error:  # openpyxl raises whatever its XML and zip layers raise
        raise DataError(
            f"not a readable workbook ({type(error).__name__}: {error})",
            where=str(path),
            fix="save it again as .xlsx",
        ) from error
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
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            for number, row in enumerate(book[sheet or names[0]].iter_rows(), start=1):
                cells = [_shown(cell) for cell in row]
                if any(cells):
                    yield number, cells
    finally:
        book.close()


def _shown(cell: Any) -> str:
    # Looking a format up costs more than the cell itself, and only numbers have leading zeros in it.
    value = cell.value
    return cell_text(value, cell.number_format if isinstance(value, int | float) else None)


def cell_text(value: Any, number_format: str | None = None) -> str:
    """A cell of a workbook as it is shown: whole numbers without a point, dates in ISO form.

    A whole number under a format of zeros only keeps the leading ones: 7 as ``00000`` is ``00007``.
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        value = int(value)
    if isinstance(value, int):
        width = len(number_format) if number_format and not number_format.strip("0") else 0
        return "-" * (value < 0) + str(abs(value)).zfill(width)
    if isinstance(value, datetime) and value.time() == time():
        return value.date().isoformat()
    if isinstance(value, date | time):
        return value.isoformat()
    return str(value).strip()


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
