"""Opens Ray: a private Ray on this machine, an existing cluster, or the cluster of a submitted job.

All settings of Ray are made here and in :mod:`equipoise.platform.cluster.tokens`: which cluster, token
authentication, the address of the dashboard, the size of the object store, the environment of workers.
No other module calls ``ray.init``, and nothing calls ``ray stop`` (it ends every Ray of the machine).

Signals: ``ray.init`` replaces the driver's SIGTERM handler by its own, which raises ``SystemExit``. A handler of Python
that was there before is put back at once, so that jobs end in the same way with and without Ray.
"""

import json
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from equipoise.platform.cluster import tokens
from equipoise.platform.cluster.machine import memory_bytes, object_store_bytes, shared_memory_free
from equipoise.platform.cluster.params import RayOptions
from equipoise.platform.errors import ResourceError

logger = logging.getLogger(__name__)

Where = Literal["local", "cluster", "job", "open"]

#: Ray itself tries for minutes to reach a port that nobody serves.
CONNECT_TIMEOUT_S = 10.0
#: Set by Ray's job supervisor for the driver of a submitted job.
JOB_VARIABLE = "RAY_JOB_CONFIG_JSON_ENV_VAR"
#: "1": workers that asked for no GPU see none. Without it Ray shows them all GPUs of the node (ray-project/ray#54868).
HIDE_GPUS = "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"


@dataclass(frozen=True)
class Session:
    """A session that :func:`ray_session` opened.

    Attributes
    ----------
    where
        ``local`` (started here), ``cluster`` (connected by address), ``job`` (the cluster of the submitted
        job), ``open`` (a session that was open already and stays open).
    dashboard
        URL of the dashboard, None without one.
    """

    where: Where
    dashboard: str | None = None


@contextmanager
def ray_session(options: RayOptions | None = None) -> Iterator[Session]:
    """Open Ray, or join the open session; a session that was opened here is closed at the end.

    A local Ray ends with the block; from a cluster the driver only disconnects.

    Parameters
    ----------
    options
        Default: ``RayOptions()``. Inside a submitted job the job's cluster is used whatever the address says.

    Raises
    ------
    ResourceError
        No token, a wrong token, a cluster that does not answer, another Ray or Python version there, or a Ray
        that cannot be started here.
    """
    options = options or RayOptions()
    if _is_open():
        yield Session("open", _dashboard())
        return
    where, address = resolve_address(options, os.environ)
    if where == "job" and options.address not in ("auto", address):
        logger.warning("address %s is ignored: a submitted job uses its own cluster", options.address)
    with environment_variables(_session_variables(where, address)), _restore_sigterm():
        import ray

        tokens.refresh()
        try:
            before = signal.getsignal(signal.SIGTERM)
            context = _start_local(options) if where == "local" else _connect(where, address, options)
            _keep_sigterm(before)
            with _remembered(where):
                yield Session(where, _url(context.dashboard_url))
        finally:
            # Disconnects from a cluster; ends only the Ray that ray.init started itself.
            ray.shutdown()


#: Which Ray the open session uses; empty while none is open.
_OPEN: list[Where] = []


@contextmanager
def _remembered(where: Where) -> Iterator[None]:
    _OPEN.append(where)
    try:
        yield
    finally:
        _OPEN.pop()


def may_grow() -> bool:
    """Whether nodes may join the Ray of the open session: not one that was started here."""
    return _OPEN[-1:] != ["local"]


def resolve_address(options: RayOptions, environ: Mapping[str, str]) -> tuple[Where, str]:
    """Which Ray to use, and its address.

    ``auto`` never joins a Ray merely because it runs on the same machine: it may belong to another user. On
    the head node of a cluster, submit a job or name the address.
    """
    if JOB_VARIABLE in environ:
        return "job", environ.get("RAY_ADDRESS", "auto")
    address = options.address
    if address == "auto":
        address = environ.get("RAY_ADDRESS") or "local"
    return ("local" if address == "local" else "cluster"), address


