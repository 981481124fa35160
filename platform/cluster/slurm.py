"""Jobs of Equipoise in SLURM: their submission, their state, and how they ended.

What they run is :mod:`equipoise.platform.cluster.slurm_scripts`.
"""

import logging
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from equipoise.platform.cluster.slurm_scripts import Batch, sbatch
from equipoise.platform.cluster.submission import Ended
from equipoise.platform.errors import ResourceError

log = logging.getLogger("equipoise")

_LOOK_S = 5.0


def submit(batches: Sequence[Batch]) -> list[str]:
    """Hand scripts to ``sbatch`` and return the numbers of their jobs.

    Raises
    ------
    ResourceError
        If there is no ``sbatch`` here, or it refuses; what was submitted until then is cancelled.
    """
    numbers: list[str] = []
    try:
        for batch in batches:
            numbers.append(_number(_call(*sbatch(batch, numbers[-1] if numbers else ""), str(batch.script))))
    except ResourceError:
        for number in numbers:
            cancel(number)
        raise
    return numbers


def _number(answer: str) -> str:
    number = answer.strip().partition(";")[0]
    if not number.isdigit():
        raise ResourceError(
            f"sbatch answered {number[:80]!r}, no number of a job",
            where="sbatch",
            fix="look at `squeue --me`: the job may be there; sbatch has to understand --parsable",
        )
    return number


def state(number: str) -> str | None:
    """State of a job in the queue (``PENDING (Resources)``, ``RUNNING``); None when it has left the queue."""
    try:
        shown = _call("squeue", "--noheader", f"--jobs={number}", "--format=%T (%r)").strip()
    except ResourceError as error:
        if "Invalid job id" in str(error):  # what squeue says of a job that ended some time ago
            return None
        raise
    return shown.splitlines()[0] if shown else None


def cancel(number: str) -> None:
    """Take a job out of the queue, or end it."""
    _call("scancel", number)


def follow(
    number: str,
    log_file: Path,
    read_status: Callable[[], Mapping[str, Any]],
    write: Callable[[str], object],
) -> Ended:
    """Write the log of a job as it grows, and return how it ended.

    Parameters
    ----------
    number
        Of the job.
    log_file
        Its log.
    read_status
        The content of ``status.json`` of its run folder, which decides; where it is empty or does not change, the state
        that SLURM keeps does.
    write
        Gets each piece of the log.
    """
    before = read_status()
    position, said = _size(log_file), ""
    while (now := state(number)) is not None:
        if now != said:
            log.info("slurm job=%s state=%s", number, now)
            said = now
        position = _more(log_file, position, write)
        time.sleep(_LOOK_S)
    _more(log_file, position, write)
    return outcome(number, read_status(), before)


def outcome(number: str, status: Mapping[str, Any], before: Mapping[str, Any]) -> Ended:
    """How a job ended: from ``status.json`` if it is not what it was ``before``, else from SLURM's accounting."""
    if status != before and isinstance(status.get("code"), int):
        return Ended(number, status["code"], str(status.get("error", "")).partition("\n")[0])
    kept = accounted(number)
    if kept == "COMPLETED":
        return Ended(number, 0)
    return Ended(number, 1, f"the job ended without a result ({kept or 'SLURM keeps no account'})", died=True)


def accounted(number: str) -> str:
    """State that SLURM's accounting keeps of a job; empty where there is none."""
    if shutil.which("sacct") is None:
        return ""
    try:
        lines = _call("sacct", "--noheader", "--allocations", f"--jobs={number}", "--format=State").split()
    except ResourceError:
        return ""
    return lines[0] if lines else ""


def describe(number: str) -> str:
    """One line about a job."""
    return state(number) or accounted(number) or "unknown: it has left the queue, and SLURM keeps no account"


def _call(program: str, *arguments: str) -> str:
    if shutil.which(program) is None:
        raise ResourceError(
            f"there is no {program} on this machine",
            where="--slurm",
            fix="call it on a login node, or write the script with --write-only and submit it there",
        )
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        raise ResourceError(f"{program}: {said[-1]}", where="SLURM")
    return done.stdout


def _more(file: Path, position: int, write: Callable[[str], object]) -> int:
    """Write what a file holds after a position; the new position."""
    if _size(file) <= position:
        return position
    with file.open("rb") as opened:
        opened.seek(position)
        new = opened.read()
    write(new.decode("utf-8", "replace"))
    return position + len(new)


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0
