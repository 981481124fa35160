"""Monitoring of an extraction: counters for Prometheus, and progress for screens and logs.

Counters of the workers: ``equipoise_tiles``, ``equipoise_read_seconds``, ``equipoise_encode_seconds``, each by encoder;
counter of the driver: ``equipoise_slides``, by status. Ray exports them on every node, with its own prefix and the
ending of Prometheus (``ray_equipoise_tiles_total``), a few seconds after they change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray.util.metrics import Counter

_ENCODER, _STATUS = "encoder", "status"


class WorkerCounters:
    """Counters of a worker.

    Parameters
    ----------
    encoder
        Name of the encoder.
    """

    def __init__(self, encoder: str) -> None:
        tags = {_ENCODER: encoder}
        self._tiles = _counter("equipoise_tiles", "Tiles encoded.", tags)
        self._reading = _counter(
            "equipoise_read_seconds",
            "Seconds of all threads that read and decode tiles.",
            tags,
        )
        self._encoding = _counter("equipoise_encode_seconds", "Seconds spent in the encoder.", tags)

    def add(self, tiles: int, reading: float, encoding: float) -> None:
        """Count one slide or chunk: its tiles, and the seconds that it took."""
        for counter, value in ((self._tiles, tiles), (self._reading, reading), (self._encoding, encoding)):
            if value > 0:  # Ray's counters refuse zero
                counter.inc(value)


class SlideCounter:
    """Slides that ended, by status."""

    def __init__(self, encoder: str) -> None:
        self._slides = _counter("equipoise_slides", "Slides that ended.", {_ENCODER: encoder}, (_STATUS,))

    def add(self, status: str) -> None:
        """Count one slide."""
        self._slides.inc(1, {_STATUS: status})


def _counter(name: str, description: str, tags: dict[str, str], more: tuple[str, ...] = ()) -> Counter:
    from ray.util.metrics import Counter

    counter = Counter(name, description=description, tag_keys=(*tags, *more))
    counter.set_default_tags(tags)
    return counter


@dataclass(frozen=True)
class ExtractionProgress:
    """State of an extraction at one moment.

    Attributes
    ----------
    done, total
        Slides tried in this run so far, and slides to try in total.
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
        """Estimate of the seconds left, from the mean so far; too high, because large slides come first."""
        return self.seconds / self.done * (self.total - self.done) if self.done else float("nan")

    def __str__(self) -> str:
        return (
            f"failed={self.failed} tiles={self.tiles} tiles_per_s={self.tiles_per_s:.0f} "
            f"last={self.slide} status={self.status}"
        )
