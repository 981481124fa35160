"""Names of genes: earlier symbols, aliases and Ensembl ids of several versions become one name per gene.

The names of a table are those of the year in which it was made: MLL2 has been KMT2D since 2013, and
``ENSG00000141510.17`` is ``ENSG00000141510`` with the version of its annotation. Cohorts that are aligned by name lose
such genes. The user gives the table to look names up in (HGNC's ``hgnc_complete_set.txt``, or one with such columns);
without one only the versions of Ensembl ids go. Nothing is guessed: a name that stands for several genes stays as it
is, and every name that changed, was dropped or merged is listed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from equipoise.datasets.errors import DataError
from equipoise.datasets.omics.params import LINEAR_KINDS
from equipoise.datasets.params import TableSource
from equipoise.datasets.tables.reading import read_table, table_label

if TYPE_CHECKING:
    import pandas as pd

#: Meaning → headings of the column in the tables of HGNC, without regard to case.
HEADINGS = {
    "symbol": ("symbol", "approved symbol"),
    "previous": ("prev_symbol", "previous symbol", "previous symbols"),
    "alias": ("alias_symbol", "alias symbol", "alias symbols", "synonyms"),
    "ensembl": (
        "ensembl_gene_id",
        "ensembl gene id",
        "ensembl id(supplied by ensembl)",
        "ensembl id (supplied by ensembl)",
    ),
}
#: Under ``manifest/``: the list of changes of all cohorts.
FILE = "gene_names.csv"
#: Columns of the list of changes.
COLUMNS = ("name", "symbol", "change", "result")
#: An Ensembl id of any species, its version, and the copy on the Y chromosome of a gene that X and Y share.
ENSEMBL = re.compile(r"(ENS[A-Z]*G\d{11})(\.\d+)?(_PAR_Y)?")
#: What spreadsheets make of MARCH1, SEPT2 and DEC1.
SPREADSHEET_DATE = re.compile(r"(\d{1,2}-(mar|sep|sept|dec|oct)|(mar|sep|dec|oct)-\d{1,2})", re.IGNORECASE)
#: How values of columns that become one are combined.
Rule = Literal["sum", "mean", "max"]

#: Changes of names that stand for no gene, or for several.
UNRESOLVED = frozenset({"ambiguous", "unknown", "spreadsheet date"})


class Lookup(NamedTuple):
    """What a name is: the symbol to use, how it was found (empty: it is approved), and the genes it may stand for."""

    symbol: str
    change: str
    detail: str = ""


@dataclass(frozen=True)
class GeneTable:
    """Approved symbols, and the one gene that an earlier symbol, an alias or an Ensembl id stands for.

    Attributes
    ----------
    label
        The table in messages.
    approved
        All approved symbols.
    previous, alias, ensembl
        Name → the symbols that it may stand for; in upper case, Ensembl ids without version.
    folded
        Approved symbol in upper case → its spellings.
    """

    label: str
    approved: frozenset[str]
    previous: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    alias: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    ensembl: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    folded: Mapping[str, tuple[str, ...]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        folded = _grouped((symbol.upper(), symbol) for symbol in sorted(self.approved))
        object.__setattr__(self, "folded", folded)

    @classmethod
    def read(cls, source: TableSource, base: Path) -> GeneTable:
        """Read a table with headings of HGNC; others are named by ``rename``.

        Several names in one cell are separated by ``|``, comma or semicolon.

        Raises
        ------
        DataError
            If no column holds approved symbols, or none holds other names.
        """
        table = read_table(source, base)
        spelled = {str(name).strip().casefold(): str(name) for name in table.columns}
        found = {
            meaning: next((spelled[name] for name in names if name in spelled), None)
            for meaning, names in HEADINGS.items()
        }
        symbol = found.pop("symbol")
        if symbol is None or not any(found.values()):
            lacking = "approved symbols" if symbol is None else "previous symbols, aliases or Ensembl ids"
            raise DataError(
                f"no column of {lacking} is recognised; columns: {', '.join(map(str, table.columns[:12]))}",
                where=table_label(source),
                fix="use hgnc_complete_set.txt, or name the columns: rename: {COLUMN: symbol, OTHER: alias_symbol} "
                f"(recognised: {', '.join(names[0] for names in HEADINGS.values())})",
            )
        table = table[~table[symbol].str.contains("withdrawn", regex=False) & (table[symbol] != "")]
        names = {}
        for meaning, column in found.items():
            cells = [] if column is None else zip(table[column], table[symbol], strict=True)
            names[meaning] = _grouped(
                (name.strip().strip('"').upper(), approved)
                for cell, approved in cells
                for name in re.split(r"[|,;]", cell)
                if name.strip()
            )
        return cls(table_label(source), frozenset(table[symbol]), **names)

    def look_up(self, name: str) -> Lookup:
        """What a name is; Ensembl ids come without version."""
        if name in self.approved:
            return Lookup(name, "")
        upper = name.upper()
        tables: Sequence[tuple[str, Mapping[str, tuple[str, ...]]]] = (
            ("ensembl id", self.ensembl),
            ("case", self.folded),
            ("previous symbol", self.previous),
            ("alias", self.alias),
        )
        for change, table in tables:
            symbols = table.get(upper, ())
            if len(symbols) == 1:
                return Lookup(symbols[0], change)
            if symbols:
                return Lookup(name, "ambiguous", " or ".join(symbols))
        return Lookup(name, "spreadsheet date" if SPREADSHEET_DATE.fullmatch(name) else "unknown")


def _grouped(pairs: Iterable[tuple[str, str]]) -> dict[str, tuple[str, ...]]:
    result: dict[str, tuple[str, ...]] = {}
    for name, symbol in pairs:
        if symbol not in result.get(name, ()):
            result[name] = (*result.get(name, ()), symbol)
    return result


def rule_for(modality: str, kind: str | None) -> Rule:
    """How values of one gene that a table holds in several columns are combined.

    Counts and abundances add up; logarithms, z-scores and copy numbers are averaged; a mutation in one of them is one.
    """
    if modality == "mutation":
        return "max"
    return "sum" if modality == "rna" and kind in LINEAR_KINDS else "mean"


def harmonised(
    matrix: pd.DataFrame, table: GeneTable | None, rule: Rule, unknown: Literal["keep", "drop"] = "keep"
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A matrix with one column per gene under its name of today, and the list of what changed.

    Parameters
    ----------
    matrix
        float32 [patients, genes].
    table
        Where to look names up; without it only versions of Ensembl ids go.
    rule
        How columns that become one are combined; values that are missing (NaN) in some of them do not count.
    unknown
        Whether names that the table does not know, or that stand for several genes, stay as they are.

    Returns
    -------
    matrix, changes
        Changes have the columns name, symbol, change (why) and result (``renamed``, ``kept``, ``dropped`` or
        ``merged by sum``); names that stayed as they are and are approved, or were not looked up, have no row.
    """
    import pandas as pd

    names = [str(name) for name in matrix.columns]
    matches = [ENSEMBL.fullmatch(name) for name in names]
    plain = [match[1] if match else name.strip() for name, match in zip(names, matches, strict=True)]
    # A gene that X and Y share has one id; the copy on Y holds no reads of its own.
    copies = [bool(match and match[3]) for match in matches]
    on_x = {name for name, copy in zip(plain, copies, strict=True) if not copy}
    rows: list[list[str]] = []
    positions: dict[str, list[int]] = {}
    for position, (name, short, copy) in enumerate(zip(names, plain, copies, strict=True)):
        symbol, change, detail = Lookup(short, "") if table is None else table.look_up(short)
        if copy and short in on_x:
            rows.append([name, symbol, "copy on Y", "dropped"])
        elif unknown == "drop" and change in UNRESOLVED:
            rows.append([name, detail, change, "dropped"])
        else:
            change = change or ("version" if symbol != name else "")
            if change:
                result = "kept" if change in UNRESOLVED else "renamed"
                rows.append([name, detail or symbol, change, result])
            positions.setdefault(symbol, []).append(position)
    if not positions:
        raise DataError(
            f"none of {len(names)} genes is known: {', '.join(names[:3])}",
            where=table.label if table else None,
            fix="is it the table of this species and naming? or write unknown_genes: keep",
        )
    values = matrix.to_numpy(np.float32)
    merged = _merged(values, list(positions.values()), rule)
    for symbol, together in positions.items():
        if len(together) > 1:
            _mark_merged(rows, [names[i] for i in together], symbol, f"merged by {rule}")
    result = pd.DataFrame(merged, index=matrix.index, columns=list(positions))
    return result, pd.DataFrame(rows, columns=list(COLUMNS), dtype=object)


