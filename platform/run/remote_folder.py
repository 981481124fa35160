"""Run folders at addresses (``-o s3://bucket/run``).

A job works in a folder of this machine (:mod:`equipoise.datasets.remote.working_copies`) and commits it after every
step and every fold. Other commands read the last commit.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from equipoise.datasets.atomic_io import writer_lock
from equipoise.datasets.errors import InUseError
from equipoise.datasets.remote.addresses import is_remote
from equipoise.datasets.remote.claims import LEASE_S
from equipoise.datasets.remote.commits import copy_of_last_commit
from equipoise.datasets.remote.folders import RemoteFolder
from equipoise.datasets.remote.working_copies import WorkingCopy
from equipoise.platform.cluster.session import resolve_address
from equipoise.platform.errors import StudyError
from equipoise.platform.run.folder import RunFolder, StepResult, this_process
from equipoise.platform.study.schema import Study

log = logging.getLogger("equipoise")


def open_run_folder(study: Study, out: str | None, resume: str) -> RunFolder:
    """Open the run folder of a study at a path or an address; see :meth:`RunFolder.open`."""
    kind = RemoteRunFolder if out is not None and is_remote(out) else RunFolder
    return kind.open(study, out, resume)


def read_run_folder(location: str | Path) -> RunFolder:
    """The run folder at a path, or the last commit of one at an address, to be read."""
    return CommittedRun(str(location)) if is_remote(location) else RunFolder(Path(location))


@contextmanager
def run_paths(locations: Sequence[str]) -> Iterator[list[Path]]:
    """Paths of runs to be read; of those at addresses copies, which stay for the block."""
    copies = {location: CommittedRun(location) for location in locations if is_remote(location)}
    yield [copies[location].root if location in copies else Path(location) for location in locations]


class RemoteRunFolder(RunFolder):
    """The run folder at an address, to be written to.

    Parameters
    ----------
    address
        Of the run.

    Attributes
    ----------
    root
        The working copy on this machine.

    Raises
    ------
    InUseError
        If another process of this machine is writing to it.
    """

    def __init__(self, address: str) -> None:
        self._copy = WorkingCopy(address)
        super().__init__(self._copy.root)
        self.address = self._copy.folder.address
        with self._lock():
            self._copy.fetch()

    @classmethod
    def at(cls, location: str) -> RunFolder:
        return cls(location)

    @contextmanager
    def writing(self) -> Iterator[None]:
        with ExitStack() as stack:
            with self._at_address():
                stack.enter_context(super().writing())
            stack.enter_context(self._copy.claimed(this_process()))
            yield
            self.commit()

    def commit(self) -> None:
        self._copy.commit()

    def run_step(self, name: str, work: Callable[[], StepResult]) -> StepResult:
        try:
            return super().run_step(name, work)
        finally:
            self.commit()

    def finish(self, outcome: dict[str, Any]) -> None:
        """Record and commit the outcome, and what was written after the last step."""
        with self._lock(), self._copy.claimed(this_process(), wait=False):
            super().finish(outcome)
            self.commit()

    def require_shared(self, study: Study, steps: Sequence[str]) -> None:
        if resolve_address(study.resources, os.environ)[0] == "local":
            return
        spread = {
            "trials of a search": "search" in steps and study.search is not None,
            "training.workers": study.training.workers > 1
            and {"train", "federate", "pretrain"}.intersection(steps),
            "resources.folds": study.resources.folds > 1 and "train" in steps,
        }
        if named := [name for name, used in spread.items() if used]:
            raise StudyError(
                f"{' and '.join(named)}: workers on a cluster would write to the run folder, which is at an address",
                where=self.address,
                fix="name a folder that all nodes mount with -o, or --address local to use this machine alone",
            )

    def _rename_earlier_run(self, study: Study) -> None:
        if any(file for file in self.root.rglob("*") if file.name != "writer.lock"):
            raise StudyError(
                "--resume never: a run at an address is not renamed",
                where=self.address,
                fix="choose another address with -o",
            )

    @contextmanager
    def _lock(self) -> Iterator[None]:
        with self._at_address():
            lock = writer_lock(self.root, "run folder")
        with lock:
            yield

    @contextmanager
    def _at_address(self) -> Iterator[None]:
        """Say where the run is, not where its working copy is."""
        try:
            yield
        except InUseError as error:
            raise InUseError(error.what, where=self.address, fix=error.fix) from None


class CommittedRun(RunFolder):
    """The last commit of a run at an address; nothing is written to it.

    Parameters
    ----------
    address
        Of the run.

    Raises
    ------
    StudyError
        If nothing is committed there.
    """

    def __init__(self, address: str) -> None:
        folder = RemoteFolder(address.rstrip("/"))
        self._head, self._lease = copy_of_last_commit(folder)
        if self._lease is None:
            raise StudyError(
                "there is no run",
                where=folder.address,
                fix="name the address that -o named; a run is seen when its first step has ended",
            )
        super().__init__(self._lease.path)
        self.address = folder.address

    def writer(self) -> str | None:
        """The claim, if it was renewed lately by the clock of this machine."""
        writer = self._head.writer
        return writer.owner if writer is not None and time.time() - writer.renewed < LEASE_S else None

    def state(self) -> str:
        if self.writer() is not None:
            return "running"
        return "killed" if self._head.writer is not None else str(self.status()["status"])
