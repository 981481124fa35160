"""How far an extraction is, for screens and logs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """A moment of an extraction.

    Attributes
    ----------
    done, total
        Slides of this run that were tried, and that there are to try.
    tiles
        Tiles encoded in this run.
    failed
        Slides of this run that failed (exclusions do not count).
    seconds
        Since the run began.
    slide, status
        The slide that ended last.
    """

    done: int
    total: int
    tiles: int
    failed: int
    seconds: float
    slide: str
    status: str

    @property
    def tiles_per_s(self) -> float:
        """Mean speed of the run so far."""
        return self.tiles / self.seconds if self.seconds > 0 else 0.0

    @property
    def left_s(self) -> float:
        """Seconds left if the other slides are like the ones before; large ones come first: rather less."""
        return self.seconds / self.done * (self.total - self.done) if self.done else float("nan")

    def __str__(self) -> str:
        return (
            f"slides={self.done}/{self.total} failed={self.failed} tiles={self.tiles} "
            f"tiles_per_s={self.tiles_per_s:.0f} left={clock(self.left_s)} "
            f"last={self.slide} status={self.status}"
        )


def clock(seconds: float) -> str:
    """``h:mm:ss``, or ``?`` for NaN."""
    if seconds != seconds:
        return "?"
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
