"""A site of a federation of hospitals: its own file of data, and the study that a job makes of it.

The file names cohorts and the feature store, as a study file does, and nothing else: tasks, model and all other
settings are those of the job.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import Field, ValidationError

from equipoise.datasets.atomic_io import read_json, write_text
from equipoise.datasets.params import CohortSource, Columns, StrictParams
from equipoise.platform.errors import StudyError
from equipoise.platform.federation.remote.job import OF_SITE, RemoteJob, read_job
from equipoise.platform.run.context import read_cohorts, read_inputs, store_root_of
from equipoise.platform.run.loading import CHECKS
from equipoise.platform.study.messages import describe_errors
from equipoise.platform.study.reading import study_of_text
from equipoise.platform.yaml_files import parse, read_text

if TYPE_CHECKING:
    from equipoise.platform.federation.remote.site import SiteData
    from equipoise.platform.study.schema import Study

#: Environment variable: the site's file, or a folder with ``<site>.yaml`` where one machine plays several sites.
SITE_VARIABLE = "EQUIPOISE_SITE"
#: The file without the variable, in the home folder of the user that runs NVFlare.
SITE_FILE = "equipoise_site.yaml"
#: The part of a job's folder that holds the job.
_SERVER_CONFIG = "app/config/config_fed_server.json"


class SiteFile(StrictParams):
    """Where a site's data are. Paths are relative to the file."""

    cohorts: list[CohortSource] = Field(min_length=1)
    """As in a study: ``role: develop`` trains, validates and tests, ``role: external`` is only predicted."""
    columns: Columns = Field(default_factory=Columns)
    """As in a study."""
    features: dict[str, Any] = Field(default_factory=dict)
    """``store``, and what else of the section each site says for itself."""
    folder: str = "equipoise_federation"
    """Where state, predictions and the model are written."""


def site_file(site: str) -> Path:
    """The data file of a site on this machine.

    Raises
    ------
    StudyError
        If there is none.
    """
    named = os.environ.get(SITE_VARIABLE)
    path = Path(named).expanduser() if named else Path.home() / SITE_FILE
    if path.is_dir():
        path = path / f"{Path(site).name}.yaml"
    if not path.is_file():
        raise StudyError(
            f"site {site} has no file that says where its data are",
            where=str(path),
            fix=f"write it (docs/federation.md), or name it in the environment variable {SITE_VARIABLE}",
        )
    return path


def read_site_file(path: Path) -> tuple[SiteFile, dict[str, Any]]:
    """A site's file, checked, and as it is written.

    Raises
    ------
    StudyError
        With every problem.
    """
    try:
        text = read_text(path)
    except FileNotFoundError:
        raise StudyError(
            "no such file of a site", where=str(path), fix="docs/federation.md has one"
        ) from None
    data, tree = parse(text, str(path))
    if not isinstance(data, dict):
        raise StudyError("a site's file is a mapping with cohorts", where=str(path))
    try:
        site = SiteFile.model_validate(data)
    except ValidationError as error:
        lines = "\n".join(f"  {line}" for line in describe_errors(error, tree, SiteFile, set()))
        raise StudyError(f"not valid\n{lines}", where=str(path)) from None
    if foreign := sorted(set(site.features) - set(OF_SITE)):
        raise StudyError(
            f"features.{foreign[0]} is the same at all sites",
            where=str(path),
            fix=f"leave it out; a site says {', '.join(OF_SITE)}",
        )
    return site, data


def site_study_text(path: Path, job: RemoteJob) -> str:
    """The study of a site: its data with the settings of a job, as YAML."""
    _, data = read_site_file(path)
    recipe = job.recipe.model_dump(mode="json")
    study = {
        "version": 1,
        "name": job.name,
        "seed": recipe["seed"],
        "synthetic": job.synthetic,
        "cohorts": data["cohorts"],
        "columns": data.get("columns", {}),
        "tasks": [task.model_dump(mode="json") for task in job.tasks],
        "tables": recipe["tables"],
        "features": job.features | data.get("features", {}),
        "model": {"kind": recipe["model"], **recipe["model_params"]},
        "balancing": recipe["balancing"],
        "training": recipe["training"],
        "splits": job.splits,
        "federation": job.federation.model_dump(mode="json"),
    }
    return yaml.safe_dump(study, sort_keys=False, allow_unicode=True)


def site_study(path: Path, job: RemoteJob) -> Study:
    """:func:`site_study_text`, checked like every study.

    Raises
    ------
    StudyError
        With every problem at once.
    """
    return study_of_text(site_study_text(path, job), path, None, CHECKS)


def write_site_study(path: Path, job: Path, out: Path) -> Path:
    """Write the study of a site's file and an exported job, with which the site validates and extracts at home.

    Raises
    ------
    StudyError
        If one of them cannot be used, or ``out`` is not beside the site's file, from whose folder paths start.
    """
    text = site_study_text(path, exported_job(job))
    if out.resolve().parent != path.resolve().parent or out.resolve() == path.resolve():
        raise StudyError(
            "the study of a site lies beside its file, because paths start from their folder",
            where=str(out),
            fix=f"write -o {path.parent / 'study.yaml'}",
        )
    study_of_text(text, out, None, CHECKS)
    write_text(out, text)
    return out


def exported_job(folder: Path) -> RemoteJob:
    """The job in the folder that ``equipoise federate --export`` wrote.

    Raises
    ------
    StudyError
        If there is none.
    """
    config = read_json(folder / _SERVER_CONFIG)
    try:
        (workflow,) = config["workflows"]
        data = workflow["args"]["job"]
    except (TypeError, KeyError, ValueError):
        raise StudyError(
            "no exported job",
            where=str(folder),
            fix="name the folder that `equipoise federate --export nvflare -o DIR` has written",
        ) from None
    return read_job(data)


def read_site(site: str, job: RemoteJob) -> SiteData:
    """Read the patients of a site and split them into training, validation and test part.

    Raises
    ------
    EquipoiseError
        If its file, tables or features cannot be used.
    """
    from equipoise.datasets.cohorts.splits import make_folds
    from equipoise.platform.federation.remote.site import SiteData
    from equipoise.platform.training.batches import CaseList

    path = site_file(site).resolve()
    study = site_study(path, job)
    inputs = read_inputs(study, read_cohorts(study), store_root_of(study))
    patients, slides = inputs.cohorts.patients, inputs.cohorts.slides
    folds = make_folds(patients, study.split_scheme, study.tasks, study.seed, slides)
    if job.fold >= len(folds):
        raise StudyError(f"fold {job.fold} of {len(folds)}", fix=f"export a fold from 0 to {len(folds) - 1}")
    inside, outside = inputs.cases("develop"), inputs.cases("external")
    cases = dict(inside) if inputs.tiles is None else inside
    folder = path.parent / Path(read_site_file(path)[0].folder).expanduser()
    return SiteData(cases, folds[job.fold], CaseList(outside, tuple(outside)), folder)
