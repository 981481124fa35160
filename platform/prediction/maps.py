"""Heat-maps of new patients: which tiles move a prediction, with the checks of a map and pictures of the slides."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from equipoise.datasets.names import file_stem
from equipoise.platform.errors import StudyError
from equipoise.platform.prediction.exported_model import ExportedModel
from equipoise.platform.prediction.new_patients import NewPatients
from equipoise.platform.registry import nearest

if TYPE_CHECKING:
    import pandas as pd

    from equipoise.platform.explain.tile_scores import TileScores

#: Folder of the maps below the output folder.
MAPS = "maps"
#: Name that stands for every task.
ALL = "all"


def map_problem(model: ExportedModel, tasks: Sequence[str]) -> StudyError | None:
    """Why these tasks cannot be mapped; asked before slides are read."""
    config = model.config
    names = [task.name for task in config.tasks]
    if unknown := [name for name in tasks if name not in (*names, ALL)]:
        return StudyError(
            f"the model has no task {unknown[0]!r}: {', '.join(names)}{nearest(unknown[0], names)}",
            where="--maps",
            fix=f"name a task, or {ALL}",
        )
    if config.features is None:
        return StudyError("the model reads no slide", where="--maps", fix="leave it out")
    if config.features.reads != config.features.tiles:
        return StudyError(
            "the model reads one vector per slide, which no map of tiles explains",
            where="--maps",
            fix="leave it out; `equipoise explain` looks through the slide encoder in the run",
        )
    return None


def draw_maps(
    model: ExportedModel,
    new: NewPatients,
    table: pd.DataFrame,
    tasks: Sequence[str],
    out: Path,
    *,
    method: str | None = None,
    seed: int = 0,
) -> dict[str, list[Path]]:
    """Maps of every slide with features: scores as Parquet, PNG, GeoJSON and a viewer in ``maps/<slide>/``.

    A map is the mean over the members. Of a task with several classes the predicted one is explained. The map is
    checked as in a run: removing its tiles, weights that are drawn again, agreement of the members.

    Parameters
    ----------
    model, new
        The model and its patients.
    table
        Their predictions (:class:`~equipoise.platform.prediction.predict.Predictions`).
    tasks
        Names of tasks, or ``all``.
    out
        The output folder.
    method
        ``equipoise ls attributions``; that of ``equipoise explain`` if not given.
    seed
        Of the checks.

    Returns
    -------
    Slide → its heat-maps.

    Raises
    ------
    StudyError
        As :func:`map_problem`, or if the method does not work with the model.
    """
    from equipoise.platform.explain.attribution import Method, explain_case
    from equipoise.platform.explain.explain import map_checks
    from equipoise.platform.explain.params import ExplainParams
    from equipoise.platform.explain.tile_scores import merge_checks, scores_path, write_tile_scores

    if problem := map_problem(model, tasks):
        raise problem
    name = method or ExplainParams().methods[0].name
    members, how, folder = model.members(), Method.named(name), out / MAPS
    chosen = [task for task in model.config.tasks if ALL in tasks or task.name in tasks]
    calls = table.drop_duplicates(["patient", "task"]).set_index(["patient", "task"])["call"]
    drawn: dict[str, list[Path]] = {}
    for patient in new.reader:
        case = new.reader[patient]
        by_slide: dict[str, list[TileScores]] = {}
        for task in chosen if len(case.bag) else ():
            class_name = str(calls[patient, task.name]) if task.type == "multiclass" else None
            for result in explain_case(members, case, task.name, class_name, how):
                checks = map_checks(result, [], 0, seed)
                for scores in result.by_slide(synthetic=model.config.synthetic):
                    whole = merge_checks(scores, checks)
                    path = scores_path(folder, scores.slide, scores.task, scores.class_name, scores.method)
                    write_tile_scores(whole, path)
                    by_slide.setdefault(scores.slide, []).append(whole)
        for slide, maps in by_slide.items():
            drawn[slide] = _render(maps, new, slide, folder / file_stem(slide))
    return drawn


def _render(maps: Sequence[TileScores], new: NewPatients, slide: str, folder: Path) -> list[Path]:
    from equipoise.platform.explain.render import render

    row = new.cohorts.slides.set_index("slide").loc[slide]
    there = Path(str(row["path"])).exists() and new.qc is not None
    mpp = float(row["mpp"]) if np.isfinite(row["mpp"]) else None
    rendered = render(maps, str(row["path"]) if there else None, folder, mpp=mpp)
    return list(rendered.heatmaps)
