"""A study as an NVFlare job: three JSON files without code, for sites that have Equipoise installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from equipoise.datasets.atomic_io import atomic_path, write_json
from equipoise.platform.errors import StudyError
from equipoise.platform.federation.remote.job import RemoteJob
from equipoise.platform.federation.remote.server import MIN_SITES

#: Classes that the job names; server and sites have to allow them.
CONTROLLER = "equipoise.platform.federation.nvflare.controller.FederationController"
EXECUTOR = "equipoise.platform.run.nvflare_site.SiteExecutor"
#: Seconds between NVFlare's looks at its tasks.
TASK_CHECK_S = 0.2


def job_files(job: RemoteJob) -> dict[str, dict[str, Any]]:
    """Path in the job's folder → content. Every argument is written: defaults of later versions change nothing."""
    filters: dict[str, list[Any]] = {"task_data_filters": [], "task_result_filters": []}
    workflow = {
        "id": "equipoise",
        "path": CONTROLLER,
        "args": {"job": job.model_dump(mode="json"), "task_check_period": TASK_CHECK_S},
    }
    return {
        "meta.json": {
            "name": job.name,
            "resource_spec": {},
            "min_clients": MIN_SITES,
            "mandatory_clients": [],
            "deploy_map": {"app": ["@ALL"]},
        },
        "app/config/config_fed_server.json": {
            "format_version": 2,
            "workflows": [workflow],
            "components": [],
            **filters,
        },
        "app/config/config_fed_client.json": {
            "format_version": 2,
            "executors": [{"tasks": ["*"], "executor": {"path": EXECUTOR, "args": {}}}],
            "components": [],
            **filters,
        },
    }


def export_job(job: RemoteJob, folder: Path) -> Path:
    """Write the job.

    Raises
    ------
    StudyError
        If the folder holds something else.
    """
    if folder.exists() and not _is_job(folder):
        raise StudyError(
            "the folder holds something else than a job", where=str(folder), fix="name a new folder with -o"
        )
    with atomic_path(folder) as partial:
        for name, content in job_files(job).items():
            path = partial / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, content)
    return folder


def allow_list_line() -> str:
    """The entry for ``local/resources.json`` of the server and every site."""
    return f'"class_allow_list": {json.dumps([CONTROLLER, EXECUTOR])}'


def _is_job(folder: Path) -> bool:
    """Whether a folder holds the files of a job and nothing else."""
    if not folder.is_dir():
        return False
    files = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
    return files <= {"meta.json", "app/config/config_fed_server.json", "app/config/config_fed_client.json"}
