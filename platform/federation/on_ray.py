"""Clients in a few workers of Ray: patients stay with their worker, weights are broadcast once per round.

Clients are packed into workers by their number of patients and stay there. A round is one ``ray.put`` of the order
and one call per client; replies are taken as they come, without polling. Small orders travel in the calls, one call
per worker with all its clients, whose replies then come together: with small models messages are what a round costs.
Where ``timeout_s`` watches over single clients, every client has a call of its own. A client's state lies in the
object store of its node and outlives the worker: if a worker dies, another one is built with the same clients, and
what it had begun is begun again, with the same result.
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

from equipoise.platform.errors import ResourceError
from equipoise.platform.federation.backend import Reply
from equipoise.platform.federation.client import ClientData, Setup, Workshop
from equipoise.platform.federation.manifest import Manifest
from equipoise.platform.federation.order import Order
from equipoise.platform.federation.wire import size_of
from equipoise.platform.training.batches import CaseList

log = logging.getLogger("equipoise")

#: Workers in a row that may die of the same client before it is given up.
MAX_DEATHS = 2


#: Bytes of an order up to which it is sent in the call, to all clients of a worker at once.
SMALL = 1 << 16
#: Weights, gradients and messages of a client are freed and needed again for the next one: the C library keeps their
#: pages, which the system would otherwise take back, and clear, every time (about a tenth of a round of 20 MB).
KEEP_PAGES = {"MALLOC_TRIM_THRESHOLD_": str(1 << 30), "MALLOC_MMAP_THRESHOLD_": str(1 << 25)}
#: The state of a client that has not trained yet.
NOTHING = np.empty(0, np.uint8)


def mapped(data: bytes | memoryview) -> np.ndarray:
    """The same bytes as an array: Ray maps arrays into processes, and copies everything else twice."""
    return np.frombuffer(data, np.uint8) if len(data) else NOTHING


def seen(pieces: list[np.ndarray]) -> list[memoryview]:
    """The message that was mapped piece by piece."""
    return [piece.data for piece in pieces]


class Worker:
    """An actor: one workshop at a time, and the order that its clients are working on."""

    def __init__(self) -> None:
        self._workshop: Workshop | None = None
        self._last: tuple[Any, Order] | None = None

    def equip(self, setup: Setup, members: Mapping[str, ClientData]) -> list[dict[str, Any]]:
        """Take these clients in; what each declares, as plain data."""
        import torch

        torch.set_num_threads(setup.training.threads)
        self._workshop, self._last = Workshop(setup, members), None
        return [manifest.to_json() for manifest in self._workshop.join()]

    def process(self) -> int:
        """Number of the worker's process."""
        return os.getpid()

    def work(
        self, published: list[Any], client: str, nonce: str, state: np.ndarray
    ) -> tuple[list[np.ndarray], np.ndarray]:
        """An update in pieces, and a state."""
        assert self._workshop is not None
        if self._last is None or self._last[0] != published[0]:
            self._last = None  # let the last round's weights go before those of this one come
            order = published[0]
            data = order if isinstance(order, bytes) else seen(ray.get(order))
            self._last = order, Order.from_bytes(data)
        update, kept = self._workshop.work(client, self._last[1], nonce, state.data)
        pieces = update if isinstance(update, list) else [update]
        # A client that fails goes on from what it had.
        return [mapped(piece) for piece in pieces], mapped(kept) if kept else state

    def work_all(self, published: list[Any], asked: list[tuple[str, str]], *states: np.ndarray) -> list[Any]:
        """Update and state of one client after the other; ``asked`` are clients with their nonces."""
        jobs = zip(asked, states, strict=True)
        return [
            part for (client, nonce), state in jobs for part in self.work(published, client, nonce, state)
        ]


class Job(NamedTuple):
    """An order that a client is working on.

    Parameters
    ----------
    published, nonce
        The order.
    deaths
        Workers that died of it.
    alone
        Whether the call was for this client only, so that it is known who killed a worker.
    """

    published: Any
    nonce: str
    deaths: int = 0
    alone: bool = True


