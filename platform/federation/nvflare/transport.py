"""Questions and answers as tasks of an NVFlare workflow."""

from __future__ import annotations

import queue
from collections.abc import Sequence
from typing import Any

from nvflare.apis.controller_spec import ClientTask, Task, TaskCompletionStatus
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.controller import Controller
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal

from equipoise.platform.errors import FederationError
from equipoise.platform.federation.remote.exchange import Delivery

#: Name of the only task, and the key of its bytes.
TASK, MESSAGE = "equipoise", "message"
#: Seconds after which it is looked whether the job was aborted.
ABORT_CHECK_S = 0.5


class NVFlareTransport:
    """Carries bytes as tasks of a controller; callbacks of NVFlare's threads put deliveries into a queue.

    Parameters
    ----------
    controller
        Whose tasks they are.
    fl_ctx, abort_signal
        Of its run.
    sites
        Names of the clients.
    timeout_s
        Seconds after which a task without an answer is given up; None for no limit.
    """

    name = "nvflare"

    def __init__(
        self,
        controller: Controller,
        fl_ctx: FLContext,
        abort_signal: Signal,
        sites: Sequence[str],
        timeout_s: float | None,
    ) -> None:
        self._controller, self._context, self._abort = controller, fl_ctx, abort_signal
        self.sites = tuple(sorted(sites))
        self._timeout = 0 if timeout_s is None else max(1, round(timeout_s))
        self._arrived: queue.SimpleQueue[Delivery] = queue.SimpleQueue()

    def send(self, number: int, data: bytes, sites: Sequence[str]) -> None:
        """One task for all of these sites."""
        waiting = set(sites)

        def received(client_task: ClientTask, fl_ctx: FLContext) -> None:
            site, result = client_task.client.name, client_task.result
            waiting.discard(site)
            code = result.get_return_code()
            message = result.get(MESSAGE)
            if code == ReturnCode.OK and isinstance(message, bytes):
                self._arrived.put(Delivery(site, number, message))
            else:
                self._arrived.put(Delivery(site, number, b"", f"NVFlare: {code}"))
            client_task.result = None

        def done(task: Task, fl_ctx: FLContext) -> None:
            reason = _REASONS.get(task.completion_status, f"NVFlare: {task.completion_status}")
            for site in sorted(waiting):
                self._arrived.put(Delivery(site, number, b"", reason))
            waiting.clear()

        task = Task(
            name=TASK,
            data=Shareable({MESSAGE: data}),
            timeout=self._timeout,
            result_received_cb=received,
            task_done_cb=done,
        )
        self._controller.broadcast(task, self._context, targets=list(sites), min_responses=0)

    def receive(self) -> Delivery:
        """The next delivery.

        Raises
        ------
        FederationError
            If the job is aborted.
        """
        while True:
            try:
                return self._arrived.get(timeout=ABORT_CHECK_S)
            except queue.Empty:
                if self._abort.triggered:
                    raise FederationError("NVFlare has aborted the job") from None


_REASONS: dict[Any, str] = {
    TaskCompletionStatus.TIMEOUT: "no answer before federation.timeout_s",
    TaskCompletionStatus.CLIENT_DEAD: "the process of the site has ended",
}
