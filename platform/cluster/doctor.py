"""``equipoise doctor``: is this machine ready?

One small function per check; each returns a status, details, and a fix if the status is not PASS.
No check raises: an error inside a check is a FAIL with its message.
"""

import importlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from equipoise.platform.cluster.machine import (
    MEBIBYTE,
    SHARED_MEMORY,
    cpu_count,
    memory_bytes,
    object_store_bytes,
    shared_memory_free,
)
from equipoise.platform.cluster.session import ray_folder

Status = Literal["PASS", "WARN", "FAIL"]
GIBIBYTE = 2**30
#: Bytes that the path of a unix socket may have on Linux, without the final zero.
SOCKET_PATH_LIMIT = 107
#: What Ray appends to its temporary folder for its longest socket.
SOCKET_PATH = "ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
INSTALL = "run `make setup`, or `pip install --constraint constraints.txt --editable .`"
INSTALL_RAY = "pip install 'ray[tune,train,data,default]==2.60.*'"


@dataclass(frozen=True)
class Finding:
    """Result of one check."""

    status: Status
    detail: str
    fix: str | None = None


@dataclass(frozen=True)
class Check:
    """One line of the doctor's table; ``fix`` is None where nothing needs fixing."""

    name: str
    status: Status
    detail: str
    fix: str | None = None


def checks(profile: str = "cpu", folder: Path | str = ".") -> list[Check]:
    """Examine this machine.

    Parameters
    ----------
    profile
        ``cpu``, ``gpu`` (a CUDA device is a must) or ``cluster`` (a token and a valid cluster file are, too).
    folder
        The working folder: runs and features are written below it.

    Raises
    ------
    ValueError
        If the profile is unknown. Nothing else is raised.
    """
    if profile not in ("cpu", "gpu", "cluster"):
        raise ValueError(f"profile {profile!r} is none of cpu, gpu, cluster")
    folder = Path(folder)
    functions: list[tuple[str, Callable[[], Finding]]] = [
        ("python", python_version),
        ("packages", installed_versions),
        ("openslide", openslide_reads),
        ("torch", partial(torch_device, needed=profile == "gpu")),
        ("ray", ray_imports),
        ("ray dashboard", dashboard_imports),
        ("ray token", partial(token, needed=profile == "cluster")),
        ("ray temporary folder", temporary_folder),
        ("shared memory", shared_memory),
        ("cpus", cpus),
        ("memory", memory),
        ("open files", open_files),
        ("disk", partial(disk, folder)),
        ("working folder", partial(writable, folder)),
        ("weights", weights),
    ]
    if profile == "cluster":
        functions.append(("cluster.yaml", partial(cluster_file, folder / "cluster.yaml")))
    return [_run_check(name, function) for name, function in functions]


def _run_check(name: str, function: Callable[[], Finding]) -> Check:
    try:
        result = function()
    except Exception as error:
        text = " ".join(str(error).split())
        result = Finding("FAIL", f"could not be checked: {type(error).__name__}: {text}", INSTALL)
    return Check(name, result.status, result.detail, result.fix)


def python_version(current: tuple[int, ...] = sys.version_info[:3]) -> Finding:
    """Python 3.11 or newer."""
    text = ".".join(map(str, current))
    if current < (3, 11):
        return Finding("FAIL", text, "Equipoise needs Python 3.11: make PYTHON=/path/to/python3.11 setup")
    return Finding("PASS", text)


def installed_versions(lookup: Callable[[str], str] = version) -> Finding:
    """Ray of the minor version this was written for, pandas below 3."""
    versions = {}
    for name in ("ray", "pandas", "numpy", "pyarrow"):
        try:
            versions[name] = lookup(name)
        except PackageNotFoundError:
            return Finding("FAIL", f"{name} is not installed", INSTALL)
    text = " ".join(f"{name} {number}" for name, number in versions.items())
    if not versions["ray"].startswith("2.60."):
        return Finding("FAIL", text, f"Ray's interfaces move between minors: {INSTALL_RAY}")
    if int(versions["pandas"].partition(".")[0]) >= 3:
        return Finding("FAIL", text, "lifelines needs pandas below 3: pip install 'pandas>=2.3,<3'")
    return Finding("PASS", text)


