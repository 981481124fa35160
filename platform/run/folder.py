"""The run folder: its paths and its status.

Files are written atomically (:mod:`equipoise.datasets.atomic_io`). ``status.json`` says which steps are done,
``events.jsonl`` lists events with their times.
"""

import json
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from equipoise.datasets.atomic_io import (
    LOCK_FILE,
    is_locked,
    read_whole_json,
    remove_leftovers,
    write_json,
    writer_lock,
)
from equipoise.datasets.errors import InUseError
from equipoise.datasets.redaction import masked
from equipoise.platform.errors import StudyError
from equipoise.platform.fingerprints import require_same
from equipoise.platform.study.schema import Study, fixed_settings
from equipoise.platform.yaml_files import read_own

log = logging.getLogger("equipoise")

#: Steps of a run in their order.
STEPS = ("validate", "extract", "train", "evaluate", "federate", "search", "pretrain", "explain", "report")
#: Optional step → the section of the study without which it does nothing.
STEP_SECTIONS = {"federate": "federation", "search": "search", "pretrain": "pretrain", "explain": "explain"}


def study_steps(settings: Mapping[str, Any]) -> list[str]:
    """Steps of a study with these settings: optional steps only where it has their section."""
    return [
        name for name in STEPS if name not in STEP_SECTIONS or settings.get(STEP_SECTIONS[name]) is not None
    ]


@dataclass(frozen=True)
class StepResult:
    """What a step did.

    Parameters
    ----------
    details
        Figures that ``status.json`` and ``events.jsonl`` record beside status and time.
    complete
        False if part of the step's work remains; it is then recorded as partial and stays among the steps to do.
    """

    details: Mapping[str, Any] = field(default_factory=dict)
    complete: bool = True