def worker_environment(environ: Mapping[str, str], address: str = "local") -> dict[str, Any]:
    """The runtime environment of the session's workers.

    One OpenMP/BLAS thread per worker: Ray parallelises over processes, and sums are then the same
    everywhere. A number that the user exported, or put into the submitted job's runtime_env, wins. Training
    workers with several CPUs raise theirs with ``torch.set_num_threads`` or
    ``RunConfig(worker_runtime_env=...)``.

    Code is packaged only for ``ray://``, where the driver's machine is no node of the cluster. Local workers
    use this installation; nodes of a cluster have their own; a submitted job brings its code.
    """
    added: dict[str, Any] = {}
    if JOB_VARIABLE in environ:
        # The driver's OMP_NUM_THREADS is ignored: Ray set it for the supervisor that started the driver.
        job = json.loads(environ[JOB_VARIABLE]).get("runtime_env") or {}
        if "OMP_NUM_THREADS" not in (job.get("env_vars") or {}):
            added["env_vars"] = {"OMP_NUM_THREADS": "1"}
    elif address != "local" or "OMP_NUM_THREADS" not in environ:  # a local Ray's workers inherit the variable
        added["env_vars"] = {"OMP_NUM_THREADS": environ.get("OMP_NUM_THREADS", "1")}
    if address.startswith("ray://"):
        added["py_modules"] = [str(Path(__file__).parents[2])]  # .src/equipoise in a checkout
    return added


def _session_environment(environ: Mapping[str, str], address: str = "local") -> dict[str, Any]:
    """:func:`worker_environment`, and GPUs only for those workers that ask for one.

    It is no part of the environment that a job is submitted with: its driver trains as well, and asks for no GPU.
    """
    result = worker_environment(environ, address)
    job = json.loads(environ.get(JOB_VARIABLE, "{}")).get("runtime_env") or {}
    if HIDE_GPUS not in (job.get("env_vars") or {}):
        result["env_vars"] = result.get("env_vars", {}) | {HIDE_GPUS: "1"}
    return result


def session_description() -> dict[str, Any]:
    """A description of the open session for the provenance of a run.

    Returns
    -------
    dict
        ``ray`` and ``python`` versions, ``nodes`` (resources of each living node), ``resources`` (their sum),
        ``dashboard`` (URL or None) and ``job`` (submission id or None).

    Raises
    ------
    ResourceError
        If no session is open.
    """
    if not _is_open():
        raise ResourceError("no Ray session is open", fix="call it inside `with ray_session(...)`")
    import ray

    nodes = [
        {name: amount for name, amount in sorted(node["Resources"].items()) if not name.startswith("node:")}
        for node in ray.nodes()
        if node["Alive"]
    ]
    total: dict[str, float] = {}
    for node in nodes:
        for name, amount in node.items():
            total[name] = total.get(name, 0.0) + amount
    return {
        "ray": ray.__version__,
        "python": _python_version(),
        "nodes": nodes,
        "resources": dict(sorted(total.items())),
        "dashboard": _dashboard(),
        "job": json.loads(os.environ.get(JOB_VARIABLE, "{}")).get("metadata", {}).get("job_submission_id"),
    }


def _session_variables(where: Where, address: str) -> dict[str, str]:
    """Environment of this process while the session is open."""
    # With `uv run` as driver every worker would rebuild the project's environment.
    variables = {"RAY_ENABLE_UV_RUN_RUNTIME_ENV": os.environ.get("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")}
    if where == "local":
        variables |= tokens.local_authentication(os.environ)
    elif where == "cluster":
        variables |= tokens.cluster_authentication(os.environ, address)
    return variables  # a submitted job got mode and token from its supervisor