class Crew:
    """Workers that several federations use one after the other: folds, trials, strategies to be compared.

    A process that has imported torch and started its threads is worth keeping.

    Parameters
    ----------
    workers
        How many.
    cpus, gpus
        Of each; fractions share a CPU or GPU.

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
            max_restarts=0,
            max_task_retries=0,
            runtime_env={"env_vars": KEEP_PAGES},
        )
        self.actors: list[Any] = [self._class.remote() for _ in range(workers)]

    def replace(self, place: int) -> Any:
        """A new worker in place of one that died or hangs."""
        ray.kill(self.actors[place])
        self.actors[place] = self._class.remote()
        return self.actors[place]

    def dismiss(self) -> None:
        """End the workers."""
        for actor in self.actors:
            ray.kill(actor)
        self.actors = []


class OnRay:
    """Clients in the workers of a crew.

    Parameters
    ----------
    setup, members
        As for the inline backend.
    crew
        Workers; not ended by :meth:`close`.
    workers
        How many of them to use.
    timeout_s
        Seconds without any reply after which the workers at work are given up.
    """

    name = "ray"

    def __init__(
        self,
        setup: Setup,
        members: Mapping[str, ClientData],
        crew: Crew,
        *,
        workers: int | None = None,
        timeout_s: float | None = None,
    ) -> None:
        self.workers = min(workers or len(crew.actors), len(crew.actors), len(members))
        self._crew, self._timeout = crew, timeout_s
        self._shared = ray.put(setup)
        self._members = pack_clients(members, self.workers)
        self._place = {client: at for at, own in enumerate(self._members) for client in own}
        self._states: dict[str, Any] = {}
        self._started: dict[str, Job] = {}
        self._jobs: dict[str, Job] = {}
        self._running: dict[Any, tuple[str, Any]] = {}

    def join(self) -> dict[str, Manifest]:
        """Give every worker its clients; what each declares."""
        equipped = [self._equip(place) for place in range(self.workers)]
        found = [Manifest.from_json(row) for part in ray.get(equipped) for row in part]
        return {manifest.client: manifest for manifest in sorted(found, key=lambda m: m.client)}

    def publish(self, order: Order) -> Any:
        """One copy of the weights per node and round, or in every call if they are small."""
        pieces = order.pieces()
        return b"".join(pieces) if size_of(pieces) <= SMALL else ray.put([mapped(piece) for piece in pieces])

    def start(self, published: Any, client: str, nonce: str) -> None:
        """Put the client down for its worker's next call."""
        self._started[client] = Job(published, nonce)

    def wait(self, clients: Collection[str]) -> Reply:
        """The next reply of any of these clients, whoever is first."""
        self._call()
        while True:
            waiting = [ref for ref, (client, _) in self._running.items() if client in clients]
            done, _ = ray.wait(waiting, num_returns=1, timeout=self._timeout)
            if not done:
                if (given_up := self._hung(waiting)) is not None:
                    return given_up
                continue
            client, state = self._running.pop(done[0])
            job = self._jobs.pop(client)
            try:
                return Reply(client, seen(ray.get(done[0])), state)
            except ray.exceptions.ActorDiedError as error:
                self._rebuild(self._place[client])
                if job.deaths >= MAX_DEATHS:
                    return Reply(
                        client, b"", reason=f"its worker died {job.deaths + 1} times: {_last_line(error)}"
                    )
                self._begin(client, job._replace(deaths=job.deaths + job.alone))
            except ray.exceptions.RayError as error:
                return Reply(client, b"", reason=_last_line(error))

    def commit(self, reply: Reply) -> None:
        """Keep the handle of the new state."""
        if reply.state is not None:
            self._states[reply.client] = reply.state

    def states(self) -> dict[str, bytes]:
        """Client → state, fetched."""
        names = list(self._states)
        found = zip(names, ray.get([self._states[name] for name in names]), strict=True)
        return {name: state.tobytes() for name, state in found if len(state)}

    def restore(self, states: Mapping[str, bytes]) -> None:
        """Put states into the object store."""
        self._states = {client: ray.put(mapped(state)) for client, state in states.items()}

    def close(self) -> None:
        """Forget what was not answered."""
        self._started.clear()
        self._running.clear()
        self._jobs.clear()
        self._states.clear()

    def _equip(self, place: int) -> Any:
        return self._crew.actors[place].equip.remote(self._shared, self._members[place])

    def _call(self) -> None:
        """Send out what was started: a worker's clients in one call where the order is in it, else one by one.

        One by one, too, where the time of a client is limited: one call is as long as all its clients together.
        """
        together: dict[tuple[int, int], list[str]] = {}
        for client, job in self._started.items():
            if isinstance(job.published, bytes) and self._timeout is None:
                together.setdefault((self._place[client], id(job.published)), []).append(client)
            else:
                self._begin(client, job)
        for (place, _), own in together.items():
            if len(own) == 1:
                self._begin(own[0], self._started[own[0]])
                continue
            jobs = [self._started[client]._replace(alone=False) for client in own]
            states = [self._states.get(client, NOTHING) for client in own]
            call = self._crew.actors[place].work_all.options(num_returns=2 * len(own))
            nonces = [(client, job.nonce) for client, job in zip(own, jobs, strict=True)]
            refs = call.remote([jobs[0].published], nonces, *states)
            for client, job, data, state in zip(own, jobs, refs[::2], refs[1::2], strict=True):
                self._jobs[client], self._running[data] = job, (client, state)
        self._started.clear()

    def _begin(self, client: str, job: Job) -> None:
        call = self._crew.actors[self._place[client]].work.options(num_returns=2)
        # In a list, the order is not copied for every client: the worker fetches it once.
        data, state = call.remote([job.published], client, job.nonce, self._states.get(client, NOTHING))
        self._jobs[client] = job._replace(alone=True)
        self._running[data] = (client, state)

    def _rebuild(self, place: int) -> None:
        """Another worker for the same clients; their orders begin again."""
        log.warning("a worker with %d clients died and is built again", len(self._members[place]))
        self._crew.replace(place)
        ray.get(self._equip(place))
        lost = [ref for ref, (client, _) in self._running.items() if self._place[client] == place]
        for ref in lost:
            ready, _ = ray.wait([ref], timeout=0)
            if ready and _is_whole(ref):
                continue  # it had answered before the end
            client, _ = self._running.pop(ref)
            self._begin(client, self._jobs[client])

    def _hung(self, waiting: list[Any]) -> Reply | None:
        """Nobody answered for too long: give up on the first of the clients, begin the others again.

        Where several clients were in one call it is not known who hangs: all of them are asked again, one by one.
        """
        client, _ = self._running[waiting[0]]
        if not self._jobs[client].alone:
            self._rebuild(self._place[client])
            return None
        del self._running[waiting[0]]
        del self._jobs[client]
        self._rebuild(self._place[client])
        return Reply(client, b"", reason=f"no answer within {self._timeout:g} s")


