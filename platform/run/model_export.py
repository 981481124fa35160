"""The job ``export``: a run folder, with or without its study, becomes an exported model."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from equipoise.datasets.atomic_io import write_json
from equipoise.platform.errors import StudyError
from equipoise.platform.prediction.export import MODEL_INPUTS, Refit, export_run
from equipoise.platform.run.context import RunContext
from equipoise.platform.run.model_trust import trust_of_run
from equipoise.platform.run.remote_folder import open_run_folder, read_run_folder

if TYPE_CHECKING:
    from equipoise.platform.prediction.exported_model import ExportedModel
    from equipoise.platform.study.schema import Study

log = logging.getLogger("equipoise")


def write_model_inputs(context: RunContext) -> None:
    """Write what the models of a run read, for an export that has no study: ``manifest/model_inputs.json``."""
    write_json(context.folder.manifest / MODEL_INPUTS, model_inputs(context))


def model_inputs(context: RunContext) -> dict[str, Any]:
    """Specifications of the features, kind of the RNA, identity of its encoder, as plain data."""
    study, inputs = context.study, context.inputs
    found: dict[str, Any] = {}
    if inputs.tiles is not None:
        found["reads"] = found["tiles"] = asdict(inputs.tiles.spec)
        if study.features.slide_encoder is not None:
            from equipoise.platform.extraction.sources import open_features

            settings = study.features.model_copy(update={"slide_encoder": None, "slide_encoder_params": {}})
            store = open_features(settings, context.store_root, study.base, inputs.cohorts.slides)
            found["tiles"] = asdict(store.spec)
    if "rna" in study.reads:
        develop = [cohort.name for cohort in study.cohorts if cohort.role == "develop"]
        kinds = context.cohorts.expression
        known = next((kinds[name] for name in develop if name in kinds), None)
        if known is not None:
            found["expression"] = {"kind": known.kind, "base": known.base, "pseudocount": known.pseudocount}
    if study.encodes_rna and study.tables.rna.encoder is not None:
        from equipoise.platform.extraction.rna_encoders import identify_rna_encoder

        found["rna_encoder"] = identify_rna_encoder(study.tables.rna.encoder, study.base).fingerprint
    return found


def export_model(
    out: Path,
    *,
    run: str | Path | None = None,
    study: Study | None = None,
    license_name: str | None = None,
    refit: bool = False,
    onnx: bool = False,
) -> ExportedModel:
    """Export the models of a run.

    Parameters
    ----------
    out
        A new folder.
    run
        The run folder, a path or an address; ``runs/<name>`` of the study if not given.
    study
        The study; the one that the run folder records if not given.
    license_name
        Licence of the weights.
    refit
        Train one model on all development patients, which needs the study and its data.
    onnx
        Write every model as ONNX, too.

    Raises
    ------
    StudyError
        If neither is given, the run is not finished, or cannot be exported.
    """
    if study is None:
        if run is None:
            raise StudyError(
                "say what to export",
                where="command line",
                fix="equipoise export RUN -o DIR, or -c study.yaml -o DIR",
            )
        if refit:
            raise StudyError(
                "a refit reads the patients of the study",
                where="--refit",
                fix="name the study, too: -c study.yaml",
            )
        finished = read_run_folder(run)
        recorded = recorded_study(finished.root)
        trust = trust_of_run(finished.root, recorded, None)
        return export_run(finished.root, out, recorded, license_name=license_name, trust=trust, onnx=onnx)
    folder = open_run_folder(study, None if run is None else str(run), "must")
    context = RunContext(study, folder)
    with folder.writing():
        write_model_inputs(context)
        refitted = _refit(context) if refit else None
    trust = trust_of_run(folder.root, study, context, refit=refit)
    return export_run(
        folder.root, out, study, license_name=license_name, refit=refitted, trust=trust, onnx=onnx
    )


def _refit(context: RunContext) -> Refit:
    """Train one model on all development patients, in ``export/refit`` of the run folder."""
    import torch

    from equipoise.datasets.atomic_io import read_json
    from equipoise.platform.prediction.operating_points import RiskScale
    from equipoise.platform.training.build import recipe_of
    from equipoise.platform.training.refit import refit_everyone

    study = context.study
    torch.set_num_threads(study.training.threads)
    folds = [read_json(file) for file in sorted(context.folder.folds.glob("*/config.json"))]
    if not folds:
        raise StudyError(
            "no fold is trained yet, whose epochs a refit takes",
            where=context.folder.address,
            fix="run `equipoise train`",
        )
    out = context.folder.root / "export" / "refit"
    model = refit_everyone(study.tasks, context.inputs, recipe_of(study), folds, out, seed=study.seed)
    risks = {}
    for task in study.tasks:
        scores = model.scores.loc[model.scores["task"] == task.name, "score"]
        if task.type == "survival" and scores.std(ddof=0) > 0:
            risks[task.name] = RiskScale(mean=float(scores.mean()), sd=float(scores.std(ddof=0)))
    return Refit(model.folder, risks, model.note)


def recorded_study(run: Path) -> Study:
    """The study that a run folder records; its paths start from nowhere.

    Raises
    ------
    StudyError
        If the folder holds no run.
    """
    from equipoise.platform.study.reading import read_study

    resolved = run / "provenance" / "resolved.yaml"
    if not resolved.is_file():
        raise StudyError(
            "no run here: the folder has no provenance/resolved.yaml",
            where=str(run),
            fix="name the folder that -o named, or runs/<name of the study>",
        )
    return read_study(resolved, None, ())
