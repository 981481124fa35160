"""Resources of this machine or container: memory, CPUs, shared memory."""

import os
import shutil
from pathlib import Path

MEBIBYTE = 2**20
#: Ample for bags of features; pixels never enter the object store.
OBJECT_STORE_CAP = 2 * 2**30
#: Ray refuses an object store below 75 MiB.
OBJECT_STORE_FLOOR = 80 * MEBIBYTE
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - the mount point, not a file in it


def memory_bytes() -> int:
    """Memory we may use: the machine's, or the container's limit (cgroup v2, v1) if that is lower."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            limits.append(int(Path(name).read_text()))
        except (OSError, ValueError):  # absent, or "max"
            continue
    return min(limits)


def cpu_count() -> float:
    """CPUs we may use: those the scheduler gives us, or the container's quota (cgroup v2) if lower."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return min(float(affinity), int(quota) / int(period))
    except (OSError, ValueError):  # absent, or "max 100000"
        return float(affinity)


def shared_memory_free() -> int | None:
    """Free bytes of shared memory, None on systems without ``/dev/shm``."""
    try:
        return shutil.disk_usage(SHARED_MEMORY).free
    except OSError:
        return None


def object_store_bytes(
    memory: int, shared: int | None, requested_mb: int | None = None
) -> tuple[int, str | None]:
    """Size of Ray's object store, and a warning if shared memory is too small for it.

    The size is always given to Ray explicitly: its own default takes 30 % of the memory, however much that
    is.

    Parameters
    ----------
    memory
        Memory of the machine or container, bytes.
    shared
        Free shared memory, bytes; None where there is no such thing.
    requested_mb
        Requested by the user, MiB.

    Returns
    -------
    tuple
        Bytes, and a sentence for the user or None.
    """
    wanted = requested_mb * MEBIBYTE if requested_mb else min(int(0.3 * memory), OBJECT_STORE_CAP)
    wanted = max(wanted, OBJECT_STORE_FLOOR)
    if shared is None or wanted <= 0.9 * shared:
        return wanted, None
    free = f"{SHARED_MEMORY} has {shared // MEBIBYTE} MiB free"
    advice = f"start the container with --shm-size=2g, or free {SHARED_MEMORY}"
    fitting = int(0.9 * shared)
    if fitting < OBJECT_STORE_FLOOR:
        # Ray then puts the store into its temporary folder by itself; keep it small there.
        on_disk = min(wanted, 512 * MEBIBYTE)
        return on_disk, f"{free}: the object store is kept on disk, which is slow; {advice}"
    sizes = f"{fitting // MEBIBYTE} MiB instead of {wanted // MEBIBYTE} MiB"
    return fitting, f"{free}: the object store gets {sizes}; {advice}"
