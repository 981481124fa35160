"""What runs at a site in an NVFlare job."""

from __future__ import annotations

from abc import abstractmethod
from functools import partial

from nvflare.apis.executor import Executor
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.shareable import Shareable, make_reply
from nvflare.apis.signal import Signal

from equipoise.platform.federation.nvflare.transport import MESSAGE, TASK
from equipoise.platform.federation.remote.job import RemoteJob
from equipoise.platform.federation.remote.site import Site, SiteData


class BaseSiteExecutor(Executor):
    """Answers the server's questions; a subclass reads the data of the site."""

    def __init__(self) -> None:
        super().__init__()
        self._site: Site | None = None

    @abstractmethod
    def read(self, site: str, job: RemoteJob) -> SiteData:
        """The patients of a site for a job."""

    def execute(
        self, task_name: str, shareable: Shareable, fl_ctx: FLContext, abort_signal: Signal
    ) -> Shareable:
        """The answer to a question."""
        question = shareable.get(MESSAGE)
        if task_name != TASK or not isinstance(question, bytes):
            return make_reply(ReturnCode.TASK_UNKNOWN)
        if self._site is None:
            name = fl_ctx.get_identity_name()
            self._site = Site(name, partial(self.read, name))
        return Shareable({MESSAGE: self._site.answer(question)})
