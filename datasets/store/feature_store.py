"""The feature store: extracted once, memory-mapped by every fold, trial and client.

A store holds the tile features of many slides for one :class:`~equipoise.datasets.store.spec.StoreSpec`.
Workers stage finished slides; the driver records what they report and commits: shards first, then the index
under its final name, then staged files are removed. Whenever it is interrupted, the index on disk describes
files that exist.

The format is documented in ``docs/feature-store.md``.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from equipoise.datasets.atomic_io import is_temporary, writer_lock
from equipoise.datasets.errors import DataError, InUseError
from equipoise.datasets.remote.folders import Folder, folder_at
from equipoise.datasets.store.index import (
    INDEX_FILE,
    PENDING,
    REBUILD,
    SCHEMA,
    Index,
    Row,
    identities,
    slide_key,
)
from equipoise.datasets.store.shards import (
    SHARDS,
    MappedFile,
    batch_arrays,
    batch_problem,
    json_metadata,
    shard_name,
    write_batches,
)
from equipoise.datasets.store.spec import SPEC_FILE, StoreSpec, read_spec, write_spec
from equipoise.datasets.store.staging import Staging
from equipoise.datasets.store.verified import is_remembered, remember

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["FeatureStore", "StoreSpec"]


class FeatureStore:
    """A store on disk or at an address; open it with :meth:`create_or_open` or :meth:`open`.

    Attributes
    ----------
    folder
        Folder of the store.
    spec
        What made its features.
    staging
        What workers need to write to it.

    Raises
    ------
    DataError
        If there are shards and no index, or it is damaged: what is in the shards would be taken for garbage.
    """

    def __init__(
        self, folder: Folder, spec: StoreSpec, shard_slides: int, index: Index | None = None
    ) -> None:
        self.folder = folder
        self.spec = spec
        self.staging = Staging(folder, spec)
        self._shard_slides = shard_slides
        self._chosen: dict[str, str] = {}
        self._mapped: dict[str, MappedFile] = {}
        self._verified: set[str] = set()
        self._lock: BinaryIO | None = None
        self._index, self._index_hash = self._read_index() if index is None else (index, self._stored_hash())

    @classmethod
    def create_or_open(cls, root: str | Path, spec: StoreSpec, shard_slides: int = 32) -> FeatureStore:
        """Open the store of a specification, creating it if need be.

        Parameters
        ----------
        root
            A folder of stores, a path or an address (``s3://…``): the one for ``spec`` is found by its address. Or
            the folder of one store: it must be the right one.
        spec
            What the features must have been made with.
        shard_slides
            Slides per shard of a new store; an existing one keeps its own.

        Raises
        ------
        DataError
            If ``root`` is a store made with something else; the message names what differs.
        """
        folder = folder_at(root)
        if not folder.has(SPEC_FILE):
            folder = folder.child(spec.folder)
        if not folder.has(SPEC_FILE):
            with folder.writing(SPEC_FILE) as temporary:
                write_spec(temporary, spec, shard_slides)
        store = cls(folder, *read_spec(folder))
        differences = store.spec.differences(spec)
        if differences:
            raise DataError(
                "the feature store was made with something else: " + "; ".join(differences),
                where=folder.address,
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
        folder = folder_at(path)
        return cls(folder, *read_spec(folder))

    @classmethod
    def exists(cls, root: str | Path, spec: StoreSpec) -> bool:
        """Whether :meth:`create_or_open` would open a store, not create one."""
        folder = folder_at(root)
        return folder.has(SPEC_FILE) or folder.child(spec.folder).has(SPEC_FILE)

    @property
    def path(self) -> Path:
        """Where its files are on this machine: the folder itself, or its mirror."""
        return self.folder.path

    def index(self) -> pd.DataFrame:
        """A copy of the index; columns as in ``docs/feature-store.md``.

        Returns
        -------
        The slides of the last :meth:`register` or :meth:`choose` in the order of that table; without one, all
        slides in the order of registration.
        """
        import pandas as pd

        rows = [{**self._index[key], "slide": name} for name, key in self._chosen.items()] or list(
            self._index
        )
        return pd.DataFrame(rows, columns=SCHEMA.names)

    def rows(self) -> list[Row]:
        """Copies of all rows of the index, in the order of registration."""
        return [dict(row) for row in self._index]

    def lock(self) -> None:
        """Become the only writer until :meth:`close`; every method that writes calls this first.

        Raises
        ------
        DataError
            If another process is writing.
        """
        if self._lock is None:
            self._lock = writer_lock(self.path)
            self._index, self._index_hash = self._read_index()  # another run may have written meanwhile

    def adopt(self, rows: Iterable[Row]) -> None:
        """Have these rows instead of those of the index on disk, which is not read; :meth:`commit` writes them."""
        if self._lock is None:
            self._lock = writer_lock(self.path)
        self._index, self._index_hash = Index(rows), self._stored_hash()

    def register(self, slides: pd.DataFrame) -> list[str]:
        """Give slides their positions, in the order of the table.

        Parameters
        ----------
        slides
            Columns ``slide`` (unique), ``path``, ``mpp`` (stated pixel size, NaN if none), ``fingerprint``
            (empty for a missing file).

        Returns
        -------
        One key per row. From now on the names of slides mean these rows. Where all are known already nothing is
        written, so that several runs over the same finished store do not block each other.
        """
        wanted = list(identities(slides))
        if not all(self._index.knows(*identity) for identity in wanted):
            self.lock()
        keys = [self._index.register(*identity) for identity in wanted]
        self._chosen = dict(zip(slides["slide"].astype(str), keys, strict=True))
        return keys

    def choose(self, slides: pd.DataFrame) -> list[str]:
        """As :meth:`register`, for reading: looks up the keys of a table's slides and writes nothing.

        Raises
        ------
        DataError
            Naming the slides that the store does not know in this form.
        """
        keys = [slide_key(slide, fingerprint, mpp) for slide, _, fingerprint, mpp in identities(slides)]
        unknown = [
            str(name) for name, key in zip(slides["slide"], keys, strict=True) if key not in self._index
        ]
        if unknown:
            raise DataError(
                f"{len(unknown)} slides were never extracted as they are now: {', '.join(unknown[:3])}",
                where=self.folder.address,
                fix="run `equipoise extract`",
            )
        self._chosen = dict(zip(slides["slide"].astype(str), keys, strict=True))
        return keys

    def choose_named(self, slides: Mapping[str, str]) -> None:
        """As :meth:`choose`, for a store that was made elsewhere: by the names that it gives its slides.

        Parameters
        ----------
        slides
            Slide in the study → slide in this store; :meth:`index` and :meth:`read` go by the former from now on.

        Raises
        ------
        DataError
            If the store does not know a slide, or knows several of that name with features.
        """
        self._chosen = {}
        self._chosen = {name: self._row(stored_name)["key"] for name, stored_name in slides.items()}

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
        retried = {PENDING} if not retry else None
        return [
            key
            for key in keys
            if (self._index[key]["status"] in retried if retried else self._index[key]["status"] != "ok")
        ]

    def reset(self, key: str) -> None:
        """Clear the result of a slide: it is pending again."""
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

    def recover_staged(self, keys: Iterable[str]) -> list[str]:
        """Record staged slides that an interrupted run left behind; returns their keys."""
        adopted = []
        for key in keys:
            if self._index[key]["status"] != "ok" and (metadata := self.staging.staged_row(key)) is not None:
                self.record([{"key": key, **metadata}])
                adopted.append(key)
        return adopted

    def record(self, rows: Iterable[Row]) -> None:
        """Enter results of slides: ``key``, ``status`` and any other result columns of the index."""
        self.lock()
        for row in rows:
            self._index.record(row["key"], {name: value for name, value in row.items() if name != "key"})

    def remove(self, keys: Iterable[str]) -> None:
        """Take slides out of the index; the next :meth:`commit` removes their features."""
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
        if self._lock is None:  # nothing was registered or recorded
            return
        rows, existing = list(self._index), set(self.folder.names(SHARDS))
        if not self._index_hash:
            self._save_index()  # before the first shard: shards without an index are an accident
        for number, start in enumerate(range(0, len(rows), self._shard_slides)):
            shard_rows = rows[start : start + self._shard_slides]
            if partial and any(row["status"] == PENDING for row in shard_rows):
                continue
            self._assemble(number, shard_rows, existing)
        self._save_index()
        self._remove_unneeded(rows, existing, partial)

    def read(self, slide_or_key: str) -> tuple[NDArray[np.float16], NDArray[np.int32]]:
        """Features and tile corners of a slide.

        Returns
        -------
        features, coords
            float16 ``[N, D]``, a read-only view of the mapped file; int32 ``[N, 2]`` level-0 ``x, y``.

        Raises
        ------
        DataError
            If the slide has no features, or they are not what was written; the message says why.
        """
        row = self._row(slide_or_key)
        if row["status"] != "ok" or not row["shard"]:
            raise DataError(
                f"no features: {row['status']}" + (f" ({row['error']})" if row["error"] else ""),
                where=f"slide {row['slide']}",
                fix="run `equipoise extract`" if row["status"] == PENDING else None,
            )
        if not self.folder.fetch(f"{SHARDS}/{row['shard']}").exists():
            # Another run has added slides to this shard since the index was read.
            self._index, self._index_hash = self._read_index()
            row = self._row(row["key"])
        batch, metadata = self._mapped_file(row["shard"]).batch(row["batch"])
        if metadata.get("key") != f'"{row["key"]}"':
            raise DataError(
                "the shard holds another slide here", where=f"{self.folder.address}/{SHARDS}/{row['shard']}"
            )
        self._verify_once(row["shard"])
        features, x, y = batch_arrays(batch)
        return features, np.stack([x, y], axis=1)

    def mpp(self, slide_or_key: str) -> float:
        """um per level-0 px of a slide; NaN if nobody has said."""
        return float(self._row(slide_or_key)["mpp"])

    @property
    def extent(self) -> float:
        """Side of a tile in um."""
        return self.spec.mpp * self.spec.tile_px

    def close(self) -> None:
        """Let other processes write to the store; also closes mapped files."""
        self._mapped.clear()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __repr__(self) -> str:
        spec, statuses = self.spec, Counter(row["status"] for row in self._index)
        counts = ", ".join(f"{count} {status}" for status, count in statuses.most_common()) or "empty"
        tiles = f"{spec.mpp:g} um/px, {spec.tile_px} px, {spec.dim} features"
        return f"<FeatureStore {spec.encoder} ({tiles}): slides {counts}; {self.folder.address}>"

    def __enter__(self) -> FeatureStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        # Mappings and locks belong to a process; another one makes its own.
        return {**self.__dict__, "_mapped": {}, "_verified": set(), "_lock": None}

    def _row(self, slide_or_key: str) -> Row:
        key = self._chosen.get(slide_or_key, slide_or_key)
        if key in self._index:
            return self._index[key]
        rows = self._index.named(slide_or_key)
        rows = [row for row in rows if row["status"] == "ok"] or rows[-1:]
        if not rows:
            raise DataError(
                f"slide {slide_or_key!r} is not in the feature store",
                where=self.folder.address,
                fix="run `equipoise extract`",
            )
        if len(rows) > 1:
            raise DataError(
                f"the store holds {len(rows)} versions of slide {slide_or_key!r}: file or pixel size changed",
                where=self.folder.address,
                fix="say which slides table is meant with `store.choose(slides)`, or read by key",
            )
        return rows[0]

    def _assemble(self, number: int, shard_rows: list[Row], existing: set[str]) -> None:
        """Write one shard if the slides in it changed, and point its rows to it."""
        done = [row for row in shard_rows if row["status"] == "ok"]
        name = ""
        if done:
            name = shard_name(number, (row["key"] for row in done))
            if name not in existing or any(not row["shard"] for row in done):
                with self.folder.writing(f"{SHARDS}/{name}") as temporary:
                    write_batches(temporary, self.spec, (self._finished_batch(row) for row in done))
                self._mapped.pop(name, None)
                self._verified.discard(name)
        for row in shard_rows:
            row["shard"], row["batch"] = "", -1
        for at, row in enumerate(done):
            row["shard"], row["batch"] = name, at

    def _finished_batch(self, row: Row) -> tuple[Any, dict[str, str]]:
        staged = self.staging.file(row["key"])
        if staged.exists():
            return _described(row, *MappedFile(staged).batch(0))
        if row["shard"]:
            return _described(row, *self._mapped_file(row["shard"]).batch(row["batch"]))
        raise DataError(
            "features were reported but not staged: is the store's folder the same on all machines?",
            where=f"slide {row['slide']}",
            fix="put features.store on a file system that all workers share",
        )

    def _read_index(self) -> tuple[Index, str]:
        content = self.folder.read(INDEX_FILE)
        shards = 0
        if content is None:
            shards = sum(not is_temporary(name) for name in self.folder.names(SHARDS))
        if shards:
            raise DataError(
                f"the index is gone, but {shards} shards are there",
                where=f"{self.folder.address}/{INDEX_FILE}",
                fix=REBUILD,
            )
        return Index.parse(content, f"{self.folder.address}/{INDEX_FILE}"), _digest(content)

    def _stored_hash(self) -> str:
        return _digest(self.folder.read(INDEX_FILE))

    def _save_index(self) -> None:
        """Write the index, unless somebody else has: a lock holds on one machine only where the folder is remote."""
        before = self.folder.read(INDEX_FILE)
        content = self._index.content(self._index.committed_rows())
        if _digest(before) != self._index_hash or not self.folder.replace(INDEX_FILE, content, before):
            raise InUseError(
                "another run has written to this feature store",
                where=self.folder.address,
                fix="let one run at a time write to it; run again: staged slides are recovered",
            )
        self._index_hash = _digest(content)

    def _mapped_file(self, name: str) -> MappedFile:
        if name not in self._mapped:
            self._mapped[name] = MappedFile(self.folder.fetch(f"{SHARDS}/{name}"))
        return self._mapped[name]

    def _verify_once(self, name: str) -> None:
        """Compare all features of a shard with the digests they were written with, the first time this machine maps it.

        Raises
        ------
        DataError
            Naming the slides whose features are damaged.
        """
        if name in self._verified:
            return
        mapped = self._mapped_file(name)
        if not is_remembered(mapped.path):
            bad = []
            for at in range(len(mapped)):
                batch, metadata = mapped.batch(at)
                if problem := batch_problem(batch, metadata, self.spec):
                    bad.append(f"slide {metadata.get('slide', at)} {problem}")
            if bad:
                raise DataError(
                    "; ".join(bad[:5]),
                    where=f"{self.folder.address}/{SHARDS}/{name}",
                    fix="restore the file from a copy, or run `equipoise store rebuild`, then `equipoise extract`: it "
                    "makes what is damaged again",
                )
            remember(mapped.path)
        self._verified.add(name)

    def _remove_unneeded(self, rows: list[Row], existing: set[str], partial: bool) -> None:
        """Remove files that the index no longer needs: old shards, staged slides that are in shards, marks."""
        used = {row["shard"] for row in rows}
        for name in existing - used:
            self._mapped.pop(name, None)
            self.folder.remove(f"{SHARDS}/{name}")
        staged = self.staging.keys()
        for row in rows:
            if row["shard"] and row["key"] in staged:
                self.staging.discard(row["key"])
        if not partial:
            self.folder.remove_leftovers()
            self.staging.clear(keep={row["key"] for row in rows if row["status"] == PENDING})


def _described(row: Row, batch: Any, metadata: dict[str, str]) -> tuple[Any, dict[str, str]]:
    """A batch with everything in its metadata that the index says about the slide, but for where its file was."""
    stated = row["mpp_override"]
    identity = {
        "slide": row["slide"],
        "fingerprint": row["fingerprint"],
        "mpp_override": stated if stated == stated else None,
    }
    return batch, dict(sorted((metadata | json_metadata(identity)).items()))


def _digest(content: bytes | None) -> str:
    return "" if content is None else hashlib.sha256(content).hexdigest()
