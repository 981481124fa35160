"""Summary of an extraction, for the job that requested it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from equipoise.datasets.slides.problems import FAILURES, STATUSES
from equipoise.datasets.store.feature_store import FeatureStore
from equipoise.datasets.store.index import Row
from equipoise.platform.extraction.params import ExtractionParams

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class ExtractionSummary:
    """Result of an extraction.

    Attributes
    ----------
    index
        One row per requested slide, in the order of the table: its columns and those of the store's index.
    counts
        Slides per status, statuses without slides left out.
    tiles
        Tiles of all ``ok`` slides.
    seconds
        Wall time of this run.
    failed, failed_share
        Slides that failed (exclusions such as ``no_tissue`` do not count), also as a share of all.
    tolerated
        Whether the share stays within ``max_fail``.
    tried, skipped
        Slides processed in this run, and slides that an earlier run had finished.
    store, address
        Folder of the feature store and the hash of its specification.
    """

    index: pd.DataFrame
    counts: dict[str, int]
    tiles: int
    seconds: float
    failed: int
    failed_share: float
    tolerated: bool
    tried: int
    skipped: int
    store: Path
    address: str

    def failures_text(self, most: int = 10) -> str:
        """One line per failed slide with its status and reason, the first ``most`` of them."""
        rows = self.index[self.index["status"].isin(FAILURES)]
        lines = [f"  {row.slide}: {row.status}: {row.error}" for row in rows.head(most).itertuples()]
        return "\n".join([*lines, f"  and {len(rows) - most} more"] if len(rows) > most else lines)

    @property
    def remarked(self) -> int:
        """Slides that are used although there is something to say: tiles left out, a stain, a damaged level."""
        return len(self._remarks())

    def remarks_text(self, most: int = 5) -> str:
        """One line per slide with a remark, the first ``most`` of them."""
        rows = self._remarks()
        lines = [f"  {row.slide}: {row.error}" for row in rows.head(most).itertuples()]
        return "\n".join([*lines, f"  and {len(rows) - most} more"] if len(rows) > most else lines)

    def _remarks(self) -> pd.DataFrame:
        return self.index[(self.index["status"] == "ok") & (self.index["error"] != "")]

    def __str__(self) -> str:
        counts = " ".join(f"{status}={n}" for status, n in self.counts.items())
        return (
            f"slides={len(self.index)} {counts} tiles={self.tiles} tried={self.tried} skipped={self.skipped} "
            f"failed_share={self.failed_share:.3f} seconds={self.seconds:.1f}"
        )


def summarise(
    slides: pd.DataFrame,
    keys: list[str],
    store: FeatureStore,
    params: ExtractionParams,
    tried: int,
    seconds: float,
) -> ExtractionSummary:
    """The summary of slides that are registered in a store under these keys."""
    return summary_of([store.status(key) for key in keys], slides, store, params, tried, seconds)


def summary_of(
    rows: list[Row],
    slides: pd.DataFrame,
    store: FeatureStore,
    params: ExtractionParams,
    tried: int,
    seconds: float,
) -> ExtractionSummary:
    """The summary of slides with these rows of the index, in the order of the table."""
    import pandas as pd

    results = pd.DataFrame(rows).drop(columns=["slide", "path"])
    index = pd.concat(
        [slides.reset_index(drop=True).rename(columns={"mpp": "table_mpp"}), results.reset_index(drop=True)],
        axis=1,
    )
    statuses = index["status"].tolist()
    counts = {status: statuses.count(status) for status in STATUSES if status in statuses}
    failed = sum(status in FAILURES for status in statuses)
    share = failed / len(statuses) if statuses else 0.0
    return ExtractionSummary(
        index=index,
        counts=counts,
        tiles=int(index.loc[index["status"] == "ok", "n"].sum()),
        seconds=seconds,
        failed=failed,
        failed_share=share,
        tolerated=share <= params.max_fail,
        tried=tried,
        skipped=len(rows) - tried,
        store=store.path,
        address=store.spec.address,
    )
