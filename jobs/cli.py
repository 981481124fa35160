"""The command line: one command per job, ``equipoise <job>`` ≡ ``python -m equipoise.jobs.<job>`` (``-`` → ``_``).

The module of a command is imported when the command is called; ``equipoise --help`` prints one line for each command
and imports none of them.
"""

import atexit
import contextlib
import keyword
import logging
import os
import signal
import sys
from importlib import import_module
from typing import Any

import typer

from equipoise.datasets.redaction import CREDENTIALS_FIX, has_credentials, masked
from equipoise.jobs.outcome import end, interrupt_on_sigterm

#: What the command line raises for unknown options, missing arguments and values of a wrong type; typer exports only
#: the errors derived from it, and has a copy of click of its own since version 0.26.
UsageError: type[Exception] = typer.BadParameter.__mro__[1]

#: Jobs in the order in which a new user needs them.
JOBS = {
    "doctor": "Check this machine: PASS, WARN or FAIL, each with a fix.",
    "demo": "Make a synthetic study and run it: slides to report in minutes.",
    "init": "Write a commented study file, columns guessed from your tables.",
    "ls": "List the entries of the registries: models, encoders, splits, templates, …",
    "validate": "Check study, tables and slides; write manifest, exclusions and folds.",
    "synthesize": "Write built-in synthetic cohorts: slides, tables, omics.",
    "extract": "Tile slides and extract features (Ray Data).",
    "train": "Train on the development cohorts with cross-validation.",
    "search": "Search balancing, loss weights, architecture (Ray Tune).",
    "federate": "Train across sites that keep their patients, and compare with baselines.",
    "evaluate": "Predict external cohorts and compute metrics with intervals.",
    "explain": "Explain predictions: maps of slides with checks, tiles, genes, modalities.",
    "report": "Write report.html from the run folder.",
    "leaderboard": "Compare runs: ranks, intervals, paired differences.",
    "run": "Run all steps from slides to report; finished steps are skipped.",
    "pretrain": "Train a model on many cohorts and tasks, as a start for other studies.",
    "pretrain-rna": "Train a small RNA encoder on single cells of your own.",
    "adapt-rna": "Adapt an RNA encoder to bulk profiles by mixing single cells.",
    "export": "Write a trained model as a folder that leaves this machine.",
    "import": "Check an exported model and say what it is.",
    "predict": "Predict new slides, features or tables with an exported model.",
    "store": "List, verify, clean, rebuild, export and import feature stores.",
    "status": "Show progress, failures and the next command of a run.",
    "submit": "Run a job on a cluster of Ray or in an allocation of SLURM.",
}


def main() -> None:
    """Entry point of ``equipoise``."""
    arguments = sys.argv[1:]
    name = arguments[0] if arguments and not arguments[0].startswith("-") else None
    _run({name: JOBS[name]} if name in JOBS else JOBS, arguments)


def run_module(name: str) -> None:
    """Entry point of ``python -m equipoise.jobs.<name>``."""
    _run({name: JOBS[name]}, [name, *sys.argv[1:]])


def module_of(name: str) -> str:
    """Module of a job: ``adapt-rna`` is in ``equipoise.jobs.adapt_rna``, ``import`` in ``equipoise.jobs.import_``."""
    return f"equipoise.jobs.{name.replace('-', '_')}{'_' if keyword.iskeyword(name) else ''}"


def _run(jobs: dict[str, str], arguments: list[str]) -> None:
    """Run a command; the process then ends with its exit code, whatever the threads of native libraries do.

    Arrow's pool may still be starting a thread while its destructor runs, and the C++ runtime then aborts a process
    that has done all its work ("terminate called without an active exception", in three of a hundred short commands).
    What is registered first with :mod:`atexit` runs last, after the clean-up of every library.
    """
    interrupt_on_sigterm()
    ended = [1]
    atexit.register(lambda: _leave(ended[0]))
    try:
        _call(jobs, arguments)
    except SystemExit as end:
        ended[0] = end.code if isinstance(end.code, int) else int(end.code is not None)
        for number in (signal.SIGINT, signal.SIGTERM):  # the job has ended, and has said how
            signal.signal(number, signal.SIG_IGN)
        raise


def _call(jobs: dict[str, str], arguments: list[str]) -> None:
    """Call the command of the arguments; a usage error ends like every other error, with code and result line.

    Addresses with credentials are refused: every user of the machine sees the arguments of its processes.
    """
    if shown := [masked(argument) for argument in arguments if has_credentials(argument)]:
        reason = f"command line: credentials in {', '.join(shown)}"
        sys.stderr.write(f"error: {reason}\n  fix: {CREDENTIALS_FIX}\n")
        end({"job": arguments[0], "status": "failed", "code": 2, "error": reason})
    command = typer.main.get_command(_app(jobs))
    if not arguments:  # shows the help
        command(arguments, prog_name="equipoise")
    try:
        sys.exit(command.main(arguments, prog_name="equipoise", standalone_mode=False))
    except UsageError as error:
        error.show()  # type: ignore[attr-defined]
        end({"job": arguments[0], "status": "failed", "code": 2, "error": error.format_message()})  # type: ignore[attr-defined]
    except KeyboardInterrupt:  # before the job began
        end({"job": arguments[0], "status": "interrupted", "code": 1})


def _leave(code: int) -> None:
    """End the process now, without destructors of native libraries."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # closed, or a pipe that nobody reads
            stream.flush()
    os._exit(code)


def _app(jobs: dict[str, str]) -> typer.Typer:
    """A typer application; the modules of its jobs are imported only when it holds a single one."""
    app = typer.Typer(
        name="equipoise",
        help="Computational pathology on Ray: balance tasks, modalities and sites.",
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback(invoke_without_command=False)(_version)
    for name, line in jobs.items():
        module = import_module(module_of(name)) if len(jobs) == 1 else None
        command = _placeholder(name) if module is None else module.command
        settings = getattr(module, "CONTEXT_SETTINGS", None)
        app.command(name, help=line if module is None else None, context_settings=settings)(command)
    return app


def _placeholder(name: str) -> Any:
    """A placeholder in the list of jobs; it never runs, since a named job gets a separate application."""

    def listed() -> None:
        raise AssertionError(name)

    return listed


def _print_version(value: bool) -> None:
    if value:
        from equipoise import __version__

        print(f"equipoise {__version__}")
        raise typer.Exit


def _version(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Show the version."
    ),
) -> None:
    """Computational pathology on Ray: balance tasks, modalities and sites."""


if __name__ == "__main__":
    main()
