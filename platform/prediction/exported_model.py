"""The folder of an exported model: what it holds, and how it is read and checked.

``config.json`` describes model, tasks and inputs; ``models/<member>/`` has the weights of a member (safetensors) and
its preprocessing (heads, scalers, transforms of tables); ``thresholds.json`` what was fixed on validation patients;
``trust.json``, where there is one, what says how far to trust a prediction; ``README.md`` the model card. Everything is
text and tensors: nothing in the folder is executed. Torch is imported when weights are asked for.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, ValidationError, field_validator

from equipoise.datasets.omics.params import Covariate, RnaEncoderSource
from equipoise.datasets.params import ExpressionKind, StrictParams
from equipoise.datasets.store.spec import StoreSpec
from equipoise.datasets.tables.tasks import Task
from equipoise.platform.errors import DataError, StudyError
from equipoise.platform.prediction.local_files import LocalFile, with_local_files
from equipoise.platform.prediction.operating_points import OperatingPoints
from equipoise.platform.prediction.sealed_folder import MANIFEST, Sealed, verify

if TYPE_CHECKING:
    import torch

    from equipoise.platform.training.crossval import TrainedFold

#: Layout of ``config.json`` and of the folder; raised when a release reads them in another way.
FORMAT = "equipoise-model/1"
CONFIG, THRESHOLDS, TRUST, CARD = "config.json", "thresholds.json", "trust.json", "README.md"
WEIGHTS, PREPROCESSING, ONNX = "model.safetensors", "preprocessing.json", "model.onnx"
#: Largest widths of a tile's vector and of a table: more memory than any model has is not allocated for a file.
MAX_FEATURES, MAX_COLUMNS = 1 << 16, 1 << 20


class MemberSpec(StrictParams):
    """One trained model of the ensemble."""

    name: str = Field(pattern=r"^(\d{1,4}-\d{1,4}|refit)$")
    """Folder below ``models/``: repeat and fold, or ``refit``."""
    repeat: int = Field(ge=0)
    fold: int = Field(ge=0)
    epochs: int = Field(ge=0)
    """Epochs that were trained."""
    best_epoch: int = Field(ge=0)
    """Epoch whose weights these are."""
    frozen: list[str] = Field(default=[])
    """Digests of frozen parts whose weights are not in the folder."""

    def file(self, name: str) -> str:
        """Name of one of its files in the exported folder."""
        return f"models/{self.name}/{name}"


class FeatureSpec(StrictParams):
    """Tile features that the model reads."""

    extraction: dict[str, Any]
    """Section ``features`` of the study, without places."""
    imported: bool
    """Whether the features of training were imported, so that nothing here can extract them."""
    tiles: StoreSpec
    """What made the features of tiles."""
    reads: StoreSpec
    """What made the features that the model reads: those of tiles, or vectors of slides."""

    @field_validator("tiles", "reads", mode="before")
    @classmethod
    def _known_fields(cls, value: Any) -> Any:
        if isinstance(value, dict) and (unknown := set(value) - set(StoreSpec.__dataclass_fields__)):
            raise ValueError(f"unknown fields {', '.join(sorted(unknown))}")
        return value


class TableSpec(StrictParams):
    """Tables that the model reads."""

    modalities: list[str]
    """``rna``, ``cnv``, ``mutation``, ``clinical``."""
    clinical: list[Covariate] = Field(default=[])
    """Covariates."""
    expression: dict[str, Any] | None = None
    """What the RNA of training was: ``kind``, ``base``, ``pseudocount``."""
    rna_encoder: RnaEncoderSource | None = None
    """The encoder that RNA is read through."""
    rna_encoder_fingerprint: str | None = None
    """Identity of the encoder with its weights."""
    rna_adapter: str | None = None
    """Folder of the adapter behind the encoder; always a local file."""

    @property
    def expression_kind(self) -> ExpressionKind | None:
        """Kind of the training RNA."""
        return None if self.expression is None else self.expression["kind"]


class ModelConfig(StrictParams):
    """``config.json``."""

    format: Literal["equipoise-model/1"]
    name: str = Field(min_length=1, max_length=120)
    """Name of the study."""
    synthetic: bool
    """Whether it was trained on SYNTHETIC cohorts."""
    license: str
    made_with: dict[str, Any]
    """Versions of Equipoise, Python and packages that trained it."""
    kind: str
    """Model: ``equipoise ls models``."""
    params: dict[str, Any]
    """Its parameters."""
    models_per_member: int = Field(ge=1)
    """``training.members`` of the study: models whose predictions a member averages."""
    combined: Literal["ensemble", "refit"]
    """``ensemble``: the mean over the models of all folds; ``refit``: one model of all development patients."""
    combined_note: str = ""
    """How the refit came about."""
    threads: int = Field(ge=1)
    """Threads of torch in training; the same number gives the same last bits."""
    tasks: list[Task]
    """Prediction targets with their label maps."""
    reads: list[str]
    """Modalities that the model reads."""
    features: FeatureSpec | None
    tables: TableSpec
    max_fail: float = Field(ge=0, le=1)
    """Share of slides that may fail before a prediction counts as failed."""
    local_files: list[LocalFile]
    """Files of the place where it is used: weights that are not part of the export."""
    members: list[MemberSpec] = Field(min_length=1)

    @property
    def expected_files(self) -> set[str]:
        """Files that the folder must hold, without the list."""
        own = {member.file(name) for member in self.members for name in (WEIGHTS, PREPROCESSING)}
        return {CONFIG, THRESHOLDS, CARD} | own

    @property
    def optional_files(self) -> set[str]:
        """Files that it may hold besides."""
        return {TRUST} | {member.file(ONNX) for member in self.members}


@dataclass(frozen=True)
class ExportedModel:
    """A folder whose content was checked.

    Attributes
    ----------
    sealed
        The folder and what it holds.
    config
        What it says of model and inputs.
    points
        Thresholds and scales.
    """

    sealed: Sealed
    config: ModelConfig
    points: OperatingPoints

    @property
    def path(self) -> Path:
        """Its folder."""
        return self.sealed.path

    def file(self, name: str) -> Path | None:
        """An optional file of the folder; None if it has none."""
        return self.path / name if name in self.sealed.files else None

    def trust(self) -> dict[str, Any] | None:
        """Content of ``trust.json``; None without one."""
        file = self.file(TRUST)
        return None if file is None else _json(file)

    def with_files(self, given: Mapping[str, str]) -> ExportedModel:
        """The model with the places of its local files.

        Parameters
        ----------
        given
            Key of :attr:`ModelConfig.local_files` → path.

        Raises
        ------
        StudyError
            If one is missing, is not asked for, or does not exist.
        """
        return replace(self, config=with_local_files(self.config, self.config.local_files, given))

    def members(self, device: torch.device | None = None) -> list[TrainedFold]:
        """The trained models with their preprocessing, on a device (the CPU if not given).

        Raises
        ------
        DataError
            If weights and preprocessing do not fit the model.
        StudyError
            If no installed package has the model.
        """
        from equipoise.platform.training.crossval import TrainedFold, restore_model
        from equipoise.platform.training.targets import Targets

        config, trained = self.config, []
        for member in config.members:
            data = _json(self.path / member.file(PREPROCESSING))
            try:
                targets = Targets.from_json(data)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise _not_a_model(self.path, member.file(PREPROCESSING), error) from error
            self._require_fit(targets, member)
            model = restore_model(
                config.kind,
                config.params,
                targets,
                self.path / member.file(WEIGHTS),
                members=config.models_per_member,
                frozen=member.frozen,
            )
            about = {"fold": {"repeat": member.repeat, "index": member.fold}}
            trained.append(TrainedFold(model.to(device or "cpu").eval(), targets, about))
        return trained

    def _require_fit(self, targets: Any, member: MemberSpec) -> None:
        """Refuse preprocessing that belongs to other tasks or features, or asks for absurd widths."""
        problems = []
        names = [task.name for task in self.config.tasks]
        if [head.name for head in targets.heads] != names:
            problems.append(f"its tasks are not {', '.join(names)}")
        shape, features = targets.shape, self.config.features
        dim = 0 if features is None else features.reads.dim
        if shape.features not in (0, dim):
            problems.append(f"it is for tiles of {shape.features} features, not of {dim}")
        if shape.features > MAX_FEATURES or any(width > MAX_COLUMNS for width in shape.omics.values()):
            problems.append("it asks for more columns than any model has")
        if unknown := set(shape.omics) - set(self.config.tables.modalities):
            problems.append(f"it reads {', '.join(sorted(unknown))}, which {CONFIG} does not")
        if problems:
            raise DataError(
                f"{member.file(PREPROCESSING)} and {CONFIG} do not belong together: {'; '.join(problems)}",
                where=str(self.path),
                fix="export the model again",
            )


def read_exported(folder: str | Path, *, sha256: str | None = None) -> ExportedModel:
    """Check a folder and read what it says; its weights are not loaded.

    Parameters
    ----------
    folder
        What ``equipoise export`` wrote.
    sha256
        What the SHA-256 of its ``MANIFEST.json`` must be, if it is known.

    Raises
    ------
    DataError
        If a file is not as it was exported, is missing or too much, or the folder is of another version.
    """
    path = Path(folder).expanduser()
    sealed = verify(path, sha256=sha256)
    if CONFIG not in sealed.files:
        raise DataError(f"{CONFIG} is not listed", where=f"{path}/{MANIFEST}", fix="export the model again")
    data = _json(path / CONFIG)
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        said = data.get("format") if isinstance(data, dict) else None
        raise DataError(
            f"{CONFIG} has the format {said!r}, this release reads {FORMAT}",
            where=str(path),
            fix="import it with the release that exported it",
        )
    try:
        config = ModelConfig.model_validate(data)
    except (ValidationError, StudyError) as error:
        raise _not_a_model(path, CONFIG, error) from error
    listed = set(sealed.files)
    if missing := sorted(config.expected_files - listed):
        raise DataError(f"{missing[0]} is missing", where=str(path), fix="export the model again")
    if extra := sorted(listed - config.expected_files - config.optional_files):
        raise DataError(
            f"{extra[0]} is no file of an exported model", where=str(path), fix="export the model again"
        )
    try:
        points = OperatingPoints.from_json(_json(path / THRESHOLDS))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _not_a_model(path, THRESHOLDS, error) from error
    return ExportedModel(sealed, config, points)


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{file.name} is damaged", where=str(file.parent), fix="export the model again"
        ) from error


def _not_a_model(path: Path, file: str, error: Exception) -> DataError:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        said = f"{'.'.join(map(str, first['loc']))}: {first['msg'].removeprefix('Value error, ')}"
    else:
        said = f"{type(error).__name__} {error}"
    return DataError(
        f"{file} describes no model that this release can read: {said}",
        where=str(path),
        fix="import it with the release that exported it, and with the packages that the model comes from",
    )
