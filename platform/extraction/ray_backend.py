"""The stages as a Ray Data pipeline: planner tasks, then a pool of encoder actors; a row is a slide or a chunk of one.

Ray schedules, retries and restarts; no state that must survive is kept in Ray. A worker that dies is started again,
takes the same slide and sees the attempt marker of its predecessor.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, cast

from equipoise.platform.cluster.pools import cpu_label_selector, require_room
from equipoise.platform.cluster.session import may_grow
from equipoise.platform.cluster.standard_error import without_lines
from equipoise.platform.errors import ResourceError
from equipoise.platform.extraction.chunks import Row
from equipoise.platform.extraction.monitoring import WorkerCounters
from equipoise.platform.extraction.stages import one_thread

if TYPE_CHECKING:
    from ray.data import Dataset

log = logging.getLogger(__name__)

#: Share of a CPU that a planner task asks for. Less than one, so that planners and encoders have different
#: resources (Ray would otherwise fuse them) and planning goes on when all CPUs have encoders.
_PLANNER_CPUS = 0.1

#: Loggers of Ray Data that report every execution.
_NOISY_LOGGERS = (
    "ray.data._internal.progress",
    "ray.data._internal.execution.streaming_executor",
    # Advice to programmers of Ray, such as to reserve memory for workers that hold one slide at a time.
    "ray.data._internal.issue_detection.issue_detector_manager",
)


class Stages(Protocol):
    """Builds both stages, in this process or in another: small, and safe to send to workers."""

    @property
    def label(self) -> str:
        """Name of the encoder."""
        ...

    @property
    def gpus(self) -> float:
        """Share of a GPU that a worker needs."""
        ...

    def planner(self) -> Callable[[Row], list[Row]]:
        """The first stage."""
        ...

    def encoder(self) -> Callable[[Row], Row]:
        """The second stage, with its encoder built."""
        ...


def run_on_ray(rows: list[Row], stages: Stages, workers: int | None) -> Iterator[Row]:
    """Run both stages over all rows on the open Ray session.

    Parameters
    ----------
    rows
        The manifest, at least one row.
    stages
        Builds the stages.
    workers
        Maximum number of encoder actors. ``None``: as many as the cluster has CPUs (GPUs for encoders that need one)
        when the run starts. More than that: the pool grows with the cluster.

    Yields
    ------
    Rows of the second stage, such as those of :class:`~equipoise.platform.extraction.stages.TileEncodingStage`, in the
    order in which they end. They have ``encoded``, ``reading`` and ``encoding`` for the counters.

    Raises
    ------
    ResourceError
        If a worker cannot build the encoder, its encoder differs from the driver's, its disk is full, or no node holds
        a worker.
    """
    import ray
    from ray.data import DataContext

    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_errored_blocks = 0  # slides fail as rows; an exception here is a bug and must be seen
    context.execution_options.preserve_order = False
    context.target_max_block_size = 1  # a block for every chunk of a slide: else one worker gets them all
    # An actor has one slide at a time (see below), so the utilisation of a pool never exceeds 1.0. It grows by a third
    # where three of four actors work: one at a time, a large slide would be half done before the pool is complete.
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 0.75
    resources = ray.cluster_resources()
    gpus = gpu_share(stages.gpus, workers, resources, may_grow())
    require_room(
        {"CPU": 1.0 - _PLANNER_CPUS, "GPU": gpus},
        f"a worker of the encoder {stages.label}",
        where="resources",
        fix="run where nodes have them, lower resources.gpus_per_worker, or write device: cpu for the encoder",
    )
    labels = {} if gpus else cpu_label_selector()
    # Of the nodes that Ray Data asks an autoscaler for.
    context.execution_options.label_selector = labels or None
    with DataContext.current(context), _quiet():
        dataset = _pipeline(rows, stages, pool_size(workers, len(rows), resources, gpus), gpus, labels)
        for row in dataset.iter_rows():
            if row["refused"]:
                what, where, fix = json.loads(row["refused"])
                raise ResourceError(what, where=where, fix=fix)
            yield row


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the messages of Ray Data about starts, ends and progress bars: we report progress ourselves.

    Ray's C++ core also prints a line for every actor pool, because Ray Data puts two arguments of its own into the
    object store (ray-project/ray#57733). It warns of arguments that are lost before an actor restarts; the driver holds
    these for as long as the pool lives.
    """
    loggers = [logging.getLogger(name) for name in _NOISY_LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with without_lines("has constructor arguments in the object store"):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def pool_size(
    workers: int | None, slides: int, resources: Mapping[str, float], gpus: float
) -> tuple[int, int]:
    """Minimum and maximum number of encoder actors.

    Parameters
    ----------
    workers
        As for :func:`run_on_ray`.
    slides
        Number of slides; more actors are started when chunks of large slides wait for one.
    resources
        Resources of the cluster as it is now.
    gpus
        Share of a GPU that an encoder needs; 0 for one that runs on a CPU.

    Returns
    -------
    minimum, maximum
        Actors to start with and to grow to. Equal for a pool that does not grow.
    """
    now = resources.get("GPU", 0.0) / gpus if gpus else resources.get("CPU", 0.0)
    fitting = max(1, int(now))
    maximum = fitting if workers is None else workers
    return max(1, min(fitting, maximum, slides)), maximum


def gpu_share(
    wanted: float, workers: int | None, resources: Mapping[str, float], may_grow: bool = True
) -> float:
    """The share of a GPU to request; 0 if the cluster has none and the study does not say that it will have one.

    Ray waits for ever for a resource that no node has. A study that states the maximum size of the pool
    (``resources.workers``) is taken to run on a cluster that may still start its GPU nodes, unless Ray was started
    here.
    """
    if wanted and not resources.get("GPU") and (workers is None or not may_grow):
        log.warning("this Ray cluster has no GPU: the encoder runs on CPUs, which is slow")
        return 0.0
    return wanted


def _pipeline(
    rows: list[Row], stages: Stages, size: tuple[int, int], gpus: float, labels: dict[str, str]
) -> Dataset:
    import ray
    from ray.data import ActorPoolStrategy, TaskPoolStrategy

    minimum, maximum = size
    # One row is one block: a block is what Ray schedules, retries and returns.
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    planned = dataset.flat_map(
        cast(Any, _plan),  # Ray's types know functions of a row only
        fn_kwargs={"stages": stages},
        compute=TaskPoolStrategy(size=(maximum + 1) // 2),
        num_cpus=_PLANNER_CPUS,
        label_selector=labels or None,
    )
    return planned.map(
        cast(Any, _Encode),
        fn_constructor_kwargs={"stages": stages},
        # A second slide queued at a busy actor would be a slide that an idle actor cannot take.
        compute=ActorPoolStrategy(min_size=minimum, max_size=maximum, max_tasks_in_flight_per_actor=1),
        num_cpus=1.0 - _PLANNER_CPUS,
        num_gpus=gpus or None,
        label_selector=labels or None,
    )


def _plan(row: Row, stages: Stages) -> list[Row]:
    one_thread()
    try:
        return stages.planner()(row)
    except ResourceError as error:
        return [_refusal(error)]


def _refusal(error: ResourceError) -> Row:
    """The row that takes an error of this machine to the driver."""
    return {"refused": json.dumps([error.what, error.where, error.fix])}


class _Encode:
    """An encoder actor: libraries are limited to one thread before the encoder is built.

    An error about this machine (missing weights, another encoder, a full disk) is sent to the driver as a row. Raised
    here, users would see a dead actor with a traceback of Ray.
    """

    def __init__(self, stages: Stages) -> None:
        one_thread()
        self._refused: Row | None = None
        try:
            self._encode = stages.encoder()
        except ResourceError as error:
            self._refused = _refusal(error)
            return
        self._counters = WorkerCounters(stages.label)

    def __call__(self, row: Row) -> Row:
        if self._refused is not None:
            return self._refused
        if row.get("refused"):  # the planner could not work
            return row
        try:
            status = self._encode(row)
        except ResourceError as error:
            return _refusal(error)
        self._counters.add(status["encoded"], status["reading"], status["encoding"])
        return status | {"refused": ""}
