"""Clients in a few workers of Ray: patients stay with their worker, weights are broadcast once per round.

Clients are assigned to workers by their number of patients and stay there. A round is one ``ray.put`` of the request
and one call per client; replies are received as they arrive, without polling. Small requests are sent inside the
calls, one call per worker with all its clients, whose replies then arrive together: with small models, messages
dominate the cost of a round. With ``timeout_s``, which limits single clients, every client has its own call. The
state of a client lies in the object store of its node and outlives the worker: if a worker dies, it is replaced by
one with the same clients, and its unfinished requests are executed again with the same result.
"""

from __future__ import annotations

import heapq
import logging
import os
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import ray

from equipoise.platform.cluster.pools import cpu_label_selector
from equipoise.platform.cluster.session import HIDE_GPUS
from equipoise.platform.errors import ResourceError
from equipoise.platform.federation.clients.runner import ClientRunner, ClientSetup, join_all
from equipoise.platform.federation.clients.study_trainer import ClientData
from equipoise.platform.federation.messages import ClientManifest, Reply, TrainRequest, size_of
from equipoise.platform.training.batches import CaseList

log = logging.getLogger("equipoise")

#: A client is given up after this many further workers died while training it.
MAX_DEATHS = 2


#: Requests of up to this many bytes are sent inside the call, to all clients of a worker at once.
SMALL_REQUEST_BYTES = 1 << 16
#: Memory of weights, gradients and messages is freed and needed again for the next client: these settings make the C
#: library keep its pages, which the system would otherwise reclaim and clear (a tenth of a round of 20 MB).
KEEP_PAGES = {"MALLOC_TRIM_THRESHOLD_": str(1 << 30), "MALLOC_MMAP_THRESHOLD_": str(1 << 25)}
#: The state of a client that has not trained yet.
NO_STATE = np.empty(0, np.uint8)


def to_array(data: bytes | memoryview) -> np.ndarray:
    """The bytes as an array: Ray maps arrays into processes without a copy, and copies bytes twice."""
    return np.frombuffer(data, np.uint8) if len(data) else NO_STATE


def from_arrays(parts: list[np.ndarray]) -> list[memoryview]:
    """The message whose parts were stored as arrays."""
    return [part.data for part in parts]


