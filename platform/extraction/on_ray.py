"""The stages as a Ray Data pipeline: planner tasks, then a pool of encoder actors; a row is a slide or a region of one.

Ray schedules, retries and restarts; it holds no state that matters. A worker that dies is started again, takes the
same slide and finds the mark of its predecessor.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from equipoise.platform.errors import ResourceError
from equipoise.platform.extraction.counters import WorkCounters
from equipoise.platform.extraction.plan_row import Row
from equipoise.platform.extraction.stages import Setup, one_thread

if TYPE_CHECKING:
    from ray.data import Dataset

log = logging.getLogger(__name__)

#: Share of a CPU that a planner task asks for. Not a whole one, so that planners and encoders have different
#: resources (Ray would otherwise fuse them) and a machine filled with encoders still plans.
_PLANNER_CPUS = 0.1

#: Loggers of Ray Data that speak of every execution.
_TALKERS = ("ray.data._internal.progress", "ray.data._internal.execution.streaming_executor")


def on_ray(rows: list[Row], setup: Setup, workers: int | None) -> Iterator[Row]:
    """Run both stages over all rows on the Ray that is open.

    Parameters
    ----------
    rows
        The manifest, at least one row.
    setup
        For the stages.
    workers
        Most encoder actors. ``None``: as many as the cluster has CPUs, or GPUs for encoders that want one, when the
        run starts. More than that: the pool grows with the cluster.

    Yields
    ------
    Status rows of :class:`~equipoise.platform.extraction.stages.SlideEncoder`, in the order in which slides and
    regions end.

    Raises
    ------
    ResourceError
        If a worker cannot build the encoder, or has another one than the driver.
    """
    from ray.data import DataContext

    context = DataContext.get_current().copy()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.max_errored_blocks = 0  # slides fail as rows; an exception here is a bug and must be seen
    context.execution_options.preserve_order = False
    context.target_max_block_size = 1  # a block for every region of a slide: else one worker gets them all
    # An actor has one slide at a time (see below), so a pool is used to 1.0 and no more. It grows by a third where
    # three of four actors work: one at a time, a giant slide would be half done before the pool is complete.
    context.autoscaling_config.actor_pool_util_upscaling_threshold = 0.75
    with DataContext.current(context), _quiet():
        dataset = _pipeline(rows, setup, workers)
        for row in dataset.iter_rows():
            if row["refused"]:
                what, where, fix = json.loads(row["refused"])
                raise ResourceError(what, where=where, fix=fix)
            yield row


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Ray Data from announcing that it starts, ends and shows no bars: we report progress ourselves.

    One line stays, "Actor ... has constructor arguments in the object store": Ray's C++ core says it of every actor
    pool, because Ray Data puts its own two arguments there (ray-project/ray#57733). Ours are a few hundred bytes.
    """
    loggers = [logging.getLogger(name) for name in _TALKERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def pool_size(
    workers: int | None, slides: int, resources: Mapping[str, float], gpus: float
) -> tuple[int, int]:
    """Fewest and most encoder actors.

    Parameters
    ----------
    workers
        As for :func:`on_ray`.
    slides
        Number of slides; more actors are started when regions of giant slides wait for one.
    resources
        Of the cluster as it is now.
    gpus
        Share of a GPU that an encoder wants; 0 for one that runs on a CPU.

    Returns
    -------
    fewest, most
        Actors to start with and to grow to. Equal for a pool that does not grow.
    """
    now = resources.get("GPU", 0.0) / gpus if gpus else resources.get("CPU", 0.0)
    fitting = max(1, int(now))
    most = fitting if workers is None else workers
    return max(1, min(fitting, most, slides)), most


def gpu_share(wanted: float, workers: int | None, resources: Mapping[str, float]) -> float:
    """The share of a GPU to ask for; 0 where there is none and none was announced.

    Ray waits for ever for a resource that nobody has. A study that says how far the pool may grow
    (``resources.workers``) runs on a cluster that may still start its GPU nodes, and is taken at its word.
    """
    if wanted and not resources.get("GPU") and workers is None:
        log.warning("no GPU in this Ray: the encoder runs on CPUs, which is slow")
        return 0.0
    return wanted


def _pipeline(rows: list[Row], setup: Setup, workers: int | None) -> Dataset:
    import ray
    from ray.data import ActorPoolStrategy, TaskPoolStrategy

    resources = ray.cluster_resources()
    gpus = gpu_share(setup.gpus, workers, resources)
    fewest, most = pool_size(workers, len(rows), resources, gpus)
    # One row is one block: a block is what Ray schedules, retries and returns.
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows))
    planned = dataset.flat_map(
        cast(Any, _plan),  # Ray's types know functions of a row only
        fn_kwargs={"setup": setup},
        compute=TaskPoolStrategy(size=(most + 1) // 2),
        num_cpus=_PLANNER_CPUS,
    )
    return planned.map(
        cast(Any, _Encode),
        fn_constructor_kwargs={"setup": setup},
        # A second slide waiting at a busy actor would be a slide that an idle one cannot take.
        compute=ActorPoolStrategy(min_size=fewest, max_size=most, max_tasks_in_flight_per_actor=1),
        num_cpus=1.0 - _PLANNER_CPUS,
        num_gpus=gpus or None,
    )


def _plan(row: Row, setup: Setup) -> list[Row]:
    one_thread()
    return setup.planner()(row)


class _Encode:
    """An encoder actor: libraries kept to one thread before the encoder is built.

    What the machine lacks travels to the driver as a row. Raised here, it would reach people as a dead actor with a
    traceback of Ray.
    """

    def __init__(self, setup: Setup) -> None:
        one_thread()
        self._refused = ""
        try:
            self._encode = setup.encoder()
        except ResourceError as error:
            self._refused = json.dumps([error.what, error.where, error.fix])
            return
        self._counters = WorkCounters(setup.label)

    def __call__(self, row: Row) -> Row:
        if self._refused:
            return {"refused": self._refused}
        done = self._encode(row)
        self._counters.add(done["encoded"], done["reading"], done["encoding"])
        return done | {"refused": ""}
