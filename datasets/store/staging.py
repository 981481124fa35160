"""What workers write: one file per finished slide, one mark per slide in progress.

Workers never touch the index. A finished slide is a complete file under its final staging name (written to a
temporary name, then renamed) that also holds everything the index will say about it: if the driver dies before
it has recorded the slide, the next run recovers the file. A mark exists while a slide is in progress; a mark
that is there at the start of an attempt belongs to an attempt that never finished.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.datasets.atomic_io import is_temporary
from equipoise.datasets.errors import DataError
from equipoise.datasets.remote.folders import Folder
from equipoise.datasets.store.shards import (
    DIGEST,
    MappedFile,
    batch_digest,
    json_metadata,
    slide_batch,
    write_batches,
)
from equipoise.datasets.store.spec import QC_FOLDER, QC_SUFFIXES, StoreSpec

STAGING = "staging"
_MARKS = f"{STAGING}/attempts"


@dataclass(frozen=True)
class Staging:
    """The staging area of a store; small and safe to send to workers.

    Attributes
    ----------
    store
        Folder of the store, reachable from every worker.
    spec
        What the store holds.
    """

    store: Folder
    spec: StoreSpec

    def file(self, key: str) -> Path:
        """The staged file of a slide, on this machine."""
        return self.store.fetch(_staged(key))

    def write(
        self,
        key: str,
        x: NDArray[np.int32],
        y: NDArray[np.int32],
        features: NDArray[np.float16],
        metadata: dict[str, Any],
    ) -> None:
        """Stage one slide: its tiles (level-0 pixels ``[N]``), features ``[N, D]`` and index columns.

        Raises
        ------
        DataError
            If the arrays do not fit the store.
        """
        batch = slide_batch(self.spec, x, y, features)
        with self.store.writing(_staged(key)) as temporary:
            text = json_metadata({"key": key, DIGEST: batch_digest(batch), **metadata})
            write_batches(temporary, self.spec, [(batch, text)])
        self.store.drop_copy(_staged(key))

    def staged_row(self, key: str) -> dict[str, Any] | None:
        """Result columns of a staged slide, or ``None`` if there is none (or it belongs to another key)."""
        file = self.file(key)
        if not file.exists():
            return None
        try:
            _, text = MappedFile(file).batch(0)
        except DataError:
            return None
        metadata = {name: json.loads(value) for name, value in text.items()}
        for name in ("slide", DIGEST):
            metadata.pop(name, None)
        return metadata if metadata.pop("key", None) == key else None

    def begin(self, key: str, step: str) -> int:
        """Mark a slide as in progress, before the work starts.

        Parameters
        ----------
        key
            The slide.
        step
            ``plan``, ``encode``, or ``encode-3`` for a chunk, which is counted separately.

        Returns
        -------
        Number of this attempt: 1 plus the attempts that started and never finished.
        """
        attempt = self.unfinished_attempts(key, step) + 1
        self._mark(key, step, attempt)
        return attempt

    def end(self, key: str, step: str) -> None:
        """Remove the mark: the attempt has finished, successfully or not."""
        self.store.remove(f"{_MARKS}/{key}.{step}")

    def worker_deaths(self, key: str, step: str) -> int:
        """Number of workers known to have died in a step of a slide, summed over its chunks (``step-0``, …).

        The last attempt of a chunk does not count: it may be in progress.
        """
        chunks = [mark for mark in self._marks() if mark[0] == key and mark[1].startswith(f"{step}-")]
        known = sum(max(0, self.unfinished_attempts(*mark) - 1) for mark in chunks)
        return self.unfinished_attempts(key, step) + known

    def upload_qc_files(self, folder: Path, key: str) -> None:
        """Upload the QC files of a slide below ``folder`` to a store that is not on this machine."""
        for ending in QC_SUFFIXES:
            self.store.send(folder / f"{key}{ending}", f"{QC_FOLDER}/{key}{ending}")

    def local_qc_files(self, keys: Iterable[str]) -> Path:
        """Folder with the thumbnails and tile plans of these slides, on this machine."""
        wanted = {f"{key}{ending}" for key in keys for ending in QC_SUFFIXES}
        for name in wanted.intersection(self.store.names(QC_FOLDER)):
            self.store.fetch(f"{QC_FOLDER}/{name}")
        return self.store.path / QC_FOLDER

    def keys(self) -> set[str]:
        """Keys of all staged files."""
        names = self.store.names(STAGING)
        return {name.removesuffix(".arrow") for name in names if name.endswith(".arrow")}

    def discard(self, key: str) -> None:
        """Remove a staged file that is no longer needed."""
        self.store.remove(_staged(key))

    def unfinished_attempts(self, key: str, step: str) -> int:
        """Number of attempts that started and never finished."""
        try:
            return int(self.store.read(f"{_MARKS}/{key}.{step}") or 0)
        except ValueError:
            return 0

    def retract_unfinished_attempts(self) -> None:
        """Subtract the unfinished attempt of every slide, because the whole run that it belonged to died.

        Called once when a run starts. Otherwise a slide that was in progress at two power cuts would be taken for
        one that kills its workers.
        """
        for key, step in self._marks():
            attempts = self.unfinished_attempts(key, step) - 1
            if attempts > 0:
                self._mark(key, step, attempts)
            else:
                self.end(key, step)

    def allow_one_more_attempt(self, key: str) -> None:
        """Reset a slide and its chunks to one unfinished attempt: it may be tried once more."""
        for name, step in self._marks():
            if name == key:
                if "-" in step:
                    self.end(key, step)
                self._mark(key, step.partition("-")[0], 1)

    def clear(self, keep: set[str]) -> None:
        """Remove marks, leftovers of dead workers, staged slides other than ``keep``, and empty folders."""
        for name in self.store.names(STAGING):
            if is_temporary(name) or name.split(".")[0] not in keep:  # KEY.arrow, or KEY.CHUNK.arrow
                self.store.remove(f"{STAGING}/{name}")
        for name in self.store.names(_MARKS):
            self.store.remove(f"{_MARKS}/{name}")
        for folder in (_MARKS, STAGING):
            with contextlib.suppress(OSError):
                (self.store.path / folder).rmdir()

    def _mark(self, key: str, step: str, attempts: int) -> None:
        with self.store.writing(f"{_MARKS}/{key}.{step}") as temporary:
            temporary.write_text(str(attempts))

    def _marks(self) -> list[tuple[str, str]]:
        """Key and step of every mark."""
        names = [name for name in self.store.names(_MARKS) if not is_temporary(name)]
        return [(key, step) for key, _, step in (name.rpartition(".") for name in names)]


def _staged(key: str) -> str:
    return f"{STAGING}/{key}.arrow"
