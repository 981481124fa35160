"""Keeps known harmless lines of native libraries off standard error.

Ray's C++ core writes to file descriptor 2, past Python's ``sys.stderr`` and its loggers, so that no logging setting
reaches it.
"""

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

#: Copies standard input to standard output line by line, without the lines that hold the text.
_COPY = (
    "import sys\n"
    "text = sys.argv[1].encode()\n"
    "for line in sys.stdin.buffer:\n"
    "    if text not in line:\n"
    "        sys.stdout.buffer.write(line)\n"
    "        sys.stdout.buffer.flush()\n"
)


@contextlib.contextmanager
def without_lines(text: str) -> Iterator[None]:
    """Drop the lines of standard error that hold a text, while the block runs.

    Everything else passes. The filter is a process of its own: what a native library writes just before it aborts this
    process is still shown. Python's own ``sys.stderr`` goes past the filter, so that a terminal stays one.

    Parameters
    ----------
    text
        What the lines to drop have in common.
    """
    sys.stderr.flush()
    try:
        original = os.dup(2)
    except OSError:  # a process without standard error has nothing to filter
        yield
        return
    command = [sys.executable, "-I", "-S", "-c", _COPY, text]
    copier = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=original, start_new_session=True)
    assert copier.stdin is not None
    os.dup2(copier.stdin.fileno(), 2)
    copier.stdin.close()
    before = sys.stderr
    direct = os.fdopen(os.dup(original), "w", buffering=1) if _descriptor(before) == 2 else before
    sys.stderr = direct
    try:
        yield
    finally:
        if sys.stderr is direct:
            sys.stderr = before
        if direct is not before:
            direct.close()
        before.flush()
        os.dup2(original, 2)
        os.close(original)
        copier.wait()


def _descriptor(stream: object) -> int | None:
    """File descriptor of a stream; None for one that has none, such as that of a notebook."""
    try:
        return int(stream.fileno())  # type: ignore[attr-defined]
    except (AttributeError, OSError, ValueError):
        return None
