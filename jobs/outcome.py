"""How a job ends: an exit code, ``status.json``, and ``EQUIPOISE-RESULT {json}`` as last line of standard error.

``ray job submit`` reports only success or failure; the last line of its log, which holds both streams, has the details.
Standard output is the answer of a job and nothing else.
"""

import contextlib
import errno
import json
import logging
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, NoReturn

from equipoise.datasets.errors import EquipoiseError
from equipoise.datasets.redaction import masked

if TYPE_CHECKING:
    from equipoise.platform.run.folder import RunFolder
    from equipoise.platform.study.schema import Study

log = logging.getLogger("equipoise")


class LogFormat(StrEnum):
    """How progress is written."""

    auto = "auto"
    rich = "rich"
    plain = "plain"
    json = "json"


@dataclass(frozen=True)
class JobResult:
    """What a job hands back, whether it succeeds or not.

    Parameters
    ----------
    fields
        Fields of the result line (``out``, ``report``, …).
    folder
        The run folder, whose ``status.json`` gets the outcome; None for jobs without one.
    """

    fields: Mapping[str, Any] = field(default_factory=dict)
    folder: "RunFolder | None" = None


class JobError(Exception):
    """A job ended with this error after it had opened a run folder; carries what is known of its result."""

    def __init__(self, error: BaseException, result: JobResult) -> None:
        super().__init__(str(error))
        self.error = error
        self.result = result


def run_in_folder(study: "Study", folder: "RunFolder", steps: Sequence[str], **settings: Any) -> JobResult:
    """Run steps of a study; parameters as of :func:`~equipoise.platform.run.steps.run_steps`.

    Raises
    ------
    JobError
        With the folder and the error of the step, an interruption included.
    """
    from equipoise.datasets.errors import InUseError
    from equipoise.platform.run.steps import run_steps

    out = {"out": folder.address}
    try:
        result = run_steps(study, folder, steps, **settings)
    except InUseError as error:
        if error.where == folder.address:  # the folder and its status are another job's
            raise
        raise JobError(error, JobResult(out, folder)) from error
    except BaseException as error:
        raise JobError(error, JobResult(out, folder)) from error
    return JobResult(out if result.report is None else out | {"report": result.report}, folder)


def run_and_exit(
    name: str, job: Callable[[], JobResult | dict[str, Any] | None], log_format: LogFormat, level: int
) -> NoReturn:
    """Run a job, print its result line and exit with its exit code.

    Parameters
    ----------
    name
        Name of the job.
    job
        Returns its result, or only the fields of the result line.
    log_format, level
        How to write progress, and how much of it (levels of :mod:`logging`); ``DEBUG`` adds tracebacks, ``WARNING``
        leaves progress out.
    """
    set_up_logging(log_format, level)
    error: BaseException | None = None
    try:
        returned = job()
        result = returned if isinstance(returned, JobResult) else JobResult(returned or {})
    except JobError as stopped:
        error, result = stopped.error, stopped.result
    except BaseException as raised:
        error, result = raised, JobResult()
    with _undisturbed():
        if isinstance(error, BrokenPipeError):  # `equipoise ls | head`
            sys.stderr.close()
            sys.exit(0)
        status, code, reason = _ending(error, level <= logging.DEBUG)
        outcome = {"job": name, "status": status, "code": code, **reason, **result.fields}
        if result.folder is not None and result.folder.root.exists():
            try:
                result.folder.finish(outcome)
            except OSError as failure:  # a full disk must not take the result line, too
                sys.stderr.write(f"status.json is not written: {failure}\n")
            except EquipoiseError as failure:  # what is written has not arrived at its address
                outcome |= _not_committed(failure) if code == 0 else {}
                sys.stderr.write(f"error: the outcome is not committed: {failure}\n")
        end(outcome)


def _not_committed(error: EquipoiseError) -> dict[str, Any]:
    return {"status": "failed", "code": error.exit_code, "error": f"the outcome is not committed: {error}"}


