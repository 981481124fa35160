"""The index: one row per slide, the single source of truth about the content of a store.

Rows stand in the order in which slides were first registered. That order alone decides the shard of a slide,
and a shard's name and content follow from the keys of its finished slides: however many workers wrote and
whenever they were interrupted, the same slides give the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from equipoise.datasets.errors import DataError
from equipoise.datasets.names import require_name
from equipoise.datasets.slides.problems import STATUSES

if TYPE_CHECKING:
    import pandas as pd

INDEX_FILE = "index.parquet"

#: What to do about an index that is lost or damaged.
REBUILD = "run `equipoise store rebuild` on this folder: shards describe their slides"

#: Registered, nothing known yet.
PENDING = "pending"

_COLUMNS: dict[str, tuple[pa.DataType, Any]] = {
    "key": (pa.string(), ""),
    "slide": (pa.string(), ""),
    "path": (pa.string(), ""),
    "fingerprint": (pa.string(), ""),
    "sha256": (pa.string(), ""),
    "mpp_override": (pa.float64(), math.nan),
    "shard": (pa.string(), ""),
    "batch": (pa.int32(), -1),
    "n": (pa.int64(), 0),
    "status": (pa.string(), PENDING),
    "attempts": (pa.int32(), 0),
    "error": (pa.string(), ""),
    "mpp": (pa.float64(), math.nan),
    "mpp_source": (pa.string(), ""),
    "tile_mpp": (pa.float64(), math.nan),
    "level0_px": (pa.float64(), math.nan),
    "width": (pa.int64(), 0),
    "height": (pa.int64(), 0),
    "vendor": (pa.string(), ""),
    "tissue": (pa.float64(), math.nan),
    "bad_tiles": (pa.int64(), 0),
    "reader": (pa.string(), ""),
}

SCHEMA = pa.schema([pa.field(name, kind, nullable=False) for name, (kind, _) in _COLUMNS.items()])

#: Columns with a slide's result; the others say which slide it is and where its features are.
RESULT_COLUMNS = tuple(
    name
    for name in _COLUMNS
    if name not in {"key", "slide", "path", "fingerprint", "mpp_override", "shard", "batch"}
)

Row = dict[str, Any]

#: Key of the file's metadata: SHA-256 of its rows as JSON, since format 1.2.0.
_DIGEST = b"digest"


def slide_key(slide: str, fingerprint: str, mpp_override: float | None) -> str:
    """Sixteen hexadecimal digits: the slide's name, its content and the pixel size stated for it.

    A moved file keeps its key; a replaced file or another stated pixel size makes another one, so that stale
    features are never taken for new ones.
    """
    mpp = "" if mpp_override is None or math.isnan(mpp_override) else f"{mpp_override:.9g}"
    return hashlib.sha256(f"{slide}\0{fingerprint}\0{mpp}".encode()).hexdigest()[:16]


def blank_row(**known: Any) -> Row:
    """A row of which only ``known`` is known."""
    return {name: empty for name, (_, empty) in _COLUMNS.items()} | known


def identities(slides: pd.DataFrame) -> list[tuple[str, str, str, float | None]]:
    """Slide, path, fingerprint and stated pixel size (``None`` for NaN) of each row of a slides table.

    Raises
    ------
    DataError
        If a slide stands in it twice.
    """
    from pandas import isna

    twice = slides["slide"][slides["slide"].duplicated()].astype(str).tolist()
    if twice:
        raise DataError(f"slide names must be unique; twice: {', '.join(twice[:5])}")
    return [
        (str(row.slide), str(row.path), str(row.fingerprint), None if isna(row.mpp) else float(row.mpp))
        for row in slides.itertuples(index=False)
    ]


class Index:
    """The rows of a store, by position and by key."""

    def __init__(self, rows: Iterable[Row] = ()) -> None:
        self._rows: list[Row] = list(rows)
        self._position = {row["key"]: at for at, row in enumerate(self._rows)}
        self._keys: dict[str, list[str]] = {}
        for row in self._rows:
            self._keys.setdefault(row["slide"], []).append(row["key"])

    @classmethod
    def load(cls, file: Path) -> Index:
        """Read the index; an absent file is an empty index.

        Raises
        ------
        DataError
            If the file is damaged.
        """
        return cls.parse(file.read_bytes() if file.exists() else None, str(file))

    @classmethod
    def parse(cls, content: bytes | None, where: str) -> Index:
        """As :meth:`load`, of the content of a file (``None``: absent)."""
        if content is None:
            return cls()
        try:
            table = pq.ParquetFile(pa.BufferReader(content), page_checksum_verification=True).read()
            missing = [name for name in SCHEMA.names if name not in table.column_names]
            for name in missing:  # written by an older minor version
                kind, empty = _COLUMNS[name]
                table = table.append_column(name, pa.array([empty] * len(table), kind))
            rows = table.select(SCHEMA.names).to_pylist()
            # A page has a checksum, but not the names and places of columns.
            written = (table.schema.metadata or {}).get(_DIGEST)
            if written is not None and written != _digest_of(rows):
                raise ValueError("its digest differs")
            for name in {row["key"] for row in rows} | {row["shard"] for row in rows if row["shard"]}:
                require_name(name, "key or shard")  # parts of paths: a store may come from anywhere
            return cls(rows)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise DataError(f"damaged index of a feature store: {error}", where=where, fix=REBUILD) from error

    def content(self, rows: Iterable[Row] | None = None) -> bytes:
        """The file of all rows (of ``rows`` instead, if given); the same rows give the same bytes."""
        table = pa.Table.from_pylist(list(self._rows if rows is None else rows), schema=SCHEMA)
        table = table.replace_schema_metadata({_DIGEST: _digest_of(table.to_pylist())})
        file = pa.BufferOutputStream()
        pq.write_table(table, file, compression="zstd", write_page_checksum=True)
        return file.getvalue().to_pybytes()

    def save(self, file: Path) -> None:
        """Write all rows to ``file``; the caller renames."""
        file.write_bytes(self.content())

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[Row]:
        return iter(self._rows)

    def __contains__(self, key: object) -> bool:
        return key in self._position

    def __getitem__(self, key: str) -> Row:
        return self._rows[self._position[key]]

    def position(self, key: str) -> int:
        """Position of a slide in the order of registration."""
        return self._position[key]

    def named(self, slide: str) -> list[Row]:
        """All rows of that slide name: several if a file was replaced or its pixel size restated."""
        return [self[key] for key in self._keys.get(slide, ())]

    def knows(self, slide: str, path: str, fingerprint: str, mpp_override: float | None) -> bool:
        """Whether :meth:`register` would change nothing."""
        key = slide_key(slide, fingerprint, mpp_override)
        if key not in self._position:
            return False
        row = self[key]
        return bool((row["slide"], row["path"], row["fingerprint"]) == (slide, path, fingerprint))

    def register(self, slide: str, path: str, fingerprint: str, mpp_override: float | None) -> str:
        """Give a slide its position, or look it up.

        A new key takes the position of a row of the same slide that has no features (a file that was missing and
        is now there, a pixel size that was refused and is now stated), and a new position otherwise.

        Returns
        -------
        The slide's key.
        """
        key = slide_key(slide, fingerprint, mpp_override)
        override = math.nan if mpp_override is None else float(mpp_override)
        if (
            key in self._position
        ):  # an index rebuilt from shards knows no paths, and of old ones not all names
            known = self[key]
            if known["slide"] != slide:
                self._keys[known["slide"]].remove(key)
                self._keys.setdefault(slide, []).append(key)
            known.update(slide=slide, path=path, fingerprint=fingerprint, mpp_override=override)
            return key
        row = blank_row(key=key, slide=slide, path=path, fingerprint=fingerprint, mpp_override=override)
        for old in self.named(slide):
            if old["status"] != "ok":
                at = self._position.pop(old["key"])
                self._rows[at] = row
                self._position[key] = at
                self._keys[slide] = [key if known == old["key"] else known for known in self._keys[slide]]
                return key
        self._position[key] = len(self._rows)
        self._keys.setdefault(slide, []).append(key)
        self._rows.append(row)
        return key

    def record(self, key: str, result: Row) -> None:
        """Enter the result of a slide.

        Raises
        ------
        DataError
            For an unknown slide, status or column.
        """
        if key not in self._position:
            raise DataError(f"slide key {key!r} was never registered in this store")
        if result.get("status") not in STATUSES:
            raise DataError(f"unknown slide status {result.get('status')!r}; known: {', '.join(STATUSES)}")
        unknown = set(result) - set(RESULT_COLUMNS)
        if unknown:
            raise DataError(f"unknown columns for the index: {', '.join(sorted(unknown))}")
        row = self[key]
        row |= {name: _COLUMNS[name][1] for name in RESULT_COLUMNS}
        row |= {name: value for name, value in result.items() if value is not None}

    def without(self, keys: set[str]) -> Index:
        """An index without these slides; later ones move up."""
        return Index(row for row in self._rows if row["key"] not in keys)

    def committed_rows(self) -> list[Row]:
        """Rows as they are written to disk: there, a slide whose features are in no shard yet is pending."""
        rows = [dict(row) for row in self._rows]
        uncommitted = Index(row for row in rows if row["status"] == "ok" and not row["shard"])
        for row in uncommitted:
            uncommitted.reset(row["key"])
        return rows

    def reset(self, key: str) -> None:
        """Clear the result of a slide, so that it is tried again."""
        self[key].update({name: _COLUMNS[name][1] for name in RESULT_COLUMNS}, shard="", batch=-1)


def _digest_of(rows: list[Row]) -> bytes:
    return hashlib.sha256(json.dumps(rows, default=repr).encode()).hexdigest().encode()
