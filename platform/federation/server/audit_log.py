"""The audit log: one row for everything that left a client, accepted or rejected.

It holds names, sizes and hashes, never values, and no time of day: a federation that is interrupted and resumed
writes the same log as an uninterrupted one.
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

from equipoise.datasets.atomic_io import atomic_path
from equipoise.platform.errors import FederationError
from equipoise.platform.federation.messages import DELTA, ClientUpdate

#: What became of an update.
VERDICTS = ("accepted", "quarantined", "failed", "late", "benched")
#: What became of a whole round, or of a group of parameters in it: too few clients to reveal their sum.
ROUND_VERDICTS = ("skipped", "withheld")


class AuditLog:
    """Rows by (round, client), in memory and, where a path is given, in ``ledger.jsonl``.

    Parameters
    ----------
    path
        File; rows of an earlier part of the federation are read back.
    hashes
        Whether rows hold the SHA-256 of every vector; hashing takes longer than summing.
    """

    def __init__(self, path: Path | None = None, *, hashes: bool = True) -> None:
        self.path, self.hashes = path, hashes
        self.rows: list[dict[str, Any]] = []
        self._settled = 0
        # Hashes are computed in a thread of their own, and waited for at the end of a round.
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
            Round and client of the row.
        verdict
            One of :data:`VERDICTS`.
        update
            What left the client, if it could be parsed.
        size
            Bytes of the message.
        reason
            Why the update is not used; may hold a traceback.
        """
        if verdict not in VERDICTS:
            raise ValueError(f"{verdict!r} is not one of {', '.join(VERDICTS)}")
        row: dict[str, Any] = {"round": round_, "client": client, "verdict": verdict, "bytes": size}
        if update is not None:
            arrays = {DELTA: update.delta, **update.arrays}
            row["keys"] = sorted([*arrays, *update.metrics])
            if self.hashes:
                self._hashing = self._hashing or ThreadPoolExecutor(1, thread_name_prefix="audit-log")
                row["sha256"] = {
                    n: self._hashing.submit(digest, array) for n, array in sorted(arrays.items())
                }
        if reason is not None:
            row["reason"] = reason
        self.rows.append(row)

    def note(self, round_: int, verdict: str, reason: str) -> None:
        """Add a row about the round itself: one of :data:`ROUND_VERDICTS`, and why; its client is empty."""
        if verdict not in ROUND_VERDICTS:
            raise ValueError(f"{verdict!r} is not one of {', '.join(ROUND_VERDICTS)}")
        self.rows.append({"round": round_, "client": "", "verdict": verdict, "bytes": 0, "reason": reason})

    def close_round(self, round_: int) -> None:
        """Sort the rows of the round by client, whatever the order of arrival, and write them."""
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
        current = [row for row in self.rows if row["round"] == round_]
        with self.path.open("a", encoding="utf-8") as file:
            file.writelines(_line(row) for row in current)

    def keep_until(self, round_: int) -> None:
        """Drop the rows of later rounds, which are not part of the checkpoint from which a federation resumes."""
        self.rows = [row for row in self.rows if row["round"] <= round_]
        self._settled = len(self.rows)
        if self.path is not None:
            with atomic_path(self.path) as partial:
                partial.write_text("".join(map(_line, self.rows)), encoding="utf-8")

    def withheld(self) -> dict[str, int]:
        """Reason → rounds, of rounds that were skipped and groups whose sum was not revealed, for the report."""
        reasons = (f"{r['verdict']}: {r['reason']}" for r in self.rows if r["verdict"] in ROUND_VERDICTS)
        return dict(sorted(Counter(reasons).items()))

    def totals(self) -> dict[str, dict[str, int]]:
        """Client → bytes and number of each verdict, for the report."""
        totals: dict[str, Counter[str]] = {}
        for row in self.rows:
            if not row["client"]:
                continue
            counts = totals.setdefault(row["client"], Counter())
            counts["bytes"] += row["bytes"]
            counts[row["verdict"]] += 1
        return {client: dict(counter) for client, counter in sorted(totals.items())}


def digest(array: np.ndarray) -> str:
    """SHA-256 of the numbers as they were sent (little-endian)."""
    return hashlib.sha256(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data).hexdigest()


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


def _read(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a file. A process that was killed may have left half a line at the end, which belongs to an
    unfinished round and is left out."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            yield json.loads(line)
        except ValueError as error:
            if number == len(lines) and not line.endswith("\n"):
                return
            raise FederationError(
                f"not a row of an audit log ({error})",
                where=f"{path}, line {number}",
                fix=f"restore the file, or remove the folder {path.parent}: this federation then starts again",
            ) from None
