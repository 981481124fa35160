"""Lines that are kept off standard error, and all the others."""

import subprocess
import sys

PROGRAM = """\
import os, sys
from equipoise.platform.cluster.standard_error import without_lines
held = sys.stderr
with without_lines("harmless"):
    os.write(2, b"first\\na harmless line\\nsecond\\n")
    print("from Python", file=sys.stderr)
    print("from a handler that holds the stream", file=held)
    END
print("after", file=sys.stderr)
os.write(2, b"a harmless line after\\n")
"""


def stderr_of(end: str) -> tuple[int, list[str]]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("END", end)], capture_output=True, text=True, timeout=60
    )
    return done.returncode, done.stderr.splitlines()


def test_only_lines_with_the_text_are_dropped() -> None:
    code, lines = stderr_of("pass")
    assert code == 0
    assert sorted(lines[:4]) == [
        "first", "from Python", "from a handler that holds the stream", "second",
    ]  # fmt: skip
    assert lines[4:] == ["after", "a harmless line after"], "nothing is dropped, and nothing late, afterwards"


def test_the_last_words_of_a_process_that_aborts_are_shown() -> None:
    code, lines = stderr_of("os.write(2, b'fatal\\n'); os.abort()")
    assert code < 0
    assert {"first", "second", "fatal"} <= set(lines)
    assert "a harmless line" not in lines
