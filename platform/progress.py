"""Progress of work whose length is known: a bar with the time left on a terminal, elsewhere a line now and then.

The logger ``equipoise`` decides: nothing is shown below its level INFO (``--quiet``, and processes that set up no
logging, such as Ray's workers); a handler of :func:`terminal_handler` shows bars; every other handler gets lines.
"""

import logging
import math
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from rich.logging import RichHandler
    from rich.progress import Progress

log = logging.getLogger("equipoise")

#: Seconds between two lines while work goes on, and after which a line is written though nothing was finished.
LINE_EVERY_S, SILENT_FOR_S = 10.0, 60.0


class ProgressBar:
    """Progress of a loop; use as a context manager and call :meth:`update` after every item.

    Parameters
    ----------
    name
        What is going on: ``train fold=0-0``.
    total
        Number of items, those included that were done before.
    unit
        What is counted, in the plural: ``epochs``.
    done
        Items that were done before; they do not count for the time left.
    clock
        Seconds, increasing.

    Examples
    --------
    >>> with ProgressBar("train fold=0-0", total=2, unit="epochs") as bar:
    ...     bar.update(text="val/mean=0.69")
    ...     bar.update(text="val/mean=0.71")
    """

    def __init__(
        self,
        name: str,
        total: int,
        unit: str,
        *,
        done: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.done, self.text = done, ""
        self._first, self._clock = done, clock
        self._shown = log.isEnabledFor(logging.INFO)
        self._bars = _bars() if self._shown else None
        self._ended = threading.Event()

    def __enter__(self) -> Self:
        self._started = self._said = self._clock()
        self._last = self.done
        if self._bars is not None:
            self._task = self._bars.add_task(
                self.name, total=self.total, completed=self.done, unit=self.unit, text=""
            )
            self._bars.start()
        elif self._shown:
            threading.Thread(target=self._say_if_silent, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._bars is not None:
            self._bars.remove_task(self._task)
            if not self._bars.tasks:
                self._bars.stop()
            if error is None and self.done > self._first:
                log.info("%s", self)
        elif self._shown and self.done != self._last and error is None:
            self._say()

    def __getstate__(self) -> dict[str, Any]:
        """The state of a copy in another process, which shows nothing."""
        return {**vars(self), "_shown": False, "_bars": None, "_ended": None}

    def update(self, done: int | None = None, text: str = "") -> None:
        """Count items.

        Parameters
        ----------
        done
            Items that are done so far; by default one more than before. If the first call names more than one, work
            goes on where an earlier run stopped.
        text
            Figures to show beside them.
        """
        if done is not None and self.done == self._first:  # an earlier run did the others
            self._first = max(done - 1, self._first)
        self.done, self.text = self.done + 1 if done is None else done, text
        if self._bars is not None:
            self._bars.update(self._task, completed=self.done, text=text)
        elif self._shown and (self._clock() - self._said >= LINE_EVERY_S or self.done >= self.total):
            self._say()

    @property
    def left_s(self) -> float:
        """Estimate of the seconds left, from the mean so far; NaN before the first item."""
        tried = self.done - self._first
        if tried <= 0:
            return math.nan
        return (self._clock() - self._started) / tried * max(self.total - self.done, 0)

    def __str__(self) -> str:
        left = (
            f"seconds={self._clock() - self._started:.1f}"
            if self.done >= self.total or self._ended.is_set()
            else f"left={format_duration(self.left_s)}"
        )
        return f"{self.name} {self.unit}={self.done}/{self.total} {left} {self.text}".rstrip()

    def _say(self) -> None:
        self._said, self._last = self._clock(), self.done
        log.info("%s", self)

    def _say_if_silent(self) -> None:
        while not self._ended.wait(SILENT_FOR_S / 4):
            if self._clock() - self._said >= SILENT_FOR_S:
                self._say()


def terminal_handler() -> "RichHandler":
    """A handler for the logger ``equipoise`` that writes to a terminal, with bars below the lines."""
    from rich.console import Console
    from rich.logging import RichHandler

    return RichHandler(console=Console(stderr=True), show_path=False, show_level=False)


def format_duration(seconds: float) -> str:
    """``h:mm:ss``, or ``?`` for NaN."""
    if math.isnan(seconds):
        return "?"
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"


def _bars() -> "Progress | None":
    """The bars of the terminal's handler, made when they are first needed; None without such a handler."""
    for handler in log.handlers:
        console = getattr(handler, "console", None)
        if console is not None:
            bars: Progress | None = getattr(handler, "bars", None)
            if bars is None:
                from rich import progress

                bars = progress.Progress(
                    progress.TextColumn("{task.description}"),
                    progress.BarColumn(bar_width=24),
                    progress.TextColumn("{task.completed:.0f}/{task.total:.0f} {task.fields[unit]}"),
                    progress.TimeRemainingColumn(),
                    progress.TextColumn("{task.fields[text]}"),
                    console=console,
                    transient=True,
                )
                handler.bars = bars  # type: ignore[attr-defined]
            return bars
    return None
