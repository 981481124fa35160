"""Progress: lines with the time left, seldom; bars on a terminal; silence when it was asked for."""

import io
import logging
import time
from collections.abc import Iterator
from copy import deepcopy

import pytest
from rich.console import Console
from rich.logging import RichHandler

from equipoise.platform import progress
from equipoise.platform.progress import ProgressBar, format_duration, terminal_handler


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """The logger of the product, put back afterwards."""
    found = logging.getLogger("equipoise")
    before = found.handlers, found.level, found.propagate
    yield found
    found.handlers, found.level, found.propagate = before


@pytest.fixture
def lines(logger: logging.Logger) -> io.StringIO:
    """What a log that is no terminal gets."""
    text = io.StringIO()
    logger.handlers, logger.propagate = [logging.StreamHandler(text)], False
    logger.setLevel(logging.INFO)
    return text


def test_a_line_every_ten_seconds_and_the_last_one(lines: io.StringIO) -> None:
    clock = Clock()
    with ProgressBar("search", total=40, unit="trials", done=8, clock=clock) as bar:
        for _ in range(32):
            clock.now += 4.0
            bar.update(text="status=ok")
    said = lines.getvalue().splitlines()
    assert said[0] == "search trials=11/40 left=0:01:56 status=ok"  # 3 of 32 in 12 s: 29 are left, 4 s each
    assert said[-1] == "search trials=40/40 seconds=128.0 status=ok"
    assert len(said) == 11  # every third trial, and the end


def test_work_that_ends_early_says_where(lines: io.StringIO) -> None:
    clock = Clock()
    with ProgressBar("train fold=0-0", total=40, unit="epochs", clock=clock) as bar:
        bar.update(1)
        bar.update(2, "monitor=0.5")
    assert lines.getvalue() == "train fold=0-0 epochs=2/40 seconds=0.0 monitor=0.5\n"


def test_silence_is_broken_while_the_first_item_takes_long(
    lines: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(progress, "SILENT_FOR_S", 0.01)
    deadline = time.monotonic() + 30
    with ProgressBar("train", total=5, unit="folds", clock=clock):
        clock.now += 1.0
        while "train folds=0/5 left=?" not in lines.getvalue():
            assert time.monotonic() < deadline


def test_an_error_is_not_followed_by_progress(lines: io.StringIO) -> None:
    with (
        pytest.raises(ValueError, match="no"),
        ProgressBar("train", total=5, unit="folds", clock=Clock()) as bar,
    ):
        bar.update()
        raise ValueError("no")
    assert lines.getvalue() == ""


def test_quiet_shows_nothing(lines: io.StringIO, logger: logging.Logger) -> None:
    logger.setLevel(logging.WARNING)
    with ProgressBar("train", total=1, unit="folds") as bar:
        bar.update()
    assert lines.getvalue() == ""


def test_a_copy_in_another_process_shows_nothing(lines: io.StringIO) -> None:
    copy = deepcopy(ProgressBar("search", total=1, unit="trials"))
    copy.update()
    assert (copy.done, lines.getvalue()) == (1, "")


def test_bars_inside_bars_on_a_terminal(logger: logging.Logger) -> None:
    text = io.StringIO()
    console = Console(file=text, force_terminal=True, color_system=None, width=100)
    logger.handlers, logger.propagate = [RichHandler(console=console, show_path=False)], False
    logger.setLevel(logging.INFO)
    with ProgressBar("train", total=2, unit="folds") as outer:
        with ProgressBar("fold 0-0", total=3, unit="epochs") as inner:
            inner.update(text="monitor=0.7")
            console.print("a line between")
        outer.update()
        shown = text.getvalue()
    assert all(part in shown for part in ("0/2 folds", "0/3 epochs", "a line between", "epochs=1/3"))
    assert text.getvalue().count("\x1b[?25l") == text.getvalue().count("\x1b[?25h"), "the cursor is back"


def test_the_handler_of_a_terminal_writes_to_standard_error() -> None:
    assert terminal_handler().console.stderr


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00:00"), (3725, "1:02:05"), (float("nan"), "?")])
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
