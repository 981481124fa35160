"""From a finished run to the folder of an exported model.

The weights are those of the run, byte for byte. Nothing of a patient leaves: no identifier, no row, no time of an
event, no name of a site, no path. What stays is what prediction needs: heads, scalers, medians, means and spreads of
columns, thresholds. Cohorts keep the names that the study gives them: the card says on whom the model was tested, and
the drift check which training cohort new patients are nearest to.
"""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equipoise.datasets.atomic_io import atomic_path, read_json, read_whole_json
from equipoise.datasets.omics.params import CLINICAL
from equipoise.platform.errors import DataError, StudyError
from equipoise.platform.prediction.exported_model import (
    CARD,
    CONFIG,
    ONNX,
    PREPROCESSING,
    THRESHOLDS,
    TRUST,
    WEIGHTS,
    ExportedModel,
    MemberSpec,
    ModelConfig,
    read_exported,
)
from equipoise.platform.prediction.local_files import LocalFile, without_places
from equipoise.platform.prediction.onnx_model import write_onnx
from equipoise.platform.prediction.operating_points import OperatingPoints, RiskScale
from equipoise.platform.prediction.sealed_folder import seal

if TYPE_CHECKING:
    from equipoise.platform.prediction.trust import Trust
    from equipoise.platform.study.schema import Study

log = logging.getLogger("equipoise")

#: What the run's models read, written by the step ``extract``: file below ``manifest/``.
MODEL_INPUTS = "model_inputs.json"
#: Settings of an extraction that say where it ran, not what it computed.
_OF_THE_PLACE = ("imported", "store", "chunk_tiles", "shard_slides", "retry", "max_fail")


@dataclass(frozen=True)
class Refit:
    """One model of all development patients.

    Attributes
    ----------
    folder
        With the files of a fold.
    risks
        Survival task → scale of the risks of the patients that it was trained on.
    note
        How it was trained, for the card.
    """

    folder: Path
    risks: dict[str, RiskScale]
    note: str


def export_run(
    run: Path,
    out: Path,
    study: Study,
    *,
    license_name: str | None = None,
    refit: Refit | None = None,
    trust: Trust | None = None,
    onnx: bool = False,
) -> ExportedModel:
    """Write the folder of an exported model, whole or not at all.

    Parameters
    ----------
    run
        A run folder whose folds are trained and evaluated.
    out
        A folder that does not exist yet, or is empty.
    study
        The study of the run.
    license_name
        Licence of the weights; the card says that none was stated if not given.
    refit
        Export this model in place of the ensemble of the folds.
    trust
        What says how far to trust its predictions.
    onnx
        Write every member as ONNX, too.

    Raises
    ------
    DataError
        If a fold is not as its training wrote it, or the folder is not empty.
    StudyError
        If a step is missing.
    """
    from equipoise.platform.prediction.card import model_card
    from equipoise.platform.prediction.reliability import reliability
    from equipoise.platform.report.run_files import RunFiles

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(
            "the folder is not empty", where=str(out), fix="name a folder that does not exist yet with -o"
        )
    files = RunFiles(run)
    folders = _fold_folders(run)
    predictions = files.predictions
    if predictions is None:
        raise StudyError("the run was not evaluated", where=str(run), fix="run `equipoise evaluate`")
    points = OperatingPoints.fit(predictions, study.tasks, study.evaluation.threshold)
    sources = folders
    if refit is not None:
        points, sources = points.for_refit(refit.risks), {"refit": refit.folder}
    config = _config(run, study, sources, license_name, refit)
    with atomic_path(out) as temporary:
        temporary.mkdir()
        for member in config.members:
            target = temporary / member.file(WEIGHTS)
            target.parent.mkdir(parents=True)
            shutil.copyfile(sources[member.name] / WEIGHTS, target)
            _write(temporary / member.file(PREPROCESSING), preprocessing(sources[member.name]))
        _write(temporary / CONFIG, config.model_dump(mode="json"))
        _write(temporary / THRESHOLDS, points.to_json())
        card = model_card(config, points, files, study)
        if trust is not None:
            _write(temporary / TRUST, trust.to_dict())
            card += reliability(trust, predictions)
        (temporary / CARD).write_text(card, encoding="utf-8")
        digest = seal(temporary)
        parts = [file.name for file in config.local_files if file.key.startswith("params.")]
        if onnx and parts:
            raise StudyError(
                f"a part of the model is not in the export ({', '.join(parts)}), and a graph holds all of it",
                where="--onnx",
                fix="export it without --onnx",
            )
        # Loaded once, so that nothing leaves that cannot be loaded elsewhere.
        models = [] if parts else read_exported(temporary, sha256=digest).members()
        if onnx:
            for member, trained in zip(config.members, models, strict=True):
                worst = write_onnx(trained, config.kind, config.reads, temporary / member.file(ONNX))
                log.info("onnx %s: onnxruntime and torch differ by %.1e at most", member.name, worst)
            seal(temporary)
        read_exported(temporary)
        if out.exists():
            out.rmdir()
    return read_exported(out)


