"""What the step ``explain`` reads out of a run: fold models, predictions, gene sets."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from equipoise.datasets.atomic_io import read_json
from equipoise.platform.explain.explain import explained_tasks
from equipoise.platform.explain.explain_inputs import ExplainInputs
from equipoise.platform.explain.fold_models import FoldModels
from equipoise.platform.explain.params import ExplainParams
from equipoise.platform.fingerprints import content_hash
from equipoise.platform.run.context import RunContext

if TYPE_CHECKING:
    from equipoise.platform.explain.slide_vectors import SlideTilesBehind


def explain_inputs(context: RunContext, params: ExplainParams, folds: Sequence[str]) -> ExplainInputs:
    """Load the models of these folds and the predictions table.

    Raises
    ------
    DataError
        If nothing was evaluated yet.
    StudyError
        If a task is unknown.
    """
    from equipoise.datasets.omics.resolution import resolve_tables
    from equipoise.platform.evaluation.predictions import read_predictions
    from equipoise.platform.training.build import pick_device

    study, inputs = context.study, context.inputs
    names = [task.name for task in study.tasks]
    tasks = explained_tasks(params.tasks, names)
    main = study.main_task.name
    predictions = read_predictions(context.folder.evaluation / "predictions.parquet")
    folders = [context.folder.folds / name for name in folds]
    device = pick_device(study.training.device)
    models = FoldModels.of(folders, inputs.cases("develop"), inputs.cases("external"), device)
    encoder = study.tables.rna.encoder
    chosen = resolve_tables(study.tables, study.cohorts, study.base).rna.gene_sets
    return ExplainInputs(
        params=params,
        models=models,
        inputs=inputs,
        predictions=predictions,
        tasks=tasks,
        main=main if main in tasks else tasks[0],
        folds={folder.name: content_hash([str(read_json(folder / "config.json"))]) for folder in folders},
        seed=study.seed,
        synthetic=study.synthetic,
        whole_slides="" if study.reads_slides else f"model {study.model.kind} reads tables only",
        gene_sets={} if chosen is None or study.encodes_rna else chosen.sets,
        mpp_override=None if study.features.imported is not None else study.features.mpp_override,
        encoder_of_rna="" if encoder is None or not study.encodes_rna else encoder.name,
        behind=_slide_encoder(context),
    )


def _slide_encoder(context: RunContext) -> "SlideTilesBehind | None":
    """The slide encoder of the study and the store of the tiles that it read; None without."""
    from equipoise.platform.explain.slide_vectors import SlideTilesBehind
    from equipoise.platform.extraction.slide_vectors import below, load_slide_encoder
    from equipoise.platform.extraction.sources import open_features

    study = context.study
    if not study.reads_slides or study.features.slide_encoder is None:
        return None
    of_tiles = study.features.model_copy(update={"slide_encoder": None, "slide_encoder_params": {}})
    tiles = open_features(of_tiles, context.store_root, study.base, context.cohorts.slides)
    return SlideTilesBehind(load_slide_encoder(below(study.features, study.base)), tiles)