def openslide_reads() -> Finding:
    """OpenSlide reads the colour of a JPEG slide that this check writes."""
    import numpy as np
    import openslide

    red = np.zeros((64, 64, 3), np.uint8)
    red[..., 0] = 200
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "tiny.tif")
        _write_slide(path, red)
        with openslide.OpenSlide(path) as slide:
            pixel = np.asarray(slide.read_region((0, 0), 0, (64, 64)))[32, 32, :3].astype(int)
    text = f"libopenslide {openslide.__library_version__}, openslide-python {openslide.__version__}"
    if np.abs(pixel - (200, 0, 0)).max() > 8:
        return Finding("FAIL", f"{text}: reads {tuple(pixel)} where (200, 0, 0) was written", INSTALL)
    return Finding("PASS", f"{text}, reads a slide")


def _write_slide(path: Path, rgb: "object") -> None:
    """A slide of a single JPEG tile."""
    import simplejpeg

    from equipoise.datasets.synthetic.tiff import TiffWriter, TiledImage, picture_tags, tile_tags

    with path.open("wb") as file:
        writer = TiffWriter(file)
        image = TiledImage(64, 64, 64)
        writer.tile(image, simplejpeg.encode_jpeg(rgb, quality=95, colorsubsampling="420"))
        writer.directory([*picture_tags(64, 64, subfile=0), *tile_tags(writer, image)])


def torch_device(needed: bool = False) -> Finding:
    """PyTorch computes; on a GPU if there is one."""
    import torch

    text = f"torch {torch.__version__}"
    if not torch.cuda.is_available():
        text += (
            " for CPUs" if torch.version.cuda is None else f" for CUDA {torch.version.cuda}, no device found"
        )
        fix = "check `nvidia-smi`, and that torch is a CUDA build: pip install torch==2.13.0"
        return Finding("FAIL", text, fix) if needed else Finding("PASS", text)
    device = torch.cuda.get_device_properties(0)
    ones = torch.ones(64, 64, device="cuda")
    if float((ones @ ones).sum()) != 64.0**3:
        return Finding("FAIL", f"{text}: {device.name} computes wrongly", "check driver and device")
    count = torch.cuda.device_count()
    return Finding("PASS", f"{text}, {count} x {device.name}, {device.total_memory / GIBIBYTE:.0f} GiB")


def ray_imports() -> Finding:
    """Ray with its parts for data, training and search."""
    for name in ("ray", "ray.data", "ray.tune"):
        importlib.import_module(name)
    return Finding("PASS", f"ray {version('ray')} with data and tune")


def dashboard_imports() -> Finding:
    """What jobs and the dashboard need beyond the bare ``ray``."""
    try:
        importlib.import_module("ray.dashboard.optional_deps")
    except ImportError as error:
        return Finding("FAIL", f"{error}; `ray job submit` would not work", INSTALL_RAY)
    return Finding("PASS", "jobs and dashboard can start")


def token(needed: bool = False) -> Finding:
    """Whether a token for clusters is configured."""
    from equipoise.platform.cluster.tokens import token_source
    from equipoise.platform.errors import ResourceError

    try:
        source = token_source(os.environ)
    except ResourceError as error:
        return Finding("FAIL", f"{error.where}: {error.what}", error.fix)
    if source:
        return Finding("PASS", f"token for clusters in {source}")
    if needed:
        fix = "`ray get-auth-token --generate`, or set RAY_AUTH_TOKEN_PATH to the cluster's token"
        return Finding("FAIL", "no token for clusters", fix)
    return Finding("PASS", "a fresh token for each local Ray; none for clusters")


def temporary_folder() -> Finding:
    """Ray's temporary folder can be written, and its socket paths are short enough."""
    base = ray_folder()
    length = len(str(base / SOCKET_PATH).encode())
    if length > SOCKET_PATH_LIMIT:
        return Finding(
            "FAIL",
            f"{base}: sockets would have paths of {length} bytes, the system allows {SOCKET_PATH_LIMIT}",
            "set RAY_TMPDIR to a short path such as /tmp",
        )
    return writable(base)


