"""What an extraction tells Prometheus, through the metrics that Ray exports on every node.

Counters of the workers: ``equipoise_tiles``, ``equipoise_read_seconds``, ``equipoise_encode_seconds``, each by encoder;
of the driver: ``equipoise_slides``, by status. Ray exports them with its own prefix and Prometheus' ending
(``ray_equipoise_tiles_total``) a few seconds after they change.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray.util.metrics import Counter

_ENCODER, _STATUS = "encoder", "status"


class WorkCounters:
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
            "Seconds of the threads that read and decode tiles, taken together.",
            tags,
        )
        self._encoding = _counter("equipoise_encode_seconds", "Seconds spent in the encoder.", tags)

    def add(self, tiles: int, reading: float, encoding: float) -> None:
        """Count one slide or region: its tiles, and the seconds that it took."""
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


def _counter(name: str, what: str, tags: dict[str, str], more: tuple[str, ...] = ()) -> Counter:
    from ray.util.metrics import Counter

    counter = Counter(name, description=what, tag_keys=(*tags, *more))
    counter.set_default_tags(tags)
    return counter
