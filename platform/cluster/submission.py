"""Jobs of Equipoise on a cluster, through its dashboard: submit, follow, stop, and what they ended with.

A submitted job is a driver that runs on the cluster: it goes on when the machine that sent it is switched off. The code
travels with it (the package as one of Ray's ``py_modules``, named by the hash of its content: what has not changed is
sent once), data do not. What it ends with is Equipoise's own exit code, which Ray keeps as that of the driver.

A driver that dies without a word (its node is gone, the kernel ended it) left a run folder that resumes: it is sent
again, a bounded number of times. A job that finds no place on the cluster is given up after a time, since Ray keeps it
pending for as long as the cluster lives.
"""

import asyncio
import logging
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from equipoise.platform.cluster import tokens
from equipoise.platform.cluster.session import environment_variables, worker_environment
from equipoise.platform.errors import ResourceError, StudyError

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

log = logging.getLogger("equipoise")

#: What a job of Equipoise says last; a driver that died says nothing.
RESULT = "EQUIPOISE-RESULT"
#: Seconds between two looks at a job that waits for its place.
_LOOK_S = 1.0
#: Environment variables that a job brings for itself and Ray's runtime environment may hold: no secrets among them.
_CACHE = "EQUIPOISE_CACHE"


@dataclass(frozen=True)
class JobCommand:
    """A job and its arguments, as they are on the command line.

    Parameters
    ----------
    name
        Name of the job (``run``, ``search``, …).
    module
        Its module, which ``python -m`` runs.
    arguments
        Its arguments; paths in them are absolute.
    """

    name: str
    module: str
    arguments: tuple[str, ...]

    @property
    def entrypoint(self) -> str:
        """The command that the cluster runs."""
        return shlex.join(["python", "-m", self.module, *self.arguments])


@dataclass(frozen=True)
class Placement:
    """What the driver needs of the node it runs on; by default nothing, and Ray puts it on the head."""

    resources: Mapping[str, float] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        parts = [*self.resources.items(), *self.labels.items()]
        return ", ".join(f"{name}={amount}" for name, amount in parts) or "nothing"


@dataclass(frozen=True)
class Ended:
    """How a submitted job ended.

    Attributes
    ----------
    submission
        Its id.
    code
        Exit code of the job (0 to 5); 1 if it was stopped or its driver died.
    reason
        What happened, empty for a job that succeeded.
    died
        Whether its driver ended without saying how.
    """

    submission: str
    code: int
    reason: str = ""
    died: bool = False


class Cluster:
    """A cluster, through its dashboard.

    Parameters
    ----------
    address
        ``http://HOST:8265``.

    Raises
    ------
    StudyError
        If this is no address of a dashboard.
    ResourceError
        Without a token, with a wrong one, and if nothing answers there.
    """

    def __init__(self, address: str) -> None:
        parts = urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise StudyError(
                f"{address!r} is no address of a dashboard",
                where="--address",
                fix="write http://HOST:8265; `ray dashboard cluster.yaml` brings that of a cluster to this machine",
            )
        self.address = address.rstrip("/")

    @contextmanager
    def client(self) -> Iterator["JobSubmissionClient"]:
        """A client of the dashboard; its errors say what to do."""
        import os

        with environment_variables(tokens.cluster_authentication(os.environ, self.address)):
            from ray.exceptions import RayError
            from ray.job_submission import JobSubmissionClient

            tokens.refresh()
            try:
                yield JobSubmissionClient(self.address)
            except (ConnectionError, RuntimeError, OSError, RayError) as error:
                raise self._error(error) from error

    def submit(self, command: JobCommand, placement: Placement, ship: bool, out: str | None) -> str:
        """Send a job and return its id; one that is already at work on the same run folder is not sent again."""
        import os

        with self.client() as client:
            if out is not None and (running := _at_work(client, out)) is not None:
                log.info("job=%s is at work on %s: following it", running, out)
                return running
            environment = worker_environment(os.environ, self.address)
            environment.setdefault("env_vars", {})
            if cache := os.environ.get(_CACHE):
                environment["env_vars"][_CACHE] = cache
            if ship:
                environment["py_modules"] = [str(package())]
            metadata = {"equipoise_job": command.name}
            if out is not None:
                metadata["equipoise_out"] = out
            options = _options(placement)
            return str(
                client.submit_job(
                    entrypoint=command.entrypoint, runtime_env=environment, metadata=metadata, **options
                )
            )

    def status(self, submission: str) -> "JobDetails":
        """What the cluster knows of a job."""
        with self.client() as client:
            known = {job.submission_id: job for job in client.list_jobs()}
            if submission not in known:
                recent = [name for name in known if name][-3:]
                raise StudyError(
                    f"no job {submission!r} on this cluster",
                    where=self.address,
                    fix=f"it knows {', '.join(recent)}" if recent else "it has had no job",
                )
            return known[submission]

    def stop(self, submission: str) -> None:
        """End a job: SIGTERM, and three seconds later SIGKILL; what it did stays, and the same command resumes."""
        self.status(submission)
        with self.client() as client:
            client.stop_job(submission)

    def wait_for_start(self, submission: str, placement: Placement, seconds: float) -> None:
        """Wait until the cluster has found a place for the driver.

        Raises
        ------
        ResourceError
            If it has not in this time; the job is stopped.
        """
        deadline = time.monotonic() + seconds
        said = ""
        while (job := self.status(submission)).status == "PENDING":
            if (message := (job.message or "").partition("\n")[0]) != said:
                said = message
                log.info("waiting: %s", said)
            if time.monotonic() > deadline:
                with self.client() as client:
                    client.stop_job(submission)
                raise ResourceError(
                    f"job {submission} found no place in {seconds:.0f} s and is cancelled; its driver asks for "
                    f"{placement}",
                    where=self.address,
                    fix="ask for what a node of the cluster has (`ray status`), or wait longer with --start-timeout",
                )
            time.sleep(_LOOK_S)

    def follow(self, submission: str, write: Callable[[str], Any]) -> Ended:
        """Write the log of a job as it grows, and return how it ended; a lost connection is taken up again."""
        seen = _Log(write)
        while True:
            with self.client() as client:
                try:
                    asyncio.run(_tail(client, submission, seen))
                except (ConnectionError, RuntimeError, OSError) as error:
                    log.debug("log interrupted: %s", error)
            job = self.status(submission)
            if job.status.is_terminal():
                with self.client() as client:  # what came between the last piece and the end
                    seen.all(client.get_job_logs(submission))
                return ended(job, seen.result)
            time.sleep(_LOOK_S)

    def _error(self, error: Exception) -> ResourceError:
        text = str(error).strip()
        first = text.splitlines()[0] if text else type(error).__name__
        if any(word in text.lower() for word in ("authentication", "unauthorized")):
            return ResourceError(
                "the cluster refuses the token",
                where=self.address,
                fix="RAY_AUTH_TOKEN, or the file RAY_AUTH_TOKEN_PATH, must hold this cluster's token",
            )
        if isinstance(error, ConnectionError) or "connect" in text.lower():
            return ResourceError(
                f"no dashboard answers ({first})",
                where=self.address,
                fix="check host and port (8265), and that the dashboard runs; `ray dashboard cluster.yaml` opens a "
                "tunnel to it",
            )
        return ResourceError(
            f"the cluster refuses: {first}", where=self.address, fix="run `equipoise doctor`"
        )