class Worker:
    """A Ray actor: one runner at a time, and the request that its clients are executing."""

    def __init__(self) -> None:
        self._runner: ClientRunner | None = None
        self._last: tuple[Any, TrainRequest] | None = None

    def start(self, setup: ClientSetup, client_data: Mapping[str, ClientData]) -> list[dict[str, Any]]:
        """Set up the runner of these clients; their manifests as plain data."""
        import torch

        torch.set_num_threads(setup.threads)
        self._runner, self._last = ClientRunner(setup, client_data), None
        return [manifest.to_json() for manifest in self._runner.join()]

    def process(self) -> int:
        """Process id of the worker."""
        return os.getpid()

    def train(
        self, published: list[Any], client: str, request_id: str, state: np.ndarray
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """The parts of an update, and the new state of the client."""
        assert self._runner is not None
        if self._last is None or self._last[0] != published[0]:
            self._last = None  # free the weights of the last round before those of this one are loaded
            request = published[0]
            data = request if isinstance(request, bytes) else from_arrays(ray.get(request))
            self._last = request, TrainRequest.from_bytes(data)
        update, kept = self._runner.train(client, self._last[1], request_id, state.data)
        parts = update if isinstance(update, list) else [update]
        # A client that fails keeps its old state.
        return [to_array(part) for part in parts], to_array(kept) if kept else state

    def train_all(self, published: list[Any], asked: list[tuple[str, str]], *states: np.ndarray) -> list[Any]:
        """Update and state of one client after the other; ``asked`` are clients with their request ids."""
        batch = zip(asked, states, strict=True)
        return [
            part
            for (client, request_id), state in batch
            for part in self.train(published, client, request_id, state)
        ]


class PendingRequest(NamedTuple):
    """A request that a client is executing.

    Parameters
    ----------
    published, request_id
        The request and its identifier.
    deaths
        Number of workers that died while executing it.
    alone
        Whether the call was for this client only, so that a worker's death can be attributed to it.
    """

    published: Any
    request_id: str
    deaths: int = 0
    alone: bool = True


class WorkerPool:
    """Workers that several federations use one after the other: folds, trials, strategies under comparison.

    Reusing them saves the import of torch and the start of its threads.

    Parameters
    ----------
    workers
        Number of workers.
    cpus, gpus
        Of each worker; fractions share a CPU or GPU.

    Raises
    ------
    ResourceError
        If the session has not enough CPUs or GPUs.
    """

    def __init__(self, workers: int, *, cpus: float = 1.0, gpus: float = 0.0) -> None:
        have = ray.cluster_resources()
        if not 1 <= workers <= _workers_in(have, cpus, gpus):
            raise ResourceError(
                f"{workers} workers of {cpus:g} CPUs and {gpus:g} GPUs do not fit the session, which has "
                f"{have.get('CPU', 0):g} CPUs and {have.get('GPU', 0):g} GPUs",
                where="federation.workers",
                fix="write fewer workers, a fraction for worker_cpus or worker_gpus, or backend: inline",
            )
        self._class: Any = ray.remote(Worker).options(
            num_cpus=cpus,
            num_gpus=gpus,
            label_selector={} if gpus else cpu_label_selector(),
            max_restarts=0,
            max_task_retries=0,
            # Without a share of their own, clients see the GPUs that they see inline: the device is then the same.
            runtime_env={"env_vars": KEEP_PAGES | ({} if gpus else {HIDE_GPUS: "0"})},
        )
        self.actors: list[Any] = [self._class.remote() for _ in range(workers)]

    def replace(self, index: int) -> Any:
        """Replace a worker that died or hangs."""
        ray.kill(self.actors[index])
        self.actors[index] = self._class.remote()
        return self.actors[index]

    def shutdown(self) -> None:
        """Stop the workers."""
        for actor in self.actors:
            ray.kill(actor)
        self.actors = []


class RayBackend:
    """Clients in the workers of a pool.

    Parameters
    ----------
    setup, client_data
        As for the inline backend.
    pool
        The workers; :meth:`close` does not stop them.
    workers
        Number of workers to use.
    timeout_s
        Seconds without any reply after which the busy workers are given up.
    """

    name = "ray"

    def __init__(
        self,
        setup: ClientSetup,
        client_data: Mapping[str, ClientData],
        pool: WorkerPool,
        *,
        workers: int | None = None,
        timeout_s: float | None = None,
    ) -> None:
        self.workers = min(workers or len(pool.actors), len(pool.actors), len(client_data))
        self._pool, self._timeout = pool, timeout_s
        self._shared = ray.put(setup)
        self._client_data = assign_to_workers(client_data, self.workers)
        self._worker_of = {
            client: index for index, clients in enumerate(self._client_data) for client in clients
        }
        self._states: dict[str, Any] = {}
        self._queued: dict[str, PendingRequest] = {}
        self._pending: dict[str, PendingRequest] = {}
        self._running: dict[Any, tuple[str, Any]] = {}

    def join(self) -> dict[str, ClientManifest]:
        """Set up the clients of every worker; client → its manifest."""
        started = [self._start_worker(index) for index in range(self.workers)]
        return join_all(ClientManifest.from_json(row) for part in ray.get(started) for row in part)

    def publish(self, request: TrainRequest) -> Any:
        """Store the request once per node, or keep it as bytes for the calls if it is small."""
        parts = request.to_parts()
        if size_of(parts) <= SMALL_REQUEST_BYTES:
            return b"".join(parts)
        return ray.put([to_array(part) for part in parts])

    def send(self, published: Any, client: str, request_id: str) -> None:
        """Queue the client for the next call of its worker."""
        self._queued[client] = PendingRequest(published, request_id)

    def receive(self, clients: Collection[str]) -> Reply:
        """The next reply of any of these clients, in order of arrival."""
        self._submit_all()
        while True:
            waiting = [ref for ref, (client, _) in self._running.items() if client in clients]
            done, _ = ray.wait(waiting, num_returns=1, timeout=self._timeout)
            if not done:
                if (given_up := self._on_timeout(waiting)) is not None:
                    return given_up
                continue
            client, state = self._running.pop(done[0])
            pending = self._pending.pop(client)
            try:
                return Reply(client, from_arrays(ray.get(done[0])), state)
            except ray.exceptions.ActorDiedError as error:
                self._replace_worker(self._worker_of[client])
                if pending.deaths >= MAX_DEATHS:
                    return Reply(
                        client, b"", reason=f"its worker died {pending.deaths + 1} times: {_last_line(error)}"
                    )
                self._submit(client, pending._replace(deaths=pending.deaths + pending.alone))
            except ray.exceptions.RayError as error:
                return Reply(client, b"", reason=_last_line(error))

    def commit(self, reply: Reply) -> None:
        """Keep the reference to the new state."""
        if reply.state is not None:
            self._states[reply.client] = reply.state

    def client_states(self) -> dict[str, bytes]:
        """Client → state, fetched from the object store."""
        names = list(self._states)
        states = zip(names, ray.get([self._states[name] for name in names]), strict=True)
        return {name: state.tobytes() for name, state in states if len(state)}

    def restore_states(self, states: Mapping[str, bytes]) -> None:
        """Put states into the object store."""
        self._states = {client: ray.put(to_array(state)) for client, state in states.items()}

    def close(self) -> None:
        """Drop unanswered requests and states."""
        self._queued.clear()
        self._running.clear()
        self._pending.clear()
        self._states.clear()

    def _start_worker(self, index: int) -> Any:
        return self._pool.actors[index].start.remote(self._shared, self._client_data[index])

    def _submit_all(self) -> None:
        """Submit the queued requests: one call per worker if the request is sent as bytes, else one call per client.

        Also one call per client if the time of a client is limited, because a joint call takes as long as all its
        clients together.
        """
        together: dict[tuple[int, int], list[str]] = {}
        for client, pending in self._queued.items():
            if isinstance(pending.published, bytes) and self._timeout is None:
                together.setdefault((self._worker_of[client], id(pending.published)), []).append(client)
            else:
                self._submit(client, pending)
        for (index, _), clients in together.items():
            if len(clients) == 1:
                self._submit(clients[0], self._queued[clients[0]])
                continue
            batch = [self._queued[client]._replace(alone=False) for client in clients]
            states = [self._states.get(client, NO_STATE) for client in clients]
            call = self._pool.actors[index].train_all.options(num_returns=2 * len(clients))
            request_ids = [
                (client, pending.request_id) for client, pending in zip(clients, batch, strict=True)
            ]
            refs = call.remote([batch[0].published], request_ids, *states)
            for client, pending, data, state in zip(clients, batch, refs[::2], refs[1::2], strict=True):
                self._pending[client], self._running[data] = pending, (client, state)
        self._queued.clear()

    def _submit(self, client: str, pending: PendingRequest) -> None:
        call = self._pool.actors[self._worker_of[client]].train.options(num_returns=2)
        # Inside a list the reference is not resolved for every client: the worker fetches the request once.
        data, state = call.remote(
            [pending.published], client, pending.request_id, self._states.get(client, NO_STATE)
        )
        self._pending[client] = pending._replace(alone=True)
        self._running[data] = (client, state)

    def _replace_worker(self, index: int) -> None:
        """Replace the worker and execute the unfinished requests of its clients again."""
        log.warning("a worker with %d clients died and is replaced", len(self._client_data[index]))
        self._pool.replace(index)
        ray.get(self._start_worker(index))
        lost = [ref for ref, (client, _) in self._running.items() if self._worker_of[client] == index]
        for ref in lost:
            ready, _ = ray.wait([ref], timeout=0)
            if ready and _is_available(ref):
                continue  # it had answered before its worker died
            client, _ = self._running.pop(ref)
            self._submit(client, self._pending[client])

    def _on_timeout(self, waiting: list[Any]) -> Reply | None:
        """Handle a timeout: give up the first of the waiting clients and execute the requests of the others again.

        If several clients were in one call it is not known which one hangs: all are asked again, one by one.
        """
        client, _ = self._running[waiting[0]]
        if not self._pending[client].alone:
            self._replace_worker(self._worker_of[client])
            return None
        del self._running[waiting[0]]
        del self._pending[client]
        self._replace_worker(self._worker_of[client])
        return Reply(client, b"", reason=f"no answer within {self._timeout:g} s")


def assign_to_workers(client_data: Mapping[str, ClientData], workers: int) -> list[dict[str, ClientData]]:
    """Assign clients to workers so that all have similar numbers of patients; the largest are assigned first."""
    heap = [(0, index) for index in range(workers)]
    assigned: list[dict[str, ClientData]] = [{} for _ in range(workers)]
    for client in sorted(client_data, key=lambda name: (-len(client_data[name].train), name)):
        load, index = heapq.heappop(heap)
        assigned[index][client] = _with_own_cases(client_data[client])
        heapq.heappush(heap, (load + len(client_data[client].train), index))
    return assigned


def _with_own_cases(data: ClientData) -> ClientData:
    """The data of the client's patients only, so that those of other clients are not sent to its worker."""

    def cut(cases: CaseList | None) -> CaseList | None:
        if cases is None or not isinstance(cases.source, dict):
            return cases
        return replace(cases, source={patient: cases.source[patient] for patient in cases.patients})

    train = cut(data.train)
    assert train is not None
    return ClientData(train, cut(data.val))


def worker_pool_for(clients: int, *, workers: int | None, cpus: float, gpus: float) -> WorkerPool:
    """A pool of the given number of workers; by default as many as the session has free, at most one per client."""
    wanted = max(free_workers(cpus, gpus), 1) if workers is None else workers
    return WorkerPool(min(wanted, clients), cpus=cpus, gpus=gpus)


def free_workers(cpus: float, gpus: float) -> int:
    """Number of workers of this size that could start now."""
    return _workers_in(ray.available_resources(), cpus, gpus)


def _workers_in(resources: Mapping[str, float], cpus: float, gpus: float) -> int:
    wanted = (("CPU", cpus), ("GPU", gpus))
    return min(int(resources.get(name, 0) / each + 1e-9) for name, each in wanted if each)


def _is_available(ref: Any) -> bool:
    try:
        ray.get(ref)
    except ray.exceptions.RayError:
        return False
    return True


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