class RunFolder:
    """``runs/<study>/``: paths of its parts, status, events.

    Parameters
    ----------
    root
        The folder; created by the first write.
    """

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        #: For messages and for opening it again.
        self.address = str(self.root)
        self.provenance = self.root / "provenance"
        self.command_file = self.provenance / "command.txt"
        self.manifest = self.root / "manifest"
        self.qc = self.root / "qc"
        self.folds = self.root / "folds"
        self.federated = self.root / "federated"
        self.search = self.root / "search"
        self.pretrain = self.root / "pretrain"
        self.evaluation = self.root / "evaluation"
        self.explain = self.root / "explain"
        self.tensorboard = self.root / "tb"
        self.report = self.root / "report.html"
        self.status_file = self.root / "status.json"
        self.events_file = self.root / "events.jsonl"

    @classmethod
    def open(cls, study: Study, out: str | None, resume: str) -> "RunFolder":
        """Open the run folder of a study and check that it belongs to this study.

        Parameters
        ----------
        study
            The study about to run.
        out
            Folder or address given on the command line; by default ``runs/<name>`` below the current folder.
        resume
            ``auto`` resumes an earlier run, ``must`` requires one, ``never`` renames the folder of an earlier one.

        Raises
        ------
        StudyError
            If the folder holds a run of a study that differs in something that changes predictions.
        InUseError
            If an earlier run is to be renamed while a job is writing to it.
        """
        folder = cls.at(out or str(Path("runs") / study.name))
        earlier = folder.provenance / "resolved.yaml"
        if resume == "must" and not earlier.exists():
            raise StudyError(
                "--resume must: there is no run to resume",
                where=folder.address,
                fix="leave --resume out",
            )
        if resume == "never" and folder.root.exists() and any(folder.root.iterdir()):
            if (writer := folder.writer()) is not None:
                raise InUseError(
                    f"--resume never: a job is writing to this run folder ({writer})",
                    where=folder.address,
                    fix="wait for it, stop it, or choose another folder with -o",
                )
            folder._rename_earlier_run(study)
        elif earlier.exists() and folder.holds_results():
            folder._require_same_study(study, read_own(earlier))
        return folder

    @classmethod
    def at(cls, location: str) -> "RunFolder":
        """The run folder of a path, to be written to."""
        return cls(Path(location))

    def holds_results(self) -> bool:
        """Whether a step has left what depends on study and tables; a folder that was only validated does not."""
        parts = (
            *(self.qc, self.folds, self.federated, self.search, self.pretrain),
            *(self.evaluation, self.explain, self.tensorboard, self.report),
        )
        return any(part.exists() for part in parts)

    def _require_same_study(self, study: Study, earlier: dict[str, Any]) -> None:
        before, now = fixed_settings(earlier), fixed_settings(study.resolved())
        require_same(
            {key: before.get(key) for key in now},  # sections of earlier versions do not count
            now,
            "this folder holds a run of another study",
            where=self.address,
            fix="choose another folder with -o, or --resume never to rename the folder of the earlier run",
        )

    def _rename_earlier_run(self, study: Study) -> None:
        if not (self.provenance / "resolved.yaml").exists():
            raise StudyError(
                "--resume never: the folder is not empty and holds no run, so it is not renamed",
                where=self.address,
                fix="choose another folder with -o",
            )
        if study.file.is_relative_to(self.root):
            raise StudyError(
                "--resume never: the study file lies in this run folder and would move with it",
                where=self.address,
                fix="choose another folder with -o",
            )
        number = 1
        while (target := self.root.with_name(f"{self.root.name}.{number}")).exists():
            number += 1
        self.root.rename(target)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Be the only writer for the block; what writers that died left half-written is removed first.

        The kernel releases the lock however the process ends.

        Raises
        ------
        InUseError
            If another job is writing to the folder.
        """
        with writer_lock(self.root, "run folder") as lock:
            lock.truncate(0)
            lock.write(this_process().encode())
            lock.flush()
            remove_leftovers(self.root, below=True)
            try:
                yield
            finally:
                lock.truncate(0)  # who could not do this was killed

    def commit(self) -> None:
        """Let what is written count where the folder is elsewhere; here it does already."""

    def require_shared(self, study: Study, steps: Sequence[str]) -> None:
        """Refuse steps whose workers on other machines would write to a folder that they do not see.

        A folder at a path is on storage that all machines mount, where there is more than one.
        """

    def writer(self) -> str | None:
        """The job that is writing to the folder, ``process 12 on host since …``; None if there is none."""
        file = self.root / LOCK_FILE
        if not file.exists() or not is_locked(file):
            return None
        return file.read_text("utf-8") or "a process that has just started"

    def state(self) -> str:
        """``running`` while a job writes, ``killed`` if the last one could not say how it ended, else its status."""
        if self.writer() is not None:
            return "running"
        file = self.root / LOCK_FILE
        killed = file.exists() and file.stat().st_size > 0
        return "killed" if killed else str(self.status()["status"])

    def status(self) -> dict[str, Any]:
        """The content of ``status.json``; that of a new run where the file is absent or damaged.

        Steps look at what they find, so that nothing is done twice where the file was lost.
        """
        status = read_whole_json(self.status_file)
        if status is not None and isinstance(status.get("steps"), dict) and "status" in status:
            return dict(status)
        if self.status_file.exists():
            log.warning("%s is damaged: every step looks again at what is there", self.status_file)
        return {"status": "new", "steps": {}}

    def to_do(self) -> list[str]:
        """Steps that are not done, in their order; optional steps only where the study has their section."""
        steps = self.status()["steps"]
        return [name for name in self.steps() if steps.get(name, {}).get("status") != "done"]

    def steps(self) -> list[str]:
        """Steps of the study that the folder holds, in their order."""
        resolved = self.provenance / "resolved.yaml"
        return study_steps(read_own(resolved) if resolved.exists() else {})

    def run_step(self, name: str, work: Callable[[], StepResult]) -> StepResult:
        """Do the work of a step; record it as running, then as done, partial, interrupted, or failed and why."""
        self._record_step(name, {"status": "running"})
        started = time.monotonic()
        try:
            result = work()
        except BaseException as error:
            ended = {"status": "failed", "error": masked(str(error)) or type(error).__name__}
            if isinstance(error, KeyboardInterrupt | SystemExit):
                ended = {"status": "interrupted"}
            self._record_step(name, {**ended, "seconds": _seconds_since(started)})
            raise
        status = "done" if result.complete else "partial"
        self._record_step(name, {"status": status, "seconds": _seconds_since(started), **result.details})
        return result

    def _record_step(self, step: str, details: dict[str, Any]) -> None:
        status = self.status()
        if details["status"] == "running" and step != "validate":
            # When a step runs again, the output of later steps is out of date.
            for later in STEPS[STEPS.index(step) + 1 :]:
                status["steps"].pop(later, None)
        status["steps"][step] = {**details, "at": _timestamp()}
        write_json(
            self.status_file, {"status": details["status"], "at": _timestamp(), "steps": status["steps"]}
        )
        self.event(step, details)

    def finish(self, outcome: dict[str, Any]) -> None:
        """Write the outcome of the job that just ended; it replaces the outcome of an earlier job."""
        steps = self.status()["steps"]
        write_json(self.status_file, {**outcome, "to_do": self.to_do(), "at": _timestamp(), "steps": steps})

    def event(self, name: str, details: dict[str, Any]) -> None:
        """Append one line to ``events.jsonl``."""
        self.root.mkdir(parents=True, exist_ok=True)
        with self.events_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"at": _timestamp(), "event": name, **details}, default=str) + "\n")


def this_process() -> str:
    """For the messages of other jobs: ``process 12 on host since …``."""
    return f"process {os.getpid()} on {socket.gethostname()} since {_timestamp()}"


def _timestamp() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def _seconds_since(started: float) -> float:
    return round(time.monotonic() - started, 2)