class _Log:
    """Writes a log that may arrive in pieces, and again from its beginning."""

    def __init__(self, write: Callable[[str], Any]) -> None:
        self._write = write
        self._written = 0
        self._position = 0
        self._end = ""

    def restart(self) -> None:
        """The log comes again from its beginning."""
        self._position = 0

    def piece(self, text: str) -> None:
        """The next piece."""
        new = text[max(0, self._written - self._position) :]
        self._position += len(text)
        if new:
            self._write(new)
            self._written += len(new)
            self._end = (self._end + new)[-10_000:]

    def all(self, text: str) -> None:
        """The whole log."""
        self.restart()
        self.piece(text)

    @property
    def result(self) -> str | None:
        """The job's result line, if it said one."""
        lines = [line for line in self._end.splitlines() if line.startswith(RESULT)]
        return lines[-1] if lines else None


def package() -> Path:
    """The folder of this package, which travels with a job: that of the checkout or of the installation."""
    return Path(__file__).absolute().parents[2]


def ended(job: "JobDetails", result: str | None) -> Ended:
    """How a job ended, from what the cluster knows and from its result line (None without one).

    ``PENDING`` jobs that were stopped, and drivers that were killed, have no exit code of their own.
    """
    submission, code = str(job.submission_id), job.driver_exit_code
    if job.status == "SUCCEEDED":
        return Ended(submission, 0)
    if job.status == "STOPPED":
        return Ended(submission, 1, "stopped")
    reason = (job.message or "").strip().splitlines()
    last = reason[0] if reason else str(job.status)
    if result is not None and code is not None and 0 < code <= 5:
        return Ended(submission, code, f"the job ended with exit code {code}")
    if job.error_type is not None and "RUNTIME_ENV" in str(job.error_type):
        return Ended(submission, 4, f"the environment of the job could not be made: {last}")
    return Ended(submission, 1, f"the driver died: {last}", died=True)


def _options(placement: Placement) -> dict[str, Any]:
    resources = dict(placement.resources)
    options: dict[str, Any] = {}
    for name, option in (("CPU", "entrypoint_num_cpus"), ("GPU", "entrypoint_num_gpus")):
        if name in resources:
            options[option] = resources.pop(name)
    if "memory" in resources:
        options["entrypoint_memory"] = int(resources.pop("memory"))
    if resources:
        options["entrypoint_resources"] = resources
    if placement.labels:
        options["entrypoint_label_selector"] = dict(placement.labels)
    return options


def _at_work(client: "JobSubmissionClient", out: str) -> str | None:
    """The job that is at work on a run folder."""
    for job in client.list_jobs():
        if (job.metadata or {}).get("equipoise_out") == out and not job.status.is_terminal():
            return str(job.submission_id)
    return None


async def _tail(client: "JobSubmissionClient", submission: str, seen: _Log) -> None:
    seen.restart()
    async for text in client.tail_job_logs(submission):
        seen.piece(text)


def write_log(text: str) -> None:
    """Write a piece of a job's log to standard error, as the job would have."""
    sys.stderr.write(text)
    sys.stderr.flush()


def placement_of(pairs: Sequence[str], labels: Sequence[str]) -> Placement:
    """What ``--driver-resource NAME=AMOUNT`` and ``--driver-label KEY=VALUE`` say.

    Raises
    ------
    StudyError
        For anything else.
    """
    resources: dict[str, float] = {}
    for pair in pairs:
        name, _, amount = pair.partition("=")
        try:
            resources[name] = float(amount)
        except ValueError:
            resources[name] = -1.0
        if not name or not 0 <= resources[name] < float("inf"):
            raise StudyError(
                f"{pair!r} is not NAME=AMOUNT", where="--driver-resource", fix="write for example control=1"
            )
    chosen = dict(label.partition("=")[::2] for label in labels)
    if bad := [label for label in labels if not all(label.partition("=")[::2])]:
        raise StudyError(f"{bad[0]!r} is not KEY=VALUE", where="--driver-label", fix="write market=on-demand")
    return Placement(resources, chosen)
