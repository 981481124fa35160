"""The ledger: one row for everything that left a client, and for everything that was turned away.

It holds names, sizes and hashes, never values, and no time of day: a federation that is interrupted and resumed
writes the ledger it would have written without.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from equipoise.datasets.whole_files import atomic_path
from equipoise.platform.errors import FederationError
from equipoise.platform.federation.update import DELTA, ClientUpdate

#: What became of an update.
VERDICTS = ("accepted", "quarantined", "failed", "late", "benched")


class Ledger:
    """Rows by (round, client), in memory and, where a path is given, in ``ledger.jsonl``.

    Parameters
    ----------
    path
        File; rows of an earlier part of the federation are read back.
    hashes
        Whether rows hold the SHA-256 of what left; it takes longer than to sum it.
    """

    def __init__(self, path: Path | None = None, *, hashes: bool = True) -> None:
        self.path, self.hashes = path, hashes
        self.rows: list[dict[str, Any]] = []
        self._settled = 0
        # Hashes are made beside everything else, and waited for at the end of a round.
        self._hashing: ThreadPoolExecutor | None = None
        if path is not None and path.exists():
            self.rows = list(_read(path))
            self._settled = len(self.rows)

    def record(
        self,
        round_: int,
        client: str,
        verdict: str,
        *,
        update: ClientUpdate | None = None,
        size: int = 0,
        reason: str | None = None,
    ) -> None:
        """Add a row.

        Parameters
        ----------
        round_, client
            Whose it is.
        verdict
            One of :data:`VERDICTS`.
        update
            What left the client, where it could be read.
        size
            Bytes that crossed the border.
        reason
            Why it is not used; may hold a traceback.
        """
        if verdict not in VERDICTS:
            raise ValueError(f"{verdict!r} is not one of {', '.join(VERDICTS)}")
        row: dict[str, Any] = {"round": round_, "client": client, "verdict": verdict, "bytes": size}
        if update is not None:
            arrays = {DELTA: update.delta, **update.arrays}
            row["keys"] = sorted([*arrays, *update.metrics])
            if self.hashes:
                self._hashing = self._hashing or ThreadPoolExecutor(1, thread_name_prefix="ledger")
                row["sha256"] = {
                    n: self._hashing.submit(digest, array) for n, array in sorted(arrays.items())
                }
        if reason is not None:
            row["reason"] = reason
        self.rows.append(row)

    def close_round(self, round_: int) -> None:
        """Bring the rows of the round into the order of clients, in which they did not arrive, and write them."""
        for row in self.rows[self._settled :]:
            if "sha256" in row:
                row["sha256"] = {name: future.result() for name, future in row["sha256"].items()}
        self._settled = len(self.rows)
        if self._hashing is not None:
            self._hashing.shutdown()
            self._hashing = None
        self.rows.sort(key=lambda row: (row["round"], row["client"]))
        if self.path is None:
            return
        mine = [row for row in self.rows if row["round"] == round_]
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(_line(row) for row in mine)

    def keep_until(self, round_: int) -> None:
        """Forget rows of later rounds: they were not part of the checkpoint from which a federation resumes."""
        self.rows = [row for row in self.rows if row["round"] <= round_]
        self._settled = len(self.rows)
        if self.path is not None:
            with atomic_path(self.path) as partial:
                partial.write_text("".join(map(_line, self.rows)), encoding="utf-8")

    def totals(self) -> dict[str, dict[str, int]]:
        """Client → bytes and number of each verdict, for the report."""
        found: dict[str, Counter[str]] = {}
        for row in self.rows:
            own = found.setdefault(row["client"], Counter())
            own["bytes"] += row["bytes"]
            own[row["verdict"]] += 1
        return {client: dict(counter) for client, counter in sorted(found.items())}


def digest(array: np.ndarray) -> str:
    """SHA-256 of the numbers as they crossed the border (little-endian)."""
    return hashlib.sha256(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data).hexdigest()


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


def _read(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a file. The last line of a process that was killed may be half a line: it belongs to a round that
    was not finished, and is left out."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            yield json.loads(line)
        except ValueError as error:
            if number == len(lines) and not line.endswith("\n"):
                return
            raise FederationError(
                f"not a row of a ledger ({error})", where=f"{path}, line {number}", fix="restore the file"
            ) from None