def _start_local(options: RayOptions) -> Any:
    import ray

    size, warning = object_store_bytes(memory_bytes(), shared_memory_free(), options.object_store_mb)
    if warning:
        logger.warning(warning)
    for attempt in range(2):
        try:
            return ray.init(
                address="local",
                num_cpus=options.cpus,
                num_gpus=options.gpus,
                object_store_memory=size,
                include_dashboard=options.dashboard,
                dashboard_host="127.0.0.1",  # no port named: Ray takes the first free one from 8265 on
                runtime_env=_session_environment(os.environ),
                logging_level=logging.WARNING,
                log_to_driver=False,
            )
        except Exception as error:
            if attempt == 0 and "timed out" in str(error):  # a machine that was busy for half a minute
                logger.warning("Ray did not start in time (%s); trying once more", _first_line(error))
                ray.shutdown()
                continue
            logs = ray_folder() / "ray" / "session_latest" / "logs"
            raise ResourceError(
                f"Ray did not start: {_first_line(error)}",
                where="this machine",
                fix=f"run `equipoise doctor`; Ray's logs are in {logs}",
            ) from error
    raise AssertionError


def ray_folder() -> Path:
    """The folder below which Ray keeps logs and sockets on this machine, as Ray chooses it."""
    return Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp")  # noqa: S108 - as Ray does


def _connect(where: Where, address: str, options: RayOptions) -> Any:
    import ray

    if options.cpus or options.gpus or options.object_store_mb:
        logger.warning("cpus, gpus and object_store_mb apply to a local Ray only; %s keeps its own", address)
    try:
        if where == "cluster":
            _probe(address)
        return ray.init(
            address=address,
            runtime_env=_session_environment(os.environ, address),
            logging_level=logging.WARNING,
            log_to_driver=False,
        )
    except Exception as error:
        raise _connection_error(error, address) from error


def _probe(address: str) -> None:
    """Check that the cluster answers and accepts our token.

    Without this check Ray retries for 20 s with a wrong token, and for minutes where nothing listens, and then names
    neither cause.
    """
    if address == "auto":  # RAY_ADDRESS=auto: whatever `ray start` started on this machine
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
    if not address.startswith("ray://"):
        from ray._raylet import GcsClient  # type: ignore[attr-defined] # what ray.init does first, too

        GcsClient(address=address)


def _connection_error(error: Exception, address: str) -> ResourceError:
    """A ResourceError that explains why a connection failed and how to fix it."""
    import ray
    from ray.exceptions import AuthenticationError

    where = f"Ray at {address}"
    if isinstance(error, AuthenticationError):
        return ResourceError(
            "the cluster refuses the token",
            where=where,
            fix="RAY_AUTH_TOKEN, else the file RAY_AUTH_TOKEN_PATH, else ~/.ray/auth_token (in this order) "
            "must hold the token that the cluster was started with",
        )
    if "Version mismatch" in str(error):
        return ResourceError(
            f"the cluster runs another Ray or Python; {' '.join(str(error).split())}",
            where=where,
            fix=f"use one image everywhere; here: Ray {ray.__version__}, Python {_python_version()}",
        )
    if isinstance(error, OSError | ray.exceptions.RpcError):
        more = "; over ray:// a wrong token looks the same" if address.startswith("ray://") else ""
        return ResourceError(
            f"the cluster does not answer ({_first_line(error)}){more}",
            where=where,
            fix="check host, port (6379 for HOST:PORT, 10001 for ray://) and firewall; from outside the "
            "cluster prefer `ray job submit` through its dashboard",
        )
    return ResourceError(
        f"could not connect: {_first_line(error)}", where=where, fix="run `equipoise doctor`"
    )


def _python_version() -> str:
    return ".".join(map(str, sys.version_info[:3]))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _is_open() -> bool:
    ray = sys.modules.get("ray")  # Ray is not open if it was never imported
    return ray is not None and hasattr(ray, "is_initialized") and ray.is_initialized()


def _dashboard() -> str | None:
    from ray._private.client_mode_hook import is_client_mode_enabled
    from ray._private.worker import get_dashboard_url

    return None if is_client_mode_enabled else _url(get_dashboard_url())


def _url(address: str | None) -> str | None:
    return f"http://{address}" if address and "://" not in address else address or None


@contextmanager
def environment_variables(changes: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables for the block and restore the previous ones."""
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        tokens.refresh()


def _keep_sigterm(before: Any) -> None:
    """Put a handler of Python back that Ray has replaced; the default one would end the process without a word."""
    if callable(before) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _restore_sigterm() -> Iterator[None]:
    """Restore the SIGTERM handler that Ray replaces; only the main thread can set it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