def _merged(values_NG: np.ndarray, positions: Sequence[Sequence[int]], rule: Rule) -> np.ndarray:
    """[N, K] columns at the first positions, combined with the others."""
    result = values_NG[:, [together[0] for together in positions]]
    for column, together in enumerate(positions):
        if len(together) > 1:
            parts = values_NG[:, together]
            known = (~np.isnan(parts)).sum(axis=1)
            combined = np.fmax.reduce(parts, axis=1) if rule == "max" else np.nansum(parts, axis=1)
            if rule == "mean":
                combined = combined / np.maximum(known, 1)
            result[:, column] = np.where(known > 0, combined, np.nan)
    return result


def _mark_merged(rows: list[list[str]], names: Sequence[str], symbol: str, result: str) -> None:
    """Every column that became part of another says so, also the one that has the symbol already."""
    listed = {row[0]: row for row in rows}
    for name in names:
        if name in listed:
            listed[name][3] = result
        else:
            rows.append([name, symbol, "same gene", result])


def changes_note(changes: pd.DataFrame, cohort: str, modality: str, label: str | None) -> str:
    """One line on what became of the names of a table; empty where nothing changed."""
    if changes.empty:
        return ""
    by = f" by {label}" if label else ""
    counts = [
        f"{n} {result} ({', '.join(f'{m} {why}' for why, m in Counter(part['change']).items())})"
        for result, part in changes.groupby("result", sort=False)
        if (n := len(part))
    ]
    return f"cohort {cohort}: {modality} genes{by}: {'; '.join(counts)}; manifest/{FILE} lists them"
