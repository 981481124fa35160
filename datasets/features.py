"""The feature store: extracted once, memory-mapped by every fold, trial and client.

A store holds the tile features of many slides for one :class:`~equipoise.datasets.store.spec.StoreSpec`.
Workers stage finished slides; the driver records what they report and commits: shards first, then the index
under its final name, then the staged files go. Whatever is interrupted, the index on disk describes files
that are there.

The format is documented in ``docs/feature-store.md``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from equipoise.datasets.errors import DataError
from equipoise.datasets.store.index import INDEX_FILE, PENDING, SCHEMA, Index, Row, slide_key
from equipoise.datasets.store.lock import writer_lock
from equipoise.datasets.store.shards import SHARDS, MappedFile, batch_arrays, shard_name, write_batches
from equipoise.datasets.store.spec import SPEC_FILE, StoreSpec, read_spec, write_spec
from equipoise.datasets.store.staging import Staging
from equipoise.datasets.whole_files import atomic_path

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FeatureStore", "StoreSpec"]


class FeatureStore:
    """A store on disk; open it with :meth:`create_or_open` or :meth:`open`.

    Attributes
    ----------
    path
        Folder of the store.
    spec
        What made its features.
    staging
        What workers need to write to it.
    """

    def __init__(self, path: Path, spec: StoreSpec, shard_slides: int) -> None:
        self.path = path
        self.spec = spec
        self.staging = Staging(path, spec)
        self._shard_slides = shard_slides
        self._index = Index.load(path / INDEX_FILE)
        self._chosen: dict[str, str] = {}
        self._mapped: dict[str, MappedFile] = {}
        self._lock: BinaryIO | None = None

    @classmethod
    def create_or_open(cls, root: str | Path, spec: StoreSpec, shard_slides: int = 32) -> FeatureStore:
        """Open the store of a specification, creating it if need be.

        Parameters
        ----------
        root
            A folder of stores: the one for ``spec`` is found by its address. Or the folder of one store: it
            must be the right one.
        spec
            What the features must have been made with.
        shard_slides
            Slides per shard of a new store; an existing one keeps its own.

        Raises
        ------
        DataError
            If ``root`` is a store made with something else; the message names what differs.
        """
        root = Path(root)
        path = root if (root / SPEC_FILE).exists() else root / spec.folder
        if not (path / SPEC_FILE).exists():
            with atomic_path(path / SPEC_FILE) as aside:
                write_spec(aside, spec, shard_slides)
        store = cls.open(path)
        differences = store.spec.differences(spec)
        if differences:
            raise DataError(
                "the feature store was made with something else: " + "; ".join(differences),
                where=str(path),
                fix="ask for what it was made with, or name another folder in features.store",
            )
        return store

    @classmethod
    def open(cls, path: str | Path) -> FeatureStore:
        """Open an existing store, usually to read.

        Raises
        ------
        DataError
            If there is none, or its format is not understood.
        """
        spec, shard_slides = read_spec(Path(path))
        return cls(Path(path), spec, shard_slides)

    def index(self) -> pd.DataFrame:
        """A copy of the index; columns as in ``docs/feature-store.md``.

        Returns
        -------
        The slides of the last :meth:`register` or :meth:`choose` in the order of that table; without one, all
        slides in the order of registration.
        """
        import pandas as pd

        rows = [self._index[key] for key in self._chosen.values()] if self._chosen else list(self._index)
        return pd.DataFrame(rows, columns=SCHEMA.names)

    def rows(self) -> list[Row]:
        """Copies of all rows of the index, in the order of registration."""
        return [dict(row) for row in self._index]

    def lock(self) -> None:
        """Be the one writer until :meth:`close`; whatever writes calls this first.

        Raises
        ------
        DataError
            If another process is writing.
        """
        if self._lock is None:
            self._lock = writer_lock(self.path)
            # Another run may have written between our opening and our lock.
            self._index = Index.load(self.path / INDEX_FILE)

    def register(self, slides: pd.DataFrame) -> list[str]:
        """Give slides their places, in the order of the table.

        Parameters
        ----------
        slides
            Columns ``slide`` (unique), ``path``, ``mpp`` (stated pixel size, NaN if none), ``fingerprint``
            (empty for a missing file).

        Returns
        -------
        One key per row. From now on this object means these rows by the slides' names.
        """
        self.lock()
        _no_duplicates(slides)
        keys = [
            self._index.register(str(row.slide), str(row.path), str(row.fingerprint), _optional(row.mpp))
            for row in slides.itertuples(index=False)
        ]
        self._chosen = dict(zip(slides["slide"].astype(str), keys, strict=True))
        return keys

    def choose(self, slides: pd.DataFrame) -> list[str]:
        """As :meth:`register` for reading: finds the keys of a table's slides, writes nothing.

        Raises
        ------
        DataError
            Naming the slides that the store does not know in this form.
        """
        _no_duplicates(slides)
        keys = [
            slide_key(str(row.slide), str(row.fingerprint), _optional(row.mpp))
            for row in slides.itertuples(index=False)
        ]
        unknown = [
            str(name) for name, key in zip(slides["slide"], keys, strict=True) if key not in self._index
        ]
        if unknown:
            raise DataError(
                f"{len(unknown)} slides were never extracted as they are now: {', '.join(unknown[:3])}",
                where=str(self.path),
                fix="run `equipoise extract`",
            )
        self._chosen = dict(zip(slides["slide"].astype(str), keys, strict=True))
        return keys

    def status(self, slide_or_key: str) -> Row:
        """A copy of the index row of a slide.

        Raises
        ------
        DataError
            If the store does not know the slide, or knows several of that name with features.
        """
        return dict(self._row(slide_or_key))

    def pending(self, keys: Iterable[str], retry: bool = False) -> list[str]:
        """Which of ``keys`` need work; with ``retry``, also slides that failed or were excluded."""
        again = {PENDING} if not retry else None
        return [
            key
            for key in keys
            if (self._index[key]["status"] in again if again else self._index[key]["status"] != "ok")
        ]

    def reset(self, key: str) -> None:
        """Forget what a slide gave: it is pending again."""
        self.lock()
        self._index.reset(key)

    def stage(
        self,
        key: str,
        x: NDArray[np.int32],
        y: NDArray[np.int32],
        features: NDArray[np.float16],
        meta: dict[str, Any],
    ) -> None:
        """Stage one finished slide; as :meth:`Staging.write`, which workers call."""
        self.staging.write(key, x, y, features, meta)

    def adopt(self, keys: Iterable[str]) -> list[str]:
        """Record staged slides that an interrupted run left behind; returns their keys."""
        adopted = []
        for key in keys:
            if self._index[key]["status"] != "ok" and (about := self.staging.found(key)) is not None:
                self.record([{"key": key, **about}])
                adopted.append(key)
        return adopted

    def record(self, rows: Iterable[Row]) -> None:
        """Enter what slides gave: ``key``, ``status`` and any other result columns of the index."""
        self.lock()
        for row in rows:
            self._index.record(row["key"], {name: value for name, value in row.items() if name != "key"})

    def remove(self, keys: Iterable[str]) -> None:
        """Take slides out of the index; their features go with the next :meth:`commit`."""
        self.lock()
        gone = set(keys)
        self._index = self._index.without(gone)
        self._chosen = {slide: key for slide, key in self._chosen.items() if key not in gone}

    def commit(self, partial: bool = False) -> None:
        """Bring shards and index on disk up to date.

        Parameters
        ----------
        partial
            Only assemble shards whose slides have all been tried; staged slides of the others stay staged and
            ``pending`` on disk. For commits while work goes on: no shard is written twice.
        """
        self.lock()
        (self.path / SHARDS).mkdir(exist_ok=True)
        rows = list(self._index)
        for number, start in enumerate(range(0, len(rows), self._shard_slides)):
            members = rows[start : start + self._shard_slides]
            if partial and any(row["status"] == PENDING for row in members):
                continue
            self._assemble(number, members)
        on_disk = [row if row["status"] != "ok" or row["shard"] else _as_pending(row) for row in rows]
        with atomic_path(self.path / INDEX_FILE) as aside:
            self._index.save(aside, on_disk)
        self._sweep(rows, partial)

    def read(self, slide_or_key: str) -> tuple[NDArray[np.float16], NDArray[np.int32]]:
        """Features and tile corners of a slide.

        Returns
        -------
        features, coords
            float16 ``[N, D]``, a read-only view of the mapped file; int32 ``[N, 2]`` level-0 ``x, y``.

        Raises
        ------
        DataError
            If the slide has no features; the message says why.
        """
        row = self._row(slide_or_key)
        if row["status"] != "ok" or not row["shard"]:
            raise DataError(
                f"no features: {row['status']}" + (f" ({row['error']})" if row["error"] else ""),
                where=f"slide {row['slide']}",
                fix="run `equipoise extract`" if row["status"] == PENDING else None,
            )
        if not (self.path / SHARDS / row["shard"]).exists():
            # Another run has added slides to this shard since the index was read.
            self._index = Index.load(self.path / INDEX_FILE)
            row = self._row(row["key"])
        batch, about = self._mapped_file(row["shard"]).batch(row["batch"])
        if about.get("key") != f'"{row["key"]}"':
            raise DataError(
                "the shard holds another slide here", where=str(self.path / SHARDS / row["shard"])
            )
        features, x, y = batch_arrays(batch)
        return features, np.stack([x, y], axis=1)

    def close(self) -> None:
        """Let other processes write to the store; also closes mapped files."""
        self._mapped.clear()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> FeatureStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        # Mappings and locks belong to a process; another one makes its own.
        return {**self.__dict__, "_mapped": {}, "_lock": None}

    def _row(self, slide_or_key: str) -> Row:
        key = self._chosen.get(slide_or_key, slide_or_key)
        if key in self._index:
            return self._index[key]
        rows = self._index.named(slide_or_key)
        rows = [row for row in rows if row["status"] == "ok"] or rows[-1:]
        if not rows:
            raise DataError(
                f"slide {slide_or_key!r} is not in the feature store",
                where=str(self.path),
                fix="run `equipoise extract`",
            )
        if len(rows) > 1:
            raise DataError(
                f"the store holds {len(rows)} versions of slide {slide_or_key!r}: file or pixel size changed",
                where=str(self.path),
                fix="say which slides table is meant with `store.choose(slides)`, or read by key",
            )
        return rows[0]

    def _assemble(self, number: int, members: list[Row]) -> None:
        """Write one shard if the slides in it changed, and point its rows to it."""
        done = [row for row in members if row["status"] == "ok"]
        name = ""
        if done:
            name = shard_name(number, (row["key"] for row in done))
            if not (self.path / SHARDS / name).exists() or any(not row["shard"] for row in done):
                with atomic_path(self.path / SHARDS / name) as aside:
                    write_batches(aside, self.spec, (self._finished_batch(row) for row in done))
                self._mapped.pop(name, None)
        for row in members:
            row["shard"], row["batch"] = "", -1
        for at, row in enumerate(done):
            row["shard"], row["batch"] = name, at

    def _finished_batch(self, row: Row) -> tuple[Any, dict[str, str]]:
        staged = self.staging.file(row["key"])
        if staged.exists():
            return MappedFile(staged).batch(0)
        if row["shard"]:
            return self._mapped_file(row["shard"]).batch(row["batch"])
        raise DataError(
            "features were reported but not staged: is the store's folder the same on all machines?",
            where=f"slide {row['slide']}",
            fix="put features.store on a file system that all workers share",
        )

    def _mapped_file(self, name: str) -> MappedFile:
        if name not in self._mapped:
            self._mapped[name] = MappedFile(self.path / SHARDS / name)
        return self._mapped[name]

    def _sweep(self, rows: list[Row], partial: bool) -> None:
        """Remove what the index no longer needs: old shards, staged slides that are in shards, marks."""
        used = {row["shard"] for row in rows}
        for file in (self.path / SHARDS).iterdir():
            if file.name not in used:
                self._mapped.pop(file.name, None)
                file.unlink()
        for row in rows:
            if row["shard"]:
                self.staging.file(row["key"]).unlink(missing_ok=True)
        if not partial:
            self.staging.clear(keep={row["key"] for row in rows if row["status"] == PENDING})


def _as_pending(row: Row) -> Row:
    pending = Index([dict(row)])
    pending.reset(row["key"])
    return pending[row["key"]]


def _optional(value: Any) -> float | None:
    number = math.nan if value is None else float(value)
    return None if math.isnan(number) else number


def _no_duplicates(slides: pd.DataFrame) -> None:
    twice = slides["slide"][slides["slide"].duplicated()].astype(str).tolist()
    if twice:
        raise DataError(f"slide names must be unique; twice: {', '.join(twice[:5])}")
