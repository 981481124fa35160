"""The server's workflow in an NVFlare job: the engine of every other federation, with sites behind NVFlare."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from nvflare.apis.client import Client
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.controller import Controller
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal

from equipoise.platform.errors import EquipoiseError
from equipoise.platform.federation.nvflare.transport import NVFlareTransport
from equipoise.platform.federation.remote.job import read_job
from equipoise.platform.federation.remote.server import run_remote

#: Environment variable of the server: a folder that outlives jobs, in which a federation resumes.
FOLDER_VARIABLE = "EQUIPOISE_FEDERATION_FOLDER"
#: Folder of the result in the run folder of the job.
RESULT_FOLDER = "equipoise"


class FederationController(Controller):
    """Runs a federation.

    Parameters
    ----------
    job
        What :func:`~equipoise.platform.federation.remote.job.remote_job` makes of a study, as plain data.
    task_check_period
        Seconds between NVFlare's looks at its tasks.
    """

    def __init__(self, job: dict[str, Any], task_check_period: float) -> None:
        super().__init__(task_check_period=task_check_period)
        self.job = job

    def start_controller(self, fl_ctx: FLContext) -> None:
        """Nothing to prepare."""

    def control_flow(self, abort_signal: Signal, fl_ctx: FLContext) -> None:
        """All rounds; an error ends the job with its text in the log of the server."""
        try:
            job = read_job(self.job)
            engine = fl_ctx.get_engine()
            sites = [client.name for client in engine.get_clients()]
            transport = NVFlareTransport(self, fl_ctx, abort_signal, sites, job.params.timeout_s)
            folder = self._folder(fl_ctx, job.identifier)
            result = run_remote(job, transport, folder)
        except EquipoiseError as error:
            self.log_error(fl_ctx, str(error))
            self.system_panic(str(error), fl_ctx)
        else:
            self.log_info(fl_ctx, f"federation of {len(result.history)} rounds: {folder}")

    def stop_controller(self, fl_ctx: FLContext) -> None:
        """Nothing to release."""

    def process_result_of_unknown_task(
        self, client: Client, task_name: str, client_task_id: str, result: Shareable, fl_ctx: FLContext
    ) -> None:
        """An answer after its deadline: the site was recorded as one without an answer."""
        self.log_warning(fl_ctx, f"an answer of {client.name} came too late")

    def _folder(self, fl_ctx: FLContext, federation: str) -> Path:
        if kept := os.environ.get(FOLDER_VARIABLE):
            return Path(kept).expanduser() / federation
        run = fl_ctx.get_engine().get_workspace().get_run_dir(fl_ctx.get_job_id())
        return Path(run) / RESULT_FOLDER / federation
