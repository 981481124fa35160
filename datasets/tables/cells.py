"""Cells of table files as text, and decimal commas as points.

A spreadsheet in German, French or Spanish writes ``1,5`` for 1.5. Which of the two a file means is decided for the
file as a whole, and never where thousands separators (``1,234``) would look the same.
"""

from __future__ import annotations

import re
import unicodedata
from datetime import date, datetime, time
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pandas as pd

COMMA_NUMBER = re.compile(r"[+-]?\d+,\d+(?:[eE][+-]?\d+)?")
POINT_NUMBER = re.compile(r"[+-]?(?:\d+\.\d*|\.\d+)(?:[eE][+-]?\d+)?")
WHOLE_NUMBER = re.compile(r"[+-]?\d+(?:[eE][+-]?\d+)?")
#: May be a number of thousands.
THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2},\d{3}")
#: What stands for a missing label or number, never for a missing site: ``NA`` is Duke University. ``'--`` and
#: ``[Not Available]`` are the GDC's and TCGA's.
MISSING = frozenset(
    {"", "NA", "N/A", "#N/A", "na", "n/a", "NaN", "nan", "<NA>", "NULL", "null"}
    | {"'--", "[Not Available]", "[Not Applicable]", "[Not Evaluated]"}
)

#: What stands in place of a patient key or a file name that is not known, in any case of letters.
NO_KEY = frozenset(
    {"", "na", "n/a", "#n/a", "n.a.", "nan", "<na>", "none", "null", "unknown", "missing", "not available"}
    | {"not reported", "-", "--", "'--", ".", "?", "#ref!", "#value!", "#name?", "#null!", "#num!", "#div/0!"}
)


def is_key(text: str) -> bool:
    """Whether a cell holds a patient key or a file name, and no marker of a missing one.

    >>> is_key("P1"), is_key("NA"), is_key("\\u200b")
    (True, False, False)
    """
    seen = "".join(c for c in text if unicodedata.category(c) not in ("Cf", "Cc"))
    return seen.strip().casefold() not in NO_KEY


def key_marker(text: str) -> str:
    """What stands in place of a key, for messages: nothing, or the marker in brackets."""
    return f" ({text!r})" if text else ""


#: Columns whose numbers were written with decimal commas, kept with a table that was read.
ATTRIBUTE = "decimal_commas"


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


def with_decimal_points(table: pd.DataFrame, decimal: Literal[",", "."] | None) -> pd.DataFrame:
    """A table of text with ``1.5`` where the file writes ``1,5``.

    Parameters
    ----------
    table
        Text.
    decimal
        What the study says; ``None`` decides by the file: columns of numbers have commas, none has a decimal point,
        and not every comma may separate thousands.

    Returns
    -------
    pandas.DataFrame
        The table itself where nothing changes; ``attrs["decimal_commas"]`` names the columns that changed.
    """
    if decimal == ".":
        return table
    # Whole columns are searched as one text: wide matrices would take seconds otherwise.
    cells_of = table.to_numpy().T
    columns = [i for i, cells in enumerate(cells_of) if "," in "\0".join(cells)]
    columns = [i for i in columns if _is_numeric(table.iloc[:, i])]
    if not columns or (decimal is None and not _means_commas(table, columns)):
        return table
    changed = table.copy()
    for i in columns:
        cells = table.iloc[:, i]
        changed.isetitem(i, [c.replace(",", ".") if COMMA_NUMBER.fullmatch(c) else c for c in cells])
    changed.attrs[ATTRIBUTE] = [str(table.columns[i]) for i in columns]
    return changed


def _is_numeric(cells: pd.Series) -> bool:
    """Whether every cell is a number with a comma or a whole one, and some are the former."""
    known = {cell for cell in cells if cell not in MISSING}
    whole = all(COMMA_NUMBER.fullmatch(cell) or WHOLE_NUMBER.fullmatch(cell) for cell in known)
    return whole and any("," in cell for cell in known)


def _means_commas(table: pd.DataFrame, columns: list[int]) -> bool:
    if all(THOUSANDS.fullmatch(c) for i in columns for c in table.iloc[:, i] if "," in c):
        return False
    for i in range(table.shape[1]):
        known = [cell for cell in table.iloc[:, i] if cell not in MISSING]
        if any(POINT_NUMBER.fullmatch(cell) for cell in known[:50]) and all(
            POINT_NUMBER.fullmatch(cell) or WHOLE_NUMBER.fullmatch(cell) for cell in known
        ):
            return False
    return True


def decimal_mark(rows: list[list[str]], decimal: Literal[",", "."] | None) -> Literal[",", "."]:
    """The decimal mark of a matrix of numbers, from its first rows without the header.

    Parameters
    ----------
    rows
        Cells.
    decimal
        What the study says; ``None`` decides by the rows as :func:`with_decimal_points` does by the whole file.
    """
    if decimal is not None:
        return decimal
    cells = [cell.strip() for row in rows for cell in row]
    commas = [cell for cell in cells if COMMA_NUMBER.fullmatch(cell)]
    pointed = any(POINT_NUMBER.fullmatch(cell) for cell in cells)
    return "," if commas and not pointed and not all(map(THOUSANDS.fullmatch, commas)) else "."
