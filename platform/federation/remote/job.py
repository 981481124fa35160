"""What a federation of hospitals is told: the study without cohorts, as plain JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, ValidationError

from equipoise.datasets.params import StrictParams
from equipoise.datasets.remote.addresses import is_remote
from equipoise.datasets.tables.tasks import Task
from equipoise.platform.errors import StudyError
from equipoise.platform.federation.params import FederationParams
from equipoise.platform.fingerprints import content_hash
from equipoise.platform.training.params import Recipe

if TYPE_CHECKING:
    from equipoise.platform.study.schema import Study

#: Keys of ``features`` that each site says for itself.
OF_SITE = ("store", "imported", "max_fail", "chunk_tiles", "shard_slides", "retry")
#: Settings of the federation that have no meaning where clients are hospitals: defaults are exported.
OF_SIMULATION = ("sites", "evaluation", "backend", "workers", "worker_cpus", "worker_gpus", "clock")


class RemoteJob(StrictParams):
    """Everything that server and sites must agree on; nothing about patients, no path."""

    name: str
    """Of the study."""
    synthetic: bool = False
    """Whether the study says that its data are SYNTHETIC."""
    tasks: list[Task] = Field(min_length=1)
    """What is predicted."""
    recipe: Recipe
    """Model, balancing, training, tables, seed."""
    federation: FederationParams
    """How sites train together."""
    features: dict[str, Any]
    """How slides become features; each site adds its store."""
    splits: dict[str, Any]
    """How each site cuts a validation and a test part from its own patients."""
    fold: int = Field(default=0, ge=0)
    """Which of the folds of ``splits`` is trained."""

    @property
    def params(self) -> FederationParams:
        """The section with a value for everything that it leaves to ``training``."""
        return self.federation.in_training(self.recipe.training)

    @property
    def identifier(self) -> str:
        """Hash of all settings: names the federation at the sites."""
        return content_hash([json.dumps(self.model_dump(mode="json"), sort_keys=True)])


def remote_job(study: Study, fold: int = 0) -> RemoteJob:
    """What of a study goes to hospitals.

    Raises
    ------
    StudyError
        If the study has no ``federation`` section, names a file that sites do not have, or asks for what cannot be done
        without the patients.
    """
    from equipoise.platform.training.build import recipe_of

    if study.federation is None:
        raise StudyError(
            "the study has no federation section", where=str(study.file), fix="write federation: {}"
        )
    refused = []
    if study.federation.candidates:
        refused.append("federation.candidates: train one federation of the settings that a simulation chose")
    plain = study.federation.model_copy(
        update={
            name: FederationParams.model_fields[name].get_default(call_default_factory=True)
            for name in OF_SIMULATION
        }
    )
    federation = FederationParams.model_validate(plain.model_dump(mode="json"))
    if study.federation.clock.failures or study.federation.clock.deadline is not None:
        refused.append("federation.clock: late and failing clients are simulated; hospitals have their own")
    if problem := _scheme_problem(study):
        refused.append(problem)
    features = study.features.model_dump(mode="json", exclude=set(OF_SITE))
    job = {
        "name": study.name,
        "synthetic": study.synthetic,
        "tasks": [task.model_dump(mode="json") for task in study.tasks],
        "recipe": recipe_of(study).model_dump(mode="json"),
        "federation": federation.model_dump(mode="json"),
        "features": features,
        "splits": study.splits.model_dump(mode="json"),
        "fold": fold,
    }
    refused += [
        f"{key}: {value!r} is a file of this machine, which the sites do not have"
        for key, value in named_files(job, study.base)
    ]
    if refused:
        raise StudyError(
            "the study cannot be exported to hospitals\n" + "\n".join(f"  {line}" for line in refused),
            where=str(study.file),
            fix="leave these settings out, or change them, for the export: -s KEY=VALUE",
        )
    return read_job(job)


def read_job(data: dict[str, Any]) -> RemoteJob:
    """The job of plain data.

    Raises
    ------
    StudyError
        If it is not one, naming the key.
    """
    try:
        return RemoteJob.model_validate(data)
    except ValidationError as error:
        lines = [
            f"  {'.'.join(map(str, item['loc']))}: {item['msg']}"
            for item in error.errors(include_url=False)[:6]
        ]
        raise StudyError(
            "the federation's job cannot be used\n" + "\n".join(lines),
            fix="export it again with the version of Equipoise that server and sites have",
        ) from None


def named_files(value: Any, base: Path, key: str = "") -> list[tuple[str, str]]:
    """Key and text of every setting that is an address, an absolute path or a file beside the study."""
    if isinstance(value, str):
        named = Path(value).expanduser()
        looks = is_remote(value) or named.is_absolute() or value.startswith(("./", "../", "~"))
        return [(key, value)] if looks or ("/" in value and (base / named).exists()) else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [
        found
        for name, item in items
        for found in named_files(item, base, f"{key}.{name}" if key else str(name))
    ]


def _scheme_problem(study: Study) -> str | None:
    """Why the study's split scheme cannot be applied to the patients of one site alone."""
    splits = study.splits
    if (
        splits.keeps_sites_whole
        or splits.names_patients
        or not {"folds", "test_fraction"} & set(type(splits).model_fields)
    ):
        return (
            f"splits.scheme: each site splits its own patients, and {splits.scheme} needs others: write kfold"
        )
    return None
