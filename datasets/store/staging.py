"""What workers write: one file per finished slide, one mark per slide in work.

Workers never touch the index. A finished slide is a complete file under its final staging name (written
aside, then renamed), with everything the index will say about it inside: if the driver dies before it
recorded the slide, the next run takes the file up. A mark stands while a slide is in work; a mark found at
the start of an attempt is an attempt that never came to its end.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.datasets.errors import DataError
from equipoise.datasets.store.shards import (
    DIGEST,
    MappedFile,
    as_text,
    batch_digest,
    slide_batch,
    write_batches,
)
from equipoise.datasets.store.spec import StoreSpec
from equipoise.datasets.whole_files import atomic_path

STAGING = "staging"
_MARKS = "attempts"


@dataclass(frozen=True)
class Staging:
    """The staging area of a store; small and safe to send to workers.

    Attributes
    ----------
    root
        Folder of the store, reachable from every worker.
    spec
        What the store holds.
    """

    root: Path
    spec: StoreSpec

    @property
    def folder(self) -> Path:
        """Where staged slides stand."""
        return self.root / STAGING

    def file(self, key: str) -> Path:
        """The staged file of a slide."""
        return self.folder / f"{key}.arrow"

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
        with atomic_path(self.file(key)) as aside:
            text = as_text({"key": key, DIGEST: batch_digest(batch), **about})
            write_batches(aside, self.spec, [(batch, text)])

    def found(self, key: str) -> dict[str, Any] | None:
        """Result columns of a staged slide, or ``None`` if there is none (or it belongs to another key)."""
        if not self.file(key).exists():
            return None
        try:
            _, text = MappedFile(self.file(key)).batch(0)
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
            ``plan`` or ``encode``: counted apart.

        Returns
        -------
        Number of this attempt: 1 plus the attempts that began and never ended.
        """
        attempt = self.open_attempts(key, step) + 1
        with atomic_path(self._mark(key, step)) as aside:
            aside.write_text(str(attempt))
        return attempt

    def end(self, key: str, step: str) -> None:
        """The attempt came to an end, good or bad."""
        self._mark(key, step).unlink(missing_ok=True)

    def open_attempts(self, key: str, step: str) -> int:
        """Attempts that began and never ended."""
        try:
            return int(self._mark(key, step).read_text() or 0)
        except (FileNotFoundError, ValueError):
            return 0

    def forgive_last(self) -> None:
        """Take back the open attempt of every slide: the run that it belonged to died as a whole.

        Called once when a run starts. Otherwise a slide that happened to be in work at two power cuts would
        be taken for one that kills its workers.
        """
        for mark in self._marks():
            attempts = self.open_attempts(*mark.name.rsplit(".", 1)) - 1
            if attempts > 0:
                mark.write_text(str(attempts))
            else:
                mark.unlink(missing_ok=True)

    def forgive_all_but_one(self, key: str) -> None:
        """Leave one open attempt of a slide standing: it may be tried once more."""
        for mark in self._marks():
            if mark.name.rsplit(".", 1)[0] == key:
                with atomic_path(mark) as aside:
                    aside.write_text("1")

    def clear(self, keep: set[str]) -> None:
        """Remove marks, leftovers of dead workers, staged slides but those of ``keep``, and empty folders."""
        for staged in self.folder.glob("*.arrow"):
            if staged.stem not in keep:
                staged.unlink(missing_ok=True)
        for mark in self._marks():
            mark.unlink(missing_ok=True)
        for leftover in [*self.folder.glob(".*.tmp"), *(self.folder / _MARKS).glob(".*.tmp")]:
            leftover.unlink(missing_ok=True)
        for folder in (self.folder / _MARKS, self.folder):
            with contextlib.suppress(OSError):
                folder.rmdir()

    def _mark(self, key: str, step: str) -> Path:
        return self.folder / _MARKS / f"{key}.{step}"

    def _marks(self) -> list[Path]:
        folder = self.folder / _MARKS
        return [mark for mark in folder.iterdir() if not mark.name.startswith(".")] if folder.is_dir() else []