def pack_clients(members: Mapping[str, ClientData], workers: int) -> list[dict[str, ClientData]]:
    """Clients in workers such that each has about as many patients; the largest are placed first."""
    heap = [(0, at) for at in range(workers)]
    packed: list[dict[str, ClientData]] = [{} for _ in range(workers)]
    for client in sorted(members, key=lambda name: (-len(members[name].train), name)):
        load, at = heapq.heappop(heap)
        packed[at][client] = _own(members[client])
        heapq.heappush(heap, (load + len(members[client].train), at))
    return packed


def _own(data: ClientData) -> ClientData:
    """The client's patients and nobody else's: a dictionary of all of them would travel with every client."""

    def cut(cases: CaseList | None) -> CaseList | None:
        if cases is None or not isinstance(cases.source, dict):
            return cases
        return replace(cases, source={patient: cases.source[patient] for patient in cases.patients})

    train = cut(data.train)
    assert train is not None
    return ClientData(train, cut(data.val))


def crew_for(clients: int, *, workers: int | None, cpus: float, gpus: float) -> Crew:
    """As many workers as asked for; by default as many as the session has free, and no more than clients."""
    wanted = max(free_workers(cpus, gpus), 1) if workers is None else workers
    return Crew(min(wanted, clients), cpus=cpus, gpus=gpus)


def free_workers(cpus: float, gpus: float) -> int:
    """Workers of this size that could start at once."""
    return _workers_in(ray.available_resources(), cpus, gpus)


def _workers_in(resources: Mapping[str, float], cpus: float, gpus: float) -> int:
    wanted = (("CPU", cpus), ("GPU", gpus))
    return min(int(resources.get(name, 0) / each + 1e-9) for name, each in wanted if each)


def _is_whole(ref: Any) -> bool:
    try:
        ray.get(ref)
    except ray.exceptions.RayError:
        return False
    return True


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
