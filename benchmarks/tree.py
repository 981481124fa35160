"""CPU time and memory of a process and everything below it, read from /proc (Linux)."""

import os
import subprocess
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Usage:
    """What one command took.

    ``process_mb`` is the largest resident memory that a single process ever had (shared pages included), by the first
    word of its command line; Ray's workers call themselves ``ray::<task>``.
    """

    code: int
    wall_s: float
    cpu_s: float
    peak_mb: float
    output: str
    process_mb: dict[str, float] = field(default_factory=dict)


def measure(command: list[str], cwd: Path, interval_s: float = 1.0) -> Usage:
    """Run a command and sample its process tree.

    Memory is the sum of proportional shares (PSS), so that pages shared by Ray's workers count once. CPU seconds are
    those of the tree's processes while they were seen; a process that lives shorter than the interval is missed.
    """
    started = time.perf_counter()
    process = subprocess.Popen(
        command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    peak, cpu, single = 0.0, {}, {}
    done = threading.Event()

    def sample() -> None:
        nonlocal peak
        while not done.wait(interval_s):
            tree = _tree(process.pid)
            peak = max(peak, sum(_pss(pid) for pid in tree) / 2**20)
            cpu.update({pid: _cpu(pid) for pid in tree})
            for pid in tree:
                title = _title(pid)
                single[title] = max(single.get(title, 0.0), _most_resident(pid) / 2**20)

    sampler = threading.Thread(target=sample, daemon=True)
    sampler.start()
    output, _ = process.communicate()
    done.set()
    sampler.join()
    wall = time.perf_counter() - started
    return Usage(process.returncode, wall, sum(cpu.values()), peak, output, single)


def _tree(root: int) -> list[int]:
    """Processes of the session that ``root`` leads, and all descendants (Ray starts sessions of its own)."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(entry.name)] = int(fields[1])
    tree = [root]
    for pid in tree:
        tree += [child for child, parent in parents.items() if parent == pid]
    return tree


def _pss(pid: int) -> float:
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return float(line.split()[1]) * 1024
    except OSError:
        pass
    return 0.0


def _cpu(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICK


def _title(pid: int) -> str:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ").split()
    except OSError:
        return ""
    return words[0] if words else ""


def _most_resident(pid: int) -> float:
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return float(line.split()[1]) * 1024
    except OSError:
        pass
    return 0.0
