"""How a job ends: an exit code, ``status.json``, and a last line ``EQUIPOISE-RESULT {json}``.

``ray job submit`` reports only success or failure; the last line of the log has the details.
"""

import json
import logging
import sys
import traceback
import warnings
from collections.abc import Callable
from enum import StrEnum
from typing import Any, NoReturn

log = logging.getLogger("equipoise")


class LogFormat(StrEnum):
    """How progress is written."""

    auto = "auto"
    rich = "rich"
    plain = "plain"
    json = "json"


def run_and_exit(
    name: str, job: Callable[[], dict[str, Any] | None], log_format: LogFormat, verbose: bool
) -> NoReturn:
    """Run a job, print its result line and exit with its exit code.

    Parameters
    ----------
    name
        Name of the job.
    job
        Returns fields of the result line (``out``, ``report``, …); ``status.json`` is written to ``run_folder``.
    log_format, verbose
        How to write progress; ``verbose`` adds tracebacks.
    """
    from equipoise.datasets.errors import EquipoiseError

    set_up_logging(log_format, verbose)
    result: dict[str, Any] = {}
    try:
        result = job() or {}
        status, code = "ok", 0
    except EquipoiseError as error:
        status, code = "failed", error.exit_code
        result = {"error": str(error), **getattr(error, "result", {})}
        sys.stderr.write(f"error: {error}\n")
        if verbose:
            traceback.print_exc()
    except (KeyboardInterrupt, SystemExit) as end:  # Ray turns SIGTERM into SystemExit
        status, code = "interrupted", 1
        result = dict(getattr(end, "result", {}))
        sys.stderr.write("interrupted; run the same command again to resume\n")
    except BrokenPipeError:  # `equipoise ls | head`
        sys.stderr.close()
        sys.exit(0)
    except Exception as error:
        status, code = "failed", 1
        result = {"error": f"{type(error).__name__}: {error}", **getattr(error, "result", {})}
        traceback.print_exc()
        sys.stderr.write(
            f"error: {type(error).__name__}: {error}\n  this is a defect of Equipoise: please report it\n"
        )
    _print_result(name, status, code, result)
    sys.exit(code)


def _print_result(name: str, status: str, code: int, result: dict[str, Any]) -> None:
    folder = result.pop("run_folder", None)
    outcome = {"job": name, "status": status, "code": code, **result}
    if folder is not None and folder.root.exists():
        folder.finish(outcome)
    sys.stderr.flush()
    print("EQUIPOISE-RESULT " + json.dumps(outcome, default=str), flush=True)


class _KeyValue(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        time = self.formatTime(record, "%H:%M:%S")
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        text = f"{time} {level}{record.getMessage()}"
        return text + ("\n" + self.formatException(record.exc_info) if record.exc_info else "")


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(
            {"at": self.formatTime(record), "level": record.levelname, "message": record.getMessage()},
            default=str,
        )


def set_up_logging(log_format: LogFormat, verbose: bool) -> None:
    """One handler on the ``equipoise`` logger: rich on a terminal, plain lines otherwise, JSON when asked."""
    chosen = log_format
    if chosen is LogFormat.auto:
        chosen = LogFormat.rich if sys.stderr.isatty() else LogFormat.plain
    if chosen is LogFormat.rich:
        from rich.console import Console
        from rich.logging import RichHandler

        handler: logging.Handler = RichHandler(
            console=Console(stderr=True), show_path=False, show_level=False
        )
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(_Json() if chosen is LogFormat.json else _KeyValue())
    for name, level in (
        ("equipoise", logging.DEBUG if verbose else logging.INFO),
        ("py.warnings", logging.WARNING),
    ):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(level)
        logger.propagate = False
    logging.captureWarnings(True)
    warnings.formatwarning = lambda message, category, *_: str(message)
    from equipoise.datasets.errors import DataWarning

    warnings.simplefilter("ignore")  # warnings of libraries are for developers
    warnings.simplefilter("always", DataWarning)