def interrupt_on_sigterm() -> None:
    """Let SIGTERM do what Ctrl-C does: ``finally`` blocks run, and the job says how it ended."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Ignore Ctrl-C and SIGTERM for the block: status and result line are being written, and that is a moment."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end(outcome: Mapping[str, Any]) -> NoReturn:
    """Write the result line and exit with its code.

    Parameters
    ----------
    outcome
        ``job``, ``status`` (``ok``, ``failed``, ``interrupted``), ``code``, ``error`` of a job that failed, and the
        fields of its result. The line has the first line of the error; all of it was written before.
    """
    shown = dict(outcome)
    if "error" in shown:
        shown["error"] = str(shown["error"]).partition("\n")[0]
    with contextlib.suppress(BrokenPipeError):
        sys.stdout.flush()
    sys.stderr.write(masked(f"EQUIPOISE-RESULT {json.dumps(shown, default=str)}\n"))
    sys.stderr.flush()
    sys.exit(int(outcome["code"]))


def _ending(error: BaseException | None, verbose: bool) -> tuple[str, int, dict[str, str]]:
    """Status, exit code and reason of a job that ended like this; an error is written to standard error."""
    if error is None:
        return "ok", 0, {}
    if isinstance(error, KeyboardInterrupt | SystemExit):  # SIGTERM, too; a worker's exit
        sys.stderr.write("interrupted; run the same command again to resume\n")
        return "interrupted", 1, {}
    if isinstance(error, EquipoiseError):
        sys.stderr.write(f"error: {error}\n")
        if verbose:
            _write_traceback(error)
        return "failed", error.exit_code, {"error": str(error)}
    if (machine := _about_machine(error)) is not None:
        what, fix = machine
        sys.stderr.write(f"error: {what}\n  fix: {fix}\n")
        if verbose:
            _write_traceback(error)
        return "failed", 4, {"error": what}
    reason = masked(f"{type(error).__name__}: {error}")
    _write_traceback(error)
    sys.stderr.write(f"error: {reason}\n  this is a defect of Equipoise: please report it\n")
    return "failed", 1, {"error": reason}


#: Errors of the operating system that say something about this machine → what to do.
_MACHINE = {
    errno.ENOSPC: "free some space and run the same command again: it resumes",
    errno.EDQUOT: "free some space and run the same command again: it resumes",
    errno.EFBIG: "raise the limit of file sizes (ulimit -f) and run the same command again: it resumes",
    errno.EROFS: "name a folder that can be written, with -o or features.store",
    errno.EACCES: "name a folder that you may write and files that you may read",
    errno.EPERM: "name a folder that you may write and files that you may read",
    errno.ENAMETOOLONG: "use a shorter name",
    errno.ENOTDIR: "name a folder: a part of this path is a file",
    errno.EISDIR: "name a file: this is a folder",
    errno.EEXIST: "name a folder: this is a file",
    errno.ENOENT: "name a folder that exists and can be written",
    errno.ELOOP: "name a file: this link leads to itself",
    errno.EMFILE: "raise the number of open files (ulimit -n)",
    errno.ENFILE: "raise the number of open files (ulimit -n)",
    errno.ENOMEM: "close other programs, or use fewer workers",
    errno.EIO: "check the disk and its messages (dmesg)",
    errno.ESTALE: "check that the shared folder is still mounted",
}


def _about_machine(error: BaseException) -> tuple[str, str] | None:
    """What is wrong with this machine and what to do, if that is what an error says; None for other errors."""
    if isinstance(error, MemoryError):
        return "there is not enough memory", _MACHINE[errno.ENOMEM]
    if not isinstance(error, OSError) or error.errno not in _MACHINE:
        return None
    place = f"{error.filename}: " if error.filename is not None else ""
    return f"{place}{error.strerror}", _MACHINE[error.errno]


def _write_traceback(error: BaseException) -> None:
    sys.stderr.write(masked("".join(traceback.format_exception(error))))


def _without_credentials(record: logging.LogRecord) -> bool:
    """A filter of a handler: what drivers of addresses say may hold credentials."""
    record.msg, record.args = masked(record.getMessage()), ()
    return True


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


def set_up_logging(log_format: LogFormat, level: int) -> None:
    """One handler on the ``equipoise`` logger: rich on a terminal, plain lines otherwise, JSON when asked."""
    chosen = log_format
    if chosen is LogFormat.auto:
        chosen = LogFormat.rich if sys.stderr.isatty() else LogFormat.plain
    if chosen is LogFormat.rich:
        from equipoise.platform.progress import terminal_handler

        handler: logging.Handler = terminal_handler()
    else:
        handler = logging.StreamHandler()
        handler.setFormatter(_Json() if chosen is LogFormat.json else _KeyValue())
    handler.addFilter(_without_credentials)
    for name, lowest in (("equipoise", level), ("py.warnings", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(lowest)
        logger.propagate = False
    logging.captureWarnings(True)
    warnings.formatwarning = lambda message, category, *_: str(message)
    from equipoise.datasets.errors import DataWarning

    warnings.simplefilter("ignore")  # warnings of libraries are for developers
    warnings.simplefilter("always", DataWarning)