def shared_memory() -> Finding:
    """Room for Ray's object store."""
    free = shared_memory_free()
    size, warning = object_store_bytes(memory_bytes(), free)
    if warning:
        detail, _, fix = warning.rpartition("; ")
        return Finding("WARN", detail, fix)
    where = f"{free // MEBIBYTE} MiB free in {SHARED_MEMORY}" if free is not None else "not limited"
    return Finding("PASS", f"{where}, object store {size // MEBIBYTE} MiB")


def cpus() -> Finding:
    """At least two CPUs."""
    count = cpu_count()
    if count < 2:
        return Finding("WARN", f"{count:g}", "it works, slowly: Ray's own processes need a CPU, too")
    return Finding("PASS", f"{count:g}")


def memory() -> Finding:
    """Enough memory for Ray, its workers and a model."""
    size = memory_bytes() / GIBIBYTE
    if size < 3:
        return Finding("FAIL", f"{size:.1f} GiB", "4 GiB are the least, 8 GiB are comfortable for the demo")
    if size < 7:
        return Finding("WARN", f"{size:.1f} GiB", "enough for the demo with --max-cpus 2; slides want more")
    return Finding("PASS", f"{size:.1f} GiB")


def open_files() -> Finding:
    """Ray holds many sockets and files open."""
    try:
        import resource
    except ImportError:  # not a unix
        return Finding("PASS", "no limit of this kind")
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if limit != resource.RLIM_INFINITY and limit < 8192:
        return Finding("WARN", f"at most {limit}", "ulimit -n 65536, or raise the limit of the container")
    return Finding("PASS", "unlimited" if limit == resource.RLIM_INFINITY else f"at most {limit}")


def disk(folder: Path) -> Finding:
    """Room for features and runs; Ray stops spilling on a disk that is 95 % full."""
    usage = shutil.disk_usage(_existing(folder))
    free, full = usage.free / GIBIBYTE, 1 - usage.free / usage.total
    text = f"{free:.1f} GiB free in {folder.resolve()}"
    if free < 1:
        return Finding("FAIL", text, "free some space, or work in another folder")
    if free < 10 or full > 0.95:
        return Finding("WARN", f"{text}, {full:.0%} full", "a thousand slides give about 30 GiB of features")
    return Finding("PASS", text)


def writable(folder: Path) -> Finding:
    """A file can be written and removed."""
    try:
        with tempfile.TemporaryFile(dir=_existing(folder)) as file:
            file.write(b"equipoise")
    except OSError as error:
        return Finding("FAIL", f"{folder.resolve()}: {error.strerror}", "work in another folder")
    return Finding("PASS", f"{folder.resolve()} can be written")


def weights() -> Finding:
    """Which encoders are ready to use, and which lack their weights."""
    from equipoise.models.encoders.weights import find_hub_weights
    from equipoise.platform.registry import entries

    ready, missing = [], []
    for name, entry in entries("encoders").items():
        card, fields = getattr(entry.params, "card", None), entry.params.model_fields
        if any(field.is_required() for key, field in fields.items() if key != "weights"):
            continue  # a study has to say what the encoder is
        if "weights" not in fields:
            ready.append(name)
        elif card is None:
            missing.append(name)
        else:
            try:
                find_hub_weights(card)
                ready.append(name)
            except FileNotFoundError:
                missing.append(name)
    detail = f"ready: {', '.join(ready)}" + (f"; no weights here: {', '.join(missing)}" if missing else "")
    return Finding(
        "PASS" if ready else "WARN", detail, None if ready else "docs/encoders.md says how to get weights"
    )


def cluster_file(path: Path) -> Finding:
    """The cluster file is valid, if there is one."""
    from equipoise.platform.cluster.cluster_file import validate_cluster

    if not path.exists():
        return Finding("WARN", f"no {path.name} here", "only `ray up` needs it: copy the project's")
    problems = validate_cluster(path)
    if problems:
        return Finding("FAIL", "; ".join(problems), "fix these lines before `ray up`")
    return Finding("PASS", "valid (checked offline)")


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    folder = folder.resolve()
    while not folder.exists():
        folder = folder.parent
    return folder
