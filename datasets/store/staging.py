"""What workers write: one file per finished slide, one mark per slide in work.

Workers never touch the index. A finished slide is a complete file under its final staging name (written
aside, then renamed), with everything the index will say about it inside: if the driver dies before it
recorded the slide, the next run takes the file up. A mark stands while a slide is in work; a mark found at
the start of an attempt is an attempt that never came to its end.
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

from equipoise.datasets.errors import DataError
from equipoise.datasets.remote.folders import Folder
from equipoise.datasets.store.shards import (
    DIGEST,
    MappedFile,
    as_text,
    batch_digest,
    slide_batch,
    write_batches,
)
from equipoise.datasets.store.spec import PICTURES, QC_FOLDER, StoreSpec
from equipoise.datasets.whole_files import ASIDE_PREFIX, ASIDE_SUFFIX

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
        about: dict[str, Any],
    ) -> None:
        """Stage one slide: its tiles (level-0 pixels ``[N]``), features ``[N, D]`` and index columns.

        Raises
        ------
        DataError
            If the arrays do not fit the store.
        """
        batch = slide_batch(self.spec, x, y, features)
        with self.store.writing(_staged(key)) as aside:
            text = as_text({"key": key, DIGEST: batch_digest(batch), **about})
            write_batches(aside, self.spec, [(batch, text)])
        self.store.drop_copy(_staged(key))

    def found(self, key: str) -> dict[str, Any] | None:
        """Result columns of a staged slide, or ``None`` if there is none (or it belongs to another key)."""
        file = self.file(key)
        if not file.exists():
            return None
        try:
            _, text = MappedFile(file).batch(0)
        except DataError:
            return None
        about = {name: json.loads(value) for name, value in text.items()}
        for name in ("slide", DIGEST):
            about.pop(name, None)
        return about if about.pop("key", None) == key else None

    def begin(self, key: str, step: str) -> int:
        """Mark a slide as in work, before the work starts.

        Parameters
        ----------
        key
            The slide.
        step
            ``plan``, ``encode``, or ``encode-3`` for a region: counted apart.

        Returns
        -------
        Number of this attempt: 1 plus the attempts that began and never ended.
        """
        attempt = self.open_attempts(key, step) + 1
        self._mark(key, step, attempt)
        return attempt

    def end(self, key: str, step: str) -> None:
        """The attempt came to an end, good or bad."""
        self.store.remove(f"{_MARKS}/{key}.{step}")

    def deaths(self, key: str, step: str) -> int:
        """Workers that are known to have died in a step of a slide, its regions (``step-0``, …) taken together.

        The last attempt of a region does not count: it may be in work.
        """
        regions = [mark for mark in self._marks() if mark[0] == key and mark[1].startswith(f"{step}-")]
        known = sum(max(0, self.open_attempts(*mark) - 1) for mark in regions)
        return self.open_attempts(key, step) + known

    def share_pictures(self, folder: Path, key: str) -> None:
        """Send what was written below ``folder`` for a slide to a store that is not on this machine."""
        for ending in PICTURES:
            self.store.send(folder / f"{key}{ending}", f"{QC_FOLDER}/{key}{ending}")

    def pictures(self, keys: Iterable[str]) -> Path:
        """Folder with the pictures and tile plans of these slides, on this machine."""
        wanted = {f"{key}{ending}" for key in keys for ending in PICTURES}
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

    def open_attempts(self, key: str, step: str) -> int:
        """Attempts that began and never ended."""
        try:
            return int(self.store.read(f"{_MARKS}/{key}.{step}") or 0)
        except ValueError:
            return 0

    def forgive_last(self) -> None:
        """Take back the open attempt of every slide: the run that it belonged to died as a whole.

        Called once when a run starts. Otherwise a slide that happened to be in work at two power cuts would
        be taken for one that kills its workers.
        """
        for key, step in self._marks():
            attempts = self.open_attempts(key, step) - 1
            if attempts > 0:
                self._mark(key, step, attempts)
            else:
                self.end(key, step)

    def forgive_all_but_one(self, key: str) -> None:
        """Leave one open attempt of a slide standing, whatever its region: it may be tried once more."""
        for name, step in self._marks():
            if name == key:
                if "-" in step:
                    self.end(key, step)
                self._mark(key, step.partition("-")[0], 1)

    def clear(self, keep: set[str]) -> None:
        """Remove marks, leftovers of dead workers, staged slides but those of ``keep``, and empty folders."""
        for name in self.store.names(STAGING):
            if _is_aside(name) or name.split(".")[0] not in keep:  # KEY.arrow, or KEY.REGION.arrow
                self.store.remove(f"{STAGING}/{name}")
        for name in self.store.names(_MARKS):
            self.store.remove(f"{_MARKS}/{name}")
        for folder in (_MARKS, STAGING):
            with contextlib.suppress(OSError):
                (self.store.path / folder).rmdir()

    def _mark(self, key: str, step: str, attempts: int) -> None:
        with self.store.writing(f"{_MARKS}/{key}.{step}") as aside:
            aside.write_text(str(attempts))

    def _marks(self) -> list[tuple[str, str]]:
        """Key and step of every mark."""
        names = [name for name in self.store.names(_MARKS) if not _is_aside(name)]
        return [(key, step) for key, _, step in (name.rpartition(".") for name in names)]


def _staged(key: str) -> str:
    return f"{STAGING}/{key}.arrow"


def _is_aside(name: str) -> bool:
    return name.startswith(ASIDE_PREFIX) and name.endswith(ASIDE_SUFFIX)