def preprocessing(fold: Path) -> dict[str, Any]:
    """What a fold fitted on its training patients, without the names of sites and without times of events."""
    from equipoise.platform.training.targets import Targets

    targets = Targets.from_json(read_json(fold / "targets.json"))
    tasks = []
    for task in targets.tasks:
        text = task.head.text
        if text is not None:  # the curve of the training patients is read by the loss alone
            task = replace(task, head=replace(task.head, text=replace(text, days=(), survival=())))
        tasks.append(task)
    return replace(targets, tasks=tuple(tasks), sites=(), cohorts=()).to_json()


def _write(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _fold_folders(run: Path) -> dict[str, Path]:
    """Name → folder of every fold of the run, as its training wrote it."""
    from equipoise.datasets.cohorts.splits import splits_from_json
    from equipoise.platform.training.crossval import fold_folder
    from equipoise.platform.training.fold_files import require_whole

    splits = read_whole_json(run / "manifest" / "splits.json")
    if splits is None:
        raise StudyError("no model was trained in this run", where=str(run), fix="run `equipoise train`")
    folders = {}
    for fold in splits_from_json(splits):
        folder = fold_folder(run / "folds", fold)
        if not folder.is_dir():
            raise StudyError(
                f"fold {fold.name} is not trained yet", where=str(run), fix="run `equipoise train`"
            )
        require_whole(folder, fold)
        folders[fold.name] = folder
    return folders


def _config(
    run: Path, study: Study, sources: dict[str, Path], license_name: str | None, refit: Refit | None
) -> ModelConfig:
    inputs = read_whole_json(run / "manifest" / MODEL_INPUTS)
    if inputs is None:
        raise StudyError(
            "the run does not say what its models read: an earlier version wrote it",
            where=str(run / "manifest" / MODEL_INPUTS),
            fix="name the study, too: equipoise export RUN -c study.yaml -o DIR",
        )
    folds = {name: read_json(folder / CONFIG) for name, folder in sources.items()}
    first = next(iter(folds.values()))
    made_by, made_with = first["made_by"], first["made_with"]
    params, local = without_places(made_by["model_params"], study.base, "params")
    features, tables = _features(study, inputs, local), _tables(study, inputs, local)
    return ModelConfig(
        format="equipoise-model/1",
        name=study.name,
        synthetic=study.synthetic,
        license=license_name or "",
        made_with={
            key: made_with[key] for key in ("equipoise", "code", "python", "versions") if key in made_with
        },
        kind=made_by["model"],
        params=params,
        models_per_member=made_by["training"].get("members", 1),
        combined="ensemble" if refit is None else "refit",
        combined_note="" if refit is None else refit.note,
        threads=study.training.threads,
        tasks=study.tasks,
        reads=[*(["wsi"] if study.reads_slides else []), *tables["modalities"]],
        features=features,
        tables=tables,
        max_fail=study.features.max_fail,
        local_files=local,
        members=[
            MemberSpec(
                name=name,
                repeat=fold["fold"]["repeat"],
                fold=fold["fold"]["index"],
                epochs=fold["epochs"],
                best_epoch=fold["best_epoch"],
                frozen=fold.get("frozen", []),
            )
            for name, fold in folds.items()
        ],
    )


def _features(study: Study, inputs: dict[str, Any], local: list[LocalFile]) -> Any:
    if not study.reads_slides:
        return None
    settings = study.features.model_dump(mode="json")
    kept = {key: value for key, value in settings.items() if key not in _OF_THE_PLACE}
    extraction, places = without_places(kept, study.base, "features.extraction")
    local += places
    imported = study.features.imported is not None
    return {
        "extraction": extraction,
        "imported": imported,
        "tiles": inputs["tiles"],
        "reads": inputs["reads"],
    }


def _tables(study: Study, inputs: dict[str, Any], local: list[LocalFile]) -> Any:
    there: set[str] = {
        modality for cohort in study.cohorts if cohort.role == "develop" for modality in cohort.omics
    }
    there |= {CLINICAL} if study.tables.clinical else set()
    read = sorted(study.reads & there)
    table: dict[str, Any] = {"modalities": read, "expression": inputs.get("expression")}
    if CLINICAL in read:
        table["clinical"] = [covariate.model_dump(mode="json") for covariate in study.tables.clinical]
    if study.encodes_rna:
        rna = study.tables.rna
        assert rna.encoder is not None
        encoder, places = without_places(
            rna.encoder.model_dump(mode="json"), study.base, "tables.rna_encoder"
        )
        local += places
        table |= {"rna_encoder": encoder, "rna_encoder_fingerprint": inputs["rna_encoder"]}
        if rna.adapter is not None:
            local.append(LocalFile(key="tables.rna_adapter", name=Path(rna.adapter).name))
    return table
